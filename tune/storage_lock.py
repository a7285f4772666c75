"""One driver per storage: a claim that is written, looked at, and renewed while its driver lives.

A storage has no locks, but whoever writes a claim and then lists all claims sees every claim that
was written before: of two drivers at least one sees the other, and whoever sees another withdraws.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import time
from collections.abc import Iterable
from typing import Any

from tune.lock import HEARTBEAT_SECONDS, LockError, process_lives
from tune.storage import Storage, StorageError, Stored

DRIVERS = "drivers"
TRIES = 5


class StorageLock:
    """The right to work on a storage, until it is released or no longer renewed."""

    def __init__(self, storage: Storage) -> None:
        """LockError that names the owner where another driver works on the storage."""
        self._storage = storage
        self._name = f"{DRIVERS}/{secrets.token_hex(6)}.json"
        self._started = time.time()
        self.lost = False
        """Another driver has taken over, since this one was not heard of for too long."""
        other: dict[str, Any] | None = {}
        for _ in range(TRIES):
            self._write((), settled=False)
            other = _other(storage, self._name)
            if other is None:
                self._write((), settled=True)
                return
            self.release()
            if other.get("settled"):
                break
            time.sleep(random.uniform(0.2, 1.0))
        owner = other or {}
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("started", 0)))
        raise LockError(
            f"{storage.address} is in use by process {owner.get('pid')} on {owner.get('host')} "
            f"since {since}; wait for it, stop it (a driver that has died is forgotten after "
            f"{HEARTBEAT_SECONDS:.0f} s), or choose another --storage"
        )

    def renew(self, running: Iterable[str]) -> None:
        """Say that this driver lives and which trials it has in hand; notices a take-over."""
        if self._name not in self._storage.list(DRIVERS):
            self.lost = True
        if not self.lost:
            self._write(running, settled=True)

    def release(self) -> None:
        """Let the next driver in; a storage that does not answer lets it in a minute later."""
        try:
            self._storage.delete(self._name)
        except StorageError:
            pass

    def _write(self, running: Iterable[str], *, settled: bool) -> None:
        claim = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "running": sorted(running),
            "settled": settled,
        }
        self._storage.write(self._name, json.dumps(claim).encode())


def storage_owner(storage: Storage) -> dict[str, Any] | None:
    """Who works on the storage (`host`, `pid`, `started`, `running`); None where nobody does.

    Judged by this machine's clock, so only for show.
    """
    now = time.time_ns()
    for name, about in storage.list(DRIVERS).items():
        claim = _claim(storage, name)
        if claim and not _dead(claim, about, now):
            return claim
    return None


def _other(storage: Storage, mine: str) -> dict[str, Any] | None:
    """A living driver's claim beside ours; those of dead drivers are removed."""
    claims = storage.list(DRIVERS)
    now = claims[mine].time_ns if mine in claims else time.time_ns()
    for name, about in claims.items():
        claim = _claim(storage, name) if name != mine else None
        if claim is None:
            continue
        if not _dead(claim, about, now):
            return claim
        storage.delete(name)
    return None


def _dead(claim: dict[str, Any], about: Stored, now_ns: int) -> bool:
    """Whether a claim is of a process that is gone here, or was not renewed for a minute."""
    here = claim.get("host") == socket.gethostname()
    if here and not process_lives(int(claim.get("pid", 0))):
        return True
    return now_ns - about.time_ns > HEARTBEAT_SECONDS * 1e9


def _claim(storage: Storage, name: str) -> dict[str, Any] | None:
    try:
        claim = json.loads(storage.read(name) or b"null")
    except ValueError:
        return None
    return claim if isinstance(claim, dict) else None
