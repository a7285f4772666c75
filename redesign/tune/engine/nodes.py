"""Whether every node of a cluster has what a trial needs: Python, libraries, code, folder, data."""

from __future__ import annotations

import errno
import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from mpcc import data_files, inception, run_dir
from mpcc.code_version import code_fingerprints
from tune.engine.events import NodeNeeds
from tune.plan.cells import Trial
from tune.plan.plan import PLAN
from tune.store.datasets import folder_on_node
from tune.store.remote import Remote, RemoteError, is_address

SAME_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")
"""Another version of these may give other numbers."""
PROBE_SECONDS = 60.0
"""How long the nodes have to answer what they lack."""
FETCH_SECONDS = 3600.0
"""How long they have to download their data sets."""
NOT_READY_SECONDS = 20.0
"""How long a node that lacks something holds a trial back, so that it does not take all of them."""

_ready: set[str] = set()
"""The data sets for which this process has found its node ready."""


class NodeNotReady(OSError):
    """A node lacks something: an infrastructure error, since the trial may run elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ENODEV, text)

    def __str__(self) -> str:
        return str(self.args[1])

    def __reduce__(self) -> tuple[type[NodeNotReady], tuple[str]]:
        return NodeNotReady, (str(self),)


def needs_of(
    trials: Sequence[Trial], out: Path, remote: str | None, data_dir: Path | str | None
) -> NodeNeeds:
    """Return what each node must have for these trials."""
    data = str(data_dir) if data_dir else None
    generates = any(trial.config.n_generated is not None for trial in trials)
    major, minor, _ = platform.python_version_tuple()
    return NodeNeeds(
        python=(major, minor),
        libraries={name: metadata.version(name) for name in SAME_LIBRARIES},
        code=code_fingerprints(),
        out=None if remote else str(out),
        remote=remote,
        datasets=tuple(sorted({trial.config.dataset for trial in trials})),
        data_dir=data,
        inception=generates and _weights_available(data),
    )


def ask_nodes(needs: NodeNeeds, log: Callable[[str], None]) -> dict[str, str]:
    """Return node address -> what it lacks, empty where every node is ready.

    Data sets that lie on a remote are downloaded to every node.
    """
    lacking = _on_every_node(missing_here, needs, PROBE_SECONDS)
    if not lacking:
        if is_address(needs.data_dir):
            log("downloading the data sets to every node …")
        lacking = _on_every_node(data_missing_here, needs, FETCH_SECONDS)
    return lacking


def missing_here(needs: NodeNeeds) -> str | None:
    """Return what this node lacks but for data, in one line; None if nothing."""
    major, minor, _ = platform.python_version_tuple()
    if needs.python != (major, minor):
        return f"has Python {major}.{minor}, the driver {'.'.join(needs.python)}"
    for name, version in needs.libraries.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"has no {name}: install requirements.txt with constraints.txt"
        if installed.partition("+")[0] != version.partition("+")[0]:
            return f"has {name} {installed}, the driver {version}"
    if code_fingerprints() != needs.code:
        return "imports another version of this code, see PYTHONPATH there"
    if needs.out:
        if not (Path(needs.out) / PLAN).exists():
            return f"does not see {needs.out}: share it, or give --storage"
        problem = write_probe(needs.out)
        if problem:
            return f"cannot write to {needs.out} ({problem}): share it, or give --storage"
    try:
        if needs.remote:
            Remote(needs.remote, 5.0).read(run_dir.CONFIG)
    except RemoteError as error:
        return str(error)
    return None


def data_missing_here(needs: NodeNeeds) -> str | None:
    """Return what this node lacks of the data, which is downloaded first where it is remote."""
    try:
        for dataset in needs.datasets:
            data_files.check_available(dataset, folder_on_node(needs.data_dir, dataset))
        if needs.inception:
            inception.find_weights()
    except (RemoteError, data_files.DataError, inception.InceptionMissing) as error:
        return str(error)
    return None


def check_node(needs: NodeNeeds, dataset: str) -> None:
    """Raise NodeNotReady, after a while, where this node lacks something for the data set.

    Each worker asks once, because a node may have joined after all nodes were asked.
    """
    if dataset in _ready:
        return
    problem = missing_here(needs) or data_missing_here(needs)
    if problem is None:
        _ready.add(dataset)
        return
    time.sleep(NOT_READY_SECONDS)
    raise NodeNotReady(f"{socket.gethostname()} {problem}")


def write_probe(folder: str) -> str | None:
    """Write, read and remove a small file in this folder; return the problem, None if none."""
    probe = Path(folder) / f".probe-{secrets.token_hex(4)}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        same = probe.read_bytes() == b"probe"
        probe.unlink()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return None if same else "reads other bytes than were written"


def _on_every_node(
    probe: Callable[[NodeNeeds], str | None], needs: NodeNeeds, seconds: float
) -> dict[str, str]:
    """Call the probe on all nodes that have cores for trials, at the same time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    calls = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(needs)
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }
    lacking: dict[str, str] = {}
    end = time.monotonic() + seconds
    for address, call in calls.items():
        try:
            answer = ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.RayError as error:  # A timeout is one of them.
            answer = " ".join(str(error).split())[:200] or type(error).__name__
        if answer is not None:
            lacking[address] = answer
    return lacking


def _weights_available(data_dir: str | None) -> bool:
    """Return whether the driver or the data's remote has the Inception weights.

    Then every node must have them. Without them anywhere the cells of IS, FID and KID say so.
    """
    if data_dir and is_address(data_dir) and Remote(data_dir, 8.0).exists(inception.WEIGHTS_NAME):
        return True
    try:
        inception.find_weights()
    except inception.InceptionMissing:
        return False
    return True
