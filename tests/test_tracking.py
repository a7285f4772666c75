"""MLflow as a view of run directories: everything once, whatever happened in between."""

import json
import math
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import mpcc
from benchmarks.fault_tools import size_of
from benchmarks.fault_tracking import Server
from mpcc.config import PRESETS
from mpcc.data.image_set import load
from mpcc.runs import run_dir
from mpcc.runs.clusters import CLUSTERS, read_clusters
from mpcc.runs.files import MODEL, RunDirError
from mpcc.training.trainer import train
from tune.plan.cells import Trial
from tune.plan.grid import cells, parse_grid
from tune.plan.plan import MLFLOW, Plan, new_plan
from tune.plan.state import Event, EventKind, State
from tune.store.folder import Store
from tune.store.transfer import scratch_dir
from tune.tracking import connection
from tune.tracking.connection import NEW, check_reachable
from tune.tracking.delivery import Delivery, in_step, sync
from tune.tracking.tracker import Tracker
from tune.tracking.uri import (
    DATABASE,
    checked_uri,
    damage_of,
    default_uri,
    first_line,
    recorded_uri,
    ui_hint,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # MLflow's own
]

ROOT = Path(__file__).resolve().parents[1]
TINY = PRESETS["tiny"]
DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    connection.connect(default_uri(folder)).search_experiments()
    return folder / DATABASE


@pytest.fixture
def out(tmp_path: Path, database: Path) -> Iterator[Path]:
    shutil.copy(database, tmp_path / DATABASE)
    yield tmp_path


def half_made(database: Path, file: Path) -> None:
    """As MLflow leaves it that is killed in the middle: the newest step is not recorded."""
    shutil.copy(database, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
        connection.commit()


def emptied(database: Path, file: Path) -> None:
    file.touch()


def make_plan(out: Path, grid: str = "esteps=1,2") -> Plan:
    parsed = parse_grid([grid], "tiny")
    plan = new_plan("tiny", TINY).grow(cells(TINY, parsed), (0, 1), parsed.text)
    Store(out).write_plan(plan)
    return plan


def start(out: Path, trial: Trial) -> Path:
    path = run_dir.open_run(Store(out).trial_dir(trial.key), trial.config)
    provenance = {"code": "abc+changes", "started": "2026-01-02T03:04:05+00:00"} | {
        "data": {"dataset": "digits", "fingerprint": "f1", "n_images": 1797}
    }
    run_dir.write_json(path / run_dir.PROVENANCE, provenance)
    return path


def evaluate(path: Path, iteration: int, **metrics: Any) -> None:
    row = {"iteration": iteration, "seconds": iteration / 3} | (metrics or {"nmi": iteration / 10})
    run_dir.append_metrics(path, row)


def end(path: Path, trial: Trial, state: str, cause: str | None = None, **metrics: float) -> None:
    rows = run_dir.read_metrics(path)
    result = {"state": state, "cause": cause, "trial_key": trial.key, "metrics": metrics}
    iteration = rows[-1]["iteration"] if rows else 0
    run_dir.write_json(path / run_dir.RESULT, result | {"iteration": iteration})
    (path / "samples.png").write_bytes(b"picture")


def begun(out: Path) -> tuple[Plan, Trial, Path]:
    """A plan of four trials, of which one has begun: that one, and its run directory."""
    plan = make_plan(out)
    trial = plan.trials()[0]
    return plan, trial, start(out, trial)


def one_done(out: Path) -> tuple[Plan, Trial, Path]:
    """The same where that trial has been evaluated once and has ended."""
    plan, trial, path = begun(out)
    evaluate(path, 2)
    end(path, trial, "done")
    return plan, trial, path


def rows(out: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / DATABASE) as connection:
        return connection.execute(query).fetchall()


def runs(out: Path) -> dict[str, tuple[str, str]]:
    """Trial key ('' for the sweep) -> run and MLflow's status, of runs that are not deleted."""
    found = rows(
        out,
        "select coalesce(t.value, ''), r.run_uuid, r.status from runs r left join tags t "
        "on t.run_uuid = r.run_uuid and t.key = 'trial_key' where r.lifecycle_stage = 'active'",
    )
    assert len({key for key, *_ in found}) == len(found), "two runs for one trial"
    return {key: (run, status) for key, run, status in found}


def causes(out: Path) -> list[str]:
    found = rows(out, "select value from tags where key = 'cause' and value != ''")
    return sorted(value for (value,) in found)


def metrics(out: Path) -> list[tuple[Any, ...]]:
    return rows(out, "select run_uuid, key, step, value, is_nan from metrics order by 1, 2, 3")


def deliver(out: Path, plan: Plan, running: tuple[str, ...] = ()) -> int:
    """What a driver that has just started delivers; without one that runs, what --sync does."""
    return Delivery(Store(out), default_uri(out), plan, running=set(running) or None).deliver()


def close(tracker: Tracker, seconds: float = 120.0) -> str | None:
    return tracker.close(time.monotonic() + seconds)


def wait_for(what: Callable[[], Any]) -> None:
    limit = time.monotonic() + 60
    while not what():
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.05)


