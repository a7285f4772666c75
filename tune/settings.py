"""Where and how trials run, and what a Ray worker is told of one."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tune import images, ledger
from tune.ledger import Plan, Trial
from tune.mirror import STOP


@dataclass(frozen=True)
class Settings:
    """Where and how trials run: none of it can change a number."""

    out: Path
    uri: str
    data_dir: Path | str | None = None
    """A folder, on each machine; or the address of a storage, see `tune.node_data`."""
    address: str = "local"
    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    trials_per_gpu: int | Literal["auto"] | None = None
    """Trials that share a process and a GPU; None: each has a process of its own."""
    checkpoint_seconds: float = 60.0
    checkpoint_iterations: int | None = None
    storage: str | None = None
    """Where the trials' files lie if not in `out`, see `tune.storage`."""


def trial_spec(trial: Trial, plan: Plan, settings: Settings, session: str) -> dict[str, Any]:
    """What a Ray worker needs to know of a trial, as plain data."""
    return {
        "key": trial.key,
        "config": trial.config.to_dict(),
        "run_dir": str(ledger.trial_dir(settings.out, trial.key)),
        "data_dir": str(settings.data_dir) if settings.data_dir else None,
        "device": "auto",
        "checkpoint_seconds": settings.checkpoint_seconds,
        "checkpoint_iterations": settings.checkpoint_iterations,
        "stop_file": str(settings.out / STOP),
        "fingerprint": images.expected(plan, trial.config),
        "storage": settings.storage,
        "session": session,
        "driver": [socket.gethostname(), os.getpid()],
        "alone": False,
        "shares_process": False,
    }
