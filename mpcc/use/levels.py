"""Checks of brightness against the training images: inverted or nearly black ones are refused."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpcc.data.places import DataError

SPREADS = 4.0
"""Images count as inverted only if their mean level is this many standard deviations (of an image's
mean level) from the training images'."""
NEARLY_BLACK = 16
"""Level (of 255) that no pixel exceeds if values of 0 to 1, or 0 to 16, are taken for uint8."""


class Levels(NamedTuple):
    """How bright the images of a data set are, 0 to 255."""

    mean: float
    spread: float
    """Standard deviation of an image's mean level."""

    @classmethod
    def of(cls, images: Tensor) -> Levels:
        """The levels of uint8 images (N, C, H, W)."""
        each = images.flatten(1).sum(1, dtype=torch.int64).double() / images[0].numel()
        return cls(float(each.mean()), float(each.std(correction=0)))


def refuse_nearly_black(brightest: int, levels: Levels | None) -> None:
    """DataError if 0 < brightest <= NEARLY_BLACK, unless the training images' mean is, too."""
    if 0 < brightest <= NEARLY_BLACK and (levels is None or levels.mean > NEARLY_BLACK):
        raise DataError(
            f"the images are nearly black: none has a value above {brightest} of 255; give floats "
            f"and their range, such as images.astype(float) and value_range=(0, {brightest}), or "
            "inverted=False (--inverted no) to take them as they are"
        )


def refuse_inverted(pixels: Tensor, levels: Levels) -> None:
    """DataError if the images' mean level is far from the training images', and nearer inverted."""
    mean = Levels.of(pixels).mean
    away, away_inverted = abs(mean - levels.mean), abs(255 - mean - levels.mean)
    if away_inverted < away and away > SPREADS * levels.spread:
        raise DataError(
            f"the images seem to be inverted: their mean level is {mean:.0f} of 255, that of the "
            f"training images {levels.mean:.0f}; say inverted=True (--inverted yes) to exchange "
            "dark and bright, inverted=False (--inverted no) to take them as they are"
        )
