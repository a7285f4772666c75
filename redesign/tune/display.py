"""What a running sweep shows on stderr: one table on a terminal, terse lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from tune.engine.states import States, clock
from tune.plan.cells import Trial, by_cell
from tune.plan.state import State

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

GLYPHS = {
    State.PLANNED: ("·", ".", "dim"),
    State.RUNNING: ("▸", ">", "cyan"),
    State.DONE: ("✓", "+", "green"),
    State.DIVERGED: ("∞", "d", "yellow"),
    State.FAILED: ("✗", "x", "red"),
    State.PRUNED: ("✂", "p", "magenta"),
    State.STOPPED: ("‖", "s", "dim"),
}
"""Of each state; what a terminal without Unicode shows instead; its colour."""
TABLE_SECONDS = 0.5
"""Between two tables on a terminal."""
LINE_SECONDS = 20.0
"""Between two lines of progress elsewhere."""


class Display:
    """Shows the states while it is entered; `show` is cheap and may be called often."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._live: Live | None = None
        self._column = 0
        """Of `GLYPHS`; chosen before rich replaces stderr by one that has no encoding."""
        self._shown = self._begun = time.monotonic()
        self._n_ended = len(states.ended)
        """How many ends of trials have had their line."""

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            encoding = (getattr(sys.stderr, "encoding", "") or "").lower().replace("-", "")
            self._column = 0 if encoding == "utf8" else 1
            self._live = Live(self._table(), console=Console(stderr=True), auto_refresh=False)
            with ignore_output_errors():
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.show(last=True)
        if self._live is not None:
            with ignore_output_errors():
                self._live.stop()

    def log(self, text: str) -> None:
        """A line above the table."""
        if self._live is None:
            log(text)
            return
        with ignore_output_errors():
            self._live.console.print(text, markup=False, highlight=False)

    def show(self, *, last: bool = False) -> None:
        """Update what is shown, where it is time for that."""
        now = time.monotonic()
        if self._live is None:
            for trial in self._states.ended[self._n_ended :]:
                self._log_end(trial)
            self._n_ended = len(self._states.ended)
            if now - self._shown >= LINE_SECONDS:
                self._shown = now
                self.log(f"[{clock(now - self._begun)}] {self._states.line()}")
        elif last or now - self._shown >= TABLE_SECONDS:
            self._shown = now
            with ignore_output_errors():
                self._live.update(self._table(), refresh=True)

    def _log_end(self, trial: Trial) -> None:
        status = self._states[trial.key]
        score = "" if status.accuracy is None else f"  accuracy {status.accuracy:.3f}"
        spent = clock(time.monotonic() - self._begun)
        self.log(f"[{spent}] {status.state} at {status.iteration}: {trial.text}{score}")

    def _table(self) -> Group:
        """A row for each cell, and a bar of the whole."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        seen = {status.state for status in self._states.values()}
        legend = ", ".join(
            f"{glyphs[self._column]} {s}" for s, glyphs in GLYPHS.items() if s in seen
        )
        for name in ("cell", f"seeds ({legend})"):
            table.add_column(name)
        for name in ("iteration", "accuracy"):
            table.add_column(name, justify="right")
        for trials in by_cell(self._states.trials()):
            statuses = [self._states[trial.key] for trial in trials]
            seeds = Text()
            for status in statuses:
                glyphs = GLYPHS[status.state]
                seeds.append(glyphs[self._column], style=glyphs[2])
            scores = [s.accuracy for s in statuses if s.accuracy is not None]
            mean = f"{sum(scores) / len(scores):.3f}" if scores else ""
            parts = [self._states.part_of(t.key) * t.config.iterations for t in trials]
            table.add_row(trials[0].cell.text, seeds, f"{sum(parts) / len(parts):.0f}", mean)
        bar = ProgressBar(total=1.0, completed=self._states.part(), width=50)
        return Group(table, bar, Text(self._states.line(), style="bold"))


def log(text: str) -> None:
    """A line on stderr, lost where that is full or gone."""
    with ignore_output_errors():
        print(text, file=sys.stderr, flush=True)


def ignore_output_errors() -> contextlib.suppress:
    """A terminal that is gone or a disk that is full must not end a sweep."""
    return contextlib.suppress(OSError, ValueError)
