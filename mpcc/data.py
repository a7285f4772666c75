"""Named data sets as one uint8 tensor each, resized, with labels and a fingerprint.

digits    scikit-learn's 1,797 handwritten digits, 8x8, part of that library
mnist     70,000 digits, 28x28; `train` is the first 60,000
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpcc import data_files
from mpcc.config import Config
from mpcc.data_files import DataError

__all__ = ["DataError", "ImageSet", "check_available", "load", "to_float", "to_uint8"]

N_DIGITS_TRAIN = 1437
"""The digits have no official split: `train` is the first four fifths."""


@dataclass(frozen=True)
class ImageSet:
    """Images in the order of their source, with labels where there are any."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor | None
    """int64 (N,), from 0; None where the data has none."""
    label_names: tuple[str, ...]
    fingerprint: str
    """Twelve hexadecimal digits of the SHA-256 of shape, pixels and labels."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know about the data, such as that its files are modified."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Source:
    """A data set at its own size, before it is resized."""

    images: np.ndarray
    """uint8 (N, C, H, W)."""
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load(config: Config, data_dir: Path | None = None, *, download: bool = False) -> ImageSet:
    """The data set that the configuration names, its split, at `image_size`.

    Raises DataError, one line, for files that are missing, damaged or mislabelled.
    """
    source = READERS[config.dataset](config, data_files.resolve_data_dir(data_dir))
    images = resize(torch.from_numpy(source.images), config.image_size)
    labels = None if source.labels is None else torch.from_numpy(source.labels.astype(np.int64))
    return ImageSet(images, labels, source.label_names, fingerprint(images, labels), source.notes)


def check_available(config: Config, data_dir: Path | None = None) -> None:
    """Return if the data can be read, as far as that is seen without reading it; else DataError."""
    data_files.check_available(config.dataset, data_dir)


def to_float(images: Tensor) -> Tensor:
    """Pixels 0..255 as float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Values in [-1, 1] as pixels 0..255, rounded to the nearest; beyond the range, clipped."""
    return ((images.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int, chunk: int = 4096) -> Tensor:
    """Images uint8 (N, C, H, W) at size x size, by antialiased bilinear interpolation.

    The weights are whole multiples of 2^-14, so that every sum is exact in float64 and the result
    is the same to the bit on every machine, whatever the order of the additions.
    """
    if images.shape[-2:] == (size, size):
        return images
    rows = torch.from_numpy(_interpolation(images.shape[-2], size))
    columns = torch.from_numpy(_interpolation(images.shape[-1], size))
    resized = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for start in range(0, len(images), chunk):
        exact = rows @ images[start : start + chunk].to(torch.float64) @ columns.T
        resized[start : start + chunk] = torch.floor(exact / 2**28 + 0.5).to(torch.uint8)
    return resized


def fingerprint(images: Tensor, labels: Tensor | None) -> str:
    """Twelve hexadecimal digits that name this content."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(np.ascontiguousarray(images.numpy()))
    if labels is not None:
        digest.update(labels.numpy().astype("<i8"))
    return digest.hexdigest()[:12]


def _interpolation(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) of a triangle filter, whole numbers that sum to 2^14 by row."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / support
    weights = np.clip(1 - distance, 0, None)
    whole = np.rint(weights / weights.sum(1, keepdims=True) * 2**14)
    peak = whole.argmax(1)
    whole[np.arange(size_out), peak] += 2**14 - whole.sum(1)
    return whole


def _read_digits(config: Config, data_dir: Path | None) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16  # 0..16, rounded to the nearest
    n = len(pixels) if config.split == "all" else N_DIGITS_TRAIN
    names = tuple(str(name) for name in digits.target_names)
    return Source(pixels[:n, None].astype(np.uint8), digits.target[:n], names)


def _read_mnist(config: Config, data_dir: Path | None) -> Source:
    paths = data_files.missing_or_found(config.dataset, data_dir)
    known = dict(data_files.FILES[config.dataset].checksums)
    if config.dataset == "mnist":
        known |= data_files.UNPACKED_MNIST
    parts = [_read_idx(path, known.get(path.name)) for path in paths]
    images, labels = [], []
    for i in range(0, 2 if config.split == "train" else 4, 2):
        _check_pair(paths[i], parts[i], paths[i + 1], parts[i + 1])
        images.append(parts[i])
        labels.append(parts[i + 1])
    note = data_files.modification(paths[0].parent)
    return Source(
        np.concatenate(images)[:, None],
        np.concatenate(labels),
        LABEL_NAMES[config.dataset],
        () if note is None else (f"{config.dataset}: files differ from the official ones: {note}",),
    )


def _read_idx(path: Path, checksum: str | None) -> np.ndarray:
    """The array of an idx file of unsigned bytes, packed or not."""
    data = data_files.read_checked(path, checksum)
    n_axes = data[3] if len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * n_axes], ">u4").tolist())
    if data[:3] != b"\0\0\x08" or n_axes not in (1, 3) or len(shape) != n_axes:
        raise DataError(f"{path} is not an idx file of bytes; get it again")
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * n_axes)
    if values.size != np.prod(shape):
        raise DataError(
            f"{path} holds {values.size:,} values where its head says "
            f"{' x '.join(map(str, shape))}; it is truncated: get it again"
        )
    return values.reshape(shape)


def _check_pair(image_path: Path, images: np.ndarray, label_path: Path, labels: np.ndarray) -> None:
    if images.ndim != 3:
        raise DataError(f"{image_path} holds no images; get it again")
    if labels.shape != (len(images),):
        raise DataError(
            f"{label_path} holds {labels.size:,} labels for the {len(images):,} images "
            f"of {image_path.name}; get both again"
        )
    if labels.max(initial=0) > 9:
        raise DataError(f"{label_path} holds label {labels.max()}, beyond 9; get it again")


LABEL_NAMES = {"mnist": tuple("0123456789")}

READERS: dict[str, Callable[[Config, Path | None], Source]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
}
