"""Where the prepared images of a data set lie, and what they are, told without reading them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

from mpcc.config import Config
from mpcc.data import files as data_files

_VERSION = 1
"""Raise it when a reader gives other pixels from the same files."""


def place_of(config: Config, data_dir: Path | None) -> Path:
    """The folder of these prepared images; DataError where the files they come from are missing.

    Named for what they depend on: the settings, and each file's size and time.
    """
    files: list[tuple[str, str | int, int]] = []
    for path in data_files.source_files(config.dataset, data_dir):
        about = path.stat()
        files.append((str(path.resolve()), about.st_size, about.st_mtime_ns))
    if config.dataset == "digits":
        files.append(("scikit-learn", importlib.metadata.version("scikit-learn"), 0))
    what = [_VERSION, config.dataset, config.split, config.image_size, files]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    name = f"{config.dataset}-{config.split}-{config.image_size}-{digest}"
    return data_files.cache_dir() / "prepared" / name


def read_about(place: Path) -> dict[str, Any] | None:
    """What lies there (`shape`, `n_labels`, `fingerprint` ...); None where it is not whole."""
    try:
        about = json.loads((place / "about.json").read_bytes())
        whole = (place / "images.bin").stat().st_size == math.prod(about["shape"])
        if about["n_labels"] is not None:
            whole &= (place / "labels.bin").stat().st_size == about["n_labels"] * 8
        return about if whole and isinstance(about["fingerprint"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint(config: Config, data_dir: Path | None) -> str:
    """The fingerprint of these images; they are read, by torch, only where none are prepared."""
    about = read_about(place_of(config, data_dir))
    if about is not None:
        return str(about["fingerprint"])
    from mpcc.data.image_set import load

    return load(config, data_dir).fingerprint
