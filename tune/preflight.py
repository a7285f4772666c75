"""The checks before the first trial, so that a sweep of days does not end in its first hour.

They cover data, disk, cores and memory, as far as this machine can tell. Each finding is one line:
what is missing, and what to do.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.filesize import decimal

from mpcc import config as configs
from mpcc.config.checks import TF32_NEEDS_GPU
from mpcc.data import files as data_files
from mpcc.data.prepared import description, fingerprint
from mpcc.machine import free_memory, gpus_here, processes_left, usable_cores
from mpcc.runs import run_dir
from mpcc.training import checks
from tune.display import log
from tune.engine.head import HOST, TEMP_PARENT_LENGTH, temp_parent
from tune.engine.spec import Settings
from tune.options import Options
from tune.plan.cells import Trial
from tune.plan.cost import checkpoint_bytes, memory_need
from tune.plan.plan import Plan, images_name
from tune.store.folder import Store

OTHER_BYTES = 2**20
"""Size of a trial's pictures, metrics and copies in MLflow."""


ANSWER_SECONDS = 3.0
RAY_BYTES = 10 * 2**20
"""Size of a local Ray's sockets and logs."""
RAY_THREADS, TRIAL_THREADS = 300, 50
"""Threads of a local Ray with the driver, and of a trial's process, counted on two cores."""


def check(
    todo: Sequence[Trial], settings: Settings, store: Store, *, download: bool = False
) -> None:
    """ValueError or OSError if these trials cannot run.

    download: get the data sets that are missing.
    """
    check_data(todo, settings, download)
    n_at_once = settings.n_at_once(todo) if todo else None
    check_folder(todo, store, n_at_once)
    if settings.local:
        check_cores(settings.cpus)
        if n_at_once and (settings.gpus == 0 or not gpus_here()):
            if any(trial.config.precision == "tf32" for trial in todo):
                raise ValueError(TF32_NEEDS_GPU)
            check_memory(todo, n_at_once)


def check_data(todo: Sequence[Trial], settings: Settings, download: bool = False) -> None:
    """ValueError or OSError if the trials' data sets are missing.

    On a cluster the folder lies on its nodes, which the engine checks later.
    """
    datasets, data_dir = sorted({trial.config.dataset for trial in todo}), settings.data_dir
    if isinstance(data_dir, str):
        from tune.store.datasets import folder_on_node

        if download:
            raise ValueError("--download fills a folder: give one as --data-dir, and copy it")
        for dataset in datasets:
            folder_on_node(data_dir, dataset)
        return
    if download:
        from mpcc.data import download as data_download

        for dataset in datasets:
            data_download.download(dataset, data_dir)
    if settings.local:
        if data_dir is not None and not data_dir.is_dir():
            raise ValueError(f"--data-dir {data_dir} is no folder")
        for dataset in datasets:
            data_files.check_available(dataset, data_dir)
        own = {images_name(t.config): t.config for t in todo if t.config.dataset == "folder"}
        for text in sorted({description(config, data_dir) for config in own.values()}):
            log(text)
        check_fit(todo, settings)


def check_fit(todo: Sequence[Trial], settings: Settings) -> None:
    """DataError for images on this machine that a trial cannot be trained on."""
    if not settings.local or isinstance(settings.data_dir, str):
        return
    kinds = {tuple(getattr(t.config, name) for name in checks.ASKED): t.config for t in todo}
    for config in kinds.values():
        checks.check_data(config, settings.data_dir)


def check_same_data(out: Path, plan: Plan, trials: Iterable[Trial], data_dir: Path | None) -> None:
    """ValueError that names the images on this machine that are not those of the plan."""
    changed = []
    for name, config in {images_name(trial.config): trial.config for trial in trials}.items():
        was = plan.fingerprint_for(config)
        now = None if was is None else fingerprint(config, data_dir)
        if was != now:
            changed.append(f"{name}: fingerprint {was}, now {now}")
    if changed:
        raise ValueError(
            f"{out} was written on other images: {'; '.join(changed)}; "
            "bring the same data or choose another --out"
        )


def cautions(todo: Sequence[Trial], options: Options) -> list[str]:
    """Warnings about settings and options that are probably mistakes, one line each."""
    asked = options.data_dir, options.download, options.inception_weights
    idle = configs.idle_options((trial.config for trial in todo), *asked)
    return list(dict.fromkeys([*idle, *(x for t in todo for x in configs.cautions(t.config))]))


