"""Algorithm 1: one iteration, and the update functions that it is made of.

All random numbers of a phase are drawn at once, before the first update that needs them. G does not
change during a phase, so the images of a phase can be generated together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mpcc.model import losses
from mpcc.training.optimiser import minimise, only_trainable
from mpcc.training.state import TrainState, as_input


@torch.no_grad()
def train_step(state: TrainState) -> dict[str, Tensor]:
    """One iteration of Algorithm 1. Returns losses, 0-d on the device; the caller decides when to
    read them, because reading waits for a GPU."""
    terms = (state.updates or update_all)(state)
    state.iteration += 1
    update_average(state)
    return terms


def update_all(state: TrainState) -> dict[str, Tensor]:
    """Every update of one iteration; must not synchronise with the GPU: a CUDA graph records it."""
    terms: dict[str, Tensor] = {}
    for batch in discriminator_batches(state):
        terms["loss/discriminator"] = update_discriminator(state, *batch)
    terms["loss/generator"] = update_generator_and_prior(state)
    terms |= update_encoder_and_prior(state)
    for z, x_fake in encoder_batches(state):
        terms["loss/encoder"] = update_encoder(state, z, x_fake)
    return terms


def update_discriminator(state: TrainState, x: Tensor, labels: Tensor | None) -> Tensor:
    """Lines 8-12: D learns to tell real images, x[:n] of (2n, C, H, W), from generated ones, x[n:].

    labels: (2n,), if the configuration is conditional. Only D is updated. Returns the loss, 0-d.
    """
    part = state.parts["discriminator"]
    with only_trainable(part):
        real, fake = state.discriminator(x, labels).chunk(2)
        loss = losses.discriminator_hinge_loss(real, fake)
        minimise(loss, part)
    return loss.detach()


def update_generator_and_prior(state: TrainState) -> Tensor:
    """Lines 14-17: G and the prior, z = μ_y + σ_y ε, learn to raise D's score."""
    config = state.config
    parts = [state.parts[name] for name in ("generator", "prior") if name in state.parts]
    if "prior" in state.parts:
        own = config.prior_adversarial_lr == "prior"
        state.parts["prior"].lr = config.prior_lr if own else config.network_lr
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        scores = state.discriminator(state.generator(z, y), y if config.conditional else None)
        loss = losses.generator_hinge_loss(scores)
        minimise(loss, *parts)
    return loss.detach()


def update_encoder_and_prior(state: TrainState) -> dict[str, Tensor]:
    """Lines 19-27, first encoder update of an iteration: E learns q(z|x), the prior its own losses.

    G does not move, and eq. 7 does not move the prior unless the configuration says so.
    """
    config = state.config
    parts = [state.parts[name] for name in ("encoder", "prior") if name in state.parts]
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        x_fake = generate(state, z.detach(), y)
        target = z if config.prior_learns_from_encoder_loss else z.detach()
        loss = encoder_loss(state, target, x_fake)
        terms = {"loss/encoder": loss.detach()}
        if y is not None:
            state.parts["prior"].lr = config.prior_lr
            membership = losses.membership_loss(state.prior.log_memberships(z), y)
            entropy = losses.prior_entropy_loss(
                state.prior.log_weights, state.prior.entropies(), config.latent_size
            )
            loss = loss + membership + config.prior_entropy_weight * entropy
            terms |= {"loss/membership": membership.detach(), "loss/entropy": entropy.detach()}
        minimise(loss, *parts)
    return terms


def update_encoder(state: TrainState, z: Tensor, x_fake: Tensor) -> Tensor:
    """Lines 19-27, later encoder updates: only E learns q(z|x). z (n, J), x_fake (n, C, H, W)."""
    part = state.parts["encoder"]
    with only_trainable(part):
        loss = encoder_loss(state, z, x_fake)
        minimise(loss, part)
    return loss.detach()


def encoder_loss(state: TrainState, z: Tensor, x_fake: Tensor) -> Tensor:
    """L_q, eq. 7, mean over the batch, divided by the number of values of an image (C·H·W); 0-d."""
    z_mean, z_log_var = state.encoder(x_fake)
    return losses.gaussian_nll(z, z_mean, z_log_var).mean() / state.config.n_values


def update_average(state: TrainState) -> None:
    """Moving average of G's parameters; a copy up to and including iteration `ema_start`."""
    early = state.iteration <= state.config.ema_start
    decay = 0.0 if early else state.config.ema_decay
    get_ema_multi_avg_fn(decay)(state.average, state.parts["generator"].raw, None)


def discriminator_batches(state: TrainState) -> Iterator[tuple[Tensor, Tensor | None]]:
    """For each update of D: n real images, then n generated ones (lines 8-9), and their labels.

    Real images are drawn with replacement. Labels are None unless the configuration is conditional.
    """
    n, n_all = state.config.batch_size, state.config.batch_size * state.config.n_discriminator_steps
    index = torch.randint(len(state.images), (n_all,), generator=state.rng, device=state.device)
    z, y = state.prior.sample(n_all, state.rng)
    x, x_fake = as_input(state, state.images[index]), generate(state, z, y)
    for start in range(0, n_all, n):
        chunk, labels = slice(start, start + n), None
        if state.config.conditional:
            assert state.labels is not None and y is not None
            labels = torch.cat((state.labels[index[chunk]], y[chunk]))
        yield torch.cat((x[chunk], x_fake[chunk])), labels


def encoder_batches(state: TrainState) -> Iterator[tuple[Tensor, Tensor]]:
    """(z, x̃) for every update of E except an iteration's first, which also updates the prior."""
    n, n_updates = state.config.batch_size, state.config.n_encoder_steps - 1
    if n_updates:
        z, y = state.prior.sample(n * n_updates, state.rng)
        yield from zip(z.split(n), generate(state, z, y).split(n), strict=True)


def generate(state: TrainState, z: Tensor, y: Tensor | None) -> Tensor:
    """Images (N, C, H, W) of one or more batches z (N, J), y (N,) or None, each normalised by its
    own statistics; no gradient into G."""
    return state.generator.batches(z, y, state.config.batch_size)
