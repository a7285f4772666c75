"""A cluster that the driver joins: whether it lets this machine in, and whether it is still there.

Ray's own client waits a minute for a head that is gone and then ends the driver's process on the
spot, with results undelivered and the sweep's lock held. So the driver looks for itself, sooner.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tune.preflight import PreflightError

JOIN_SECONDS = 15.0
"""How long this machine may take to become a node: one that has just been started."""
LOOK_SECONDS = 2.0
GONE_SECONDS = 25.0
"""How long a head may be silent: less than Ray's minute by what the driver needs to end well."""


def join(address: str, runtime: dict[str, Any]) -> Watch:
    """Join the cluster with a job's environment; PreflightError, one line, where that cannot be."""
    import ray

    until = time.monotonic() + JOIN_SECONDS
    while address != "auto" and not ray._private.services.find_node_ids():
        if time.monotonic() > until:  # Ray itself would look for a minute.
            raise refusal(address, "no node on this machine")
        time.sleep(0.5)
    try:
        ray.init(address, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise refusal(address, str(error) or type(error).__name__) from None
    here = ray.get_runtime_context()
    return Watch(ray.nodes, here.get_node_id(), lambda: listens(here.gcs_address))


def refusal(address: str, text: str) -> PreflightError:
    """The line for a cluster that cannot be joined, from Ray's words or ours."""
    text = " ".join(text.split())[:300]
    lower = text.lower()
    if any(word in lower for word in ("token", "unauthenticated", "failed to connect to ray")):
        # Something listens there, `tune.cluster.check_address` has seen to that.
        return PreflightError(
            f"the Ray cluster at {address} does not let us in: our token must be that of its nodes"
            "; set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token from one"
        )
    if "node" in lower or "could not find any running ray instance" in lower:
        return PreflightError(
            f"this machine is no node of a Ray cluster at {address}: run the command on a node of "
            "it, or make this machine one, ray start --address=HOST:PORT"
        )
    return PreflightError(f"the Ray cluster at {address} cannot be joined: {text}")


def listens(address: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def not_started(error: Exception) -> PreflightError:
    """The line for a Ray of our own that does not come up on this machine."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return PreflightError(
        f"Ray did not start on this machine ({text}); where the machine is just busy, the same "
        "command again may do"
    )


class Watch:
    """Asks for the nodes every few seconds, in a thread of its own: there may never be an answer.

    `nodes` returns them as `ray.nodes()` does; `own` is the id of the node the driver is on;
    `listening` is asked whether a silent head is still there, and just slow.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[dict[str, Any]]],
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
        """What has become of the cluster, in words; None while it is well."""
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
            except Exception:  # whatever it is: no answer
                continue
            own = [node for node in found if node["NodeID"] == self._own]
            self._left = any(not node["Alive"] for node in own)
            self._answered = time.monotonic()
