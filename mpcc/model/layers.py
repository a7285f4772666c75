"""Layers of the three networks: spectrally normalised weights, conditional batch norm, up-sampling.

A spectral layer keeps the raw weight that the optimiser moves; the forward pass sees it divided by
its largest singular value, estimated by one power iteration for each change of the weight
(`mpcc.fast.weights` does that for all layers at once).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpcc.fast.doubled_conv import convolve_doubled, double

N_POWER_ITERATIONS_AT_START = 15
BATCH_NORM_EPS = 1e-5


def in_its_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A network's forward pass in bfloat16 where it is so set; what it returns is float32."""

    @wraps(forward)
    def wrapped(network: Any, x: Tensor, *more: Any, **named: Any) -> Any:
        if not network.in_bfloat16:
            return forward(network, x, *more, **named)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            out = forward(network, x, *more, **named)
        return out.float() if isinstance(out, Tensor) else tuple(o.float() for o in out)

    return wrapped


class Spectral(nn.Module):
    """A weight and its division by its largest singular value; subclasses apply it."""

    def __init__(self, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape).normal_(0, 0.02))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(shape[0]), dim=0))
        self.register_buffer("v", torch.zeros(self.weight[0].numel()))
        self.normalised: Tensor | None = None
        """Set while `mpcc.fast.weights` keeps the normalised weight; None: computed at each use."""
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
        if self.normalised is not None:
            return self.normalised
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
        weight = self.used_weight()
        if self.normalised is not None and weight.shape[2] == 1:
            # Channels last, a 1×1 convolution is a product of two matrices, at a third of the cost
            # on small images.
            by_pixel = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), self.bias)
            return by_pixel.permute(0, 3, 1, 2)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)

    def to_few_channels(self, x: Tensor) -> Tensor:
        """This 3×3 convolution where it leaves few channels: one product of matrices for its nine
        taps, whose results are then added, each in its place. On a CPU a fifth of the cost."""
        assert self.bias is not None
        weight = self.used_weight()
        n_out, n_in = weight.shape[:2]
        n, _, height, width = x.shape
        by_tap = weight.permute(2, 3, 0, 1).reshape(9 * n_out, n_in)
        taps = by_tap @ x.permute(0, 2, 3, 1).reshape(-1, n_in).T
        taps = taps.view(3, 3, n_out, n, height, width)
        out = taps.new_zeros(n_out, n, height + 2, width + 2)
        for i in range(3):
            for j in range(3):
                out[:, :, 2 - i : 2 - i + height, 2 - j : 2 - j + width] += taps[i, j]
        out = out[:, :, 1:-1, 1:-1] + self.bias.view(-1, 1, 1, 1)
        return out.transpose(0, 1).contiguous(memory_format=torch.channels_last)

    def on_doubled(self, x: Tensor, upsampling: str) -> Tensor:
        """This 3×3 convolution of x up-sampled by 2."""
        fast = self.normalised is not None and x.device.type == "cpu"
        if not fast or torch.is_autocast_enabled("cpu"):
            return self(double(x, upsampling))
        assert self.bias is not None
        return convolve_doubled(x, self.used_weight(), self.bias, upsampling)

    def then_pool(self, x: Tensor) -> Tensor:
        """This convolution, then a mean over 2×2 pixels.

        With weights kept by `mpcc.fast.weights` the mean comes first, at every place, and the
        convolution has only every second one left: 9 products for an output pixel instead of 36.
        """
        if self.normalised is None:
            return F.avg_pool2d(self(x), 2)
        return F.conv2d(F.avg_pool2d(x, 2, 1, 1), self.normalised, self.bias, stride=2)


class SpectralEmbedding(Spectral):
    """Rows of a spectrally normalised table; D's Embed(y) (Table 6)."""

    def __init__(self, n_labels: int, size: int) -> None:
        super().__init__((n_labels, size), bias=False)

    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, self.used_weight())


