"""The best cell of a finished grid and what ties with it, planned again on fresh seeds.

The mean of the best of several cells is too high by the choice itself (the winner's curse); the one
on seeds that took no part in the choice is the figure to quote.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mpcc.metrics import METRICS
from tune import ledger
from tune.ledger import LedgerError, Plan, PlannedCell

FIRST_FRESH_SEED = 1000
"""Fresh seeds count from here, clear of those that anyone asks for by number."""


def confirm(plan: Plan, out: Path, metric: str) -> tuple[Plan, list[PlannedCell]]:
    """The plan with fresh seeds for the best cell by `metric` and its ties, and those cells.

    As many fresh seeds as the cell had; where a confirmation is planned already it stays the one.
    Raises LedgerError for an unknown metric and while a trial of the grid is missing.
    """
    if metric not in METRICS:
        from mpcc.config import unknown

        raise LedgerError(unknown("metric", metric, METRICS))
    planned = [cell for cell in plan.cells if cell.confirm_seeds]
    if planned:
        return plan, planned
    trials = plan.trials()
    missing = [t for t in trials if ledger.status(out, t).state not in ledger.run_dir.ENDED]
    if missing:
        raise LedgerError(
            f"{len(missing)} of {len(trials)} trials have not ended: a choice among cells needs "
            "them all; run the command without --confirm first"
        )
    keys = best_cells(out, metric)
    cells = [
        replace(cell, confirm_seeds=_fresh(len(cell.seeds))) if cell.cell.key in keys else cell
        for cell in plan.cells
    ]
    return replace(plan, cells=tuple(cells)), [cell for cell in cells if cell.confirm_seeds]


def best_cells(out: Path, metric: str) -> set[str]:
    """Keys of the best cell and of those that cannot be told from it, by the tables' own test."""
    from analysis.cells import groups
    from analysis.columns import column
    from analysis.compare import best_and_tied
    from analysis.load import load

    found = groups(load([out]))
    best, tied = best_and_tied(found, metric, column(metric).better, "welch")
    if best is None:
        raise LedgerError(f"no best cell by {metric}: fewer than two cells have finished with it")
    return {found[i].cell_key for i in {best, *tied}}


def _fresh(n: int) -> tuple[int, ...]:
    return tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + n))
