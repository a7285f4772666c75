"""The connection to a Ray cluster that others started, and the checks of its nodes.

Ray's own client waits a minute for a head that is gone and then ends the driver's process at once,
with results undelivered and the sweep's lock held. So the driver watches the head itself.

Before the first trial, all nodes are checked for Python, libraries, code, folder and data. A node
that joins later is checked by its first trial, which runs elsewhere if the node is not ready.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mpcc.data import files as data_files
from mpcc.evaluation import inception
from mpcc.runs import run_dir
from mpcc.runs.code_version import code_fingerprints
from mpcc.shell import message_of
from tune.engine import environment
from tune.engine.head import SHUTDOWN_SECONDS, EngineError, connect, disconnect, ray_program
from tune.engine.spec import NodeNeeds, Settings
from tune.plan.cells import Trial
from tune.plan.plan import PLAN
from tune.store.datasets import folder_on_node
from tune.store.remote import REFUSED, Remote, RemoteError, is_address

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 5.0
LOOK_SECONDS = 2.0
GONE_SECONDS = 25.0
"""How long a head may be silent: shorter than Ray's minute, so that the driver has time to end."""

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")
"""Another version of these may give other numbers."""
PROBE_SECONDS = 60.0
"""Limit for the checks of the nodes."""
FETCH_SECONDS = 3600.0
"""Limit for the downloads of data sets to the nodes."""

_ready: set[str] = set()
"""The data sets for which this process has found its node ready."""


class ClusterConnection:
    """The cluster at `auto` or HOST:PORT; this machine must be one of its nodes."""

    def __init__(self, address: str, variables: Mapping[str, str]) -> None:
        """variables: the environment variables of every worker."""
        environment.apply(local=False)
        self._address, self._variables = address, variables
        self._answered: dict[str, float] = {}
        """Service (head, local Ray) -> time of its last answer (time.monotonic)."""

    def connect(self) -> None:
        """Connect, after `check_cluster`, and send nodes our packages; EngineError if refused."""
        import ray

        runtime = {
            "env_vars": dict(self._variables),
            "py_modules": [str(ROOT / "mpcc"), str(ROOT / "tune")],
            "excludes": ["**/__pycache__"],
        }
        try:
            connect(self._address, runtime)
        except Exception as error:  # Ray raises nothing narrower.
            raise refusal(self._address, message_of(error)) from None
        here = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
        place = f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"
        self.watch({"its head": here.gcs_address, "Ray on this machine": place})

    def watch(self, places: Mapping[str, str]) -> None:
        """Connect to each HOST:PORT every few seconds from now on, in a thread of its own."""
        self._answered = dict.fromkeys(places, time.monotonic())
        threading.Thread(target=self._look, args=(places,), name="cluster", daemon=True).start()

    def problem(self) -> str | None:
        """Return which service has been silent for too long; None if all have answered."""
        for name, answered in self._answered.items():
            silent = time.monotonic() - answered
            if silent > GONE_SECONDS:
                return f"the cluster is gone: {name} has not answered for {silent:.0f} s"
        return None

    def stop(self) -> None:
        """Disconnect; the cluster ends our workers and keeps running."""
        disconnect(SHUTDOWN_SECONDS)

    def kill(self) -> None:
        """Disconnect without waiting, because this process ends soon or the cluster is gone."""
        disconnect(0.5)

    def _look(self, places: Mapping[str, str]) -> None:
        while True:
            for name, address in places.items():
                with contextlib.suppress(EngineError):
                    check_listening(address)
                    self._answered[name] = time.monotonic()
            time.sleep(LOOK_SECONDS)


