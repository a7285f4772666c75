"""A data set as it is read from files, and how its images are resized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """A data set as read; its images may still have their own size."""

    images: Pixels
    """(N, C, H, W)."""
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def resize(images: Pixels, size: int, chunk: int = 4096) -> Pixels:
    """Images (N, C, H, W) at size x size, by antialiased bilinear interpolation.

    The weights are whole multiples of 2^-14, so that every sum is exact in float64 and the result
    is the same to the bit on every machine, whatever the order of the additions.
    """
    if images.shape[-2:] == (size, size):
        return images
    rows = _interpolation(images.shape[-2], size)
    columns = _interpolation(images.shape[-1], size)
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for start in range(0, len(images), chunk):
        some = images[start : start + chunk]
        narrow = np.empty((*some.shape[:3], size))
        for top in range(0, some.shape[2], 512):  # A scan in float64 would take a gigabyte.
            part = slice(top, top + 512)
            narrow[:, :, part] = some[:, :, part].astype(np.float64) @ columns.T
        exact = rows @ narrow
        resized[start : start + chunk] = np.floor(exact / 2**28 + 0.5)
    return resized


@cache
def _interpolation(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Weights (size_out, size_in) of a triangle filter, whole numbers that sum to 2^14 by row."""
    scale = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    whole = np.rint(weights / weights.sum(1, keepdims=True) * 2**14)
    whole[np.arange(size_out), whole.argmax(1)] += 2**14 - whole.sum(1)
    return whole


def middle_square(images: Pixels) -> Pixels:
    """The largest square in the middle of images (..., H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def in_training(n: int) -> NDArray[np.bool_]:
    """Which of n are training images where no official split exists: all but every fifth."""
    return np.arange(n) % 5 != 4