def until_delivered(out: Path, tracker: Tracker, state: str, tag: str, value: str) -> None:
    """Wait until some run in this state has a tag that is like this value."""
    query = (
        "select 1 from tags s join tags t on s.run_uuid = t.run_uuid where s.key = 'state' "
        f"and s.value = '{state}' and t.key = '{tag}' and t.value like '{value}'"
    )

    def delivered() -> bool:
        if not (out / DATABASE).exists():
            return False
        try:
            return bool(rows(out, query))
        except sqlite3.DatabaseError:
            return False

    wait_for(delivered)
    wait_for(lambda: tracker.problem is None)


def test_a_sweep_is_one_parent_with_one_child_per_trial_and_everything_about_it(out: Path) -> None:
    plan = make_plan(out)
    for trial in plan.trials():
        path = start(out, trial)
        evaluate(path, 2)
        evaluate(path, 4)
        end(path, trial, "done")
    assert deliver(out, plan) == 4
    found = runs(out)
    assert {status for _, status in found.values()} == {"FINISHED"}
    assert set(found) == {"", *(trial.key for trial in plan.trials())}
    trial = plan.trials()[1]
    run = found[trial.key][0]
    tags = dict(rows(out, f"select key, value from tags where run_uuid = '{run}'"))
    assert tags["mlflow.parentRunId"] == found[""][0]
    assert tags["mlflow.runName"] == "esteps=1 seed=1"
    assert (tags["cell"], tags["seed"], tags["state"]) == ("esteps=1", "1", "done")
    assert (tags["cell_key"], tags["sweep"], tags["code"]) == (
        trial.cell.key,
        plan.id,
        "abc+changes",
    )
    assert tags["data"] == "1797 images, content f1"
    assert tags["mlflow.source.name"] == "tune/ablation.py" and tags["mlflow.user"]
    assert tags["mlflow.source.git.commit"] == "abc"
    params = dict(rows(out, f"select key, value from params where run_uuid = '{run}'"))
    assert set(params) == set(trial.config.to_dict())
    assert params["n_encoder_steps"] == "1" and params["dataset"] == "digits"
    logged = [m[1:4] for m in metrics(out) if m[0] == run]
    assert logged == [("nmi", 2, 0.2), ("nmi", 4, 0.4)]
    (data,) = connection.connect(default_uri(out)).get_run(run).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "f1")
    assert json.loads(data.dataset.profile) == {"num_rows": 1797}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    location = rows(out, f"select artifact_uri from runs where run_uuid = '{run}'")[0][0]
    files = {f.name for f in Path(location.removeprefix("file://")).iterdir()}
    assert files == {"config.json", "provenance.json", "result.json", "samples.png"}
    assert in_step(Store(out), default_uri(out))


def test_the_hint_names_the_page_of_the_sweeps_runs_once_there_are_any(out: Path) -> None:
    uri = default_uri(out)
    command, page = ui_hint(uri, out, "a folder/mlflow")
    assert command.count("mlflow.db") == 1 and "'a folder/mlflow' server" in command
    assert page == "then open http://localhost:5000"
    deliver(out, make_plan(out))
    ((experiment,),) = rows(out, "select experiment_id from experiments where name = 'mpcc-tiny'")
    runs_page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert ui_hint(uri, out)[1] == f"then open http://localhost:5000{runs_page}"
    assert ui_hint("http://mlflow:5000/", out) == ["open http://mlflow:5000"]
    record = json.loads((out / MLFLOW).read_text()) | {"tracking_uri": "http://mlflow:5000"}
    (out / MLFLOW).write_text(json.dumps(record))
    assert ui_hint("http://mlflow:5000", out) == [f"open http://mlflow:5000{runs_page}"]
    assert not in_step(Store(out), "http://mlflow:5000")  # Of a server nothing is known unasked.


def test_delivering_again_sends_nothing_and_new_rows_are_sent_once(out: Path) -> None:
    """A run that a dead driver has left running is put right, and taken up again."""
    plan, trial, path = begun(out)
    evaluate(path, 2)
    for running, sent, status in (
        ((trial.key,), 1, "RUNNING"),
        ((trial.key,), 0, "RUNNING"),
        ((), 1, "KILLED"),
        ((trial.key,), 1, "RUNNING"),
    ):
        assert deliver(out, plan, running) == sent
        assert runs(out)[trial.key][1] == status
    evaluate(path, 4)
    end(path, trial, "done")
    deliver(out, plan, (trial.key,))  # By a driver that may be killed before it says the end.
    assert not in_step(Store(out), default_uri(out))
    assert deliver(out, plan) == 1
    assert deliver(out, plan) == 0
    assert [m[2] for m in metrics(out)] == [2, 4]
    assert runs(out)[trial.key][1] == "FINISHED"


def pictures(out: Path) -> list[str]:
    return [str(p.relative_to(out)) for p in sorted(out.glob("mlflow-artifacts/**/samples.png"))]


