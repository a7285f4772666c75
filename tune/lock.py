"""Who works on an output folder now, seen from any process and machine.

A grid has one driver; a search may have several, each with a lock of its own (`tune.drivers`).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOCK = "driver.lock"
DRIVERS = "drivers"
"""Where each driver of a search has its own lock, ID.json."""
HEARTBEAT_SECONDS = 60.0
"""A lock of another machine that was not renewed for so long is stale."""
BEAT_SECONDS = HEARTBEAT_SECONDS / 6
SETTLE_SECONDS = 1.0
"""How long two drivers that begin at once have to see each other, where files cannot be locked."""


class LockError(ValueError):
    """Another driver works on the folder; the message names it, `owner` is what its lock says."""

    def __init__(self, text: str, owner: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.owner = owner or {}


class Lock:
    """The right to work on an output folder, until it is released or its process ends.

    The kernel's file lock decides on one machine and ends with its process, so a dead driver's lock
    is taken over at once. A lock of another machine, or on a file system without locks, is stale
    when it is no longer renewed, or its process is gone from this machine. A thread renews it,
    whatever the driver is busy with; whoever was taken for dead finds another name there.
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
        self._path, self._token = path, secrets.token_hex(8)
        self._started, self._search = time.time(), search
        self._keys: frozenset[str] = frozenset()
        self._guard, self._over = threading.Lock(), threading.Event()
        self.lost = False
        """Another driver has taken the folder over, since this one was not heard of for long."""
        self._write()
        if not _locks(self._file):
            time.sleep(SETTLE_SECONDS)  # Of two that have come at once the later one's name stays.
            self._look()
            if self.lost:
                os.close(self._file)
                raise LockError(f"{out} has just been taken by another driver; wait for it")
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def renew(self, running: Iterable[str]) -> None:
        """Say which trials this driver has in hand; call it often."""
        keys = frozenset(running)
        if keys != self._keys:
            with self._guard:
                self._keys = keys
                self._look()
                self._write()

    def release(self) -> None:
        """Let the next driver in."""
        with self._guard:
            self._over.set()
            try:
                self._look()
                if not self.lost:
                    os.ftruncate(self._file, 0)
            finally:
                os.close(self._file)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with self._guard:
                if not self._over.is_set():
                    self._look()
                    self._write()

    def _look(self) -> None:
        """Whether the name that stands there is another one's: then nothing is written any more."""
        owner = _owner_at(self._path)
        if owner is not None and owner.get("token") != self._token:
            self.lost = True

    def _write(self) -> None:
        if self.lost:
            return
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "running": sorted(self._keys),
            "token": self._token,
        } | ({"search": True} if self._search else {})
        data = (json.dumps(owner) + "\n").encode()
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
            os.utime(self._file)
        except OSError:
            return  # A full disk does not end a sweep; the kernel's lock holds all the same.


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
    locks = True
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        locks = False  # A file system without locks: the owner's word has to do.
    if not owner or time.time() - os.fstat(file).st_mtime >= HEARTBEAT_SECONDS:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    return not locks and owner.get("pid") != os.getpid() and process_lives(owner["pid"])


def _locks(file: int) -> bool:
    """Whether the file system knows locks; ours is held already."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _owner_at(path: Path) -> dict[str, Any] | None:
    """Who is named there now, in a file that may be another one than was opened once."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _owner(file)
    finally:
        os.close(file)


def _owner(file: int) -> dict[str, Any] | None:
    try:
        value = json.loads(os.pread(file, 1 << 20, 0))
        ours = (value["host"], value["pid"], value["started"], value["running"])
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        return None
    kinds: tuple[Any, ...] = (str, int, (int, float), list)
    return value if all(map(isinstance, ours, kinds)) else None
