"""One trial without a driver (`--next`), sweeps that are joined (`--adopt`), and a lost plan."""

import json
import os
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mpcc.runs.files import BusyError, exclusive
from mpcc.training import trainer
from tests.stand_ins import end_record, planned
from tests.test_promises import call, said
from tests.test_promises_sweep import results
from tune import ablation, preflight
from tune.plan.cost import memory_need
from tune.plan.plan import Plan, PlanError
from tune.plan.state import State
from tune.store import lock
from tune.store.adopt import adopt
from tune.store.folder import Store, open_store
from tune.store.lock import Owner, claimed, this_machine, trial_lock
from tune.store.plan_file import COPY

GRID = ["--preset", "tiny", "--iterations", "12", "--grid", "esteps=1,2"]


def store_of(out: Path, plan: Plan) -> Store:
    store = Store(out)
    store.write_plan(plan)
    return store


def other_owner(pid: int, machine: str = "") -> bytes:
    owner = Owner("another", f"process {pid} on {socket.gethostname()}", machine, pid)
    return (json.dumps(asdict(owner)) + "\n").encode()


# -- one trial without a driver --------------------------------------------------------------------


def test_a_claim_of_a_dead_process_is_taken_over_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1")
    store, key = store_of(tmp_path, plan), plan.trials()[0].key
    file = tmp_path / lock.CLAIMS / f"{key}.json"
    file.parent.mkdir()
    file.with_name(f"{key}.1").write_text("0123abcd")  # Of a search of old.
    dead = subprocess.Popen(["true"])
    dead.wait()
    file.write_bytes(other_owner(dead.pid, this_machine()))
    assert claimed(store) == set()
    with trial_lock(store, key):
        assert claimed(store) == {key}
    assert claimed(store) == set() and not file.exists()

    monkeypatch.setattr(lock, "WATCH_SECONDS", 5.0)  # A living one writes every 2 s.
    file.write_bytes(other_owner(1, "a machine that went away"))
    with trial_lock(store, key):
        pass
    refused = f"{key} is trained by process {os.getpid()}"
    with trial_lock(store, key) as living, pytest.raises(BusyError, match=refused):
        with trial_lock(store, key):
            pass
    assert not living.lost


def test_a_trial_of_a_driver_is_not_taken(tmp_path: Path) -> None:
    plan = planned("esteps=1")
    store, key = store_of(tmp_path, plan), plan.trials()[0].key
    with lock.sweep_lock(store) as driver:
        driver.renew([key])
        with pytest.raises(BusyError, match="is trained by process"), trial_lock(store, key):
            pass


def test_a_trial_of_a_driver_that_died_on_another_machine_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1")
    store, key = store_of(tmp_path, plan), plan.trials()[0].key
    claim = json.loads(other_owner(1, "a machine that went away"))
    (tmp_path / lock.CLAIM).write_text(json.dumps(claim | {"running": [key]}))
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.0)
    with trial_lock(store, key) as claims:
        assert not claims.lost


def test_next_needs_the_memory_of_one_trial_and_a_trial_that_runs_out_of_it_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("esteps=1")
    store_of(tmp_path, plan)
    room = int(1.5 * memory_need(plan.trials()[0].config))
    monkeypatch.setattr(preflight, "free_memory", lambda: room)

    def train(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "train", train)
    assert ablation.main(["--out", str(tmp_path), "--next"]) == 3
    assert capsys.readouterr().out.startswith("failed: ")
    assert [s.state for s in Store(tmp_path).statuses(plan.trials()).values()] == [
        State.FAILED,
        State.PLANNED,
    ]


