"""The terms of the objective, each a pure function of tensors (eqs. 6-10)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_hinge_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Hinge loss of D, eq. 6 with f = -min(0, o-1), g = -min(0, -o-1); scores (B,) each, mean."""
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def generator_hinge_loss(fake_scores: Tensor) -> Tensor:
    """Hinge loss of G and the prior, eq. 6 with h = -o; scores (B,), mean."""
    return -fake_scores.mean()


def gaussian_nll(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """L_q, eq. 7: -log q(z|x) in nats for each row; all (B, J), the result (B,)."""
    squares = (z - mean).square() * torch.exp(-log_var)
    return 0.5 * (math.log(2 * math.pi) + log_var + squares).sum(1)


def membership_loss(log_memberships: Tensor, y: Tensor) -> Tensor:
    """L_c, eq. 8: cross-entropy of the sampled clusters y (B,) under log q(y|z) (B, K), mean."""
    return F.nll_loss(log_memberships, y)


def prior_entropy_loss(log_weights: Tensor, entropies: Tensor, latent_size: int) -> Tensor:
    """L_p, eq. 10: sum_k φ_k (log φ_k - H_k / J); log φ (K,), entropies H of p(z|y) in nats (K,).

    The division of the entropy by J is the scaling of section 3.3.
    """
    return (log_weights.exp() * (log_weights - entropies / latent_size)).sum()
