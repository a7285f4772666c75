"""Who works on an output folder now, seen from any process and machine.

A grid has one driver; a search may have several, each with a lock of its own (`tune.drivers`).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOCK = "driver.lock"
DRIVERS = "drivers"
"""Where each driver of a search has its own lock, ID.json."""
HEARTBEAT_SECONDS = 60.0
"""A lock of another machine that was not renewed for so long is stale."""


class LockError(ValueError):
    """Another driver works on the folder; the message names it, `owner` is what its lock says."""

    def __init__(self, text: str, owner: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.owner = owner or {}


class Lock:
    """The right to work on an output folder, until it is released or its process ends.

    The kernel's file lock decides on one machine and ends with its process, so a dead driver's lock
    is taken over at once. A lock of another machine is stale when it is no longer renewed.
    """

    def __init__(self, out: Path, name: str = LOCK, *, search: bool = False) -> None:
        """LockError that names the owner where another driver works on the folder.

        `search`: one that shares its work with others (`tune.drivers`), which the lock then says.
        """
        path = Path(out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(5):  # A reader of the lock holds it for a moment too.
            owner = _owner(self._file) or {}
            if not _held(self._file, owner, fcntl.LOCK_EX):
                break
            time.sleep(0.05)
        else:
            os.close(self._file)
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("started", 0)))
            raise LockError(
                f"{out} is in use by process {owner.get('pid')} on {owner.get('host')} "
                f"since {since}; "
                "wait for it, stop it, or choose another --out",
                owner,
            )
        self._started, self._search = time.time(), search
        self._last: tuple[float, frozenset[str]] | None = None
        self.renew(())

    def renew(self, running: Iterable[str]) -> None:
        """Say that this driver lives and which trials it has in hand; call it often."""
        keys, now = frozenset(running), time.time()
        if self._last and self._last[1] == keys and now - self._last[0] < HEARTBEAT_SECONDS / 6:
            return
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "running": sorted(keys),
        } | ({"search": True} if self._search else {})
        data = (json.dumps(owner) + "\n").encode()
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
            os.utime(self._file)
        except OSError:
            return  # A full disk does not end a sweep; the kernel's lock holds all the same.
        self._last = (now, keys)

    def release(self) -> None:
        """Let the next driver in."""
        try:
            os.ftruncate(self._file, 0)
        finally:
            os.close(self._file)


def lock_owner(out: Path, name: str = LOCK) -> dict[str, Any] | None:
    """Who works on the folder now (`host`, `pid`, `started`, `running`); None where nobody does."""
    try:
        file = os.open(Path(out) / name, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _owner(file)
        return owner if owner and _held(file, owner, fcntl.LOCK_SH) else None
    finally:
        os.close(file)


def drivers(out: Path) -> dict[str, dict[str, Any]]:
    """The living drivers of a search, by their ids, each as `lock_owner` gives it."""
    found = {f.stem: lock_owner(out, f"{DRIVERS}/{f.name}") for f in driver_files(out)}
    return {name: owner for name, owner in found.items() if owner}


def driver_files(out: Path) -> list[Path]:
    """The locks that drivers of a search have made, also those of dead ones."""
    return sorted((Path(out) / DRIVERS).glob("*.json"))


def process_lives(pid: int) -> bool:
    """Whether this machine has a process with this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_keys(out: Path) -> frozenset[str]:
    """The trials that living drivers have in hand just now."""
    owners = [lock_owner(out), *drivers(out).values()]
    return frozenset(key for owner in owners if owner for key in owner["running"])


def _held(file: int, owner: Mapping[str, Any], kind: int) -> bool:
    """Whether another driver holds the lock; if none does it is ours now, until `file` closes."""
    elsewhere = owner.get("host") not in (None, socket.gethostname())
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # A file system without locks: the owner's word has to do.
        if owner and not elsewhere:
            return process_lives(int(owner.get("pid", 0)))
    return elsewhere and time.time() - os.fstat(file).st_mtime < HEARTBEAT_SECONDS


def _owner(file: int) -> dict[str, Any] | None:
    try:
        value = json.loads(os.pread(file, 1 << 20, 0))
        ours = (value["host"], value["pid"], value["started"], value["running"])
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        return None
    kinds: tuple[Any, ...] = (str, int, (int, float), list)
    return value if all(map(isinstance, ours, kinds)) else None
