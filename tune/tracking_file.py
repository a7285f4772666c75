"""MLflow's SQLite file: made whole or not at all, set aside where it can no longer be opened.

MLflow makes its tables in some forty steps and cannot go on with a file that was left between two
of them. So a new one is made under another name first. What it holds is a view of the run
directories: a file that is set aside costs nothing but the time to fill the next one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mpcc import files
from tune.lock import process_lives

SQLITE = "sqlite:///"
BESIDE = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside its own: they go where that goes."""


def file_of(uri: str) -> Path | None:
    """The file of a SQLite URI; None for other kinds."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def make(file: Path, fill: Callable[[str], None]) -> None:
    """Put a new data base there, unless there is one; `fill` makes the tables of a given URI."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_torn(file)
    with _filled(file, fill) as new:
        try:
            os.link(new, file)
        except FileExistsError:  # Another driver was first.
            pass
        except OSError:  # A file system without links.
            os.replace(new, file)


def is_damaged(file: Path, fill: Callable[[str], None]) -> bool:
    """Whether the file itself is at fault, not a lock, a full disk or missing rights."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=1)) as database:
            if database.execute("pragma quick_check(1)").fetchone() != ("ok",):
                return True
            database.execute("begin immediate")
            database.rollback()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
    with _filled(file, fill) as whole:
        return _version(file) != _version(whole)


def set_aside(file: Path) -> Path:
    """Set the file aside, and what SQLite keeps beside it; returns the new path."""
    aside = files.set_aside(file)
    for ending in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{file}{ending}", f"{aside}{ending}")
    return aside


class _filled(contextlib.AbstractContextManager[Path]):
    """A new data base with all its tables, under a name of this process; removed at the end."""

    def __init__(self, file: Path, fill: Callable[[str], None]) -> None:
        # MLflow remembers what it has opened by name: a new name each time.
        self._new = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
        self._fill = fill

    def __enter__(self) -> Path:
        try:
            self._fill(f"{SQLITE}{self._new}")
        except BaseException:
            _remove(self._new)
            raise
        return self._new

    def __exit__(self, *_: object) -> None:
        _remove(self._new)


def _remove(file: Path) -> None:
    for name in (str(file), *(f"{file}{ending}" for ending in BESIDE)):
        Path(name).unlink(missing_ok=True)


def _remove_torn(file: Path) -> None:
    """Remove what drivers left that died over it."""
    for old in file.parent.glob(f".{file.name}.*"):
        pid = old.name.removeprefix(f".{file.name}.").split(".")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            old.unlink(missing_ok=True)


def _version(file: Path) -> list[tuple[str]]:
    """Which step of MLflow's the tables have come to."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as database:
        try:
            return database.execute("select version_num from alembic_version").fetchall()
        except sqlite3.OperationalError:
            return []
