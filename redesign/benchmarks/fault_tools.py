"""Sweeps to be disturbed: start one, find its processes, read what it left, compare two of them."""

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
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mpcc import run_dir  # noqa: E402

TIMEOUT = 300.0
STORED = ("trial_key", "state", "iteration", "metrics", "weights_sha256")
"""What of a result must not depend on what happened on the way to it."""


class SweepFailed(RuntimeError):
    """A sweep ended otherwise than it should, with what it printed."""


@dataclass(frozen=True)
class Stand:
    """How far a trial has come, by what is on disk."""

    result: tuple[int, dict[str, Any]] | None = None
    """When a sound result was written, and what it says."""
    starts: tuple[int, ...] = ()
    """The iterations from which training has begun, one for each start."""
    iteration: int = 0
    """Of the newest checkpoint that is intact."""

    def trained_again(self, later: Stand) -> bool:
        """Whether something that was there has been trained once more since."""
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

    def command(self, *more: str) -> list[str]:
        program = str(ROOT / "tune" / "ablation.py")
        return [sys.executable, program, "--out", str(self.out), *self.argv, *more]

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """The sweep as a process of its own; not from the repository: any folder must do."""
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

    def run(self, expected: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """Run it to its end and return what it printed; SweepFailed for another exit code."""
        return finish(self.start(environment), expected)

    def results(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Trial key -> time of writing and content of each result that is sound."""
        found = {}
        for file in sorted(self.out.glob("trials/*/result.json")):
            try:
                result = run_dir.read_result(file.parent)
                if result is not None:
                    found[file.parent.name] = (file.stat().st_mtime_ns, result)
            except (ValueError, OSError):
                continue
        return found

    def stand(self) -> dict[str, Stand]:
        """Trial key -> how far it has come, while it runs or not."""
        results, found = self.results(), {}
        for path in sorted(self.out.glob("trials/*")):
            try:
                starts = tuple(run_dir.read_provenance(path).get("starts") or ())
            except (ValueError, OSError):
                starts = ()
            kept, _ = run_dir.read_checkpoints(path)
            iteration = max((c.iteration or 0 for c in kept), default=0)
            found[path.name] = Stand(results.get(path.name), starts, iteration)
        return found

    def checkpointed(self) -> list[Path]:
        """Run directories with a checkpoint and no result."""
        return [
            file.parent
            for file in sorted(self.out.glob("trials/*/checkpoint.pt"))
            if not (file.parent / "result.json").exists()
        ]

    def has_come_to(self, n_results: int) -> bool:
        """Whether so many trials have a result and another one a checkpoint."""
        return len(self.results()) >= n_results and bool(self.checkpointed())

    def stored(self) -> dict[str, dict[str, Any]]:
        """Trial key -> what its result says, but for times."""
        return {
            key: {name: result.get(name) for name in STORED}
            for key, (_, result) in self.results().items()
        }

    def evaluations(self) -> dict[str, list[dict[str, Any]]]:
        """Trial key -> its evaluations, but for times."""
        rows = {}
        for file in sorted(self.out.glob("trials/*/metrics.jsonl")):
            try:
                read = [json.loads(line) for line in file.read_text().splitlines()]
            except ValueError:
                read = [{"damaged": str(file)}]
            rows[file.parent.name] = [{k: v for k, v in r.items() if k != "seconds"} for r in read]
        return rows

    def tables(self) -> dict[str, str]:
        """File name -> content of the tables that are made of it now, but for times and run ids."""
        folder = self.out.parent / f"tables-{self.out.name}"
        program = str(ROOT / "analysis" / "make_tables.py")
        words = ["--runs", str(self.out), "--table", "grid", "--format", "md,csv", "--no-pictures"]
        made = subprocess.run(
            [sys.executable, program, *words, "--out", str(folder)], capture_output=True, text=True
        )
        if made.returncode != 0:
            raise SweepFailed(f"make_tables ended with {made.returncode}: {made.stderr}")
        # Provenance names MLflow's runs and the trials' file: those are each sweep's own.
        return {
            file.name: _without(file.read_text(), ("seconds_train", "mlflow_run"))
            for file in sorted(folder.glob("*.*"))
            if not file.name.endswith("provenance.json")
        }


def _without(text: str, columns: Sequence[str]) -> str:
    """A CSV text without these columns; any other text as it is."""
    head = text.partition("\n")[0].split(",")
    drop = [head.index(name) for name in columns if name in head]
    if not drop:
        return text
    rows = [[v for i, v in enumerate(row) if i not in drop] for row in csv.reader(text.split("\n"))]
    return "\n".join(",".join(row) for row in rows)


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


def size_of(file: Path) -> int:
    """Bytes of a file; 0 where it has just been renamed or removed."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any]) -> bool:
    """Wait until the condition holds; False where the process ends before."""
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
    """End the driver and all that it has started at one blow."""
    kill([process.pid, *descendants(process.pid)])
    process.communicate()


def descendants(pid: int) -> list[int]:
    """Processes that this one has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # It has just ended.
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def kill(pids: Iterable[int]) -> int:
    """SIGKILL for these processes; how many there still were."""
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            pass
    return killed


TRIAL = ("ray::MPCCTrainable", "ray::ResourceTrainable")
"""What Ray calls a process with a trial, at rest and at work."""


def processes(driver: int, *names: str) -> list[int]:
    """Processes under this driver whose command line begins with, or whose program is, a name."""
    found = []
    for pid in descendants(driver):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        first = words[0].decode(errors="replace")
        if first.startswith(names) or Path(first).name in names:
            found.append(pid)
    return found


def mlflow_runs(database: Path) -> list[tuple[str | None, str, int, int]]:
    """Per active run: trial key (None for the sweep's own), status, rows of accuracy, steps."""
    query = (
        "select t.value, r.status, count(m.step), count(distinct m.step) from runs r "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = 'trial_key' "
        "left join metrics m on m.run_uuid = r.run_uuid and m.key = 'acc_majority' "
        "where r.lifecycle_stage = 'active' group by r.run_uuid"
    )
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()
