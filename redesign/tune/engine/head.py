"""A Ray of our own on this machine: started by `ray start`, kept in a session of its own, ended.

The order is `start`, first of all, since Ray takes about two seconds that other imports can use;
`connect`, in any thread; `problem`, as often as one likes; `stop` or `kill`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tune.engine import environment, supervisor

HOST = "127.0.0.1"
START_SECONDS = 90.0
"""How long Ray may take to start on a busy machine."""
READY_SECONDS = 20.0
"""How long `ray start` may take to say READY, before a connection is tried without that."""
READY = b"Ray runtime started"
"""Printed once the node is registered. Whoever connects before waits in steps of a second."""
SHUTDOWN_SECONDS = 3.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Hardly used; Ray's default takes a third of the memory."""
WORKER_PORTS = range(10002, 20000)
"""`ray start` refuses a port that its workers may take."""
TEMP_PREFIX = "mpcc-ray-"
TEMP_PARENT_LENGTH = 22
"""84 characters of Ray's and ours come behind it, and a socket's path may have 107."""
ABANDONED_SECONDS = 60.0


class EngineError(ValueError):
    """Ray cannot be used as it is; the message is one line."""


class LocalHead:
    """A Ray on this machine that no other machine and no other user can reach."""

    def __init__(self) -> None:
        self.address = ""
        """Where Ray listens, once it was started."""
        self._folder: Path | None = None
        self._ports: list[socket.socket] = []
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._ended = False

    def start(self, cpus_per_trial: float = 1.0, n_trials: int = 1) -> None:
        """Start Ray with room for so many trials, at least for one; returns at once."""
        environment.apply(local=True)
        needed = min(cpus_per_trial * n_trials, usable_cores())
        try:
            self._folder, self._lock = _make_folder()
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(_write_token(self._folder))
            # Bound until the end, so that no other sweep chooses them.
            self._ports = [_free_port(), _free_port()]
            # Ray can listen there all the same: both sockets allow it, and ours does not listen.
            self._ports[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.address = f"{HOST}:{self._ports[0].getsockname()[1]}"
            command = self._command(math.ceil(max(cpus_per_trial, needed)))
            with (self._folder / "head.log").open("wb") as log:
                self._supervisor = subprocess.Popen(
                    [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # A signal to the driver's process group spares Ray.
                )
        except OSError as error:
            raise _not_started(str(error)) from None

    def _command(self, num_cpus: int) -> list[str]:
        port = self.address.rpartition(":")[2]
        return [
            *(str(ray_program()), "start", "--head", "--block", "--disable-usage-stats"),
            # A folder in ours, because Ray lets everyone into what it is given.
            *(f"--port={port}", f"--node-ip-address={HOST}", f"--temp-dir={self._folder}/r"),
            *(f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            "--include-log-monitor=False",
            # A port that is taken: Ray then goes on without the dashboard's process. It would start
            # even when it is not wanted, and the node waits half a second for it.
            "--include-dashboard=False",
            f"--dashboard-port={self._ports[1].getsockname()[1]}",
        ]

    def connect(self, env_vars: Mapping[str, str]) -> None:
        """Connect this process, whose workers get the variables; EngineError where Ray fails."""
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        begun, error = time.monotonic(), ""
        while not self._says(READY) and time.monotonic() < begun + READY_SECONDS:
            self._check_started()
            time.sleep(0.02)
        while time.monotonic() < begun + START_SECONDS:
            self._check_started()
            try:
                # Ray itself would wait long, and print, where nobody listens.
                socket.create_connection((HOST, int(self.address.rpartition(":")[2])), 1.0).close()
                ray.init(
                    self.address,
                    runtime_env={"env_vars": dict(env_vars)},
                    log_to_driver=False,
                    configure_logging=False,
                )
                return
            except Exception as caught:  # Ray raises nothing narrower where its time was too short.
                error = str(caught)
                ray.shutdown()
            time.sleep(0.1)
        raise _not_started(error)

    def problem(self) -> str | None:
        """Return in words how Ray has ended without being asked to; None while it runs."""
        if self._ended or self._supervisor is None or self._supervisor.poll() is None:
            return None
        log = self._log().decode(errors="replace")
        # `ray start --block` names what has died: "gcs_server [exit code=-9]".
        dead = re.findall(r"(\w+) \[exit code=", log)
        errors = [line.strip() for line in log.splitlines() if "Error" in line]
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
            self._supervisor.wait(SHUTDOWN_SECONDS)
        for port in self._ports:
            port.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)
        disconnect(0.0)  # Ray's client ends this process a minute after the head has gone.

    def _check_started(self) -> None:
        if self._ended:
            raise EngineError("Ray was ended while it started")
        problem = self.problem()
        if problem is not None:
            raise _not_started(problem)

    def _says(self, text: bytes) -> bool:
        return text in self._log()

    def _log(self) -> bytes:
        assert self._folder is not None, "start() comes first"
        try:
            return (self._folder / "head.log").read_bytes()
        except OSError:
            return b""


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))  # "max" is no number.
    return max(1, cores)


def ray_program() -> Path:
    """Return the command `ray` of this Python."""
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise EngineError(f"{program} is missing: install requirements.txt once more")
    return program


def disconnect(seconds: float) -> None:
    """End Ray's client in this process; wait for so long at most, because the head may be gone."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        thread.start()
        thread.join(seconds)


def _not_started(text: str) -> EngineError:
    text = " ".join(text.split())[:300]
    return EngineError(
        f"Ray did not start on this machine ({text}); where the machine is just busy, the same "
        "command again may do"
    )


def _free_port() -> socket.socket:
    """Return a socket that is bound to a port that nobody else has."""
    while True:
        found = socket.socket()
        found.bind((HOST, 0))
        if found.getsockname()[1] not in WORKER_PORTS:
            return found
        found.close()


@functools.cache
def _token() -> str:
    """Return the token of this process's sweeps; Ray reads it once."""
    return secrets.token_hex(32)


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_token())
    return path


def _make_folder() -> tuple[Path, int]:
    """Return a private folder for Ray's sockets and logs, and its lock; remove abandoned ones."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > TEMP_PARENT_LENGTH:
        parent = Path("/tmp")
    for old in parent.glob(f"{TEMP_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(old, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                # A driver holds the lock as long as it lives, in whatever container.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(lock).st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock
