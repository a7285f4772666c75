"""How trials get into Tune and events out of it: a Searcher, a Callback, a Stopper."""

from __future__ import annotations

import math
import os
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from mpcc.config import Config
from mpcc.shell import message_of
from tune.engine import faults
from tune.engine.spec import TrialSpec
from tune.engine.trainable import EVENT, SWEEP, MPCCTrainable
from tune.engine.worker import ATTEMPTS
from tune.plan.state import Event, EventKind, State

STOP_ALL_SECONDS = 2.0
"""How long Tune waits after a stop request for each trial's next result; then it stops the rest."""


class TrialQueue(Searcher):
    """Hands submitted trials to Tune as it has room, in groups that share a process."""

    def __init__(self, grouped: Callable[[list[TrialSpec]], list[list[TrialSpec]]]) -> None:
        """grouped: makes groups of the trials that were submitted since its last call."""
        super().__init__()
        self._grouped = grouped
        self._specs: queue.SimpleQueue[list[TrialSpec]] = queue.SimpleQueue()
        """One list per `submit` call; an empty list means that the queue is closed."""
        self._groups: deque[list[TrialSpec]] = deque()
        self._live: set[str] = set()
        self._closed = False
        self.stopped = False
        """Whether no further trial may start."""

    def put(self, specs: list[TrialSpec]) -> None:
        """Add trials; any thread may call this."""
        self._specs.put(specs)

    def close(self) -> None:
        """Close the queue: no further trial will be submitted; any thread may call this."""
        self._specs.put([])

    def suggest(self, trial_id: str) -> Any:
        """Return the next group; None while there is none, FINISHED once the queue is closed.

        Waits for one if Tune has no trial: Tune itself would ask again in steps of a second.
        """
        specs: list[TrialSpec] = []
        while not self._groups and not (self._specs.empty() and (specs or self._live)):
            if self._specs.empty() and self._closed:
                break
            more = self._specs.get()
            self._closed |= not more
            specs += more
        self._groups.extend(self._grouped(specs))
        if self._groups and not self.stopped:
            self._live.add(trial_id)
            return {SWEEP: self._groups.popleft()}
        return Searcher.FINISHED if self._closed or self.stopped else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Forget a trial that Tune has ended; its events tell how it ended."""
        self._live.discard(trial_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: Tune's own state of a sweep is never read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as nothing: Tune keeps a copy that nobody reads."""
        return Searcher, ()


