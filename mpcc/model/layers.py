"""Layers of the three networks: spectrally normalised weights, conditional batch norm, up-sampling.

A spectral layer keeps the raw weight that the optimiser moves; the forward pass sees it divided by
its largest singular value, estimated by one power iteration for each change of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_POWER_ITERATIONS_AT_START = 15
BATCH_NORM_EPS = 1e-5


def in_its_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate forward(): if network.in_bfloat16, it runs in bfloat16 and returns float32."""

    @wraps(forward)
    def wrapped(network: Any, x: Tensor, *more: Any, **named: Any) -> Any:
        if not network.in_bfloat16:
            return forward(network, x, *more, **named)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            out = forward(network, x, *more, **named)
        return out.float() if isinstance(out, Tensor) else tuple(o.float() for o in out)

    return wrapped


class Spectral(nn.Module):
    """A weight that is divided by its largest singular value; subclasses apply it to inputs."""

    def __init__(self, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", torch.empty(shape[0]))
        self.register_buffer("v", torch.zeros(self.weight[0].numel()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights with mean 0 and std 0.02; estimate the first singular vectors.

        Does nothing on the meta device (weights then come from a file): initialising there makes
        torch import its compiler.
        """
        if not self.weight.is_meta:
            self.weight.normal_(0, 0.02)
            self.u.copy_(F.normalize(self.u.normal_(), dim=0))
            self.power_iterate(N_POWER_ITERATIONS_AT_START)

    @torch.no_grad()
    def power_iterate(self, n: int = 1) -> None:
        """Improve the estimates u (rows,) and v (columns,) of the first singular vectors."""
        matrix = self.weight.flatten(1)
        for _ in range(n):
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=1e-12))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))

    def used_weight(self) -> Tensor:
        """The weight that the forward pass sees; u and v count as constants in its gradient."""
        return self.weight / (self.u @ (self.weight.flatten(1) @ self.v))


class Linear(Spectral):
    """(B, n_in) -> (B, n_out)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__((n_out, n_in), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.used_weight(), self.bias)


class Conv(Spectral):
    """Size-preserving convolution, 3×3 padded by 1 or 1×1."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int) -> None:
        super().__init__((n_out, n_in, kernel_size, kernel_size), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.used_weight(), self.bias, padding=self.weight.shape[2] // 2)

    def on_doubled(self, x: Tensor, upsampling: str) -> Tensor:
        """Up-sample x (B, C, H, W) by 2, then apply this 3×3 convolution."""
        return self(double(x, upsampling))

    def then_pool(self, x: Tensor) -> Tensor:
        """Apply this convolution, then average over 2×2 pixels."""
        return F.avg_pool2d(self(x), 2)


class SpectralEmbedding(Spectral):
    """Rows of a spectrally normalised table; D's Embed(y) (Table 6)."""

    def __init__(self, n_labels: int, size: int) -> None:
        super().__init__((n_labels, size), bias=False)

    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, self.used_weight())


def double(x: Tensor, upsampling: str) -> Tensor:
    """x (B, C, H, W) up-sampled by 2: `nearest`, or `bilinear` (not aligned at the corners)."""
    if upsampling == "bilinear" and x.device.type == "cuda":
        return bilinear_double(x)
    align = None if upsampling == "nearest" else False
    return F.interpolate(x, scale_factor=2, mode=upsampling, align_corners=align)


def bilinear_double(x: Tensor) -> Tensor:
    """F.interpolate(x, scale_factor=2, mode="bilinear") as one matrix product per axis, channels
    last: on a GPU the gradient of torch's own version is not deterministic."""
    n_images, n_channels, height, width = x.shape
    across, down = (doubling(n, "bilinear", x.dtype, x.device) for n in (width, height))
    x = x.permute(0, 2, 3, 1).reshape(n_images, height, width * n_channels)
    x = for_each(down, x).view(n_images * 2 * height, width, n_channels)
    x = for_each(across, x)
    return x.view(n_images, 2 * height, 2 * width, n_channels).permute(0, 3, 1, 2)


@cache
def doubling(
    n: int, upsampling: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Matrix (2n, n) that up-samples n values by 2: `nearest` repeats each value; `bilinear` takes
    3/4 of the nearest value and 1/4 of the second nearest."""
    near = torch.eye(n, dtype=dtype).repeat_interleave(2, 0)
    if upsampling == "nearest":
        return near.to(device)
    beside = torch.arange(2 * n) // 2 + torch.tensor([-1, 1]).repeat(n)
    far = torch.eye(n, dtype=dtype)[beside.clamp(0, n - 1)]
    return (0.75 * near + 0.25 * far).to(device)


def for_each(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (M, K) @ each of the B matrices in x (B, K, N); the result is (B, M, N)."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x)


class Embedding(nn.Embedding):
    """A table with weights of mean 0 and std 0.02; like `Spectral`, not set on the meta device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # Its draws keep later weights as they were.
            nn.init.normal_(self.weight, 0, 0.02)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on a condition (figure 4a).

    The condition is y (B,) if `n_clusters` is given, and a vector (B, n_condition) if `n_condition`
    is given. With neither there is no condition: gain and bias are plain parameters.
    """

    def __init__(
        self, n_channels: int, *, n_clusters: int | None = None, n_condition: int | None = None
    ) -> None:
        super().__init__()
        self.gain: nn.Module
        self.shift: nn.Module
        if n_clusters is not None:
            self.gain = Embedding(n_clusters, n_channels)
            self.shift = Embedding(n_clusters, n_channels)
        elif n_condition is not None:
            self.gain = Linear(n_condition, n_channels, bias=False)
            self.shift = Linear(n_condition, n_channels, bias=False)
        else:
            self.weight = nn.Parameter(torch.ones(n_channels))
            self.bias = nn.Parameter(torch.zeros(n_channels))
        self.state = "batch"
        """`batch`: statistics of the batch; `collecting`: the same, and average them over passes;
        `standing`: use the averages."""
        self.n_passes = 0
        self.standing_mean: Tensor | None
        self.standing_var: Tensor | None
        self.register_buffer("standing_mean", None)
        self.register_buffer("standing_var", None)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) normalised, then scaled and shifted as the condition says."""
        gain, shift = self.affine(condition)
        if condition is None:
            return self.normalise(x, gain, shift)
        x = self.normalise(x)
        return torch.addcmul(shift[:, :, None, None], x, gain[:, :, None, None])

    def affine(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C,) each without a condition, else (B, C) each."""
        if condition is None:
            return self.weight, self.bias
        return 1 + self.gain(condition), self.shift(condition)

    def normalise(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """(x − mean) / std per channel of x (B, C, H, W), then by weight and bias (C,) if given."""
        if self.state == "standing":
            kept = self.standing_mean, self.standing_var
            return F.batch_norm(x, *kept, weight, bias, False, 0.0, BATCH_NORM_EPS)
        if self.state == "collecting":
            # In bfloat16, the statistics are averaged in float32.
            whole = x.to(torch.promote_types(x.dtype, torch.float32))
            var, mean = torch.var_mean(whole, (0, 2, 3), correction=0)
            self.collect(mean, var)
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, BATCH_NORM_EPS)

    def collect(self, mean: Tensor, var: Tensor) -> None:
        """Add the mean and variance (C,) of one more pass to the averages."""
        self.n_passes += 1
        if self.standing_mean is None or self.standing_var is None:
            self.standing_mean, self.standing_var = mean, var
        else:
            self.standing_mean = self.standing_mean + (mean - self.standing_mean) / self.n_passes
            self.standing_var = self.standing_var + (var - self.standing_var) / self.n_passes
