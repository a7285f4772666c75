"""`--confirm`: cells that were chosen by their results are planned again on fresh seeds.

The mean of the best of several cells is too high by the choice itself (the winner's curse); quote
the mean over seeds that took no part in the choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from mpcc.config import unknown
from tune.plan.cells import trials
from tune.plan.plan import Plan, PlanError, PlannedCell
from tune.plan.state import ENDED, Status

DEFAULT_METRIC = "acc_majority"

FIRST_FRESH_SEED = 1000
"""Fresh seeds count from here, clear of those that anyone asks for by number."""


def check_metric(metric: str) -> None:
    """PlanError for a metric that does not exist."""
    from mpcc.metrics import METRICS  # numpy: only where a choice is made

    if metric not in METRICS:
        raise PlanError(unknown("metric", metric, METRICS))


def check_ended(plan: Plan, statuses: Mapping[str, Status]) -> None:
    """PlanError while a trial has not ended; `statuses` by trial key."""
    keys = [trial.key for trial in plan.trials()]
    n_missing = sum(key not in statuses or statuses[key].state not in ENDED for key in keys)
    if n_missing:
        raise PlanError(
            f"{n_missing} of {len(keys)} trials have not ended: a choice among cells needs "
            "them all; run the command without --confirm first"
        )


def confirmed(plan: Plan) -> list[PlannedCell]:
    """The cells that have fresh seeds. A confirmation is planned once: where there are any, these
    are the cells to confirm."""
    return [planned for planned in plan.cells if planned.confirm_seeds]


def confirm(
    plan: Plan,
    best: Iterable[str],
    by: Sequence[str],
    taken: Callable[[str], bool],
    n_seeds: int | None = None,
) -> Plan:
    """The plan with fresh seeds for its best cells: as many as each has seeds, or `n_seeds`.

    best: keys of the best cell of a grid and of its ties; of a search only the best point, or the
        Pareto front, since with few seeds almost all points tie. The base settings are confirmed
        beside it where they are a point. PlanError where there are none.
    by: the metrics that chose them.
    taken: whether the trial with this key has a run directory. Planned or not, it is in the tables
        that led to the choice, so its seed is not fresh; nor is any seed of another cell.
    """
    keys = set(best)
    if not keys:
        why = f"no best cell by {by[0]}: fewer than two cells have finished with it"
        search_why = "no point of the search is complete: nothing to confirm"
        raise PlanError(search_why if plan.search else why)
    keys |= {plan.base.cell_key} & set(plan.search_points)
    used = {seed for planned in plan.cells for seed in planned.seeds}

    def is_fresh(planned: PlannedCell, seed: int) -> bool:
        return seed not in used and not taken(trials(planned.cell, [seed])[0].key)

    cells = []
    for planned in plan.cells:
        if planned.cell.key in keys:
            fresh = (s for s in itertools.count(FIRST_FRESH_SEED) if is_fresh(planned, s))
            seeds = tuple(itertools.islice(fresh, n_seeds or len(planned.seeds)))
            planned = replace(planned, confirm_seeds=seeds)
        cells.append(planned)
    return replace(plan, cells=tuple(cells), confirm_by=tuple(by))


def choice_text(plan: Plan) -> str:
    """What the confirmed cells are: `best or tied by acc_majority`."""
    if not plan.confirm_by:  # planned before sweep.json recorded it
        return "planned for confirmation"
    by = " and ".join(plan.confirm_by)
    return f"best by {by}, or the base settings" if plan.search else f"best or tied by {by}"
