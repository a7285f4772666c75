"""`--continue-training`: a finished sweep is planned at more iterations.

The course of a trial does not depend on how many iterations are planned, so a trial that resumes
from the checkpoint of fewer iterations ends at the same numbers as one that was planned longer from
the start. More iterations are another trial with a key of its own; `tune.store` starts its run
directory from that of fewer iterations.
"""

from __future__ import annotations

from dataclasses import replace

from tune.plan.cells import Cell
from tune.plan.plan import Plan, PlanError, PlannedCell


def extend(plan: Plan, iterations: int) -> Plan:
    """The plan with every cell at so many iterations. PlanError where that is not more."""
    before = {planned.cell.config.iterations for planned in plan.cells} | {plan.base.iterations}
    if before == {iterations}:
        return plan
    if iterations <= max(before):
        raise PlanError(
            f"--continue-training needs more than the {max(before)} iterations that are planned, "
            f"got {iterations}"
        )
    cells = [_extended(planned, iterations) for planned in plan.cells]
    if len({planned.cell.key for planned in cells}) < len(cells):
        raise PlanError(
            "--continue-training: the iterations are an axis of this sweep; "
            "add a value to the axis instead"
        )
    search = plan.search
    if search is not None:
        keys = {old.cell.key: new.cell.key for old, new in zip(plan.cells, cells, strict=True)}
        search = {**search, "points": [keys[key] for key in plan.search_points]}
    return replace(
        plan,
        base=plan.base.override(iterations=iterations),
        cells=tuple(cells),
        earlier_iterations=tuple(sorted({*plan.earlier_iterations, *before})),
        search=search,
    )


def _extended(planned: PlannedCell, iterations: int) -> PlannedCell:
    changes = {n: value for n, value in planned.cell.changes.items() if n != "iterations"}
    return replace(planned, cell=Cell(planned.cell.config.override(iterations=iterations), changes))
