"""Everything that training reads or changes, built from a configuration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mpcc.config import Config
from mpcc.data.image_set import ImageSet, to_float
from mpcc.fast.weights import ModulePart, Part, Pool
from mpcc.model.networks import Discriminator, Encoder, Generator, build_networks
from mpcc.model.prior import Prior

_global_random, _copying = threading.Lock(), threading.Lock()
_copies: WeakValueDictionary[tuple[str, str], DeviceImages] = WeakValueDictionary()
"""Fingerprint of a data set, device -> its copy there, for as long as a trial uses it."""


@dataclass(frozen=True)
class DeviceImages:
    """A data set as it lies on a device."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor | None


@dataclass
class TrainState:
    """What an iteration reads or changes."""

    config: Config
    image_set: ImageSet
    data: DeviceImages
    generator: Generator
    discriminator: Discriminator
    encoder: Encoder
    prior: Prior
    generator_part: Part
    discriminator_part: Part
    encoder_part: Part
    prior_part: Part | None
    rng: torch.Generator
    average: list[Tensor]
    """Moving average of G's raw parameters, in the order of its part's `raw`."""
    iteration: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The evaluations so far, as metrics.jsonl must have them."""

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W), on the device."""
        return self.data.images

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), on the device; None where the data has none."""
        return self.data.labels

    @property
    def device(self) -> torch.device:
        """Where the trial runs."""
        return self.images.device

    def parts(self) -> dict[str, Part]:
        """All parts by name."""
        parts = {
            "generator": self.generator_part,
            "discriminator": self.discriminator_part,
            "encoder": self.encoder_part,
        }
        return parts | ({"prior": self.prior_part} if self.prior_part else {})


def build_state(
    config: Config,
    image_set: ImageSet,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """A trial before its first iteration. Weights depend on the seed alone, not on the device."""
    with seeded(config.seed):
        prior = build_prior(config).to(device, dtype)
        generator, discriminator, encoder = build_networks(config)
    for network in (generator, discriminator, encoder):
        network.to(device, dtype)
    build = build_parts if config.fast else build_plain_parts
    parts = build(config, generator, discriminator, encoder)
    has_prior_parameters = any(True for _ in prior.parameters())
    rng = torch.Generator(device)
    rng.manual_seed(config.seed)
    return TrainState(
        config=config,
        image_set=image_set,
        data=on_device(image_set, device),
        generator=generator,
        discriminator=discriminator,
        encoder=encoder,
        prior=prior,
        generator_part=parts[0],
        discriminator_part=parts[1],
        encoder_part=parts[2],
        prior_part=Pool([[prior]]).part(0, 0, config.prior_lr) if has_prior_parameters else None,
        rng=rng,
        average=[t.detach().clone() for t in parts[0].raw],
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global random stream from this seed on, for one thread; then back where it was."""
    with _global_random, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it also seeds the GPU's, which another trial may be recording.
        torch.default_generator.manual_seed(seed)
        yield


def on_device(image_set: ImageSet, device: torch.device | str) -> DeviceImages:
    """The data set on the device: one copy for all trials of the process that use it there."""
    if torch.device(device) == image_set.images.device:
        return DeviceImages(image_set.images, image_set.labels)
    key = (image_set.fingerprint, str(device))
    with _copying:
        copy = _copies.get(key)
        if copy is None:
            labels = None if image_set.labels is None else image_set.labels.to(device)
            copy = _copies[key] = DeviceImages(image_set.images.to(device), labels)
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
        learn_weights=config.cluster_weights == "learnt",
    )


def build_parts(
    config: Config, generator: Generator, discriminator: Discriminator, encoder: Encoder
) -> tuple[Part, Part, Part]:
    """Parts of G, D and E. D and E share the trunk's weights, each with its own Adam state."""
    own_d = [m for name, m in discriminator.named_children() if name != "trunk"]
    own_e = [m for name, m in encoder.named_children() if name != "trunk"]
    lr = config.network_lr
    generator_part = Pool([[generator]]).part(0, 0, lr)
    if encoder.trunk is discriminator.trunk:
        pool = Pool([own_d, [discriminator.trunk], own_e])
        return generator_part, pool.part(0, 1, lr), pool.part(1, 2, lr)
    d_part = Pool([own_d, [discriminator.trunk]]).part(0, 1, lr)
    return generator_part, d_part, Pool([[encoder.trunk], own_e]).part(0, 1, lr)


def build_plain_parts(
    config: Config, generator: Generator, discriminator: Discriminator, encoder: Encoder
) -> tuple[Part, Part, Part]:
    """The same by torch's own means (`fast` false)."""
    lr = config.network_lr
    return (
        ModulePart([generator], lr),
        ModulePart([discriminator], lr),
        ModulePart([encoder], lr),
    )


def as_input(state: TrainState, images: Tensor) -> Tensor:
    """uint8 images as the networks take them."""
    x = to_float(images).to(state.prior.weight_logits.dtype)
    return x.contiguous(memory_format=torch.channels_last)
