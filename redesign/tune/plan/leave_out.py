"""`--ablate`: the full model, and the model without one thing at a time, each a named variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from mpcc.config import VARIANTS, Config, unknown
from tune.plan.cells import Cell, chosen, trials
from tune.plan.plan import FULL_MODEL, Plan, PlanError
from tune.plan.state import Status

NAME = "leave one out"
"""What sweep.json calls the grid of these cells."""

BEST_BY = "cluster_information"
"""The metric that chooses the best cell of a grid: higher is better, and it needs no labels."""

RELATIVE: dict[str, Callable[[Config], Mapping[str, object]]] = {
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


def cells(
    names: Sequence[str], base: Config, start: Mapping[str, object]
) -> list[tuple[str, Cell]]:
    """(variant, cell) of the full model and of each name; all that apply where none is named.

    `start` is what the full model changes of the base settings. PlanError, in one line, for a
    name that is unknown or given twice, or that leaves nothing out of this model.
    """
    full = base.override(**start, seed=0)
    made = [(FULL_MODEL, Cell(full, start))]
    for name in names or LEFT_OUT:
        if name not in RELATIVE and name not in VARIANTS:
            raise PlanError(unknown("variant", name, [*VARIANTS, *RELATIVE]))
        changes = RELATIVE[name](full) if name in RELATIVE else VARIANTS[name]
        try:
            config = full.override(**changes)
        except ValueError:
            if names:
                raise
            continue  # Settings that exclude it: not a part of this model.
        if config.cell_key in {cell.key for _, cell in made}:
            if names:
                raise PlanError(f"--ablate {name} leaves nothing out that is still there")
            continue
        made.append((name, Cell(config, {**start, **changes})))
    return made


def grow(
    plan: Plan, made: Iterable[tuple[str, Cell]], seeds: Sequence[int], *, chosen: bool = False
) -> Plan:
    """The plan with these cells, named; a cell of a grid that is one of them keeps its position.

    chosen: the full model is the best by its results; the plan keeps the seeds that chose it.
    """
    made = list(made)
    known = {planned.cell.key: planned.seeds for planned in plan.cells}
    chose = {**known, **dict.fromkeys(plan.search_points, plan.search_seeds)} if chosen else {}
    names = {cell.key: name for name, cell in made if cell.key not in known or name == FULL_MODEL}
    named = []
    for planned in plan.grow([cell for _, cell in made], seeds, NAME).cells:
        key, variant = planned.cell.key, planned.variant or names.get(planned.cell.key)
        chosen_on = planned.chosen_on
        if variant == FULL_MODEL:
            chosen_on = chosen_on or chose.get(key, ())
        named.append(replace(planned, variant=variant, chosen_on=chosen_on))
    return replace(plan, cells=tuple(named))


def starting_cell(choice: str | None, plan: Plan, best: Callable[[], Cell]) -> Cell:
    """What the full model is: the base settings, or the cell that `--ablate-from` names.

    `best` is called for the choice `best`. GridError where the choice is no choice of a cell,
    PlanError where it names none or several.
    """
    if choice is None:
        planned = [c.cell for c in plan.cells if c.variant == FULL_MODEL]
        return planned[0] if planned else Cell(plan.base, {})
    if choice == "best":
        return best()
    found = [planned.cell for planned in plan.cells if chosen(planned.cell, choice)]
    if len(found) != 1:
        some = "; ".join(cell.text for cell in (found or [p.cell for p in plan.cells])[:6])
        raise PlanError(f"{len(found)} cells are '{choice}'; there are: {some or 'none yet'}")
    return found[0]


def best_cell(plan: Plan, statuses: Mapping[str, Status]) -> Cell:
    """The cell with the highest mean of `BEST_BY`, variants aside; `statuses` by trial key.

    PlanError where no trial has it yet.
    """
    means = []
    for planned in plan.cells:
        keys = [trial.key for trial in trials(planned.cell, planned.seeds)]
        values = [statuses[key].metrics.get(BEST_BY) for key in keys if key in statuses]
        known = [value for value in values if isinstance(value, float)]
        if known and not planned.variant:
            means.append((sum(known) / len(known), planned.cell))
    if not means:
        raise PlanError(f"--ablate-from best: no trial has {BEST_BY} yet")
    return max(means, key=lambda pair: pair[0])[1]
