"""Trials on their way into Tune, and events on their way out: a Searcher, a Callback, a Stopper."""

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
        """`grouped` makes groups of the trials that have been submitted since it was last asked."""
        super().__init__()
        self._grouped = grouped
        self._specs: queue.SimpleQueue[list[TrialSpec]] = queue.SimpleQueue()
        """What was submitted at a time; nothing says that the queue is closed."""
        self._groups: deque[list[TrialSpec]] = deque()
        self._live: set[str] = set()
        self._closed = False
        self.stopped = False
        """Whether trials that are not running yet are not to start any more."""

    def put(self, specs: list[TrialSpec]) -> None:
        """Add trials; any thread may call this."""
        self._specs.put(specs)

    def close(self) -> None:
        """Say that no trial will be submitted any more; any thread may call this."""
        self._specs.put([])

    def suggest(self, trial_id: str) -> Any:
        """Return the next group; None while there is none, FINISHED once the queue is closed.

        Waits for one where Tune has no trial: Tune itself would look again in steps of a second.
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
        """Note that Tune has a trial less; events say how it ended."""
        self._live.discard(trial_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: Tune's own state of a sweep is never read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as nothing: Tune keeps a copy that nobody reads."""
        return Searcher, ()


def grouped(specs: Sequence[TrialSpec], size: int, n_gpus: int) -> list[list[TrialSpec]]:
    """Return the trials in groups of at most `size` that may share a process, in their order.

    The groups are as even as possible, because the last trial of a group keeps a whole GPU to
    itself; there are enough groups to keep every GPU busy. An exclusive trial is alone in its own.
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
        for start, end in zip(bounds, bounds[1:], strict=False):
            groups.append([replace(spec, co_located=end - start > 1) for spec in kind[start:end]])
    return groups


def measured_group_size(config: Config, data_dir: Path | str | None) -> int:
    """Return how many trials like this one make the most of a GPU that they share."""
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
    """Puts what happens in Tune into the engine's queue, as events of single trials."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        self._put = put
        self._ended: set[tuple[str, str]] = set()
        """(Tune's trial id, our key) of each end; a resubmitted trial has a new id."""
        self._attempts: Counter[str] = Counter()
        """Tune's trial id -> how often a process took the trial up."""
        self._given_up: Counter[str] = Counter()
        """Key -> how often Tune gave the trial up before its attempts were used."""

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
        """Report what has no end yet as stopped: it was asked to stop."""
        for spec in self._open(trial):
            self._put(Event(spec.key, EventKind.STOPPED, State.STOPPED))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report what Tune gave up after its attempts.

        Where a process dies between two trials, Tune counts up to three failures of the next one,
        which no process has taken up, and calls this: that trial is submitted again.
        """
        cause, text = error_of(trial)
        early = self._attempts[trial.trial_id] < ATTEMPTS
        for spec in self._open(trial):
            self._given_up[spec.key] += early
            if early and self._given_up[spec.key] <= ATTEMPTS:
                event = Event(spec.key, EventKind.HANDED_BACK, State.PLANNED, cause=text)
            elif cause is None:
                event = Event(spec.key, EventKind.STOPPED, State.STOPPED, cause=text)
            elif spec.co_located:  # Each runs alone next, which shows which one it was.
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
    """Stops every trial at its next result once it is asked to, and soon after in any case."""

    def __init__(self) -> None:
        self._since = math.inf

    def ask(self) -> None:
        """Ask all trials to stop."""
        self._since = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._since < math.inf

    def stop_all(self) -> bool:
        """Return whether trials that returned no result since are to be stopped as well."""
        return time.monotonic() - self._since > STOP_ALL_SECONDS


def error_of(trial: Any) -> tuple[str | None, str]:
    """Return (cause, text) for a trial that Tune gave up.

    The cause is None if the infrastructure was at fault.
    """
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
