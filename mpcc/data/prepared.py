"""Where prepared images are cached, and their metadata, which is read without the images."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any

from mpcc.config import Config
from mpcc.data import files as data_files
from mpcc.data import folder
from mpcc.data.places import cache_dir

_VERSION = 2
"""Increase it when a reader gives other pixels from the same files."""
_FOLDER_VERSION = 4
"""The same for your own images and the notes on them."""


def place_of(config: Config, data_dir: Path | None) -> Path:
    """Cache folder of the prepared images; DataError if the files that they come from are missing.
    Its name has a hash of the settings and of each file's path, size and modification time."""
    resolved: dict[Path, str] = {}  # Each folder only once: 100,000 images share few folders.
    files: list[tuple[str, int, int]] = []
    what: list[Any] = [_VERSION, config.dataset, config.split, config.image_size, files]
    if config.dataset == "folder":
        found = folder.find(data_dir)
        paths = [path for path, _ in found.images]
        what += [_FOLDER_VERSION, os.path.realpath(found.root), found.notes]
        what += [config.image_ground, config.skip_damaged]
    else:
        paths = data_files.source_files(config.dataset, data_dir)
    for path in paths:
        if path.parent not in resolved:
            resolved[path.parent] = os.path.realpath(path.parent)
        size, time = -1, -1
        with contextlib.suppress(OSError):  # A broken link, which the reader reports.
            about = path.stat()
            size, time = about.st_size, about.st_mtime_ns
        files.append((f"{resolved[path.parent]}/{path.name}", size, time))
    if config.dataset == "digits":
        what.append(importlib.metadata.version("scikit-learn"))
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    name = f"{config.dataset}-{config.split}-{config.image_size}-{digest}"
    return cache_dir() / "prepared" / name


def read_about(place: Path) -> dict[str, Any] | None:
    """Metadata of the prepared images in this folder, as `ImageSet.about` has it: shape, labels,
    fingerprint, notes; None if any part is missing."""
    try:
        about = json.loads((place / "about.json").read_bytes())
        whole = (place / "images.bin").stat().st_size == math.prod(about["shape"])
        if about["n_labels"] is not None:
            whole &= (place / "labels.bin").stat().st_size == about["n_labels"] * 8
        return about if whole and isinstance(about["fingerprint"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def about(config: Config, data_dir: Path | None) -> dict[str, Any]:
    """Metadata of the configuration's images; imports torch and reads the images only if they are
    not in the cache. DataError as `image_set.load`."""
    found = read_about(place_of(config, data_dir))
    if found is None:
        from mpcc.data.image_set import load

        found = load(config, data_dir).about
    return found


def fingerprint(config: Config, data_dir: Path | None) -> str:
    """The fingerprint of the configuration's images; DataError as `about`."""
    return str(about(config, data_dir)["fingerprint"])


def description(config: Config, data_dir: Path | None) -> str:
    """The notes on the configuration's images in one line; DataError as `about`."""
    return "data: " + "; ".join(about(config, data_dir)["notes"])
