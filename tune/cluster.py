"""What the machines of a cluster are given, and whether each has what a trial needs."""

from __future__ import annotations

import errno
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mpcc import data_files, inception, run_dir
from mpcc.code_version import VERSION_VARIABLE, code_fingerprints, code_version
from tune import node_data, preflight
from tune.ledger import PLAN, Trial
from tune.storage import Storage, StorageError

ROOT = Path(__file__).resolve().parents[1]
LOCAL = "local"
PASSED_ON = ("MPCC_CACHE_DIR", "MPCC_INCEPTION_WEIGHTS", "MPCC_SCRATCH_DIR")
"""Variables of the driver that trials on other machines need too."""
CREDENTIALS = ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS")
"""Beginnings of what goes along where files lie in a storage; roles of the machines are safer."""
ANSWER_SECONDS = 5.0
NOT_READY_SECONDS = 20.0
_ready: set[str] = set()
"""Data sets for which this process's machine has been found ready."""
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
        "inception": any(t.config.n_generated is not None for t in todo)
        and _weights_to_be_had(str(data_dir) if data_dir else None),
    }


def _weights_to_be_had(data_dir: str | None) -> bool:
    """Whether the driver or the data's storage has the Inception weights: then each machine must.

    Without them anywhere the cells of IS, FID and KID are empty and say why, which is allowed.
    """
    if (
        data_dir
        and node_data.is_address(data_dir)
        and Storage(data_dir, 8.0).exists(inception.WEIGHTS_NAME)
    ):
        return True
    try:
        inception.find_weights()
    except inception.InceptionMissing:
        return False
    return True


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
    if needed["out"] and not (Path(needed["out"]) / PLAN).exists():
        return f"does not see {needed['out']}: share it, or give --storage"
    if needed["out"]:
        problem = preflight.write_probe(needed["out"])
        if problem:
            return f"cannot write to {needed['out']} ({problem}): share it, or give --storage"
    try:
        if needed["storage"]:
            Storage(needed["storage"], 5.0).read(run_dir.CONFIG)
    except StorageError as error:
        return str(error)
    return None


def data_missing_here(needed: dict[str, Any]) -> str | None:
    """The same for the data, which is fetched here first where it lies in a storage: minutes."""
    try:
        for dataset in needed["datasets"]:
            folder = node_data.folder_here(needed["data_dir"], dataset)
            data_files.check_available(dataset, folder)
        if needed["inception"]:
            inception.find_weights()
    except (StorageError, data_files.DataError, inception.InceptionMissing) as error:
        return str(error)
    return None


class NotReady(OSError):
    """A machine lacks something: the fault of no trial, which may run elsewhere. One line."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ENODEV, text)

    def __str__(self) -> str:
        return str(self.args[1])

    def __reduce__(self) -> tuple[type[NotReady], tuple[str]]:
        return NotReady, (str(self),)


def check_here(needed: dict[str, Any] | None, dataset: str, stopped: Callable[[], bool]) -> None:
    """NotReady where this machine lacks something for a trial on this data set.

    Asked by the trials themselves, once in each process: a machine may have joined after all were
    asked. One that is not ready holds a trial back a while: else it would soon have had them all.
    `needed` is None on one machine.
    """
    if needed is None or dataset in _ready:
        return
    asked = needed | {"datasets": [dataset]}
    problem = missing_here(asked) or data_missing_here(asked)
    if problem is None:
        _ready.add(dataset)
        return
    until = time.monotonic() + NOT_READY_SECONDS
    while time.monotonic() < until and not stopped():
        time.sleep(0.2)
    raise NotReady(f"{socket.gethostname()} {problem}")
