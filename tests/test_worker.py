"""One trial in a worker process, through the class that Tune drives, without Ray."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcc.data import files as data_files
from mpcc.runs import run_dir
from mpcc.runs.files import exclusive
from mpcc.training import trainer
from mpcc.training.trainer import Progress
from tests.stand_ins import equals_alone, in_process, planned, spec_of, to_the_end
from tests.test_trainer import evaluations
from tune.engine import worker
from tune.plan.cells import Trial
from tune.plan.pruning import PruneRule
from tune.plan.state import EventKind, State
from tune.store.folder import Store, record_end
from tune.store.remote import Remote, RemoteError

pytestmark = pytest.mark.slow  # Each imports Ray and torch.
HOPELESS = PruneRule("mse", False, {6: -1.0}, "worse than the median of earlier points,")
"""A rule that no trial passes at its sixth iteration."""
LOST = "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def trial() -> Trial:
    """Twelve iterations, evaluated at the sixth and at the last."""
    return planned("esteps=1").trials()[0]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.0)


def training_that(
    monkeypatch: pytest.MonkeyPatch, *says: Progress, error: Exception | None = None
) -> None:
    """Have the trainer say this, and then raise the error."""

    def train(*_: object, **__: object) -> Iterator[Progress]:
        yield from says
        if error is not None:
            raise error

    monkeypatch.setattr(trainer, "train", train)


def begun(iteration: int = 1) -> Progress:
    return Progress(iteration, 12, 0.0, "running")


# -- whose fault it is ---------------------------------------------------------------------------


def test_a_trial_that_another_process_trains_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BUSY_SECONDS", 0.2)
    spec = spec_of(tmp_path, planned("esteps=1").trials()[0])
    path = Path(spec.run_dir)
    with exclusive(path, 0.0):
        (event,) = to_the_end(in_process([spec]))
        assert (event.kind, event.state) == (EventKind.ELSEWHERE, State.RUNNING)
        assert list(path.iterdir()) == []
    assert to_the_end(in_process([spec]))[-1].state == State.DONE
    with exclusive(path, 0.0):  # The worker has let go of it.
        pass


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KeyError("a"), "code: KeyError: 'a' (test_worker.py:"),
        (data_files.DataError("no images in DIR"), "data: no images in DIR"),
        (run_dir.RunDirError("DIR holds another run"), "data: DIR holds another run"),
        (FileNotFoundError(errno.ENOENT, "gone"), "code: FileNotFoundError"),
    ],
)
def test_a_trials_own_error_is_recorded_with_its_cause_and_not_retried(
    error: Exception, cause: str, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_that(monkeypatch, begun(), error=error)
    first, last = to_the_end(in_process([spec_of(tmp_path, trial)]))
    assert first.kind == EventKind.PROGRESS
    assert (last.kind, last.state) == (EventKind.ENDED, State.FAILED)
    status = Store(tmp_path).status(trial)
    assert status.state == State.FAILED and status.cause == last.cause
    assert str(status.cause).startswith(cause)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_fault_of_the_machine_is_given_to_ray_to_retry_and_records_nothing(
    number: int, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_that(monkeypatch, begun(), error=OSError(number, "disk"))
    made = in_process([spec_of(tmp_path, trial)])
    made.step()
    with pytest.raises(OSError):
        made.step()
    made.cleanup()
    assert Store(tmp_path).status(trial).state == State.STOPPED


def test_a_trial_whose_disk_was_full_goes_on_once_there_is_room(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = run_dir.append_metrics, [True]

    def appended(path: Path, row: Any) -> None:
        if full.pop() if full else False:
            raise OSError(errno.ENOSPC, "no room on the disk for metrics.jsonl")
        append(path, row)

    monkeypatch.setattr(run_dir, "append_metrics", appended)
    made = in_process([spec_of(tmp_path, trial)])
    with pytest.raises(OSError, match="no room"):
        to_the_end(made)
    made.cleanup()
    again = in_process([spec_of(tmp_path, trial)])  # As Ray does.
    assert to_the_end(again)[-1].state == State.DONE
    again.cleanup()
    assert run_dir.read_provenance(Store(tmp_path).trial_dir(trial.key))["starts"] == [0, 5]
    assert equals_alone(tmp_path, trial, tmp_path)


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


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
    error: Exception, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_that(monkeypatch, begun(), error=error)
    last = to_the_end(in_process([spec_of(tmp_path, trial)]))[-1]
    assert (last.kind, last.state) == (EventKind.EXCLUSIVE, State.PLANNED)
    assert Store(tmp_path).status(trial).state == State.STOPPED
    last = to_the_end(in_process([spec_of(tmp_path, trial, exclusive=True)]))[-1]
    assert last.state == State.FAILED
    assert str(Store(tmp_path).status(trial).cause).startswith("out of memory: ")


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        (LOST, True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_process_whose_gpu_context_is_lost_ends_and_the_next_one_reports_its_trial(
    text: str, is_lost: bool, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_that(monkeypatch, begun(), error=RuntimeError(text))
    spec = spec_of(tmp_path, trial, exclusive=True)
    made = in_process([spec])
    assert made.step()["event"].state == State.RUNNING
    if is_lost:  # Tune starts another process for a trial whose step raises.
        with pytest.raises(RuntimeError, match="illegal memory access"):
            made.step()
        (event,) = to_the_end(in_process([spec]))
    else:
        event = made.step()["event"]
    status = Store(tmp_path).status(trial)
    assert event.kind == EventKind.ENDED and event.state == status.state == State.FAILED
    assert event.cause == status.cause and text[:20] in str(event.cause)


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.DIVERGED, State.PRUNED])
def test_a_trial_with_a_result_is_reported_and_not_trained_again(
    state: State, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process died after the record was written, and before the driver heard of it."""
    spec = spec_of(tmp_path, trial)
    path = Path(spec.run_dir)
    if state == State.DONE:
        to_the_end(in_process([spec]))
    else:
        record_end(path, trial.config, state, "for a reason")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(trainer, "train", None)
    (event,) = to_the_end(in_process([spec]))
    assert (event.kind, event.state) == (EventKind.ENDED, state)
    assert event.cause == (None if state == State.DONE else "for a reason")
    assert event.iteration == (12 if state == State.DONE else 0)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_divergence_is_an_end_and_not_an_error(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = "loss/encoder is not finite at iteration 7"
    training_that(monkeypatch, Progress(7, 12, 0.0, "diverged", None, cause))
    (event,) = to_the_end(in_process([spec_of(tmp_path, trial)]))
    assert (event.kind, event.state) == (EventKind.ENDED, State.DIVERGED)
    assert (event.iteration, event.cause) == (7, cause)


def test_other_images_than_those_of_the_sweep_fail_and_leave_nothing_of_them(
    trial: Trial, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    path = store.trial_dir(trial.key)
    (event,) = to_the_end(in_process([spec_of(tmp_path, trial, fingerprint="expected")]))
    assert event.state == State.FAILED
    assert str(event.cause).startswith("data: ") and "expected" in str(event.cause)
    assert {file.name for file in path.iterdir()} == {"config.json", "result.json"}
    store.reset(trial, State.FAILED)  # With the right images again.
    made = in_process([spec_of(tmp_path, trial)])
    event = made.step()["event"]
    assert event.state == State.RUNNING
    made.cleanup()
    assert run_dir.read_provenance(path)["starts"] == [0]


def test_an_image_damaged_on_a_node_fails_its_trial_with_a_line_that_names_the_file(
    tmp_path: Path,
) -> None:
    trial = planned("esteps=1", dataset="folder", n_clusters=2).trials()[0]
    images, out = tmp_path / "images", tmp_path / "sweep"
    images.mkdir()
    (images / "half.jpg").write_bytes(b"\xff\xd8\xff")
    (event,) = to_the_end(in_process([spec_of(out, trial, data_dir=str(images))]))
    cause = str(Store(out).status(trial).cause)
    assert event.state == State.FAILED and event.cause == cause and "\n" not in cause
    assert cause.startswith(f"data: {images / 'half.jpg'} is not a sound image")


# -- stopping and pruning ------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1])
def test_a_stop_asked_for_closes_the_training_with_a_checkpoint(
    every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.01)
    (trial, _) = planned("esteps=1", iterations=10_000, eval_every=10_000).trials()
    often = {"checkpoint_seconds": 600.0, "checkpoint_iterations": every}
    made = in_process([spec_of(tmp_path, trial, **often)])
    event = made.step()["event"]
    assert event.state == State.RUNNING and event.iteration
    path = Store(tmp_path).trial_dir(trial.key)
    assert (path / run_dir.CHECKPOINT).exists() == (every is not None)
    made.cleanup()
    kept = run_dir.read_checkpoints(path)[0][0]
    assert kept.iteration >= event.iteration
    assert Store(tmp_path).status(trial).state == State.STOPPED


def test_a_trial_is_pruned_at_an_evaluation(trial: Trial, tmp_path: Path) -> None:
    made = in_process([spec_of(tmp_path, trial, prune=HOPELESS)])
    last = to_the_end(made)[-1]
    made.cleanup()
    assert (last.kind, last.state, last.iteration) == (EventKind.ENDED, State.PRUNED, 6)
    assert "at 6, worse than the median of earlier points, -1" in str(last.cause)
    status, path = Store(tmp_path).status(trial), Store(tmp_path).trial_dir(trial.key)
    assert (status.state, status.cause, status.iteration) == (State.PRUNED, last.cause, 6)
    assert last.row == run_dir.read_metrics(path)[-1]
    assert [row["iteration"] for row in run_dir.read_metrics(path)] == [6]
    assert not (path / run_dir.PREVIOUS_CHECKPOINT).exists()


def test_a_trial_that_passes_its_rule_is_not_pruned(trial: Trial, tmp_path: Path) -> None:
    rule = PruneRule("mse", False, {6: 1e9, 12: -1.0}, "worse than the median of")
    made = in_process([spec_of(tmp_path, trial, prune=rule)])
    assert to_the_end(made)[-1].state == State.DONE


@pytest.mark.parametrize("kept", ["none", "the one before", "one with the evaluation"])
def test_a_trial_killed_right_after_an_evaluation_is_pruned_all_the_same(
    kept: str, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever checkpoint the kill has left."""
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.0)
    at_once, out, later = tmp_path / "at-once", tmp_path / "killed", tmp_path / "later"
    to_the_end(in_process([spec_of(at_once, trial, prune=HOPELESS)]))
    killed = in_process([spec_of(out, trial, checkpoint_seconds=600.0 if kept == "none" else 0.0)])
    while (event := killed.step()["event"]).row is None:
        assert event.state == State.RUNNING
    if kept == "one with the evaluation":
        killed.step()
    shutil.copytree(out, later)
    killed.cleanup()
    events = to_the_end(in_process([spec_of(later, trial, prune=HOPELESS)]))
    assert len(events) == 1 or kept == "the one before"
    assert events[-1].state == State.PRUNED and events[-1].iteration == 6
    found, wanted = (evaluations(Store(o).trial_dir(trial.key)) for o in (later, at_once))
    assert found == wanted
    assert Store(later).status(trial).cause == Store(at_once).status(trial).cause


def test_a_pruned_trial_whose_news_was_lost_with_its_process_is_not_trained_on(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray runs it again, alone or with its group; its record is its end."""
    spec = spec_of(tmp_path, trial, prune=HOPELESS)
    first = to_the_end(in_process([spec]))[-1]
    before = run_dir.read_result(Store(tmp_path).trial_dir(trial.key))
    training_that(monkeypatch, begun(), error=AssertionError("trained on"))
    (again,) = to_the_end(in_process([spec]))
    assert (again.kind, again.state, again.cause) == (first.kind, first.state, first.cause)
    assert run_dir.read_result(Store(tmp_path).trial_dir(trial.key)) == before


# -- a remote ------------------------------------------------------------------------------------


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that serves as a remote; workers have their scratch folders beside it."""
    monkeypatch.setenv("MPCC_SCRATCH_DIR", str(tmp_path / "scratch"))
    Remote(str(tmp_path / "there")).prepare()
    return tmp_path / "there"


def test_what_a_worker_prunes_reaches_the_remote(trial: Trial, tmp_path: Path, there: Path) -> None:
    made = in_process([spec_of(tmp_path, trial, remote=str(there), prune=HOPELESS)])
    last = to_the_end(made)[-1]
    made.cleanup()
    status = Store(there).status(trial)
    assert (status.state, status.cause) == (State.PRUNED, last.cause)
    assert [row["iteration"] for row in run_dir.read_metrics(there / "trials" / trial.key)] == [6]


def test_a_record_that_the_remote_refuses_is_the_machines_fault_and_is_sent_later(
    trial: Trial, tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refuses = Remote.write, [True]

    def refused(self: Remote, name: str, data: bytes, *more: Any) -> None:
        if refuses and name.endswith(run_dir.RESULT):
            raise RemoteError("AWS Error ACCESS_DENIED during PutObject operation")
        write(self, name, data, *more)

    monkeypatch.setattr(Remote, "write", refused)
    spec = spec_of(tmp_path, trial, remote=str(there))
    first = in_process([spec])
    with pytest.raises(RemoteError, match="ACCESS_DENIED"):
        to_the_end(first)
    with pytest.raises(RemoteError):
        first.cleanup()
    assert Store(there).status(trial).state == State.STOPPED
    refuses.clear()
    second = in_process([spec])  # As Ray does.
    assert to_the_end(second)[-1].state == State.DONE
    second.cleanup()
    assert not list((tmp_path / "scratch").iterdir())
    assert equals_alone(there, trial, tmp_path)
