"""Faults of MLflow, for `benchmarks/faults.py`: servers that go and come, databases that break."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.fault_lab import Lab, Outcome
from benchmarks.fault_tools import (
    TRIAL,
    Sweep,
    SweepFailed,
    finish,
    mlflow_runs,
    must_come,
    processes,
    size_of,
)

DATABASE_BYTES = 900_000
"""A new database grows to about this size while its tables are made."""


class Server:
    """An MLflow server on this machine that can be killed and started again."""

    def __init__(self, database: Path) -> None:
        self.database = database
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once it answers."""
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        words = ["server", "--workers", "1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [mlflow, *words, "--backend-store-uri", f"sqlite:///{self.database}"],
            cwd=self.database.parent,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # In this session, of which no process counts as a sweep's.
        )
        end = time.monotonic() + 180
        while time.monotonic() < end and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            time.sleep(0.2)
        raise SweepFailed("the MLflow server did not start")

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def running_server(lab: Lab) -> Iterator[Server]:
    lab.count += 1
    server = Server(lab.folder / f"server-{lab.count}.db")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def server_restarted(lab: Lab, outcome: Outcome, *, by_hand: bool) -> None:
    """The server dies at the first result and comes back: the next run delivers what is missing.

    `by_hand`: --sync delivers it before that run: once, and then there is nothing left.
    """
    with running_server(lab) as server:
        sweep = lab.sweep("--tracking-uri", server.uri)
        process = sweep.start()
        must_come(process, sweep.results)
        server.stop()
        if "--sync" not in finish(process):
            outcome.notes.append("what MLflow lacks was not told")
        server.start()
        sync = Sweep(sweep.out, (*sweep.argv, "--sync"))
        if by_hand:
            if f"delivered to {server.uri}" not in sync.run():
                outcome.notes.append("--sync did not say what it delivered")
            lab.compare(sweep, outcome, server.database)
            if "0 trials delivered" not in sync.run():
                outcome.notes.append("a second --sync delivered again")
        lab.resume(sweep, outcome, server.database)


def server_back_in_time(lab: Lab, outcome: Outcome) -> None:
    """The server comes back while trials run: the same run delivers all, and needs no other one.

    The trials are held meanwhile, so that the sweep does not end before the server is back.
    """
    with running_server(lab) as server:
        sweep = lab.sweep("--tracking-uri", server.uri)
        process = sweep.start()
        must_come(process, sweep.results)
        held = processes(process.pid, *TRIAL)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        server.stop()
        time.sleep(15)  # Some tries of the driver's are in vain.
        server.start()
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if "--sync" in finish(process):
            outcome.notes.append("the server was back and was not used")
        lab.compare(sweep, outcome, server.database)
        lab.resume(sweep, outcome, server.database)


def database_locked(lab: Lab, outcome: Outcome) -> None:
    """Somebody holds the database for 30 s, in the middle of the sweep."""
    sweep = lab.sweep()
    process = sweep.start()
    must_come(process, lambda: sweep.results() and (sweep.out / "mlflow.db").exists())
    holder = sqlite3.connect(sweep.out / "mlflow.db", timeout=60)
    try:
        holder.execute("begin exclusive")
        time.sleep(30)
    finally:
        holder.rollback()
        holder.close()
    finish(process)
    lab.resume(sweep, outcome)


def killed_while_the_database_is_made(lab: Lab, outcome: Outcome) -> None:
    """At a random size of what MLflow is making, for its tables take some forty steps."""
    sweep = lab.sweep()
    size = lab.random.randrange(1, DATABASE_BYTES)
    process = sweep.start()

    def large_enough() -> bool:
        new = sum(map(size_of, sweep.out.glob(".mlflow.db.*/new.db")))
        return new >= size or (sweep.out / "mlflow.db").exists()

    must_come(process, large_enough)
    process.kill()
    process.communicate()
    lab.resume(sweep, outcome)
    if list(sweep.out.glob(".mlflow.db*")):
        outcome.notes.append("torn databases were left")


def check_states(sweep: Sweep, printed: str, expected: Mapping[str, str], outcome: Outcome) -> None:
    """Note where MLflow, just after the fault, has a trial neither as `expected` nor KILLED.

    Where the driver has printed that MLflow lacks something, it may.
    """
    database = sweep.out / "mlflow.db"
    if not database.exists() or "MLflow lacks" in printed:
        return
    parent = "KILLED" if "KILLED" in expected.values() else "FAILED"
    for key, status, *_ in mlflow_runs(database):
        wanted = parent if key is None else expected.get(key, "KILLED")
        if status != wanted:
            outcome.notes.append(f"MLflow has {key or 'the sweep'} as {status}, not {wanted}")
