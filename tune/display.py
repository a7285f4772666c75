"""The output of a running sweep on stderr: one table on a terminal, terse lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from tune.plan.cells import by_cell
from tune.plan.state import States, clock

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from mpcc.config import Config
    from tune.plan.state import Status

TABLE_SECONDS = 0.5
"""Seconds between two tables on a terminal."""
LINE_SECONDS, LINE_SHARE = 20.0, 0.05
"""Seconds between progress lines: at least 20, and at least 5 % of the elapsed time."""
INLINE_BACKEND = "matplotlib_inline"
"""Named by MPLBACKEND in Jupyter and VS Code, whose cells keep every table that is drawn."""


class Display:
    """Shows the states while it is entered; `show` is cheap and may be called often."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._live: Live | None = None
        self._shown = self._begun = time.monotonic()
        self._n_ended = len(states.ended)
        """How many ends of trials have been logged."""

    def __enter__(self) -> Display:
        notebook = INLINE_BACKEND in os.environ.get("MPLBACKEND", "")
        if sys.stderr.isatty() and not notebook:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, markup=False, highlight=False)
            self._live = Live(self._table(), console=console, auto_refresh=False)
            with ignore_output_errors():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show(last=True)
        if self._live is not None:
            with ignore_output_errors():
                self._live.stop()

    def show(self, *, last: bool = False) -> None:
        """Log the trials that have ended; update the table or the progress line if it is due."""
        waited = time.monotonic() - self._shown
        if self._live is None:
            self._log_ends()
            if waited >= max(LINE_SECONDS, LINE_SHARE * (time.monotonic() - self._begun)):
                self._shown += waited
                log(f"[{self._spent()}] {self._states.line()}")
        elif last or waited >= TABLE_SECONDS:
            self._shown += waited
            with ignore_output_errors():
                self._live.update(self._table(), refresh=True)

    def _log_ends(self) -> None:
        """A line for each trial that has ended since the last time."""
        for trial in self._states.ended[self._n_ended :]:
            status = self._states[trial.key]
            score = score_text(status, trial.config)
            ended = f"{status.state} at {status.iteration}: {trial.text}{score}"
            log(f"[{self._spent()}] {ended}")
        self._n_ended = len(self._states.ended)

    def _spent(self) -> str:
        return clock(time.monotonic() - self._begun)

    def _table(self) -> Group:
        """A row for each cell: how many seeds are in each state, mean iteration and accuracy."""
        from rich.console import Group
        from rich.table import Table

        from mpcc.evaluation.metrics import column

        spec = column("acc_majority")
        table = Table("cell", "seeds", "iteration", spec.heading, box=None, pad_edge=False)
        for trials in by_cell(self._states.trials()):
            statuses = [self._states[trial.key] for trial in trials]
            counts = Counter(status.state for status in statuses)
            seeds = ", ".join(f"{n} {state}" for state, n in counts.items())
            scores = [s.accuracy for s in statuses if s.accuracy is not None]
            mean = spec.shown(sum(scores) / len(scores)) if scores else ""
            parts = [self._states.part_of(t.key) * t.config.iterations for t in trials]
            table.add_row(trials[0].cell.text, seeds, f"{sum(parts) / len(parts):.0f}", mean)
        return Group(table, self._states.line())


def score_text(status: Status, config: Config) -> str:
    """`  Acc 58.2 %, collapsed`, as the tables have it; empty if it is not measured."""
    if status.accuracy is None:
        return ""
    from mpcc.evaluation.failures import failures  # numpy: only if there is a score
    from mpcc.evaluation.metrics import column

    found = failures(status.metrics, config.max_saturation)
    return "  " + ", ".join([column("acc_majority").reading(status.accuracy), *found])


def log(text: str) -> None:
    """Print a line on stderr; drop it if stderr cannot be written."""
    with ignore_output_errors():
        print(text, file=sys.stderr, flush=True)


def ignore_output_errors() -> contextlib.suppress:
    """Ignore errors of output: a closed terminal or a full disk must not end a sweep."""
    return contextlib.suppress(OSError, ValueError)
