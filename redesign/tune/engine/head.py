from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tune.engine import environment, supervisor

START_SECONDS = 60.0
HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 80 * 2**20
TEMP_PREFIX = "mpcc-ray-"


class EngineError(ValueError):
    """Ray cannot be used; the message is one line."""


class LocalHead:
    def start(self, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
        environment.apply(local=True)
        self._dir = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir="/tmp"))
        token = self._dir / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        self._port = socket.socket()
        self._port.bind((HOST, 0))
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.address = f"{HOST}:{self._port.getsockname()[1]}"
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            f"--port={self.address.rpartition(':')[2]}",
            f"--node-ip-address={HOST}",
            "--include-dashboard=False",
            "--include-log-monitor=False",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self._dir}",
            "--disable-usage-stats",
        ]
        if num_cpus is not None:
            command.append(f"--num-cpus={num_cpus}")
        command += os.environ.get("MORE", "").split()
        log = (self._dir / "head.log").open("wb")
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def connect(self, env_vars: Mapping[str, str]) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        host, port = self.address.split(":")
        end = time.monotonic() + START_SECONDS
        hint = time.monotonic() + float(os.environ.get("HINT", "5"))
        while (
            time.monotonic() < hint
            and b"Ray runtime started" not in (self._dir / "head.log").read_bytes()
        ):
            time.sleep(0.02)
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                ray.init(
                    self.address,
                    runtime_env={"env_vars": {"PL_DISABLE_FORK": "1", **env_vars}},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
                return
            except (OSError, RuntimeError, ValueError) as e:
                if os.environ.get("V"):
                    print(time.time(), repr(e)[:200], file=sys.stderr)
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        supervisor.kill_session(self._child.pid)
        self._child.wait()
        shutil.rmtree(self._dir, ignore_errors=True)
