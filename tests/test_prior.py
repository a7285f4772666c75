"""The prior against torch.distributions, in float64."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal

from mpcc.model.prior import Prior


def make(family="gaussian_mixture", **kwargs) -> Prior:
    torch.manual_seed(0)
    prior = Prior(5, 4, family=family, **kwargs).double()
    if prior.has_clusters:
        with torch.no_grad():
            prior.mean.normal_(0, 2)
            prior.log_var.normal_(0, 0.7)
    return prior


def components(prior: Prior) -> Independent:
    if prior.family == "laplace_mixture":
        return Independent(Laplace(prior.mean, (prior.var / 2).sqrt()), 1)
    return Independent(Normal(prior.mean, prior.var.sqrt()), 1)


def rng(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_means_start_orthonormal_and_the_log_variance_at_one():
    torch.manual_seed(0)
    prior = Prior(10, 24)
    torch.testing.assert_close(prior.mean @ prior.mean.T, torch.eye(10), atol=1e-5, rtol=0)
    expected = math.sqrt(math.e + 0.25)
    torch.testing.assert_close(prior.sampling_std, torch.full((10, 24), expected))


@pytest.mark.parametrize("family", ["gaussian_mixture", "laplace_mixture"])
def test_density_entropy_and_memberships_are_those_of_torch_distributions(family):
    prior = make(family)
    z = torch.randn(7, 4, dtype=torch.float64)
    oracle = components(prior)
    torch.testing.assert_close(prior.log_density(z), oracle.log_prob(z[:, None]))
    torch.testing.assert_close(prior.entropies(), oracle.entropy())
    mixture = MixtureSameFamily(Categorical(torch.ones(5, dtype=torch.float64)), oracle)
    joint = oracle.log_prob(z[:, None]) - math.log(5)
    torch.testing.assert_close(prior.log_memberships(z), joint - mixture.log_prob(z)[:, None])


def test_low_rank_density_and_entropy_are_those_of_the_full_covariance():
    prior = make("low_rank_mixture")
    z = torch.randn(7, 4, dtype=torch.float64)
    covariance = prior.directions @ prior.directions.mT + torch.diag_embed(prior.var)
    oracle = torch.distributions.MultivariateNormal(prior.mean, covariance)
    torch.testing.assert_close(prior.log_density(z), oracle.log_prob(z[:, None]))
    torch.testing.assert_close(prior.entropies(), oracle.entropy())


@pytest.mark.parametrize("family", ["gaussian_mixture", "laplace_mixture", "low_rank_mixture"])
def test_samples_have_the_moments_of_their_component(family):
    prior, k = make(family), 3
    with torch.no_grad():
        if family == "low_rank_mixture":
            prior.directions.mul_(5)
            assert (prior.marginal_std > 1.2 * prior.sampling_std).any()
        z = prior.sample_z(torch.full((200_000,), k), 200_000, rng())
        covariance = prior.covariances[k]
        torch.testing.assert_close(z.mean(0), prior.mean[k], atol=0.03, rtol=0)
        torch.testing.assert_close(z.std(0), prior.marginal_std[k], rtol=0.01, atol=0)
        covariance = covariance if covariance.dim() == 2 else torch.diag(covariance)
        torch.testing.assert_close(z.T.cov(), covariance, atol=0.12, rtol=0.03)


def test_memberships_sum_to_one_and_follow_a_renaming_of_clusters():
    prior = make()
    z = torch.randn(9, 4, dtype=torch.float64)
    before = prior.log_memberships(z).exp()
    torch.testing.assert_close(before.sum(1), torch.ones(9, dtype=torch.float64))
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        prior.mean.copy_(prior.mean[order])
        prior.log_var.copy_(prior.log_var[order])
    torch.testing.assert_close(prior.log_memberships(z).exp(), before[:, order])


def test_the_published_floor_samples_wider_and_keeps_the_memberships():
    text, code = make(), make(published_floor=True)
    z = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(code.log_memberships(z), text.log_memberships(z))
    torch.testing.assert_close(code.sampling_std, (code.log_var / 2).exp() + 0.5)
    start = Prior(2, 3, published_floor=True)
    assert abs(start.sampling_std[0, 0].item() ** 2 - 4.62) < 0.01
    assert abs(start.var[0, 0].item() - 2.97) < 0.01


def test_the_published_entropy_leaves_the_floor_out():
    prior = make(published_entropy=True)
    oracle = Independent(Normal(prior.mean, (prior.log_var / 2).exp()), 1)
    torch.testing.assert_close(prior.entropies(), oracle.entropy())


def test_given_weights_shift_samples_and_memberships():
    prior = make(weights=[1, 1, 1, 1, 6])
    y = prior.sample_y(20_000, rng())
    assert abs((y == 4).double().mean().item() - 0.6) < 0.02
    z = torch.randn(4, 4, dtype=torch.float64)
    joint = components(prior).log_prob(z[:, None]) + torch.log(torch.tensor([0.1] * 4 + [0.6]))
    torch.testing.assert_close(prior.log_memberships(z), joint.log_softmax(1), atol=1e-6, rtol=1e-6)


def test_normal_prior_has_no_clusters_and_no_parameters():
    prior = make("normal")
    z, y = prior.sample(50_000, rng())
    assert y is None and not list(prior.parameters()) and z.dtype == torch.float64
    assert abs(float(z.std()) - 1) < 0.01


def test_samples_follow_the_given_generator_alone():
    prior = make()
    a, b = prior.sample(6, rng(1)), prior.sample(6, rng(1))
    torch.manual_seed(99)
    c = prior.sample(6, rng(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])


def test_gradient_reaches_means_and_scales_through_samples():
    prior = make()
    z, _ = prior.sample(64, rng())
    z.square().sum().backward()
    assert prior.mean.grad.abs().sum() > 0 and prior.log_var.grad.abs().sum() > 0


def test_unknown_family_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="family must be one of gaussian_mixture"):
        Prior(2, 2, family="cauchy")
