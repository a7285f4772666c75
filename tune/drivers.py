"""The driver of a sweep among others: a grid's is alone, those of a search share the work.

    driver.lock        whoever holds it delivers to MLflow and writes study.db; the next one of a
                       search takes it over when its owner ends
    drivers/ID.json    the lock of each driver of a search: held while it lives (`tune.lock`)
    drivers/ID.stop    asks the trials of this driver to stop
    drivers/plan.lock  held for a moment while sweep.json is read, grown and written
    claims/            which driver has which trial (`tune.claims`)

Every driver draws the same points from the same records (`tune.points`), so what they have to agree
on is who runs a trial, and no more.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tune import lock
from tune.claims import Claims
from tune.lock import DRIVERS, Lock, LockError

GRACE_SECONDS = 10.0
"""How long after its driver's death a trial is left alone: Ray ends its processes within 5."""
LOOK_SECONDS = 1.0
PLAN_LOCK_SECONDS = 10.0


class Driver(Protocol):
    """What a sweep asks of its own place among the drivers of its folder."""

    @property
    def leads(self) -> bool:
        """Whether this one delivers to MLflow and writes study.db."""

    @property
    def lost(self) -> bool:
        """Whether the others have given this one up for dead."""

    @property
    def stop_file(self) -> Path | None:
        """What asks this driver's trials to stop, if not the folder's own file."""

    def renew(self, running: Iterable[str]) -> None:
        """Say that this driver lives and which trials it has in hand; call it often."""

    def take(self, key: str) -> bool:
        """Whether the trial is this driver's to run."""

    def is_elsewhere(self, key: str) -> bool:
        """Whether another living driver has the trial."""

    def was_taken(self, key: str) -> bool:
        """Whether a trial that was this driver's has been taken over by another one."""

    def taken_file(self, key: str) -> str | None:
        """The file that is there once another driver has taken the trial over."""

    def release_trial(self, key: str) -> None:
        """Let any driver have the trial."""

    def others(self) -> dict[str, dict[str, Any]]:
        """The other living drivers, by id."""

    def running_elsewhere(self) -> frozenset[str]:
        """The trials that other drivers run just now."""

    def release(self) -> None:
        """Let the next driver in."""


class Alone:
    """The only driver of its folder: all trials are its own."""

    leads, stop_file = True, None

    def __init__(self, out: Path) -> None:
        """LockError that names another driver, of a grid or a search."""
        self._lock = Lock(out)
        for owner in lock.drivers(out).values():
            self._lock.release()
            raise LockError(
                f"{out} is in use by process {owner['pid']} on {owner['host']}, which works on its "
                "search; wait for it, stop it, or choose another --out",
                owner,
            )

    @property
    def lost(self) -> bool:
        return self._lock.lost

    def renew(self, running: Iterable[str]) -> None:
        self._lock.renew(running)

    def take(self, key: str) -> bool:
        return True

    def is_elsewhere(self, key: str) -> bool:
        return False

    def was_taken(self, key: str) -> bool:
        return False

    def taken_file(self, key: str) -> str | None:
        return None

    def release_trial(self, key: str) -> None:
        pass

    def others(self) -> dict[str, dict[str, Any]]:
        return {}

    def running_elsewhere(self) -> frozenset[str]:
        return frozenset()

    def release(self) -> None:
        self._lock.release()


class Crew:
    """One of the drivers of a search."""

    def __init__(self, out: Path) -> None:
        """LockError that names the driver where a grid runs in the folder."""
        self._out, self.id = Path(out), secrets.token_hex(6)
        self._own = Lock(out, f"{DRIVERS}/{self.id}.json")
        self.stop_file: Path | None = self._out / DRIVERS / f"{self.id}.stop"
        self.lost = False
        self._lead: Lock | None = None
        self._dead_since: dict[str, float] = {}
        self._others: dict[str, dict[str, Any]] = {}
        self._next_look = 0.0
        self._claims = Claims(out, self.id, self._gone)
        self.take = self._claims.take
        self.is_elsewhere = self._claims.is_elsewhere
        self.release_trial = self._claims.release
        try:
            self._try_to_lead()
        except LockError:
            self.release()
            raise

    @property
    def leads(self) -> bool:
        return self._lead is not None

    def renew(self, running: Iterable[str]) -> None:
        keys = frozenset(running)
        self._own.renew(keys)
        if self._lead is not None:
            self._lead.renew(keys)
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        self.lost = self.lost or self._own.lost or not self._file(self.id).exists()
        if self._lead is not None and self._lead.lost:
            self._lead = None  # Another one delivers by now.
        self._others = {n: o for n, o in lock.drivers(self._out).items() if n != self.id}
        self._forget_the_dead()
        if self._lead is None and not self.lost:
            try:
                self._try_to_lead()
            except LockError:
                pass  # Someone looks at the folder, or delivers by hand (--sync).

    def was_taken(self, key: str) -> bool:
        file = self._claims.next_file(key)
        return file is not None and file.exists()

    def taken_file(self, key: str) -> str | None:
        file = self._claims.next_file(key)
        return None if file is None else str(file)

    def others(self) -> dict[str, dict[str, Any]]:
        return self._others

    def running_elsewhere(self) -> frozenset[str]:
        return frozenset(key for owner in self._others.values() for key in owner["running"])

    def release(self) -> None:
        if self._lead is not None:
            self._lead.release()
            self._lead = None
        for file in (self._file(self.id), self.stop_file):
            if file is not None:
                file.unlink(missing_ok=True)
        self._own.release()

    @contextmanager
    def planning(self) -> Iterator[None]:
        """While no other driver changes sweep.json.

        Where the lock cannot be had it goes on without: a point that is lost is drawn again.
        """
        file = os.open(self._out / DRIVERS / "plan.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = time.monotonic() + PLAN_LOCK_SECONDS
            while time.monotonic() < end:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
                except OSError:  # a file system without locks
                    break
            yield
        finally:
            os.close(file)

    def _try_to_lead(self) -> None:
        """Deliver from now on if no other driver does; LockError where that is no search."""
        try:
            self._lead = Lock(self._out, search=True)
        except LockError as error:
            if not error.owner.get("search"):
                raise

    def _gone(self, driver: str) -> bool:
        """Whether another driver has left, or has been dead for a while."""
        if driver == self.id:
            return False
        if not self._file(driver).exists():
            return True
        if lock.lock_owner(self._out, f"{DRIVERS}/{driver}.json") is not None:
            self._dead_since.pop(driver, None)
            return False
        now = time.monotonic()
        return now - self._dead_since.setdefault(driver, now) >= GRACE_SECONDS

    def _forget_the_dead(self) -> None:
        for file in lock.driver_files(self._out):
            if file.stem != self.id and self._gone(file.stem):
                file.unlink(missing_ok=True)
                file.with_suffix(".stop").unlink(missing_ok=True)

    def _file(self, driver: str) -> Path:
        return self._out / DRIVERS / f"{driver}.json"
