"""What the machines of a cluster are given, and whether each has what a trial needs."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mpcc import data_files, run_dir
from mpcc.code_version import VERSION_VARIABLE, code_fingerprints, code_version
from tune import node_data, preflight
from tune.ledger import Trial
from tune.lock import LOCK
from tune.storage import Storage, StorageError

ROOT = Path(__file__).resolve().parents[1]
LOCAL = "local"
PASSED_ON = ("MPCC_CACHE_DIR", "MPCC_INCEPTION_WEIGHTS", "MPCC_SCRATCH_DIR")
"""Variables of the driver that trials on other machines need too."""
CREDENTIALS = ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS")
"""Beginnings of what goes along where files lie in a storage; roles of the machines are safer."""
ANSWER_SECONDS = 5.0
SAME_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")
"""Another version may give another number."""


def check_address(address: str) -> None:
    """PreflightError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise preflight.PreflightError(
            f"no Ray cluster answers at {address} ({error}): start one, ray start --head, "
            "or correct --address"
        ) from None


def environment(address: str, threads: int, *, storage: bool) -> dict[str, str]:
    """Variables of every trial's process."""
    given = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    given |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if address == LOCAL:
        inherited = os.environ.get("PYTHONPATH")
        return given | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [inherited])])}
    if storage:
        given |= {n: value for n, value in os.environ.items() if n.startswith(CREDENTIALS)}
    return given | {VERSION_VARIABLE: code_version()}


def code() -> list[str]:
    """The packages that travel to every machine of a cluster, so that none needs the repository."""
    return [str(ROOT / "mpcc"), str(ROOT / "tune")]


def needs(
    todo: Sequence[Trial], out: Path, storage: str | None, data_dir: Path | str | None
) -> dict[str, Any]:
    """What each machine must have for these trials, as plain data."""
    return {
        "python": platform.python_version_tuple()[:2],
        "libraries": {name: metadata.version(name) for name in SAME_LIBRARIES},
        "code": code_fingerprints(),
        "out": None if storage else str(out),
        "storage": storage,
        "datasets": sorted({trial.config.dataset for trial in todo}),
        "data_dir": str(data_dir) if data_dir else None,
    }


def missing_here(needed: dict[str, Any]) -> str | None:
    """What this machine lacks, in one line; None if nothing."""
    here = platform.python_version_tuple()[:2]
    if tuple(needed["python"]) != tuple(here):
        return f"has Python {'.'.join(here)}, the driver {'.'.join(needed['python'])}"
    for name, version in needed["libraries"].items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"has no {name}: install requirements.txt with constraints.txt"
        if installed.partition("+")[0] != version.partition("+")[0]:
            return f"has {name} {installed}, the driver {version}"
    if code_fingerprints() != needed["code"]:
        return "imports another version of this code, see PYTHONPATH there"
    if needed["out"] and not (Path(needed["out"]) / LOCK).exists():
        return f"does not see {needed['out']}: share it, or give --storage"
    if needed["out"]:
        problem = preflight.write_probe(needed["out"])
        if problem:
            return f"cannot write to {needed['out']} ({problem}): share it, or give --storage"
    try:
        if needed["storage"]:
            Storage(needed["storage"], 5.0).read(run_dir.CONFIG)
        for dataset in needed["datasets"]:
            folder = node_data.folder_here(needed["data_dir"], dataset)
            data_files.check_available(dataset, folder)
    except (StorageError, data_files.DataError) as error:
        return str(error)
    return None
