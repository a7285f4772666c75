"""The driver's side of a sweep's files: the output folder, and a storage beside it where one is.

With a storage the trials' files are the storage's; the output folder holds a copy of all but the
checkpoints, so that the ledger, MLflow's delivery and the tables read it as ever. On another
machine the copy is made again.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mpcc import run_dir
from tune import continuation, ledger
from tune.ledger import Plan, Trial
from tune.place import LEFT_OUT, is_sent, sending_order
from tune.signals import joined
from tune.storage import Storage, StorageError, Stored, checked_storage
from tune.storage_lock import StorageLock, storage_owner

STOP = "driver.stop"
REMEMBERED = "storage.json"
RENEW_SECONDS = 10.0
FIRST_SECONDS = 8.0
"""How long a storage may keep a command waiting before anything has begun."""
_TRIAL_FILE = re.compile(rf"{ledger.TRIALS}/([0-9a-z]+)/([\w-][\w.-]*)")
_THREADS = 8


def storage_of(out: Path, given: str | None) -> str | None:
    """The storage of this output folder: as given, or as the folder remembers it.

    ValueError, one line, for one that cannot be, or another than the folder's.
    """
    values = run_dir.read_json(Path(out) / REMEMBERED) or {}
    known = values.get("storage")
    address = None if given is None else checked_storage(given)
    if known and address and address != known:
        raise ValueError(f"{out} belongs to --storage {known}, now {address}; choose another --out")
    return address or known


def bring(out: Path, address: str) -> None:
    """Copy plan and records from the storage into the output folder; leaves what is newer there.

    StorageError, or LedgerError where the two hold different sweeps.
    """
    storage = Storage(address, FIRST_SECONDS)
    new = not (Path(out) / REMEMBERED).exists()
    if new and "://" not in address and not Path(address).exists():
        return  # A folder that the sweep will make.
    mirror = Mirror(out, storage)
    if mirror.bring_plan():
        mirror.pull()
        if new:
            run_dir.write_json(Path(out) / REMEMBERED, {"storage": address})


def owner_of(out: Path) -> dict[str, Any] | None:
    """The driver that works on the folder's storage now; None where there is no such."""
    address = storage_of(out, None)
    return storage_owner(Storage(address, FIRST_SECONDS)) if address else None


def opened(out: Path, address: str | None) -> OutFolder:
    """The files of a sweep, with a storage or without."""
    return Mirror(out, Storage(address)) if address else OutFolder(out)


class OutFolder:
    """What a driver does to the files of its sweep, where they all lie in its output folder."""

    problem: str | None = None

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.stop_file = self.out / STOP
        self._poke: Callable[[], None] = lambda: None

    @property
    def lost(self) -> bool:
        """Whether another driver has taken over."""
        return False

    @property
    def arriving(self) -> bool:
        """Whether records are on their way here that trials have told of."""
        return False

    def claim(self) -> None:
        """Keep other drivers out; LockError where one is there."""

    def begin(self, plan: Plan, trials: Sequence[Trial]) -> None:
        """Take the sweep in hand, its plan with it; PlanChanged where there is another one now."""
        ledger.write_plan(self.out, plan)

    def write_plan(self, plan: Plan) -> None:
        ledger.write_plan(self.out, plan)

    def forget(self, trial: Trial, state: str) -> None:
        """Make an ended trial run again."""
        ledger.forget(self.out, trial, state)

    def take_over(self, plan: Plan, trial: Trial) -> None:
        """Start a trial from that of fewer iterations, where there is one."""
        continuation.take_over(self.out, plan, trial)

    def attend(self, running: Callable[[], Collection[str]], poke: Callable[[], None]) -> None:
        """Watch over the files while trials run; `poke` is called when records have come."""
        self._poke = poke

    def news(self, key: str) -> None:
        """A trial has written something."""
        self._poke()

    def has_ended(self, key: str) -> bool:
        """Whether a trial's result can be read here.

        By a look at the whole folder: a client of a shared disk may remember a file as missing.
        """
        try:
            return run_dir.RESULT in os.listdir(ledger.trial_dir(self.out, key))
        except OSError:
            return False

    def send_failed(self, key: str) -> None:
        """The driver itself has recorded a trial as failed."""

    def ask_stop(self) -> None:
        """Have every trial write a checkpoint and stop."""
        try:
            self.stop_file.touch()
        except OSError:
            pass  # A full disk: the deadline ends the trials.

    def clear_stop(self) -> None:
        self.stop_file.unlink(missing_ok=True)

    def settle(self, left: Callable[[], float]) -> str | None:
        """Have everything here while there is time left; what hinders it, None if nothing."""
        return None

    def release(self) -> None:
        """Let the next driver in."""


