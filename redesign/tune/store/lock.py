"""One driver for each sweep: who works on a folder, and on its remote, seen from any process.

    driver.lock      the kernel holds a lock on it while the driver lives; it has no content
    drivers/ID.json  the driver's claim (`tune.store.claim`), in the folder and in the remote

The kernel's lock decides on one machine, and ends with its process: a dead driver is replaced at
once. Where it decides nothing (a driver of another machine, a file system without locks, a remote)
the claims do.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tune.store.claim import (
    DRIVERS,
    Claim,
    LockError,
    Owner,
    claim_names,
    in_use,
    process_lives,
    read_owner,
)
from tune.store.remote import Remote

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from tune.store.folder import Store

__all__ = ["LockError", "Owner", "SweepLock", "release_lock", "running_keys", "sweep_owner"]

LOCK = "driver.lock"
CLAIM_RETRY_SECONDS = 4.0
"""How long a remote is asked again to take a claim, which is renewed soon anyway."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers."""


class SweepLock:
    """The right to run a sweep, until the context ends or its process does.

    Entering raises LockError, which names the owner, where another driver works on the sweep.
    """

    def __init__(self, store: Store, log: Callable[[str], object] = lambda text: None) -> None:
        """log: takes a line before a claim of another machine is watched, which takes 30 s."""
        self._store, self._log = store, log
        self._kernel: BaseFileLock | None = None
        self._claims: list[Claim] = []

    @property
    def lost(self) -> bool:
        """Whether another driver has taken over, or `--release` was given."""
        return any(claim.lost for claim in self._claims)

    def renew(self, running: Iterable[str]) -> None:
        """Tell others which trials run; cheap, to be called often."""
        keys = frozenset(running)
        for claim in self._claims:
            claim.renew(keys)

    def __enter__(self) -> SweepLock:
        out, remote = self._store.out, self._store.remote
        out.mkdir(parents=True, exist_ok=True)
        self._kernel = _kernel_lock(out)
        try:
            self._claim(str(out), "--out", exclusive=self._kernel is not None)
            if remote is not None:
                remote.prepare()
                self._claim(remote.address, "--storage", exclusive=False)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for claim in reversed(self._claims):
            claim.release()
        with suppress(OSError):
            (self._store.out / DRIVERS).rmdir()  # Not where earlier code has left files in it.
        if self._kernel is not None:
            self._kernel.release()

    def _claim(self, address: str, option: str, *, exclusive: bool) -> None:
        claim = Claim(Remote(address, CLAIM_RETRY_SECONDS), option, exclusive=exclusive)
        claim.acquire(self._log)
        self._claims.append(claim)


def sweep_owner(out: Path, remote: Remote | None = None) -> Owner | None:
    """Who works on the sweep, None where nobody does.

    A driver of another machine counts while its claim is there: to see whether it lives takes half
    a minute, which only a driver that wants to replace it waits.
    """
    claims: list[bytes | None] = []
    with suppress(OSError):
        claims += [path.read_bytes() for path in sorted((out / DRIVERS).glob("*.json"))]
    if remote is not None:
        claims += [remote.read(name) for name in sorted(claim_names(remote))]
    owners = [owner for owner in map(read_owner, claims) if owner is not None]
    living = [owner for owner in owners if not owner.here or process_lives(owner.pid)]
    return min(living, key=lambda owner: not owner.here, default=None)


def running_keys(out: Path) -> frozenset[str]:
    """The trials that run in this folder just now."""
    owner = sweep_owner(out)
    return frozenset() if owner is None else owner.running


def release_lock(store: Store) -> Owner | None:
    """Free the sweep for the next driver; returns whose it was, None where it was free.

    An owner that still lives finds its claim gone within seconds and leaves the sweep.
    """
    owner = sweep_owner(store.out, store.remote)
    for file in (store.out / DRIVERS).glob("*.json"):
        file.unlink(missing_ok=True)
    if store.remote is not None:
        for name in claim_names(store.remote):
            store.remote.delete(name)
    return owner


def _kernel_lock(out: Path) -> BaseFileLock | None:
    """The folder's lock, held; None on a file system without locks. LockError where it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / LOCK, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        end = time.monotonic() + 1.0  # Its owner may be about to write its claim.
        while (owner := sweep_owner(out)) is None and time.monotonic() < end:
            time.sleep(0.05)
        raise in_use(str(out), "--out", owner) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return lock
