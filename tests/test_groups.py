"""Trials that share a process under Ray: which do, that each is what it is alone, and faults."""

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcc.runs import run_dir
from mpcc.training import trainer
from tests.stand_ins import (
    equals_alone,
    in_process,
    planned,
    printed_by,
    spec_of,
    to_the_end,
)
from tests.under_ray import groups_of_three
from tune.engine import worker
from tune.engine.spec import TrialSpec
from tune.plan.plan import Plan
from tune.plan.state import Event, EventKind, State
from tune.store.folder import Store

pytest.importorskip("ray")


def specs_of(out: Path, plan: Plan) -> list[TrialSpec]:
    return [spec_of(out, trial) for trial in plan.trials()]


def grouped(specs: list[TrialSpec], size: int, n_gpus: int = 1) -> list[list[TrialSpec]]:
    from tune.engine.tune_run import grouped

    return grouped(specs, size, n_gpus)


def sizes(found: list[list[TrialSpec]]) -> list[int]:
    return [len(group) for group in found]


def test_groups_are_even_keep_every_gpu_busy_and_keep_the_order(tmp_path: Path) -> None:
    specs = specs_of(tmp_path, planned("esteps=1,2,3,4,5"))
    assert sizes(grouped(specs, 1)) == [1] * 10
    assert sizes(grouped(specs, 8)) == [5, 5]
    assert sizes(grouped(specs, 16)) == [10]
    assert sizes(grouped(specs, 16, n_gpus=4)) == [2, 3, 2, 3]
    assert sizes(grouped(specs, 3, n_gpus=3)) == [1, 2, 2, 1, 2, 2]
    assert sizes(grouped(specs[:2], 8, n_gpus=4)) == [1, 1]
    flat = [spec.key for group in grouped(specs, 4) for spec in group]
    assert flat == [spec.key for spec in specs]


def test_only_trials_that_want_the_same_of_a_process_share_one(tmp_path: Path) -> None:
    specs = specs_of(tmp_path, planned("precision=float32,tf32,bfloat16", "esteps=1,2"))
    found = grouped(specs, 16)
    assert sizes(found) == [8, 4] and all(spec.co_located for group in found for spec in group)
    precision = [{spec.config.precision for spec in group} for group in found]
    assert precision == [{"float32", "bfloat16"}, {"tf32"}]


def test_a_trial_that_ran_out_of_memory_beside_others_shares_with_none(tmp_path: Path) -> None:
    plan = planned("esteps=1,2")
    specs = specs_of(tmp_path, plan)
    specs[1] = spec_of(tmp_path, plan.trials()[1], exclusive=True)
    (three, alone) = grouped(specs, 16)
    assert len(three) == 3 and [spec.key for spec in alone] == [specs[1].key]
    assert not alone[0].co_located


def test_what_is_submitted_is_handed_on_in_groups(tmp_path: Path) -> None:
    from tune.engine.tune_run import TrialQueue

    queue = TrialQueue(lambda specs: grouped(specs, 4))
    specs = specs_of(tmp_path, planned("esteps=1,2,3"))
    # Tune has no trial: asked now, the queue waits for one.
    threading.Timer(0.2, queue.put, [specs]).start()
    found = [queue.suggest(name)["sweep"] for name in ("a", "b")]
    assert sizes(found) == [3, 3] and queue.suggest("c") is None
    assert [spec.key for group in found for spec in group] == [spec.key for spec in specs]
    queue.put(specs[:1])
    queue.close()  # What was put before is not lost.
    assert queue.suggest("c")["sweep"][0].key == specs[0].key
    assert queue.suggest("d") == TrialQueue.FINISHED


def test_after_a_stop_nothing_that_was_submitted_is_handed_on(tmp_path: Path) -> None:
    from tune.engine.tune_run import TrialQueue

    queue = TrialQueue(lambda specs: grouped(specs, 1))
    queue.put(specs_of(tmp_path, planned("esteps=1,2,3")))
    assert queue.suggest("a")["sweep"]
    queue.stopped = True
    queue.close()
    assert queue.suggest("b") == TrialQueue.FINISHED


# -- without Ray, through the class that Tune drives -----------------------------------------------


def together(out: Path, plan: Plan) -> Any:
    """What Tune drives, with a group of all trials of the plan."""
    return in_process(grouped(specs_of(out, plan), 16)[0])


def ends_of(events: list[Event]) -> dict[str, State]:
    """Trial key -> its state after its last event."""
    return {event.key: event.state for event in events if event.kind != EventKind.PROGRESS}


