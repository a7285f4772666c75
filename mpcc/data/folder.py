"""Which files of a folder are your own images, and which labels their folders give them.

Standard library only. `Found.notes` counts every file left out.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpcc.data.places import DataError, required_dir

UNREAD_SUFFIXES = tuple(
    ".heic .heif .jxl .cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .raw".split(),
)
"""Suffixes of images that Pillow cannot open, or of which it reads only the thumbnail."""
IMAGE_SUFFIXES = (
    *".apng .avif .bmp .dib .dds .gif .icns .ico .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf".split(),
    *".jpg .jpx .mpo .pbm .pcx .pfm .pgm .png .pnm .ppm .psd .qoi .ras .sgi .tga .tif".split(),
    *".tiff .webp .xbm .xpm".split(),
    *UNREAD_SUFFIXES,
)
"""Suffixes of images, in lower case. Files with other suffixes are left out and counted."""
SYSTEM_NAMES = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs.db", "desktop.ini"),
}
"""Names that macOS, Windows, Linux and NAS devices create, in lower case; treated as hidden."""
SPLIT_NAMES = {
    *("train", "training"),
    *("test", "testing", "val", "valid", "validation", "dev", "eval"),
}
"""If all top folders have these names (in any case), they are splits: labels lie one deeper."""
TRAINING_NAMES = ("train", "training")
N_NAMED = 10
"""Files or folders named at most in a line."""


@dataclass(frozen=True)
class Found:
    """The images of a folder in the order of their names."""

    root: Path
    images: list[tuple[Path, str]]
    """Each with its label, '' if the folder has none."""
    in_training: list[bool] | None
    """Which of them lie in a training folder; None if there is none."""
    notes: tuple[str, ...]
    """What was left out, and which folders were taken for splits or labels."""


@dataclass
class _Walk:
    """What a walk through a folder finds."""

    files: list[tuple[str, ...]] = field(default_factory=list)
    """Relative names of images, part by part."""
    folders: list[tuple[str, ...]] = field(default_factory=list)
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Suffix -> number of files that are not images."""
    circles: list[str] = field(default_factory=list)


def find(data_dir: Path | str | None) -> Found:
    """The images of a folder: those directly in it have no labels; those in subfolders are labelled
    by subfolder.

    DataError, one line, if there are none or if the subfolders cannot be labels.
    """
    root = required_dir("folder", data_dir)
    walk = _walked(root, "; name another folder with --data-dir")
    files = walk.files
    depth = _label_depth(root, files)
    images = [(root.joinpath(*parts), _label(parts, depth)) for parts in files]
    in_training = [parts[0].lower() in TRAINING_NAMES for parts in files] if depth == 2 else None
    if in_training is not None and not any(in_training):
        in_training = None
    return Found(root, images, in_training, tuple(_notes(walk, files, depth)))


