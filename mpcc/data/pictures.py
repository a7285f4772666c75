"""Your own images, in any format and mode that Pillow reads, as uint8 RGB arrays.

Each conversion adds a remark to the image's `Facts`; `summary` counts the remarks.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base as Tag

from mpcc.data.folder import UNREAD_SUFFIXES
from mpcc.data.source import Pixels
from mpcc.machine import usable_cores
from mpcc.shell import message_of

GROUNDS = {"white": 255, "grey": 128, "black": 0}
"""Background colour under transparent pixels -> its grey level."""
BATCH = 32
"""Images that a thread reads before it takes the next ones."""
PROGRESS_SECONDS = 5.0
"""Time between two lines of progress."""
SIGNED = 2
"""TIFF SampleFormat 2: signed integers."""
SIDEWAYS = range(2, 9)
"""Orientations that are not upright."""
SIXTEEN = re.compile(r";16[BLN]")
"""Matches Pillow's raw modes that have 16-bit channels, in any byte order."""
SCALED = re.compile(r"L;[24]|;16[BLN]")
"""Raw modes that Pillow rescales to 8 bits without rescaling the transparent grey level."""


class UnsoundError(ValueError):
    """An image cannot be read, or only by guessing; the message is the reason in a few words."""


Unsound = tuple[Path, UnsoundError]


@dataclass(frozen=True)
class Facts:
    """Properties of an image before its conversion to uint8 RGB; width and height are upright."""

    width: int
    height: int
    mode: str
    remarks: tuple[str, ...]
    """The conversions, each worded to follow a number of images: `12 turned upright`."""
    brightest: int | None = None
    """The largest value of a grey image of more than 8 bits, 0 to 65,535; None for others."""


def read_picture(path: Path, ground: str = "white") -> tuple[Pixels, Facts]:
    """An image as uint8 (3, H, W), upright, with the background `ground` (a key of GROUNDS) under
    transparent pixels; only the first of several frames. Raises UnsoundError."""
    if path.suffix.lower() in UNREAD_SUFFIXES:
        raise UnsoundError(f"{path.suffix} is not read; save it as PNG or JPEG")
    try:
        with Image.open(path) as opened:
            opened.verify()  # Checks PNG's checksums, which its decoder ignores.
        with Image.open(path) as opened:
            return _converted(opened, ground)
    except UnsoundError:
        raise
    except Image.UnidentifiedImageError:
        n_bytes = path.stat().st_size
        raise UnsoundError("no image in it that Pillow reads" if n_bytes else "0 bytes") from None
    except OSError as error:
        raise UnsoundError(error.strerror or message_of(error)) from None
    except Exception as error:  # Image decoders raise many types of errors.
        raise UnsoundError(message_of(error)) from None


def pixels_of(image: Image.Image, ground: str = "white") -> Pixels:
    """An opened image as `read_picture` gives it. Raises UnsoundError."""
    try:
        return _converted(image, ground)[0]
    except Exception as error:  # Image decoders raise many types of errors.
        raise UnsoundError(message_of(error)) from None


