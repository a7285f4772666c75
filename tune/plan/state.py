"""The state of a trial, and the events by which its worker and the engine say what changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Row = Mapping[str, object]
"""One evaluation: `iteration` and its metrics, as a line of metrics.jsonl holds them."""


class State(StrEnum):
    """A trial's state. Those in `ENDED` stand in its result; the others follow from its files."""

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
    """A trial's state, the cause where there is one, and its last evaluation."""

    state: State
    cause: str | None = None
    iteration: int = 0
    metrics: Row = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """`acc_majority` of the last evaluation, 0 to 1; None where it is not measured."""
        value = self.metrics.get("acc_majority")
        return float(value) if isinstance(value, (int, float)) else None


class EventKind(StrEnum):
    """What has happened to a trial."""

    STARTED = "started"
    """A worker has taken it up, or taken it up again."""
    PROGRESS = "progress"
    """It is at `iteration`; with a `row` where it has just been evaluated."""
    ENDED = "ended"
    """It has a result: `state` is one of `tune.plan.state.ENDED`."""
    STOPPED = "stopped"
    """It has no result and runs no more: asked to stop, or its machine failed it (`cause`)."""
    EXCLUSIVE = "exclusive"
    """It failed beside others and is to be run again with nothing beside it."""
    HANDED_BACK = "handed back"
    """Its node is not ready for it (`cause`); it is to be run on another one."""
    ELSEWHERE = "elsewhere"
    """A process that is not this driver's trains it (`cause`)."""


@dataclass(frozen=True)
class Event:
    """What a worker says of a trial, or the engine of its worker."""

    key: str
    kind: EventKind
    state: State = State.RUNNING
    iteration: int | None = None
    row: Row | None = None
    """The evaluation that was just made."""
    cause: str | None = None
    data: Mapping[str, object] | None = None
    """What the trial's provenance says of its images, once it has read them: `fingerprint` ..."""
    node: str | None = None
    """Ray's id of the node that handed the trial back."""
    failed_by_engine: bool = False
    """The worker died over it again and again: the driver has to write its result."""

    @property
    def ends(self) -> bool:
        """Whether no worker has the trial any more."""
        return self.kind not in (EventKind.STARTED, EventKind.PROGRESS)
