"""`python -m mpcc` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcc.__main__ import main
from mpcc.runs.run_dir import read_metrics, read_provenance, read_result

ROOT = Path(__file__).resolve().parents[1]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mpcc", *words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "diigts"], "unknown preset 'diigts'; did you mean 'digits'?"),
        (["--set", "bach_size=3"], "unknown field 'bach_size'; did you mean 'batch_size'?"),
        (["--set", "batch_size=big"], "batch_size must be a whole number, got 'big'"),
        (["--set", "batch_size=0"], "batch_size must be at least 2, got 0"),
        (["--set", "batch_size"], "expected field=value, got 'batch_size'"),
        (
            ["--checkpoint-seconds", "-1"],
            "--checkpoint-seconds must be between 0 and 1e+06, got -1",
        ),
        (["--preset", "mnist", "--data-dir", "no/such/folder"], "no/such/folder"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "cpu", "--set", "precision=tf32"], "precision=tf32"),
        (["--variant", "published-cod"], "did you mean 'published-code'?"),
        (["--inception-weights", "no/such.pth"], "no/such.pth"),
        *(
            ([*dry, "--set", *changes], message)
            for dry in ([], ["--dry-run"])
            for changes, message in (
                (["n_clusters=1798"], "n_clusters=1798 is more than the 1797 images of digits"),
                (["conditional=true", "K=9"], "have 10 labels: set n_clusters=10, not 9"),
                (["image_size=16", "n_generated=9"], "must be at least n_is_splits, 10, got 9"),
            )
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2_with_nothing_written(words, message, tmp_path, capsys):
    out = tmp_path / "r"
    assert main([*words, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not out.exists()


def test_a_slow_average_is_said_before_training(capsys):
    words = ["--set", "ema_decay=0.9999", "iterations=3000", "ema_start=1000", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "note: 82% of the averaged generator, which is evaluated, will still be" in said.err
    assert json.loads(said.out)["ema_decay"] == 0.9999


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_goes_on_to_the_same_result(tmp_path, capsys):
    """By its checkpoints after so many iterations: none is due by the clock or an evaluation."""
    settings = ["--preset", "tiny", "--set", "iterations=100", "eval_every=50"]
    assert main([*settings, "--out", str(tmp_path / "whole")]) == 0
    path, seen = tmp_path / "r", 0
    words = [*settings, "--checkpoint-seconds", "600", "--checkpoint-iterations", "10"]
    words += ["--out", str(path)]
    stops = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    for number, code in stops.items():
        running = subprocess.Popen(command(*words), cwd=ROOT, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while (now := written(path / "checkpoint.pt")) == seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.poll() is None
        if number == signal.SIGKILL:
            running.send_signal(signal.SIGSTOP)  # While it lives, nobody else trains.
            capsys.readouterr()
            assert main(words) == 2
            said = capsys.readouterr().err
            assert f"another process trains in {path}" in said and said.count("\n") == 1
        running.send_signal(number)
        running.send_signal(signal.SIGCONT)
        running.communicate(timeout=60)
        assert running.returncode == code and read_result(path) is None
        seen = max(now, written(path / "checkpoint.pt"))
    scrap = path / f".checkpoint.pt.new.{running.pid}.tmp"  # Half a checkpoint of a killed run.
    scrap.touch()
    assert main(words) == 0
    assert not scrap.exists() and not (path / "checkpoint-previous.pt").exists()
    ends = [read_result(tmp_path / name) for name in ("whole", "r")]
    for name in ("metrics", "weights_sha256", "iteration", "state"):
        assert ends[0][name] == ends[1][name]
    assert [row["iteration"] for row in read_metrics(path)] == [50, 100]
    assert len(read_provenance(path)["starts"]) == 4


def written(file: Path) -> int:
    """When; 0 where it is not there."""
    return file.stat().st_mtime_ns if file.exists() else 0


TINY = ["--preset", "tiny", "--set", "seed=1"]


def surrounded(
    out: Path, surroundings: dict[str, str | None], mask: int
) -> tuple[dict[str, float], list[object]]:
    """What a tiny trial under these variables prints, and its pictures and weights.

    None takes a variable away.
    """
    changed = {**os.environ, **surroundings}
    env = {name: value for name, value in changed.items() if value is not None}
    done = subprocess.run(
        command(*TINY, "--out", str(out)),
        cwd=ROOT, env=env, umask=mask, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "arning" not in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 4 and not set("\r\x1b") & set(done.stderr)
    for word in ("temporary", "fontManager"):  # matplotlib's, where its own folder is not there
        assert word not in done.stderr
    pictures = [path.read_bytes() for path in sorted(out.glob("[lrs]*.png"))]
    weights = json.loads((out / "result.json").read_text())["weights_sha256"]
    printed = {k: v for k, v in json.loads(done.stdout).items() if k != "out"}
    return printed, [*pictures, weights]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The folder of a tiny trial, what it printed, and its pictures and weights."""
    out = tmp_path_factory.mktemp("usual") / "r"
    return out, *surrounded(out, {}, 0o022)


def test_one_run_ends_with_its_result_on_stdout_and_goes_on_saying_so(usual, capsys):
    out, printed, made = usual
    assert printed["acc_majority"] > 0.1 and len(made) == 4
    assert main([*TINY, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert (
        json.loads(said.out) == printed | {"out": str(out)} and "pictures and records" in said.err
    )


SURROUNDINGS = {
    "PYTHONOPTIMIZE": "2", "TZ": "Pacific/Chatham", "TERM": "dumb",
    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",  # ASCII, as of old
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "HOME": "/proc/nowhere", "XDG_CACHE_HOME": None,
}  # fmt: skip
"""A notebook of another language, in a container without a home. Without a cache: test_plots.py."""


def test_a_trial_is_the_same_bytes_in_any_surroundings(tmp_path, usual):
    """A container, a notebook, another language, another mask: the same command, the same files."""
    _, *made = usual
    found = surrounded(tmp_path / "r", {"TMPDIR": str(tmp_path)} | SURROUNDINGS, 0o077)
    assert list(found) == made


def test_a_stop_before_the_first_iteration_is_heard_at_once(tmp_path, monkeypatch, capsys):
    def endless(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("mpcc.evaluation.baseline.best_of_ten_starts", endless)
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "tiny", "--out", str(tmp_path / "r")])
    assert ended.value.code == 143 and time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert "stopped before the first progress report; run the same command again" in said


def test_called_from_python_it_leaves_the_callers_signal_handlers(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--preset", "tiny", "--set", "iterations=2", "--out", str(tmp_path / "r")]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
