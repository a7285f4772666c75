"""The engine: the loop submits trials and receives events; Ray and Tune run the trials.

A sweep is a Ray Tune run of `MPCCTrainable` in a thread of the engine's own. The thread connects to
Ray, asks the nodes whether they are ready, and runs Tune until the engine is closed.
"""

from __future__ import annotations

import logging
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.machine import usable_cores
from mpcc.shell import message_of
from tune.engine import cluster, environment
from tune.engine.head import EngineError, LocalHead
from tune.engine.spec import DEFAULT_GPU_SHARE, NodeNeeds, Settings, TrialSpec
from tune.plan.cells import Trial
from tune.plan.state import Event
from tune.store.transfer import scratch_dir

if TYPE_CHECKING:
    from tune.engine.tune_run import EventCallback, StopRequest, TrialQueue

SILENT_SECONDS = 4 * 3600.0
"""If no running trial reports for this long, Ray counts as hung. Trials report every second, except
during an evaluation: the 50,000 images of IS, FID and KID take over an hour on a slow CPU."""


class Engine:
    """Runs trials on this machine or on a cluster; a context manager around one sweep."""

    def __init__(
        self,
        settings: Settings,
        trials: Sequence[Trial],
        log: Callable[[str], None],
        n_trials: int = 0,
    ) -> None:
        """trials: those known at the start; they decide threads and what nodes need.

        n_trials: the total number, with those that a search will still suggest.
        """
        self._settings, self._trials, self._log = settings, list(trials), log
        self._n_trials = max(n_trials, len(trials))
        self._threads = max(trial.config.cpu_threads for trial in trials)
        self._cpus = settings.cpus or float(self._threads)
        self._gpus, self._n_gpus, self._group_size = 0.0, 1, 1
        self._needs: NodeNeeds | None = None
        variables = environment.worker_variables(settings, self._threads)
        self._connection: LocalHead | cluster.ClusterConnection = (
            LocalHead(variables)
            if settings.local
            else cluster.ClusterConnection(settings.address, variables)
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._queue: TrialQueue
        self._stop: StopRequest
        self._killed = False
        self._running: set[str] = set()
        self._avoided: frozenset[str] = frozenset()
        """Nodes on which no further trial may start."""
        self._heard = time.monotonic()
        self._thread: threading.Thread
        self.error: BaseException | None = None
        """The error that ended the engine before it was closed."""

    def __enter__(self) -> Engine:
        if isinstance(self._connection, LocalHead):
            at_once = self._settings.max_concurrent or self._n_trials
            room = min(self._cpus * at_once, usable_cores())
            self._connection.start(math.ceil(max(self._cpus, room)))
        from tune.engine.tune_run import EventCallback, StopRequest, TrialQueue

        self._queue, self._stop = TrialQueue(self._grouped), StopRequest()
        callback = EventCallback(self._events.put)
        self._thread = threading.Thread(
            target=self._run, args=(callback,), name="engine", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._killed and self.problem() is None:
            self.close()
        else:
            self.kill()

    def submit(self, *specs: TrialSpec) -> None:
        """Run trials as soon as there is room for them; trials of one call may share a process."""
        if specs:
            self._queue.put(list(specs))

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event; None if there is none within `timeout` seconds."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self._heard = time.monotonic()
        if event.ends:
            self._running.discard(event.key)
        else:
            self._running.add(event.key)
        if event.node is not None and event.node not in self._avoided:
            self._log(f"{event.cause}; trials run on other machines")
            self._avoided |= {event.node}
        return event

    def reset_silence(self) -> None:
        """Restart the silence timer: only other processes train trials now."""
        self._heard = time.monotonic()

    def stop(self) -> bool:
        """Ask every trial to write a checkpoint and stop; `finished` says when they have.

        Returns False if no trial is running.
        """
        self._queue.stopped = True  # Else Tune starts another trial in the place of a stopped one.
        self._queue.close()
        self._stop.ask()
        return bool(self._running)

    def problem(self) -> str | None:
        """Return why no further event will come; None while the engine works."""
        if self.error is not None:
            return message_of(self.error, 200)
        found = self._connection.problem()
        if found is None and not self._running and not self._settings.local:
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
        self._queue.close()
        while not self.finished and self.problem() is None:
            self._thread.join(0.2)
        self._connection.stop()

    def kill(self) -> None:
        """End Ray at once; checkpoints that were written stay."""
        self._killed = True
        self._connection.kill()

    def _run(self, callback: EventCallback) -> None:
        """Connect to Ray, check the nodes, run Tune: the engine's thread."""
        folder = scratch_dir()
        try:
            self._connection.connect()
            self._prepare()
            self._tune(callback, folder)
        except BaseException as error:  # The loop raises an EngineError and logs any other.
            self.error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self) -> None:
        """Choose GPU shares and groups by Ray's resources; EngineError if no trial could start."""
        import ray

        settings = self._settings
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        n_gpus = float(resources.get("GPU", 0))
        self._n_gpus = max(1, int(n_gpus))
        self._gpus = settings.gpus or 0.0
        if settings.gpus is None and n_gpus:
            self._gpus = 1.0 if settings.trials_per_gpu else DEFAULT_GPU_SHARE
        if not settings.local:
            self._needs = cluster.needs_of(self._trials, settings)
            cluster.check_nodes(self._needs, self._log)
        if not self._fits_a_node():
            if settings.local:
                raise EngineError(
                    f"--gpus-per-trial {self._gpus:g}: only {n_gpus:g} GPUs are available here, so "
                    "no trial could start; ask for fewer, or use a cluster with --address"
                )
            size = f"{self._cpus:g} cores and {self._gpus:g} GPUs"
            self._log(f"no machine has {size} for a trial yet; waiting for one to join")
        if settings.trials_per_gpu and self._gpus:
            self._group_size = self._trials_per_gpu()

    def _fits_a_node(self) -> bool:
        return any(
            node["Resources"].get("CPU", 0) >= self._cpus
            and node["Resources"].get("GPU", 0) >= self._gpus
            for node in cluster.alive_nodes()
        )

    def _trials_per_gpu(self) -> int:
        """Return how many trials share a GPU: as given, or measured on one of the machines."""
        from tune.engine.tune_run import measured_group_size

        if isinstance(self._settings.trials_per_gpu, int):
            return self._settings.trials_per_gpu
        try:
            size = measured_group_size(self._trials[0].config, self._settings.data_dir)
        except Exception as error:
            text = message_of(error, 200)
            raise EngineError(
                f"--trials-per-gpu auto could not be measured ({text}); give a number"
            ) from None
        self._log(f"{size} trials share each GPU (measured by memory and speed)")
        return size

    def _tune(self, callback: EventCallback, folder: Path) -> None:
        from tune.engine.tune_run import tuner_of

        limit, together = self._settings.max_concurrent, self._settings.trials_per_gpu
        if isinstance(together, int) and not self._gpus:
            limit = min(together, limit or together)
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        size = (self._cpus, self._gpus)
        tuner_of(self._queue, callback, self._stop, size, limit, folder).fit()

    def _grouped(self, specs: Sequence[TrialSpec]) -> list[list[TrialSpec]]:
        """Return the trials as groups that share a process, with their device and their nodes."""
        from tune.engine.tune_run import grouped

        device = "auto" if self._gpus else "cpu"
        avoided = tuple(self._avoided)
        ready = [
            replace(spec, needs=self._needs, device=device, avoided_nodes=avoided) for spec in specs
        ]
        return grouped(ready, self._group_size, self._n_gpus)
