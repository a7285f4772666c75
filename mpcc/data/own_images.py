"""A folder of your own images as a data set, with notes on every conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpcc.config import Config
from mpcc.data import folder
from mpcc.data.pictures import Unsound, read_all, summary
from mpcc.data.places import DataError
from mpcc.data.source import Pixels, Source, in_training, middle_square, resize

SKIP = "--set skip_damaged=true"


def read_folder(config: Config, data_dir: Path | None) -> Source:
    """The images of a folder's split in RGB, cropped to the middle square; subfolders are labels.
    DataError for damaged files, unless config.skip_damaged is set and some files are readable."""
    found = folder.find(data_dir)
    kept, size = _of_split(found, config.split), config.image_size
    images = np.empty((len(kept), 3, size, size), np.uint8)

    def use(i: int, pixels: Pixels) -> None:
        images[i] = resize(middle_square(pixels)[None], size)[0]

    paths = [path for path, _ in kept]
    facts, wrong = read_all(paths, config.image_ground, use)
    sound = [one is not None for one in facts]
    if wrong and not (config.skip_damaged and any(sound)):
        raise refusal(wrong, len(paths), found.root, "" if config.skip_damaged else SKIP)
    notes = _left_out(wrong, found.root)
    if wrong:
        images, kept = images[sound], [image for image, s in zip(kept, sound, strict=True) if s]
    counts = Counter(label for _, label in kept)
    names = tuple(sorted(counts))
    lost = sorted({label for _, label in found.images} - set(names))
    if lost:
        notes.append(f"no image of {folder.named(lost)} is left, so that there is no such label")
    what = [f"{folder.counted(len(kept), 'image')}, {_labels_text(counts)}"]
    first, *converted = summary([one for one in facts if one])
    notes = [", ".join([*what, first]), *converted, *found.notes, *notes]
    if names == ("",):
        return Source(images, None, (), tuple(notes))
    labels = np.array([names.index(label) for _, label in kept], np.int64)
    return Source(images, labels, names, tuple(notes))


def image_files(config: Config, data_dir: Path | None, n_images: int) -> list[str] | None:
    """File of each image that `read_folder` returned, relative to the folder; None for named sets.

    n_images: how many it returned; if there are more files, all are read again to find the damaged
      ones that it left out. DataError as `find`.
    """
    if config.dataset != "folder":
        return None
    found = folder.find(data_dir)
    paths = [path for path, _ in _of_split(found, config.split)]
    if len(paths) != n_images:
        paths, _ = sound_files(paths, config.image_ground)
    return [folder.as_text(path.relative_to(found.root)) for path in paths]


def _of_split(found: folder.Found, split: str) -> list[tuple[Path, str]]:
    """The images of a split; `train`: those in training folders, else all but every fifth."""
    if split != "train":
        return found.images
    kept = found.in_training or in_training(len(found.images))
    return [image for image, k in zip(found.images, kept, strict=True) if k]


def sound_files(paths: Sequence[Path], ground: str) -> tuple[list[Path], list[str]]:
    """The files that can be read, and a note on the others; DataError if none can."""
    facts, wrong = read_all(paths, ground, lambda i, pixels: None)
    sound = [path for path, one in zip(paths, facts, strict=True) if one]
    if wrong and not sound:
        raise refusal(wrong, len(paths))
    return sound, _left_out(wrong)


def refusal(
    wrong: Sequence[Unsound], n_files: int, root: Path | None = None, option: str = ""
) -> DataError:
    """Error that lists the unreadable files, of n_files, in one line. root: the folder of all of
    them, if there is one. option: the option that skips them."""
    what, them = f"{folder.readable(wrong[0][0])} is not a sound image ({wrong[0][1]})", "it"
    if len(wrong) > 1:
        inside, them = f" in {root}" if root else "", "them"
        named = _named(wrong, root)
        what = f"{len(wrong):,} of {n_files:,} files{inside} are not sound images: {named}"
    advice = f", or leave {them} out by {option}" if option else ""
    return DataError(f"{what}; repair or remove {them}{advice}")


def _left_out(wrong: Sequence[Unsound], root: Path | None = None) -> list[str]:
    n = folder.counted(len(wrong), "damaged file")
    return [f"left out {n}: {_named(wrong, root)}"] if wrong else []


def _named(wrong: Sequence[Unsound], root: Path | None) -> str:
    return folder.named(
        [f"{path.relative_to(root) if root else path} ({error})" for path, error in wrong]
    )


def _labels_text(counts: Counter[str]) -> str:
    if set(counts) == {""}:
        return "no labels"
    if len(counts) <= folder.N_NAMED:
        each = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
    else:
        each = f"{min(counts.values()):,} to {max(counts.values()):,} images each"
    return f"{folder.counted(len(counts), 'label')} ({each})"
