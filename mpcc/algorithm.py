"""Algorithm 1: one iteration, and the update functions that it is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from mpcc import losses
from mpcc.state import TrainState, as_input, raw_parameters
from mpcc.weights import minimise, only_trainable


@torch.no_grad()
def train_step(state: TrainState) -> dict[str, Tensor]:
    """One iteration of Algorithm 1. Returns losses, 0-d on the device; the caller decides when to
    look at them."""
    terms: dict[str, Tensor] = {}
    for _ in range(state.config.n_discriminator_steps):
        terms["loss/discriminator"] = update_discriminator(state)
    terms["loss/generator"] = update_generator_and_prior(state)
    for i in range(state.config.n_encoder_steps):
        terms |= update_encoder(state, with_prior=i == 0)
    state.iteration += 1
    update_average(state)
    return terms


def update_discriminator(state: TrainState) -> Tensor:
    """Lines 8-12: D learns to tell real images from generated ones. Nothing else moves."""
    x, y_real = draw_batch(state)
    z, y = state.prior.sample(state.config.batch_size, state.rng)
    x_fake = state.generator(z, y)
    labels = None if y_real is None or y is None else torch.cat((y_real, y))
    with only_trainable(state.discriminator_part):
        scores = state.discriminator(torch.cat((x, x_fake)), labels)
        real, fake = scores.split(len(x))
        loss = losses.discriminator_hinge_loss(real, fake)
        minimise(loss, state.discriminator_part)
    return loss.detach()


def update_generator_and_prior(state: TrainState) -> Tensor:
    """Lines 14-17: G and the prior, z = μ_y + σ_y ε, learn to raise D's score."""
    config = state.config
    parts = [state.generator_part] + ([state.prior_part] if state.prior_part else [])
    if state.prior_part:
        own = config.prior_adversarial_lr == "prior"
        state.prior_part.lr = config.prior_lr if own else config.network_lr
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        scores = state.discriminator(state.generator(z, y), y if config.conditional else None)
        loss = losses.generator_hinge_loss(scores)
        minimise(loss, *parts)
    return loss.detach()


def update_encoder(state: TrainState, *, with_prior: bool) -> dict[str, Tensor]:
    """Lines 19-27: E learns q(z|x) on generated images; with_prior, the prior its own losses.

    G never moves here, and eq. 7 does not move the prior unless the configuration says so.
    """
    config = state.config
    prior_part = state.prior_part if with_prior else None
    parts = [state.encoder_part] + ([prior_part] if prior_part else [])
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        with torch.no_grad():
            x_fake = state.generator(z, y)
        z_mean, z_log_var = state.encoder(x_fake)
        target = z if config.prior_learns_from_encoder_loss else z.detach()
        nll = losses.gaussian_nll(target, z_mean, z_log_var).mean() / config.n_values
        terms = {"loss/encoder": nll.detach()}
        loss = nll
        if prior_part and y is not None:
            prior_part.lr = config.prior_lr
            membership = losses.membership_loss(state.prior.log_memberships(z), y)
            entropy = losses.prior_entropy_loss(
                state.prior.log_weights, state.prior.entropies(), config.latent_size
            )
            loss = nll + membership + config.prior_entropy_weight * entropy
            terms |= {"loss/membership": membership.detach(), "loss/entropy": entropy.detach()}
        minimise(loss, *parts)
    return terms


def update_average(state: TrainState) -> None:
    """Moving average of G's parameters; a copy up to `ema_start`."""
    early = state.iteration <= state.config.ema_start
    decay = 0.0 if early else state.config.ema_decay
    torch._foreach_lerp_(state.average, raw_parameters(state.generator_part), 1 - decay)


def draw_batch(state: TrainState) -> tuple[Tensor, Tensor | None]:
    """n images from the data, with replacement (line 8), in [-1, 1] with their labels."""
    n = state.config.batch_size
    index = torch.randint(len(state.images), (n,), generator=state.rng, device=state.device)
    labels = state.labels if state.config.conditional else None
    return as_input(state, state.images[index]), None if labels is None else labels[index]
