"""Prepare images of any kind as for training; errors say, in one line, what to do."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mpcc.data import folder
from mpcc.data.own_images import refusal
from mpcc.data.pictures import UnsoundError, pixels_of, progress, read_all, summary
from mpcc.data.places import DataError
from mpcc.data.source import Pixels, middle_square, resize
from mpcc.options import usable
from mpcc.shell import message_of
from mpcc.use.levels import Levels, refuse_inverted, refuse_nearly_black

log = logging.getLogger(__name__)

Images: TypeAlias = "NDArray[Any] | Tensor | Dataset[Any] | Sequence[Any] | str | Path"

CHUNK = 4096
"""Images that are converted at once; a bound on memory."""
MIN_SIDE = 4
"""A side with fewer pixels means that the axes are in another order."""
ROUNDING = 1e-6
"""Share of the range by which floats may lie beyond it."""


def prepare(
    images: Images,
    n_channels: int,
    size: int,
    *,
    value_range: tuple[float, float] | None = None,
    inverted: bool | None = None,
    levels: Levels | None = None,
    ground: str = "white",
) -> Tensor:
    """The images as uint8 (N, n_channels, size, size), the middle square resized as for training.

    images: an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, bool or floats; a
      Dataset or list whose items are images, PIL images or tuples starting with one; a list of
      files; a folder, with its subfolders, sorted by name.
    value_range: of floats, [0, 1] if not given; integers other than uint8 need it.
    ground: background colour under transparent pixels, as in training (`image_ground`).
    inverted: whether to exchange dark and bright; None refuses images that, by the `levels` of the
      training images, seem to need it, and images that are nearly black.
    DataError, one line, for invalid images.
    """
    if inverted not in (None, True, False):
        raise DataError(f"inverted must be True, False or None, got {inverted!r}")
    if value_range is not None:
        _check_range(value_range)
    files = files_of(images)
    if files is not None:
        found, brightest = _read(files, n_channels, size, ground)
    else:
        resized, brightest = [], 0
        for part in _parts(images, n_channels, value_range, ground):
            brightest = max(brightest, int(part.max()))
            resized.append(resize(np.ascontiguousarray(middle_square(part)), size))
        found = np.concatenate(resized)
    pixels = torch.from_numpy(found)
    if inverted:
        return 255 - pixels
    if inverted is None:
        refuse_nearly_black(brightest, levels)
        if levels is not None:
            refuse_inverted(pixels, levels)
    return pixels


def files_of(images: Images) -> list[Path] | None:
    """The files that these images are read from, in order; None for arrays and data sets."""
    if isinstance(images, (str, Path)):
        place = usable(images)
        if place.is_file():
            return [place]
        if not place.is_dir():
            raise DataError(f"{place} does not exist; name a folder of images, or files")
        files, left_out = folder.files_in(place)
        for line in left_out:
            log.warning("%s", line)
        return files
    if isinstance(images, (list, tuple)) and any(isinstance(i, (str, Path)) for i in images):
        if not all(isinstance(i, (str, Path)) for i in images):
            raise DataError("a list of files holds something else too; give paths alone")
        # A folder may hold a file called `~x.png`.
        return [Path(file) if os.path.lexists(file) else usable(file) for file in images]
    return None


def one_image(image: Images) -> Images:
    """A single image (H, W), (H, W, C) or (C, H, W), or of PIL, as a list; others as they are."""
    if isinstance(image, (np.ndarray, Tensor)) and image.ndim in (2, 3) and image.shape[0] != 1:
        return [image]
    return [image] if isinstance(image, Image.Image) else image


def _parts(
    images: Images, n_channels: int, value_range: tuple[float, float] | None, ground: str
) -> Iterator[NDArray[np.uint8]]:
    """The images as uint8 (n, n_channels, H, W), in parts that may differ in height and width."""
    # A list of lists holds numbers: it is an array.
    listed = isinstance(images, (list, tuple)) and not isinstance(next(iter(images), None), list)
    if listed or isinstance(images, Dataset):
        if not isinstance(images, Sized):
            raise DataError("the data set has no length; give list(…) of it")
        n = len(images)
        if not n:
            raise DataError("no images: the list or data set is empty; give at least one")
        for i in progress(range(n), n):
            yield _item(images[i], n_channels, value_range, ground, f"item {i}")
    else:
        array = _with_channels(_array(images), n_channels)
        _check_values(array, value_range)
        for start in range(0, len(array), CHUNK):
            yield _as_bytes(array[start : start + CHUNK], value_range)


def _read(files: list[Path], n_channels: int, size: int, ground: str) -> tuple[Pixels, int]:
    """Files as training reads them, (N, n_channels, size, size), and their brightest level.
    Conversions are logged."""
    found = np.empty((len(files), n_channels, size, size), np.uint8)
    brightest = np.zeros(len(files), np.uint8)

    def use(i: int, pixels: Pixels) -> None:
        pixels = _in_colours(pixels, n_channels, folder.readable(files[i]))
        found[i], brightest[i] = resize(middle_square(pixels)[None], size)[0], pixels.max()

    facts, wrong = read_all(files, ground, use)
    if wrong:
        raise refusal(wrong, len(files), option="--skip-damaged (in a shell)")
    for line in summary([one for one in facts if one])[1:]:
        log.warning("%s", line)
    return found, int(brightest.max())


def _item(
    item: Any,
    n_channels: int,
    value_range: tuple[float, float] | None,
    ground: str,
    name: str,
) -> NDArray[np.uint8]:
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, Image.Image):
        try:
            return _in_colours(pixels_of(image, ground), n_channels, name)[None]
        except UnsoundError as error:
            raise DataError(f"{name} is not a sound image ({error})") from None
    try:
        array = _with_channels(_array(image)[None], n_channels)
        _check_values(array, value_range)
    except (DataError, IndexError) as error:
        raise DataError(f"{name}: {error}") from None
    return _as_bytes(array, value_range)


def _array(images: Any) -> NDArray[Any]:
    """An array or a tensor, of whatever kind and device, as an array."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = images.float() if images.dtype == torch.bfloat16 else images
    try:
        return np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:  # Sparse, or of unequal sizes.
        kind = type(images).__name__
        raise DataError(f"a {kind} gives no array ({message_of(error, 200)})") from None


