"""Where a trial's run directory lies while it trains: on the spot, or carried from a storage.

With a storage the trial works in a scratch folder of its node: it fetches what the storage has,
and every file it writes is sent there after it is written. So a trial whose machine is gone goes on
on another one. The order of sending keeps what `mpcc.run_dir` promises: rows of metrics before the
checkpoint that stands on them, the result before the last checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from mpcc import run_dir
from mpcc.config import Config, from_dict
from mpcc.files import DAMAGED
from mpcc.repair import repair
from tune import ledger
from tune.lock import process_lives
from tune.storage import Storage, StorageError

OWNER = "owner.json"
"""Which attempt at a trial may write to the storage: the one that began last."""

STOP_LOOK_SECONDS = 2.0
SCRATCH_PREFIX = "mpcc-trial-"
SCRATCH_VARIABLE = "MPCC_SCRATCH_DIR"
LAST = (run_dir.METRICS, run_dir.RESULT, run_dir.CHECKPOINT)
"""What is sent after all else, in this order."""
LEFT_OUT = (run_dir.PREVIOUS_CHECKPOINT, run_dir.STAGED_CHECKPOINT, OWNER, "mlflow.json")


class Place(Protocol):
    """What a trial under Ray asks of the place of its files."""

    path: Path
    """The run directory."""

    def fetch(self) -> None:
        """Bring what earlier attempts have left; StorageError where that cannot be had."""

    def send(self) -> None:
        """Send what is new, if the storage answers; else with the next call."""

    def finish(self) -> None:
        """Send what is new; StorageError where the storage does not take it."""

    def stop_asked(self) -> bool:
        """Whether the driver wants the trial to stop."""

    def leave(self) -> None:
        """The trial is over here."""


class OnTheSpot:
    """The run directory itself, on a disk that driver and trial both see."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.path = Path(spec["run_dir"])
        self._stop = Path(spec["stop_file"])
        self._config, self._fingerprint = from_dict(spec["config"]), spec["fingerprint"]

    def fetch(self) -> None:
        if self.path.is_dir():  # An attempt whose process was killed may have left anything.
            repair(self.path, self._config, self._fingerprint)

    def send(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def stop_asked(self) -> bool:
        return self._stop.exists()

    def leave(self) -> None:
        pass


class Carried:
    """A scratch folder of this node, kept in step with a storage."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._key = str(spec["key"])
        self._config: Config = from_dict(spec["config"])
        self._fingerprint = spec["fingerprint"]
        self._storage = Storage(spec["storage"])
        self._stop_name = Path(spec["stop_file"]).name
        self._scratch = scratch_dir()
        self.path = ledger.trial_dir(self._scratch, self._key)
        self._attempt = secrets.token_hex(8)
        self._sent: dict[str, tuple[int, int, int]] = {}
        self._not_before = self._next_look = 0.0
        self._stopping = self._fetched = False

    def fetch(self) -> None:
        if self._fetched:
            return
        claim = {"attempt": self._attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self._storage.write(self._name(OWNER), json.dumps(claim).encode())
        self.path.mkdir(parents=True, exist_ok=True)
        prefix = self._name("")
        for name in self._storage.list(prefix.rstrip("/")):
            file = self.path / name.removeprefix(prefix)
            if file.name in LEFT_OUT or file.suffix == ".png" or file.parent != self.path:
                continue
            data = self._storage.read(name)
            if data is not None:
                run_dir.write_bytes(file, data)
                self._sent[file.name] = _mark(file)
        repair(self.path, self._config, self._fingerprint)
        self._fetched = True

    def send(self) -> None:
        if time.monotonic() < self._not_before:
            return
        patient, self._storage.retry_seconds = self._storage.retry_seconds, 0.0
        try:
            self._send_changed()
        except StorageError:
            self._not_before = time.monotonic() + 10.0
        finally:
            self._storage.retry_seconds = patient

    def finish(self) -> None:
        self._send_changed()

    def stop_asked(self) -> bool:
        now = time.monotonic()
        if not self._stopping and now >= self._next_look:
            self._next_look = now + STOP_LOOK_SECONDS
            self._stopping = self._storage.exists(self._stop_name)
        return self._stopping

    def leave(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _send_changed(self) -> None:
        here = {}
        if self.path.is_dir():
            for file in self.path.iterdir():
                if file.is_file() and is_sent(file.name):
                    here[file.name] = file
        changed = [name for name, file in here.items() if self._sent.get(name) != _mark(file)]
        gone = [name for name in self._sent if name not in here and name not in LAST]
        if not changed and not gone:
            return
        self._check_owner()
        for name in sorted(changed, key=sending_order):
            mark = _mark(here[name])
            self._storage.write(self._name(name), here[name].read_bytes())
            self._sent[name] = mark
        for name in gone:
            self._storage.delete(self._name(name))
            del self._sent[name]

    def _check_owner(self) -> None:
        """End this process where a later attempt has the trial: it must write nothing more."""
        data = self._storage.read(self._name(OWNER))
        try:
            owner = json.loads(data or b"{}")
        except ValueError:
            owner = {}
        if owner.get("attempt", self._attempt) != self._attempt:
            self.leave()
            os._exit(1)

    def _name(self, file: str) -> str:
        return f"{ledger.TRIALS}/{self._key}/{file}"


def place_of(spec: dict[str, Any]) -> Place:
    """The place of the trial with this `tune.settings.trial_spec`."""
    return Carried(spec) if spec.get("storage") else OnTheSpot(spec)


def is_sent(name: str) -> bool:
    """Whether a file of a trial goes to the storage."""
    return not name.startswith(".") and name not in LEFT_OUT and DAMAGED not in name


def sending_order(name: str) -> tuple[int, str]:
    """Sorts the files of a trial by when they are sent."""
    return (LAST.index(name) + 1 if name in LAST else 0), name


def scratch_dir() -> Path:
    """A new folder on this node; those of dead processes are removed."""
    parent = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{SCRATCH_PREFIX}*-*"):
        pid = old.name.removeprefix(SCRATCH_PREFIX).split("-")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=parent))


def _mark(file: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size, about.st_ino
