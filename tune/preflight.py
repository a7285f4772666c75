"""What is looked at before the first trial, so that a sweep of days does not end in its first hour.

Data, rights, room on the disk, memory, MLflow, and the output folder as every node of a cluster
sees it. Each finding is one line: what is missing, and what to do.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from mpcc import data_files, run_dir
from mpcc.config import Config
from tune import ledger, node_data, tracking, tracking_file
from tune.grid import checkpoint_bytes
from tune.ledger import Trial

OTHER_BYTES = 2**20
"""Pictures, metrics and MLflow's copies of one trial."""
PROCESS_BYTES = 600 * 10**6
"""A trial's process before its first iteration: torch, Ray, the images' map (0.54 GB measured)."""
ACTIVATIONS = 30
"""Maps of a full-width layer for one batch that training and evaluation hold at their peak."""


class PreflightError(ValueError):
    """Something that must be put right before the sweep can start; the message is one line."""


def check(
    todo: Sequence[Trial], out: Path, *, stored: bool = False, n_at_once: int | None = None
) -> None:
    """PreflightError for what would stop these trials in this output folder.

    `stored`: their checkpoints go to a storage.
    """
    for trial in todo:
        path = ledger.trial_dir(out, trial.key)
        if not (path / run_dir.CONFIG).exists():  # Where it is, that is a damaged one of ours.
            run_dir.refuse_foreign_checkpoints(path)
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PreflightError(f"{there} cannot be written to; choose another --out")
    need = len(todo) * OTHER_BYTES if stored else disk_need(todo, out, n_at_once)
    free = shutil.disk_usage(there).free
    if need > free:
        raise PreflightError(
            f"{len(todo)} trials need about {size_text(need)} on the disk of {out}, "
            f"{size_text(free)} are free; make room or choose another --out"
        )


def check_data(todo: Sequence[Trial], data_dir: Path | str | None, *, here: bool) -> None:
    """PreflightError, or the data's own error, where the trials' data sets are not to be had.

    Unless trials run `here`, a folder is one of the cluster's machines, which are asked later.
    """
    datasets = sorted({trial.config.dataset for trial in todo})
    if isinstance(data_dir, str) and node_data.is_address(data_dir):
        node_data.check_stored(data_dir, datasets)
    elif here:
        if data_dir is not None and not Path(data_dir).is_dir():
            raise PreflightError(f"--data-dir {data_dir} is no folder")
        for dataset in datasets:
            data_files.check_available(dataset, data_dir)


def check_memory(todo: Sequence[Trial], n_at_once: int) -> None:
    """PreflightError where so many of these trials at once need more memory than is free here."""
    free = free_memory()
    largest = sorted((memory_need(trial.config) for trial in todo), reverse=True)[:n_at_once]
    if free is None or sum(largest) <= free:
        return
    fitting = next(n for n in range(len(largest), -1, -1) if sum(largest[:n]) <= free)
    advice = f"--max-concurrent {fitting}" if fitting else "free some, or a smaller batch_size"
    raise PreflightError(
        f"{len(largest)} trials at once need about {size_text(sum(largest))} of memory, "
        f"{size_text(free)} are free here: {advice}"
    )


def check_cores(cores: float | None) -> None:
    """PreflightError where a trial is to have more cores than this machine lends us."""
    here = len(os.sched_getaffinity(0))
    if cores is not None and cores > here:
        raise PreflightError(
            f"--cpus-per-trial {cores:g}: this machine has {here} cores for us, so that no trial "
            "could ever start; give fewer, or a cluster by --address"
        )


def check_tracking(uri: str, out: Path, preset: str, *, begun: bool) -> str | None:
    """PreflightError where MLflow cannot be written to, before the sweep's first trial.

    Once a sweep has `begun` a silent server does not hold it up: then what hinders is returned, and
    results are delivered later.
    """
    file = tracking_file.file_of(uri)
    if file is None:
        problem = _server_problem(uri, out, preset)
    else:
        # Our own file, where it is damaged, is made again.
        problem = _sqlite_problem(file, ours=uri == tracking.default_uri(out))
    if problem is None or begun:
        return problem
    raise PreflightError(
        f"MLflow at {uri} cannot be written to ({problem}): mend it, correct --tracking-uri, or "
        f"leave that out (a SQLite file in {out}) and deliver later with --sync --tracking-uri"
    )


def disk_need(todo: Sequence[Trial], out: Path, n_at_once: int | None = None) -> int:
    """About how much room these trials will take beyond what they have on the disk already.

    Each one a checkpoint and its pictures in the end, and those that run at a time two more
    checkpoints: the one before, and the one that is being written.
    """
    ends, running = 0, []
    on_disk = {key: _checkpoints_size(ledger.trial_dir(out, key)) for key in {t.key for t in todo}}
    for trial in todo:
        size, have = checkpoint_bytes(trial.config), on_disk.pop(trial.key, 0)
        ends += max(0, size - have) + OTHER_BYTES
        running.append(max(0, 2 * size - max(0, have - size)))
    return ends + sum(sorted(running, reverse=True)[: n_at_once or len(running)])


def _checkpoints_size(path: Path) -> int:
    """Bytes of a trial's checkpoints."""
    size = 0
    for name in run_dir.CHECKPOINTS:
        with suppress(OSError):
            size += (path / name).stat().st_size
    return size


def memory_need(config: Config) -> int:
    """About how much memory a trial on a CPU takes at its peak, in bytes."""
    one_map = 4 * config.batch_size * 4 * config.width * config.image_size**2
    return PROCESS_BYTES + 2 * checkpoint_bytes(config) + ACTIVATIONS * one_map


def free_memory() -> int | None:
    """Bytes of memory that new processes can have here; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free = found.get("MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    if free is None or limit == "max":
        return free
    return min(free, max(0, int(limit) - used))


def size_text(n_bytes: float) -> str:
    """`3.1 MB`, `14 GB`."""
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.2g} {unit}" if n_bytes < 100 else f"{n_bytes:.0f} {unit}"
    return f"{n_bytes / 1000:.3g} TB"


def write_probe(folder: str) -> str | None:
    """Write, read and remove a small file in this folder; what hinders, None if nothing."""
    probe = Path(folder) / f".probe-{secrets.token_hex(4)}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        same = probe.read_bytes() == b"probe"
        probe.unlink()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return None if same else "reads other bytes than were written"


def _sqlite_problem(file: Path, *, ours: bool) -> str | None:
    """Why this data base cannot be written to; None where it is missing, or damaged but ours."""
    folder = file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not file.exists():
        return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=3)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.OperationalError as error:
        return str(error)
    except sqlite3.Error as error:
        return None if ours else str(error)
    return None


def _server_problem(uri: str, out: Path, preset: str) -> str | None:
    """Why this server cannot be written to: the experiment is written."""
    try:
        tracking.write_probe(uri, out, preset)
    except Exception as error:  # whatever a data base or a server can raise
        return tracking.one_line(error)
    return None
