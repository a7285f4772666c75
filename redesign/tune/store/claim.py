"""A file that says who works on a sweep, renewed while its driver lives.

    drivers/ID.json    who the driver is, which trials run, and a count that rises every few seconds

A claim holds while its content changes. Whoever wants to replace it watches it for half a minute of
its own clock, so the clocks of two machines are never compared; a dead process of the same machine
needs no watching.

A driver writes its claim and then lists all claims, so of two that start at once at least one sees
the other; whoever sees another withdraws. That needs no conditional write, which pyarrow lacks. A
driver that was replaced while it hung finds its claim's name in the claim of its successor.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tune.store.remote import Remote

DRIVERS = "drivers"
BEAT_SECONDS = 5.0
"""Between two writings of a claim."""
WATCH_SECONDS = 30.0
"""How long a claim is watched before it is replaced."""
LOOK_SECONDS = 0.5
RELEASE_SECONDS = 5.0
"""How long the end of a driver waits for a slow remote to remove the claim."""
TRIES = 5


class LockError(ValueError):
    """Another driver works on the sweep; the message names it."""

    def __init__(self, text: str, owner: Owner | None = None) -> None:
        super().__init__(text)
        self.owner = owner


@dataclass(frozen=True)
class Owner:
    """What a driver's claim says."""

    host: str
    pid: int
    started: float
    """By the driver's clock, seconds since 1970; only for show."""
    running: frozenset[str]
    """The keys of the trials that run."""
    machine: str
    """Equal for two processes that see each other's numbers, see `_this_machine`."""
    replaces: frozenset[str]
    """The names of the claims that this one has replaced."""

    @property
    def here(self) -> bool:
        """Whether the driver is, or was, a process of this machine."""
        return self.machine == _this_machine()

    @property
    def text(self) -> str:
        """`process 12 on HOST since 2025-01-31 18:05`."""
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started))
        return f"process {self.pid} on {self.host} since {since}"


class Claim:
    """This process's claim on a folder or a remote; a thread of its own renews it."""

    def __init__(self, files: Remote, option: str, *, exclusive: bool) -> None:
        """option: how the user chooses another place, `--out` or `--storage`.

        exclusive: this process holds a lock of the place that dead processes of this machine do
        not hold.
        """
        self._files, self._option, self._exclusive = files, option, exclusive
        self._name = f"{DRIVERS}/{secrets.token_hex(6)}.json"
        self._started, self._count = time.time(), 0
        self._running: frozenset[str] = frozenset()
        self._replaces: list[str] = []
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self.lost = False
        """Another driver has replaced this claim, or a user has removed it (`--release`)."""

    def acquire(self, log: Callable[[str], object]) -> None:
        """Write the claim and keep it; LockError, which names the owner, where another holds."""
        for _ in range(TRIES):
            self._replaces = self._find_dead(log)
            try:
                self._write()
                if claim_names(self._files) <= {self._name, *self._replaces}:
                    for name in self._replaces:
                        self._files.delete(name)
                    self._thread.start()
                    return
            finally:
                if not self._thread.is_alive():
                    self._files.delete(self._name)
            time.sleep(random.uniform(0.2, 1.0))
        raise LockError(f"{self._files.address} has just been taken by another driver; wait for it")

    def renew(self, running: frozenset[str]) -> None:
        """Have the claim say which trials run; does not wait."""
        if running != self._running:
            self._running = running
            self._wake.set()

    def release(self) -> None:
        """Remove the claim, unless the remote is too slow: then the next driver watches it."""
        self._over.set()
        self._wake.set()
        self._thread.join(RELEASE_SECONDS)

    def _find_dead(self, log: Callable[[str], object]) -> list[str]:
        """The names of all claims, once it is certain that nobody renews them."""
        claims = {name: self._files.read(name) for name in claim_names(self._files)}
        doubtful = {name for name, data in claims.items() if self._may_live(read_owner(data))}
        for owner in (read_owner(claims[name]) for name in sorted(doubtful)):
            who = "another driver" if owner is None else owner.text
            log(f"{self._files.address} may be in use by {who}; watching it for 30 s ...")
        end = time.monotonic() + WATCH_SECONDS
        while doubtful and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            for name in sorted(doubtful):
                data = self._files.read(name)
                if data is None:
                    doubtful.discard(name)
                elif data != claims[name]:
                    raise in_use(self._files.address, self._option, read_owner(data))
        return sorted(claims)

    def _may_live(self, owner: Owner | None) -> bool:
        if owner is None:  # damaged, or written by code that had no count
            return False
        return not owner.here or (not self._exclusive and process_lives(owner.pid))

    def _beat(self) -> None:
        while not self._over.is_set():
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            with suppress(OSError):  # A full disk, a remote that is away: the next may succeed.
                self.lost = self.lost or self._is_replaced()
                if self.lost:
                    break
                if not self._over.is_set():
                    self._write()
            self._over.wait(LOOK_SECONDS)
        with suppress(OSError):
            self._files.delete(self._name)

    def _is_replaced(self) -> bool:
        names = claim_names(self._files)
        others = [read_owner(self._files.read(name)) for name in names - {self._name}]
        return self._name not in names or any(o and self._name in o.replaces for o in others)

    def _write(self) -> None:
        self._count += 1
        claim = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "running": sorted(self._running),
            "machine": _this_machine(),
            "replaces": self._replaces,
            "count": self._count,
        }
        self._files.write(self._name, (json.dumps(claim) + "\n").encode())


def claim_names(files: Remote) -> set[str]:
    """The names of all claims there."""
    return {name for name in files.list(DRIVERS) if name.endswith(".json")}


def read_owner(data: bytes | None) -> Owner | None:
    """What a claim says, None where it is damaged or of code that wrote no count."""
    try:
        claim = json.loads(data or b"")
        owner = Owner(
            host=str(claim["host"]),
            pid=int(claim["pid"]),
            started=float(claim["started"]),
            running=frozenset(map(str, claim["running"])),
            machine=str(claim["machine"]),
            replaces=frozenset(map(str, claim["replaces"])),
        )
        time.localtime(owner.started)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return None
    return owner


def in_use(where: str, option: str, owner: Owner | None) -> LockError:
    """The refusal of a second driver."""
    who = "another driver" if owner is None else owner.text
    return LockError(
        f"{where} is in use by {who}; wait for it, stop it (the same command goes on, with "
        f"--address on more machines), or choose another {option}",
        owner,
    )


def process_lives(pid: int) -> bool:
    """Whether this machine has a process with this number that has not ended."""
    with suppress(OSError):  # An ended process keeps its number until its parent takes note.
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return not stat.rpartition(b")")[2].startswith(b" Z")
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _this_machine() -> str:
    """This machine and its process numbers: containers and copies of a machine share host names."""
    name = socket.gethostname()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name += f" {boot} {os.readlink('/proc/self/ns/pid')}"
    return name