class Mirror(OutFolder):
    """The same with a storage: it comes first, the output folder follows."""

    def __init__(self, out: Path, storage: Storage) -> None:
        super().__init__(out)
        self._storage = storage
        self._lock: StorageLock | None = None
        self._pulling, self._settled = threading.Lock(), False
        self._claiming = threading.Lock()
        self._running: Callable[[], Collection[str]] = lambda: ()
        self._wake, self._end = threading.Event(), threading.Event()
        self._keys: set[str] = set()
        self._coming: set[str] = set()
        self._keys_lock = threading.Lock()
        self._stop_wanted = False

    @property
    def lost(self) -> bool:
        return self._lock is not None and self._lock.lost

    @property
    def arriving(self) -> bool:
        with self._keys_lock:
            return bool(self._keys or self._coming)

    def claim(self) -> None:
        self._storage.retry_seconds = FIRST_SECONDS
        self._storage.prepare()
        self._lock = StorageLock(self._storage)
        # From here until `release`, however long the driver takes to begin and to deliver.
        threading.Thread(target=self._attend, name="storage", daemon=True).start()

    def begin(self, plan: Plan, trials: Sequence[Trial]) -> None:
        self.claim()
        self.clear_stop()
        before = run_dir.read_json(self.out / ledger.PLAN)
        if self.bring_plan() and run_dir.read_json(self.out / ledger.PLAN) != before:
            raise ledger.PlanChanged
        self.write_plan(plan)
        run_dir.write_json(self.out / REMEMBERED, {"storage": self._storage.address})
        self.push_missing(trials)

    def write_plan(self, plan: Plan) -> None:
        text = json.dumps(plan.to_dict(), indent=1).encode() + b"\n"
        if self._storage.read(ledger.PLAN) != text:
            self._storage.write(ledger.PLAN, text)
        ledger.write_plan(self.out, plan)

    def bring_plan(self) -> bool:
        """Take over the storage's plan, if it has one; LedgerError where ours is another sweep's.

        Returns whether it has one.
        """
        data = self._storage.read(ledger.PLAN)
        if data is None:
            return False
        try:
            values = json.loads(data)
            name = values["id"]
        except (ValueError, TypeError, KeyError):
            raise ledger.LedgerError(
                f"{self._storage.address}/{ledger.PLAN} is damaged; choose another --storage"
            ) from None
        mine = ledger.read_plan(self.out)
        if mine is not None and mine.id != name:
            raise ledger.LedgerError(
                f"{self.out} and {self._storage.address} hold different sweeps; "
                "choose another --out or --storage"
            )
        if mine is None or run_dir.read_json(self.out / ledger.PLAN) != values:
            self.out.mkdir(parents=True, exist_ok=True)
            run_dir.write_json(self.out / ledger.PLAN, values)
        return True

    def pull(self, keys: Iterable[str] | None = None) -> None:
        """Copy the records of these trials, or of all, as far as they differ from those here."""
        folders = [ledger.TRIALS] if keys is None else [f"{ledger.TRIALS}/{key}" for key in keys]
        changed: dict[str, dict[str, Stored]] = {}
        for folder in folders:
            for name, about in self._storage.list(folder).items():
                match = _TRIAL_FILE.fullmatch(name)
                if match and _is_record(match[2]) and _differs(self.out / name, about):
                    changed.setdefault(match[1], {})[name] = about
        self._each(self._pull_one, changed.values())

    def push_missing(self, trials: Sequence[Trial]) -> None:
        """Send the trials that were trained here before there was a storage."""
        stored: dict[str, set[str]] = {}
        for name in self._storage.list(ledger.TRIALS):
            match = _TRIAL_FILE.fullmatch(name)
            if match:
                stored.setdefault(match[1], set()).add(match[2])
        late = []
        for trial in trials:
            there = stored.get(trial.key, set())
            here = ledger.trial_dir(self.out, trial.key)
            lacks = [n for n in (run_dir.RESULT, run_dir.CHECKPOINT) if n not in there]
            if run_dir.RESULT in lacks and (
                (not there and here.is_dir()) or any((here / name).exists() for name in lacks)
            ):
                late.append(trial.key)
        self._each(self._push_one, late)

    def forget(self, trial: Trial, state: str) -> None:
        for name in ledger.forgotten(state):
            self._storage.delete(f"{ledger.TRIALS}/{trial.key}/{name}")
        ledger.forget(self.out, trial, state)

    def take_over(self, plan: Plan, trial: Trial) -> None:
        n = continuation.goes_on_from(self.out, plan, trial)
        if n is None:
            return
        earlier = continuation.earlier_dir(self.out, trial, n)
        here = ledger.trial_dir(self.out, trial.key)
        prefix = f"{ledger.TRIALS}/{earlier.name}"
        if not here.exists():
            data = self._storage.read(f"{prefix}/{run_dir.CHECKPOINT}")
            if data is not None:
                run_dir.write_bytes(earlier / run_dir.CHECKPOINT, data)
            continuation.take_over(self.out, plan, trial)
            self._push_one(trial.key)
            (here / run_dir.CHECKPOINT).unlink(missing_ok=True)
        else:
            continuation.take_over(self.out, plan, trial)
        for name in self._storage.list(prefix):
            self._storage.delete(name)

    def attend(self, running: Callable[[], Collection[str]], poke: Callable[[], None]) -> None:
        self._running, self._poke = running, poke

    def news(self, key: str) -> None:
        with self._keys_lock:
            self._keys.add(key)
        self._wake.set()

    def send_failed(self, key: str) -> None:
        self._push_one(key)

    def ask_stop(self) -> None:
        self._storage.retry_seconds = 1.0  # From here on there are seconds left in all.
        self._stop_wanted = True
        self._wake.set()

    def clear_stop(self) -> None:
        try:
            self._storage.delete(STOP)
        except StorageError:
            pass  # The next driver clears it before it begins.

    def settle(self, left: Callable[[], float]) -> str | None:
        self._settled = True
        self._storage.retry_seconds = max(0.0, left())
        problems: list[str] = []

        def pull() -> None:
            try:
                with self._pulling:
                    self.pull()
            except (OSError, run_dir.RunDirError) as error:
                problems.append(str(error))

        last = threading.Thread(target=pull, name="settle", daemon=True)
        last.start()
        if not joined(last, left):
            return f"storage {self._storage.address} was too slow"
        return problems[0] if problems else None

    def release(self) -> None:
        self._end.set()
        self._wake.set()
        with self._claiming:
            if self._lock is not None and not self._lock.lost:
                self._lock.release()

    def _attend(self) -> None:
        """Renew the claim, fetch what is new, pass the stop on; faults are kept and waited out."""
        assert self._lock is not None
        pause = 1.0
        while not self._end.is_set():
            self._wake.wait(RENEW_SECONDS)
            self._wake.clear()
            with self._keys_lock:
                keys, self._keys = self._keys, set()
                self._coming = keys
            try:
                if self._stop_wanted:
                    self._storage.write(STOP, b"")
                    self._stop_wanted = False
                with self._pulling:
                    if not self._settled:
                        self.pull(keys)
                with self._claiming:
                    if not self._end.is_set():
                        self._lock.renew(self._running())
            except OSError as error:
                with self._keys_lock:
                    self._keys |= keys
                self.problem, pause = str(error), min(2 * pause, 30.0)
                self._end.wait(pause)
                self._wake.set()
                continue
            self.problem, pause = None, 1.0
            with self._keys_lock:
                self._coming = set()
            if keys:
                self._poke()

    def _pull_one(self, files: dict[str, Stored]) -> None:
        """The records of one trial, its result last."""
        for name in sorted(files, key=lambda name: sending_order(name.rpartition("/")[2])):
            data = self._storage.read(name)
            if data is not None:
                file = self.out / name
                file.parent.mkdir(parents=True, exist_ok=True)
                run_dir.write_bytes(file, data)
                os.utime(file, ns=(files[name].time_ns, files[name].time_ns))

    def _push_one(self, key: str) -> None:
        here = ledger.trial_dir(self.out, key)
        files = [file for file in here.iterdir() if file.is_file() and is_sent(file.name)]
        for file in sorted(files, key=lambda file: sending_order(file.name)):
            self._storage.write(f"{ledger.TRIALS}/{key}/{file.name}", file.read_bytes())

    def _each(self, call: Callable[[Any], None], items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(call, items))


def _is_record(name: str) -> bool:
    """Whether a file of a trial belongs into the output folder."""
    return not name.startswith("checkpoint") and name not in LEFT_OUT and name != "attempts"


def _differs(file: Path, about: Stored) -> bool:
    try:
        here = file.stat()
    except FileNotFoundError:
        return True
    return here.st_size != about.size or here.st_mtime_ns != about.time_ns
