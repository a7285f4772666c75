"""MLflow as a view of run directories: everything once, whatever happened in between."""

import json
import math
import shutil
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

from benchmarks.fault_tools import size_of
from mpcc import run_dir
from mpcc.config import PRESETS
from tune import ledger, tracking
from tune.grid import cells, parse_grid
from tune.ledger import Plan, Trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # MLflow's own
]

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow data base: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking._client(tracking.default_uri(folder)).search_experiments()
    return folder / tracking.DATABASE


@pytest.fixture
def out(tmp_path: Path, database: Path) -> Iterator[Path]:
    shutil.copy(database, tmp_path / tracking.DATABASE)
    yield tmp_path


def half_made(database: Path, file: Path) -> None:
    """As MLflow leaves it that is killed in the middle: the newest step is not recorded."""
    shutil.copy(database, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
        connection.commit()


def no_data_base(database: Path, file: Path) -> None:
    file.write_bytes(b"no data base" * 100)


def make_plan(out: Path) -> Plan:
    grid = parse_grid(["esteps=1,2"], "tiny")
    plan = ledger.new_plan("tiny", TINY).grow(cells(TINY, grid), (0, 1), grid.text)
    ledger.write_plan(out, plan)
    return plan


def start(out: Path, trial: Trial) -> Path:
    path = run_dir.open_run(ledger.trial_dir(out, trial.key), trial.config)
    provenance = {"code": "abc", "started": "2026-01-02T03:04:05+00:00"}
    run_dir.write_json(path / run_dir.PROVENANCE, provenance)
    return path


def evaluate(path: Path, iteration: int, **metrics: Any) -> None:
    row = {"iteration": iteration, "seconds": iteration / 3} | (metrics or {"nmi": iteration / 10})
    run_dir.append_metrics(path, row)


def end(path: Path, trial: Trial, state: str, cause: str | None = None) -> None:
    rows = run_dir.read_metrics(path)
    result = {"state": state, "cause": cause, "trial_key": trial.key, "metrics": {}}
    iteration = rows[-1]["iteration"] if rows else 0
    run_dir.write_json(path / run_dir.RESULT, result | {"iteration": iteration})
    (path / "samples.png").write_bytes(b"picture")


def rows(out: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / tracking.DATABASE) as connection:
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


def metrics(out: Path) -> list[tuple[Any, ...]]:
    return rows(out, "select run_uuid, key, step, value, is_nan from metrics order by 1, 2, 3")


def deliver(out: Path, plan: Plan, live: tuple[str, ...] = (), state: str = "running") -> int:
    """What a driver that has just started delivers."""
    return tracking.Delivery(out, tracking.default_uri(out)).deliver(plan, live, state)


def test_a_sweep_is_one_parent_with_one_child_per_trial_and_everything_about_it(out: Path) -> None:
    plan = make_plan(out)
    for trial in plan.trials():
        path = start(out, trial)
        evaluate(path, 2)
        evaluate(path, 4)
        end(path, trial, "done")
    assert deliver(out, plan, state="done") == 4
    found = runs(out)
    assert {status for _, status in found.values()} == {"FINISHED"}
    assert set(found) == {"", *(trial.key for trial in plan.trials())}
    trial = plan.trials()[1]
    run = found[trial.key][0]
    tags = dict(rows(out, f"select key, value from tags where run_uuid = '{run}'"))
    assert tags["mlflow.parentRunId"] == found[""][0]
    assert tags["mlflow.runName"] == "esteps=1 seed=1"
    assert (tags["cell"], tags["seed"], tags["state"]) == ("esteps=1", "1", "done")
    assert (tags["cell_key"], tags["sweep"], tags["code"]) == (trial.cell.key, plan.id, "abc")
    params = dict(rows(out, f"select key, value from params where run_uuid = '{run}'"))
    assert set(params) == set(trial.config.to_dict())
    assert params["n_encoder_steps"] == "1" and params["dataset"] == "digits"
    logged = [m[1:4] for m in metrics(out) if m[0] == run]
    assert logged == [("nmi", 2, 0.2), ("nmi", 4, 0.4)]
    location = rows(out, f"select artifact_uri from runs where run_uuid = '{run}'")[0][0]
    files = {f.name for f in Path(location.removeprefix("file://")).iterdir()}
    assert files == {"config.json", "provenance.json", "result.json", "samples.png"}
    assert tracking.in_step(out, plan, tracking.default_uri(out))


def test_the_hint_names_the_page_of_the_sweeps_runs_once_there_are_any(out: Path) -> None:
    uri = tracking.default_uri(out)
    command, page = tracking.ui_hint(uri, out, "a folder/mlflow")
    assert command.count("mlflow.db") == 1 and "'a folder/mlflow' server" in command
    assert page == "then open http://localhost:5000"
    deliver(out, make_plan(out))
    ((experiment,),) = rows(out, "select experiment_id from experiments where name = 'mpcc-tiny'")
    runs_page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert tracking.ui_hint(uri, out)[1] == f"then open http://localhost:5000{runs_page}"
    assert tracking.ui_hint("http://mlflow:5000/", out) == ["open http://mlflow:5000"]
    record = json.loads((out / tracking.RECORD).read_text()) | {
        "tracking_uri": "http://mlflow:5000"
    }
    (out / tracking.RECORD).write_text(json.dumps(record))
    assert tracking.ui_hint("http://mlflow:5000", out) == [f"open http://mlflow:5000{runs_page}"]


def test_delivering_again_sends_nothing_and_new_rows_are_sent_once(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    assert deliver(out, plan, (trial.key,)) == 1
    assert deliver(out, plan, (trial.key,)) == 0
    assert runs(out)[trial.key][1] == "RUNNING"
    evaluate(path, 4)
    end(path, trial, "done")
    assert deliver(out, plan) == 1
    assert deliver(out, plan) == 0
    assert [m[2] for m in metrics(out)] == [2, 4]
    assert runs(out)[trial.key][1] == "FINISHED"


def test_a_lost_record_finds_the_run_by_its_key_and_repeats_no_row(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    end(path, trial, "done")
    deliver(out, plan)
    before = runs(out), metrics(out)
    (path / tracking.RECORD).unlink()
    (out / tracking.RECORD).write_text("{")
    assert deliver(out, plan) == 1
    assert (runs(out), metrics(out)) == before


def test_each_end_has_its_status_and_its_cause(out: Path) -> None:
    plan = make_plan(out)
    states = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", None: "KILLED"}
    for trial, state in zip(plan.trials(), states, strict=True):
        path = start(out, trial)
        evaluate(path, 2)
        if state:
            end(path, trial, state, None if state == "done" else f"cause of {state}")
    deliver(out, plan, state="failed")
    found = runs(out)
    assert [found[trial.key][1] for trial in plan.trials()] == list(states.values())
    assert found[""][1] == "FAILED"
    causes = sorted(value for (value,) in rows(out, "select value from tags where key = 'cause'"))
    assert causes == ["cause of diverged", "cause of failed"]


def test_a_trial_that_recovers_has_no_cause_any_more(out: Path) -> None:
    plan = make_plan(out)
    first, second = plan.trials()[:2]
    for trial in (first, second):
        evaluate(start(out, trial), 2)
        end(ledger.trial_dir(out, trial.key), trial, "failed", "code: KeyError")
    deliver(out, plan)
    assert len(rows(out, "select value from tags where key = 'cause'")) == 2
    (ledger.trial_dir(out, second.key) / tracking.RECORD).unlink()
    for trial in (first, second):
        end(ledger.trial_dir(out, trial.key), trial, "done")
    deliver(out, plan, state="stopped")
    assert {status for _, status in runs(out).values()} == {"KILLED", "FINISHED"}
    assert rows(out, "select value from tags where key = 'cause'") == []


def test_rows_that_were_made_again_are_sent_again(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    evaluate(path, 4, nmi=9.0)
    end(path, trial, "diverged", "not finite")
    deliver(out, plan)
    ledger.forget(out, trial, "diverged")
    for iteration in (2, 4, 6):
        evaluate(path, iteration)
    end(path, trial, "done")
    deliver(out, plan)
    # MLflow never forgets a value, but the newest of a step is the one that it shows last.
    assert [m[2:4] for m in metrics(out) if m[3] != 9.0] == [(2, 0.2), (4, 0.4), (6, 0.6)]


def test_a_data_base_that_answers_again_is_used_though_nothing_is_new(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    end(start(out, trial), trial, "done")
    real, answers = tracking._client, threading.Event()

    def client(uri: str) -> Any:
        if not answers.is_set():
            raise ConnectionError("nobody there")
        return real(uri)

    monkeypatch.setattr(tracking, "_client", client)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.2)
    background = tracking.Background(out, tracking.default_uri(out), plan, frozenset)
    while background.problem is None:
        time.sleep(0.05)
    answers.set()
    limit = time.monotonic() + 60
    while tracking.waiting(out, plan, tracking.default_uri(out)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert set(runs(out)) == {"", trial.key} and background.problem is None
    assert background.finish("done", lambda: 60.0) is None


def test_a_run_left_running_by_a_dead_driver_is_put_right_and_taken_up_again(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    deliver(out, plan, (trial.key,))
    assert runs(out)[trial.key][1] == "RUNNING"
    deliver(out, plan)
    assert runs(out)[trial.key][1] == "KILLED"
    deliver(out, plan, (trial.key,))
    assert runs(out)[trial.key][1] == "RUNNING"
    end(path, trial, "done")
    deliver(out, plan)
    assert runs(out)[trial.key][1] == "FINISHED"


def test_of_two_runs_for_one_trial_the_older_one_stays(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    end(start(out, trial), trial, "done")
    deliver(out, plan)
    first = runs(out)[trial.key][0]
    client = tracking._client(tracking.default_uri(out))
    experiment = client.get_run(first).info.experiment_id
    client.create_run(experiment, tags={"sweep": plan.id, "trial_key": trial.key})
    deliver(out, plan)
    assert runs(out)[trial.key][0] == first


def test_numbers_that_are_not_finite_arrive_as_nan(out: Path) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2, nmi=math.nan, ari=math.inf, mse=0.5, note="text")
    deliver(out, plan, (trial.key,))
    assert sorted((m[1], m[4]) for m in metrics(out)) == [("ari", 1), ("mse", 0), ("nmi", 1)]


def test_a_server_that_is_down_hinders_nobody_and_is_told(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    trial = plan.trials()[0]
    end(start(tmp_path, trial), trial, "done")
    uri = "http://127.0.0.1:9"
    background = tracking.Background(tmp_path, uri, plan, frozenset)
    background.poke()
    problem = background.finish("done", lambda: 30.0)
    assert problem and "\n" not in problem
    assert tracking.waiting(tmp_path, plan, uri) == [trial]
    assert not (ledger.trial_dir(tmp_path, trial.key) / tracking.RECORD).exists()


def test_rows_wait_while_the_data_base_is_locked_and_arrive_once_it_is_free(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    deliver(out, plan, (trial.key,))
    blocker = sqlite3.connect(out / tracking.DATABASE, check_same_thread=False)
    blocker.execute("begin exclusive")
    threading.Timer(3, blocker.rollback).start()
    evaluate(path, 4)
    end(path, trial, "done")
    background = tracking.Background(out, tracking.default_uri(out), plan, frozenset)
    assert background.finish("done", lambda: 60.0) is None
    blocker.close()
    assert [m[2] for m in metrics(out)] == [2, 4]
    assert runs(out)[trial.key][1] == "FINISHED"


def test_a_data_base_that_is_gone_or_another_one_is_filled_from_the_start(
    out: Path, database: Path
) -> None:
    plan = make_plan(out)
    trial = plan.trials()[0]
    path = start(out, trial)
    evaluate(path, 2)
    end(path, trial, "done")
    deliver(out, plan, state="stopped")
    uri = tracking.default_uri(out)
    assert tracking.in_step(out, plan, uri)
    other = out / "other"
    other.mkdir()
    shutil.copy(database, other / tracking.DATABASE)
    assert not tracking.in_step(out, plan, tracking.default_uri(other))
    assert tracking.Delivery(out, tracking.default_uri(other)).deliver(plan, (), "stopped") == 1
    assert set(runs(other)) == {"", trial.key} and len(metrics(other)) == 1
    assert not tracking.in_step(out, plan, uri)
    deliver(out, plan, state="stopped")
    assert set(runs(out)) == {"", trial.key} and len(metrics(out)) == 1
    (out / tracking.DATABASE).unlink()
    assert tracking.waiting(out, plan, uri) == [trial]


@pytest.mark.parametrize("damage", [half_made, no_data_base])
def test_our_data_base_that_cannot_be_opened_is_set_aside_and_filled_again(
    tmp_path: Path, database: Path, damage: Callable[[Path, Path], None]
) -> None:
    plan = make_plan(tmp_path)
    trial = plan.trials()[0]
    path = start(tmp_path, trial)
    evaluate(path, 2)
    end(path, trial, "done")
    file, uri = tmp_path / tracking.DATABASE, tracking.default_uri(tmp_path)
    delivered = tracking._digest(ledger.status(tmp_path, trial), path)
    record = {"tracking_uri": uri, "run_id": "x", "rows_delivered": 2, "start": 0}
    run_dir.write_json(path / tracking.RECORD, record | {"delivered": delivered})
    damage(database, file)
    assert tracking.waiting(tmp_path, plan, uri) == []
    spoilt = file.read_bytes()
    background = tracking.Background(tmp_path, uri, plan, frozenset)
    assert background.finish("stopped", lambda: 120.0) is None
    assert set(runs(tmp_path)) == {"", trial.key} and len(metrics(tmp_path)) == 1
    assert (tmp_path / f"{tracking.DATABASE}.damaged").read_bytes() == spoilt
    assert "set aside as mlflow.db.damaged" in str(background.note)


def test_a_data_base_of_the_users_own_is_never_set_aside(tmp_path: Path, database: Path) -> None:
    plan = make_plan(tmp_path)
    other = tmp_path / "other.db"
    half_made(database, other)
    spoilt = other.read_bytes()
    with pytest.raises(Exception, match="schema"):
        tracking.Delivery(tmp_path, f"sqlite:///{other}").deliver(plan)
    assert other.read_bytes() == spoilt


def test_a_driver_killed_while_the_data_base_is_made_leaves_none(tmp_path: Path) -> None:
    """At several moments; half of a data base could never be opened again."""
    plan = make_plan(tmp_path)
    program = (
        "import sys; from pathlib import Path; from tune import ledger, tracking\n"
        "out = Path(sys.argv[1]); plan = ledger.read_plan(out)\n"
        "tracking.Delivery(out, tracking.default_uri(out)).deliver(plan)\n"
    )
    file = tmp_path / tracking.DATABASE
    for size in (1, 150_000, 400_000):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        while child.poll() is None and not file.exists():
            if sum(map(size_of, tmp_path.glob(".mlflow.db.*.new"))) >= size:
                break
            time.sleep(0.001)
        child.kill()
        child.wait()
        assert not file.exists()
    deliver(tmp_path, plan)
    assert set(runs(tmp_path)) == {""}
    assert not list(tmp_path.glob(".mlflow.db*"))


@pytest.mark.parametrize("uri", ["runs", "file:///x", "sqlite://", "sqlite:///", "http://", ""])
def test_a_tracking_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(tracking.TrackingError, match="--tracking-uri"):
        tracking.checked_uri(uri)


def test_a_relative_data_base_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.checked_uri("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking.default_uri(Path("x")) == f"sqlite:///{tmp_path}/x/mlflow.db"
