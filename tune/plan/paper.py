"""The paper's tables as plans: the cells and seeds that each needs, at full or a smaller scale.

All tables share one base, CIFAR-10's training images, so that a trial which two tables need is run
once: Table 1's last row, Table 2's last row and Table 3a are one cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpcc.config import PRESETS, Config, unknown
from tune.plan.cells import Cell
from tune.plan.grid import table1_rows

BASE_PRESET = "cifar10"
FULL = "full"

TABLES = {
    "1": 3,  # E_steps and η_p: five rows
    "2": 5,  # a normal prior, apart and shared, beside the mixture: three rows
    "3a": 5,  # unconditional generation: one row
    "3b": 5,  # conditional generation: one row
    "4": 5,  # clustering of five data sets: five rows
}
"""Table -> its number of seeds."""

DATASETS = ("mnist", "omniglot", "fmnist", "cifar10", "cifar20")


@dataclass(frozen=True)
class Scale:
    """The differences of a smaller plan from the paper's."""

    meaning: str
    changes: Mapping[str, object]
    """Fields with one value for every trial."""
    rate_factor: float = 1.0
    """Learning rates are multiplied by it: fewer iterations need longer steps."""
    n_generated: int = 50_000
    """Generated images of each trial; Table 4 has none."""


_SMALL: dict[str, object] = {
    "latent_size": 24,
    "ema_decay": 0.99,
    "ema_start": 100,
    "n_is_splits": 5,
}

SCALES = {
    FULL: Scale("the paper's settings: a GPU for days", {}),
    "laptop": Scale(
        "16×16 pixels, narrow networks, 1,000 iterations: minutes a trial on one core",
        _SMALL | {"image_size": 16, "width": 4, "iterations": 1_000, "eval_every": 250},
        rate_factor=2.5,
        n_generated=2_000,
    ),
    "minute": Scale(
        "8×8 pixels, 200 iterations: half a minute a trial on one core, for a quick test",
        _SMALL | {"image_size": 8, "width": 2, "iterations": 200, "eval_every": 100},
        rate_factor=5.0,
        n_generated=500,
    ),
}


def base(scale: str) -> Config:
    """The base settings of every table at a scale. ValueError for an unknown scale."""
    settings = _scaled(BASE_PRESET, scale)
    return settings.override(split="train", n_generated=SCALES[scale].n_generated)


def cells(table: str, scale: str, changes: Mapping[str, object]) -> list[Cell]:
    """The cells of a table, each stored as its differences from `base` with these changes.

    ValueError for an unknown table or scale.
    """
    if table not in TABLES:
        raise ValueError(unknown("table", table, TABLES))
    start = base(scale)
    names, factor = ("prior", "encoder_shares_discriminator"), SCALES[scale].rate_factor
    priors = (("normal", False), ("normal", True), ("gaussian_mixture", True))
    rows: dict[str, list[dict[str, object]]] = {
        "1": [
            {"n_encoder_steps": n, "prior_lr": _scaled_rate(rate, factor)}
            for n, rate in table1_rows(BASE_PRESET)
        ],
        "2": [dict(zip(names, row, strict=True)) for row in priors],
        "3a": [{}],
        "3b": [{"conditional": True}],
        "4": [_differences(start, _scaled(name, scale)) for name in DATASETS],
    }
    return [
        Cell.of(start.override(**changes), {n: v for n, v in row.items() if n not in changes})
        for row in rows[table]
    ]


def _scaled(preset: str, scale: str) -> Config:
    """A preset at a scale."""
    if scale not in SCALES:
        raise ValueError(unknown("scale", scale, SCALES))
    settings, factor = PRESETS[preset], SCALES[scale].rate_factor
    names = ("network_lr", "prior_lr")
    rates = {name: _scaled_rate(getattr(settings, name), factor) for name in names}
    return settings.override(**SCALES[scale].changes, **rates)


def _scaled_rate(rate: float, factor: float) -> float:
    """The product in 6 digits, as it is typed: 0.0029999999999999996 would give another key."""
    return float(f"{rate * factor:.6g}")


def _differences(start: Config, config: Config) -> dict[str, object]:
    """The settings of `config` that differ from `start`, and always the data set, first."""
    was, now = start.to_dict(), config.to_dict()
    return {"dataset": now["dataset"]} | {
        name: now[name] for name in now if name != "seed" and now[name] != was[name]
    }