def grouped(specs: Sequence[TrialSpec], size: int, n_gpus: int) -> list[list[TrialSpec]]:
    """Return the trials in groups of at most `size` that may share a process, in their order.

    The groups are as even as possible, because the last trial of a group keeps a whole GPU to
    itself; there are enough groups to keep every GPU busy. An exclusive trial is a group by itself.
    """
    kinds: dict[Any, list[TrialSpec]] = {}
    for spec in specs:
        own_group = spec.key if size == 1 or spec.exclusive else None
        kinds.setdefault((own_group, spec.config.process_settings), []).append(spec)
    groups = []
    for kind in kinds.values():
        n = max(math.ceil(len(kind) / size), min(n_gpus, len(kind)))
        n = min(len(kind), n_gpus * math.ceil(n / n_gpus))
        bounds = [len(kind) * i // n for i in range(n + 1)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            groups.append([replace(spec, co_located=end - start > 1) for spec in kind[start:end]])
    return groups


def measured_group_size(config: Config, data_dir: Path | str | None) -> int:
    """Return how many trials like this one are trained fastest in one process on a GPU."""
    import ray

    @ray.remote(num_cpus=0, num_gpus=1, max_retries=0)
    def measure() -> int:
        import torch

        from mpcc.data.image_set import load
        from mpcc.fast.together import n_trials_for
        from tune.store.datasets import folder_on_node

        images = load(config, folder_on_node(data_dir, config.dataset))
        return n_trials_for(config, images, torch.device("cuda"))

    return int(ray.get(measure.remote()))


class EventCallback(Callback):
    """Puts Tune's reports into the engine's queue, as events of single trials."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        self._put = put
        self._ended: set[tuple[str, str]] = set()
        """(Tune's trial id, our key) of each end; a resubmitted trial has a new id."""
        self._attempts: Counter[str] = Counter()
        """Tune's trial id -> how often a process started the trial."""
        self._early_failures: Counter[str] = Counter()
        """Key -> how often Tune failed the trial before its attempts were used up."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report each trial of the group as started."""
        self._attempts[trial.trial_id] += 1
        for spec in self._open(trial):
            self._put(Event(spec.key, EventKind.STARTED))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass the worker's event on, except ends that a restarted group repeats."""
        event = result[EVENT]
        known = (trial.trial_id, event.key)
        if known in self._ended:
            return
        if event.ends:
            self._ended.add(known)
        self._put(event)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report trials without an end as stopped: they were asked to stop."""
        for spec in self._open(trial):
            self._put(Event(spec.key, EventKind.STOPPED, State.STOPPED))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report trials that Tune has failed after its attempts.

        If a process dies between two trials, Tune counts up to three failures of the next one,
        which no process has started, and calls this: that trial is submitted again.
        """
        cause, text = error_of(trial)
        early = self._attempts[trial.trial_id] < ATTEMPTS
        for spec in self._open(trial):
            self._early_failures[spec.key] += early
            if early and self._early_failures[spec.key] <= ATTEMPTS:
                event = Event(spec.key, EventKind.HANDED_BACK, State.PLANNED, cause=text)
            elif cause is None:
                event = Event(spec.key, EventKind.STOPPED, State.STOPPED, cause=text)
            elif spec.co_located:  # Each runs alone next, which shows which one failed.
                event = Event(spec.key, EventKind.EXCLUSIVE, State.PLANNED, cause=cause)
            else:
                event = Event(
                    spec.key, EventKind.ENDED, State.FAILED, cause=cause, failed_by_engine=True
                )
            self._put(event)

    def _open(self, trial: Any) -> list[TrialSpec]:
        """Return the specifications of a Tune trial that have not ended."""
        specs: list[TrialSpec] = trial.config[SWEEP]
        return [spec for spec in specs if (trial.trial_id, spec.key) not in self._ended]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as nothing: Tune keeps a copy that nobody reads."""
        return Callback, ()


class StopRequest(Stopper):
    """Once asked, stops each trial at its next result, or after STOP_ALL_SECONDS without one."""

    def __init__(self) -> None:
        self._since = math.inf

    def ask(self) -> None:
        """Ask all trials to stop."""
        self._since = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._since < math.inf

    def stop_all(self) -> bool:
        """Return whether trials that have returned no result since must stop as well."""
        return time.monotonic() - self._since > STOP_ALL_SECONDS


def error_of(trial: Any) -> tuple[str | None, str]:
    """Return (cause, text) for a trial that Tune has failed.

    The cause is None if the infrastructure was at fault.
    """
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # The record may be torn by a full disk; any cause is unknown then.
        return None, "Ray gave it up"
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return faults.trial_cause(cause), message_of(cause)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if faults.is_out_of_memory(error):
        return f"{faults.OUT_OF_MEMORY}: {text}", text
    if "node has died" in str(error):
        return None, "its machine was lost again and again"
    return f"killed: its process died {ATTEMPTS} times", text


def tuner_of(
    trial_queue: TrialQueue,
    callback: EventCallback,
    stop: StopRequest,
    size: tuple[float, float],
    max_concurrent: int | None,
    storage: Path,
) -> tune.Tuner:
    """Return the Tune run of a sweep; nothing that it stores is needed again.

    size: the cores and GPUs of a trial. One that ran out of memory beside others gets a whole GPU.
    """
    cpus, gpus = size

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        spec = config[SWEEP][0]
        bundle = {"CPU": cpus, "GPU": max(1.0, gpus) if spec.exclusive and gpus else gpus}
        elsewhere = {"ray.io/node-id": f"!in({','.join(spec.avoided_nodes)})"}
        selectors = [elsewhere] if spec.avoided_nodes else None
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=selectors)

    return tune.Tuner(
        tune.with_resources(MPCCTrainable, resources),
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
