"""The locks on a sweep and on a single trial, as any process sees them.

    driver.lock       the kernel holds a lock on it while the driver lives; it has no content
    driver.json       the driver's claim, in the folder and in its remote
    claims/KEY.json   the claim of a process that trains one trial without a driver (`--next`)

The kernel's lock decides on one machine, and ends with its process. Where it cannot decide (a
driver of another machine, a file system without locks, a remote) the claims do. A claim is a file
that names its last writer; a process that finds another name there, or no file, has lost it. So if
several processes write it at once, the last writer holds it, without the conditional write that
pyarrow lacks. A driver writes its claim again every few seconds; a process that wants to replace it
watches the claim for half a minute, so the clocks of two machines are never compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.runs.files import BusyError, RunDirError, read_bytes
from tune.store.remote import Remote

if TYPE_CHECKING:
    from tune.store.folder import Store

LOCK, CLAIM, CLAIMS = "driver.lock", "driver.json", "claims"
BEAT_SECONDS = 2.0
"""Seconds after which an unchanged claim is written again."""
CHANGE_SECONDS = 0.5
"""Seconds within which a claim names a trial that has just started."""
WATCH_SECONDS = 30.0
"""How long a claim is watched before it is replaced."""
LOOK_SECONDS, REMOTE_LOOK_SECONDS = 0.2, 0.5
"""Seconds between two readings of a claim; processes that take it at once write it within these."""
PATIENCE_SECONDS = 4.0
"""How long a slow remote is retried for a claim, and waited for when claims are withdrawn."""


class LockError(ValueError):
    """Another driver works on the sweep; the message names it, and the option for another place."""

    def __init__(self, where: str, option: str, owner: Owner | None) -> None:
        who = "another driver" if owner is None else owner.text
        super().__init__(
            f"{where} is in use by {who}; wait until it ends; or stop it and run this command "
            f"instead (--address adds machines); or choose another {option}"
        )


@dataclass(frozen=True)
class Owner:
    """The process that wrote a claim, as the claim describes it."""

    name: str
    """A random name of this one claim."""
    text: str
    """`process 12 on HOST since 2025-01-31 18:05`, by the clock there."""
    machine: str
    """Equal for two processes that see each other's process ids, see `this_machine`."""
    pid: int
    running: tuple[str, ...] = ()
    """The keys of the trials that run."""
    count: int = 0
    """How often the claim was written."""

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine, which has ended."""
        return self.machine == this_machine() and not process_lives(self.pid)


class Claim:
    """This process's claim on a sweep or a trial; RemoteError if its file is out of reach."""

    def __init__(self, files: Remote, file: str) -> None:
        """Nothing is written yet."""
        self._files, self._file = files, file
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time()))
        text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        self._owner = Owner(secrets.token_hex(6), text, this_machine(), os.getpid())

    def found(self) -> Owner | None:
        """The owner that the claim names now; None if it is missing or damaged."""
        return _read_owner(self._files.read(self._file))

    def held(self) -> bool:
        """Whether nobody has taken or removed the claim since it was written."""
        found = self.found()
        return found is not None and found.name == self._owner.name

    def write(self, running: tuple[str, ...] = ()) -> None:
        """Take the claim, or renew it with the trials that run."""
        self._owner = replace(self._owner, running=running, count=self._owner.count + 1)
        self._files.write(self._file, (json.dumps(asdict(self._owner)) + "\n").encode())

    def withdraw(self) -> None:
        """Remove the claim if it is still held."""
        if self.held():
            self._files.delete(self._file)

    def owner(self, look_seconds: float = LOOK_SECONDS) -> Owner | None:
        """The living process that the claim names, None if there is none.

        The claim is watched for half a minute at most; a living process writes it within seconds.
        """
        before, end = self.found(), time.monotonic() + WATCH_SECONDS
        if before is None or before.gone:
            return None
        while (now := self.found()) == before and time.monotonic() < end:
            time.sleep(look_seconds)
        return None if now == before else now


