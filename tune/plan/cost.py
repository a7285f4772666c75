"""Estimates from a configuration: a trial's work, and the size of its checkpoint and memory."""

from __future__ import annotations

from mpcc.config import Config

PROCESS_BYTES = 600 * 10**6
"""Memory of a trial's process before its first iteration: torch, Ray, images (0.54 GB measured)."""
ACTIVATIONS = 30
"""Peak number of a batch's full-width feature maps in memory, in training and evaluation."""


def cost(config: Config) -> float:
    """The expected work of a trial, in an arbitrary unit: longer trials are started first."""
    updates = config.n_discriminator_steps + 1 + config.n_encoder_steps
    pixels = config.image_size**2
    return float(config.iterations * updates * config.batch_size * pixels * config.width**2)


def checkpoint_bytes(config: Config) -> int:
    """The approximate bytes of a checkpoint: weights, their moving average, Adam's two moments.

    Counted from the layers of Appendix C, without building them: w = 4C channels, and a 3×3
    convolution has 9 w² weights.
    """
    w, blocks = 4 * config.width, config.n_generator_blocks
    shared, own = 46 * w * w, 72 * w * w + 4 * w * config.latent_size
    discriminator = shared + 18 * w * w
    places = 2 * config.latent_size * max(1, config.n_latent_places - 1)
    generator = 16 * w * config.latent_size + blocks * (19 * w * w + 4 * w * places)
    generator += blocks * 4 * w * config.n_clusters
    numbers = 4 * generator + 3 * discriminator + 3 * own + 2 * shared
    return 4 * numbers + 100_000


def memory_need(config: Config) -> int:
    """The approximate peak memory of a trial on a CPU, in bytes."""
    one_map = 4 * config.batch_size * 4 * config.width * config.image_size**2
    return PROCESS_BYTES + 2 * checkpoint_bytes(config) + ACTIVATIONS * one_map
