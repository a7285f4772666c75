"""Cells and trials. A cell is a configuration without its seed; a trial is a cell and a seed.

Both have stable keys (`Config.cell_key`, `Config.trial_key`), so the same grid always means the
same trials.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mpcc.config import SHORT, Config, parse_settings, training_cell_key, trial_key, value_text


@dataclass(frozen=True)
class Cell:
    """A configuration, and its changes of the base settings by full field names."""

    config: Config
    changes: Mapping[str, object]
    variant: str | None = None
    """Its name in an ablation that leaves out one thing at a time (`tune.plan.leave_out`)."""

    @classmethod
    def of(cls, base: Config, changes: Mapping[str, object], variant: str | None = None) -> Cell:
        """The cell of the base settings with these changes; ValueError if they are invalid."""
        config = base.override(**changes, seed=0)
        return cls(config, {name: getattr(config, name) for name in changes}, variant)

    @cached_property
    def key(self) -> str:
        """The configuration's `cell_key`."""
        return self.config.cell_key

    @cached_property
    def training_key(self) -> str:
        """The key of the cell's training: equal for cells that only evaluate differently."""
        return training_cell_key(self.config)

    @property
    def text(self) -> str:
        """The cell's changes by short names: `esteps=4, eta_p=5e-3`, or `base settings`."""
        changes = self.changes.items()
        parts = [f"{SHORT.get(name, name)}={value_text(value)}" for name, value in changes]
        return ", ".join(parts) or "base settings"


@dataclass(frozen=True)
class Trial:
    """A cell and a seed."""

    cell: Cell
    seed: int
    config: Config
    key: str

    @property
    def training_key(self) -> str:
        """The key of the trial's training: equal for trials that train the same model."""
        return trial_key(self.cell.training_key, self.seed)

    @property
    def text(self) -> str:
        """The cell's text and the seed: `esteps=4, eta_p=5e-3, seed=0`."""
        return f"{self.cell.text}, seed={self.seed}"


def trials(cell: Cell, seeds: Iterable[int]) -> list[Trial]:
    """The trials of one cell."""
    return [
        Trial(cell, seed, cell.config.override(seed=seed), trial_key(cell.key, seed))
        for seed in seeds
    ]


def by_cell(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials of each cell, in the order of the cells' first trials."""
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell.key, []).append(trial)
    return list(cells.values())


def chosen(one: Cell | Trial, choice: str) -> bool:
    """Whether `choice` matches: settings (`esteps=4,eta_p=5e-3`; for a trial also `seed=3`), or the
    first 4 to 12 characters of the cell's key."""
    if re.fullmatch(r"[0-9a-f]{4,12}", choice):
        return one.config.cell_key.startswith(choice)
    settings = parse_settings(choice).items()
    return all(getattr(one.config, name) == value for name, value in settings)