class Claims:
    """Claims that a thread renews until the context ends, and then withdraws."""

    def __init__(self) -> None:
        self._claims: list[Claim] = []
        self._running: tuple[str, ...] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claims", daemon=True)
        self.lost = False
        """Whether another process has taken over, or `--release` was given."""

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the claims; if a remote is too slow for that, the next owner must watch them."""
        self._over.set()
        self._thread.join(PATIENCE_SECONDS)

    def take(self, claim: Claim, look_seconds: float) -> Owner | None:
        """Take a claim unless a process holds it. Returns the other owner, None if we hold it."""
        owner = claim.owner(look_seconds)
        if owner is None:
            claim.write()
            self._claims.append(claim)
            time.sleep(look_seconds)
            owner = None if claim.held() else claim.found()
        return owner

    def renew(self, running: Iterable[str]) -> None:
        """Have the claims name the trials that run, within a second; cheap to call."""
        self._running = tuple(sorted(running))

    def _keep(self) -> None:
        written, beat = self._running, time.monotonic()
        while not self._over.wait(CHANGE_SECONDS):
            if written == self._running and time.monotonic() - beat < BEAT_SECONDS:
                continue
            written, beat = self._running, time.monotonic()
            for claim in self._claims:
                with suppress(OSError):  # A full disk, a remote that is away: the next may succeed.
                    self.lost = self.lost or not claim.held()
                    if not self.lost:
                        claim.write(written)
        for claim in self._claims:
            with suppress(OSError):
                claim.withdraw()


@contextmanager
def sweep_lock(store: Store, log: Callable[[str], object] = lambda text: None) -> Iterator[Claims]:
    """Hold the right to run a sweep until the context or the process ends.

    log: called with a line before a claim is watched, for 30 s. LockError, which names the
    owner, if another driver works on the sweep.
    """
    from filelock import FileLock

    store.out.mkdir(parents=True, exist_ok=True)
    kernel = FileLock(store.out / LOCK, thread_local=False, fallback_to_soft=False)
    try:
        kernel.acquire(timeout=0.3)  # The lock's owner may be about to write its claim.
    except TimeoutError:
        raise LockError(str(store.out), "--out", sweep_owner(store.out)) from None
    except OSError:  # A file system without locks.
        pass
    places = [(str(store.out), "--out", LOOK_SECONDS)]
    if store.remote is not None:
        places.append((store.remote.address, "--storage", REMOTE_LOOK_SECONDS))
    try:
        with Claims() as claims:
            for address, option, look_seconds in places:
                files = Remote(address, PATIENCE_SECONDS)
                files.prepare()
                claim = Claim(files, CLAIM)
                before = claim.found()
                if before is not None and not before.gone:
                    log(f"{address} may be in use by {before.text}; watching it for 30 s ...")
                owner = claims.take(claim, look_seconds)
                if owner is not None:
                    raise LockError(address, option, owner)
            yield claims
    finally:
        kernel.release()


@contextmanager
def trial_lock(store: Store, key: str) -> Iterator[Claims]:
    """Hold the right to train one trial without a driver, until the context or the process ends.

    BusyError if another living process, or the sweep's driver, trains the trial.
    """
    with Claims() as claims:
        claim = trial_claim(store.files(PATIENCE_SECONDS), key)
        # Within this time a driver lists a newly started trial in its claim.
        owner = claims.take(claim, CHANGE_SECONDS + LOOK_SECONDS)
        if owner is None:
            owner = _driver_of(store, key)
        if owner is not None:
            raise BusyError(f"trial {key} is trained by {owner.text}")
        yield claims


def _driver_of(store: Store, key: str) -> Owner | None:
    """The living driver that runs a trial; the claim of one on another machine is watched."""
    places = [str(store.out)] if store.remote is None else [str(store.out), store.remote.address]
    for address in places:
        claim = Claim(Remote(address, PATIENCE_SECONDS), CLAIM)
        owner = claim.found()
        if owner is not None and key in owner.running and owner.machine != this_machine():
            owner = claim.owner(REMOTE_LOOK_SECONDS)
        if owner is not None and key in owner.running and not owner.gone:
            return owner
    return None


def trial_claim(files: Remote, key: str) -> Claim:
    """The claim on one trial, in the sweep's folder or its remote."""
    return Claim(files, f"{CLAIMS}/{key}.json")


def trained_elsewhere(out: Path, remote: str | None, key: str) -> str | None:
    """The living process, other than this one, that trains a trial without a driver; or None."""
    if remote is None and not (out / CLAIMS).is_dir():
        return None
    owner = trial_claim(Remote(remote or str(out), PATIENCE_SECONDS), key).owner()
    ours = owner is not None and (owner.machine, owner.pid) == (this_machine(), os.getpid())
    return None if owner is None or ours else owner.text


def claimed(store: Store) -> set[str]:
    """The keys of the trials that processes without a driver train now, as far as is known."""
    if store.remote is None and not (store.out / CLAIMS).is_dir():
        return set()
    files = store.files(PATIENCE_SECONDS)
    keys = {name.rpartition("/")[2].removesuffix(".json") for name in files.list(CLAIMS)}
    owners = {key: trial_claim(files, key).found() for key in keys}
    return {key for key, owner in owners.items() if owner is not None and not owner.gone}


def sweep_owner(out: Path, remote: Remote | None = None) -> Owner | None:
    """The driver of the sweep; None if there is none, or no folder of the remote yet.

    A driver of another machine counts while its claim exists: only a driver that wants to take over
    watches the claim for the half minute that shows whether its owner lives.
    """
    claims: list[bytes | None] = []
    with suppress(OSError, RunDirError):
        claims.append(read_bytes(out / CLAIM))
    if remote is not None and not remote.missing:
        claims.append(remote.read(CLAIM))
    owners = [owner for owner in map(_read_owner, claims) if owner is not None]
    return next((owner for owner in owners if not owner.gone), None)


def release_lock(store: Store) -> Owner | None:
    """Release the sweep for the next driver; returns its owner, None if it had none.

    An owner that still lives finds its claim gone within seconds and stops.
    """
    owner = sweep_owner(store.out, store.remote)
    (store.out / CLAIM).unlink(missing_ok=True)
    if store.remote is not None and not store.remote.missing:
        store.remote.delete(CLAIM)
    return owner


def process_lives(pid: int) -> bool:
    """Whether this machine has a process with this id that has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # An ended process keeps its id until its parent has read its exit code.
    return not stat.rpartition(b")")[2].startswith(b" Z")


def _read_owner(data: bytes | None) -> Owner | None:
    try:
        claim = json.loads(data or b"")
        name, text, machine = (str(claim[field]) for field in ("name", "text", "machine"))
        running, count = tuple(map(str, claim["running"])), int(claim["count"])
        return Owner(name, text, machine, int(claim["pid"]), running, count)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def this_machine() -> str:
    """The identity of this machine's process ids: containers and copies share host names."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
