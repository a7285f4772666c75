"""Sweeps to be disturbed: start one, find its processes, read what it left."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mpcc.runs import run_dir

ROOT = Path(__file__).resolve().parents[1]
INJECTION = ROOT / "benchmarks" / "injection"
TIMEOUT = 600.0
"""How long a sweep may take on a machine with other work."""
STORED = ("trial_key", "state", "iteration", "metrics", "weights_sha256")
"""What of a result must not depend on what happened on the way to it."""
OWN_COLUMNS = ("seconds_train", "mlflow_run")
"""Of the tables: what differs between two sweeps of the same trials."""
TRIAL = ("ray::MPCCTrainable", "ray::ResourceTrainable")
"""What Ray calls a process with a trial, at rest and at work."""
SUPERVISOR = "supervisor.py"
"""The program that ends a local Ray with its driver."""

NAMESAKES = ("tune/__init__.py", "mpcc/__init__.py", "types.py", "random.py", "torch.py", "ray.py")


class SweepFailed(RuntimeError):
    """A sweep ended otherwise than it should, with what it printed."""


@dataclass(frozen=True)
class Progress:
    """How far a trial has come, by what is on disk."""

    result: tuple[int, dict[str, Any]] | None = None
    """When a sound result was written, and what it says."""
    starts: tuple[int, ...] = ()
    """The iterations from which training has begun, one for each start."""
    iteration: int = 0
    """Of the newest checkpoint that is intact."""

    def trained_again(self, later: Progress) -> bool:
        """Return whether something that was there has been trained once more since."""
        if self.result is not None and later.result != self.result:
            return True
        starts = later.starts[len(self.starts) :]
        return any(start < self.iteration for start in starts) or any(
            after < before for before, after in pairwise(later.starts)
        )


@dataclass(frozen=True)
class Sweep:
    """One command line and its output folder."""

    out: Path
    argv: tuple[str, ...]
    wrapper: tuple[str, ...] = ()
    """The words of a program that runs the command: as another user, in another network."""

    def command(self, *more: str) -> list[str]:
        """Return the command with these arguments more."""
        program = str(ROOT / "tune" / "ablation.py")
        command = [sys.executable, program, "--out", str(self.out), *self.argv, *more]
        return [*self.wrapper, *command]

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the sweep in a session of its own; not from the repository: any folder must do."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            self.command(),
            cwd=self.out.parent,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def told(self, *more: str, expected: int = 0) -> str:
        """Run the command with these arguments more, and return what it printed."""
        return replace(self, argv=(*self.argv, *more)).run(expected)

    def run(self, expected: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """Run it to its end and return what it printed; SweepFailed for another exit code."""
        return finish(self.start(environment), expected)

    def results(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Return trial key -> time of writing and content of each result that is sound."""
        found = {}
        for file in sorted(self.out.glob("trials/*/result.json")):
            try:
                result = run_dir.read_result(file.parent)
                if result is not None:
                    found[file.parent.name] = (file.stat().st_mtime_ns, result)
            except (ValueError, OSError):
                continue
        return found

    def progress(self) -> dict[str, Progress]:
        """Return trial key -> how far it has come, while it runs or not."""
        results, found = self.results(), {}
        for path in sorted(self.out.glob("trials/*")):
            try:
                starts = tuple(run_dir.read_provenance(path).get("starts") or ())
            except (ValueError, OSError):
                starts = ()
            kept, _ = run_dir.read_checkpoints(path)
            iteration = max((c.iteration or 0 for c in kept), default=0)
            found[path.name] = Progress(results.get(path.name), starts, iteration)
        return found

    def checkpointed(self) -> list[Path]:
        """Return the run directories with a checkpoint and no result."""
        return [
            file.parent
            for file in sorted(self.out.glob("trials/*/checkpoint.pt"))
            if not (file.parent / "result.json").exists()
        ]

    def has_results(self, n: int) -> bool:
        """Return whether so many trials have a result."""
        return len(self.results()) >= n

    def has_come_to(self, n_results: int) -> bool:
        """Return whether so many trials have a result and another one a checkpoint."""
        return self.has_results(n_results) and bool(self.checkpointed())

    def stored(self) -> dict[str, dict[str, Any]]:
        """Return trial key -> what its result says, but for times."""
        return {
            key: {name: result.get(name) for name in STORED}
            for key, (_, result) in self.results().items()
        }

    def evaluations(self) -> dict[str, list[dict[str, Any]]]:
        """Return trial key -> its evaluations, but for times."""
        rows = {}
        for file in sorted(self.out.glob("trials/*/metrics.jsonl")):
            try:
                read = [json.loads(line) for line in file.read_text().splitlines()]
            except ValueError:
                read = [{"damaged": str(file)}]
            rows[file.parent.name] = [{k: v for k, v in r.items() if k != "seconds"} for r in read]
        return rows

    def tables(self) -> dict[str, str]:
        """Return file name -> content of the tables of it now, but for times and run ids."""
        folder = self.out.parent / f"tables-{self.out.name}"
        program = str(ROOT / "analysis" / "make_tables.py")
        argv = ["--runs", str(self.out), "--table", "grid", "--format", "md,csv"]
        made = subprocess.run(
            [sys.executable, program, *argv, "--out", str(folder)], capture_output=True, text=True
        )
        if made.returncode != 0:
            raise SweepFailed(f"make_tables ended with {made.returncode}: {made.stderr}")
        # Provenance names MLflow's runs and the trials' file: those are each sweep's own.
        files = sorted(f for f in folder.glob("*.*") if not f.name.endswith("provenance.json"))
        return {file.name: _without_own(file.read_text(), file.suffix) for file in files}


