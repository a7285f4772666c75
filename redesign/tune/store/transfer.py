"""What goes between a remote and the folders where trials are trained, shown and recorded.

A worker trains in a scratch folder of its node, downloads what earlier attempts have left in the
remote, and uploads each file that it has written; so a trial whose machine is lost resumes on
another one. The order keeps what `mpcc.run_dir` promises: evaluations before the checkpoint that
stands on them, the result before the last checkpoint. The driver downloads the records, which are
all files but the checkpoints, into the sweep's folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from mpcc import run_dir
from mpcc.files import DAMAGED
from tune.plan.plan import TRIALS
from tune.store.claim import process_lives
from tune.store.remote import Remote, RemoteError, Stored

if TYPE_CHECKING:
    from tune.plan.cells import Trial
    from tune.store.folder import Store

OWNER = "owner.json"
"""Which attempt at a trial may write to the remote: the one that began last."""
LAST = (run_dir.METRICS, run_dir.RESULT, run_dir.CHECKPOINT)
"""What is uploaded after all else, in this order."""
LOCAL = (run_dir.PREVIOUS_CHECKPOINT, run_dir.STAGED_CHECKPOINT, OWNER, "mlflow.json")
"""What stays where it is; earlier code kept mlflow.json there."""
SCRATCH_PREFIX = "mpcc-trial-"
SCRATCH_VARIABLE = "MPCC_SCRATCH_DIR"
PAUSE_SECONDS = 10.0
"""Between two uploads that may fail, once one has."""
THREADS = 8
_TRIAL_FILE = re.compile(rf"{TRIALS}/([0-9a-z]+)/([\w-][\w.-]*)")


class Superseded(Exception):
    """A later attempt has the trial: this one must write nothing more."""


class Upload:
    """A worker's run directory, kept in step with a trial's files in a remote."""

    def __init__(self, run_dir: Path, remote: Remote, key: str) -> None:
        self._path, self._remote, self._key = run_dir, remote, key
        self._attempt = secrets.token_hex(8)
        self._sent: dict[str, tuple[int, int, int]] = {}
        self._not_before, self._downloaded = 0.0, False

    def download(self) -> None:
        """Make this the attempt that may write, and get what earlier ones have left; once."""
        if self._downloaded:
            return  # What is here may be newer than what was sent.
        claim = {"attempt": self._attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self._remote.write(self._name(OWNER), json.dumps(claim).encode())
        self._path.mkdir(parents=True, exist_ok=True)
        for name, about in self._remote.list(f"{TRIALS}/{self._key}").items():
            match = _TRIAL_FILE.fullmatch(name)
            if match is None or match[2] in LOCAL or match[2].endswith(".png"):
                continue
            file = self._path / match[2]
            if download_file(self._remote, name, about, file):
                self._sent[file.name] = _mark(file)
        self._downloaded = True

    def send(self, patient: bool) -> None:
        """Upload what has changed; Superseded where a later attempt has the trial.

        patient: RemoteError where the remote does not take it for as long as it is asked again;
        otherwise it is asked once, and the next call sends what is missing.
        """
        if patient:
            self._send_changed()
        elif time.monotonic() >= self._not_before:
            before, self._remote.retry_seconds = self._remote.retry_seconds, 0.0
            try:
                self._send_changed()
            except RemoteError:
                self._not_before = time.monotonic() + PAUSE_SECONDS
            finally:
                self._remote.retry_seconds = before

    def check_attempt(self) -> None:
        """Superseded where a later attempt has the trial."""
        try:
            owner = json.loads(self._remote.read(self._name(OWNER)) or b"{}")
            other = owner.get("attempt", self._attempt) != self._attempt
        except (ValueError, AttributeError):
            return
        if other:
            raise Superseded(f"another attempt at trial {self._key} has begun")

    def _send_changed(self) -> None:
        files = _to_upload(self._path)
        changed = [file for file in files if self._sent.get(file.name) != _mark(file)]
        if changed:
            self.check_attempt()
        for file in changed:
            mark = _mark(file)
            self._remote.write(self._name(file.name), file.read_bytes())
            self._sent[file.name] = mark

    def _name(self, file: str) -> str:
        return f"{TRIALS}/{self._key}/{file}"


def scratch_dir() -> Path:
    """A new folder on this node; those of dead processes are removed."""
    parent = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{SCRATCH_PREFIX}*-*"):
        pid = old.name.removeprefix(SCRATCH_PREFIX).split("-")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=parent))


def upload_trial(remote: Remote, path: Path, key: str) -> None:
    """Upload all files of a run directory."""
    for file in _to_upload(path):
        remote.write(f"{TRIALS}/{key}/{file.name}", file.read_bytes())


def upload_missing(store: Store, trials: Iterable[Trial]) -> None:
    """Upload the trials that were trained in the folder before it had a remote."""
    remote = store.remote
    assert remote is not None
    stored = remote.list(TRIALS)
    for trial in trials:
        here, there = store.trial_dir(trial.key), f"{TRIALS}/{trial.key}/"
        lacks = [n for n in (run_dir.RESULT, run_dir.CHECKPOINT) if there + n not in stored]
        unknown = here.is_dir() and not any(name.startswith(there) for name in stored)
        if run_dir.RESULT in lacks and (unknown or any((here / n).exists() for n in lacks)):
            upload_trial(remote, here, trial.key)


def download_records(store: Store, keys: Iterable[str] | None = None) -> None:
    """Copy the records of these trials, or of all, as far as they differ from those here."""
    remote = store.remote
    assert remote is not None
    trials: dict[str, dict[str, Stored]] = {}
    for folder in [TRIALS] if keys is None else [f"{TRIALS}/{key}" for key in keys]:
        for name, about in remote.list(folder).items():
            match = _TRIAL_FILE.fullmatch(name)
            if match and _is_record(match[2]):
                trials.setdefault(match[1], {})[name] = about

    def download(files: dict[str, Stored]) -> None:
        for name in sorted(files, key=lambda name: _order(name.rpartition("/")[2])):
            download_file(remote, name, files[name], store.out / name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(download, trials.values()))


def download_file(remote: Remote, name: str, about: Stored, file: Path) -> bool:
    """Copy a file that is not here as it is there; False where the remote no longer has it.

    The copy keeps its time, which with its size says whether it is the same.
    """
    try:
        here = file.stat()
        if (here.st_size, here.st_mtime_ns) == (about.size, about.time_ns):
            return True
    except FileNotFoundError:
        pass
    data = remote.read(name)
    if data is None:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_bytes(file, data)
    os.utime(file, ns=(about.time_ns, about.time_ns))
    return True


class Downloads:
    """The driver's traffic with the remote while trials run, in a thread of its own.

    Only `settle` waits. What fails is tried again until it succeeds; `problem` says why it fails.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._wanted: set[str] = set()
        self._arrived: list[str] = []
        self.problem: str | None = None
        threading.Thread(target=self._work, name="downloads", daemon=True).start()

    def request(self, key: str) -> None:
        """Download the records of a trial, which has written something."""
        with self._lock:
            self._wanted.add(key)
        self.submit(self._download_wanted)

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call that writes to the remote, after those submitted before."""
        self._calls.put(call)

    def arrived(self) -> list[str]:
        """The trials whose requested records have come since the last call."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        return arrived

    def settle(self, deadline: float) -> str | None:
        """Have all records here before the deadline (`time.monotonic`).

        Returns what hinders it, None if nothing.
        """
        remote, done = self._store.remote, threading.Event()
        assert remote is not None
        remote.retry_seconds = max(0.0, deadline - time.monotonic())
        self.submit(lambda: download_records(self._store))
        self.submit(done.set)
        if done.wait(max(0.0, deadline - time.monotonic())):
            return None
        return self.problem or f"{remote.address} was too slow"

    def _download_wanted(self) -> None:
        with self._lock:
            keys, self._wanted = self._wanted, set()
        try:
            download_records(self._store, keys)
        except BaseException:
            with self._lock:
                self._wanted |= keys
            raise
        with self._lock:
            self._arrived += sorted(keys)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            while True:
                try:
                    call()
                    break
                except (OSError, run_dir.RunDirError) as error:
                    self.problem = str(error)
                    time.sleep(1.0)
            self.problem = None


def _to_upload(path: Path) -> list[Path]:
    """The files of a run directory that belong into the remote, in the order of uploading."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    files = [f for f in files if not f.name.startswith(".") and DAMAGED not in f.name]
    return sorted((f for f in files if f.name not in LOCAL), key=lambda file: _order(file.name))


def _order(name: str) -> tuple[int, str]:
    return (LAST.index(name) + 1 if name in LAST else 0), name


def _is_record(name: str) -> bool:
    """Whether a file of a trial belongs into the driver's copy."""
    return not name.startswith("checkpoint") and name not in LOCAL and name != "attempts"


def _mark(file: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size, about.st_ino
