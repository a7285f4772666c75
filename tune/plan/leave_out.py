"""`--ablate`: the full model, and the model without one thing at a time, each a named variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpcc.config import VARIANTS, Config, unknown, without_dead
from tune.plan.cells import Cell, chosen
from tune.plan.plan import FULL_MODEL, Plan, PlanError

NAME = "leave one out"
"""What sweep.json calls the grid of these cells."""

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


def cells(base: Config, start: Mapping[str, object], names: Sequence[str]) -> list[Cell]:
    """The full model and the model without each of these; all that apply where none is named.

    `start` is what the full model changes of the base settings. PlanError, in one line, for a
    name that is unknown or given twice, or that leaves nothing out of this model.
    """
    full = Cell.of(base, start, FULL_MODEL)
    made = [full]
    variants = {**VARIANTS, "equal-rates": {"prior_lr": full.config.network_lr}}
    for name in names or LEFT_OUT:
        if name not in variants:
            raise PlanError(unknown("variant", name, variants))
        try:
            cell = Cell.of(base, {**start, **variants[name]}, name)
        except ValueError:
            if names:
                raise
            continue  # Settings that exclude it: not a part of this model.
        alike = without_dead(cell.config)
        if all(alike != without_dead(other.config) for other in made):
            made.append(cell)
        elif names:
            raise PlanError(f"--ablate {name} leaves nothing out that is still there")
    return made


def starting_cell(plan: Plan, choice: str | None) -> Cell:
    """What the full model is: that of the plan, else the base settings, or the `choice` of a cell.

    PlanError where the choice names no cell or several.
    """
    known = [planned.cell for planned in plan.cells]
    if choice is None:
        full = (cell for cell in known if cell.variant == FULL_MODEL)
        return next(full, Cell.of(plan.base, {}))
    found = [cell for cell in known if chosen(cell, choice)]
    if len(found) != 1:
        some = "; ".join(cell.text for cell in (found or known)[:6])
        raise PlanError(f"{len(found)} cells are '{choice}'; there are: {some or 'none yet'}")
    return found[0]
