"""One driver per output folder: who works on it now, seen from any process and machine."""

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
HEARTBEAT_SECONDS = 60.0
"""A lock of another machine that was not renewed for so long is stale."""


class LockError(ValueError):
    """Another driver works on the folder; the message names it."""


class Lock:
    """The right to work on an output folder, until it is released or its process ends.

    The kernel's file lock decides on one machine and ends with its process, so a dead driver's lock
    is taken over at once. A lock of another machine is stale when it is no longer renewed.
    """

    def __init__(self, out: Path) -> None:
        """LockError that names the owner where another driver works on the folder."""
        path = Path(out) / LOCK
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
                "wait for it, stop it, or choose another --out"
            )
        self._started = time.time()
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
        }
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


def lock_owner(out: Path) -> dict[str, Any] | None:
    """Who works on the folder now (`host`, `pid`, `started`, `running`); None where nobody does."""
    try:
        file = os.open(Path(out) / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _owner(file)
        return owner if owner and _held(file, owner, fcntl.LOCK_SH) else None
    finally:
        os.close(file)


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
    """The trials that a living driver has in hand just now."""
    owner = lock_owner(out)
    return frozenset(owner.get("running", ())) if owner else frozenset()


def _held(file: int, owner: Mapping[str, Any], kind: int) -> bool:
    """Whether another driver holds the lock; if none does it is ours now, until `file` closes."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # A file system without locks: the owner's word has to do.
    elsewhere = owner.get("host") not in (None, socket.gethostname())
    return elsewhere and time.time() - os.fstat(file).st_mtime < HEARTBEAT_SECONDS


def _owner(file: int) -> dict[str, Any] | None:
    try:
        value = json.loads(os.pread(file, 1 << 20, 0))
        ours = (value["host"], value["pid"], value["started"], value["running"])
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        return None
    kinds: tuple[Any, ...] = (str, int, (int, float), list)
    return value if all(map(isinstance, ours, kinds)) else None
