"""Named data sets as one uint8 tensor each, at the size asked for, with labels and a fingerprint.

    digits    scikit-learn's 1,797 handwritten digits, 8x8, part of that library
    mnist     70,000 digits, 28x28                    fmnist    70,000 pictures of clothes, 28x28
    omniglot  100 characters x 20 drawings x 20 distorted copies, 105x105
    cifar10   60,000 colour pictures, 32x32           cifar20   CIFAR-100 by its 20 superclasses
    folder    your own images, subfolders as labels

`split="train"` leaves out the official test images, or every fifth image (for Omniglot, drawing)
if there is no official split.

A data set is read, resized and checked once per machine: the result lies in the cache folder and
is mapped into memory, so that all trials on a machine share one copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpcc.config import Config
from mpcc.data import prepared as data_cache
from mpcc.data import readers as data_readers
from mpcc.data.cache import read_or_make
from mpcc.data.own_images import image_files
from mpcc.data.places import DataError
from mpcc.data.source import in_training
from mpcc.runs.files import remove_scraps, staged_path


@dataclass(frozen=True)
class ImageSet:
    """Images in the order of their source, with labels if there are any."""

    images: Tensor
    """uint8 (N, C, H, W). May be mapped from a file: writing to it changes this process's copy."""
    labels: Tensor | None
    """int64 (N,), from 0; None if the data has none."""
    label_names: tuple[str, ...]
    fingerprint: str
    """Twelve hexadecimal digits of the SHA-256 of shape, pixels and labels."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know about the data, such as that its files are modified."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def about(self) -> dict[str, Any]:
        """All but the pixels and the label of each image, ready for JSON."""
        return {
            "shape": list(self.images.shape),
            "n_labels": None if self.labels is None else len(self.labels),
            "label_names": self.label_names,
            "fingerprint": self.fingerprint,
            "notes": self.notes,
        }


def load(config: Config, data_dir: Path | None = None) -> ImageSet:
    """The data set that the configuration names, its split, at `image_size`. Raises DataError, one
    line, for files that are missing, damaged or mislabelled."""
    place = data_cache.place_of(config, data_dir)

    def read_files() -> ImageSet:
        source = data_readers.read(config, data_dir)
        images = torch.from_numpy(data_readers.resize(source.images, config.image_size).copy())
        labels = None if source.labels is None else torch.from_numpy(source.labels)
        image_set = ImageSet(
            images, labels, source.label_names, fingerprint(images, labels), source.notes
        )
        return _read_cached(_write_cached(place, image_set)) or image_set

    return read_or_make(place, _read_cached, read_files)


def held_out(config: Config, trained: ImageSet, data_dir: Path | None = None) -> ImageSet:
    """The images that `split=train` leaves out, with labels numbered as in `trained`.

    trained: what `load` gives for the configuration. DataError if the training images are not a
    proper subset of all images with the same label numbers.
    """
    whole = config.override(split="all", eval_split="trained")
    every = load(whole, data_dir)
    files = image_files(whole, data_dir, len(every))
    if files is not None:
        ours = set(image_files(config, data_dir, len(trained)) or ())
        kept = torch.tensor([file in ours for file in files])
    elif config.dataset == "digits":
        kept = torch.from_numpy(in_training(len(every)))
    elif config.dataset == "omniglot" and every.labels is not None:
        n_drawings = every.labels.bincount() // data_readers.N_COPIES
        of_drawings = np.concatenate([in_training(n) for n in n_drawings.tolist()])
        kept = torch.from_numpy(np.repeat(of_drawings, data_readers.N_COPIES))
    else:
        kept = torch.arange(len(every)) < len(trained)
    parts = []
    for chosen in (kept, ~kept):
        labels = None if every.labels is None else every.labels[chosen]
        images = every.images[chosen]
        parts.append(
            replace(every, images=images, labels=labels, fingerprint=fingerprint(images, labels))
        )
    if parts[0].fingerprint != trained.fingerprint or not len(parts[1]):
        raise DataError(
            f"eval_split=test: the training images of {config.dataset} are not a proper subset of "
            "all images with the same label numbers"
        )
    return parts[1]


def to_float(images: Tensor) -> Tensor:
    """Pixels 0..255 as float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Values in [-1, 1] as pixels 0..255, rounded to the nearest; beyond the range, clipped."""
    return ((images.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def fingerprint(images: Tensor, labels: Tensor | None) -> str:
    """Twelve hexadecimal digits that name this content."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(np.ascontiguousarray(images.numpy()).data)
    if labels is not None:
        digest.update(labels.numpy().astype("<i8").data)
    return digest.hexdigest()[:12]


def _read_cached(place: Path) -> ImageSet | None:
    """The prepared data in this folder, mapped into memory; None if it is incomplete."""
    about = data_cache.read_about(place)
    if about is None:
        return None
    try:
        n_values, n_labels = math.prod(about["shape"]), about["n_labels"]
        # from_file maps the file privately: pages are shared until one is written; we write none
        images = torch.from_file(str(place / "images.bin"), False, n_values, dtype=torch.uint8)
        labels = None
        if n_labels is not None:
            labels = torch.from_file(str(place / "labels.bin"), False, n_labels, dtype=torch.int64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ImageSet(
        images.view(about["shape"]),
        labels,
        tuple(about["label_names"]),
        about["fingerprint"],
        tuple(about["notes"]),
    )


def _write_cached(place: Path, image_set: ImageSet) -> Path:
    """Write the prepared data atomically, if the cache can be written; returns `place`."""
    staged = staged_path(place)
    with contextlib.suppress(OSError):
        try:
            remove_scraps(place.parent)
            staged.mkdir(parents=True)
            image_set.images.numpy().tofile(staged / "images.bin")
            if image_set.labels is not None:
                image_set.labels.numpy().tofile(staged / "labels.bin")
            (staged / "about.json").write_text(json.dumps(image_set.about))
            shutil.rmtree(place, ignore_errors=True)
            staged.rename(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return place
