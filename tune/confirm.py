"""The best cell of a finished grid and what ties with it, planned again on fresh seeds.

The mean of the best of several cells is too high by the choice itself (the winner's curse); the one
on seeds that took no part in the choice is the figure to quote.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mpcc.config import unknown
from mpcc.metrics import METRICS
from tune import ledger
from tune.ledger import LedgerError, Plan, PlannedCell
from tune.points import Points, Search, best, search_of

DEFAULT_METRIC = "acc_majority"

FIRST_FRESH_SEED = 1000
"""Fresh seeds count from here, clear of those that anyone asks for by number."""


def confirm(
    plan: Plan, out: Path, metric: str | None = None, n_seeds: int | None = None
) -> tuple[Plan, list[PlannedCell], str]:
    """The plan with fresh seeds for what is to be confirmed, those cells, and what they are.

    The best cell by `metric` (majority accuracy) and its ties. Of a search the best point alone, or
    the front of several objectives, since with few seeds almost all tie, and the base settings
    beside it. As many fresh seeds as the cell had, or `n_seeds`; where a confirmation is planned
    already it stays the one. Raises LedgerError for an unknown metric and while a trial is missing.
    """
    if metric is not None and metric not in METRICS:
        raise LedgerError(unknown("metric", metric, METRICS))
    planned = [cell for cell in plan.cells if cell.confirm_seeds]
    if planned:
        return plan, planned, "planned for confirmation"
    trials = plan.trials()
    missing = [t for t in trials if ledger.status(out, t).state not in ledger.run_dir.ENDED]
    if missing:
        raise LedgerError(
            f"{len(missing)} of {len(trials)} trials have not ended: a choice among cells needs "
            "them all; run the command without --confirm first"
        )
    search = search_of(plan)
    if search is not None:
        goals = replace(search, objectives=(metric,)) if metric else search
        by, keys = goals.objectives, _best_points(plan, out, goals)
        name = f"best by {' and '.join(goals.objectives)}, or the base settings"
    else:
        by = (metric or DEFAULT_METRIC,)
        keys = best_cells(out, by[0])
        name = f"best or tied by {by[0]}"
    taken = {seed for cell in plan.cells for seed in cell.seeds}
    cells = [
        replace(cell, confirm_seeds=_fresh(n_seeds or len(cell.seeds), cell, out, taken))
        if cell.cell.key in keys
        else cell
        for cell in plan.cells
    ]
    grown = replace(plan, cells=tuple(cells), confirm_by=by)
    return grown, [c for c in cells if c.confirm_seeds], name


def _best_points(plan: Plan, out: Path, search: Search) -> set[str]:
    """Keys of a search's best points, and of the base settings where they are a point."""
    front = {point.cell.key for point in best(search, Points(out).read(plan, search))}
    if not front:
        raise LedgerError("no point of the search is complete: nothing to confirm")
    own = plan.base.cell_key
    return front | ({own} if own in search.points else set())


def best_cells(out: Path, metric: str) -> set[str]:
    """Keys of the best cell and of those that cannot be told from it, by the tables' own test."""
    from analysis.cells import groups
    from analysis.columns import column
    from analysis.load import load
    from analysis.ranking import rank

    found = groups(load([out]))
    ranking = rank(found, metric, column(metric).better, "welch")
    if not ranking.best:
        raise LedgerError(f"no best cell by {metric}: fewer than two cells have finished with it")
    return {found[i].cell_key for i in ranking.best | ranking.tied}


def _fresh(n: int, cell: PlannedCell, out: Path, taken: Collection[int]) -> tuple[int, ...]:
    """The first seeds from FIRST_FRESH_SEED that no cell was planned with and this one never ran.

    A run directory without a plan counts too: its trial is in the tables that led to the choice.
    """

    def unused(seed: int) -> bool:
        (trial,) = ledger.trials(cell.cell, [seed])
        return seed not in taken and not ledger.trial_dir(out, trial.key).exists()

    return tuple(itertools.islice(filter(unused, itertools.count(FIRST_FRESH_SEED)), n))