def _in_colours(image: NDArray[np.uint8], n_channels: int, name: str) -> NDArray[np.uint8]:
    """An RGB image (3, H, W) as (n_channels, H, W); DataError if colours would be lost."""
    if n_channels == 3:
        return image
    if (image != image[:1]).any():
        raise DataError(f"{name} is in colour and the model is of grey images; make it grey first")
    return image[:1]


def _with_channels(array: NDArray[Any], n_channels: int) -> NDArray[Any]:
    """The array as (N, C, H, W), values unchecked; DataError if type or shape do not fit images."""
    shape = tuple(array.shape)
    wanted = "(N, H, W), (N, H, W, 1) or (N, 1, H, W)"
    if n_channels != 1:
        wanted = f"(N, H, W, {n_channels}) or (N, {n_channels}, H, W)"
    if array.dtype.kind not in "buif":
        raise DataError(
            f"images must be numbers, got {array.dtype}; give an array or tensor of uint8 or "
            "floats, a list or torch Dataset of images, files, or a folder"
        )
    if array.ndim == 3 and n_channels == 1:
        found = array[:, None]
    elif array.ndim == 4 and shape[1] == n_channels:
        found = array
    elif array.ndim == 4 and shape[3] == n_channels:
        found = array.transpose(0, 3, 1, 2)
    else:
        kind = "grey" if n_channels == 1 else "colour"
        hint = "; one image is [image], flat ones need reshape" if array.ndim < 4 else ""
        raise DataError(f"the model takes {kind} images {wanted}, got shape {shape}{hint}")
    if not len(found):
        raise DataError(f"no images: an array of shape {shape}; give at least one")
    if min(found.shape[2:]) < MIN_SIDE:
        height, width = found.shape[2:]
        raise DataError(
            f"images of {height} x {width} pixels: {wanted} is meant, got shape {shape}"
        )
    return found


def _check_values(array: NDArray[Any], value_range: tuple[float, float] | None) -> None:
    """DataError if the values cannot be pixels, such as floats beyond value_range."""
    if array.dtype == bool:
        return
    low, high = array.min(), array.max()
    if array.dtype == np.uint8:
        if value_range is not None and tuple(value_range) != (0, 255):
            raise DataError(
                "uint8 images are 0 to 255; value_range is for floats: leave it out, or give "
                "images.astype(float)"
            )
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("images hold NaN or infinite values; repair or leave them out")
    if array.dtype.kind != "f" and value_range is None:
        raise DataError(
            f"images are {array.dtype}, {low} to {high}: give uint8 (.astype('uint8')) for 0 to "
            "255, or give value_range"
        )
    first, last = value_range or (0.0, 1.0)
    margin = ROUNDING * (last - first)
    if low < first - margin or high > last + margin:
        meant = f"({min(low, 0):g}, {high:g}), if those are black and white"
        if low < 0 and low >= -1 and high <= 1:
            meant = "(-1, 1)" if min(low, -high) < -0.5 else "(-0.5, 0.5)"
        elif low >= 0 and 16 < high <= 255:
            meant = "(0, 255)"
        raise DataError(
            f"images hold values {low:g} to {high:g}, beyond {first:g} to {last:g}: say their "
            f"range by value_range={meant}"
        )


def _as_bytes(array: NDArray[Any], value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Checked values as pixels 0..255, rounded to the nearest."""
    if array.dtype == np.uint8:
        return array
    first, last = value_range or (0.0, 1.0)
    share = (array.astype(np.float64) - first) / (last - first)
    return np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _check_range(value_range: Any) -> None:
    """DataError unless value_range is two finite, rising numbers."""
    try:
        first, last = map(float, value_range)
    except (TypeError, ValueError):
        first = last = math.nan
    if not (first < last and math.isfinite(last - first)):
        raise DataError(f"value_range must be two rising numbers, got {value_range!r}")