@pytest.mark.slow
def test_trials_of_a_group_equal_each_alone_to_the_bit(tmp_path: Path) -> None:
    plan = planned("esteps=1,2")
    made = together(tmp_path, plan)
    assert ends_of(to_the_end(made)) == {trial.key: State.DONE for trial in plan.trials()}
    made.cleanup()
    assert all(equals_alone(tmp_path, trial, tmp_path) for trial in plan.trials())


def faulty(monkeypatch: pytest.MonkeyPatch, key: str, error: BaseException) -> Callable[[], None]:
    """Training as it is, but for one trial, which raises this after its first word; undo it."""
    usual = trainer.train

    def train(config: Any, *args: Any, **named: Any) -> Iterator[Any]:
        run = usual(config, *args, **named)
        if config.trial_key == key:
            yield next(run)
            raise error
        yield from run

    monkeypatch.setattr(trainer, "train", train)
    return lambda: monkeypatch.setattr(trainer, "train", usual)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("its own"), State.FAILED),
        (RuntimeError("CUDA out of memory"), State.PLANNED),
    ],
)
def test_what_ends_one_trial_of_a_group_leaves_the_others_alone(
    error: Exception, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1,2")
    trial = plan.trials()[1]
    undo = faulty(monkeypatch, trial.key, error)
    made = together(tmp_path, plan)
    events = to_the_end(made)
    ends = ends_of(events)
    assert ends.pop(trial.key) == state and set(ends.values()) == {State.DONE}
    recorded = Store(tmp_path).status(trial).state
    assert recorded == (State.FAILED if state == State.FAILED else State.STOPPED)
    undo()
    if state == State.PLANNED:  # Once more, with nothing beside it.
        kinds = [event.kind for event in events if event.key == trial.key]
        assert kinds[-1] == EventKind.EXCLUSIVE
        assert made.reset_config({"sweep": [spec_of(tmp_path, trial, exclusive=True)]})
        assert ends_of(to_the_end(made)) == {trial.key: State.DONE}
        assert equals_alone(tmp_path, trial, tmp_path)
    made.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "disk"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_fault_of_the_machine_ends_the_process_with_checkpoints(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("esteps=1,2", iterations=10_000, eval_every=10_000)
    trials = plan.trials()
    faulty(monkeypatch, trials[1].key, error)
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.0)
    others = set(threading.enumerate())  # Of a library, from tests before.
    made = together(tmp_path, plan)
    with pytest.raises(type(error)):
        to_the_end(made)
    made.cleanup()
    assert set(threading.enumerate()) <= others
    for trial in (trials[0], *trials[2:]):
        assert (Store(tmp_path).trial_dir(trial.key) / run_dir.CHECKPOINT).exists()
    states = {Store(tmp_path).status(trial).state for trial in trials}
    assert states == {State.STOPPED}  # None of them has failed.


@pytest.mark.slow
def test_the_stop_of_a_group_writes_a_checkpoint_for_each_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.01)
    plan = planned("esteps=1,2", iterations=10_000, eval_every=10_000)
    specs = [spec_of(tmp_path, trial, checkpoint_seconds=600.0) for trial in plan.trials()]
    others = set(threading.enumerate())
    made = in_process(grouped(specs, 16)[0])
    reached: dict[str, int] = {}
    while len(reached) < 4:
        event = made.step()["event"]
        reached[event.key] = event.iteration
    assert not list(tmp_path.rglob(run_dir.CHECKPOINT))
    made.cleanup()
    assert set(threading.enumerate()) <= others
    for trial in plan.trials():
        (kept,), _ = run_dir.read_checkpoints(Store(tmp_path).trial_dir(trial.key))
        assert kept.iteration >= reached[trial.key] > 0
        assert Store(tmp_path).status(trial).state == State.STOPPED


# -- under Ray -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_groups_under_ray_killed_in_the_middle_end_as_each_alone(tmp_path: Path) -> None:
    said = printed_by(groups_of_three, tmp_path)
    plan = planned("esteps=1,2,3", iterations=60, eval_every=20)
    keys = [trial.key for trial in plan.trials()]
    assert said["killed"] == 1 and said["whole"]
    again = [key for key, kind, _ in said["events"] if kind == "started"]
    assert len(again) > len(set(again)) == 6
    ends = [key for key, kind, state in said["events"] if (kind, state) == ("ended", "done")]
    assert sorted(ends) == sorted(keys)  # Each once.
    assert all(equals_alone(tmp_path, plan.trials()[n], tmp_path) for n in (0, 3))
