"""Check, before training starts, that a configuration can be trained on its images.

Imports neither torch nor numpy, so that a command that only plans can run these checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpcc.config import N_CHANNELS, Config
from mpcc.data import prepared
from mpcc.data.places import DataError

FEW = 1000
"""Every named data set has at least this many images; only more clusters may be too many."""

ASKED = ("dataset", "split", "image_size", "prior", "n_clusters", "conditional")
"""The fields that `check_data` reads; for dataset=folder also image_ground and skip_damaged."""


def check_images(config: Config, shape: Sequence[int], n_labels: int | None) -> None:
    """Raise DataError, one line, for images (N, C, H, W) that this configuration cannot train on.

    n_labels: number of different labels; None if the images have none.
    """
    n_images, *size = shape
    wanted = [config.n_channels, config.image_size, config.image_size]
    if size != wanted:
        was, now = ("×".join(map(str, numbers)) for numbers in (wanted, size))
        raise DataError(
            f"the configuration is of images of {was} (channels, height, width), these are {now}: "
            f"set image_size and dataset ({', '.join(f'{k} {n}' for k, n in N_CHANNELS.items())} "
            "channels) to theirs"
        )
    if n_images < 2:
        raise DataError(f"training needs at least 2 images of {config.dataset}, got {n_images}")
    if config.prior != "normal" and config.n_clusters > n_images:
        raise DataError(
            f"n_clusters={config.n_clusters} is more than the {n_images} images of "
            f"{config.dataset}: set fewer clusters"
        )
    if not config.conditional:
        return
    if n_labels is None:
        raise DataError(
            f"conditional=true needs labels, and the images of {config.dataset} have none: "
            "set conditional=false or choose a data set with labels"
        )
    if n_labels != config.n_clusters:
        raise DataError(
            f"conditional=true takes each label for a cluster, and the images of {config.dataset} "
            f"have {n_labels} labels: set n_clusters={n_labels}, not {config.n_clusters}"
        )


def check_data(config: Config, data_dir: Path | None) -> None:
    """Apply `check_images` to the configuration's data set, if its files are on this machine.

    Images that are not in the cache are read only if it is in doubt whether they fit.
    """
    try:
        place = prepared.place_of(config, data_dir)
    except DataError:
        return  # Reported where the files are needed.
    about = prepared.read_about(place)
    doubtful = config.conditional or config.dataset == "folder" or config.n_clusters > FEW
    if about is None and doubtful:
        about = prepared.about(config, data_dir)
    if about is not None:
        check_images(config, about["shape"], len(about["label_names"]) or None)
