"""The engine: what Tune's news become, which trial it gives up, and one sweep of it under Ray."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpcc.runs import run_dir
from tests.stand_ins import ended, planned, printed_by, spec_of, started
from tests.test_trainer import files
from tests.under_ray import doomed_and_others, faults_of_a_sweep
from tune.engine.spec import TrialSpec
from tune.plan.state import Event, EventKind, State
from tune.store.folder import Store

ray = pytest.importorskip("ray")


def callback() -> tuple[Any, list[Event]]:
    """A callback of Tune's, and the events that it hands on."""
    from tune.engine.tune_run import EventCallback

    events: list[Event] = []
    return EventCallback(events.append), events


def tune_trial(
    specs: Sequence[TrialSpec],
    error_file: Path | None = None,
    trial_id: str = "a",
) -> Any:
    """What Tune says of the trials that share a process."""
    config = {"sweep": list(specs)}
    return SimpleNamespace(config=config, pickled_error_file=error_file, trial_id=trial_id)


def give_up(made: Any, trial: Any, attempts: int = 3) -> None:
    """Do what Tune does with a trial whose process dies as often as it may."""
    for _ in range(attempts):
        made.on_trial_start(0, [], trial)
    made.on_trial_error(0, [], trial)


def saved(error: BaseException, folder: Path) -> Path:
    """The file in which Tune leaves what a trial has raised."""
    file = folder / "error.pkl"
    file.write_bytes(ray.cloudpickle.dumps(error))
    return file


def raised_in_worker(error: Exception) -> Exception:
    """An error as Ray hands it to the driver."""
    return ray.exceptions.RayTaskError("step", "a trace", error)


def test_a_trial_begins_goes_on_and_ends_once(tmp_path: Path) -> None:
    first, second = (spec_of(tmp_path, trial) for trial in planned("esteps=1").trials())
    made, events = callback()
    trial = tune_trial([first, second])
    made.on_trial_start(0, [], trial)
    assert events == [started(first.key), started(second.key)]
    news = [
        Event(first.key, EventKind.PROGRESS, iteration=6),
        ended(first.key),
        Event(second.key, EventKind.EXCLUSIVE, State.PLANNED, cause="out of memory"),
    ]
    for event in (*news, *news[1:]):  # A process that died is run again with all its trials.
        made.on_trial_result(0, [], trial, {"event": event})
    assert events[2:] == news
    made.on_trial_start(0, [], trial)
    made.on_trial_complete(0, [], trial)
    assert len(events) == 5
    again = tune_trial([second], trial_id="b")  # Submitted again, with nothing beside it.
    made.on_trial_start(0, [], again)
    assert events[5:] == [started(second.key)]
    made.on_trial_complete(0, [], again)
    assert events[-1] == Event(second.key, EventKind.STOPPED, State.STOPPED)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ray.exceptions.RayActorError(), "killed: its process died 3 times"),
        (ray.exceptions.OutOfMemoryError("Task was killed"), "out of memory: Task was killed"),
        (raised_in_worker(KeyError("a")), "code: KeyError: 'a'"),
        (RuntimeError("of Ray's own"), "killed: its process died 3 times"),
    ],
)
def test_a_trial_that_is_given_up_has_failed_with_its_cause(
    error: Exception, cause: str, tmp_path: Path
) -> None:
    spec = spec_of(tmp_path, planned("esteps=1").trials()[0])
    made, events = callback()
    give_up(made, tune_trial([spec], saved(error, tmp_path)))
    event = events[-1]
    assert event.state == State.FAILED and event.failed_by_engine
    assert str(event.cause).startswith(cause)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (raised_in_worker(OSError(28, "No space left on device")), "No space left on device"),
        (ray.exceptions.RayActorError(error_msg="its node has died"), "was lost again and again"),
        (None, "Ray gave it up"),
    ],
)
def test_what_its_machine_has_done_to_a_trial_leaves_it_stopped(
    error: Exception | None, said: str, tmp_path: Path
) -> None:
    """A full disk, a node that is lost, or what a full disk has left of Tune's own files."""
    spec = spec_of(tmp_path, planned("esteps=1").trials()[0])
    file = tmp_path / "torn"
    file.write_bytes(b"")
    made, events = callback()
    give_up(made, tune_trial([spec], saved(error, tmp_path) if error else file))
    event = events[-1]
    assert (event.kind, event.state) == (EventKind.STOPPED, State.STOPPED)
    assert said in str(event.cause) and not event.failed_by_engine


def test_a_trial_that_tune_gives_up_before_its_attempts_is_handed_out_again(tmp_path: Path) -> None:
    """Its process died before it took the trial up; where that never ends, the trial fails.

    Tune counts failures otherwise: of one such death up to three.
    """
    spec = spec_of(tmp_path, planned("esteps=1").trials()[0])
    made, events = callback()
    died = saved(ray.exceptions.RayActorError(), tmp_path)
    for name in "abcd":
        give_up(made, tune_trial([spec], died, name), attempts=0)
    assert [event.kind for event in events] == [EventKind.HANDED_BACK] * 3 + [EventKind.ENDED]
    assert {event.state for event in events[:3]} == {State.PLANNED} and events[3].failed_by_engine


def test_trials_that_died_together_run_again_each_with_nothing_beside_it(tmp_path: Path) -> None:
    """Which of them it was shows then."""
    specs = [spec_of(tmp_path, t, co_located=True) for t in planned("esteps=1").trials()]
    made, events = callback()
    made.on_trial_result(0, [], tune_trial(specs), {"event": ended(specs[0].key)})
    error_file = saved(ray.exceptions.RayActorError(), tmp_path)
    give_up(made, tune_trial(specs, error_file))
    given_up = [event for event in events[1:] if event.kind != EventKind.STARTED]
    assert [(event.key, event.kind) for event in given_up] == [(specs[1].key, EventKind.EXCLUSIVE)]


# -- under Ray -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_under_ray_a_trial_that_dies_three_times_fails_and_a_fault_of_the_disk_is_tried_again(
    tmp_path: Path,
) -> None:
    from mpcc.training.trainer import train

    said = printed_by(faults_of_a_sweep, tmp_path)
    plan, long_ones = doomed_and_others()
    doomed, *others = plan.trials()
    unlucky = long_ones.trials()[0]
    events: dict[str, list[Any]] = {}
    for key, kind, cause in said["said"]:
        events.setdefault(key, []).append((kind, cause))
    kinds = {key: [kind for kind, _ in found] for key, found in events.items()}
    assert kinds[doomed.key].count("started") == said["killed"] == 3
    assert events[doomed.key][-1] == ("ended", "killed: its process died 3 times")
    assert kinds[unlucky.key].count("started") == 2, "no fault, or not tried again"
    assert len(run_dir.read_provenance(Store(tmp_path).trial_dir(unlucky.key))["starts"]) == 2
    for trial in (unlucky, *others):
        assert events[trial.key][-1] == ("ended", None)
        list(train(trial.config, tmp_path / "alone" / trial.key, device="cpu"))
        assert files(Store(tmp_path).trial_dir(trial.key)) == files(tmp_path / "alone" / trial.key)
    for part in ("raylet", "gcs_server"):
        assert any(part in words for words in said["words"])
    assert said["end"] < 10 and said["left"] == 0
