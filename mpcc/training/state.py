"""Everything that training reads or changes, built from a configuration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mpcc.config import Config
from mpcc.data.image_set import ImageSet, to_float
from mpcc.model.networks import Discriminator, Encoder, Generator, build_networks
from mpcc.model.prior import Prior
from mpcc.training.optimiser import ModulePart, Part

_global_random, _copying = threading.Lock(), threading.Lock()
starting = threading.Lock()
"""Lock held while a trial is built and while it records its CUDA graph. A thread's first matrix
product creates a cuBLAS handle, which waits for the whole device: a recording that another trial of
the process makes at that moment would fail."""
_copies: WeakValueDictionary[tuple[str, str], ImageSet] = WeakValueDictionary()
"""(fingerprint, device) -> copy of the data set on the device, kept while a trial uses it."""


class Updates(Protocol):
    """A replacement for `algorithm.update_all`, such as a CUDA graph."""

    outcome: str
    """The result of `check`, in words."""

    def check(self, state: TrainState) -> None:
        """Compare with `update_all`; use `update_all` from now on if the losses differ."""

    def __call__(self, state: TrainState) -> dict[str, Tensor]:
        """The losses of an iteration, as `update_all` gives them."""


@dataclass
class TrainState:
    """What an iteration reads or changes."""

    config: Config
    image_set: ImageSet
    data: ImageSet
    """`image_set` on the device."""
    generator: Generator
    discriminator: Discriminator
    encoder: Encoder
    prior: Prior
    parts: dict[str, Part]
    """By name: `generator`, `discriminator`, `encoder` and, if the prior learns, `prior`."""
    rng: torch.Generator
    average: list[Tensor]
    """Moving average of G's raw parameters, in the order of its part's `raw`."""
    held_out: ImageSet | None = None
    """Images that are not trained on but also evaluated; None if there are none."""
    updates: Updates | None = None
    """What makes the updates of an iteration; None: `algorithm.update_all`."""
    iteration: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The evaluations so far, as metrics.jsonl must hold them."""

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W), on the device."""
        return self.data.images

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), on the device; None if the data has none."""
        return self.data.labels

    @property
    def device(self) -> torch.device:
        """Where the trial runs."""
        return self.images.device


def build_state(
    config: Config,
    image_set: ImageSet,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """A trial before its first iteration. Weights depend on the seed alone, not on the device."""
    with starting:
        return _build(config, image_set, device, dtype)


def _build(
    config: Config, image_set: ImageSet, device: torch.device | str, dtype: torch.dtype
) -> TrainState:
    with seeded(config.seed):
        prior = build_prior(config).to(device, dtype)
        networks = build_networks(config)
    parts: dict[str, Part] = {}
    for name, network in zip(("generator", "discriminator", "encoder"), networks, strict=True):
        parts[name] = ModulePart([network.to(device, dtype)], config.network_lr)
    if any(True for _ in prior.parameters()):
        parts["prior"] = ModulePart([prior], config.prior_lr)
    rng, data = torch.Generator(device).manual_seed(config.seed), on_device(image_set, device)
    state = TrainState(config, image_set, data, *networks, prior, parts, rng, average=[])
    if config.fast:
        from mpcc.fast.build import speed_up  # It imports algorithm, which imports this module.

        speed_up(state)
    state.average = [t.detach().clone() for t in state.parts["generator"].raw]
    return state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global random stream inside the block, one thread at a time; then restore it."""
    with _global_random, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it also seeds the GPU's, which another trial may be recording.
        torch.default_generator.manual_seed(seed)
        yield


def on_device(image_set: ImageSet, device: torch.device | str) -> ImageSet:
    """The data set on the device: one copy for all trials of the process that use it there."""
    if torch.device(device) == image_set.images.device:
        return image_set
    key = (image_set.fingerprint, str(device))
    with _copying:
        copy = _copies.get(key)
        if copy is None:
            labels = None if image_set.labels is None else image_set.labels.to(device)
            images = image_set.images.to(device)
            copy = _copies[key] = replace(image_set, images=images, labels=labels)
        return copy


def build_prior(config: Config) -> Prior:
    """The prior of a configuration."""
    return Prior(
        config.n_clusters,
        config.latent_size,
        family=config.prior,
        init_log_var=config.prior_init_log_var,
        min_std=config.prior_min_std,
        published_floor=config.prior_floor == "published",
        published_entropy=config.prior_entropy == "published",
        rank=config.prior_rank,
        weights=config.given_cluster_weights,
    )


def as_input(state: TrainState, images: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as the networks take them: in [-1, 1], channels last."""
    x = to_float(images).to(state.prior.weight_logits.dtype)
    return x.contiguous(memory_format=torch.channels_last)