def files_in(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """All images below a folder, sorted by name, and one line for each kind of file left out.
    DataError if there are none."""
    walk = _walked(root)
    return [root.joinpath(*parts) for parts in walk.files], tuple(_left_out(walk))


def as_text(name: str | Path) -> str:
    """A file name as UTF-8 that every CSV reader accepts: undecodable bytes and carriage returns
    are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace").replace("\r", "\\r")


def readable(name: str | Path) -> str:
    """A name as it can be printed and written in one line, each odd character or byte escaped."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in as_text(name))


def named(names: Sequence[str]) -> str:
    """The first ten of these names, and how many more there are."""
    more = len(names) - N_NAMED
    return ", ".join(map(readable, names[:N_NAMED])) + (f" and {more:,} more" if more > 0 else "")


def counted(n: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _walked(root: Path, advice: str = "") -> _Walk:
    """What lies in a folder, images by name; DataError, with this advice, if there are none."""
    walk = _Walk()
    _enter(root, (), (os.path.realpath(root),), walk)
    if not walk.files:
        left_out = "; ".join(_left_out(walk))
        instead = f" ({left_out})" if left_out else ""
        raise DataError(f"no images (.png, .jpg, .tif, .webp, …) in {root}{instead}{advice}")
    walk.files.sort()
    return walk


def _enter(folder: Path, parts: tuple[str, ...], above: tuple[str, ...], walk: _Walk) -> None:
    """Note what lies in a folder and below; links are followed, but not back to a folder above."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in entries:
        inner = (*parts, entry.name)
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
            walk.hidden += 1
        elif _is_folder(entry):
            real = (
                os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{inner[-1]}"
            )
            if real in above:
                walk.circles.append("/".join(inner))
                continue
            walk.folders.append(inner)
            _enter(Path(entry.path), inner, (*above, real), walk)
        else:
            suffix = os.path.splitext(entry.name)[1].lower()
            # Keep broken symlinks: the reader reports them.
            real_file = os.path.isfile(entry.path) or not os.path.exists(entry.path)
            if suffix in IMAGE_SUFFIXES and real_file:
                walk.files.append(inner)
            else:
                walk.others[suffix or "no suffix"] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises OSError for a symlink loop.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _label_depth(root: Path, files: list[tuple[str, ...]]) -> int:
    """Depth of the label's folder: 0 no labels, 1 a top folder, 2 a folder in that of a split."""
    if all(len(parts) == 1 for parts in files):
        return 0
    _refuse_mixed(root, files, 1)
    tops = {parts[0] for parts in files}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    if splits == tops:
        if any(len(parts) > 2 for parts in files):
            _refuse_mixed(root, files, 2)
        return 2
    within = [parts for parts in files if parts[0] in splits]
    if len(splits) > 1 and all(len(parts) > 2 for parts in within):
        raise DataError(
            f"{root} holds folders of splits ({named(sorted(splits))}) beside others "
            f"({named(sorted(tops - splits))}), so that neither can be labels; move these out"
        )
    if len(tops) == 1 and all(len(parts) > 2 for parts in files):
        (top,) = tops
        inner = sorted({parts[1] for parts in files})
        raise DataError(
            f"all images of {root} lie in folders within {top} ({named(inner)}); "
            f"give {root / top} as --data-dir"
        )
    return 1


def _refuse_mixed(root: Path, files: list[tuple[str, ...]], depth: int) -> None:
    """DataError if some images lie in label subfolders and others beside these subfolders."""
    beside = [parts for parts in files if len(parts) == depth]
    if beside:
        deeper = next(parts for parts in files if len(parts) > depth)
        raise DataError(
            f"{root} holds images both beside and inside subfolders ({'/'.join(beside[0])}, "
            f"{'/'.join(deeper)}); move them all into subfolders named by label, or all into one "
            "folder"
        )


def _label(parts: tuple[str, ...], depth: int) -> str:
    return readable(parts[depth - 1]) if 0 < depth < len(parts) else ""


def _notes(walk: _Walk, files: list[tuple[str, ...]], depth: int) -> Iterator[str]:
    if depth == 2:
        tops = sorted({parts[0] for parts in files})
        below = "labels lie below" if any(len(p) > 2 for p in files) else "no labels below"
        yield f"{named(tops)} taken for splits, {below}"
    if depth:
        deeper = sum(len(parts) > depth + 1 for parts in files)
        if deeper:
            yield f"{counted(deeper, 'image')} in deeper folders counted to the label above"
        labels = {_label(parts, depth) for parts in files}
        places = {readable(parts[depth - 1]) for parts in walk.folders if len(parts) == depth}
        if places - labels:
            yield f"no label for folders without images: {named(sorted(places - labels))}"
        if len(labels) == 1 and "" not in labels:
            yield "one label alone, so that accuracies say nothing"
        if len({parts[depth - 1] for parts in files if len(parts) > depth}) > len(labels - {""}):
            yield "folders whose names are written alike count to one label"
        yield from _alike(labels)
    elif walk.folders:
        yield f"folders without images: {named(sorted(map('/'.join, walk.folders)))}"
    yield from _left_out(walk)


def _alike(labels: Iterable[str]) -> Iterator[str]:
    by_name: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike = unicodedata.normalize("NFKC", label).casefold().strip()
        by_name.setdefault(alike, []).append(label)
    several = ["/".join(names) for names in by_name.values() if len(names) > 1]
    if several:
        yield f"labels that differ in case, spaces or the code of accents alone: {named(several)}"


def _left_out(walk: _Walk) -> Iterator[str]:
    if walk.hidden:
        yield f"left out {counted(walk.hidden, 'hidden file')} and folders"
    if walk.others:
        kinds = [f"{n} {suffix}" for suffix, n in sorted(walk.others.items())]
        n = walk.others.total()
        yield f"left out {counted(n, 'file')} of other kinds: {named(kinds)}"
    if walk.circles:
        yield f"left out links that lead back to a folder above: {named(walk.circles)}"