def embedding(n: int, size: int) -> nn.Embedding:
    """A plain table with weights N(0, 0.02)."""
    table = nn.Embedding(n, size)
    nn.init.normal_(table.weight, 0, 0.02)
    return table


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias follow from the condition (figure 4a).

    The condition is y (B,) where `n_clusters` is given, a vector (B, n_condition) where that is,
    and absent otherwise: then gain and bias are plain parameters.
    """

    def __init__(
        self, n_channels: int, *, n_clusters: int | None = None, n_condition: int | None = None
    ) -> None:
        super().__init__()
        self.gain: nn.Module
        self.shift: nn.Module
        if n_clusters is not None:
            self.gain = embedding(n_clusters, n_channels)
            self.shift = embedding(n_clusters, n_channels)
        elif n_condition is not None:
            self.gain = Linear(n_condition, n_channels, bias=False)
            self.shift = Linear(n_condition, n_channels, bias=False)
        else:
            self.weight = nn.Parameter(torch.ones(n_channels))
            self.bias = nn.Parameter(torch.zeros(n_channels))
        self.statistics = StandingStatistics()

    def forward(
        self, x: Tensor, condition: Tensor | None = None, n_batches: int | None = None
    ) -> Tensor:
        """x normalised; with `n_batches`, each of so many equal batches by itself."""
        gain, shift = self._affine(condition)
        if n_batches is None:
            if condition is None:
                return self.statistics.normalise(x, gain, shift)
            x = self.statistics.normalise(x)
            return torch.addcmul(shift[:, :, None, None], x, gain[:, :, None, None])
        # Statistics and condition as one factor and one summand: the images are read twice, not
        # four times. One of both for each image, so that batches may differ.
        mean, var = self.statistics.of(x, n_batches)
        rows = (n_batches, -1, x.shape[1])
        factor = gain.expand(x.shape[:2]).view(rows) * (var + BATCH_NORM_EPS).rsqrt()[:, None]
        summand = shift.expand(x.shape[:2]).view(rows) - mean[:, None] * factor
        size = (*x.shape[:2], 1, 1)
        return torch.addcmul(summand.view(size), x, factor.view(size))

    def _affine(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """What normalised values are multiplied by and raised by, (C,) or (B, C)."""
        if condition is None:
            return self.weight, self.bias
        return 1 + self.gain(condition), self.shift(condition)


class StandingStatistics:
    """Mean and variance of a batch in training; of several averaged passes in evaluation."""

    def __init__(self) -> None:
        self.state = "batch"
        self.n_passes = 0
        self.mean: Tensor | None = None
        self.var: Tensor | None = None

    def normalise(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """x (B, C, H, W) less its mean by its standard deviation, for each channel."""
        if self.state == "standing":
            return F.batch_norm(x, self.mean, self.var, weight, bias, False, 0.0, BATCH_NORM_EPS)
        if self.state == "collecting":
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self._collect(mean, var)
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, BATCH_NORM_EPS)

    def of(self, x: Tensor, n_batches: int) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalise each of so many equal batches by, (n_batches, C) each."""
        if self.mean is not None and self.var is not None and self.state == "standing":
            return self.mean.expand(n_batches, -1), self.var.expand(n_batches, -1)
        found = [torch.batch_norm_update_stats(b, None, None, 0.0) for b in x.chunk(n_batches)]
        mean, var = (torch.stack(both) for both in zip(*found, strict=True))
        if self.state == "collecting":
            for pair in zip(mean, var, strict=True):
                self._collect(*pair)
        return mean, var

    def _collect(self, mean: Tensor, var: Tensor) -> None:
        self.n_passes += 1
        if self.mean is None or self.var is None:
            self.mean, self.var = mean, var
        else:
            self.mean = self.mean + (mean - self.mean) / self.n_passes
            self.var = self.var + (var - self.var) / self.n_passes
