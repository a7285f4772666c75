"""Which trials share a process, one GPU's worth at a time: `--trials-per-gpu`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from mpcc.config import from_dict

Spec = dict[str, Any]
"""What a worker must know of a trial, `tune.settings.trial_spec`."""


def grouped(specs: Sequence[Spec], size: int, n_gpus: int = 1) -> list[list[Spec]]:
    """The trials in groups of at most `size` that may share a process, in their order.

    Groups are as even as can be, since the last trial of one keeps a whole GPU, and as many as keep
    every GPU busy.
    """
    if size == 1:
        return [[spec] for spec in specs]
    found = []
    for kind in _kinds(specs):
        n = max(math.ceil(len(kind) / size), min(n_gpus, len(kind)))
        n = min(len(kind), n_gpus * math.ceil(n / n_gpus))
        bounds = [len(kind) * i // n for i in range(n + 1)]
        found += [shared(kind[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    return found


def leading(specs: Sequence[Spec], size: int) -> list[Spec]:
    """The first of these trials, and those right after it that may share a process with it."""
    first = _kind(specs[0])
    return shared(list(takewhile(lambda spec: _kind(spec) == first, specs))[:size])


def shared(specs: Sequence[Spec]) -> list[Spec]:
    """These trials, told that they share a process."""
    return [spec | {"shares_process": len(specs) > 1} for spec in specs]


def _kinds(specs: Iterable[Spec]) -> list[list[Spec]]:
    """The trials that want the same of what a process has only once, together."""
    kinds: dict[Any, list[Spec]] = {}
    for spec in specs:
        kinds.setdefault(_kind(spec), []).append(spec)
    return list(kinds.values())


def _kind(spec: Spec) -> tuple[Any, ...]:
    return from_dict(spec["config"]).of_the_process


def gpus_here() -> int:
    """NVIDIA GPUs of this machine, without asking CUDA."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def measured(spec: Spec) -> int:
    """How many trials like this one make the most of the GPU that this process has."""
    import torch

    from mpcc.data import load
    from mpcc.together import n_trials_for
    from tune import node_data

    config = from_dict(spec["config"])
    images = load(config, node_data.folder_here(spec["data_dir"], config.dataset))
    return n_trials_for(config, images, torch.device("cuda"))
