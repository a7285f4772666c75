"""Whether every node of a cluster has what a trial needs: Python, libraries, code, folder, data.

All nodes are asked before the first trial. One that joins later is asked by its first trial, which
runs elsewhere where the node is not ready.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from mpcc import data_files, inception, run_dir
from mpcc.code_version import code_fingerprints
from tune.engine.head import EngineError
from tune.engine.spec import NodeNeeds, Settings
from tune.plan.cells import Trial
from tune.plan.plan import PLAN
from tune.store.datasets import folder_on_node
from tune.store.remote import REFUSED, Remote, RemoteError, is_address

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")
"""Another version of these may give other numbers."""
PROBE_SECONDS = 60.0
"""How long the nodes have to answer what they lack."""
FETCH_SECONDS = 3600.0
"""How long they have to download their data sets."""

_ready: set[str] = set()
"""The data sets for which this process has found its node ready."""


def needs_of(trials: Sequence[Trial], settings: Settings) -> NodeNeeds:
    """Return what each node must have for these trials."""
    generates = any(trial.config.n_generated is not None for trial in trials)
    return NodeNeeds(
        versions=versions_here(),
        out=None if settings.remote else str(settings.out),
        remote=settings.remote,
        datasets=tuple(sorted({trial.config.dataset for trial in trials})),
        data_dir=str(settings.data_dir) if settings.data_dir else None,
        inception=generates and _weights_available(settings.data_dir),
    )


def check_nodes(needs: NodeNeeds, log: Callable[[str], None]) -> None:
    """EngineError, which says what each node lacks, where not every one is ready.

    Data sets that lie on a remote are downloaded to every node.
    """
    lacking = _ask_nodes(missing_here, needs, PROBE_SECONDS)
    if not lacking:
        if is_address(needs.data_dir):
            log("downloading the data sets to every node …")
        lacking = _ask_nodes(data_missing_here, needs, FETCH_SECONDS)
    if lacking:
        raise EngineError(f"not every machine is ready: {'; '.join(lacking)}")


def not_ready(needs: NodeNeeds, dataset: str) -> str | None:
    """Return what this node lacks for trials on the data set, None once it has been found ready.

    Each worker asks, because a node may have joined after all nodes were asked. RemoteError where
    a remote does not answer, which may not be the node's fault.
    """
    if dataset in _ready:
        return None
    needs = replace(needs, datasets=(dataset,))
    try:
        problem = missing_here(needs) or data_missing_here(needs)
    except RemoteError as error:
        if not REFUSED.search(str(error)):
            raise
        problem = str(error)
    if problem is None:
        _ready.add(dataset)
        return None
    return f"{socket.gethostname()} {problem}"


def missing_here(needs: NodeNeeds) -> str | None:
    """Return what this node lacks but for data, in one line; None if nothing."""
    here = versions_here()
    for name, version in needs.versions.items():
        if name not in here:
            return f"has no {name}: install requirements.txt with constraints.txt"
        if here[name] != version:
            return f"has {name} {here[name]}, the driver {version}"
    if needs.remote:
        Remote(needs.remote, 5.0).read(run_dir.CONFIG)
    if needs.out:
        try:
            (Path(needs.out) / PLAN).stat()
            tempfile.TemporaryFile(dir=needs.out).close()
        except OSError as error:
            return f"cannot use {needs.out} ({error.strerror}): share it, or give --storage"
    return None


def data_missing_here(needs: NodeNeeds) -> str | None:
    """Return what this node lacks of the data, which is downloaded first where it is remote."""
    try:
        for dataset in needs.datasets:
            data_files.check_available(dataset, folder_on_node(needs.data_dir, dataset))
        if needs.inception:
            inception.find_weights()
    except (data_files.DataError, inception.InceptionMissing) as error:
        return str(error)
    return None


def versions_here() -> dict[str, str]:
    """Return what must be the same on every node -> its version here, of our code hashes."""
    found = {"Python": platform.python_version().rpartition(".")[0], **code_fingerprints()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name).partition("+")[0]
    return found


def _ask_nodes(
    probe: Callable[[NodeNeeds], str | None], needs: NodeNeeds, seconds: float
) -> list[str]:
    """Call the probe on all nodes that have cores for trials, at the same time.

    Returns `ADDRESS PROBLEM` of each node that lacks something or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    calls = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            call = remote.options(scheduling_strategy=there).remote(needs)
            calls.append((node["NodeManagerAddress"], call))
    lacking = []
    end = time.monotonic() + seconds
    for address, call in calls:
        try:
            problem = ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.RayError as error:  # A timeout is one of them.
            text = str(getattr(error, "cause", error))
            problem = " ".join(text.split())[:300] or type(error).__name__
        if problem is not None:
            lacking.append(f"{address} {problem}")
    return lacking


def _weights_available(data_dir: Path | str | None) -> bool:
    """Return whether the driver or the data's remote has the Inception weights.

    Then every node must have them. Without them anywhere the cells of IS, FID and KID say so.
    """
    with contextlib.suppress(inception.InceptionMissing):
        return inception.find_weights().is_file()
    return is_address(data_dir) and bool(Remote(str(data_dir), 8.0).info(inception.WEIGHTS_NAME))
