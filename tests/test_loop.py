"""The loop of a sweep, on an engine that only says what a test has it say: no Ray is started."""

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tests.stand_ins import (
    Looped,
    StandInEngine,
    done_at_once,
    end_record,
    ended,
    looped,
    planned,
    started,
)
from tune import ablation
from tune.engine import loop
from tune.engine.spec import TrialSpec
from tune.options import settings
from tune.plan.plan import PLAN, Plan, new_plan
from tune.plan.source import GridSource
from tune.plan.state import Event, EventKind, State, States
from tune.store.folder import Store
from tune.store.remote import Remote, RemoteError
from tune.suggest.search import Search
from tune.suggest.source import SearchSource
from tune.suggest.space import parse_space

REFUSED = "AWS Error ACCESS_DENIED during PutObject operation"


def searched(out: Path, remote: Remote | None = None) -> Looped:
    """A search of six points of one seed, a point at a time."""
    base = PRESETS["tiny"]
    space = parse_space(["esteps=1..4", "eta_p=1e-4..1e-1:log"], base)
    search = Search(space, ("mse",), seeds=(0,), startup=2, ahead=1, n_points=6)
    store = Store(out, remote)
    plan = replace(new_plan("tiny", base), search=search.to_dict())
    return Looped(out, store, SearchSource(store, plan))


def done_by_spec(root: Path) -> Callable[[TrialSpec], list[Event]]:
    """Every trial of a search ends at once, with its record below this folder."""

    def answer(spec: TrialSpec) -> list[Event]:
        trial: Any = SimpleNamespace(key=spec.key, config=spec.config)
        end_record(root, trial, mse=spec.config.prior_lr)
        return [started(spec.key), ended(spec.key)]

    return answer


def test_every_trial_is_submitted_once_and_mlflow_hears_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1,2")
    engine, sweep = StandInEngine(done_at_once(tmp_path, plan)), looped(tmp_path, plan)
    assert sweep.run(engine, monkeypatch) and not engine.killed and engine.closed
    keys = sorted(trial.key for trial in plan.trials())
    assert sorted(spec.key for spec in engine.submitted) == sorted(sweep.ended) == keys
    assert len(sweep.events) == 8
    assert sweep.states.count(State.DONE) == 4 and not sweep.states.running()
    again = looped(tmp_path, plan)
    assert again.run(StandInEngine(lambda spec: []), monkeypatch)  # Nothing is left to do.


def test_trials_are_submitted_as_the_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--grid", "esteps", "--checkpoint-seconds", "7", "--checkpoint-iterations", "20"]
    given = settings(ablation.parse(words), Store(tmp_path))
    often = (given.checkpoint_seconds, given.checkpoint_iterations)
    plan = planned("esteps=1")
    engine, sweep = StandInEngine(done_at_once(tmp_path, plan)), looped(tmp_path, plan)
    assert sweep.run(
        engine, monkeypatch, checkpoint_seconds=often[0], checkpoint_iterations=often[1]
    )
    found = {(spec.checkpoint_seconds, spec.checkpoint_iterations) for spec in engine.submitted}
    assert found == {often} == {(7.0, 20)}


