"""`--ablate`: the full model, and the model without one thing at a time, each a named variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpcc.config import VARIANTS, Config, unknown
from tune import ledger
from tune.grid import Cell
from tune.ledger import FULL_MODEL, LedgerError, Plan

NAME = "leave one out"
"""What sweep.json calls the grid of these cells."""

RELATIVE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "equal-rates": lambda base: {"prior_lr": base.network_lr},
}
"""Variants that depend on the settings they start from."""

LEFT_OUT = (
    "normal-prior",
    "not-shared",
    "one-encoder-step",
    "no-prior-entropy",
    "no-floor",
    "no-average",
    "equal-rates",
    "plain-latent",
)
"""What `--ablate` alone leaves out, where the model has it: the mixture, the shared blocks, further
encoder steps, Loss III, the threshold of σ, the moving average, a learning rate of the prior's own,
and the latent code at every block."""


def cells(names: Sequence[str], base: Config, start: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """(variant, cell) of the full model and of each name; all that apply where none is named.

    `start` is what the full model changes of the base settings. LedgerError, in one line, for a
    name that is unknown or given twice, or that leaves nothing out of this model.
    """
    full = base.override(**start, seed=0)
    made = [(FULL_MODEL, Cell(full, dict(start)))]
    for name in names or LEFT_OUT:
        if name not in RELATIVE and name not in VARIANTS:
            raise LedgerError(unknown("variant", name, [*VARIANTS, *RELATIVE]))
        changes = RELATIVE[name](full) if name in RELATIVE else VARIANTS[name]
        try:
            config = full.override(**changes)
        except ValueError:
            if names:
                raise
            continue  # Settings that exclude it: not a part of this model.
        if config.cell_key in {cell.key for _, cell in made}:
            if names:
                raise LedgerError(f"--ablate {name} leaves nothing out that is still there")
            continue
        made.append((name, Cell(config, {**start, **changes})))
    return made


def grow(
    plan: Plan, made: Iterable[tuple[str, Cell]], seeds: Sequence[int], *, chosen: bool = False
) -> Plan:
    """The plan with these cells, named; a cell of a grid that is one of them keeps its place.

    Where the full model was `chosen` by its results, the plan keeps the seeds that it had.
    """
    chose = _seeds_so_far(plan) if chosen else {}
    known = {planned.cell.key for planned in plan.cells}
    names = {cell.key: name for name, cell in made if cell.key not in known or name == FULL_MODEL}
    plan = plan.grow([cell for _, cell in made], seeds, NAME)
    named = [replace(c, variant=c.variant or names.get(c.cell.key)) for c in plan.cells]
    marked = [
        replace(c, chosen_on=c.chosen_on or chose.get(c.cell.key, ()))
        if c.variant == FULL_MODEL
        else c
        for c in named
    ]
    return replace(plan, cells=tuple(marked))


def _seeds_so_far(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The seeds that a choice among the plan's cells looks at, by cell."""
    from tune.points import search_of

    search = search_of(plan)
    seeds = {planned.cell.key: planned.seeds for planned in plan.cells}
    return seeds if search is None else seeds | dict.fromkeys(search.points, search.seeds)


def starting_cell(choice: str | None, plan: Plan, out: Path) -> Cell:
    """What the full model is: the base settings, or the cell that `--ablate-from` names.

    `best` is the best point of the folder's search, or its best cell without labels. LedgerError
    where there is none, GridError where the choice names no cell or several.
    """
    from tune.grid import chosen

    if choice is None:
        planned = [c.cell for c in plan.cells if c.variant == FULL_MODEL]
        return planned[0] if planned else Cell(plan.base, {})
    if choice == "best":
        return _best(plan, out)
    found = [planned.cell for planned in plan.cells if chosen(planned.cell, choice)]
    if len(found) != 1:
        some = "; ".join(cell.text for cell in (found or [p.cell for p in plan.cells])[:6])
        raise LedgerError(f"{len(found)} cells are '{choice}'; there are: {some or 'none yet'}")
    return found[0]


def _best(plan: Plan, out: Path) -> Cell:
    from mpcc.metrics import METRICS
    from tune.points import DEFAULT_OBJECTIVE, Points, best, search_of

    search = search_of(plan)
    if search is not None:
        front = best(search, Points(out).read(plan, search))
        if not front:
            raise LedgerError("--ablate-from best: no point of the search is complete yet")
        return front[0].cell
    better = METRICS[DEFAULT_OBJECTIVE].higher_is_better
    means = []
    for planned in plan.cells:
        values = [
            ledger.status(out, trial).metrics.get(DEFAULT_OBJECTIVE)
            for trial in ledger.trials(planned.cell, planned.seeds)
        ]
        known = [value for value in values if isinstance(value, float)]
        if known and not planned.variant:
            means.append((sum(known) / len(known), planned.cell))
    if not means:
        raise LedgerError(f"--ablate-from best: no trial has {DEFAULT_OBJECTIVE} yet")
    return (max if better else min)(means, key=lambda pair: pair[0])[1]
