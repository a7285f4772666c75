"""MLflow's database: checked before the first trial, made whole or not at all, quarantined.

MLflow makes its tables in some forty steps and cannot go on with a SQLite file that was left
between two of them, so a new one is made in another folder first. It is a view of the run
directories: one that is quarantined costs nothing but the time to fill the next.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mpcc import files
from tune.tracking.client import connect, open_experiment
from tune.tracking.uri import SQLITE, TrackingError, default_uri, file_of, one_line

BESIDE = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside its own: they go where that goes."""
_PREFIX = ".mlflow.db."
"""Begins the name of a folder in which a new database is made."""


def check_reachable(uri: str, out: Path, preset: str, *, begun: bool) -> str | None:
    """TrackingError where MLflow cannot be written to, before the sweep's first trial.

    Once a sweep has `begun` a silent server does not hold it up: then what hinders is returned, and
    results are delivered later.
    """
    file, problem = file_of(uri), None
    if file is not None:
        problem = _file_problem(file, ours=uri == default_uri(out))
    else:
        try:
            open_experiment(connect(uri), uri, out, preset)
        except Exception as error:  # whatever a database or a server can raise
            problem = one_line(error)
    if problem is None or begun:
        return problem
    raise TrackingError(
        f"MLflow at {uri} cannot be written to ({problem}): repair it, correct --tracking-uri, or "
        f"leave that out (a SQLite file in {out}) and deliver later with --sync --tracking-uri"
    )


def make(file: Path, *, exclusive: bool) -> None:
    """Put a new database there, unless there is one.

    `exclusive`: nobody else makes one in this folder, so what is left there is a dead driver's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f"{_PREFIX}*") if exclusive else ():
        shutil.rmtree(left, ignore_errors=True)
    with _new_database(file.parent) as new:
        try:
            os.link(new, file)
        except FileExistsError:  # Another sweep was first.
            pass
        except OSError:  # A file system without links.
            os.replace(new, file)


def is_damaged(file: Path) -> bool:
    """Whether the file itself is at fault, not a lock, a full disk or missing permissions."""
    try:
        with closing(_opened(file, timeout=1)) as database:
            if database.execute("pragma quick_check(1)").fetchone() != ("ok",):
                return True
            database.execute("begin immediate")  # So that nobody can lock it any more.
            return _version(database) != _version_of_new()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def quarantine(file: Path) -> Path:
    """Rename the file, and what SQLite keeps beside it; returns the new path."""
    damaged = files.set_aside(file)
    for ending in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{file}{ending}", f"{damaged}{ending}")
    return damaged


def _file_problem(file: Path, *, ours: bool) -> str | None:
    """Why this file cannot be written to; None where it is missing, or damaged and `ours`."""
    folder = next(parent for parent in file.parents if parent.exists())
    if not file.exists():
        return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    try:
        with closing(_opened(file, timeout=3)) as database:
            database.execute("begin immediate")
            database.rollback()
    except sqlite3.OperationalError as error:
        return str(error)
    except sqlite3.Error as error:
        return None if ours else str(error)
    return None


@contextlib.contextmanager
def _new_database(parent: Path | None) -> Iterator[Path]:
    """A new database with all its tables, under a name that MLflow has not opened before."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as folder:
        new = Path(folder) / "new.db"
        connect(f"{SQLITE}{new}").search_experiments(max_results=1)
        yield new


@functools.cache
def _version_of_new() -> list[tuple[str]]:
    with _new_database(None) as new, closing(_opened(new, timeout=1)) as database:
        return _version(database)


def _version(database: sqlite3.Connection) -> list[tuple[str]]:
    """Which step of MLflow's the tables have come to; empty without tables."""
    if not database.execute("pragma table_info(alembic_version)").fetchall():
        return []
    return database.execute("select version_num from alembic_version").fetchall()


def _opened(file: Path, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=timeout)
