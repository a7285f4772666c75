"""A folder of images of one's own as a data set, with notes on all that was converted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mpcc.config import Config
from mpcc.data import folder, pictures
from mpcc.data.places import DataError
from mpcc.data.source import Pixels, Source, in_training, middle_square, resize


def read_folder(config: Config, data_dir: Path | None) -> Source:
    """All images of a folder in colour, cut to their middle square; subfolders are labels."""
    found = folder.find(data_dir)
    kept, size = _of_split(found, config.split), config.image_size
    images = np.empty((len(kept), 3, size, size), np.uint8)

    def use(i: int, pixels: Pixels) -> None:
        images[i] = resize(middle_square(pixels)[None], size)[0]

    read = pictures.read_all([path for path, _ in kept], config.image_ground, use)
    facts = [one for one in read if isinstance(one, pictures.Facts)]
    notes = _damaged(found, kept, read, config.skip_damaged)
    if len(facts) < len(kept):
        sound = [isinstance(one, pictures.Facts) for one in read]
        images, kept = images[sound], [image for image, s in zip(kept, sound, strict=True) if s]
    counts = Counter(label for _, label in kept)
    names = tuple(sorted(counts))
    lost = sorted({label for _, label in found.images} - set(names))
    if lost:
        notes.append(f"no image of {folder.named(lost)} is left, so that there is no such label")
    what = [f"{folder.counted(len(kept), 'image')}, {_labels_text(counts)}"]
    first, *converted = pictures.summary(facts)
    notes = [", ".join([*what, first]), *converted, *found.notes, *notes]
    if names == ("",):
        return Source(images, None, (), tuple(notes))
    labels = np.array([names.index(label) for _, label in kept], np.int64)
    return Source(images, labels, names, tuple(notes))


def image_files(config: Config, data_dir: Path | None, n_images: int) -> list[str] | None:
    """The file of each image that `read_folder` gave, as seen from the folder; None for named sets.

    n_images: how many it gave; damaged files that it left out are looked for where some lack.
    """
    if config.dataset != "folder":
        return None
    found = folder.find(data_dir)
    paths = [path for path, _ in _of_split(found, config.split)]
    if len(paths) != n_images:
        read = pictures.read_all(paths, config.image_ground, lambda i, pixels: None)
        pairs = zip(paths, read, strict=True)
        paths = [path for path, one in pairs if isinstance(one, pictures.Facts)]
    return [str(path.relative_to(found.root)) for path in paths]


def _of_split(found: folder.Found, split: str) -> list[tuple[Path, str]]:
    """The images of a split: those in a training folder, or all but every fifth."""
    if split != "train":
        return found.images
    kept = found.in_training or in_training(len(found.images))
    return [image for image, k in zip(found.images, kept, strict=True) if k]


def _damaged(
    found: folder.Found,
    kept: list[tuple[Path, str]],
    read: list[pictures.Facts | pictures.UnsoundError],
    skip: bool,
) -> list[str]:
    """The note on damaged files; DataError where they must not be left out or nothing is left."""
    wrong = [
        (path, one)
        for (path, _), one in zip(kept, read, strict=True)
        if isinstance(one, pictures.UnsoundError)
    ]
    if not wrong:
        return []
    if not skip and len(wrong) == 1:
        path, error = wrong[0]
        raise DataError(
            f"{folder.readable(path)} is not a sound image ({error}); mend or remove it, or leave "
            "it out by --set skip_damaged=true"
        )
    lines = [f"{path.relative_to(found.root)} ({error})" for path, error in wrong]
    if not skip or len(wrong) == len(kept):
        raise DataError(
            f"{len(wrong):,} of {len(kept):,} files in {found.root} are not sound images: "
            f"{folder.named(lines)}; mend or remove them"
            + ("" if skip else ", or leave them out by --set skip_damaged=true")
        )
    return [f"left out {folder.counted(len(wrong), 'damaged file')}: {folder.named(lines)}"]


def _labels_text(counts: Counter[str]) -> str:
    if set(counts) == {""}:
        return "no labels"
    if len(counts) <= folder.N_NAMED:
        each = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
    else:
        each = f"{min(counts.values()):,} to {max(counts.values()):,} images each"
    return f"{folder.counted(len(counts), 'label')} ({each})"
