"""What is on disk is whole or not at all, and what is not ours is refused in one line."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcc.config import PRESETS
from mpcc.runs import checkpoints, files, run_dir
from mpcc.runs import code_version as code_version_module
from mpcc.runs.code_version import code_version


@pytest.mark.parametrize("name", PRESETS)
def test_open_run_makes_it_once_and_accepts_it_again(name, tmp_path):
    for _ in range(2):
        assert run_dir.open_run(tmp_path / "a" / "b", PRESETS[name]) == tmp_path / "a" / "b"
    assert run_dir.read_config(tmp_path / "a" / "b") == PRESETS[name]


def test_other_settings_are_refused_by_the_field_that_differs(tmp_path, tiny):
    run_dir.open_run(tmp_path / "r", tiny.override(prior_lr=6e-4))
    with pytest.raises(run_dir.RunDirError, match="prior_lr=6e-4, now 2e-4"):
        run_dir.open_run(tmp_path / "r", tiny.override(prior_lr=2e-4))


def test_a_folder_of_other_files_is_left_alone(tmp_path, tiny):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(run_dir.RunDirError, match="holds other files"):
        run_dir.open_run(tmp_path, tiny)
    with pytest.raises(run_dir.RunDirError, match="is a file"):
        run_dir.open_run(tmp_path / "thesis.tex", tiny)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dataset": 3}', '{"nosuch": 1}', "\x00\xff"])
def test_a_broken_configuration_is_one_line(tmp_path, content):
    (tmp_path / run_dir.CONFIG).write_text(content)
    with pytest.raises(run_dir.RunDirError) as caught:
        run_dir.read_config(tmp_path)
    assert "\n" not in str(caught.value) and run_dir.CONFIG in str(caught.value)


def test_a_result_without_a_known_state_is_refused(tmp_path):
    assert run_dir.read_result(tmp_path) is None
    (tmp_path / run_dir.RESULT).write_text('{"state": "finished"}')
    with pytest.raises(run_dir.RunDirError, match="no state that is known"):
        run_dir.read_result(tmp_path)


def test_rows_are_read_by_iteration_and_the_last_of_two_counts(tmp_path):
    for i, value in ((4, 1.0), (2, 2.0), (4, 3.0)):
        run_dir.append_metrics(tmp_path, {"iteration": i, "mse": value})
    assert run_dir.read_metrics(tmp_path) == [
        {"iteration": 2, "mse": 2.0},
        {"iteration": 4, "mse": 3.0},
    ]
    run_dir.write_metrics(tmp_path, [{"iteration": 2, "mse": 2.0}])
    assert (tmp_path / run_dir.METRICS).read_text() == '{"iteration": 2, "mse": 2.0}\n'
    run_dir.write_metrics(tmp_path, [])
    assert (tmp_path / run_dir.METRICS).read_bytes() == b""


def test_a_torn_last_line_is_left_out_and_a_torn_middle_refused(tmp_path):
    run_dir.append_metrics(tmp_path, {"iteration": 1})
    with (tmp_path / run_dir.METRICS).open("a") as file:
        file.write('{"iterat')
    assert run_dir.read_metrics(tmp_path) == [{"iteration": 1}]
    with (tmp_path / run_dir.METRICS).open("a") as file:
        file.write('\n{"iteration": 2}\n')
    with pytest.raises(run_dir.RunDirError, match="line 2"):
        run_dir.read_metrics(tmp_path)


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path):
    run_dir.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "nan", "b": ["inf"]}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    for name in (run_dir.CONFIG, run_dir.METRICS, run_dir.RESULT, run_dir.CHECKPOINT):
        path = tmp_path / name
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
            case "loop":
                path.symlink_to(path)
    for read in (run_dir.read_config, run_dir.read_metrics, run_dir.read_result):
        with pytest.raises(run_dir.RunDirError, match="is no file .*delete it to run again"):
            read(tmp_path)
    found, problems = run_dir.read_checkpoints(tmp_path)
    assert found == [] and "is no file" in str(problems)


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch):
    run_dir.write_json(tmp_path / "x.json", {"a": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room on the disk for"):
        run_dir.write_json(tmp_path / "x.json", {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_checkpoints_keep_the_one_before(tmp_path):
    rows = [{"iteration": 2, "mse": 0.5}, {"iteration": 4, "mse": float("nan")}]
    for n, payload in enumerate((b"one", b"two", b"three")):
        run_dir.write_checkpoint(tmp_path, payload, iteration=2 * n, rows=rows[:n])
    found, problems = run_dir.read_checkpoints(tmp_path)
    assert [c.payload for c in found] == [b"three", b"two"] and not problems
    assert [c.iteration for c in found] == [4, 2]
    assert found[0].rows == (rows[0], {"iteration": 4, "mse": "nan"})


def kill_at_replacement(n: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint and be killed before the n-th file gets its name."""
    replace, done = os.replace, []

    def counted(source, target):
        done.append(target)
        if len(done) == n:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", counted)
        run_dir.write_checkpoint(path, b"next", iteration=9)


