"""Where and how trials run: none of it can change a number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpcc.machine import gpus_here

from tune.plan.cells import Trial

LOCAL = "local"
"""The address of a Ray of our own, on this machine alone."""
DEFAULT_GPU_SHARE = 0.25
"""Of a GPU, for one trial."""


@dataclass(frozen=True)
class Settings:
    """Where and how the trials of a sweep run."""

    out: Path
    uri: str
    """Of MLflow."""
    data_dir: Path | str | None = None
    """A folder, on each machine; or the address of a remote."""
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
        """How many of these trials run side by side; None where only a cluster knows.

        per_gpu: what `--trials-per-gpu auto` comes to.
        """
        if not self.local:
            return self.max_concurrent
        n_gpus = 0 if self.gpus == 0 else gpus_here()
        cores = self.cpus or max(trial.config.cpu_threads for trial in trials)
        room = int(len(os.sched_getaffinity(0)) / cores)
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
