"""A Ray cluster that the driver connects to: whether it lets us in, and whether it is still there.

Ray's own client waits a minute for a head that is gone and then ends the driver's process on the
spot, with results undelivered and the sweep's lock held. So the driver looks for itself, sooner.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tune.engine import environment
from tune.engine.head import SHUTDOWN_SECONDS, EngineError, disconnect, ray_program

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 5.0
LOOK_SECONDS = 2.0
GONE_SECONDS = 25.0
"""How long a head may be silent: less than Ray's minute by what the driver needs to end well."""


class JoinedCluster:
    """The cluster at `auto` or HOST:PORT; this machine must be one of its nodes."""

    def __init__(self, address: str) -> None:
        environment.apply(local=False)
        self._address = address
        self._answered: dict[str, float] = {}
        """What the driver cannot do without -> when it last answered, by the monotonic clock."""

    def connect(self, env_vars: Mapping[str, str]) -> None:
        """Connect, after `check_cluster`, and send nodes our packages; EngineError if refused."""
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        runtime = {
            "env_vars": dict(env_vars),
            "py_modules": [str(ROOT / "mpcc"), str(ROOT / "tune")],
            "excludes": ["**/__pycache__"],
        }
        try:
            ray.init(
                self._address, runtime_env=runtime, log_to_driver=False, configure_logging=False
            )
        except Exception as error:  # Ray raises nothing narrower.
            raise refusal(self._address, str(error) or type(error).__name__) from None
        here = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
        place = f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"
        self.watch({"its head": here.gcs_address, "Ray on this machine": place})

    def watch(self, places: Mapping[str, str]) -> None:
        """Connect to each HOST:PORT every few seconds from now on, in a thread of its own."""
        self._answered = dict.fromkeys(places, time.monotonic())
        threading.Thread(target=self._look, args=(places,), name="cluster", daemon=True).start()

    def problem(self) -> str | None:
        """Return what has become of the cluster, in words; None while it is well."""
        for name, answered in self._answered.items():
            silent = time.monotonic() - answered
            if silent > GONE_SECONDS:
                return f"the cluster is gone: {name} has not answered for {silent:.0f} s"
        return None

    def stop(self) -> None:
        """Disconnect; the cluster's nodes end our workers and live on."""
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
    """EngineError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}): start one, ray start --head, "
            "or correct --address"
        ) from None


def check_cluster(address: str) -> None:
    """EngineError where no cluster answers at the address, or one that refuses our token.

    Asked by `ray status` in a process of its own, which gives up after 41 s: `ray.init` would try,
    and print, for 20 s, and for ever where something else than a cluster listens.
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
    """Return the line for a cluster that cannot be used, from Ray's words."""
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
    # The second comes from `ray.init`, where the head has answered but no node is here.
    if "Could not find any running Ray" in text or "Failed to connect to Ray cluster" in text:
        return EngineError(
            f"this machine is no node of a Ray cluster at {address}: run the command on a node of "
            "it, or make this machine one, ray start --address=HOST:PORT"
        )
    return EngineError(f"the Ray cluster at {address} cannot be joined: {text}")
