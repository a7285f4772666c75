"""From a picture to its pixels, the same for training and for use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpcc.data.files import DataError

Pixels = NDArray[np.uint8]


def read_image(path: Path) -> Pixels:
    """An image file in colour, (3, H, W); DataError for one that cannot be read."""
    try:
        with Image.open(path) as opened:
            return pixels_of(opened, str(path))
    except DataError:
        raise
    except Exception as error:  # Decoders of images raise all sorts.
        raise DataError(f"{path} is not a sound image ({error}); mend or remove it") from None


def pixels_of(image: Image.Image, name: str) -> Pixels:
    """An opened image in colour, (3, H, W); DataError where bits or transparency would be lost."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} has more than 8 bits for a value ({image.mode}); convert it first")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise DataError(f"{name} is transparent; put it on a background first")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def middle_square(images: Pixels) -> Pixels:
    """The largest square in the middle of images (..., H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]