def check_folder(todo: Sequence[Trial], store: Store, n_at_once: int | None = None) -> None:
    """ValueError if the folder's disk is too small for these trials.

    RunDirError if a trial's folder holds a checkpoint that is not ours. With a remote, the
    checkpoints lie on it and need no room on the folder's disk.
    """
    for trial in todo:
        path = store.trial_dir(trial.key)
        # With config.json the folder is ours, and a bad checkpoint there is a damaged one.
        if not (path / run_dir.CONFIG).exists():
            run_dir.refuse_foreign_checkpoints(path)
    need = len(todo) * OTHER_BYTES if store.remote else disk_need(todo, store, n_at_once)
    free = shutil.disk_usage(next(p for p in (store.out, *store.out.parents) if p.exists())).free
    if need > free:
        raise ValueError(
            f"{len(todo)} trials need about {decimal(need)} on the disk of {store.out}, "
            f"{decimal(free)} are free; make room or choose another --out"
        )


def check_memory(todo: Sequence[Trial], n_at_once: int) -> None:
    """ValueError if `n_at_once` of these trials need more memory than is free here."""
    free = free_memory()
    largest = sorted((memory_need(trial.config) for trial in todo), reverse=True)[:n_at_once]
    if free is None or sum(largest) <= free:
        return
    fitting = next(n for n in range(len(largest), -1, -1) if sum(largest[:n]) <= free)
    advice = f"--max-concurrent {fitting}" if fitting else "free some, or a smaller batch_size"
    raise ValueError(
        f"{len(largest)} trials at once need about {decimal(sum(largest))} of memory, "
        f"{decimal(free)} are free here: {advice}"
    )


def check_cores(cores: float | None) -> None:
    """ValueError if a trial needs more cores than are available here."""
    here = usable_cores()
    if cores is not None and cores > here:
        raise ValueError(
            f"--cpus-per-trial {cores:g}: only {here} cores are available here, so no trial could "
            "start; ask for fewer, or use a cluster with --address"
        )


def check_docstrings() -> None:
    """ValueError under `python -OO`, which takes away docstrings that Ray reads."""
    if sys.flags.optimize > 1:
        raise ValueError(
            "python -OO (PYTHONOPTIMIZE=2) takes away docstrings that Ray reads: unset it, or take "
            "-O (PYTHONOPTIMIZE=1)"
        )


def check_local_ray(n_at_once: int) -> None:
    """ValueError if this machine cannot run a Ray of our own with `n_at_once` trials.

    Ray would never start, or end during the sweep.
    """
    left, need = processes_left(), RAY_THREADS + n_at_once * TRIAL_THREADS
    if left < need:
        raise ValueError(
            f"Ray and {n_at_once} trials at once need about {need} processes and threads, and this "
            f"user may start {left:.0f} more (ulimit -u): raise the limit, or train one trial at a "
            "time with --next, which needs no Ray"
        )
    place = temp_parent()
    free = shutil.disk_usage(place).free
    if free < RAY_BYTES:
        raise ValueError(
            f"{place} has {decimal(free)} free, too little for Ray's sockets and logs: make room, "
            f"or set TMPDIR to a folder of at most {TEMP_PARENT_LENGTH} letters"
        )
    try:  # A container without network does not reach itself.
        with socket.create_server((HOST, 0)) as server:
            socket.create_connection(server.getsockname(), ANSWER_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"this machine does not reach itself at {HOST} ({error.strerror or error}): bring its "
            "loopback device up (ip link set lo up), or train one trial at a time with --next"
        ) from None


def disk_need(todo: Sequence[Trial], store: Store, n_at_once: int | None = None) -> int:
    """The approximate bytes that these trials will add to those that they have on the disk.

    Each trial without a checkpoint adds a checkpoint and its pictures; each trial that runs at the
    same time adds two checkpoints: the one before, and the one that is being written.
    """
    sizes = sorted((checkpoint_bytes(trial.config) for trial in todo), reverse=True)
    new = [t for t in todo if not (store.trial_dir(t.key) / run_dir.CHECKPOINT).exists()]
    ends = sum(checkpoint_bytes(trial.config) + OTHER_BYTES for trial in new)
    return ends + 2 * sum(sizes[:n_at_once])