def read_all(
    paths: Sequence[Path], ground: str, use: Callable[[int, Pixels], None]
) -> tuple[list[Facts | None], list[Unsound]]:
    """Read images on all cores; each thread calls use(index, pixels (3, H, W)) for readable ones.
    Returns the Facts of each image, None if unreadable, and the unreadable files with reasons."""
    facts: list[Facts | None] = [None] * len(paths)
    wrong: dict[int, UnsoundError] = {}

    def read(places: range) -> None:
        for i in places:
            try:
                pixels, facts[i] = read_picture(paths[i], ground)
                use(i, pixels)
            except UnsoundError as error:
                wrong[i] = error

    pool = ThreadPoolExecutor(usable_cores())
    batches = [range(i, min(i + BATCH, len(paths))) for i in range(0, len(paths), BATCH)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about images that it reads anyway.
        try:
            reading = [pool.submit(read, batch) for batch in batches]
            for batch in progress(reading, len(paths)):
                batch.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return facts, [(paths[i], wrong[i]) for i in sorted(wrong)]


Item = TypeVar("Item")


def progress(work: Sequence[Item], n: int) -> Iterator[Item]:
    """Yield the items of work on n images; if it takes long, print its progress on stderr."""
    begun = printed = time.monotonic()
    for done, item in enumerate(work):
        now = time.monotonic()
        if done and now - printed > PROGRESS_SECONDS:
            printed, left = now, (now - begun) / done * (len(work) - done)
            text = f"{done * n // len(work):,} of {n:,} images, {left:.0f} s left"
            with suppress(OSError, ValueError):  # stderr may be closed.
                print(text, file=sys.stderr, flush=True)
        yield item


def summary(facts: Sequence[Facts]) -> list[str]:
    """A line with sizes and modes, then one per conversion with its number of images."""
    modes = Counter(one.mode for one in facts)
    widths, heights = [one.width for one in facts], [one.height for one in facts]
    remarks = Counter(remark for one in facts for remark in one.remarks)
    deep = [one.brightest for one in facts if one.brightest is not None]
    lines = [f"{n:,} {remark}" for remark, n in sorted(remarks.items())]
    if deep:
        lines.append(f"largest value of these with 16 bits: {max(deep):,} of 65,535")
    return [
        f"{_span(widths)} pixels wide, {_span(heights)} high, modes "
        + ", ".join(f"{mode} {n:,}" for mode, n in sorted(modes.items())),
        *lines,
    ]


def _span(lengths: Sequence[int]) -> str:
    low, high = min(lengths), max(lengths)
    return f"{low}" if low == high else f"{low}–{high}"


def _converted(opened: Image.Image, ground: str) -> tuple[Pixels, Facts]:
    tile = getattr(opened, "tile", None)  # What ImageFile's subclasses have before they load.
    raw = str(tile[0].args) if tile else ""
    if "transparency" in opened.info and SCALED.search(raw):
        raise UnsoundError("transparent grey level is not 8-bit; save with an alpha channel")
    if opened.format != "TIFF":
        # Load before EXIF is read: Pillow's PNG EXIF reader would hide the error of damaged pixels.
        opened.load()
    as_stored = _orientation(opened)
    opened.load()  # TIFF only now: its reader turns the image itself.
    remarks = [*_profile(opened.info.get("icc_profile")), *_channels(opened)]
    values, brightest = opened, None
    if opened.mode == "F" or opened.mode.startswith("I"):
        grey = _sixteen_bits(opened)
        brightest = int(grey.max())
        remarks.append("of 16 bits, grey, divided by 257")
        # 65,535 = 255 · 257: white stays white, and every level is rounded to the nearest.
        values = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif opened.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        remarks.append(f"converted from {opened.mode} to RGB without a colour profile")
    elif SIXTEEN.search(raw):
        remarks.append(f"of 16 bits a channel, read as 8 ({opened.mode})")
    if values.has_transparency_data:
        colour, transparent = _grounded(values, GROUNDS[ground])
        remarks += [f"transparent, put on {ground}"] if transparent else []
    else:
        colour = np.asarray(values.convert("RGB"))
    colour = _upright(colour, _orientation(opened))
    if as_stored is None:
        remarks.append("of unreadable EXIF, so left as stored")
    elif as_stored in SIDEWAYS:
        remarks.append("turned upright")
    if colour.shape[0] != colour.shape[1]:
        remarks.append("cropped to the middle square")
    if getattr(opened, "is_animated", False):
        remarks.append("of several frames, of which the first is taken")
    height, width = colour.shape[:2]
    facts = Facts(width, height, opened.mode, tuple(remarks), brightest)
    return np.ascontiguousarray(colour.transpose(2, 0, 1)), facts


def _sixteen_bits(opened: Image.Image) -> NDArray[np.int64]:
    """Grey values (H, W), 0 black to 65,535 white; UnsoundError if the range is unknown."""
    if opened.mode == "F" or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
        kind = "floating point" if opened.mode == "F" else "32-bit or signed"
        raise UnsoundError(f"{kind} values have no range of their own; save it with 8 or 16 bits")
    values = np.asarray(opened).astype(np.int64)
    tags = getattr(opened, "tag_v2", {})
    bits = tags.get(Tag.BitsPerSample, (16,))[0]
    if bits < 16:
        values = values * 65535 // (2**bits - 1)
    return 65535 - values if tags.get(Tag.PhotometricInterpretation) == 0 else values


def _channels(opened: Image.Image) -> Iterator[str]:
    """A remark on TIFF channels beside colours and alpha; UnsoundError for signed values."""
    tags = getattr(opened, "tag_v2", {})
    if opened.mode in ("L", "RGB") and SIGNED in tags.get(Tag.SampleFormat, ()):
        raise UnsoundError("signed values have no range of their own; save it with 8 or 16 bits")
    if Tag.ExtraSamples in tags and not opened.has_transparency_data:
        yield "with channels beside the colours, which are left out"


def _grounded(image: Image.Image, ground: int) -> tuple[NDArray[np.uint8], bool]:
    """RGB (H, W, 3) on the background level `ground`, and whether any pixel is transparent."""
    rgba = np.asarray(image.convert("RGBA"))
    if rgba[..., 3].min() == 255:
        return np.asarray(image.convert("RGB")), False
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + ground * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8), True


def _orientation(opened: Image.Image) -> int | None:
    """The orientation that EXIF, XMP or TIFF gives; None if it cannot be read."""
    try:
        return int(opened.getexif().get(Tag.Orientation, 1))
    except Exception:  # The pixels are readable even if the metadata is not.
        return None


def _upright(colour: NDArray[np.uint8], orientation: int | None) -> NDArray[np.uint8]:
    if orientation not in SIDEWAYS:
        return colour
    stored = Image.fromarray(colour)
    stored.getexif()[Tag.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(stored))


@functools.lru_cache(maxsize=64)
def _profile(profile: bytes | None) -> tuple[str, ...]:
    if not profile:
        return ()
    try:
        text = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (OSError, ImageCms.PyCMSError):
        text = "unreadable"
    if "srgb" in text.lower():
        return ()
    return (f"with the colour profile {' '.join(text.split())[:40]}, which is not applied",)
