"""One trial of a sweep in a worker process, a step of about a second at a time.

The trial's run directory is the record; each step returns an event that informs the driver. Ray
runs a trial again when its process dies, and the trainer resumes from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.runs import run_dir
from mpcc.runs.files import BusyError, exclusive
from mpcc.runs.repair import repair
from tune.engine import faults
from tune.engine.cluster import not_ready
from tune.engine.spec import TrialSpec
from tune.plan.plan import TRIALS
from tune.plan.state import Event, EventKind, State
from tune.store.datasets import folder_on_node
from tune.store.folder import record_end
from tune.store.lock import trained_elsewhere
from tune.store.remote import Remote
from tune.store.transfer import Upload, download, scratch_dir

if TYPE_CHECKING:
    from mpcc.training.trainer import Progress

ATTEMPTS = 3
"""Attempts at a trial whose process dies, or that meets infrastructure errors."""
RETRY_SECONDS = 2.0
"""Wait after an infrastructure error before Ray tries again: a disk may have room by then."""
BUSY_SECONDS = 15.0
"""How long to wait for a process that trains the trial: a dead driver's worker ends in seconds."""


class TrialWorker:
    """A trial on its way from its last checkpoint to its result."""

    def __init__(self, spec: TrialSpec) -> None:
        """Prepare the trial; nothing is read or written yet."""
        self.spec = spec
        self._path = Path(spec.run_dir)
        self._scratch: Path | None = None
        self._upload: Upload | None = None
        self._lock = ExitStack()
        self._progress: Generator[Progress] | None = None

    def step(self) -> Event:
        """Train for about a second, or to the end of an evaluation.

        Raises an infrastructure error, for Ray to run the trial again.
        """
        try:
            if self._progress is None:
                event = self._open()
                if event is not None:
                    return event
            assert self._progress is not None
            progress = next(self._progress)
            if self._upload is not None:
                self._upload.send(patient=False)
            return self._event(progress)
        except Exception as error:  # The boundary of a trial: recorded here, or retried by Ray.
            with self._lock:
                return self._failed(error)

    def release(self) -> None:
        """Stop the training; the trainer writes a checkpoint.

        The node's copy of a run directory that lies on a remote is removed.
        """
        try:
            with self._lock:
                self._stop_training()
            if self._upload is not None:
                self._upload.send(patient=True)
        finally:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _open(self) -> Event | None:
        """Start or resume training; returns an event if the trial has ended or cannot run here."""
        spec = self.spec
        if spec.needs is not None:
            problem = not_ready(spec.needs, spec.config.dataset)
            if problem is not None:
                import ray

                kind, node = EventKind.HANDED_BACK, ray.get_runtime_context().get_node_id()
                return Event(spec.key, kind, State.PLANNED, cause=problem, node=node)
        keeper = trained_elsewhere(Path(spec.run_dir).parent.parent, spec.remote, spec.key)
        if keeper is not None:
            return Event(spec.key, EventKind.ELSEWHERE, cause=keeper)
        if spec.remote is not None:
            if self._upload is None:
                self._scratch = scratch_dir()
                self._path = self._scratch / TRIALS / spec.key
                self._upload = Upload(self._scratch, Remote(spec.remote), spec.key)
            self._upload.download()
        else:
            try:
                self._lock.enter_context(exclusive(self._path, BUSY_SECONDS))
            except BusyError:
                return Event(spec.key, EventKind.ELSEWHERE, cause="another process")
        if self._path.is_dir():  # A killed process may have left damaged files.
            repair(self._path, spec.config, spec.fingerprint)
        run_dir.open_run(self._path, spec.config)
        event = self._ended() or self._prune()
        if event is None:
            self._progress = self._train()
        return event

    def _ended(self) -> Event | None:
        """Return the trial's end if it has a result, which an earlier process may have written."""
        result = run_dir.read_result(self._path)
        if result is None:
            return None
        rows = run_dir.read_metrics(self._path)
        self._finish()
        state, iteration = State(result["state"]), int(result.get("iteration") or 0)
        last, cause = rows[-1] if rows else None, result.get("cause")
        return Event(self.spec.key, EventKind.ENDED, state, iteration, last, cause)

    def _trained(self) -> Path | None:
        """A finished trial's folder with the same model; None once this trial has a checkpoint."""
        if (self._path / run_dir.CHECKPOINT).exists():
            return None
        for key in self.spec.same_model:
            path = self._path.parent / key
            if self._scratch is not None and self.spec.remote is not None:
                download(Remote(self.spec.remote), self._scratch, key)
            with suppress(run_dir.RunDirError):
                result = run_dir.read_result(path) or {}
                if result.get("state") == State.DONE and (path / run_dir.CHECKPOINT).exists():
                    return path
        return None

    def _train(self) -> Generator[Progress]:
        import torch

        from mpcc.training.trainer import train

        spec = self.spec
        torch.set_num_threads(spec.config.cpu_threads)
        return train(
            spec.config,
            self._path,
            data_dir=folder_on_node(spec.data_dir, spec.config.dataset),
            device=spec.device,
            checkpoint_seconds=spec.checkpoint_seconds,
            checkpoint_iterations=spec.checkpoint_iterations,
            fingerprint=spec.fingerprint,
            trained=self._trained(),
        )

    def _event(self, progress: Progress) -> Event:
        """Return the event of a step, and finish the record of a trial that has ended."""
        key, state, row = self.spec.key, State(progress.state), progress.metrics
        if state == State.RUNNING:
            pruned = self._prune() if row is not None else None
            return pruned or Event(key, EventKind.PROGRESS, state, progress.iteration, row)
        self._finish()
        return Event(key, EventKind.ENDED, state, progress.iteration, row, progress.cause)

    def _prune(self) -> Event | None:
        """Record the trial as pruned if one of its evaluations is beyond its rule's bound."""
        rule = self.spec.prune
        cause = None if rule is None else rule.cause(run_dir.read_metrics(self._path))
        if cause is None:
            return None
        self._stop_training()
        record_end(self._path, self.spec.config, State.PRUNED, cause)
        return self._ended()

    def _failed(self, error: Exception) -> Event:
        """Record an error of the trial's own; raise an infrastructure error again."""
        self._stop_training()
        cause, spec = faults.trial_cause(error), self.spec
        if cause is None:
            time.sleep(RETRY_SECONDS)
            raise error
        if not spec.exclusive and cause.startswith(faults.OUT_OF_MEMORY):
            return Event(spec.key, EventKind.EXCLUSIVE, State.PLANNED, cause=cause)
        process_is_lost = faults.is_device_fault(error)
        if not (process_is_lost and spec.co_located):  # Any trial of a group may be at fault.
            record_end(self._path, spec.config, State.FAILED, cause)
            self._finish()
        if process_is_lost:
            raise error  # Ray starts another process for the trial, which reports its result.
        return Event(spec.key, EventKind.ENDED, State.FAILED, cause=cause)

    def _stop_training(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.close()

    def _finish(self) -> None:
        """Delete the files that only a running trial needs, and upload the record."""
        with self._lock:
            self._progress = None
            (self._path / run_dir.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
        if self._upload is not None:
            self._upload.send(patient=True)


class GroupWorker:
    """Several trials side by side in this process on one device; the end of one leaves the others
    running."""

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        from mpcc.fast.together import side_by_side

        self._open = {spec.key for spec in specs}
        runs = {spec.key: _events(TrialWorker(spec)) for spec in specs}
        self._news = side_by_side(runs, specs[0].device)

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return not self._open

    def step(self) -> Event:
        """Return the next event of any of the trials; raises as `TrialWorker.step`."""
        key, event = next(self._news)
        if isinstance(event, Exception):
            self._news.close()
            raise event
        if event.ends:
            self._open.discard(key)
        return event

    def release(self) -> None:
        """Close every trial; each writes a checkpoint."""
        self._news.close()


def _events(worker: TrialWorker) -> Generator[Event]:
    """Yield every event of a trial; if this is closed early, the trial writes a checkpoint."""
    try:
        ended = False
        while not ended:
            event = worker.step()
            ended = event.ends
            yield event
    finally:
        worker.release()