@pytest.mark.parametrize(("n", "newest"), [(1, 2), (2, 9), (3, 9)])
@pytest.mark.parametrize("damage", [None, b"", b"mpcc checkpoint 2\nhalf"])
def test_a_kill_at_any_moment_of_writing_leaves_the_newest_intact_checkpoint(
    n: int, newest: int, damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (1, 2):
        run_dir.write_checkpoint(tmp_path, b"x", iteration=iteration)
    if damage is not None:
        (tmp_path / run_dir.CHECKPOINT).write_bytes(damage)
        newest = min(newest, 1) if n == 1 else newest
    kill_at_replacement(n, tmp_path, monkeypatch)
    for _ in range(2):
        assert run_dir.read_checkpoints(tmp_path)[0][0].iteration == newest
        checkpoints.quarantine_damaged(tmp_path)
    kept = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
    assert kept <= {run_dir.CHECKPOINT, run_dir.PREVIOUS_CHECKPOINT} | {
        f"{name}.damaged" for name in run_dir.CHECKPOINTS
    }
    assert run_dir.read_checkpoints(tmp_path)[1] == {}
    run_dir.write_checkpoint(tmp_path, b"after", iteration=10)
    after = [c.iteration for c in run_dir.read_checkpoints(tmp_path)[0]]
    assert after == [10, newest]


def test_a_checkpoint_of_earlier_code_is_read(tmp_path: Path) -> None:
    seal = hashlib.sha256(b"state").hexdigest().encode()
    (tmp_path / run_dir.CHECKPOINT).write_bytes(b"mpcc checkpoint 1\n" + seal + b"\nstate")
    found, problems = run_dir.read_checkpoints(tmp_path)
    assert not problems and found == [checkpoints.Checkpoint(b"state")]


def test_no_bit_of_a_record_can_change_unseen(tmp_path: Path) -> None:
    row = {"iteration": 4, "mse": 0.125, "seconds": 1.5}
    run_dir.append_metrics(tmp_path, row)
    values = {"state": "done", "cause": None, "iteration": 4, "metrics": {"mse": 0.125}}
    run_dir.write_result(tmp_path, values, [row])
    whole = run_dir.read_trial(tmp_path)
    rng = random.Random(0)
    for name in (run_dir.RESULT, run_dir.METRICS):
        data = (tmp_path / name).read_bytes()
        for _ in range(400):
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(bytes(flipped))
            try:
                assert run_dir.read_trial(tmp_path) == whole  # White space may change.
            except run_dir.RunDirError as error:
                assert name in str(error)
        (tmp_path / name).write_bytes(data)
    assert run_dir.read_trial(tmp_path) == whole
    run_dir.write_provenance(tmp_path, {"code": "c0de", "data": {"fingerprint": "f00d"}})
    file = tmp_path / run_dir.PROVENANCE
    file.write_text(file.read_text().replace("f00d", "f00e"))
    with pytest.raises(run_dir.RunDirError, match="wrong hash"):
        run_dir.read_provenance(tmp_path)


@pytest.mark.parametrize("state", ["done", "failed", None])
def test_the_end_of_a_trial_is_that_of_all_its_rows(state, tmp_path: Path) -> None:
    rows = [{"iteration": n, "mse": 1 / n} for n in (2, 4, 6)]
    assert run_dir.read_end(tmp_path) == (None, {})
    for row in rows:
        run_dir.append_metrics(tmp_path, row)
    if state:
        run_dir.write_result(tmp_path, {"state": state, "iteration": 6, "metrics": {}}, rows)
    result, all_rows = run_dir.read_trial(tmp_path)
    assert run_dir.read_end(tmp_path) == (result, all_rows[-1]) == (result, rows[-1])
    data = (tmp_path / run_dir.METRICS).read_bytes()
    (tmp_path / run_dir.METRICS).write_bytes(data.replace(b"0.25", b"0.52"))
    if state:
        with pytest.raises(run_dir.RunDirError, match="damaged"):
            run_dir.read_end(tmp_path)


def test_a_record_of_earlier_code_without_a_seal_is_read(tmp_path: Path) -> None:
    run_dir.write_json(
        tmp_path / run_dir.RESULT, {"state": "done", "iteration": 4, "metrics": {"mse": 1.0}}
    )
    found = run_dir.read_result(tmp_path)
    assert found and found["metrics"] == {"mse": 1.0}


def test_half_written_files_of_dead_writers_are_removed_and_no_others(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = files._HOST
    dead = [f".checkpoint.pt.new.{gone.pid}.tmp", f".result.json.pid-{host}-{gone.pid}.tmp"]
    dead += [".result.json.pid-elsewhere-7.tmp"]
    alive = [
        f".result.json.pid-{host}-{os.getpid()}.tmp",
        ".result.json.pid-an-other-7.tmp",
        "a.tmp",
    ]
    for name in (*dead, *alive):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{gone.pid}.tmp").mkdir()
    (tmp_path / f".folder.{gone.pid}.tmp" / "part").touch()
    old = time.time() - 2 * files.SCRAP_SECONDS
    os.utime(tmp_path / dead[-1], (old, old))
    files.remove_scraps(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(alive)


@pytest.mark.parametrize("damage", ["empty", "short", "flip", "foreign"])
def test_damaged_checkpoints_are_named_and_the_intact_one_is_used(tmp_path, damage):
    run_dir.write_checkpoint(tmp_path, b"one" * 100)
    run_dir.write_checkpoint(tmp_path, b"two" * 100)
    file = tmp_path / run_dir.CHECKPOINT
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(
        {"empty": b"", "short": data[:-5], "flip": bytes(data), "foreign": b"PK\x03\x04"}[damage]
    )
    found, problems = run_dir.read_checkpoints(tmp_path)
    assert [c.payload for c in found] == [b"one" * 100]
    assert len(problems) == 1 and str(file) in problems[run_dir.CHECKPOINT]
    for _ in range(2):  # However often that happens, one damaged file is kept.
        assert run_dir.CHECKPOINT in checkpoints.quarantine_damaged(tmp_path)[1]
        assert (tmp_path / f"{run_dir.CHECKPOINT}.damaged").exists()
        file.write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_of_another_program_is_refused_and_left_alone(tmp_path, tiny):
    run_dir.open_run(tmp_path / "r", tiny)
    file = tmp_path / "r" / run_dir.CHECKPOINT
    file.write_bytes(b"PK\x03\x04 somebody's weights")
    with pytest.raises(run_dir.RunDirError, match="not a checkpoint of this program"):
        run_dir.open_run(tmp_path / "r", tiny)
    assert file.read_bytes().startswith(b"PK")
    file.write_bytes(b"")  # cut short by a full disk: ours, and trained over
    run_dir.open_run(tmp_path / "r", tiny)


def test_the_commit_is_known_where_the_repository_is_another_users():
    """As in a container; git refuses such a repository unless it is named as safe."""
    program = "from mpcc.runs.code_version import code_version; print(code_version())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(code_version_module.__file__).parents[2],
        env=os.environ | {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},
        capture_output=True,
        text=True,
    )
    version = code_version()
    assert done.stdout.strip() == version
    assert version == "unknown" or len(version.removesuffix("+changes")) == 12


def test_code_without_its_repository_is_of_the_version_that_the_sender_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mpcc" / "runs" / "code_version.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(Path(code_version_module.__file__).read_text())
    program = "import mpcc.runs.code_version as m; print(m.code_version())"

    def said(**variables: str) -> str:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)} | variables
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert said() == "unknown"
    assert said(MPCC_CODE_VERSION="abc123") == "abc123"
    monkeypatch.setenv("MPCC_CODE_VERSION", "abc123")
    code_version.cache_clear()
    in_repository = (Path(code_version_module.__file__).parents[2] / ".git").exists()
    assert (code_version() == "abc123") != in_repository
    code_version.cache_clear()
