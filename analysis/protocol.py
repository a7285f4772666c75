"""The published figures, and whether a cell of ours was measured as they were.

Only where data, split, counts, weights and iterations agree do the two numbers measure one thing.
Everywhere else the published figure is shown in grey, with what differs, and never subtracted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from analysis.columns import column
from analysis.frame import short
from mpcc.config import PRESETS, Config, full_name, parse_value, value_text

PAPER = Path(__file__).resolve().parent / "paper"

_PREFIX = {"acc_majority": "acc", "inception_score": "is", "fid": "fid", "mse_squared_mean": "mse"}
"""Metric -> prefix of its columns in the published tables."""

_NO_MATTER = ("seed", "cpu_threads", "fast", "eval_every", "max_saturation", "min_diversity")
"""Settings in which a cell may differ from the paper's and still measure the same."""

_FIRST = ("dataset", "split", "image_size", "iterations")
"""What a footnote names first; the rest is counted when there is much of it."""


@dataclass(frozen=True)
class Published:
    """One published figure, in the unit of the records, and as the paper prints it."""

    mean: float
    std: float
    """NaN where none was printed."""
    text: str


@cache
def published_rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a published table as they stand in its file."""
    with (PAPER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def published(row: Mapping[str, str], metric: str) -> Published | None:
    """One figure of a published row; None where the table has none."""
    prefix = _PREFIX.get(metric)
    mean = row.get(f"{prefix}_mean", "") if prefix else ""
    if not mean:
        return None
    std = row.get(f"{prefix}_std", "")
    unit = 0.01 if prefix == "acc" else 1.0
    text = _printed(mean, prefix) + (f" ± {_printed(std, prefix)}" if std else "")
    return Published(float(mean) * unit, float(std) * unit if std else math.nan, text)


def _printed(number: str, prefix: str | None) -> str:
    """With the digits of the paper, which prints its errors ×10⁻³."""
    return f"{Decimal(number).scaleb(3):f}" if prefix == "mse" else number


def table1_settings(row: Mapping[str, str]) -> Config:
    """What the paper's row of Table 1 was run with: CIFAR-10's training images at full size."""
    changes = {full_name(name): parse_value(name, row[name]) for name in ("esteps", "eta_p")}
    return paper_settings("cifar10", **changes)


def paper_settings(dataset: str, **changes: Any) -> Config:
    """The paper's own settings: training images and 50,000 samples for tables 1 to 3."""
    return PRESETS[dataset].override(split="train", n_generated=50_000, n_is_splits=10, **changes)


def differences(ours: Mapping[str, Any], theirs: Config, metric: str) -> list[str]:
    """Names of the settings in which a cell of ours was not measured as theirs, first the gravest.

    The number of generated images counts only for metrics that are computed from them.
    """
    generated = ("n_generated", "n_is_splits")
    needed = column(metric).depends_on
    names = [
        name
        for name, value in theirs.to_dict().items()
        if name not in _NO_MATTER
        and ours[name] != value
        and (name not in generated or name in needed)
    ]
    return sorted(names, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))


def differences_text(ours: Mapping[str, Any], theirs: Config, metrics: Iterable[str]) -> str:
    """A phrase for a footnote: what differs between a cell of ours and the published one."""
    names: dict[str, None] = {}
    for metric in metrics:
        names |= dict.fromkeys(differences(ours, theirs, metric))
    values = theirs.to_dict()
    head = [n for n in names if n in _FIRST]
    tail = [n for n in names if n not in _FIRST]
    parts = [f"{short(n)} {value_text(ours[n])} (paper {value_text(values[n])})" for n in head]
    if tail:
        parts.append("settings " + ", ".join(short(n) for n in tail))
    return "; ".join(parts)
