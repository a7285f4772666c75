"""What is checked before the first trial, so that a sweep of days does not end in its first hour.

Data, permissions, room on the disk, cores, memory: what can be known on this machine. Each finding
is one line: what is missing, and what to do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpcc.machine import free_memory, gpus_here

from mpcc import data_files, run_dir
from tune.engine.settings import Settings
from tune.plan.cells import Trial
from tune.plan.cost import checkpoint_bytes, memory_need
from tune.plan.plan import Plan, check_same_data
from tune.store.folder import Store
from tune.store.remote import is_address

OTHER_BYTES = 2**20
"""Pictures, metrics and MLflow's copies of one trial."""


class PreflightError(ValueError):
    """Something that must be put right before the sweep can start; the message is one line."""


def check(todo: Sequence[Trial], settings: Settings, store: Store) -> None:
    """PreflightError, or the data's own error, for what would stop these trials."""
    check_data(todo, settings)
    n_at_once = settings.n_at_once(todo) if todo else None
    check_folder(todo, store, n_at_once)
    if settings.local:
        check_cores(settings.cpus)
        if n_at_once and not gpus_here():
            check_memory(todo, n_at_once)


def check_data(todo: Sequence[Trial], settings: Settings) -> None:
    """PreflightError, or the data's own error, where the trials' data sets are missing.

    On a cluster a folder is one of its nodes, which the engine asks later.
    """
    datasets, data_dir = sorted({trial.config.dataset for trial in todo}), settings.data_dir
    if isinstance(data_dir, str):
        from tune.store.datasets import check_remote_data

        check_remote_data(data_dir, datasets)
    elif settings.local:
        if data_dir is not None and not data_dir.is_dir():
            raise PreflightError(f"--data-dir {data_dir} is no folder")
        for dataset in datasets:
            data_files.check_available(dataset, data_dir)


def check_images(plan: Plan, todo: Sequence[Trial], settings: Settings) -> None:
    """PlanError where the images of this machine are not those that the folder was begun on."""
    if settings.local and not is_address(settings.data_dir):
        data_dir = settings.data_dir
        check_same_data(settings.out, plan, todo, None if data_dir is None else Path(data_dir))


def check_folder(todo: Sequence[Trial], store: Store, n_at_once: int | None = None) -> None:
    """PreflightError where the folder cannot be written to or its disk is too small.

    RunDirError where a trial's folder holds a checkpoint that is not ours. With a remote the
    checkpoints are there, not on the folder's disk.
    """
    for trial in todo:
        path = store.trial_dir(trial.key)
        if not (path / run_dir.CONFIG).exists():  # Where it is, that is a damaged one of ours.
            run_dir.refuse_foreign_checkpoints(path)
    there = store.out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PreflightError(f"{there} cannot be written to; choose another --out")
    need = len(todo) * OTHER_BYTES if store.remote else disk_need(todo, store, n_at_once)
    free = shutil.disk_usage(there).free
    if need > free:
        raise PreflightError(
            f"{len(todo)} trials need about {size_text(need)} on the disk of {store.out}, "
            f"{size_text(free)} are free; make room or choose another --out"
        )


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


def disk_need(todo: Sequence[Trial], store: Store, n_at_once: int | None = None) -> int:
    """About how much room these trials will take beyond what they have on the disk already.

    Each one a checkpoint and its pictures in the end, and those that run at a time two more
    checkpoints: the one before, and the one that is being written.
    """
    ends, running = 0, []
    on_disk = {key: _checkpoints_size(store.trial_dir(key)) for key in {t.key for t in todo}}
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


def size_text(n_bytes: float) -> str:
    """`3.1 MB`, `14 GB`."""
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.2g} {unit}" if n_bytes < 100 else f"{n_bytes:.0f} {unit}"
    return f"{n_bytes / 1000:.3g} TB"
