"""What every fault is held against: an undisturbed sweep, and the processes that are left."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.fault_tools import (
    Progress,
    Sweep,
    SweepFailed,
    command_of,
    descendants,
    finish,
    kill,
    mlflow_runs,
    process_table,
    wait_for,
)

EVALUATIONS = 3
SETTINGS = ("--preset", "tiny", "--iterations", "120", "--set", "eval_every=40")
ARGV = (*SETTINGS, "--grid", "esteps=1,2,3", "--seeds", "2", "--checkpoint-seconds", "0")
TRIES = 3
LEFT_SECONDS = 15.0
"""After so long no process of a sweep that has ended may be left."""
LOOK_SECONDS = 0.2


@dataclass
class Outcome:
    """What one kind of fault has done, over all tries."""

    tried: int = 0
    lost: int = 0
    twice: int = 0
    other_tables: int = 0
    other_mlflow: int = 0
    left: int = 0
    """Processes that were there too long after their sweep had ended."""
    notes: list[str] = field(default_factory=list)
    minutes: float = 0.0
    not_tried: str = ""
    """Why this machine cannot make the fault happen."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with what was tried."""
        numbers = (self.lost, self.twice, self.other_tables, self.other_mlflow, self.left)
        return not any(numbers) and not self.notes


class Sessions:
    """The process sessions of all sweeps that this process has started.

    Each driver has one, and each local Ray one of its own; an orphan stays in its session.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="sessions", daemon=True).start()

    def known(self) -> set[int]:
        """Return all sessions there have been up to now."""
        processes, own = process_table(), os.getsid(0)
        below = [pid for pid in descendants(os.getpid()) if pid in processes]
        self._known |= {processes[pid][1] for pid in below} - {own}
        return set(self._known)

    def forget(self) -> None:
        """Forget them, before the kernel gives their numbers away again."""
        self._known.clear()

    @staticmethod
    def members_after(sessions: Iterable[int], seconds: float) -> list[int]:
        """Return the processes that have not ended within so many seconds; waits no longer."""
        sessions, end = set(sessions), time.monotonic() + seconds
        while True:
            left = [pid for pid, (_, session) in process_table().items() if session in sessions]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)

    def end(self) -> None:
        """Kill all of them, and look for no more."""
        self._over.set()
        kill(self.members_after(self.known(), 0))

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.known()


class Lab:
    """An undisturbed sweep to compare with, and folders for the others."""

    def __init__(self, folder: Path, seed: int = 0, argv: tuple[str, ...] = ARGV) -> None:
        self.folder, self.seed, self.argv = folder, seed, argv
        self.random = random.Random(seed)
        self.sessions = Sessions()
        self.reference = Sweep(folder / "undisturbed", argv)
        begun = time.monotonic()
        process = self.reference.start()
        wait_for(process, self.reference.checkpointed)
        self.before_training = time.monotonic() - begun
        finish(process)
        self.seconds = time.monotonic() - begun
        self.tables = self.reference.tables()
        self.keys = sorted(self.reference.results())
        self.count = 0

    def sweep(self, *more: str, parent: Path | None = None) -> Sweep:
        """Return a sweep with an empty folder."""
        self.count += 1
        return Sweep((parent or self.folder) / f"sweep-{self.count}", (*self.argv, *more))

    def at_random_moment(
        self, *, in_training: bool = True
    ) -> tuple[Sweep, subprocess.Popen[str], dict[str, Progress]]:
        """Return a sweep that runs and has come to a random moment, and how far that is.

        By what is on disk, not by the clock: a machine is not equally fast all the time. Without
        `in_training` the moment may also lie before the first iteration or after the last one.
        """
        n = len(self.keys)
        for _ in range(TRIES):
            sweep = self.sweep()
            process = sweep.start()
            stage = self.random.choice(range(n - 1) if in_training else (-3, -2, -1, 0, n // 2, n))
            if stage < 0:
                time.sleep(self.random.uniform(0.0, self.before_training))
            elif stage == n:
                wait_for(process, partial(sweep.has_results, n))
                time.sleep(self.random.uniform(0.0, 1.5))
            else:
                wait_for(process, partial(sweep.has_come_to, stage))
                time.sleep(self.random.uniform(0.0, 0.5))
            before = sweep.progress()
            if process.poll() is None:
                return sweep, process, before
            process.communicate()
        raise SweepFailed(f"{TRIES} sweeps ended before anything could be done to them")

    def resume(
        self,
        sweep: Sweep,
        outcome: Outcome,
        database: Path | None = None,
        before: dict[str, Progress] | None = None,
    ) -> None:
        """Run the command again until all is done, and hold it against the undisturbed sweep.

        `before` is how far the trials had come when the fault came. What is left of the driver that
        has ended is counted while the next one runs, which does not wait for it.
        """
        before = sweep.progress() if before is None else before
        sessions = self.sessions.known()
        process = sweep.start()
        self.count_left(sessions, outcome)
        finish(process)
        self.count_repeats(sweep, before, outcome)
        self.compare(sweep, outcome, database)

    def count_left(
        self, sessions: Iterable[int], outcome: Outcome, seconds: float = LEFT_SECONDS
    ) -> None:
        """Count, name and kill the processes of ended sweeps that are there after that time."""
        left = self.sessions.members_after(sessions, seconds)
        if left:
            outcome.left += len(left)
            names = ", ".join(sorted(" ".join(command_of(pid)[:4])[:80] for pid in left))
            outcome.notes.append(f"left after {seconds:.0f} s: {names}")
            kill(left)

    @staticmethod
    def count_repeats(sweep: Sweep, before: dict[str, Progress], outcome: Outcome) -> None:
        """Count the trials that have been trained again from before what they had."""
        outcome.twice += sum(
            before.get(key, Progress()).trained_again(after)
            for key, after in sweep.progress().items()
        )

    def compare(self, sweep: Sweep, outcome: Outcome, database: Path | None = None) -> None:
        """Count the trials, tables and MLflow runs that are not those of the undisturbed sweep."""
        stored, evaluations = sweep.stored(), sweep.evaluations()
        expected, rows = self.reference.stored(), self.reference.evaluations()
        outcome.lost += sum(
            stored.get(key) != expected[key] or evaluations.get(key) != rows[key]
            for key in self.keys
        )
        outcome.other_tables += sweep.tables() != self.tables
        runs = sorted(mlflow_runs(database or sweep.out / "mlflow.db"), key=str)
        wanted = [(key, "FINISHED", EVALUATIONS, EVALUATIONS) for key in self.keys]
        outcome.other_mlflow += runs != sorted([*wanted, (None, "FINISHED", 0, 0)], key=str)
