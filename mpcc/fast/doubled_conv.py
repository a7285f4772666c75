"""A 3×3 convolution after up-sampling by 2, in a quarter of the products.

A kernel tap mixes channels and up-sampling mixes pixels, so they commute. Apply each of the 9 taps
on the small image (9 products per pixel, not 36), then shift, up-sample and crop each result and
add them, as one matrix product per axis, the same for all channels. Nothing is approximated.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpcc.model.layers import doubling, for_each

TAP_BYTES = 2**22
"""Memory for the taps of the images taken together: about a CPU's cache."""


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor, upsampling: str) -> Tensor:
    """F.conv2d(double(x, upsampling), weight, bias, padding=1) of x (B, C, H, W), channels last.

    weight: (N, C, 3, 3). Returns (B, N, 2H, 2W), channels last.
    """
    return _ConvolveDoubled.apply(x, weight, bias, upsampling)  # type: ignore[no-any-return]


class _ConvolveDoubled(torch.autograd.Function):
    """Rows of the taps' matrix are j, i, channel: the tap at row i, column j of the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, upsampling: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.upsampling = upsampling
        by_tap = _by_tap(weight).T
        # The centre tap always lies inside the image and its up-sampling weights sum to 1: the
        # bias is added there.
        by_tap_bias = F.pad(bias, (4 * len(bias), 4 * len(bias)))
        across, down = (placing(n, upsampling, x.dtype) for n in (x.shape[3], x.shape[2]))
        images = x.permute(0, 2, 3, 1)
        found = []
        for part in images.split(_n_at_once(x, weight)):
            n, height, width, n_in = part.shape
            taps = torch.addmm(by_tap_bias, part.reshape(-1, n_in), by_tap)
            taps = for_each(across, taps.view(n * height, 3 * width, -1))
            taps = taps.view(n, height, 2 * width, 3, -1).transpose(2, 3)
            found.append(for_each(down, taps.reshape(n, 3 * height, -1)))
        return _joined(found).view(len(x), 2 * height, 2 * width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        by_tap, n_out = _by_tap(weight), len(weight)
        across, down = (placing(n, ctx.upsampling, x.dtype).T for n in (x.shape[3], x.shape[2]))
        n_at_once = _n_at_once(x, weight)
        weight_gradient, bias_gradient = torch.zeros_like(by_tap), x.new_zeros(n_out)
        found = []
        for part, of_part in zip(
            x.permute(0, 2, 3, 1).split(n_at_once),
            gradient.permute(0, 2, 3, 1).split(n_at_once),
            strict=True,
        ):
            n, height, width, n_in = part.shape
            taps = for_each(down, of_part.reshape(n, 2 * height, -1))
            taps = taps.view(n, height, 3, 2 * width, n_out).transpose(2, 3)
            taps = for_each(across, taps.reshape(n * height, 2 * width, -1)).view(-1, len(by_tap))
            weight_gradient.addmm_(taps.T, part.reshape(-1, n_in))
            bias_gradient += taps[:, 4 * n_out : 5 * n_out].sum(0)
            found.append(taps @ by_tap)
        return (
            _joined(found).view(len(x), height, width, n_in).permute(0, 3, 1, 2),
            weight_gradient.view(3, 3, n_out, n_in).permute(2, 3, 1, 0),
            bias_gradient,
            None,
        )


def _by_tap(weight: Tensor) -> Tensor:
    """(N, C, 3, 3) -> (9 N, C)."""
    return weight.permute(3, 2, 0, 1).reshape(-1, weight.shape[1])


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _n_at_once(x: Tensor, weight: Tensor) -> int:
    """Images to be taken together."""
    of_one = 9 * len(weight) * x.shape[2] * x.shape[3] * x.element_size()
    return max(1, TAP_BYTES // of_one)


@cache
def placing(n: int, upsampling: str, dtype: torch.dtype) -> Tensor:
    """(2n, 3n) matrix from the three taps of each of n values to the convolved, doubled row, with
    zeros beyond its ends."""
    doubled = F.pad(doubling(n, upsampling, dtype), (0, 0, 1, 1))
    return torch.stack([doubled[i : i + 2 * n] for i in range(3)], 2).view(2 * n, 3 * n)
