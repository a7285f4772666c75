"""Trials on their way into Tune, and events on their way out: a Searcher, a Callback, a Stopper."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from tune.engine import faults
from tune.engine.events import Event, EventKind, TrialSpec
from tune.engine.trainable import EVENT, SWEEP
from tune.engine.worker import ATTEMPTS, ends
from tune.plan.state import State

STOP_ALL_SECONDS = 2.0
"""After a stop is asked for: how long trials have to end with a result before they are told to."""


class TrialQueue(Searcher):
    """Hands submitted trials to Tune as it has room, in groups that share a process."""

    def __init__(self, prepare: Callable[[TrialSpec], TrialSpec], group_size: int, n_gpus: int):
        """`prepare` adds what the engine knows to a specification when the trial starts."""
        super().__init__()
        self._prepare, self._group_size, self._n_gpus = prepare, group_size, n_gpus
        self._specs: queue.SimpleQueue[TrialSpec] = queue.SimpleQueue()
        self._groups: deque[list[TrialSpec]] = deque()
        self.closed = False

    def put(self, spec: TrialSpec) -> None:
        """Add a trial; any thread may call this."""
        self._specs.put(spec)

    def suggest(self, trial_id: str) -> Any:
        """Return the next group; None while there is none, FINISHED once the queue is closed."""
        closed = self.closed  # Before the queue is read, so that nothing put before it is lost.
        if not self._groups:
            self._groups.extend(self._new_groups())
        if self._groups:
            group = self._groups.popleft()
            shared = len(group) > 1
            return {SWEEP: [replace(self._prepare(spec), co_located=shared) for spec in group]}
        return Searcher.FINISHED if closed else None

    def _new_groups(self) -> list[list[TrialSpec]]:
        specs = []
        while not self._specs.empty():
            specs.append(self._specs.get())
        return grouped(specs, self._group_size, self._n_gpus)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: events say how a trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: Tune's own state of a sweep is never read again."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, for the same reason."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing, for the same reason."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as nothing: Tune keeps a copy that nobody reads."""
        return Searcher, ()


def grouped(specs: Sequence[TrialSpec], size: int, n_gpus: int) -> list[list[TrialSpec]]:
    """Return the trials in groups of at most `size` that may share a process, in their order.

    The groups are as even as possible, since the last trial of one keeps a whole GPU, and there are
    as many as keep every GPU busy. An exclusive trial is a group of its own.
    """
    kinds: dict[Any, list[TrialSpec]] = {}
    for spec in specs:
        alone = spec.key if size == 1 or spec.exclusive else None
        kinds.setdefault((alone, spec.config.of_the_process), []).append(spec)
    groups = []
    for kind in kinds.values():
        n = max(math.ceil(len(kind) / size), min(n_gpus, len(kind)))
        n = min(len(kind), n_gpus * math.ceil(n / n_gpus))
        bounds = [len(kind) * i // n for i in range(n + 1)]
        groups += [kind[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return groups


class EventCallback(Callback):
    """Puts what happens in Tune into the engine's queue, as events of single trials."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        self._put = put
        self._ended: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report each trial of the group as started."""
        for spec in self._open(trial):
            self._put(Event(spec.key, EventKind.STARTED))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass the worker's event on; a group that was run again repeats ends."""
        event = result[EVENT]
        if event.key in self._ended:
            return
        if ends(event):
            self._ended.add(event.key)
        self._put(event)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report what has no end yet as stopped: it was asked to stop."""
        for spec in self._open(trial):
            self._put(Event(spec.key, EventKind.STOPPED, State.STOPPED))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report what Tune gave up after its attempts."""
        cause, text = error_of(trial)
        open_ = self._open(trial)
        for spec in open_:
            if cause is None:
                event = Event(spec.key, EventKind.STOPPED, State.STOPPED, cause=text)
            elif spec.co_located:  # Which of the group it was shows when each runs exclusively.
                event = Event(spec.key, EventKind.EXCLUSIVE, State.PLANNED, cause=cause)
            else:
                event = Event(
                    spec.key, EventKind.ENDED, State.FAILED, cause=cause, failed_by_engine=True
                )
            self._put(event)

    def _open(self, trial: Any) -> list[TrialSpec]:
        """Return the specifications of a Tune trial that have not ended."""
        return [spec for spec in trial.config[SWEEP] if spec.key not in self._ended]

    def reopen(self, key: str) -> None:
        """Take events of a trial again, because it was submitted again."""
        self._ended.discard(key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as nothing: Tune keeps a copy that nobody reads."""
        return Callback, ()


class StopRequest(Stopper):
    """Stops every trial at its next result once it is asked to, and soon after in any case."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._since = 0.0

    def ask(self) -> None:
        """Ask all trials to stop."""
        self._since = time.monotonic()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked.is_set()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.asked

    def stop_all(self) -> bool:
        """Return whether trials that returned no result since are to be stopped as well."""
        return self.asked and time.monotonic() - self._since > STOP_ALL_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a new request: Tune keeps a copy that nobody reads."""
        return StopRequest, ()


def error_of(trial: Any) -> tuple[str | None, str]:
    """Return the cause of a trial that Tune gave up, None for the infrastructure; and the text."""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # The record may be torn by a full disk; any cause is unknown then.
        return None, "Ray gave it up"
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return faults.trial_cause(cause), " ".join(str(cause).split())
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if faults.is_out_of_memory(error):
        return f"{faults.OUT_OF_MEMORY}: {text}", text
    if "node has died" in str(error):
        return None, "its machine was lost again and again"
    return f"killed: its process died {ATTEMPTS} times", text


def tuner_of(
    trainable: Any,
    trial_queue: TrialQueue,
    callback: EventCallback,
    stop: StopRequest,
    max_concurrent: int | None,
    storage: Path,
) -> tune.Tuner:
    """Return the Tune run of a sweep; nothing that it stores is needed again."""
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            search_alg=trial_queue,
            num_samples=10**9,
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda trial: trial.config[SWEEP][0].key,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{os.getpid()}",
            storage_path=str(storage),
            verbose=0,
            stop=stop,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
