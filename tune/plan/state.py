"""The state of a trial, the events that change it, and the states of all trials of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tune.plan.cells import Trial
from tune.plan.cost import cost

Row = Mapping[str, object]
"""One evaluation: `iteration` and its metrics, as a line of metrics.jsonl holds them."""


class State(StrEnum):
    """A trial's state. Its result records those in `ENDED`; the others follow from its files."""

    PLANNED = "planned"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    DIVERGED = "diverged"
    FAILED = "failed"
    PRUNED = "pruned"


ENDED = frozenset({State.DONE, State.DIVERGED, State.FAILED, State.PRUNED})
"""The trial has a result and is not run again unless `--retry` names its state."""
FULFILLED = frozenset({State.DONE, State.PRUNED})
"""A sweep whose trials are all in these states exits with 0."""
RETRIABLE = (State.FAILED, State.DIVERGED)
"""The states that `--retry` takes."""


@dataclass(frozen=True)
class Status:
    """A trial's state, its cause if there is one, and the last evaluation."""

    state: State
    cause: str | None = None
    iteration: int = 0
    metrics: Row = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """`acc_majority` of the last evaluation, 0 to 1; None if it is not measured."""
        value = self.metrics.get("acc_majority")
        return float(value) if isinstance(value, (int, float)) else None


class EventKind(StrEnum):
    """The kinds of an `Event`; `it` is the event's trial."""

    STARTED = "started"
    """A worker has started it, or started it again."""
    PROGRESS = "progress"
    """It is at `iteration`; it has a `row` if it has just been evaluated."""
    ENDED = "ended"
    """It has a result: `state` is one of `tune.plan.state.ENDED`."""
    STOPPED = "stopped"
    """It has no result and no longer runs: it was asked to, or its machine failed (`cause`)."""
    EXCLUSIVE = "exclusive"
    """It failed beside others and must run again with nothing beside it."""
    HANDED_BACK = "handed back"
    """The driver must submit the trial again: its node is not ready or its process died too early
    (`cause`), or another process no longer trains it."""
    ELSEWHERE = "elsewhere"
    """A process that does not belong to this driver trains it (`cause` names the process)."""


@dataclass(frozen=True)
class Event:
    """A report about a trial, from its worker or from the driver."""

    key: str
    kind: EventKind
    state: State = State.RUNNING
    """The trial's state after the event."""
    iteration: int | None = None
    row: Row | None = None
    """The evaluation that was just made."""
    cause: str | None = None
    node: str | None = None
    """Ray's id of the node that handed the trial back."""
    failed_by_engine: bool = False
    """Its process died in every attempt: the driver must write its result."""

    @property
    def ends(self) -> bool:
        """Whether no worker has the trial any more."""
        return self.kind not in (EventKind.STARTED, EventKind.PROGRESS)


# -- the trials of a running sweep -----------------------------------------------------------------

PACE_SECONDS = 5.0
"""How long trials run before their pace tells the time left."""


class States(Mapping[str, Status]):
    """Trial key -> status, in the order in which the trials came; used by one thread.

    It begins with the records and follows the events from then on.
    """

    def __init__(
        self, trials: Sequence[Trial], statuses: Mapping[str, Status], n_trials: int = 0
    ) -> None:
        self._trials: dict[str, Trial] = {}
        self._statuses: dict[str, Status] = {}
        self._at_start = 0.0
        self._since: float | None = None
        """When every trial of the first batch had made progress; the pace is measured from then,
        without process start-up."""
        self._moving: set[str] = set()
        """Keys of the trials that have made progress."""
        self.n_trials = n_trials
        """The total number of trials, with those that a search will still suggest."""
        self.ended: list[Trial] = []
        """The trials that have ended by an event, in that order."""
        self.add(trials, statuses)

    def add(self, trials: Sequence[Trial], statuses: Mapping[str, Status]) -> None:
        """Add trials; a search suggests them while others run."""
        self._trials |= {trial.key: trial for trial in trials}
        planned = Status(State.PLANNED)
        self._statuses |= {trial.key: statuses.get(trial.key, planned) for trial in trials}
        self._at_start += self._done(trials)
        self.n_trials = max(self.n_trials, len(self))

    def apply(self, event: Event) -> None:
        """Update the status of a known trial by an event."""
        before = self[event.key]
        status = replace(before, state=event.state, cause=event.cause)
        if event.iteration is not None:
            status = replace(status, iteration=event.iteration)
        if event.row is not None:
            status = replace(status, metrics=event.row)
        self._statuses[event.key] = status
        if status.state in ENDED and before.state not in ENDED:
            self.ended.append(self.trial(event.key))
        if status.iteration > before.iteration and event.key not in self._moving:
            self._moving.add(event.key)
            if not self.ended:
                self._since, self._at_start = time.monotonic(), self._done()

    def __getitem__(self, key: str) -> Status:
        return self._statuses[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statuses)

    def __len__(self) -> int:
        return len(self._statuses)

    def trial(self, key: str) -> Trial:
        """The trial with this key."""
        return self._trials[key]

    def trials(self) -> list[Trial]:
        """All trials, in the order in which they came."""
        return list(self._trials.values())

    def running(self) -> frozenset[str]:
        """The keys of the trials that run now."""
        return frozenset(key for key in self if self[key].state == State.RUNNING)

    def stop_running(self) -> None:
        """Mark the running trials as stopped: Ray has ended, and no event will come."""
        for key in self.running():
            self.apply(Event(key, EventKind.STOPPED, State.STOPPED))

    def count(self, state: State) -> int:
        """How many trials are in this state."""
        return sum(status.state == state for status in self.values())

    def part_of(self, key: str) -> float:
        """The share of a trial that is done, 0 to 1."""
        if self[key].state in ENDED:
            return 1.0
        return min(1.0, self[key].iteration / self.trial(key).config.iterations)

    def part(self) -> float:
        """The share of the sweep's work that is done, 0 to 1."""
        return self._done() / max(1e-9, self._work())

    def seconds_left(self) -> float | None:
        """Estimated seconds left, None while the pace is unknown."""
        if self._since is None or not (self.ended or self.running() <= self._moving):
            return None
        elapsed, done = time.monotonic() - self._since, self._done()
        fresh = done - self._at_start
        if elapsed < PACE_SECONDS or fresh <= 0:
            return None
        return elapsed * (self._work() - done) / fresh

    def line(self) -> str:
        """One line: `3 of 15 done, 2 running, 21 %, about 6:10 left`."""
        parts = [f"{self.count(State.DONE)} of {self.n_trials} done"]
        for state in (State.RUNNING, State.DIVERGED, State.FAILED, State.PRUNED):
            if self.count(state):
                parts.append(f"{self.count(state)} {state}")
        parts.append(f"{100 * self.part():.0f} %")
        left = self.seconds_left()
        if left is not None and self.part() < 1:
            parts.append(f"about {clock(left)} left")
        return ", ".join(parts)

    def _work(self) -> float:
        """Total work of all trials; those not suggested yet count as the others on average."""
        known = sum(cost(trial.config) for trial in self.trials())
        return known * self.n_trials / max(1, len(self))

    def _done(self, trials: Sequence[Trial] | None = None) -> float:
        """Work done by these trials, or by all."""
        some = self._trials.values() if trials is None else trials
        return sum(self.part_of(trial.key) * cost(trial.config) for trial in some)


def clock(seconds: float) -> str:
    """`0:42`, `6:10`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
