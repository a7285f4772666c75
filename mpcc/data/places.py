"""The folder of data files that the user names, and the cache of what is computed from them.

Standard library only.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from mpcc.options import usable

DATA_DIR_VARIABLE = "MPCC_DATA_DIR"
CACHE_DIR_VARIABLE = "MPCC_CACHE_DIR"

NOWHERE = Path(os.devnull) / "mpcc"
"""A path that cannot be created: no cache."""


class DataError(ValueError):
    """Data that is missing, damaged or not what its name says; one line, with what to do."""


def cache_dir() -> Path:
    """The folder of prepared data and reference statistics: MPCC_CACHE_DIR or the user's cache.

    Without a writable home it is a private folder of this user among the temporary files. DataError
    for an MPCC_CACHE_DIR that cannot be a path.
    """
    given = os.environ.get(CACHE_DIR_VARIABLE)
    if given:
        try:
            return usable(given)
        except ValueError as error:
            raise DataError(f"{CACHE_DIR_VARIABLE}: {error}") from None
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if _writable(caches / "mpcc"):
            return caches / "mpcc"
    except RuntimeError:  # From Path.home() for a user without a home.
        pass
    return _temporary(f"mpcc-{os.getuid()}")


def _temporary(name: str) -> Path:
    """A folder that only this user can write; NOWHERE if another user has taken its name."""
    place = Path(tempfile.gettempdir()) / name
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        about = place.lstat()
        ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
        return place if ours and not about.st_mode & 0o022 else NOWHERE
    except OSError:
        return NOWHERE


def _writable(place: Path) -> bool:
    """Whether files can be created in a folder, which is created first: os.access alone is wrong on
    some file systems."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK)


def resolve_data_dir(data_dir: Path | str | None) -> Path | None:
    """The folder of data files: as given, from MPCC_DATA_DIR, or where --download puts them. None
    if there is none; DataError if it cannot be a path."""
    given = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if given:
        try:
            return usable(given)
        except ValueError as error:
            raise DataError(f"data folder: {error}") from None
    downloaded = cache_dir() / "data"
    return downloaded if downloaded.is_dir() else None


def required_dir(dataset: str, data_dir: Path | str | None) -> Path:
    """The folder of data files; DataError if none is given or it does not exist."""
    root = resolve_data_dir(data_dir)
    hint = "" if dataset == "folder" else ", or add --download"
    if root is None:
        raise DataError(
            f"data set {dataset} is read from files: name their folder with --data-dir "
            f"or {DATA_DIR_VARIABLE}{hint}"
        )
    if not root.is_dir():
        wrong = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {wrong}; correct --data-dir{hint}")
    return root