@pytest.mark.slow
def test_next_leaves_a_trial_that_another_program_trains(tmp_path: Path) -> None:
    plan = planned("esteps=1")
    store = store_of(tmp_path, plan)
    first, second = plan.trials()
    with exclusive(store.trial_dir(first.key), 0.0):
        done = call("ablation", "--out", tmp_path, "--next", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(results(tmp_path)) == {second.key}


def test_next_goes_with_no_option_of_a_driver(tmp_path: Path) -> None:
    for words in (["--status"], ["--dry-run"], ["--retry", "failed"], ["--address", "auto"]):
        done = call("ablation", *GRID, "--next", *words, cwd=tmp_path)
        assert done.returncode == 2 and "--next" in done.stderr, words


@pytest.mark.slow
def test_exported_records_go_on_without_checkpoints_and_only_what_is_missing_runs(
    tmp_path: Path,
) -> None:
    said("ablation", *GRID, "--seeds", "1", "--out", "x", "--next", cwd=tmp_path)
    packed = ["--runs", "x", "--export", "records.zip", "--anonymous"]
    assert "Written to records.zip" in said("make_tables", *packed, cwd=tmp_path)
    shutil.unpack_archive(tmp_path / "records.zip", tmp_path)
    out = tmp_path / "sweep"
    assert not [*out.rglob("checkpoint*"), *out.rglob("model*")]
    before = {path: path.read_bytes() for path in out.rglob("trials/*/*")}
    assert "2 trials, 1 to run" in said("ablation", "--out", out, "--dry-run", cwd=tmp_path)
    said("ablation", "--out", out, "--next", cwd=tmp_path)
    assert len(results(out)) == 2
    assert call("ablation", "--out", out, "--next", cwd=tmp_path).returncode == 4
    assert {path: path.read_bytes() for path in before} == before


# -- sweeps that are joined ------------------------------------------------------------------------


def test_only_what_is_done_there_and_not_here_is_adopted(tmp_path: Path) -> None:
    plan = planned("esteps=1,2")
    here, there = store_of(tmp_path / "here", plan), store_of(tmp_path / "there", plan)
    first, second, third, fourth = plan.trials()
    end_record(here.out, first, acc_majority=0.25)
    for trial, state in ((first, State.DONE), (second, State.DONE), (third, State.FAILED)):
        end_record(there.out, trial, state)
    assert adopt(here, there.out, plan.trials()) == 1
    assert here.status(first).accuracy == 0.25 and here.status(second).state == State.DONE
    assert [here.status(t).state for t in (third, fourth)] == [State.PLANNED, State.PLANNED]


def test_next_takes_what_is_done_elsewhere_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("esteps=1,2")
    there = store_of(tmp_path / "there", plan)
    for trial in plan.trials():
        end_record(there.out, trial)
    words = ["--preset", "tiny", "--set", "iterations=12", "eval_every=6"]
    words += ["--out", str(tmp_path / "here"), "--adopt", str(there.out), "--next"]
    assert ablation.main(words) == 4
    assert "4 trials adopted from" in capsys.readouterr().out


def test_a_sweep_under_other_settings_is_not_adopted(tmp_path: Path) -> None:
    store_of(tmp_path / "here", planned("esteps=1"))
    store_of(tmp_path / "there", planned("esteps=1", width=2))
    for folder, reason in (("there", "C=1, now 2"), ("nowhere", "is no folder of a sweep")):
        done = call("ablation", "--out", "here", "--adopt", folder, "--dry-run", cwd=tmp_path)
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


# -- a plan that is lost ---------------------------------------------------------------------------


def damage(file: Path, kind: str) -> None:
    if kind == "deleted":
        file.unlink()
    elif kind == "altered":
        values = json.loads(file.read_text())
        values.get("plan", values)["cells"][0]["seeds"] = [7]
        file.write_text(json.dumps(values))
    else:
        file.write_bytes(file.read_bytes()[: 0 if kind == "emptied" else 100])


@pytest.mark.parametrize("kind", ["cut", "emptied", "deleted", "altered"])
def test_a_damaged_plan_is_restored_from_its_copy_and_that_is_said(
    tmp_path: Path, kind: str
) -> None:
    plan = planned("esteps=1,2")
    store = store_of(tmp_path, plan)
    end_record(tmp_path, plan.trials()[0])
    whole = (tmp_path / "sweep.json").read_bytes()
    damage(tmp_path / "sweep.json", kind)
    opened = open_store(tmp_path)
    assert opened.restored is not None and COPY in opened.restored
    assert opened.read_plan() == plan
    opened.write_plan(plan)  # As a driver does before it trains.
    assert (tmp_path / "sweep.json").read_bytes() == whole
    assert store.read_plan() == plan and store.restored is None
    damage(tmp_path / COPY, kind)
    assert open_store(tmp_path).read_plan() == plan


@pytest.mark.parametrize("kind", ["cut", "emptied", "deleted"])
def test_a_grid_without_plan_and_copy_is_planned_again_from_its_trials(
    tmp_path: Path, kind: str
) -> None:
    plan = planned("esteps=1,2", "eta_p=1e-3,2e-3")
    store_of(tmp_path, plan)
    for trial in plan.trials():
        end_record(tmp_path, trial)
    (tmp_path / "mlflow.json").write_text(json.dumps({"sweep": plan.id}))
    for name in ("sweep.json", COPY):
        damage(tmp_path / name, kind)
    again = open_store(tmp_path).read_plan()
    assert again is not None and again.id == plan.id and again.preset == "tiny"
    assert {t.key for t in again.trials()} == {t.key for t in plan.trials()}
    assert again.base.override(n_encoder_steps=1, prior_lr=1e-3).cell_key in {
        planned.cell.key for planned in plan.cells
    }


def test_a_search_without_plan_and_copy_is_refused(tmp_path: Path) -> None:
    plan = planned("esteps=1,2")
    store_of(tmp_path, plan)
    end_record(tmp_path, plan.trials()[0])
    (tmp_path / "study.db").touch()
    for name in ("sweep.json", COPY):
        (tmp_path / name).unlink()
    with pytest.raises(PlanError, match="a search cannot be planned again"):
        open_store(tmp_path)


# -- whose a folder is -----------------------------------------------------------------------------


def test_a_folder_with_the_record_of_another_trial_is_said_and_not_trained(tmp_path: Path) -> None:
    plan = planned("esteps=1,2")
    store = store_of(tmp_path, plan)
    one, two = plan.trials()[0], plan.trials()[2]
    end_record(tmp_path, one)
    store.trial_dir(one.key).rename(store.trial_dir(two.key))
    assert store.status(two).state == State.STOPPED
    assert f"holds the record of trial {one.key}" in str(store.status(two).cause)
    done = call("ablation", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and f"holds the record of trial {one.key}" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_a_copy_of_a_folder_does_not_go_on_in_the_remote_of_the_original(tmp_path: Path) -> None:
    plan, remote = planned("esteps=1"), str(tmp_path / "remote")
    original = open_store(tmp_path / "x", remote)
    original.remote.prepare()  # type: ignore[union-attr]
    original.write_plan(plan)
    shutil.copytree(tmp_path / "x", tmp_path / "copy")
    with pytest.raises(ValueError, match=f"give --storage {remote} to go on here"):
        open_store(tmp_path / "copy")
    open_store(tmp_path / "copy", remote).write_plan(plan)
    assert open_store(tmp_path / "copy").read_plan() == plan
    (tmp_path / "x").rename(tmp_path / "renamed")
    assert open_store(tmp_path / "renamed").read_plan() == plan
