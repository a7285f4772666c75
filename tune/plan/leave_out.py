"""`--ablate`: the full model, and the model without one thing at a time, each a named variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpcc.config import VARIANTS, Config, unknown, without_dead
from tune.plan.cells import Cell, chosen
from tune.plan.plan import FULL_MODEL, Plan, PlanError

NAME = "leave one out"
"""The name of these cells' grid in sweep.json."""

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
"""The variants of `--ablate` without names. They leave out the mixture, the shared blocks, further
encoder steps, Loss III, the threshold of σ, the moving average, a learning rate of the prior's own,
and the latent code at every block."""


def cells(base: Config, start: Mapping[str, object], names: Sequence[str]) -> list[Cell]:
    """The full model and the model without each of the parts `names`; by default all that it has.

    start: the full model's changes of the base settings. PlanError, in one line, for a name that is
    unknown or given twice, or that leaves nothing out of this model.
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
            continue  # The settings exclude it: the model does not have that part.
        trained = without_dead(cell.config)
        if all(trained != without_dead(other.config) for other in made):
            made.append(cell)
        elif names:
            raise PlanError(
                f"--ablate {name} changes nothing: the full model does not have that part, or "
                "another name leaves it out"
            )
    return made


def starting_cell(plan: Plan, choice: str | None) -> Cell:
    """The cell `choice` if given, else the plan's full model, else the base settings.

    PlanError if the choice matches no cell or several.
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
