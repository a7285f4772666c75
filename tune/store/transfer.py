"""Copies files between a remote and the folders where trials are trained and recorded.

A worker trains in a scratch folder of its node, downloads what earlier attempts have left in the
remote, and uploads each file that it has written; so a trial whose machine is lost resumes on
another one. The driver downloads the records, which are all files but the checkpoints, into the
sweep's folder. Either way a copy keeps the order that `mpcc.runs.run_dir` promises: evaluations
before the checkpoint that comes after them, the result before the last checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from mpcc.runs import run_dir
from mpcc.runs.files import DAMAGED
from tune.plan.plan import MLFLOW, TRIALS
from tune.store.lock import Claim, process_lives, this_machine
from tune.store.remote import Remote, RemoteError, Stored

OWNER = "owner.json"
"""The claim of the attempt at a trial that may write to the remote: the one that began last."""
LAST = (run_dir.METRICS, run_dir.RESULT, run_dir.CHECKPOINT)
"""The files that are copied after all others, in this order."""
LOCAL = (run_dir.PREVIOUS_CHECKPOINT, run_dir.STAGED_CHECKPOINT, OWNER, MLFLOW, "attempts")
"""The files that are never copied; earlier code wrote the last two."""
SCRATCH = "mpcc-trial-"
"""The start of a scratch folder's name; the machine and the process id follow."""
PAUSE_SECONDS = 10.0
"""Pause after a failed upload, before the next one that is not patient."""
THREADS = 8


def copy(
    source: Remote, target: Remote, files: Mapping[str, Stored], known: dict[str, Stored]
) -> None:
    """Copy the files whose size or time differs from `known`; update `known`.

    A folder's copies keep size and time, so they need no other mark. RemoteError for a file that
    was removed after it was listed.
    """

    def copy_one(name: str) -> None:
        data = source.read(name)
        if data is None:
            raise RemoteError(f"{source.address}/{name} has just been removed; try again")
        target.write(name, data, files[name].time_ns)
        known[name] = files[name]

    changed = sorted((name for name in files if known.get(name) != files[name]), key=_rank)
    with ThreadPoolExecutor(THREADS) as pool:
        for _, names in groupby(changed, _rank):
            list(pool.map(copy_one, names))


def trial_files(place: Remote, key: str = "") -> dict[str, Stored]:
    """The files of a trial, or of all trials, that belong in a remote."""
    return {
        name: about
        for name, about in place.list(f"{TRIALS}/{key}".rstrip("/")).items()
        if name.rpartition("/")[2] not in LOCAL and DAMAGED not in name
    }


class Upload:
    """A worker's copy of a trial's run directory, kept in step with that in a remote."""

    def __init__(self, scratch: Path, remote: Remote, key: str) -> None:
        """scratch: the folder that holds the run directory as `trials/KEY`."""
        self._here, self._remote, self._key = Remote(str(scratch), 0.0), remote, key
        self._claim = Claim(remote, f"{TRIALS}/{key}/{OWNER}")
        self._patience, self._not_before = remote.retry_seconds, 0.0
        self._sent: dict[str, Stored] | None = None

    def download(self) -> None:
        """At the first call, become the attempt that may write, and get earlier attempts' files."""
        if self._sent is None:  # Else what is here may be newer than what was sent.
            self._claim.write()
            files = trial_files(self._remote, self._key)
            copy(self._remote, self._here, files, {})
            self._sent = files

    def send(self, patient: bool) -> None:
        """Upload the files that have changed, unless a later attempt owns the trial.

        patient: retry for `retry_seconds`, and raise RemoteError on failure or if a later attempt
        owns the trial. Otherwise try once and ignore failure; a later call sends the rest.
        """
        if self._sent is None or (not patient and time.monotonic() < self._not_before):
            return
        files = trial_files(self._here, self._key)
        self._remote.retry_seconds = self._patience if patient else 0.0
        try:
            if not (files.items() <= self._sent.items() or self._claim.held()):
                raise RemoteError(f"another attempt at trial {self._key} has begun")
            copy(self._here, self._remote, files, self._sent)
        except RemoteError:
            self._not_before = time.monotonic() + PAUSE_SECONDS
            if patient:
                raise


def download(remote: Remote, scratch: Path, key: str) -> None:
    """Download the files of another trial from a remote, only to read them."""
    copy(remote, Remote(str(scratch), 0.0), trial_files(remote, key), {})


def scratch_dir(parent: Path | None = None, prefix: str = SCRATCH) -> Path:
    """A new folder on this node, by default in $MPCC_SCRATCH_DIR or the folder of temporary files.

    Folders with this prefix of dead processes of this node are removed.
    """
    parent = parent or Path(os.environ.get("MPCC_SCRATCH_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    # The parent may be shared by machines or containers, whose processes cannot be seen.
    ours = f"{prefix}{hashlib.sha256(this_machine().encode()).hexdigest()[:8]}-"
    for old in parent.glob(f"{ours}*-*"):
        pid = old.name.removeprefix(ours).split("-")[0]
        if pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=parent))


class Downloads:
    """Makes the driver's calls to its folder and its remote while trials run, in one thread.

    Only `flush` waits. A call that fails is tried again until it succeeds, and delays no other;
    `problem` says why it fails.
    """

    def __init__(self, download_all: Callable[[], object]) -> None:
        """download_all: copies the records of all trials; `flush` makes this call."""
        self._download_all = download_all
        self._calls: dict[str, Callable[[], object]] = {}
        self._wake, self._busy = threading.Event(), False
        self.problem: str | None = None
        threading.Thread(target=self._work, name="downloads", daemon=True).start()

    def submit(self, name: str, call: Callable[[], object]) -> None:
        """Queue a call; it replaces one of the same name that is still queued."""
        self._calls[name] = call
        self._wake.set()

    def flush(self, deadline: float) -> str | None:
        """Wait until all calls and a last download are done, or the deadline (`time.monotonic`).

        Returns why one of them fails; None if all are done.
        """
        self.submit("", self._download_all)
        while self._calls or self._busy:
            if time.monotonic() > deadline:
                return self.problem or "the remote was too slow"
            time.sleep(0.02)
        return None

    def _work(self) -> None:
        while True:
            self._wake.wait(1.0 if self.problem else None)
            self._wake.clear()
            self._busy, problem = True, None
            for name in list(self._calls):
                call = self._calls.pop(name)
                try:
                    call()
                except Exception as error:  # Whatever it is, the thread must go on.
                    self.problem = problem = str(error) or type(error).__name__
                    self._calls.setdefault(name, call)  # Unless there is a newer one.
            self.problem, self._busy = problem, False


def _rank(name: str) -> int:
    """The place of a file in the order of copying (`LAST`); files of equal rank go at once."""
    file = name.rpartition("/")[2]
    return LAST.index(file) + 1 if file in LAST else 0
