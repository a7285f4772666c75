"""Several drivers on one search: one claim per trial, whoever dies; and both do the same search."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcc import run_dir
from tests import test_search as one
from tune import drivers, ledger, lock, search
from tune.claims import CLAIMS, Claims
from tune.drivers import Alone, Crew
from tune.lock import LockError
from tune.mirror import OutFolder
from tune.settings import trial_spec


def claims(out: Path, name: str, gone: Callable[[str], bool] = lambda driver: False) -> Claims:
    return Claims(out, name, gone)


def test_of_many_that_claim_at_once_each_trial_goes_to_one(tmp_path: Path) -> None:
    names, keys = [f"d{i}" for i in range(8)], [f"k{i}" for i in range(40)]
    start = threading.Barrier(len(names))
    got: dict[str, list[str]] = {}

    def claim(name: str) -> None:
        mine = claims(tmp_path, name)
        start.wait()
        got[name] = [key for key in keys if mine.take(key)]

    threads = [threading.Thread(target=claim, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for keys in got.values() for key in keys) == sorted(keys)


def test_of_many_that_take_over_from_the_dead_each_trial_goes_to_one(tmp_path: Path) -> None:
    names, keys = [f"d{i}" for i in range(8)], [f"k{i}" for i in range(40)]
    dead = claims(tmp_path, "dead")
    assert all(dead.take(key) for key in keys)
    start = threading.Barrier(len(names))
    got: dict[str, list[str]] = {}

    def claim(name: str) -> None:
        mine = claims(tmp_path, name, lambda driver: driver == "dead")
        start.wait()
        got[name] = [key for key in keys if mine.take(key)]

    threads = [threading.Thread(target=claim, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for keys in got.values() for key in keys) == sorted(keys)
    assert not any(dead.is_own(key) for key in keys)


def test_a_claim_is_kept_until_it_is_released_or_its_driver_is_gone(tmp_path: Path) -> None:
    gone: set[str] = set()
    a, b = (claims(tmp_path, name, gone.__contains__) for name in "ab")
    assert a.take("k") and a.take("k") and a.is_own("k")
    assert b.is_elsewhere("k") and not b.take("k") and not a.is_elsewhere("k")
    a.release("k")
    assert not b.is_elsewhere("k") and b.take("k") and not a.take("k")
    gone.add("b")
    assert not a.is_elsewhere("k") and a.take("k") and not b.is_own("k")
    assert b.next_file("k") == tmp_path / CLAIMS / "k.3" and not b.take("k")
    b.release("k")  # Too late: it touches nothing of the other's.
    assert a.is_own("k")


def test_a_claim_without_a_word_is_somebodys_for_a_minute(tmp_path: Path) -> None:
    mine = claims(tmp_path, "a")
    assert mine.take("other")
    torn = tmp_path / CLAIMS / "k.1"
    torn.touch()
    assert mine.is_elsewhere("k") and not mine.take("k")
    os.utime(torn, (0, 0))
    assert mine.take("k") and mine.is_own("k")


def test_a_folder_that_cannot_be_written_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / CLAIMS).write_text("a file")
    assert not claims(tmp_path, "a").take("k")


def join(out: str, told: Any, end: Any) -> None:
    crew = Crew(Path(out))
    crew.take("k")
    crew.renew({"k"})
    told.set()
    end.wait()


def test_a_dead_drivers_trials_and_its_lead_are_taken_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(drivers, "GRACE_SECONDS", 0.5)
    spawn = multiprocessing.get_context("spawn")
    told, end = spawn.Event(), spawn.Event()
    first = spawn.Process(target=join, args=(str(tmp_path), told, end))
    first.start()
    assert told.wait(60)
    second = Crew(tmp_path)
    second.renew({"other"})
    assert not second.leads and second.running_elsewhere() == {"k"}
    assert lock.running_keys(tmp_path) == {"k", "other"}
    assert second.is_elsewhere("k") and not second.take("k")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert not second.take("k")  # Its processes may not know yet.
    time.sleep(0.6)
    second.renew(())
    assert second.leads and second.take("k") and not second.others()
    second.release()
    assert not lock.drivers(tmp_path) and lock.lock_owner(tmp_path) is None


def test_a_driver_that_leaves_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "LOOK_SECONDS", 0.0)
    first, second = Crew(tmp_path), Crew(tmp_path)
    assert first.leads and not second.leads
    assert first.take("k") and not second.take("k")
    assert first.stop_file != second.stop_file
    first.release()
    assert second.take("k")
    second.renew(())
    assert second.leads
    second.release()


def test_a_driver_that_the_others_gave_up_notices_and_its_trials_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "LOOK_SECONDS", 0.0)
    first, second = Crew(tmp_path), Crew(tmp_path)
    assert first.take("k")
    taken = first.taken_file("k")
    assert taken is not None and not Path(taken).exists() and not first.was_taken("k")
    (tmp_path / lock.DRIVERS / f"{first.id}.json").unlink()  # as after a minute without a sign
    assert second.take("k") and first.was_taken("k") and Path(taken).exists()
    first.renew(())
    assert first.lost and not second.lost
    first.release()
    second.release()


def test_a_grid_and_a_search_do_not_share_a_folder(tmp_path: Path) -> None:
    grid = Alone(tmp_path)
    with pytest.raises(LockError, match="in use by process"):
        Crew(tmp_path)
    assert not lock.drivers(tmp_path)
    grid.release()
    first, second = Crew(tmp_path), Crew(tmp_path)
    first.release()  # Nobody leads for a moment; the other one works all the same.
    with pytest.raises(LockError, match="works on its search"):
        Alone(tmp_path)
    second.release()
    Alone(tmp_path).release()


# -- what they agree on ----------------------------------------------------------------------------


def joined(out: Path, **changes: Any) -> tuple[search.Supply, Crew]:
    supply, crew = search.Supply(out, one.begin(out, **changes)), Crew(out)
    supply.write_study = lambda: None  # type: ignore[method-assign]
    supply.begin(crew, OutFolder(out))
    return supply, crew


def test_two_drivers_give_every_trial_once_and_draw_the_points_of_one(tmp_path: Path) -> None:
    import random

    alone = one.drive(tmp_path / "alone", one.begin(tmp_path), random.Random(1))
    out, rng = tmp_path / "both", random.Random(2)
    teams = [joined(out), joined(out)]
    queues: list[list[ledger.Trial]] = [supply.all_trials() for supply, _ in teams]
    ran: list[str] = []
    for _ in range(400):
        i = rng.randrange(2)
        (supply, crew), queue = teams[i], queues[i]
        queue += supply.more()[1]
        if queue:
            trial = queue.pop(rng.randrange(len(queue)))
            ended = ledger.status(out, trial).state in run_dir.ENDED
            if ended or not crew.take(trial.key):
                supply.give_back(trial.key)
            else:
                one.finish(out, trial)
                ran.append(trial.key)
                crew.release_trial(trial.key)
    assert sorted(ran) == sorted(trial.key for trial in alone.all_trials())
    for supply, crew in teams:
        assert supply.complete() and one.found(supply) == one.found(alone)
        crew.release()
    plan = ledger.read_plan(out)
    assert plan is not None and plan.search == alone.plan.search
    assert [c.cell.key for c in plan.cells] == [c.cell.key for c in alone.plan.cells]


def test_a_trial_that_runs_elsewhere_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    (first, a), (second, b) = joined(tmp_path), joined(tmp_path)
    for trial in first.all_trials():
        assert a.take(trial.key)
    assert second.more()[1] == [] and second.waits
    a.release()
    keys = [trial.key for trial in second.more()[1]]
    assert keys == [trial.key for trial in first.all_trials()] and not second.waits
    b.release()


def test_a_search_begun_at_the_same_time_is_joined_and_another_one_refused(tmp_path: Path) -> None:
    (first, a) = joined(tmp_path)
    second, b = joined(tmp_path)
    assert second.plan.id == first.plan.id
    with pytest.raises(ledger.LedgerError, match="holds a search with ahead 3, now 5"):
        joined(tmp_path, ahead=5)
    for crew in (a, b):
        crew.release()


def test_drivers_that_write_the_plan_in_turn_come_to_one(tmp_path: Path) -> None:
    (first, a), (second, b) = joined(tmp_path), joined(tmp_path)
    accepted = replace(second.plan, code_files={"mpcc/other.py": "1"})  # --accept-changed-code
    ledger.write_plan(tmp_path, accepted)
    for crew in (a, b):
        crew.renew(())
    for _ in range(2):
        for supply in (first, second):
            supply.more()
    before = (tmp_path / ledger.PLAN).stat().st_mtime_ns
    for supply in (first, second):
        supply.more()
    assert (tmp_path / ledger.PLAN).stat().st_mtime_ns == before
    assert ledger.read_plan(tmp_path) == accepted == first.plan == second.plan
    for crew in (a, b):
        crew.release()


def test_of_two_plans_the_longer_search_stays(tmp_path: Path) -> None:
    short = search.Supply(tmp_path, one.begin(tmp_path)).plan
    cell = replace(short.cells[0].cell, config=one.TINY.override(prior_lr=0.5))
    points = [*(short.search or {})["points"], cell.key]
    grown = short.grow([cell], (0, 1), "x")
    longer = replace(grown, search={**(short.search or {}), "points": points})
    for plan in (ledger.united(short, longer), ledger.united(longer, short)):
        assert plan.search == longer.search and plan.cells == longer.cells
    other = replace(short.cells[0].cell, config=one.TINY.override(prior_lr=0.7))
    points = [*(short.search or {})["points"], other.key]
    torn = replace(
        short.grow([other], (0, 1), "x"), search={**(short.search or {}), "points": points}
    )
    assert ledger.united(torn, longer).search == longer.search  # The first to write is right.
    assert ledger.united(torn, longer).cells == longer.cells


@pytest.mark.slow
def test_a_worker_whose_trial_was_taken_over_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_sweep import FakeProgress
    from tune import sweep, trainable

    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(trainable.os, "_exit", end)
    supply, taken = search.Supply(tmp_path, one.begin(tmp_path)), tmp_path / "k.2"
    trial = supply.all_trials()[0]
    spec = trial_spec(trial, supply.plan, sweep.Settings(out=tmp_path, uri=""), "test")

    def runner() -> Any:
        made = trainable.TrialRunner.__new__(trainable.TrialRunner)
        made.setup({"trial": spec | {"taken_file": str(taken)}})
        made._start = lambda: (FakeProgress(n, "running") for n in (1, 2))
        return made

    begun = runner()
    assert begun.step()["state"] == "running"
    taken.touch()
    with pytest.raises(Ended):  # Its process: no checkpoint, no result.
        begun.step()
    path = ledger.trial_dir(tmp_path, trial.key)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    again = runner().step()  # Ray tries once more, in a new process.
    assert again["state"] == "stopped" and again["done"]
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


# -- with real Ray ---------------------------------------------------------------------------------


def runs_of(out: Path) -> list[tuple[str, str]]:
    """(trial key, status) of every trial's MLflow run."""
    with closing(sqlite3.connect(out / "mlflow.db")) as connection:
        return connection.execute(
            "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'trial_key' and r.lifecycle_stage = 'active'"
        ).fetchall()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search by one driver, without a storage."""
    out = tmp_path_factory.mktemp("alone") / "search"
    driver = one.launch(out)
    text, noise = driver.communicate(timeout=900)
    assert driver.returncode == 0, text + noise
    return out


@pytest.mark.slow
def test_of_two_drivers_one_is_killed_and_the_other_ends_the_search_that_one_alone_would(
    tmp_path: Path, alone: Path
) -> None:
    from tests.test_sweep import cut_power

    out = tmp_path / "search"
    first = one.launch(out)
    one.wait_for(first, lambda: bool(lock.drivers(out)))
    second = one.launch(out)
    one.wait_for(second, lambda: len(lock.drivers(out)) == 2)
    one.wait_for(first, lambda: len(one.ends(out)) >= 2 and len(lock.running_keys(out)) >= 2)
    grid = subprocess.run(
        [sys.executable, str(one.ROOT / "tune" / "ablation.py"), "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert grid.returncode == 2 and "in use by process" in grid.stderr, grid.stderr
    status = subprocess.run(
        [*grid.args[:1], str(one.ROOT / "tune" / "search.py"), "--out", str(out), "--status"],
        capture_output=True,
        text=True,
    )
    assert (
        f"process {first.pid} on" in status.stdout and f"process {second.pid} on" in status.stdout
    )
    assert len(one.ends(out)) < 10
    cut_power(first)
    text, noise = second.communicate(timeout=900)
    assert second.returncode == 0, text + noise
    assert "10 of 10 trials done" in text and "Best: " in text
    assert one.ends(out) == one.ends(alone) and len(one.ends(out)) == 10
    plans = [ledger.read_plan(folder) for folder in (out, alone)]
    assert plans[0] and plans[1] and plans[0].search == plans[1].search
    assert one.content(out) == one.content(alone)
    assert sorted(runs_of(out)) == sorted((key, "FINISHED") for key in one.ends(out))
    for path in sorted((out / ledger.TRIALS).iterdir()):
        iterations = [row["iteration"] for row in run_dir.read_metrics(path)]
        lines = (path / run_dir.METRICS).read_text().splitlines()
        assert len(lines) == len(iterations) == len(set(iterations))


@pytest.mark.slow
def test_a_search_on_a_storage_goes_on_from_another_folder_to_the_same_end(
    tmp_path: Path, alone: Path
) -> None:
    from tests.test_sweep import cut_power

    store, out = tmp_path / "store", tmp_path / "search"
    first = one.launch(tmp_path / "first", "--storage", str(store))
    one.wait_for(first, lambda: len(one.ends(store)) >= 3)
    cut_power(first)
    second = one.launch(out, "--storage", str(store))
    one.wait_for(second, lambda: len(one.ends(store)) >= 5)
    for folder in (tmp_path / "third", out):  # A storage has one driver at a time.
        third = one.launch(folder, "--storage", str(store))
        said, more = third.communicate(timeout=300)
        assert third.returncode == 2 and said == "" and more.count("\n") == 1, more
        assert f"{store} is in use by process {second.pid} on" in more
    text, noise = second.communicate(timeout=900)
    assert second.returncode == 0, text + noise
    assert one.ends(out) == one.ends(store) == one.ends(alone)
    plans = [ledger.read_plan(folder) for folder in (out, store, alone)]
    assert plans[0] and plans[1] and plans[2]
    assert plans[0].search == plans[1].search == plans[2].search
    assert one.content(out) == one.content(alone)
    assert not list(out.glob("trials/*/checkpoint*")) and list(store.glob("trials/*/checkpoint*"))
