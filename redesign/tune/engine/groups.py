"""How many trials make the most of a GPU that they share: `--trials-per-gpu auto`."""

from __future__ import annotations

from pathlib import Path

from mpcc.config import Config


def measured(config: Config, data_dir: Path | str | None) -> int:
    """Return how many trials like this one to run at a time, measured on a GPU of Ray's."""
    import ray

    remote = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(_measure)
    return int(ray.get(remote.remote(config, str(data_dir) if data_dir else None)))


def _measure(config: Config, data_dir: str | None) -> int:
    """Measure in a process that has the GPU to itself."""
    import torch

    from mpcc.data import load
    from mpcc.together import n_trials_for
    from tune.store.datasets import folder_on_node

    images = load(config, folder_on_node(data_dir, config.dataset))
    return n_trials_for(config, images, torch.device("cuda"))
