"""The plan, the states of trials, and the right to work on a folder."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from mpcc import run_dir
from mpcc.config import PRESETS
from tune import ledger, lock
from tune.grid import cells, parse_grid, table1_rows
from tune.ledger import LedgerError, Plan, Trial

TINY = PRESETS["tiny"]


def planned(*words: str, seeds: tuple[int, ...] = (0, 1)) -> Plan:
    grid = parse_grid(words, "tiny")
    return ledger.new_plan("tiny", TINY).grow(cells(TINY, grid), seeds, grid.text)


def write_trial(out: Path, trial: Trial, state: str | None = "done", rows: int = 2) -> Path:
    path = run_dir.open_run(ledger.trial_dir(out, trial.key), trial.config)
    for iteration in range(1, rows + 1):
        run_dir.append_metrics(path, {"iteration": iteration, "seconds": 1.0, "acc_majority": 0.5})
    if state is not None:
        result = {"state": state, "cause": None, "iteration": rows, "trial_key": trial.key}
        run_dir.write_result(path, result | {"metrics": {"acc_majority": 0.5}})
    return path


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = planned("esteps,eta_p")
    ledger.write_plan(tmp_path, plan)
    assert ledger.read_plan(tmp_path) == plan
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved["schema"] == 1 and "seed" not in saved["base"]
    steps, rate = table1_rows("tiny")[0]
    assert saved["cells"][0]["changes"] == {"n_encoder_steps": steps, "prior_lr": rate}
    assert saved["cells"][0]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"schema": 2}',
        b'{"schema": 1}',
        b'{"schema": 1, "id": "a", "preset": "tiny", "base": 3, "cells": []}',
        b'{"schema": 1, "id": "a", "preset": "tiny", "base": {"widht": 3}, "cells": []}',
        b'{"schema": 1, "id": "a", "preset": "tiny", "base": {}, "cells": [{"key": "x"}]}',
        b'{"schema": 1, "id": "a", "preset": "t", "base": {}, "cells": [{"key": "x", "changes": '
        b'{"width": 3}, "grids": [], "seeds": [0]}]}',
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(LedgerError) as error:
        ledger.read_plan(tmp_path)
    assert "sweep.json" in str(error.value) and "\n" not in str(error.value)


def test_the_state_of_a_trial_is_read_from_its_run_directory(tmp_path: Path) -> None:
    trials = planned("esteps=1,2,4").trials()
    write_trial(tmp_path, trials[0])
    write_trial(tmp_path, trials[1], "diverged", rows=0)
    write_trial(tmp_path, trials[2], None)
    write_trial(tmp_path, trials[3], None)
    ledger.record_failed(
        ledger.trial_dir(tmp_path, trials[4].key), trials[4].config, "code: KeyError: 'a'"
    )
    found = [ledger.status(tmp_path, trial, {trials[2].key}) for trial in trials]
    states = ["done", "diverged", "running", "stopped", "failed", "planned"]
    assert [status.state for status in found] == states
    assert found[4].cause == "code: KeyError: 'a'"
    assert found[3].iteration == 2 and found[3].metrics["acc_majority"] == 0.5


def test_a_recorded_result_is_never_overwritten_by_a_failure(tmp_path: Path) -> None:
    trial = planned("esteps=1").trials()[0]
    path = write_trial(tmp_path, trial)
    ledger.record_failed(path, trial.config, "killed: its process died")
    assert ledger.status(tmp_path, trial).state == "done"


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b'{"state": "do', b"\x00\xff\n{}\n"])
def test_a_trial_with_a_damaged_file_runs_again(tmp_path: Path, name: str, content: bytes) -> None:
    trial = planned("esteps=1").trials()[0]
    path = write_trial(tmp_path, trial)
    rows = run_dir.read_metrics(path)
    run_dir.write_checkpoint(path, b"state")
    (path / name).write_bytes(content)
    before = ledger.status(tmp_path, trial).state
    message = ledger.mend(tmp_path, trial)
    if name == "config.json":
        assert before == "done" and ledger.status(tmp_path, trial).state == "done"
    else:
        assert before == "stopped" and ledger.status(tmp_path, trial).state == "stopped"
        assert message and name in message
    assert run_dir.read_config(path) == trial.config
    # A checkpoint has the evaluations up to its iteration: the trial goes on from there.
    assert (path / run_dir.CHECKPOINT).exists()
    assert run_dir.read_metrics(path) == ([] if name != "config.json" else rows)
    assert ledger.mend(tmp_path, trial) is None


def test_a_retried_failure_goes_on_and_a_retried_divergence_starts_afresh(tmp_path: Path) -> None:
    failed, diverged = planned("esteps=1").trials()
    for trial, state in ((failed, "failed"), (diverged, "diverged")):
        path = write_trial(tmp_path, trial, state)
        run_dir.write_checkpoint(path, b"state")
        ledger.forget(tmp_path, trial, state)
        assert ledger.status(tmp_path, trial).state == "stopped"
        assert (path / run_dir.CHECKPOINT).exists() == (state == "failed")


def _hold(out: str, ready: "multiprocessing.synchronize.Event") -> None:
    held = lock.Lock(Path(out))
    held.renew({"abc"})
    ready.set()
    time.sleep(60)


def test_a_second_driver_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(str(tmp_path), ready))
    owner.start()
    try:
        assert ready.wait(10)
        with pytest.raises(lock.LockError) as error:
            lock.Lock(tmp_path)
        assert str(owner.pid) in str(error.value) and socket.gethostname() in str(error.value)
        found = lock.lock_owner(tmp_path)
        assert found is not None and found["pid"] == owner.pid
        assert lock.running_keys(tmp_path) == {"abc"}
    finally:
        owner.kill()
        owner.join()
    assert lock.lock_owner(tmp_path) is None
    assert lock.running_keys(tmp_path) == frozenset()
    held = lock.Lock(tmp_path)
    held.release()
    assert lock.lock_owner(tmp_path) is None


def test_a_lock_of_another_machine_holds_while_it_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / lock.LOCK
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0, "running": []}))
    with pytest.raises(lock.LockError, match="process 1 on elsewhere"):
        lock.Lock(tmp_path)
    old = time.time() - 10 * lock.HEARTBEAT_SECONDS
    os.utime(file, (old, old))
    lock.Lock(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_torn_lock_file_of_a_dead_driver_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / lock.LOCK).write_bytes(content)
    lock.Lock(tmp_path).release()


def test_folders_and_links_in_the_place_of_records_are_set_aside_under_names_of_their_own(
    tmp_path: Path,
) -> None:
    trial = planned("esteps=1").trials()[0]
    path = run_dir.open_run(ledger.trial_dir(tmp_path, trial.key), trial.config)
    for aside in ("result.json.damaged", "result.json.damaged2"):
        (path / "result.json").mkdir()
        (path / "result.json" / "inside").touch()
        (path / "checkpoint.pt").mkdir(exist_ok=True)
        message = ledger.mend(tmp_path, trial)
        assert message is not None and "result.json, checkpoint.pt damaged" in message
        assert (path / aside / "inside").exists()
        assert not (path / "result.json").exists() and not (path / "checkpoint.pt").exists()
    trial_again = planned("esteps=1").trials()[1]
    ledger.trial_dir(tmp_path, trial_again.key).symlink_to("nowhere")
    assert "was no folder" in str(ledger.mend(tmp_path, trial_again))
    assert ledger.status(tmp_path, trial_again).state == ledger.PLANNED
