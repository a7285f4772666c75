"""The state of a trial."""

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
