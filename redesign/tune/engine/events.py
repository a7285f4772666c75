"""What travels between the loop and the workers, typed: a trial's specification and its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mpcc.config import Config
from tune.plan.pruning import PruneRule
from tune.plan.state import Row, State


@dataclass(frozen=True)
class NodeNeeds:
    """What every node of a cluster must have before a trial starts on it."""

    python: tuple[str, str]
    libraries: Mapping[str, str]
    """Package -> version that the driver has; another version may give other numbers."""
    code: Mapping[str, str]
    """Module -> fingerprint, see `mpcc.code_version`."""
    out: str | None
    """The sweep's folder where the nodes share it; None with a remote."""
    remote: str | None
    datasets: tuple[str, ...]
    data_dir: str | None
    inception: bool
    """Whether the Inception weights are needed."""


@dataclass(frozen=True)
class TrialSpec:
    """All that a worker needs to know of a trial."""

    key: str
    config: Config
    run_dir: str
    """The trial's folder as the driver sees it."""
    remote: str | None
    """The address of the sweep's remote; None where the worker writes to `run_dir` itself."""
    data_dir: str | None
    """A folder of every node, or the address of a remote."""
    device: str
    """`auto`, or `cpu` where the trial is given no GPU."""
    checkpoint_seconds: float
    checkpoint_iterations: int | None
    fingerprint: str | None
    """Of the images that the sweep's other trials have seen; None where it is not known yet."""
    needs: NodeNeeds | None = None
    """None on one machine."""
    prune: PruneRule | None = None
    exclusive: bool = False
    """The trial runs with nothing beside it, after it ran out of memory beside others."""
    co_located: bool = False
    """The trial shares its process and its GPU with others."""


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
    failed_by_engine: bool = False
    """The worker died over it again and again: the driver has to write its result."""
