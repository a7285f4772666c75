"""Layers and a generator that compute the same as those of `mpcc.model`, at a lower cost.

A network is built from plain layers; `quicken` turns it and its layers into their counterparts in
this module, which have the same parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpcc.fast.doubled_conv import convolve_doubled
from mpcc.model import layers, networks

CPU_GENERATED_BYTES = 8 * 2**20
"""Largest bytes of a layer for images generated together on a CPU: about the CPU's cache."""


class Spectral(layers.Spectral):
    """A weight that `mpcc.fast.weights` keeps normalised, instead of dividing it at each use."""

    normalised: Tensor

    def used_weight(self) -> Tensor:
        return self.normalised


class Linear(Spectral, layers.Linear):
    """(B, n_in) -> (B, n_out)."""


class SpectralEmbedding(Spectral, layers.SpectralEmbedding):
    """Rows of a spectrally normalised table."""


class Conv(Spectral, layers.Conv):
    """Size-preserving convolution, 3×3 padded by 1 or 1×1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.normalised
        if weight.shape[2] == 1:
            # Channels last, a 1×1 convolution is a product of two matrices, at a third of the cost
            # on small images.
            by_pixel = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), self.bias)
            return by_pixel.permute(0, 3, 1, 2)
        return F.conv2d(x, weight, self.bias, padding=1)

    def on_doubled(self, x: Tensor, upsampling: str) -> Tensor:
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self(layers.double(x, upsampling))
        assert self.bias is not None
        return convolve_doubled(x, self.normalised, self.bias, upsampling)

    def then_pool(self, x: Tensor) -> Tensor:
        """Average 2×2 at stride 1, then convolve at stride 2: 9 products per pixel, not 36."""
        return F.conv2d(F.avg_pool2d(x, 2, 1, 1), self.normalised, self.bias, stride=2)


class ConvToFewChannels(Conv):
    """A 3×3 convolution with few output channels, as one matrix product for its nine taps, whose
    results are shifted and added: on a CPU a fifth of the cost of a forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.normalised
        gradient = x.requires_grad or weight.requires_grad
        if gradient or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        assert self.bias is not None
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


class ConditionalBatchNorm(layers.ConditionalBatchNorm):
    """Without gradients, statistics and condition are folded into one scale and one shift per image
    (x is read twice, not four times); x may hold `n_batches` batches of equal size."""

    n_batches = 1

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        gain, shift = self.affine(condition)
        if x.requires_grad or gain.requires_grad:
            return super().forward(x, condition)
        mean, var = self._moments(x)
        rows = (self.n_batches, -1, x.shape[1])
        root = (var + layers.BATCH_NORM_EPS).rsqrt()
        factor = gain.expand(x.shape[:2]).view(rows) * root[:, None]
        summand = shift.expand(x.shape[:2]).view(rows) - mean[:, None] * factor
        size = (*x.shape[:2], 1, 1)
        return torch.addcmul(summand.view(size), x, factor.view(size))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalise each batch by, (n_batches, C) each."""
        if self.state == "standing":
            assert self.standing_mean is not None and self.standing_var is not None
            size = (self.n_batches, -1)
            return self.standing_mean.expand(size), self.standing_var.expand(size)
        whole = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = whole.chunk(self.n_batches)
        found = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in parts]
        mean, var = (torch.stack(both) for both in zip(*found, strict=True))
        if self.state == "collecting":
            for pair in zip(mean, var, strict=True):
                self.collect(*pair)
        return mean, var


class Generator(networks.Generator):
    """z (B, J) and y (B,) or None -> images (B, C, H, W) in [-1, 1]."""

    def batches(self, z: Tensor, y: Tensor | None, batch_size: int) -> Tensor:
        """Images of all batches together, or on a CPU of as many as its cache holds. Supports no
        gradients; len(z) must be divisible by batch_size."""
        at_once = len(z) // batch_size
        if z.device.type == "cpu":
            size = 4 * 2 ** len(self.blocks)
            largest = batch_size * self.last.weight.shape[1] * size**2 * z.element_size()
            at_once = max(1, min(at_once, CPU_GENERATED_BYTES // largest))
        parts = z.split(batch_size * at_once)
        labels = [None] * len(parts) if y is None else y.split(batch_size * at_once)
        norms: list[Any] = self.norms()
        drawn = []
        try:
            for z_part, y_part in zip(parts, labels, strict=True):
                for norm in norms:
                    norm.n_batches = len(z_part) // batch_size
                drawn.append(self(z_part, y_part))
        finally:
            for norm in norms:
                norm.n_batches = 1
        return torch.cat(drawn)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    layers.Linear: Linear,
    layers.SpectralEmbedding: SpectralEmbedding,
    layers.Conv: Conv,
    layers.ConditionalBatchNorm: ConditionalBatchNorm,
    networks.Generator: Generator,
}


def quicken(network: nn.Module) -> None:
    """Turn a network and its layers into their fast counterparts, in place; afterwards the caller
    must keep the weights normalised (`mpcc.fast.weights.Pool`)."""
    for module in network.modules():
        module.__class__ = _TWINS.get(type(module), type(module))
    if isinstance(network, Generator):
        network.last.__class__ = ConvToFewChannels
