"""The input of the engine and its workers: where and how trials run, and the data of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpcc.config import Config
from mpcc.machine import gpus_here, usable_cores
from tune.plan.cells import Trial
from tune.plan.plan import TRIALS, Plan
from tune.plan.pruning import PruneRule

if TYPE_CHECKING:
    from tune.tracking.model import LogModels

LOCAL = "local"
"""The address of a Ray of our own, on this machine alone."""
DEFAULT_GPU_SHARE = 0.25
"""The share of a GPU that a trial gets."""


@dataclass(frozen=True)
class Settings:
    """Where and how the trials of a sweep run."""

    out: Path
    uri: str
    """The tracking URI of MLflow."""
    log_models: LogModels = "best"
    data_dir: Path | str | None = None
    """A folder, at the same path on every node, or the address of a remote."""
    address: str = LOCAL
    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    trials_per_gpu: int | Literal["auto"] | None = None
    """Trials that share a process and a GPU; None: each has a process of its own."""
    checkpoint_seconds: float = 60.0
    checkpoint_iterations: int | None = None
    remote: str | None = None
    """The address of the sweep's remote, where the trials' files go; None: they stay in `out`."""

    @property
    def local(self) -> bool:
        """Whether the trials run on this machine, in a Ray of our own."""
        return self.address == LOCAL

    def n_at_once(self, trials: Sequence[Trial], per_gpu: int = 1) -> int | None:
        """How many of these trials run side by side; None if only a cluster knows.

        per_gpu: the number that `--trials-per-gpu auto` has measured.
        """
        if not self.local:
            return self.max_concurrent
        n_gpus = 0 if self.gpus == 0 else gpus_here()
        cores = self.cpus or max(trial.config.cpu_threads for trial in trials)
        room = int(usable_cores() / cores)
        if n_gpus and self.trials_per_gpu:
            room = n_gpus * (per_gpu if self.trials_per_gpu == "auto" else self.trials_per_gpu)
        elif n_gpus:
            room = min(room, int(n_gpus / (self.gpus or DEFAULT_GPU_SHARE)))
        elif isinstance(self.trials_per_gpu, int):
            room = min(room, self.trials_per_gpu)
        return max(1, min(room, len(trials), self.max_concurrent or room))

    def device_share(self, trials: Sequence[Trial], n_at_once: int | None) -> float:
        """The GPUs, or the cores, that a trial takes while it runs."""
        if self.gpus == 0 or not gpus_here():
            return float(self.cpus or trials[0].config.cpu_threads)
        if self.trials_per_gpu and n_at_once:
            return gpus_here() / n_at_once
        return float(self.gpus or DEFAULT_GPU_SHARE)


@dataclass(frozen=True)
class NodeNeeds:
    """The requirements on a node of a cluster before a trial starts on it."""

    versions: Mapping[str, str]
    """The driver's Python, libraries and modules: other versions may give other numbers."""
    out: str | None
    """The sweep's folder if the nodes share it; None with a remote."""
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
    """The address of the sweep's remote; None if the worker writes to `run_dir` itself."""
    data_dir: str | None
    """A folder of every node, or the address of a remote."""
    device: str
    """`auto`, or `cpu` if the trial gets no GPU."""
    checkpoint_seconds: float
    checkpoint_iterations: int | None
    fingerprint: str | None
    """The fingerprint of the images of the sweep's other trials; None while it is unknown."""
    needs: NodeNeeds | None = None
    """None if all trials run on this machine."""
    avoided_nodes: tuple[str, ...] = ()
    """Ray's ids of nodes that were not ready for trials."""
    same_model: tuple[str, ...] = ()
    """Keys of the sweep's other trials that train the same model: if one of them is done, its model
    is evaluated and nothing is trained."""
    prune: PruneRule | None = None
    exclusive: bool = False
    """The trial runs with nothing beside it, after it ran out of memory beside others."""
    co_located: bool = False
    """The trial shares its process and its GPU with others."""


def spec_of(trial: Trial, settings: Settings, plan: Plan) -> TrialSpec:
    """The specification of a trial of this plan for its worker."""
    return TrialSpec(
        key=trial.key,
        config=trial.config,
        run_dir=str(settings.out / TRIALS / trial.key),
        remote=settings.remote,
        data_dir=str(settings.data_dir) if settings.data_dir else None,
        device="auto",
        checkpoint_seconds=settings.checkpoint_seconds,
        checkpoint_iterations=settings.checkpoint_iterations,
        fingerprint=plan.fingerprint_for(trial.config),
    )
