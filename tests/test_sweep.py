"""A sweep from end to end, with real Ray and real MLflow: killed, grown, interrupted, gone on with.

One story in three starts of Ray, told by the fixture; the tests look at its stages.
"""

import errno
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import Sweep, cut_power, wait_for
from mpcc import data_files, run_dir
from mpcc.config import PRESETS
from tune import ledger, sweep
from tune import session as sessions
from tune.drivers import Alone
from tune.grid import cells, parse_grid
from tune.ledger import Status, Trial
from tune.mirror import STOP
from tune.settings import trial_spec

COMMON = ["--preset", "tiny", "--iterations", "60", "--set", "eval_every=20"]
SMALL = [*COMMON, "--grid", "esteps=1,2", "--seeds", "2", "--checkpoint-seconds", "0"]
LARGE = [*COMMON, "--grid", "esteps=1,2,3", "--seeds", "2", "--checkpoint-seconds", "0"]
TIMEOUT = 240


def launch(out: Path, *argv: str) -> "subprocess.Popen[str]":
    return Sweep(out, argv).start()


def results(out: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Trial key -> time of writing and content of its result."""
    return Sweep(out, ()).results()


def wait(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    if not wait_for(process, condition):
        out, err = process.communicate()
        pytest.fail(f"the sweep ended early ({process.returncode}):\n{out}\n{err}")


def unfinished(out: Path, n_evaluations: int = 1) -> list[Path]:
    """Run directories with a checkpoint, no result and at most so many evaluations of three."""
    return [
        file.parent
        for file in out.glob("trials/*/checkpoint.pt")
        if not (file.parent / run_dir.RESULT).exists()
        and len(run_dir.read_metrics(file.parent)) <= n_evaluations
    ]


@dataclass
class Story:
    out: Path
    after_kill: dict[str, tuple[int, dict[str, Any]]]
    cut_off: list[str]
    interrupt_code: int
    interrupt_seconds: float
    interrupt_text: str
    after_interrupt: dict[str, tuple[int, dict[str, Any]]]
    states_after_interrupt: set[str]
    code: int
    text: str
    noise: str
    end: dict[str, tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    out = tmp_path_factory.mktemp("sweep") / "out"
    first = launch(out, *SMALL)
    wait(first, lambda: bool(results(out)) and bool(unfinished(out)))
    cut_power(first)
    after_kill = results(out)
    # A trial may have come a little further between the look and the blow.
    cut_off = [path.name for path in unfinished(out, n_evaluations=3)]

    second = launch(out, *LARGE)
    wait(second, lambda: len(results(out)) > len(after_kill) and bool(unfinished(out)))
    begun = time.monotonic()
    os.kill(second.pid, signal.SIGINT)
    text, _ = second.communicate(timeout=60)
    seconds = time.monotonic() - begun
    after_interrupt = results(out)
    plan = ledger.read_plan(out)
    assert plan is not None
    states = {ledger.status(out, trial).state for trial in plan.trials()}

    third = launch(out, *LARGE)
    final, noise = third.communicate(timeout=TIMEOUT)
    return Story(
        out, after_kill, cut_off, second.returncode, seconds, text, after_interrupt, states,
        third.returncode, final, noise, results(out),
    )  # fmt: skip


def expected_trials() -> list[Trial]:
    base = PRESETS["tiny"].override(iterations=60, eval_every=20)
    made = cells(base, parse_grid(["esteps=1,2,3"], "tiny"))
    return [trial for cell in made for trial in ledger.trials(cell, (0, 1))]


def test_a_reported_end_counts_once_the_result_is_seen_on_the_shared_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = expected_trials()[0]
    where = sweep.Settings(tmp_path, "")
    board = sessions.Board([trial], {trial.key: Status(ledger.RUNNING)})
    files = sessions.OutFolder(tmp_path)
    session: Any = sessions.Session(
        None,
        where,
        Alone(tmp_path),
        sessions.Signals(),
        board,
        None,
        files,
        None,  # type: ignore[arg-type]
    )
    report = {"trial_key": trial.key, "state": "done", "iteration": 60, "accuracy": 0.5}
    session._in_hand = {trial.key}
    session._reported(report | {"evaluated": True, "done": True})
    session._see_ends()
    assert session._in_hand == {trial.key}
    folder = ledger.trial_dir(tmp_path, trial.key)
    folder.mkdir(parents=True)
    (folder / run_dir.RESULT).touch()
    session._see_ends()
    assert not session._in_hand and not session._ending

    (folder / run_dir.RESULT).unlink()
    session._in_hand = {trial.key}
    monkeypatch.setattr(sessions, "VISIBLE_SECONDS", -1.0)  # never seen: no reason to wait for ever
    session._reported(report | {"evaluated": True, "done": True})
    session._see_ends()
    assert not session._in_hand
    session._in_hand = {trial.key}
    session._reported(report | {"state": "stopped", "evaluated": False, "done": True})
    assert not session._in_hand


@pytest.mark.slow
def test_a_sweep_killed_grown_and_interrupted_ends_with_every_trial_done(story: Story) -> None:
    assert story.code == 0, story.noise
    assert set(story.end) == {trial.key for trial in expected_trials()}
    assert {result["state"] for _, result in story.end.values()} == {"done"}
    assert "6 of 6 trials done" in story.text
    assert "make_tables.py" in story.text and "server --backend-store-uri" in story.text


@pytest.mark.slow
def test_what_was_done_is_never_run_again(story: Story) -> None:
    assert story.after_kill and story.cut_off
    for earlier, later in (
        (story.after_kill, story.after_interrupt),
        (story.after_interrupt, story.end),
    ):
        assert all(later[key] == earlier[key] for key in earlier)


@pytest.mark.slow
def test_sigint_writes_checkpoints_and_exits_130_within_20_seconds(story: Story) -> None:
    assert story.interrupt_code == 130
    assert story.interrupt_seconds < 20
    assert len(story.after_interrupt) < 6
    assert story.states_after_interrupt <= {"done", "stopped", "planned"}
    assert "stopped: esteps=" in story.interrupt_text


@pytest.mark.slow
def test_a_trial_in_the_sweep_equals_the_same_trial_alone(story: Story, tmp_path: Path) -> None:
    from mpcc.trainer import train

    by_key = {trial.key: trial for trial in expected_trials()}
    cut_off = by_key[story.cut_off[0]]
    newest = expected_trials()[-1]
    for trial in {cut_off.key: cut_off, newest.key: newest}.values():
        path = tmp_path / trial.key
        for _ in train(trial.config, path):
            pass
        alone = json.loads((path / run_dir.RESULT).read_text())
        swept = story.end[trial.key][1]
        assert swept["weights_sha256"] == alone["weights_sha256"]
        here = run_dir.read_metrics(ledger.trial_dir(story.out, trial.key))
        assert [r["iteration"] for r in here] == [20, 40, 60]
        assert [_without_time(r) for r in here] == [
            _without_time(r) for r in run_dir.read_metrics(path)
        ]


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


@pytest.mark.slow
def test_mlflow_has_one_finished_run_per_trial_under_one_parent(story: Story) -> None:
    with sqlite3.connect(story.out / "mlflow.db") as connection:
        runs = connection.execute(
            "select t.value, r.status from runs r left join tags t on t.run_uuid = r.run_uuid and "
            "t.key = 'trial_key' where r.lifecycle_stage = 'active'"
        ).fetchall()
        rows = connection.execute(
            "select count(*), count(distinct step) from metrics where key = 'acc_majority' "
            "group by run_uuid"
        ).fetchall()
    assert sorted(key for key, _ in runs if key) == sorted(story.end)
    assert sum(key is None for key, _ in runs) == 1
    assert {status for _, status in runs} == {"FINISHED"}
    assert rows == [(3, 3)] * 6


@pytest.mark.slow
def test_ray_is_kept_out_of_the_way(story: Story) -> None:
    lines = story.noise.strip().splitlines()
    assert lines and all(line.startswith("[") or "trials to run" in line for line in lines), lines
    names = {path.name for path in story.out.iterdir()}
    assert names == {
        "sweep.json", "trials", "driver.lock", "mlflow.db", "mlflow.json", "mlflow-artifacts",
    }  # fmt: skip


@pytest.mark.slow
def test_a_finished_sweep_starts_nothing_and_answers_at_once(story: Story) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print('code', end.code)\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))\n"
    )
    begun = time.monotonic()
    again = subprocess.run(
        [sys.executable, "-c", program, *Sweep(story.out, tuple(LARGE)).command()[1:]],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - begun < 3
    assert again.stdout.splitlines()[-2:] == ["code 0", "[]"], again.stdout + again.stderr
    assert results(story.out) == story.end


@pytest.mark.slow
def test_a_lost_result_runs_its_trial_again_from_the_checkpoint_to_the_same_end(
    story: Story, tmp_path: Path
) -> None:
    """Through the class that Tune drives, without Ray. The checkpoint is that of the very end."""
    from tune.trainable import TrialRunner

    out = tmp_path / "copy"
    shutil.copytree(story.out, out)
    plan = ledger.read_plan(out)
    assert plan is not None and plan.data is not None
    trial = plan.trials()[0]
    path = ledger.trial_dir(out, trial.key)
    (path / run_dir.RESULT).unlink()
    assert ledger.mend(out, trial) is None
    settings = sweep.Settings(out=out, uri="", checkpoint_seconds=60)
    spec = trial_spec(trial, plan, settings, "test")
    runner = TrialRunner.__new__(TrialRunner)
    runner.setup({"trial": spec})
    reports = [runner.step()]
    while not reports[-1]["done"]:
        reports.append(runner.step())
    assert reports[-1]["state"] == "done"
    again = json.loads((path / run_dir.RESULT).read_text())
    assert again["weights_sha256"] == story.end[trial.key][1]["weights_sha256"]


@dataclass
class FakeProgress:
    iteration: int
    state: str
    metrics: dict[str, Any] | None = None


def runner_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Iterator[Any], **spec: Any
) -> tuple[Any, Trial, Path]:
    """A worker's side of one trial whose trainer yields `steps`, without Ray."""
    from mpcc import trainer
    from tune.trainable import TrialRunner

    trial = expected_trials()[0]
    plan = ledger.new_plan("tiny", trial.config)
    given = trial_spec(trial, plan, sweep.Settings(out=tmp_path, uri=""), "test") | spec
    monkeypatch.setattr(trainer, "train", lambda *_, **__: steps)
    runner = TrialRunner.__new__(TrialRunner)
    runner.setup({"trial": given})
    return runner, trial, ledger.trial_dir(tmp_path, trial.key)


def raising(error: BaseException) -> Iterator[Any]:
    yield FakeProgress(1, "running")
    raise error


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KeyError("a"), "code: KeyError: 'a' (test_sweep.py:"),
        (data_files.DataError("no images in DIR"), "data: no images in DIR"),
        (run_dir.RunDirError("DIR holds another run"), "data: DIR holds another run"),
        (FileNotFoundError(errno.ENOENT, "gone"), "code: FileNotFoundError"),
    ],
)
def test_a_trials_own_error_is_recorded_with_its_cause_and_not_retried(
    error: Exception, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, trial, path = runner_for(tmp_path, monkeypatch, raising(error))
    assert runner.step()["state"] == "running"
    report = runner.step()
    assert report["done"] and report["state"] == "failed"
    status = ledger.status(tmp_path, trial)
    assert status.state == "failed" and str(status.cause).startswith(cause)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_fault_of_the_machine_is_given_to_ray_to_retry_and_records_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, trial, path = runner_for(tmp_path, monkeypatch, raising(OSError(number, "disk")))
    runner.step()
    with pytest.raises(OSError):
        runner.step()
    assert ledger.status(tmp_path, trial).state == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_trial_out_of_memory_is_tried_once_alone_and_then_failed(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, trial, path = runner_for(tmp_path, monkeypatch, raising(error))
    runner.step()
    assert runner.step()["state"] == "out of memory"
    assert ledger.status(tmp_path, trial).state == "stopped"
    runner, trial, path = runner_for(tmp_path, monkeypatch, raising(error), alone=True)
    runner.step()
    assert runner.step()["state"] == "failed"
    assert str(ledger.status(tmp_path, trial).cause).startswith("out of memory: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_process_whose_gpu_context_is_lost_takes_no_further_trial(
    text: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, trial, _ = runner_for(tmp_path, monkeypatch, raising(RuntimeError(text)))
    runner.step()
    assert runner.step()["done"]
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    plan = ledger.new_plan("tiny", trial.config)
    given = trial_spec(trial, plan, sweep.Settings(out=tmp_path, uri=""), "test")
    if ends:
        with pytest.raises(SystemExit):
            runner.reset_config({"trial": given})
    else:
        assert runner.reset_config({"trial": given})


@pytest.mark.slow
def test_a_divergence_is_an_end_and_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (progress for progress in [FakeProgress(7, "diverged")])
    runner, _, path = runner_for(tmp_path, monkeypatch, steps)
    report = runner.step()
    assert report["done"] and (report["state"], report["iteration"]) == ("diverged", 7)


@pytest.mark.slow
def test_a_stop_asked_for_closes_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def training() -> Iterator[Any]:
        try:
            while True:
                yield FakeProgress(1, "running")
        except GeneratorExit:
            closed.append(True)
            raise

    runner, _, _ = runner_for(tmp_path, monkeypatch, training())
    assert runner.step()["state"] == "running"
    (tmp_path / STOP).touch()
    report = runner.step()
    assert report["done"] and report["state"] == "stopped" and closed == [True]


@pytest.mark.slow
def test_other_images_than_those_of_the_sweep_fail_and_leave_nothing_of_them(
    tmp_path: Path,
) -> None:
    from tune.trainable import TrialRunner

    trial = expected_trials()[0]
    plan = ledger.new_plan("tiny", trial.config)
    path = ledger.trial_dir(tmp_path, trial.key)
    spec = trial_spec(trial, plan, sweep.Settings(out=tmp_path, uri=""), "test")
    runner = TrialRunner.__new__(TrialRunner)
    runner.setup({"trial": spec | {"fingerprint": "expected"}})
    assert runner.step()["state"] == "failed"
    cause = str(ledger.status(tmp_path, trial).cause)
    assert cause.startswith("data: ") and "expected" in cause
    assert {p.name for p in path.iterdir()} <= {"config.json", "result.json", "attempts"}
    ledger.forget(tmp_path, trial, "failed")  # With the right images again.
    runner.setup({"trial": spec})
    assert runner.step()["state"] == "running"
    runner.cleanup()
    assert run_dir.read_provenance(path)["starts"] == [0]


@pytest.mark.slow
def test_a_trial_whose_driver_has_died_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    steps = (progress for progress in [FakeProgress(1, "running")])
    driver = [socket.gethostname(), gone.pid]
    runner, _, path = runner_for(tmp_path, monkeypatch, steps, driver=driver)
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit):
        runner.step()
    assert not path.exists()


def test_longer_trials_start_first_and_every_cell_gets_its_first_seed_early() -> None:
    trials = expected_trials()
    now = {trial.key: Status("planned") for trial in trials}
    now[trials[0].key] = Status("done")
    order = [(t.config.n_encoder_steps, t.seed) for t in sweep.missing(trials, now)]
    assert order == [(3, 0), (3, 1), (2, 0), (2, 1), (1, 1)]
