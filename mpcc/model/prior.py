"""The prior p(y) p(z|y): learnable parameters in, samples, memberships and entropies out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FAMILIES = ("gaussian_mixture", "laplace_mixture", "low_rank_mixture", "normal")


class Prior(nn.Module):
    """A mixture of K components over z in R^J with learnable means and scales (section 3.3).

    family: `gaussian_mixture` (the paper), `laplace_mixture`, `low_rank_mixture` (a Gaussian whose
      covariance adds `rank` shared directions to the diagonal), or `normal`: a fixed standard
      normal without clusters, the AIM baseline.
    min_std: floor of the standard deviation, var = exp(log_var) + min_std².
    published_floor: sample with std = exp(log_var / 2) + min_std instead, as the published code
      does, while memberships keep the formula above.
    published_entropy: take the entropy of Loss III from log_var alone, without the floor.
    weights: φ, K positive numbers scaled to sum to 1; None: 1/K.
    Parameters: mean and log_var (K, J), directions (K, J, rank). ValueError for another family.
    """

    def __init__(
        self,
        n_clusters: int,
        latent_size: int,
        *,
        family: str = "gaussian_mixture",
        init_log_var: float = 1.0,
        min_std: float = 0.5,
        published_floor: bool = False,
        published_entropy: bool = False,
        rank: int = 2,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got '{family}'")
        self.family = family
        self.n_clusters, self.latent_size = n_clusters, latent_size
        self.min_std = min_std
        self.published_floor, self.published_entropy = published_floor, published_entropy
        self.uniform = weights is None
        self.weight_logits: Tensor
        phi = torch.ones(n_clusters) if weights is None else torch.tensor(list(weights))
        self.register_buffer("weight_logits", (phi / phi.sum()).log())
        if family == "normal":
            return
        self.mean = nn.Parameter(torch.empty(n_clusters, latent_size))
        nn.init.orthogonal_(self.mean)
        self.log_var = nn.Parameter(torch.full((n_clusters, latent_size), init_log_var))
        if family == "low_rank_mixture":
            self.directions = nn.Parameter(0.1 * torch.randn(n_clusters, latent_size, rank))

    @property
    def has_clusters(self) -> bool:
        """Whether there is a y: false for the `normal` family alone."""
        return self.family != "normal"

    @property
    def log_weights(self) -> Tensor:
        """log φ, (K,)."""
        return self.weight_logits.log_softmax(0)

    @property
    def var(self) -> Tensor:
        """Variance of each component and dimension without the shared directions, (K, J)."""
        return self.log_var.exp() + self.min_std**2

    @property
    def sampling_std(self) -> Tensor:
        """Standard deviation of samples without the shared directions, (K, J)."""
        if self.published_floor:
            return (self.log_var / 2).exp() + self.min_std
        return self.var.sqrt()

    @property
    def marginal_std(self) -> Tensor:
        """Standard deviation of z in each component and dimension, shared directions included,
        (K, J)."""
        if self.family != "low_rank_mixture":
            return self.sampling_std
        return (self.sampling_std.square() + self.directions.square().sum(2)).sqrt()

    @property
    def covariances(self) -> Tensor:
        """Covariance of z in each component, (K, J, J); if it is diagonal, the variances (K, J)."""
        var = self.sampling_std.square()
        if self.family != "low_rank_mixture":
            return var
        return torch.diag_embed(var) + self.directions @ self.directions.mT

    def sample_y(self, n: int, rng: torch.Generator) -> Tensor | None:
        """n clusters from p(y), (n,) int64; None without clusters."""
        if not self.has_clusters:
            return None
        if self.uniform:
            return torch.randint(
                self.n_clusters, (n,), generator=rng, device=self.weight_logits.device
            )
        # Inverse-CDF sampling, because torch.multinomial synchronises with the GPU.
        below = self.log_weights.exp().cumsum(0)
        u = torch.rand(n, generator=rng, device=below.device, dtype=below.dtype)
        return torch.searchsorted(below, u * below[-1], right=True).clamp_(max=len(below) - 1)

    def sample_z(self, y: Tensor | None, n: int, rng: torch.Generator) -> Tensor:
        """z ~ p(z|y), (n, J), reparameterised: gradients reach means and scales. y (n,) or None."""
        device, dtype = self.weight_logits.device, self.weight_logits.dtype
        if y is None:
            return torch.randn((n, self.latent_size), generator=rng, device=device, dtype=dtype)
        mean, std = self.mean[y], self.sampling_std[y]
        if self.family == "laplace_mixture":
            # Inverse-CDF sampling; unit variance needs scale 1/sqrt(2).
            u = torch.rand(mean.shape, generator=rng, device=device, dtype=dtype).sub_(0.5)
            noise = -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 1e-7)) / math.sqrt(2)
        else:
            noise = torch.randn(mean.shape, generator=rng, device=device, dtype=dtype)
        z = torch.addcmul(mean, std, noise)
        if self.family == "low_rank_mixture":
            size = (n, self.directions.shape[2], 1)
            shared = torch.randn(size, generator=rng, device=device, dtype=dtype)
            z = z + (self.directions[y] @ shared).squeeze(2)
        return z

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n fresh (z, y): (n, J), and (n,) int64 or None without clusters."""
        y = self.sample_y(n, rng)
        return self.sample_z(y, n, rng), y

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z|y=k) in nats for every component; z (B, J), the result (B, K)."""
        if self.family == "low_rank_mixture":
            return self._low_rank_density(z)
        difference = z[:, None] - self.mean
        if self.family == "laplace_mixture":
            scale = (self.var / 2).sqrt()
            return -(difference.abs() / scale).sum(2) - (2 * scale).log().sum(1)
        squares = (difference.square() / self.var).sum(2)
        constant = self.latent_size * math.log(2 * math.pi) + self.var.log().sum(1)
        return -0.5 * (squares + constant)

    def log_memberships(self, z: Tensor) -> Tensor:
        """log q(y|z), eq. 9 with the weights φ (equal in the paper, where they cancel); (B, K)."""
        return (self.log_density(z) + self.log_weights).log_softmax(1)

    def entropies(self) -> Tensor:
        """Entropy of each p(z|y) in nats, closed form, (K,)."""
        var = self.log_var.exp() if self.published_entropy else self.sampling_std.square()
        if self.family == "low_rank_mixture":
            log_det = self._low_rank(var)[2]
            return 0.5 * (self.latent_size * (1 + math.log(2 * math.pi)) + log_det)
        if self.family == "laplace_mixture":
            return (1 + 0.5 * (2 * var).log()).sum(1)
        return 0.5 * (1 + math.log(2 * math.pi) + var.log()).sum(1)

    def _low_rank_density(self, z: Tensor) -> Tensor:
        """`log_density` of a `low_rank_mixture`, its inverse covariance by Woodbury's identity."""
        difference = z[:, None] - self.mean
        along, root, log_det = self._low_rank(self.var)
        projected = torch.einsum("bkj,kjr->bkr", difference, along)[..., None]
        explained = torch.linalg.solve_triangular(root, projected, upper=False).square()
        squares = (difference.square() / self.var).sum(2) - explained.sum((2, 3))
        return -0.5 * (self.latent_size * math.log(2 * math.pi) + log_det + squares)

    def _low_rank(self, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For D + W Wᵀ, D = diag(var): D⁻¹W (K, J, R), Cholesky factor of I + WᵀD⁻¹W (K, R, R),
        log det (K,).

        Not torch.distributions: its Cholesky check waits for the GPU, which a CUDA graph forbids.
        """
        along = self.directions / var[..., None]
        identity = torch.eye(self.directions.shape[2], dtype=var.dtype, device=var.device)
        root = torch.linalg.cholesky_ex(identity + self.directions.mT @ along).L
        diagonal = root.diagonal(dim1=1, dim2=2)
        return along, root, var.log().sum(1) + 2 * diagonal.log().sum(1)
