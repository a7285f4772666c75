"""Cells and trials. A cell is a configuration without its seed; a trial is a cell and a seed.

Both have stable keys (`Config.cell_key`, `Config.trial_key`), so the same grid always means the
same trials.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mpcc.config import SHORT, Config, full_name, parse_value, trial_key, value_text


class GridError(ValueError):
    """A grid, a list of seeds or a choice of cells that makes no sense; the message is one line."""


@dataclass(frozen=True)
class Cell:
    """A configuration, and what it changes of the base settings, by full field names."""

    config: Config
    changes: Mapping[str, object]

    @cached_property
    def key(self) -> str:
        """The configuration's `cell_key`."""
        return self.config.cell_key

    @property
    def text(self) -> str:
        """What the cell changes as people read it, see `cell_text`."""
        return cell_text(self.changes)


@dataclass(frozen=True)
class Trial:
    """A cell and a seed."""

    cell: Cell
    seed: int
    config: Config
    key: str

    @property
    def text(self) -> str:
        """What the trial is as people read it: `esteps=4, eta_p=5e-3, seed=0`."""
        return f"{self.cell.text}, seed={self.seed}"


def cell_text(changes: Mapping[str, object]) -> str:
    """What a cell changes as people read it: `esteps=4, eta_p=5e-3`."""
    parts = [f"{SHORT.get(name, name)}={value_text(value)}" for name, value in changes.items()]
    return ", ".join(parts) or "base settings"


def trials(cell: Cell, seeds: Iterable[int]) -> list[Trial]:
    """The trials of one cell."""
    return [
        Trial(cell, seed, cell.config.with_seed(seed), trial_key(cell.key, seed)) for seed in seeds
    ]


def by_cell(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials of each cell, in the order of the cells' first trials."""
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell.key, []).append(trial)
    return list(cells.values())


def chosen(cell: Cell, choice: str) -> bool:
    """Whether `choice` names this cell: settings it has (`esteps=4,eta_p=5e-3`), or its key."""
    if re.fullmatch(r"[0-9a-f]{4,12}", choice):
        return cell.key.startswith(choice)
    for part in re.split(r"[,\s]+", choice.strip()):
        name, equals, text = part.partition("=")
        if not equals:
            raise GridError(
                f"'{choice}' names no cell: give settings like esteps=4, or a cell's key"
            )
        if getattr(cell.config, full_name(name)) != parse_value(name, text):
            return False
    return True
