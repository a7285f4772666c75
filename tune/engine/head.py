"""A Ray of our own on this machine, which `ray start` starts in a session of its own.

Call `start` first, since Ray takes about two seconds that other imports can use; then `connect`, in
any thread; `problem`, as often as needed; at the end `stop` or `kill`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tune.engine import environment, supervisor

HOST = "127.0.0.1"
START_SECONDS = 90.0
"""How long Ray may take to start on a busy machine."""
READY = b"Ray runtime started"
"""Ray prints it once the node is registered, before it writes the address. A client that connects
earlier waits in steps of a second."""
SHUTDOWN_SECONDS = 3.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Size of Ray's store, which is hardly used; Ray's default takes a third of the memory."""
SHARED_MEMORY = "/dev/shm"
"""Ray's folder for objects; some containers have none, or one that cannot be written."""
TOKEN = secrets.token_hex(32)
"""One token per process: Ray's client never replaces the first token it has read (a notebook starts
Ray several times)."""
TEMP_PREFIX = "mpcc-ray-"
TEMP_PARENT_LENGTH = 22
"""The longest parent folder that we can use: 84 characters follow it, a socket's path may have 107.
Ray accepts only ASCII."""


class EngineError(ValueError):
    """Ray cannot be used as it is; the message is one line."""


class LocalHead:
    """A Ray on this machine that no other machine and no other user can reach."""

    def __init__(self, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        """variables: the environment variables of every worker."""
        self._variables = variables
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self, n_cpus: int) -> None:
        """Start Ray with `n_cpus` cores for trials; returns at once."""
        environment.apply(local=True)
        os.environ["RAY_AUTH_TOKEN"] = TOKEN
        ray = str(ray_program())
        try:
            self._folder = folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=temp_parent()))
            command = [
                *(ray, "start", "--head", "--block", "--disable-usage-stats"),
                # A subfolder, because Ray makes the folder that it is given accessible to everyone.
                *("--port=0", f"--node-ip-address={HOST}", f"--temp-dir={folder}/r"),
                *(f"--num-cpus={n_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
                *("--include-dashboard=False", "--include-log-monitor=False"),
            ]
            if not os.access(SHARED_MEMORY, os.W_OK):
                command.append(f"--plasma-directory={folder}")
            guard = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(folder)]
            with (folder / "head.log").open("wb") as log:
                self._supervisor = subprocess.Popen(
                    guard + command,
                    # A copy: `os.environ` itself fails here if a thread sets a variable meanwhile.
                    # Workers inherit it.
                    env={**os.environ, **self._variables},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # A signal to the driver's process group spares Ray.
                )
        except OSError as error:
            self.kill()
            raise _not_started(str(error)) from None

    def connect(self) -> None:
        """Connect this process; EngineError if Ray fails."""
        end = time.monotonic() + START_SECONDS
        while not (address := self._address()):
            if self._ended or time.monotonic() > end:
                raise _not_started("it was ended" if self._ended else "it does not get ready")
            problem = self.problem()
            if problem is not None:
                raise _not_started(problem)
            time.sleep(0.02)
        try:
            connect(address, {})
        except Exception as error:  # Ray raises nothing narrower.
            raise _not_started(str(error)) from None

    def problem(self) -> str | None:
        """Return how Ray has ended by itself, in one line; None while it runs."""
        if self._ended or self._supervisor is None or self._supervisor.poll() is None:
            return None
        log = self._log().decode(errors="replace")
        # `ray start --block` names what has died: "gcs_server [exit code=-9]".
        dead = re.findall(r"(\w+) \[exit code=", log)
        errors = [x.strip() for x in log.splitlines() if "Error" in x or "Exception: " in x]
        if dead:
            return f"Ray has died ({' and '.join(dict.fromkeys(dead))} ended)"
        return f"Ray has died ({errors[-1][:200] if errors else 'its supervisor was killed'})"

    def stop(self) -> None:
        """End Ray and all its processes, in well under a second."""
        disconnect(SHUTDOWN_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End Ray and all its processes at once, whatever state it is in."""
        if self._ended or self._folder is None:
            return
        self._ended = True
        if self._supervisor is not None:
            supervisor.kill_session(self._supervisor.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(SHUTDOWN_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)
        disconnect(0.0)  # Ray's client ends this process a minute after the head has gone.

    def _address(self) -> str:
        """Return Ray's address; empty until Ray listens and has written it."""
        if self._folder is None or READY not in self._log():
            return ""
        try:
            return (self._folder / "r" / "ray_current_cluster").read_text().strip()
        except OSError:
            return ""

    def _log(self) -> bytes:
        """Return Ray's output; empty if its folder is gone."""
        try:
            return (self._folder / "head.log").read_bytes() if self._folder else b""
        except OSError:
            return b""


def temp_parent() -> str:
    """Return the folder in which Ray keeps its sockets and logs: that of TMPDIR, or /tmp."""
    parent = tempfile.gettempdir()
    return parent if len(parent) <= TEMP_PARENT_LENGTH and parent.isascii() else "/tmp"


def ray_program() -> Path:
    """Return the command `ray` of this Python."""
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise EngineError(f"{program} is missing: install requirements.txt once more")
    return program


def connect(address: str, runtime_env: Mapping[str, object]) -> None:
    """Make this process a driver of the Ray at HOST:PORT or `auto`; raises what Ray raises.

    Workers import modules from the driver's working directory first, which may hold any modules.
    So the driver connects in an empty one.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mpcc-empty-") as empty, contextlib.chdir(empty):
        ray.init(
            address, runtime_env=dict(runtime_env), log_to_driver=False, configure_logging=False
        )


def disconnect(seconds: float) -> None:
    """End Ray's client in this process; wait at most `seconds`, because the head may be gone."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        thread.start()
        thread.join(seconds)


def _not_started(text: str) -> EngineError:
    text = " ".join(text.split())[:300]
    return EngineError(
        f"Ray did not start on this machine ({text}); if the machine is only busy, run the same "
        "command again"
    )
