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
from mpcc.runs.run_dir import read_metrics, read_result

ROOT = Path(__file__).resolve().parents[1]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mpcc", *words]


def test_one_run_ends_with_its_result_on_stdout_and_goes_on_saying_so(tmp_path):
    words = ("--preset", "tiny", "--set", "seed=1", "--out", str(tmp_path / "r"))
    outputs = []
    for _ in range(2):
        done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout))
    assert outputs[0] == outputs[1]
    assert outputs[0]["acc_majority"] > 0.1 and "pictures and records" in done.stderr


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
        (["--variant", "published-cod"], "did you mean 'published-code'?"),
        (["--inception-weights", "no/such.pth"], "no/such.pth"),
        *(
            ([*dry, "--set", *changes], message)
            for dry in ([], ["--dry-run"])
            for changes, message in (
                (["n_clusters=1798"], "n_clusters=1798 is more than the 1797 images of digits"),
                (["conditional=true", "K=9"], "have 10 labels: set n_clusters=10, not 9"),
                (["n_generated=9"], "n_generated must be at least n_is_splits, 10, got 9"),
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
    assert (
        "note: the averaged generator, which is evaluated, will be to 82%"
        in capsys.readouterr().err
    )


def test_usage_errors_help_and_dry_run_answer_within_a_second():
    for words, code in ((["--help"], 0), (["--dry-run"], 0), (["--preset", "x"], 2)):
        assert any(_seconds(words, code) < 1.0 for _ in range(3)), words


def _seconds(words: list[str], code: int) -> float:
    start = time.monotonic()
    done = subprocess.run(command(*words), cwd=ROOT, capture_output=True)
    assert done.returncode == code
    return time.monotonic() - start


LONGER = ["--preset", "tiny", "--set", "iterations=160", "eval_every=40", "width=2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "r"
    subprocess.run(command(*LONGER, "--out", str(out)), cwd=ROOT, check=True, capture_output=True)
    return read_result(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_goes_on_to_the_same_result(number, undisturbed, tmp_path):
    words = command(*LONGER, "--checkpoint-seconds", "0.1", "--out", str(tmp_path / "r"))
    running = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, number)
    running.communicate(timeout=60)
    assert running.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert read_result(tmp_path / "r") is None
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    result = read_result(tmp_path / "r")
    for name in ("metrics", "weights_sha256", "iteration", "state"):
        assert result[name] == undisturbed[name]
    assert [r["iteration"] for r in read_metrics(tmp_path / "r")] == [40, 80, 120, 160]


@pytest.mark.slow
def test_a_second_process_in_a_directory_is_refused_and_a_dead_one_is_followed(tmp_path):
    out = tmp_path / "r"
    words = command("--preset", "tiny", "--set", "iterations=1000000", "eval_every=1000000")
    words += ["--checkpoint-seconds", "0.1", "--out", str(out)]
    first = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert f"another process trains in {out}" in second.stderr
    assert first.poll() is None
    first.kill()
    first.communicate(timeout=60)
    made = (out / "checkpoint.pt").stat().st_mtime_ns
    third = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)
    while (out / "checkpoint.pt").stat().st_mtime_ns == made and time.monotonic() < deadline:
        time.sleep(0.05)
    third.send_signal(signal.SIGINT)
    _, said = third.communicate(timeout=60)
    assert third.returncode == 130, said


@pytest.mark.data
def test_real_mnist_trains_at_16_pixels_from_a_folder_of_official_files(data_dir, tmp_path):
    words = ["--preset", "mnist", "--data-dir", str(data_dir), "--out", str(tmp_path / "r")]
    words += ["--set", "iterations=3", "image_size=16", "width=4", "cpu_threads=2"]
    done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "r")
    assert result["state"] == "done" and result["iteration"] == 3
    assert 0.1 < result["metrics"]["acc_majority"] < 1


def surrounded(out: Path, surroundings: dict[str, str | None], mask: int) -> list[object]:
    """Pictures and weights of a tiny trial under these variables; None takes one away."""
    changed = {**os.environ, **surroundings}
    env = {name: value for name, value in changed.items() if value is not None}
    done = subprocess.run(
        command("--preset", "tiny", "--out", str(out)),
        cwd=ROOT, env=env, umask=mask, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "arning" not in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 4 and not set("\r\x1b") & set(done.stderr)
    for word in ("temporary", "fontManager"):  # matplotlib's, where its own folder is not there
        assert word not in done.stderr
    pictures = [path.read_bytes() for path in sorted(out.glob("[lrs]*.png"))]
    return [*pictures, json.loads((out / "result.json").read_text())["weights_sha256"]]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    made = surrounded(tmp_path_factory.mktemp("usual") / "r", {}, 0o022)
    assert len(made) == 4
    return made


@pytest.mark.parametrize(
    "surroundings",
    [
        # A notebook of another language, in a container without a home.
        {"PYTHONOPTIMIZE": "2", "TZ": "Pacific/Chatham", "TERM": "dumb",
         "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",  # ASCII, as of old
         "MPLBACKEND": "module://matplotlib_inline.backend_inline",
         "HOME": "/proc/nowhere", "MPCC_CACHE_DIR": None, "XDG_CACHE_HOME": None},
    ],
)  # fmt: skip
def test_a_trial_is_the_same_bytes_in_any_surroundings(tmp_path, usual, surroundings):
    """A container, a notebook, another language, another mask: the same command, the same files."""
    assert surrounded(tmp_path / "r", {"TMPDIR": str(tmp_path)} | surroundings, 0o077) == usual


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
    assert "stopped before the first iteration; the same command goes on" in capsys.readouterr().err


def test_called_from_python_it_leaves_the_callers_signal_handlers(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--preset", "tiny", "--set", "iterations=2", "--out", str(tmp_path / "r")]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