def finished(out: Path) -> Plan:
    """A sweep of four trials that are done and delivered."""
    plan = make_plan(out)
    for trial in plan.trials():
        path = start(out, trial)
        evaluate(path, 4)
        end(path, trial, "done")
    assert deliver(out, plan) == 4
    return plan


def test_a_moved_folder_and_a_copy_keep_their_pictures_in_themselves(out: Path) -> None:
    plan = finished(out)
    texts = [p for p in out.rglob("*.json*") if p.is_file()]
    assert texts and not [p for p in texts if str(out) in p.read_text()]
    (link := out.with_name("link")).symlink_to(out)
    assert deliver(link, plan) == 0  # One folder by two paths.
    shutil.copytree(out, copy := out.with_name("copy"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert not in_step(Store(copy), default_uri(copy))
    assert deliver(copy, plan) == 4
    assert set(runs(copy)) == {"", *(trial.key for trial in plan.trials())}
    (experiment,) = rows(copy, "select artifact_location from experiments where name = 'mpcc-tiny'")
    assert experiment[0].startswith(copy.as_uri())
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert deliver(out, plan) == 0 and deliver(copy, plan) == 0
    shutil.rmtree(copy / "mlflow-artifacts")
    out.rename(moved := out.with_name("moved"))
    assert deliver(moved, plan) == 4 and len(pictures(moved)) == 8  # Those of before, and again.
    assert not out.exists()


def test_a_file_that_is_no_database_is_said_by_its_first_bytes_and_filled_anew(out: Path) -> None:
    plan = finished(out)
    uri = default_uri(out)
    assert damage_of(uri) is None and damage_of("http://127.0.0.1:9") is None
    (out / DATABASE).write_bytes(b"none" * 1000)
    assert str(damage_of(uri)).endswith("mlflow.db is no database; --sync makes a new one")
    assert ui_hint(uri, out) == [damage_of(uri)]
    assert sync(Store(out), uri, plan) == 4
    assert damage_of(uri) is None and len(runs(out)) == 5


def test_runs_of_an_earlier_version_are_found_by_their_key_and_no_row_is_repeated(
    out: Path,
) -> None:
    plan, trial, path = one_done(out)
    deliver(out, plan)
    before = runs(out), metrics(out)
    with closing(sqlite3.connect(out / DATABASE)) as connection:
        connection.execute("delete from tags where key = 'rows'")
        connection.execute("update params set value = '1.0' where key = 'prior_lr'")
        connection.commit()
    (path / MLFLOW).write_text('{"run_id": "x", "rows_delivered": 99}')
    (out / MLFLOW).write_text("{")
    assert not in_step(Store(out), default_uri(out))
    assert deliver(out, plan) == 1
    assert (runs(out), metrics(out)) == before
    assert in_step(Store(out), default_uri(out))
    assert json.loads((out / MLFLOW).read_text())["runs"] == {trial.key: before[0][trial.key][0]}


def test_each_end_has_its_status_and_its_cause(out: Path) -> None:
    plan = make_plan(out)
    states = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", None: "KILLED"}
    for trial, state in zip(plan.trials(), states, strict=True):
        path = start(out, trial)
        evaluate(path, 2)
        if state:
            end(path, trial, state, None if state == "done" else f"cause of {state}")
    deliver(out, plan)
    found = runs(out)
    assert [found[trial.key][1] for trial in plan.trials()] == list(states.values())
    assert found[""][1] == "KILLED"
    assert causes(out) == ["cause of diverged", "cause of failed"]
    end(path, trial, "done")
    deliver(out, plan)
    assert runs(out)[""][1] == "FAILED"
    for trial in plan.trials():  # They have recovered.
        end(Store(out).trial_dir(trial.key), trial, "done")
    deliver(out, plan)
    assert {status for _, status in runs(out).values()} == {"FINISHED"} and causes(out) == []


def test_rows_that_were_made_again_are_sent_again(out: Path) -> None:
    plan, trial, path = begun(out)
    evaluate(path, 2)
    evaluate(path, 4, nmi=9.0)
    end(path, trial, "diverged", "not finite")
    deliver(out, plan)
    Store(out).reset(trial, State.DIVERGED)
    for iteration in (2, 4, 6):
        evaluate(path, iteration)
    end(path, trial, "done")
    deliver(out, plan)
    # MLflow never forgets a value, but the newest of a step is the one that it shows last.
    assert [m[2:4] for m in metrics(out) if m[3] != 9.0] == [(2, 0.2), (4, 0.4), (6, 0.6)]


def test_a_database_that_answers_again_is_used_though_nothing_is_new(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    end(start(out, trial), trial, "done")
    real, answers = connection.connect, threading.Event()

    def connect(uri: str) -> Any:
        if not answers.is_set():
            raise ConnectionError("nobody there")
        return real(uri)

    monkeypatch.setattr(connection, "connect", connect)
    tracker = Tracker(Store(out), default_uri(out), plan)
    wait_for(lambda: tracker.problem)
    answers.set()
    wait_for(lambda: trial.key in runs(out) and tracker.problem is None)
    assert close(tracker) is None


def test_of_two_runs_for_one_trial_the_older_one_stays(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    end(start(out, trial), trial, "done")
    deliver(out, plan)
    first = runs(out)[trial.key][0]
    mlflow = connection.connect(default_uri(out))
    experiment = mlflow.get_run(first).info.experiment_id
    mlflow.create_run(experiment, tags={"sweep": plan.id, "trial_key": trial.key})
    deliver(out, plan)
    assert runs(out)[trial.key][0] == first


def test_numbers_that_are_not_finite_arrive_as_nan_and_more_than_a_request_may_hold_arrive(
    out: Path,
) -> None:
    plan, trial, path = begun(out)
    evaluate(path, 2, nmi=math.nan, ari=math.inf, mse=0.5, note="text")
    for iteration in range(3, 63):
        evaluate(path, iteration, **{f"metric_{i}": i + iteration / 100 for i in range(20)})
    deliver(out, plan, (trial.key,))
    found = metrics(out)
    first = sorted((m[1], m[4]) for m in found if m[2] == 2)
    assert first == [("ari", 1), ("mse", 0), ("nmi", 1)] and len(found) == 1203


def test_a_server_that_is_down_hinders_nobody_and_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"MLflow at {DEAD_SERVER} cannot be written to"):
        check_reachable(DEAD_SERVER, tmp_path, "tiny", begun=False)
    assert check_reachable(DEAD_SERVER, tmp_path, "tiny", begun=True)
    plan = make_plan(tmp_path)
    trial = plan.trials()[0]
    end(start(tmp_path, trial), trial, "done")
    tracker = Tracker(Store(tmp_path), DEAD_SERVER, plan)
    tracker.log(event(trial, EventKind.ENDED))
    problem = close(tracker, 30)
    assert problem and "\n" not in problem
    assert not in_step(Store(tmp_path), DEAD_SERVER)
    assert not list(tmp_path.glob("**/mlflow*"))


def test_a_server_that_accepts_and_never_answers_holds_up_nobody(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    trial = plan.trials()[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        tracker = Tracker(Store(tmp_path), uri, plan)
        for iteration in range(1000):
            row = {"iteration": iteration, "nmi": 0.5}
            tracker.log(Event(trial.key, EventKind.PROGRESS, iteration=iteration, row=row))
        tracker.extend(plan)
        assert time.monotonic() - begun < 1
        begun = time.monotonic()
        assert close(tracker, 4) == "no answer within 4 s"
        assert 3.5 < time.monotonic() - begun < 4.5


def test_rows_wait_while_the_database_is_locked_and_arrive_once_it_is_free(out: Path) -> None:
    plan, trial, path = begun(out)
    evaluate(path, 2)
    deliver(out, plan, (trial.key,))
    blocker = sqlite3.connect(out / DATABASE, check_same_thread=False)
    blocker.execute("begin exclusive")
    threading.Timer(1.5, blocker.rollback).start()
    evaluate(path, 4)
    end(path, trial, "done")
    tracker = Tracker(Store(out), default_uri(out), plan)
    assert close(tracker) is None
    blocker.close()
    assert not list(out.glob(f"{DATABASE}.*"))
    assert [m[2] for m in metrics(out)] == [2, 4]
    assert runs(out)[trial.key][1] == "FINISHED"


def test_a_database_that_is_gone_or_another_one_is_filled_from_the_start(
    out: Path, database: Path
) -> None:
    plan, store, uri = make_plan(out), Store(out), default_uri(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    end(path, trial, "done")
    deliver(out, plan)
    assert in_step(store, uri)
    other = out / "other"
    other.mkdir()
    shutil.copy(database, other / DATABASE)
    assert not in_step(store, default_uri(other))
    assert sync(store, default_uri(other), plan) == 1
    assert set(runs(other)) == {"", trial.key} and len(metrics(other)) == 1
    assert in_step(store, default_uri(other)) and not in_step(store, uri)
    assert deliver(out, plan) == 0 and in_step(store, uri)
    before = metrics(out)
    shutil.copy(database, out / DATABASE)  # Another one in its place, and empty.
    assert not in_step(store, uri) and deliver(out, plan) == 1
    (out / DATABASE).unlink()
    assert not in_step(store, uri) and not (out / DATABASE).exists()
    assert deliver(out, plan) == 1
    assert [m[1:] for m in metrics(out)] == [m[1:] for m in before]


@pytest.mark.parametrize("damage", [half_made, emptied])
def test_our_database_that_cannot_be_opened_is_quarantined_and_filled_again(
    tmp_path: Path, database: Path, damage: Callable[[Path, Path], None]
) -> None:
    plan, trial, path = one_done(tmp_path)
    file, uri = tmp_path / DATABASE, default_uri(tmp_path)
    damage(database, file)
    damaged = file.read_bytes()
    assert not in_step(Store(tmp_path), uri)
    tracker = Tracker(Store(tmp_path), uri, plan)
    if damaged:  # MLflow makes its tables in an empty file by itself.
        wait_for(lambda: tracker.problem)
        assert "it was moved aside" in str(tracker.problem)
        assert (tmp_path / f"{DATABASE}.damaged").read_bytes() == damaged
    assert close(tracker) is None
    assert set(runs(tmp_path)) == {"", trial.key} and len(metrics(tmp_path)) == 1


def test_a_database_of_the_users_own_is_never_set_aside(tmp_path: Path, database: Path) -> None:
    plan = make_plan(tmp_path)
    other = tmp_path / "other.db"
    half_made(database, other)
    spoilt = other.read_bytes()
    with pytest.raises(Exception, match="schema"):
        sync(Store(tmp_path), f"sqlite:///{other}", plan)
    assert other.read_bytes() == spoilt


def test_a_driver_killed_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    """Half of a database cannot be opened again; what a living driver makes beside it stays."""
    plan = make_plan(tmp_path / "sweep")
    file, other = tmp_path / "shared" / DATABASE, scratch_dir(tmp_path / "shared", NEW)
    program = (
        "import sys; from pathlib import Path\n"
        "from tune.store.folder import Store\n"
        "from tune.tracking.delivery import sync\n"
        "store = Store(Path(sys.argv[1]))\n"
        "sync(store, sys.argv[2], store.read_plan())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "sweep"), f"sqlite:///{file}"]
    )
    while child.poll() is None and not file.exists():
        if sum(map(size_of, file.parent.glob(".mlflow.db.*/new.db"))) >= 400_000:
            break
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert not file.exists() and len(list(file.parent.glob(".mlflow.db.*"))) == 2
    sync(Store(tmp_path / "sweep"), f"sqlite:///{file}", plan)
    assert file.exists() and list(file.parent.glob(".mlflow.db.*")) == [other]


def test_a_servers_password_is_neither_recorded_nor_printed(out: Path) -> None:
    uri = "postgresql://ada:secret@server/db"
    record = {"tracking_uri": recorded_uri(uri, out), "experiment": "7"}
    assert checked_uri(uri) == uri and "secret" not in str(record)
    run_dir.write_json(out / MLFLOW, record)
    command, page = ui_hint(uri, out)
    assert "'postgresql://ada:***@server/db'" in command and "/#/experiments/7/" in page
    assert str(first_line(OSError(f"no answer of {uri}"))).endswith("ada:***@server/db")


@pytest.mark.parametrize("uri", ["runs", "file:///x", "sqlite://", "sqlite:///", "http://", ""])
def test_a_tracking_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="--tracking-uri"):
        checked_uri(uri)


def test_a_relative_data_base_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_uri("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    assert default_uri(Path("x")) == f"sqlite:///{tmp_path}/x/mlflow.db"


# -- beside training -------------------------------------------------------------------------------


def event(trial: Trial, kind: EventKind, row: dict[str, Any] | None = None) -> Event:
    return Event(trial.key, kind, row=row)


def test_rows_arrive_with_their_events_and_the_end_with_the_record(out: Path) -> None:
    """As of a trial on another machine: its files come at its end."""
    plan = make_plan(out)
    trial = plan.trials()[0]
    tracker = Tracker(Store(out), default_uri(out), plan)
    tracker.log(event(trial, EventKind.STARTED))
    for iteration in (2, 4):
        row = {"iteration": iteration, "nmi": iteration / 10, "seconds": time.time()}
        tracker.log(event(trial, EventKind.PROGRESS, row))
        tracker.log(event(trial, EventKind.PROGRESS))
        until_delivered(out, tracker, "running", "rows", f"{iteration // 2} %")
    tracker.log(Event(trial.key, EventKind.ENDED, State.DONE, 4, row))
    time.sleep(0.5)
    assert runs(out)[trial.key][1] == "RUNNING"
    path = start(out, trial)
    evaluate(path, 2)
    evaluate(path, 4)
    end(path, trial, "done")
    tracker.log(event(trial, EventKind.ENDED))
    until_delivered(out, tracker, "done", "rows", "2 %")
    assert runs(out)[trial.key][1] == "FINISHED" and runs(out)[""][1] == "RUNNING"
    assert close(tracker) is None
    assert [m[1:4] for m in metrics(out)] == [("nmi", 2, 0.2), ("nmi", 4, 0.4)]
    assert runs(out)[trial.key][1] == "FINISHED" and runs(out)[""][1] == "KILLED"


def test_a_row_that_is_in_the_folder_too_or_comes_again_is_there_once(out: Path) -> None:
    plan, trial, path = begun(out)
    tracker = Tracker(Store(out), default_uri(out), plan)
    for iteration in (2, 4, 2, 4, 6):  # Its worker died, and it went on from a checkpoint.
        if iteration not in (i["iteration"] for i in run_dir.read_metrics(path)):
            evaluate(path, iteration)
        row = next(r for r in run_dir.read_metrics(path) if r["iteration"] == iteration)
        tracker.log(event(trial, EventKind.PROGRESS, row | {"seconds": time.time()}))
    tracker.log(event(trial, EventKind.STOPPED))
    until_delivered(out, tracker, "stopped", "rows", "3 %")
    assert runs(out)[trial.key][1] == "KILLED"
    tracker.log(event(trial, EventKind.STARTED))
    until_delivered(out, tracker, "running", "rows", "3 %")
    assert runs(out)[trial.key][1] == "RUNNING"
    assert close(tracker) is None
    assert [m[2] for m in metrics(out)] == [2, 4, 6]
    assert {status for _, status in runs(out).values()} == {"KILLED"}


def test_a_trial_whose_files_never_came_is_not_left_running(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    tracker = Tracker(Store(out), default_uri(out), plan)
    tracker.log(event(trial, EventKind.PROGRESS, {"iteration": 2, "nmi": 0.2}))
    tracker.log(Event(trial.key, EventKind.ENDED, State.DONE))
    assert close(tracker) is None
    assert {status for _, status in runs(out).values()} == {"KILLED"}
    assert [m[2] for m in metrics(out)] == [2]


def test_a_plan_that_grows_is_delivered_as_it_grows(out: Path) -> None:
    plan = make_plan(out, "esteps=1")
    tracker = Tracker(Store(out), default_uri(out), plan)
    until_delivered(out, tracker, "running", "done", "0 of 2")
    more = plan.grow(cells(TINY, parse_grid(["esteps=2"], "tiny")), (0,), "esteps=2")
    Store(out).write_plan(more)
    tracker.extend(more)
    trial = more.trials()[-1]
    tracker.log(event(trial, EventKind.STARTED))
    until_delivered(out, tracker, "running", "done", "0 of 3")
    until_delivered(out, tracker, "running", "rows", "0 %")
    end(start(out, trial), trial, "done")
    tracker.log(event(trial, EventKind.ENDED))
    assert close(tracker) is None
    tags = dict(rows(out, f"select key, value from tags where run_uuid = '{runs(out)[''][0]}'"))
    assert (tags["done"], tags["cells"]) == ("1 of 3", "esteps=1; esteps=2")
    (file,) = (out / "mlflow-artifacts").glob("**/sweep.json")
    assert file.read_bytes() == (out / "sweep.json").read_bytes()


def test_a_database_lost_in_the_middle_gets_everything_again(out: Path, database: Path) -> None:
    plan = make_plan(out)
    first, second = plan.trials()[:2]
    path = start(out, first)
    evaluate(path, 2)
    end(path, first, "done")
    tracker = Tracker(Store(out), default_uri(out), plan)
    tracker.log(event(second, EventKind.PROGRESS, {"iteration": 2, "nmi": 0.2}))
    until_delivered(out, tracker, "running", "rows", "1 %")
    shutil.copy(database, out / DATABASE)
    tracker.log(event(second, EventKind.PROGRESS, {"iteration": 4, "nmi": 0.4}))
    until_delivered(out, tracker, "running", "rows", "2 %")
    found = runs(out)
    assert {key: status for key, (_, status) in found.items()} == {
        "": "RUNNING",
        first.key: "FINISHED",
        second.key: "RUNNING",
    }
    assert [m[2] for m in metrics(out) if m[0] == found[second.key][0]] == [2, 4]
    assert close(tracker) is None


def test_a_server_that_goes_and_comes_back_has_everything_once_and_its_models_are_loaded(
    modelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path)
    first, second = plan.trials()[:2]
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder / DATABASE)
    try:
        server.start()
        assert check_reachable(server.uri, tmp_path, "tiny", begun=False) is None
        tracker = Tracker(Store(tmp_path), server.uri, plan)
        tracker.log(event(first, EventKind.PROGRESS, {"iteration": 2, "nmi": 0.2}))
        until_delivered(folder, tracker, "running", "rows", "1 %")
        server.stop()
        tracker.log(event(first, EventKind.PROGRESS, {"iteration": 4, "nmi": 0.4}))
        path = start(tmp_path, second)
        evaluate(path, 2)
        end(path, second, "done")
        tracker.log(event(second, EventKind.ENDED))
        wait_for(lambda: tracker.problem)
        server.start()
        until_delivered(folder, tracker, "done", "rows", "1 %")
        path = start(tmp_path, first)
        evaluate(path, 2)
        evaluate(path, 4)
        tracker.log(event(first, EventKind.STOPPED))
        assert close(tracker) is None
        found = runs(folder)
        assert {key: status for key, (_, status) in found.items()} == {
            "": "KILLED",
            first.key: "KILLED",
            second.key: "FINISHED",
        }
        assert [m[2] for m in metrics(folder) if m[0] == found[first.key][0]] == [2, 4]
        assert sync(Store(tmp_path), server.uri, plan) == 0
        assert ui_hint(server.uri, tmp_path)[0].startswith(f"open {server.uri}/#/experiments/")
        other = Store(shutil.copytree(modelled, tmp_path / "other"))
        assert sync(other, server.uri, plan_of(other.out)) == 4
        (model,) = connection.connect(server.uri).search_logged_models(["1"])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        clusters = [int(row["cluster"]) for row in read_clusters(other.trial_dir(first.key)) or ()]
        for address in (f"runs:/{model.source_run_id}", f"models:/{model.model_id}"):
            found = mpcc.load(address).predict(load(first.config).images)
            assert found.tolist() == clusters
    finally:
        server.stop()


# -- models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A sweep of which one trial was trained, and another one has its model; the best cell's models
    are delivered."""
    out = tmp_path_factory.mktemp("modelled")
    shutil.copy(database, out / DATABASE)
    first, *others = make_plan(out).trials()
    for _ in train(first.config, Store(out).trial_dir(first.key), device="cpu"):
        pass
    for trial, information in zip(others, (9.0, 1.0, 2.0), strict=True):
        path = start(out, trial)
        evaluate(path, 4)
        end(path, trial, "done", cluster_information=information)
    data = (Store(out).trial_dir(first.key) / MODEL).read_bytes()
    # The trained one has collapsed after so few iterations: now both cells have such a seed.
    result = (run_dir.read_result(path) or {}) | {"failures": ["collapsed"]}
    run_dir.write_result(path, result, files={MODEL: data})
    assert deliver(out, plan_of(out)) == 4
    return out


def plan_of(out: Path) -> Plan:
    plan = Store(out).read_plan()
    assert plan is not None
    return plan


def models(out: Path) -> list[str]:
    """The keys of the trials whose models MLflow has, whole and with their tag."""
    client = connection.connect(default_uri(out))
    experiment = client.get_experiment_by_name("mpcc-tiny")
    assert experiment is not None
    assert "acc_majority 0.582 is Acc 58.2 %" in experiment.tags["mlflow.note.content"]
    found = client.search_logged_models([experiment.experiment_id])
    assert {(model.name, str(model.status)) for model in found} <= {("model", "READY")}
    tags = [client.get_run(str(model.source_run_id)).data.tags for model in found]
    assert all(len(one["model"]) == 12 for one in tags)
    return sorted(one["trial_key"] for one in tags)


PAGE = (ROOT / "docs" / "using-a-model.md").read_text()
USE_MODEL = """
import csv, gzip, sys
import numpy as np
import mpcc
from mpcc.config import PRESETS
from mpcc.data.image_set import load
pixels = load(PRESETS["tiny"]).images[:, 0].numpy()
{page}
rows = list(csv.DictReader(gzip.open(sys.argv[1], "rt")))
assert clusters.dtype == np.int64 and clusters.tolist() == [int(row["cluster"]) for row in rows]
assert model.predict(model.input_example).shape == (2,)
for found in (run, mpcc.load("runs:/ID/model"), mpcc.load(f"models:/digits/{version.version}")):
    assert np.array_equal(found.predict(pixels), clusters)
assert not {"ray", "optuna", "tune"} & set(sys.modules)
"""


def test_a_fresh_process_clusters_by_mlflows_model_as_the_trial_did_and_the_registry_takes_it(
    modelled: Path, tmp_path: Path
) -> None:
    trial = plan_of(modelled).trials()[0]
    (block,) = re.findall(r"```python\nimport mlflow\n(.*?)```", PAGE, re.S)
    program = USE_MODEL.replace("{page}", f"import mlflow\n{block}")
    program = program.replace("runs:/ID", f"runs:/{runs(modelled)[trial.key][0]}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(modelled)
    env = os.environ | connection.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, Store(modelled).trial_dir(trial.key) / CLUSTERS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = sorted(p.name for p in modelled.glob("mlflow-artifacts/**/artifacts/data/*"))
    assert kept == [MODEL]  # Networks and prior; no optimiser, no pickle.
    (signature,) = (p.read_text() for p in modelled.glob("mlflow-artifacts/**/MLmodel"))
    assert '"dtype": "uint8"' in signature and '"dtype": "int64"' in signature


def test_the_sweeps_own_run_says_what_is_best_and_has_the_tables_once_they_are_made(
    out: Path,
) -> None:
    plan = make_plan(out)
    for trial, information in zip(plan.trials(), (1.0, 2.0, 4.0, 3.0), strict=True):
        path = start(out, trial)
        end(path, trial, "done", cluster_information=information)
        result = run_dir.read_result(path) or {}
        run_dir.write_result(path, result | {"baseline": {"kmeans_acc_majority": 0.75}})
    deliver(out, plan)
    run = connection.connect(default_uri(out)).get_run(runs(out)[""][0])
    assert run.data.tags["best_cell"] == "esteps=2"
    assert run.data.tags["kmeans_acc_majority"] == "0.75" and "tables" not in run.data.tags
    assert "tables-and-statistics.md" in run.data.tags["mlflow.note.content"]
    for text in ("1", "2"):
        (out / "tables" / "at-2").mkdir(parents=True, exist_ok=True)
        (out / "tables" / "grid.csv").write_text(text)
        assert not in_step(Store(out), default_uri(out))
        deliver(out, plan)
        found = list((out / "mlflow-artifacts").glob("**/artifacts/tables/*"))
        assert [(file.name, file.read_text()) for file in found] == [("grid.csv", text)]
        assert in_step(Store(out), default_uri(out))


def test_models_are_those_of_the_best_cell_of_all_or_none_and_are_sent_once(
    modelled: Path, tmp_path: Path
) -> None:
    plan, uri = plan_of(modelled), default_uri(modelled)
    first, *_, last = (trial.key for trial in plan.trials())
    assert models(modelled) == [first]  # The mean of its cell is greater by the other seed's 9.
    before = sorted(modelled.rglob("MLmodel"))
    assert deliver(modelled, plan) == 0 and sorted(modelled.rglob("MLmodel")) == before
    assert in_step(Store(modelled), uri) and not in_step(Store(modelled), uri, "always")
    copy = tmp_path / "copy"
    shutil.copytree(modelled, copy)
    never = Delivery(Store(copy), default_uri(copy), plan, "never")
    assert never.deliver() == 4 and models(copy) == []
    client, run = connection.connect(default_uri(copy)), never.runs[first]
    client.create_logged_model(run.info.experiment_id, "model", run.info.run_id)  # Half logged.
    sync(Store(copy), default_uri(copy), plan, "always")
    assert models(copy) == sorted([first, last])


def test_a_trial_without_clusters_has_no_model_and_its_run_says_why(out: Path) -> None:
    base, grid = PRESETS["tiny"].override(prior="normal"), parse_grid(["esteps=1"], "tiny")
    plan = new_plan("tiny", base).grow(cells(base, grid), (0,), grid.text)
    Store(out).write_plan(plan)
    (trial,) = plan.trials()
    path = start(out, trial)
    evaluate(path, 4)
    end(path, trial, "done")
    run_dir.write_result(path, run_dir.read_result(path) or {}, files={MODEL: b"of no clusters"})
    for sent in (1, 0):
        assert sync(Store(out), default_uri(out), plan, "always") == sent
    client = connection.connect(default_uri(out))
    run = client.get_run(runs(out)[trial.key][0])
    assert run.data.tags["model"] == "none: prior=normal has no clusters"
    assert not client.search_logged_models([run.info.experiment_id])


def test_no_model_is_logged_before_all_have_ended_and_a_damaged_one_hinders_no_run(
    out: Path, modelled: Path
) -> None:
    plan = plan_of(modelled)
    shutil.copytree(modelled / "trials", out / "trials")
    shutil.copy(modelled / "sweep.json", out)
    first, last = (Store(out).trial_dir(plan.trials()[n].key) for n in (0, 3))
    (last / "result.json").rename(last / "later")
    deliver(out, plan)
    assert models(out) == []
    (last / "later").rename(last / "result.json")
    (first / MODEL).write_bytes(b"none")
    tracker = Tracker(Store(out), default_uri(out), plan)
    assert str(close(tracker)).endswith("model.mpcc is damaged; delete it to use the checkpoint")
    assert [status for _, status in runs(out).values()] == ["FINISHED"] * 5


def test_an_address_that_gives_no_model_is_one_line(
    modelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in connection.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RunDirError, match="does not say which MLflow: set MLFLOW_TRACKING_URI"):
        mpcc.load("runs:/none")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(modelled))
    without = runs(modelled)[plan_of(modelled).trials()[1].key][0]
    for address in ("runs:/none", f"runs:/{without}", "models:/none/1"):
        with pytest.raises(RunDirError, match=f"^{address}: MLflow gives no model \\(.+\\); by"):
            mpcc.load(address)
    with pytest.raises(RunDirError, match="is one trial and has no cells"):
        mpcc.load("runs:/none", cell="best")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RunDirError, match="^runs:/none needs MLflow: pip install mlflow$"):
        mpcc.load("runs:/none")


# -- before the first trial ------------------------------------------------------------------------


def test_a_database_that_is_locked_or_broken_is_refused_at_first_and_waited_for_later(
    tmp_path: Path, database: Path
) -> None:
    file = Path(shutil.copy(database, tmp_path / "mine.db"))
    uri = f"sqlite:///{file}"
    assert check_reachable(uri, tmp_path, "tiny", begun=False) is None
    with closing(sqlite3.connect(file)) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(ValueError, match="locked.*leave that out"):
            check_reachable(uri, tmp_path, "tiny", begun=False)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="not a database"):
        check_reachable(uri, tmp_path, "tiny", begun=False)
    assert "not a database" in str(check_reachable(uri, tmp_path, "tiny", begun=True))
    assert check_reachable(default_uri(tmp_path), tmp_path, "tiny", begun=False) is None
    assert not (tmp_path / DATABASE).exists()  # The sweep's own is made beside its trials.
