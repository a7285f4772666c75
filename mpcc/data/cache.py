"""A cache, in the user's cache folder, of what is computed from a data set once per machine.

The cache is optional: everything works without a writable one, and a damaged entry is remade.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpcc.data.places import cache_dir
from mpcc.runs.files import exclusive, write_bytes

Arrays = dict[str, Any]
T = TypeVar("T")


def cached_arrays(name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
    """The named arrays from the cache, else computed by `make`, in one process at a time."""
    path = cache_dir() / f"{name}.npz"

    def make_and_write() -> Arrays:
        found = dict(make())
        _write(path, found)
        return found

    return read_or_make(path, _read, make_and_write)


def read_or_make(place: Path, read: Callable[[Path], T | None], make: Callable[[], T]) -> T:
    """The entry that `read` finds at this place in the cache, or else the one that `make` creates.
    One process at a time creates an entry; the others wait and then read it."""
    found = read(place)
    if found is None:
        with locked(place):
            found = read(place)
            found = make() if found is None else found
    return found


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Let one process at a time make this entry of the cache."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # A cache that cannot be written.
            stack.enter_context(exclusive(place.with_name(f".{place.name}.busy"), math.inf))
        yield


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file) as saved:
            return {name: saved[name] for name in saved.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with contextlib.suppress(OSError):
        write_bytes(path, buffer.getvalue())
