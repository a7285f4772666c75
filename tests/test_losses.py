"""Each term of the objective against a closed form or torch.distributions, in float64."""

import math

import torch
from torch.distributions import Normal

from mpcc.model import losses


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_discriminator_hinge_counts_six_scores_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    # max(0, 1-o): 0, 0.5, 2;  max(0, 1+o): 0, 0.5, 2
    expected = torch.tensor(2.5 / 3 + 2.5 / 3)
    torch.testing.assert_close(losses.discriminator_hinge_loss(real, fake), expected)


def test_generator_hinge_is_the_negative_mean_score():
    assert float(losses.generator_hinge_loss(torch.tensor([1.0, 2.0, -6.0]))) == 1.0


def test_gaussian_nll_is_that_of_torch_distributions():
    z, mean, log_var = numbers(6, 3), numbers(6, 3) + 1, numbers(6, 3) * 0.5
    oracle = -Normal(mean, (log_var / 2).exp()).log_prob(z).sum(1)
    torch.testing.assert_close(losses.gaussian_nll(z, mean, log_var), oracle)


def test_membership_loss_is_the_mean_log_of_the_right_cluster():
    log_p = numbers(4, 3).log_softmax(1)
    y = torch.tensor([0, 2, 1, 2])
    expected = -(log_p[0, 0] + log_p[1, 2] + log_p[2, 1] + log_p[3, 2]) / 4
    torch.testing.assert_close(losses.membership_loss(log_p, y), expected)


def test_entropy_loss_is_eq_10_with_its_second_term_over_j():
    k, j, std = 4, 3, 1.7
    phi = torch.full((k,), 1 / k, dtype=torch.float64)
    entropies = Normal(0.0, std).entropy().double().expand(k) * j
    expected = math.log(1 / k) - (0.5 + 0.5 * math.log(2 * math.pi * std**2))
    got = losses.prior_entropy_loss(phi.log(), entropies, j)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
