"""Trials that are taken out of a plan (`--drop`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tune.plan.cells import chosen, trials
from tune.plan.plan import Plan, PlanError


def dropped(plan: Plan, choices: Sequence[str]) -> Plan:
    """The plan without the trials that match one of these choices (`tune.plan.cells.chosen`).

    PlanError for a choice that matches none, for a search's point, and if no trial would be left.
    """
    every = plan.trials()
    for choice in choices:
        if not any(chosen(trial, choice) for trial in every):
            raise PlanError(f"--drop {choice}: no planned trial has that")
    gone = {t.key for t in every if any(chosen(t, choice) for choice in choices)}
    if any(t.key in gone and t.cell.key in plan.search_points for t in every):
        raise PlanError("--drop takes no point of a search: later points rest on it")
    if len(gone) == len(every):
        raise PlanError("--drop leaves no trial; delete the folder instead")
    print("taken out: " + "; ".join(trial.text for trial in every if trial.key in gone))
    left = []
    for planned in plan.cells:
        seeds, fresh = (
            tuple(trial.seed for trial in trials(planned.cell, some) if trial.key not in gone)
            for some in (planned.seeds, planned.confirm_seeds)
        )
        if seeds or fresh:
            left.append(replace(planned, seeds=seeds, confirm_seeds=fresh))
    return replace(plan, cells=tuple(left), dropped=tuple(sorted({*plan.dropped, *gone})))