@pytest.mark.parametrize("ends", [True, False])
def test_a_trial_that_another_process_trains_is_waited_for_and_run_where_it_is_left(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1")
    other, ours = plan.trials()
    monkeypatch.setattr(loop, "ELSEWHERE_SECONDS", 0.1)
    answers = iter(["process 12", "process 12"])

    def held(*_: object) -> str | None:
        """Who trains the other trial; None at the third time it is asked."""
        if ends:
            end_record(tmp_path, other)
        return next(answers, None)

    monkeypatch.setattr(loop, "trained_elsewhere", held)
    first = [started(other.key), Event(other.key, EventKind.ELSEWHERE, cause="process 12")]
    here = done_at_once(tmp_path, plan)

    def answer(spec: TrialSpec) -> list[Event]:
        return first if spec.key == other.key and first_time.pop(0) else here(spec)

    first_time = [True, False]
    engine, sweep = StandInEngine(answer), looped(tmp_path, plan)
    assert sweep.run(engine, monkeypatch)
    assert sweep.states.count(State.DONE) == 2 and sorted(sweep.ended) == sorted(
        (other.key, ours.key)
    )
    keys = [spec.key for spec in engine.submitted]
    assert keys.count(other.key) == (1 if ends else 2) and keys.count(ours.key) == 1


def test_a_search_gets_its_points_as_its_trials_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = searched(tmp_path)
    assert sweep.run(StandInEngine(done_by_spec(tmp_path)), monkeypatch)
    plan = sweep.store.read_plan()
    assert plan is not None and len(plan.trials()) == 6 and sweep.plans[-1].cells == plan.cells


def test_a_reported_end_counts_once_the_result_is_seen_on_the_shared_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of another machine has written it, and this one does not see it for a while."""
    plan = planned("esteps=1", eval_every=12)
    trials = {trial.key: trial for trial in plan.trials()}

    def answer(spec: TrialSpec) -> list[Event]:
        threading.Timer(0.7, end_record, (tmp_path, trials[spec.key])).start()
        return [started(spec.key), ended(spec.key, row={"iteration": 12})]

    sweep = looped(tmp_path, plan)
    assert sweep.run(StandInEngine(answer), monkeypatch)
    found = {status.state for status in sweep.store.statuses(plan.trials()).values()}
    assert found == {State.DONE}


def test_a_trial_that_ran_out_of_memory_beside_others_runs_again_with_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("esteps=1,2")
    whole, hungry = done_at_once(tmp_path, plan), plan.trials()[1].key

    def answer(spec: TrialSpec) -> list[Event]:
        if spec.key == hungry and not spec.exclusive:
            cause = "out of memory: CUDA out of memory"
            return [started(hungry), Event(hungry, EventKind.EXCLUSIVE, State.PLANNED, cause=cause)]
        return whole(spec)

    engine, sweep = StandInEngine(answer), looped(tmp_path, plan)
    assert sweep.run(engine, monkeypatch) and sweep.states.count(State.DONE) == 4
    assert [spec.exclusive for spec in engine.submitted] == [False] * 4 + [True]
    assert engine.submitted[-1].key == hungry
    assert "could not run beside others; it runs again alone" in capsys.readouterr().err


def test_a_trial_whose_process_died_again_and_again_is_recorded_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1")
    whole, (first, other) = done_at_once(tmp_path, plan), plan.trials()

    def answer(spec: TrialSpec) -> list[Event]:
        if spec.key == other.key:
            return whole(spec)
        cause = "killed: its process died 3 times"
        return [
            started(spec.key),
            ended(spec.key, State.FAILED, cause=cause, failed_by_engine=True),
        ]

    sweep = looped(tmp_path, plan)
    assert sweep.run(StandInEngine(answer), monkeypatch)
    status = sweep.store.status(first)
    assert (status.state, status.cause) == (State.FAILED, "killed: its process died 3 times")
    assert sweep.store.status(other).state == State.DONE and first.key in sweep.ended


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no room on the disk for result.json"), RemoteError(REFUSED)]
)
def test_a_failure_that_cannot_be_recorded_leaves_its_trial_stopped(
    error: OSError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise error

    plan = planned("esteps=1")
    monkeypatch.setattr(Store, "record_end", refuse)
    monkeypatch.setattr(loop, "DOWNLOAD_SECONDS", 1.5)
    monkeypatch.setattr(loop, "QUICK_SECONDS", 0.1)
    sweep = looped(tmp_path, plan)
    engine = StandInEngine(
        lambda spec: [ended(spec.key, State.FAILED, cause="killed", failed_by_engine=True)]
    )
    begun = time.monotonic()
    assert sweep.run(engine, monkeypatch)
    assert time.monotonic() - begun < 2.9  # What was waited for in vain is not waited for again.
    assert sweep.states.count(State.STOPPED) == 2 and sweep.ended == []
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_a_sweep_whose_trials_are_stopped_by_their_machine_ends_and_says_why(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The points of a search that rest on them cannot be drawn: it waits for nothing."""
    sweep = searched(tmp_path) if kind == "search" else looped(tmp_path, planned("esteps=1,2"))
    engine = StandInEngine(
        lambda spec: [
            started(spec.key),
            Event(spec.key, EventKind.STOPPED, State.STOPPED, cause="no room on the disk"),
        ]
    )
    result = sweep.run(engine, monkeypatch)
    keys = [spec.key for spec in engine.submitted]
    assert keys and len(keys) == len(set(keys)), "submitted again"
    assert result and {status.state for status in sweep.states.values()} == {State.STOPPED}
    assert "(no room on the disk)" in capsys.readouterr().err


def refusing(monkeypatch: pytest.MonkeyPatch, n_times: int) -> None:
    """Have remotes refuse a plan so often, once the first one is there."""
    write, left = Remote.write, [n_times]

    def refuse(self: Remote, name: str, data: bytes, time_ns: int | None = None) -> None:
        if name == PLAN and self.info(PLAN) and left[0]:
            left[0] -= 1
            raise RemoteError(REFUSED)
        write(self, name, data, time_ns)

    monkeypatch.setattr(Remote, "write", refuse)


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    made = Remote(str(tmp_path / "store"), retry_seconds=0)
    made.prepare()
    return made


@pytest.mark.parametrize("n_times", [2, 10**6])
def test_a_search_goes_on_while_its_remote_refuses_points_but_does_not_wait_for_ever(
    n_times: int,
    remote: Remote,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusing(monkeypatch, n_times)
    monkeypatch.setattr(loop, "DOWNLOAD_SECONDS", 3.0)
    sweep, engine = searched(tmp_path / "out", remote), StandInEngine(done_by_spec(tmp_path))
    engine.most_idle = 400
    (tmp_path / "trials").symlink_to(tmp_path / "store" / "trials")  # Workers write there.
    (tmp_path / "store" / "trials").mkdir()
    ended = sweep.run(engine, monkeypatch)
    for spec in engine.submitted:  # A record does not wait behind a plan that is refused.
        assert run_dir.read_result(sweep.store.trial_dir(spec.key)) is not None
    if n_times > 2:
        assert "ACCESS_DENIED" in capsys.readouterr().err
    else:
        there = Store(tmp_path / "store").read_plan()
        assert ended and there is not None and len(there.trials()) == 6
        found = sweep.store.statuses(there.trials()).values()
        assert {status.state for status in found} == {State.DONE}


def test_a_failure_that_the_driver_records_fits_the_evaluations_in_the_remote(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has sent evaluations before its process died, and the driver has none of them."""
    plan = planned("esteps=1")
    there = Store(tmp_path / "store")
    for trial in plan.trials():
        path = run_dir.open_run(there.trial_dir(trial.key), trial.config)
        run_dir.append_metrics(path, {"iteration": 6, "acc_majority": 0.5})
    store = Store(tmp_path / "out", remote)
    sweep = Looped(store.out, store, GridSource(plan, plan.trials()))
    engine = StandInEngine(
        lambda spec: [ended(spec.key, State.FAILED, cause="killed", failed_by_engine=True)]
    )
    assert sweep.run(engine, monkeypatch)
    for where in (there, store):
        for trial in plan.trials():
            status = where.status(trial)
            assert (status.state, status.cause) == (State.FAILED, "killed")
            assert (status.iteration, status.accuracy) == (6, 0.5)


def test_a_folder_that_takes_no_plan_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, write = searched(tmp_path), Store.write_plan

    def full(self: Store, plan: Plan) -> None:
        if len(plan.cells) > 1:
            raise OSError(errno.ENOSPC, "no room on the disk for sweep.json")
        write(self, plan)

    monkeypatch.setattr(Store, "write_plan", full)
    monkeypatch.setattr(loop, "DOWNLOAD_SECONDS", 1.5)
    engine = StandInEngine(done_by_spec(tmp_path))
    assert sweep.run(engine, monkeypatch) and len(engine.submitted) == 6
    assert len(sweep.source.plan.cells) == 6  # The end of the sweep writes it.


def test_the_images_that_the_first_trial_has_read_hold_for_those_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, whole = searched(tmp_path), done_by_spec(tmp_path)
    data = {"dataset": "digits", "fingerprint": "f" * 12}

    def answer(spec: TrialSpec) -> list[Event]:
        events = whole(spec)
        run_dir.write_provenance(sweep.store.trial_dir(spec.key), {"data": data})
        return events

    engine = StandInEngine(answer)
    assert sweep.run(engine, monkeypatch)
    prints = [spec.fingerprint for spec in engine.submitted]
    assert prints == [None] + ["f" * 12] * 5
    plan = sweep.store.read_plan()
    assert plan is not None and plan.fingerprint_for(plan.base) == "f" * 12


def test_trials_that_a_search_suggests_at_its_start_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was repaired at the start lets more points be drawn than were known before."""
    sweep = searched(tmp_path)
    sweep.states = States([], {}, 6)
    assert sweep.run(StandInEngine(done_by_spec(tmp_path)), monkeypatch)
    assert sweep.states.count(State.DONE) == 6 and sweep.states.part() == 1.0


def lost_lock(lost: bool) -> Any:
    return SimpleNamespace(lost=lost, renew=lambda running: None)


@pytest.mark.parametrize("what", ["ray", "lock", "tune"])
def test_a_sweep_that_has_lost_its_ray_or_its_lock_ends_at_once_and_says_so(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = looped(tmp_path, planned("esteps=1"), lock=lost_lock(what == "lock"))
    engine = StandInEngine(lambda spec: [started(spec.key)])
    engine.finished = what == "tune"
    engine.found = "Ray has died (raylet ended)" if what == "ray" else None
    assert not sweep.run(engine, monkeypatch) and engine.killed
    said = {
        "ray": "Ray has died (raylet ended)",
        "lock": "another driver has taken over this sweep",
        "tune": "Ray Tune has ended early",
    }[what]
    assert f"{said}; run the same command again" in capsys.readouterr().err
    assert sweep.states.count(State.STOPPED) == 2 and not sweep.states.running()
    assert not (tmp_path / "trials").exists()


def test_events_that_came_before_ray_died_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1")
    sweep, whole = looped(tmp_path, plan), done_at_once(tmp_path, plan)
    engine = StandInEngine(whole)
    engine.found = "Ray has died"
    sweep.run(engine, monkeypatch)
    assert sweep.states.count(State.DONE) == 2 and len(sweep.ended) == 2


def test_mlflow_that_does_not_answer_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("esteps=1,2")
    sweep, engine = looped(tmp_path, plan), StandInEngine(done_at_once(tmp_path, plan))
    sweep.tracker.problem = "no connection"
    assert sweep.run(engine, monkeypatch) and sweep.states.count(State.DONE) == 4
    said = capsys.readouterr().err
    assert said.count("MLflow does not answer (no connection); training goes on") == 1
