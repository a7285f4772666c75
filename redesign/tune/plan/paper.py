"""The paper's tables as plans: the cells and seeds that each needs, at full or a smaller scale.

All tables share one base, CIFAR-10's training images, so that a trial which two tables need is run
once: Table 1's last row, Table 2's last row and Table 3a are one cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpcc.config import PRESETS, Config, unknown
from tune.plan.cells import Cell
from tune.plan.grid import TABLE1, table1_rows

BASE_PRESET = "cifar10"

TABLES = {
    "1": "E_steps and η_p: five rows, three seeds",
    "2": "a normal prior, apart and shared, beside the mixture: three rows, five seeds",
    "3a": "unconditional generation: one row, five seeds",
    "3b": "conditional generation: one row, five seeds",
    "4": "clustering of five data sets: five rows, five seeds",
}

N_SEEDS = {"1": 3, "2": 5, "3a": 5, "3b": 5, "4": 5}

DATASETS = ("mnist", "omniglot", "fmnist", "cifar10", "cifar20")


@dataclass(frozen=True)
class Scale:
    """How a smaller plan differs from the paper's."""

    meaning: str
    changes: Mapping[str, object]
    """Fields with one value for every trial."""
    rate_factor: float = 1.0
    """Learning rates are multiplied by it: fewer iterations need longer steps."""


_SMALL: dict[str, object] = {
    "latent_size": 24,
    "ema_decay": 0.99,
    "ema_start": 100,
    "n_is_splits": 5,
}

SCALES = {
    "full": Scale("the paper's settings: a GPU for days", {}),
    "laptop": Scale(
        "16×16 pixels, narrow networks, 1,000 iterations: minutes a trial on one core",
        {"image_size": 16, "width": 4, "iterations": 1_000, "eval_every": 250, "n_generated": 2_000}
        | _SMALL,
        rate_factor=2.5,
    ),
    "minute": Scale(
        "8×8 pixels, 200 iterations: half a minute a trial on one core, to see the road",
        {"image_size": 8, "width": 2, "iterations": 200, "eval_every": 100, "n_generated": 500}
        | _SMALL,
        rate_factor=5.0,
    ),
}


def grid_name(table: str) -> str:
    """What sweep.json calls the plan of a table."""
    return f"table {table}"


def base(scale: str) -> Config:
    """The base settings of every table at a scale. ValueError for an unknown scale."""
    return _settings(BASE_PRESET, scale, {"split": "train", "n_generated": 50_000})


def cells(table: str, scale: str) -> list[Cell]:
    """The cells of a table, each as what it changes of `base`. ValueError for an unknown table."""
    if table not in TABLES:
        raise ValueError(unknown("table", table, TABLES))
    start = base(scale)
    changes: list[dict[str, object]]
    if table == "1":
        factor = SCALES[scale].rate_factor
        rows = [(steps, rate * factor) for steps, rate in table1_rows(BASE_PRESET)]
        changes = [dict(zip(TABLE1, row, strict=True)) for row in rows]
    elif table == "2":
        changes = [
            {"prior": prior, "encoder_shares_discriminator": shares}
            for prior, shares in (
                ("normal", False),
                ("normal", True),
                ("gaussian_mixture", True),
            )
        ]
    elif table == "3a":
        changes = [{}]
    elif table == "3b":
        changes = [{"conditional": True}]
    else:
        changes = [_differences(start, _settings(name, scale, {})) for name in DATASETS]
    return [Cell(start.override(**change, seed=0), change) for change in changes]


def _settings(preset: str, scale: str, changes: Mapping[str, object]) -> Config:
    """A preset at a scale; the scale's `n_generated` is used only where `changes` sets one."""
    if scale not in SCALES:
        raise ValueError(unknown("scale", scale, SCALES))
    chosen, paper = SCALES[scale], PRESETS[preset]
    scaled = dict(chosen.changes)
    if "n_generated" not in changes:
        scaled.pop("n_generated", None)
    rates = {
        "network_lr": paper.network_lr * chosen.rate_factor,
        "prior_lr": paper.prior_lr * chosen.rate_factor,
    }
    return paper.override(**{**changes, **rates, **scaled})


def _differences(start: Config, config: Config) -> dict[str, object]:
    """What `config` changes of `start`; the data set first, and always."""
    was, now = start.to_dict(), config.to_dict()
    return {"dataset": now["dataset"]} | {
        name: now[name] for name in now if name != "seed" and now[name] != was[name]
    }
