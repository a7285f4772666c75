"""The engine: trials are submitted, events come out of its queue; Ray and Tune work in between.

A sweep is a Ray Tune run of `MPCCTrainable` in a thread of the engine's own. The thread starts Ray,
asks the nodes whether they are ready, and runs Tune until the engine is closed.
"""

from __future__ import annotations

import logging
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tune.engine import environment
from tune.engine.cluster import JoinedCluster
from tune.engine.events import Event, EventKind, NodeNeeds, TrialSpec
from tune.engine.head import EngineError, LocalHead
from tune.engine.settings import DEFAULT_GPU_SHARE, Settings
from tune.plan.cells import Trial

if TYPE_CHECKING:
    from tune.engine.tune_run import EventCallback, StopRequest, TrialQueue

SILENT_SECONDS = 4 * 3600.0
"""Without an event from any running trial Ray counts as hung. Trials report every second, but for
the time of an evaluation: the 50,000 images of IS, FID and KID take over an hour on a slow CPU."""


class Engine:
    """Runs trials on this machine or on a cluster; a context manager around one sweep."""

    def __init__(
        self, settings: Settings, trials: Sequence[Trial], log: Callable[[str], None]
    ) -> None:
        """`trials` are those known at the start; they decide threads, room and what nodes need."""
        self._settings, self._trials, self._log = settings, list(trials), log
        self._threads = max(trial.config.cpu_threads for trial in trials)
        self._cpus = settings.cpus or float(self._threads)
        self._gpus = 0.0
        self._needs: NodeNeeds | None = None
        self._connection: LocalHead | JoinedCluster = (
            LocalHead() if settings.local else JoinedCluster(settings.address)
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._early: list[TrialSpec] = []
        self._lock = threading.Lock()
        self._queue: TrialQueue | None = None
        self._callback: EventCallback | None = None
        self._stop: StopRequest | None = None
        self._closed = self._killed = False
        self._running: set[str] = set()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.error: BaseException | None = None
        """What ended the engine before it was closed."""

    def __enter__(self) -> Engine:
        if isinstance(self._connection, LocalHead):
            self._connection.start(self._room())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._killed and self.problem() is None:
            self.close()
        else:
            self.kill()

    def submit(self, spec: TrialSpec) -> None:
        """Run a trial as soon as there is room for it."""
        with self._lock:
            if self._queue is None:
                self._early.append(spec)
                return
            assert self._callback is not None
            self._callback.reopen(spec.key)
            self._queue.put(spec)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event; None where there is none within so many seconds."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self._heard = time.monotonic()
        if event.kind in (EventKind.STARTED, EventKind.PROGRESS):
            self._running.add(event.key)
        else:
            self._running.discard(event.key)
        return event

    def stop(self) -> bool:
        """Ask every trial to write a checkpoint and stop; `finished` says when they have.

        Returns False where no trial has started yet.
        """
        with self._lock:
            self._closed = True
            if self._stop is None:
                return False
            self._stop.ask()
            return True

    def problem(self) -> str | None:
        """Return in words why no event will come any more; None while the engine is well."""
        if self.error is not None:
            return " ".join(str(self.error).split())[:200] or type(self.error).__name__
        found = self._connection.problem()
        if found is None and not self._running:
            self._heard = time.monotonic()
        if found is None and time.monotonic() - self._heard > SILENT_SECONDS:
            return f"no trial has reported for {SILENT_SECONDS / 3600:g} hours"
        return found

    @property
    def finished(self) -> bool:
        """Whether Tune has ended, so that no event comes but those already in the queue."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """End Tune once the submitted trials have ended, and then Ray."""
        with self._lock:
            self._closed = True
            if self._queue is not None:
                self._queue.closed = True
        self._thread.join()
        self._connection.stop()

    def kill(self) -> None:
        """End Ray at once; checkpoints that were written stay."""
        self._killed = True
        self._connection.kill()

    def _room(self) -> float:
        """Cores that the trials can use at the same time, at least those of one trial."""
        return self._cpus * (self._settings.max_concurrent or len(self._trials))

    def _run(self) -> None:
        """Start Ray, check the nodes, run Tune: the engine's thread."""
        folder = Path(tempfile.mkdtemp(prefix="mpcc-tune-run-"))
        try:
            self._connection.connect(environment.worker_variables(self._settings, self._threads))
            self._prepare()
            self._tune(folder)
        except BaseException as error:  # Raised again by the loop, in its own thread.
            self.error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self) -> None:
        """Learn what Ray has, and raise EngineError where it cannot run these trials."""
        import ray

        settings, n_gpus = self._settings, float(ray.cluster_resources().get("GPU", 0))
        self._gpus = settings.gpus if settings.gpus is not None else 0.0
        if settings.gpus is None and n_gpus:
            self._gpus = DEFAULT_GPU_SHARE
        if settings.trials_per_gpu and self._gpus:
            self._gpus = 1.0
        self._n_gpus = max(1, int(n_gpus))
        if not settings.local:
            self._check_nodes()
        if self._fits_a_node():
            return
        if settings.local:
            raise EngineError(
                f"--gpus-per-trial {self._gpus:g}: this machine has {n_gpus:g} GPUs for us, so "
                "that no trial could ever start; give fewer, or a cluster by --address"
            )
        size = f"{self._cpus:g} cores and {self._gpus:g} GPUs"
        self._log(f"no machine has {size} for a trial yet; waiting for one to join")

    def _check_nodes(self) -> None:
        from tune.engine import nodes

        settings = self._settings
        self._needs = nodes.needs_of(self._trials, settings.out, settings.remote, settings.data_dir)
        lacking = nodes.ask_nodes(self._needs, self._log)
        if lacking:
            text = "; ".join(f"{node} {problem}" for node, problem in lacking.items())
            raise EngineError(f"not every machine is ready: {text}")

    def _fits_a_node(self) -> bool:
        import ray

        return any(
            node["Resources"].get("CPU", 0) >= self._cpus
            and node["Resources"].get("GPU", 0) >= self._gpus
            for node in ray.nodes()
            if node["Alive"]
        )

    def _tune(self, folder: Path) -> None:
        from ray import tune

        from tune.engine.trainable import SWEEP, MPCCTrainable
        from tune.engine.tune_run import EventCallback, StopRequest, TrialQueue, tuner_of

        cpus, gpus = self._cpus, self._gpus  # The function is pickled, and this object cannot be.

        def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            exclusive = config[SWEEP][0].exclusive
            return tune.PlacementGroupFactory(
                [{"CPU": cpus, "GPU": 1.0 if exclusive and gpus else gpus}]
            )

        group_size = self._group_size()
        limit, together = self._settings.max_concurrent, self._settings.trials_per_gpu
        if isinstance(together, int) and not self._gpus:
            limit = min(together, limit or together)
        with self._lock:
            self._queue = TrialQueue(self._completed, group_size, self._n_gpus)
            self._callback = EventCallback(self._events.put)
            self._stop = StopRequest()
            for spec in self._early:
                self._queue.put(spec)
            self._queue.closed = self._closed
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        tuner_of(
            tune.with_resources(MPCCTrainable, resources),
            self._queue,
            self._callback,
            self._stop,
            limit,
            folder,
        ).fit()

    def _completed(self, spec: TrialSpec) -> TrialSpec:
        """Return the specification with what only the engine knows."""
        return replace(spec, needs=self._needs, device="auto" if self._gpus else "cpu")

    def _group_size(self) -> int:
        """Return how many trials share a GPU: as given, or measured on one of the machines."""
        together = self._settings.trials_per_gpu
        if not together or not self._gpus:
            return 1
        if isinstance(together, int):
            return together
        from tune.engine.groups import measured

        try:
            size = measured(self._trials[0].config, self._settings.data_dir)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise EngineError(
                f"--trials-per-gpu auto could not be measured ({text}); give a number"
            ) from None
        self._log(f"{size} trials at a time on a GPU, by its memory and speed")
        return size
