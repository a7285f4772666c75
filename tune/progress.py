"""What a running sweep shows: one table on a terminal, terse lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mpcc import run_dir
from tune import ledger
from tune.grid import cost
from tune.ledger import Status, Trial
from tune.signals import tell

GLYPHS = {
    ledger.PLANNED: ("·", "."),
    ledger.RUNNING: ("▸", ">"),
    ledger.DONE: ("✓", "+"),
    ledger.DIVERGED: ("∞", "d"),
    ledger.FAILED: ("✗", "x"),
    ledger.PRUNED: ("✂", "p"),
    ledger.STOPPED: ("‖", "s"),
}
COLOURS = {
    ledger.RUNNING: "cyan",
    ledger.DONE: "green",
    ledger.DIVERGED: "yellow",
    ledger.FAILED: "red",
    ledger.PRUNED: "magenta",
}
LINE_SECONDS = 20.0
"""Between two lines of progress where the output is no terminal."""


@dataclass
class _Row:
    trial: Trial
    state: str
    iteration: int
    accuracy: float | None

    @property
    def part(self) -> float:
        if self.state in run_dir.ENDED:
            return 1.0
        return min(1.0, self.iteration / self.trial.config.iterations)


class Board:
    """The states of the sweep's trials as they are now, written by one thread, read by others."""

    def __init__(self, trials: Sequence[Trial], statuses: Mapping[str, Status]) -> None:
        self._lock = threading.Lock()
        self._started: float | None = None
        self._rows: dict[str, _Row] = {}
        self._at_start = 0.0
        self.ended: list[Trial] = []
        self.expected = 0
        """Trials in all, where a search will find more than there are."""
        self.add(trials, statuses)

    def add(self, trials: Sequence[Trial], statuses: Mapping[str, Status]) -> None:
        """More trials: a search finds them as it goes."""
        rows = {}
        for trial in trials:
            status = statuses[trial.key]
            accuracy = _number(status.metrics.get("acc_majority"))
            rows[trial.key] = _Row(trial, status.state, status.iteration, accuracy)
        with self._lock:
            self._at_start += sum(row.part * cost(row.trial.config) for row in rows.values())
            self._rows = self._rows | rows

    def set(self, key: str, state: str, iteration: int | None = None, accuracy: Any = None) -> None:
        with self._lock:
            row = self._rows[key]
            if row.state != state and state in run_dir.ENDED:
                self.ended.append(row.trial)
            if state == ledger.RUNNING and self._started is None:
                self._started = time.monotonic()
            row.state = state
            row.iteration = row.iteration if iteration is None else iteration
            row.accuracy = row.accuracy if _number(accuracy) is None else _number(accuracy)

    def row(self, key: str) -> tuple[str, int, float | None]:
        row = self._rows[key]
        return row.state, row.iteration, row.accuracy

    def trials(self) -> list[Trial]:
        """All of them, in the order they came."""
        return [row.trial for row in self._rows.values()]

    def running(self) -> frozenset[str]:
        with self._lock:
            return frozenset(k for k, row in self._rows.items() if row.state == ledger.RUNNING)

    def count(self, state: str) -> int:
        with self._lock:
            return sum(row.state == state for row in self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def by_cell(self) -> list[tuple[str, list[_Row]]]:
        """Rows of each cell, in the plan's order, seeds rising."""
        cells: dict[str, list[_Row]] = {}
        for row in self._rows.values():
            cells.setdefault(row.trial.cell.key, []).append(row)
        return [(rows[0].trial.cell.text, rows) for rows in cells.values()]

    def part(self) -> float:
        """How much of the work is done, 0 to 1."""
        return self._work_done() / max(1e-9, self._work())

    def seconds_left(self) -> float | None:
        """At the pace since the first trial began; None while that says nothing."""
        if self._started is None:
            return None
        elapsed, done = time.monotonic() - self._started, self._work_done()
        fresh = done - self._at_start
        total = self._work()
        if elapsed < 5 or fresh <= 0:
            return None
        return elapsed * (total - done) / fresh

    def line(self) -> str:
        """One line: `3 of 15 done, 2 running, 21 %, about 6:10 left`."""
        parts = [f"{self.count(ledger.DONE)} of {self.total} done"]
        for state in (ledger.RUNNING, ledger.DIVERGED, ledger.FAILED, ledger.PRUNED):
            if self.count(state):
                parts.append(f"{self.count(state)} {state}")
        parts.append(f"{100 * self.part():.0f} %")
        left = self.seconds_left()
        if left is not None and self.part() < 1:
            parts.append(f"about {clock(left)} left")
        return ", ".join(parts)

    @property
    def total(self) -> int:
        """Trials, with those that a search has still to find."""
        return max(self.expected, len(self))

    def _work(self) -> float:
        """Of all trials; those to be found count as the others do on average."""
        known = sum(cost(row.trial.config) for row in self._rows.values())
        return known * self.total / max(1, len(self))

    def _work_done(self) -> float:
        return sum(row.part * cost(row.trial.config) for row in self._rows.values())


class Display:
    """Shows a board on stderr while it is entered; `update` is cheap and may be called often."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._live: Any = None
        self._last = self._begun = time.monotonic()
        self._told = 0

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(self._table(), console=console, auto_refresh=False)
            with _never_mind():
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update(last=True)
        if self._live is not None:
            with _never_mind():
                self._live.stop()

    def say(self, text: str) -> None:
        """A line above the table."""
        if self._live is not None:
            with _never_mind():
                self._live.console.print(text, markup=False, highlight=False)
        else:
            tell(text)

    def update(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None:
            if last or now - self._last >= 0.5:
                self._last = now
                with _never_mind():
                    self._live.update(self._table(), refresh=True)
            return
        ended = self._board.ended
        while self._told < len(ended):
            self._tell(ended[self._told])
            self._told += 1
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self.say(f"[{clock(now - self._begun)}] {self._board.line()}")

    def _tell(self, trial: Trial) -> None:
        state, iteration, accuracy = self._board.row(trial.key)
        score = "" if accuracy is None else f"  accuracy {accuracy:.3f}"
        spent = clock(time.monotonic() - self._begun)
        self.say(f"[{spent}] {state} at {iteration}: {trial.text}{score}")

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        plain = (getattr(sys.stderr, "encoding", "") or "").lower().replace("-", "") != "utf8"
        seen = {row.state for _, rows in self._board.by_cell() for row in rows}
        legend = ", ".join(f"{glyphs[plain]} {s}" for s, glyphs in GLYPHS.items() if s in seen)
        for name in ("cell", f"seeds ({legend})"):
            table.add_column(name)
        for name in ("iteration", "accuracy"):
            table.add_column(name, justify="right")
        for text, rows in self._board.by_cell():
            seeds = Text()
            for row in rows:
                seeds.append(GLYPHS[row.state][plain], style=COLOURS.get(row.state, "dim"))
            scores = [row.accuracy for row in rows if row.accuracy is not None]
            mean = f"{sum(scores) / len(scores):.3f}" if scores else ""
            furthest = sum(row.part * row.trial.config.iterations for row in rows) / len(rows)
            table.add_row(text, seeds, f"{furthest:.0f}", mean)
        bar = ProgressBar(total=1.0, completed=self._board.part(), width=50)
        return Group(table, bar, Text(self._board.line(), style="bold"))


def _never_mind() -> contextlib.suppress:
    """For output: a terminal that is gone or a disk that is full must not end a sweep."""
    return contextlib.suppress(OSError)


def clock(seconds: float) -> str:
    """`0:42`, `6:10`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
