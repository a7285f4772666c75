"""A Ray cluster that the driver connects to: whether it lets us in, and whether it is still there.

Ray's own client waits a minute for a head that is gone and then ends the driver's process on the
spot, with results undelivered and the sweep's lock held. So the driver looks for itself, sooner.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune.engine import environment
from tune.engine.head import EngineError, disconnect, ray_program

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 5.0
STATUS_SECONDS = 10.0
JOIN_SECONDS = 40.0
"""How long connecting may take: Ray's own 15 s, and sending the packages."""
LOOK_SECONDS = 2.0
DISCONNECT_SECONDS = 5.0
GONE_SECONDS = 25.0
"""How long a head may be silent: less than Ray's minute by what the driver needs to end well."""


class JoinedCluster:
    """The cluster at `auto` or HOST:PORT; this machine must be one of its nodes."""

    def __init__(self, address: str) -> None:
        environment.apply(local=False)
        self._address = address
        self._watch: Watch | None = None

    def connect(self, env_vars: Mapping[str, str]) -> None:
        """Connect, and send every node the packages that trials import; EngineError if refused."""
        if self._address != "auto":
            check_listening(self._address)
        check_token(self._address)
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        runtime = {
            "env_vars": dict(env_vars),
            "py_modules": [str(ROOT / "mpcc"), str(ROOT / "tune")],
            "excludes": ["**/__pycache__"],
        }
        failed: list[Exception] = []

        def connect() -> None:
            try:
                ray.init(
                    self._address, runtime_env=runtime, log_to_driver=False, configure_logging=False
                )
            except Exception as error:  # Raised again below, in words of ours.
                failed.append(error)

        # In a thread, because Ray never gives up where something else than a cluster listens.
        thread = threading.Thread(target=connect, name="ray-init", daemon=True)
        thread.start()
        thread.join(JOIN_SECONDS)
        if thread.is_alive():
            raise EngineError(
                f"what listens at {self._address} has not answered as a Ray cluster within "
                f"{JOIN_SECONDS:.0f} s: correct --address"
            )
        if failed:
            raise refusal(self._address, str(failed[0]) or type(failed[0]).__name__)
        here = ray.get_runtime_context()
        head = here.gcs_address
        self._watch = Watch(ray.nodes, here.get_node_id(), lambda: is_listening(head))

    def problem(self) -> str | None:
        """Return what has become of the cluster, in words; None while it is well."""
        return None if self._watch is None else self._watch.problem()

    def stop(self) -> None:
        """Disconnect; the cluster's nodes end our workers and live on."""
        if self._watch is not None:
            self._watch.stop()
        disconnect(DISCONNECT_SECONDS)

    def kill(self) -> None:
        """Disconnect without waiting, because this process ends soon or the cluster is gone."""
        disconnect(0.5)


class Watch:
    """Asks for the nodes every few seconds, in a thread of its own: there may never be an answer.

    `nodes` returns them as `ray.nodes()` does; `own` is the id of the node the driver is on;
    `listening` is asked whether a silent head is still there, and just slow.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Mapping[str, Any]]],
        own: str,
        listening: Callable[[], bool],
    ) -> None:
        self._nodes, self._own, self._listening = nodes, own, listening
        self._answered = time.monotonic()
        self._left = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="cluster", daemon=True)
        self._thread.start()

    def problem(self) -> str | None:
        """Return what has become of the cluster, in words; None while it is well."""
        if self._left:
            return "this machine is no node of the cluster any more"
        silent = time.monotonic() - self._answered
        if silent > GONE_SECONDS and not self._listening():
            return f"the cluster is gone, its head has not answered for {silent:.0f} s"
        return None

    def stop(self) -> None:
        """Ask no more; where the cluster answers, nothing is being asked when this returns."""
        self._end.set()
        self._thread.join(LOOK_SECONDS)

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                found = self._nodes()
            except Exception:  # Whatever it is, it is no answer.
                continue
            own = [node for node in found if node["NodeID"] == self._own]
            self._left = any(not node["Alive"] for node in own)
            self._answered = time.monotonic()


def check_listening(address: str) -> None:
    """EngineError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}): start one, ray start --head, "
            "or correct --address"
        ) from None


def check_token(address: str) -> None:
    """EngineError where the cluster refuses our token.

    Asked by `ray status` in a process of its own: `ray.init` would try, and print, for 20 s.
    """
    command = [str(ray_program()), "status", f"--address={address}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=STATUS_SECONDS)
    except subprocess.TimeoutExpired:
        return  # It is slow, or no cluster: connecting will show.
    if found.returncode != 0 and "AuthToken" in found.stdout + found.stderr:
        raise EngineError(
            f"the Ray cluster at {address} does not let us in: our token must be that of its nodes"
            "; set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token from one"
        )


def is_listening(address: str) -> bool:
    """Return whether something accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def refusal(address: str, text: str) -> EngineError:
    """Return the line for a cluster that cannot be used, from Ray's words."""
    text = " ".join(text.split())[:300]
    lower = text.lower()
    words = ("node", "could not find any running ray instance", "failed to connect to ray cluster")
    if any(
        word in lower for word in words
    ):  # Of the right address and token, `connect` has made sure.
        return EngineError(
            f"this machine is no node of a Ray cluster at {address}: run the command on a node of "
            "it, or make this machine one, ray start --address=HOST:PORT"
        )
    return EngineError(f"the Ray cluster at {address} cannot be joined: {text}")
