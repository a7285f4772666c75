"""Which driver of a search has which trial: files that only one driver can make.

    claims/KEY.N     the N-th claim on a trial: the id of the driver that made it, or `released`

A trial is free where its last claim was released or its driver is gone. Whoever takes it then makes
the next number, which the file system lets one of them do. A claim is changed by its own driver
alone and never removed, so what was found free is free until its next number is there: there is
nothing to lock, and no moment at which two drivers can both be right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mpcc import run_dir
from tune.lock import HEARTBEAT_SECONDS

CLAIMS = "claims"
RELEASED = "released"
_UNKNOWN = "?"
"""Whoever is just writing the claim."""


class Claims:
    """One driver's view of the claims on trials, and its own."""

    def __init__(self, out: Path, driver: str, gone: Callable[[str], bool]) -> None:
        """`gone` says of a driver's id whether that driver no longer works."""
        self._folder, self._driver, self._gone = Path(out) / CLAIMS, driver, gone
        self._last: dict[str, int] = {}
        self._own: dict[str, int] = {}

    def take(self, key: str) -> bool:
        """Whether the trial is this driver's from now on, or was already; False for any fault."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while not self.is_own(key):
                if self.is_elsewhere(key):
                    return False
                self._make(key, self._last[key] + 1)
        except OSError:  # A full disk, a share that is away: the trial is asked for again.
            return False
        return True

    def is_own(self, key: str) -> bool:
        """Whether this driver has the trial, and nobody has taken it since."""
        return key in self._own and not self._file(key, self._own[key] + 1).exists()

    def is_elsewhere(self, key: str) -> bool:
        """Whether another driver has the trial and works."""
        n = self._find_last(key)
        if n in (0, self._own.get(key)):
            return False
        owner = self._owner(self._file(key, n))
        return owner == _UNKNOWN or (owner != RELEASED and not self._gone(owner))

    def next_file(self, key: str) -> Path | None:
        """What another driver makes when it takes the trial from this one; None for no own one."""
        return self._file(key, self._own[key] + 1) if key in self._own else None

    def release(self, key: str) -> None:
        """Let any driver have the trial."""
        n = self._own.pop(key, None)
        if n is not None:
            try:
                run_dir.write_bytes(self._file(key, n), RELEASED.encode())
            except OSError:
                pass  # It is free at the latest when this driver ends.

    def _make(self, key: str, n: int) -> None:
        """Claim number n, unless another driver is faster."""
        try:
            file = os.open(self._file(key, n), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return
        try:
            os.write(file, self._driver.encode())
        finally:
            os.close(file)
        self._own[key] = self._last[key] = n

    def _find_last(self, key: str) -> int:
        """The number of the last claim, 0 where there is none."""
        n = self._last.get(key, 0)
        while self._file(key, n + 1).exists():
            n += 1
        self._last[key] = n
        return n

    def _owner(self, file: Path) -> str:
        """The id of a claim's driver, RELEASED, or _UNKNOWN for a young claim without a word."""
        try:
            text = file.read_bytes().decode(errors="replace").strip()
            young = time.time() - file.stat().st_mtime < HEARTBEAT_SECONDS
        except OSError:  # to be looked at again
            return _UNKNOWN
        return text or (_UNKNOWN if young else RELEASED)

    def _file(self, key: str, n: int) -> Path:
        return self._folder / f"{key}.{n}"