def _without_own(text: str, suffix: str) -> str:
    """Return a table's text without the columns and the line of costs that are each sweep's own."""
    if suffix != ".csv":
        return "\n".join(line for line in text.splitlines() if not line.startswith("Cost: "))
    rows = csv.DictReader(text.splitlines())
    return "\n".join(str({k: v for k, v in row.items() if k not in OWN_COLUMNS}) for row in rows)


def injected(orders: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the environment of a sweep whose processes meet these faults, see `injection`."""
    return {"PYTHONPATH": str(INJECTION), "MPCC_FAULTS": json.dumps(list(orders))}


def finish(process: subprocess.Popen[str], expected: int | None = 0) -> str:
    """Wait for the end and return what was printed; SweepFailed for another exit code."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        cut_power(process)
        raise SweepFailed(f"no end within {TIMEOUT:.0f} s") from None
    if "Traceback" in err or (expected is not None and process.returncode != expected):
        raise SweepFailed(f"exit code {process.returncode}, expected {expected}:\n{out}\n{err}")
    return out + err


def exchange(one: Path, two: Path) -> None:
    """Give each of two files or folders the other's name."""
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)


def write_namesakes(folder: Path) -> None:
    """Put modules there that have names of ours and of Python's, and that must not be imported."""
    for name in NAMESAKES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit('imported from the working directory')")


def size_of(file: Path) -> int:
    """Return the bytes of a file; 0 where it has just been renamed or removed."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any]) -> bool:
    """Wait until the condition holds; return False where the process ends before."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            cut_power(process)
            raise SweepFailed(f"nothing to disturb within {TIMEOUT:.0f} s")
        time.sleep(0.01)
    return True


def must_come(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    """Wait until the condition holds; SweepFailed where the process ends before."""
    if not wait_for(process, condition):
        out, err = process.communicate()
        raise SweepFailed(f"ended ({process.returncode}) before the fault:\n{out}\n{err}")


def cut_power(process: subprocess.Popen[str]) -> None:
    """Kill the driver and all that it has started at once."""
    kill([process.pid, *descendants(process.pid)])
    process.communicate()


def process_table() -> dict[int, tuple[int, int]]:
    """Return parent and session of every process of this machine that has not ended."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name in parentheses: state, parent, group, session.
            state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # It has just ended.
        if state not in "ZX":
            found[int(entry.name)] = int(parent), int(session)
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes that this one has started, and those that these have, nearest first."""
    children: dict[int, list[int]] = {}
    for child, (parent, _) in process_table().items():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


def kill(pids: Iterable[int]) -> int:
    """Send SIGKILL to these processes; return how many there still were."""
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            pass
    return killed


def command_of(pid: int) -> list[str]:
    """Return the command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def processes(driver: int, *names: str) -> list[int]:
    """Return the processes under this driver that have a name, nearest first.

    A name is the beginning of the command line, or the program or script that it starts.
    """
    found = []
    for pid in descendants(driver):
        command = command_of(pid)
        programs = {Path(word).name for word in command[:4] if not word.startswith("-")}
        if command and (command[0].startswith(names) or programs.intersection(names)):
            found.append(pid)
    return found


def mlflow_runs(database: Path) -> list[tuple[str | None, str, int, int]]:
    """Return trial key (None: the sweep's), status, rows of accuracy, steps of each active run."""
    query = (
        "select t.value, r.status, count(m.step), count(distinct m.step) from runs r "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = 'trial_key' "
        "left join metrics m on m.run_uuid = r.run_uuid and m.key = 'acc_majority' "
        "where r.lifecycle_stage = 'active' group by r.run_uuid"
    )
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()