def check_listening(address: str) -> None:
    """EngineError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}): start one, ray start --head, "
            "or correct --address"
        ) from None


def check_cluster(address: str) -> None:
    """EngineError if no cluster answers at the address, or if it refuses our token.

    `ray status` asks in a process of its own, which gives up after 41 s. `ray.init` would try, and
    print, for 20 s; it would never end if something other than a cluster listens.
    """
    environment.apply(local=False)
    if address != "auto":
        check_listening(address)
    command = [str(ray_program()), "status", f"--address={address}"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        lines = (found.stdout + found.stderr).strip().splitlines()
        raise refusal(address, lines[-1] if lines else f"ray status ended with {found.returncode}")


def refusal(address: str, text: str) -> EngineError:
    """Return the error for a cluster that cannot be used, from Ray's message."""
    text = " ".join(text.split())[:300]
    if "AuthToken" in text:
        return EngineError(
            f"the Ray cluster at {address} does not let us in: our token must be that of its nodes"
            "; set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token from one"
        )
    if "Timed out" in text:
        return EngineError(
            f"what listens at {address} does not answer as a Ray cluster: correct --address"
        )
    # The second comes from `ray.init`, if the head has answered but this machine is no node.
    if "Could not find any running Ray" in text or "Failed to connect to Ray cluster" in text:
        return EngineError(
            f"this machine is no node of a Ray cluster at {address}: run the command on a node of "
            "it, or make this machine one, ray start --address=HOST:PORT"
        )
    return EngineError(f"the Ray cluster at {address} cannot be joined: {text}")


# -- its nodes -------------------------------------------------------------------------------------


def needs_of(trials: Sequence[Trial], settings: Settings) -> NodeNeeds:
    """Return what each node must have for these trials."""
    scored = any(trial.config.scored_by_inception for trial in trials)
    return NodeNeeds(
        versions=versions_here(),
        out=None if settings.remote else str(settings.out),
        remote=settings.remote,
        datasets=tuple(sorted({trial.config.dataset for trial in trials})),
        data_dir=str(settings.data_dir) if settings.data_dir else None,
        inception=scored and _weights_available(settings.data_dir),
    )


def check_nodes(needs: NodeNeeds, log: Callable[[str], None]) -> None:
    """EngineError that says what each node lacks, unless all are ready.

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
    """Return what this node lacks for trials on the data set; None if it is ready.

    Each worker checks, because a node may have joined after all nodes were checked. RemoteError if
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
    """Return what this node lacks apart from data, in one line; None if nothing."""
    here = versions_here()
    for name, version in needs.versions.items():
        if name not in here:
            return f"has no {name}: install requirements.txt with constraints.txt"
        if here[name] != version:
            return f"has {name} {here[name]}, the driver {version}"
    if needs.remote:
        remote = Remote(needs.remote, 5.0)
        if remote.missing:
            return (
                f"cannot use {needs.remote} (no such folder): share it, or give another --storage"
            )
        remote.read(run_dir.CONFIG)
    if needs.out:
        try:
            (Path(needs.out) / PLAN).stat()
            tempfile.TemporaryFile(dir=needs.out).close()
        except OSError as error:
            return f"cannot use {needs.out} ({error.strerror}): share it, or give --storage"
    return None


def data_missing_here(needs: NodeNeeds) -> str | None:
    """Return what this node lacks of the data; data on a remote are downloaded first."""
    try:
        for dataset in needs.datasets:
            data_files.check_available(dataset, folder_on_node(needs.data_dir, dataset))
        if needs.inception:
            inception.find_weights()
    except (data_files.DataError, inception.InceptionMissing) as error:
        return str(error)
    return None


def versions_here() -> dict[str, str]:
    """Return name -> version of what must be equal on every node: Python, libraries, our code."""
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
    for node in alive_nodes():
        if node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            calls.append((node, remote.options(scheduling_strategy=there).remote(needs)))
    lacking = []
    end = time.monotonic() + seconds
    for node, call in calls:
        try:
            problem = ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.RayError as error:  # A timeout is one of them.
            if node["NodeID"] not in [other["NodeID"] for other in alive_nodes()]:
                continue  # It has left the cluster meanwhile.
            problem = message_of(getattr(error, "cause", error), 300)
        if problem is not None:
            lacking.append(f"{node['NodeManagerAddress']} {problem}")
    return lacking


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of each node that has not left: `NodeID`, `Resources` ..."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _weights_available(data_dir: Path | str | None) -> bool:
    """Return whether the driver or the data's remote has the Inception weights.

    If so, every node must have them; if not, the table cells of IS, FID and KID say so.
    """
    with contextlib.suppress(inception.InceptionMissing):
        return inception.find_weights().is_file()
    return is_address(data_dir) and bool(Remote(str(data_dir), 8.0).info(inception.WEIGHTS_NAME))
