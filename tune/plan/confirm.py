"""`--confirm`: cells that were chosen by their results are planned again on fresh seeds.

The best of several cells looks too good on the seeds that chose it (the winner's curse); quote the
mean over seeds that took no part in the choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from mpcc.config import trial_key
from tune.plan.plan import Plan, PlanError, PlannedCell
from tune.plan.state import ENDED, Status

DEFAULT_METRIC = "acc_majority"

FIRST_FRESH_SEED = 1000
"""The first fresh seed, above the seeds that users choose."""


def check_ended(statuses: Collection[Status]) -> None:
    """PlanError while a trial has not ended."""
    n_missing = sum(status.state not in ENDED for status in statuses)
    if n_missing:
        raise PlanError(
            f"{n_missing} of {len(statuses)} trials have not ended: a choice among cells needs "
            "them all; run the command without --confirm first"
        )


def confirmed(plan: Plan) -> list[PlannedCell]:
    """The cells that have fresh seeds. A confirmation is planned once: if any cell has some, these
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

    best: keys of the best cell of a grid and of the cells tied with it; of a search only the best
        point, or the Pareto front, since with few seeds almost all points tie. If the base settings
        are a point, they are confirmed too. PlanError if `best` is empty.
    by: the metrics that chose them.
    taken: tells whether a trial's folder exists, planned or not. Its result influenced the choice,
        so its seed is not fresh; neither is a seed of any other cell.
    """
    keys = set(best)
    if not keys:
        why = (
            f"no best cell by {by[0]}: fewer than two cells have finished with it "
            "and without a collapsed or diverged seed"
        )
        search_why = "no point of the search is complete: nothing to confirm"
        raise PlanError(search_why if plan.search else why)
    keys |= {plan.base.cell_key} & set(plan.search_points)
    used = {seed for planned in plan.cells for seed in planned.seeds}

    def fresh(planned: PlannedCell) -> Iterator[int]:
        for seed in itertools.count(FIRST_FRESH_SEED):
            if seed not in used and not taken(trial_key(planned.cell.key, seed)):
                yield seed

    cells = []
    for planned in plan.cells:
        if planned.cell.key in keys:
            seeds = itertools.islice(fresh(planned), n_seeds or len(planned.seeds))
            planned = replace(planned, confirm_seeds=tuple(seeds))
        cells.append(planned)
    return replace(plan, cells=tuple(cells), confirm_by=tuple(by))
