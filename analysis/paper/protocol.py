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

from analysis.records.frame import short
from analysis.tables.columns import column
from analysis.tables.groups import Group
from mpcc.config import PRESETS, Config, full_name, parse_value, value_text

PAPER = Path(__file__).resolve().parent / "published"

_PREFIX = {"acc_majority": "acc", "inception_score": "is", "fid": "fid", "mse_published": "mse"}
"""Metric -> prefix of its columns in the published tables."""

_NO_MATTER = (
    "seed",
    "cpu_threads",
    "fast",
    "eval_every",
    "eval_split",
    "max_saturation",
    "min_diversity",
)
"""Settings in which a cell may differ from the paper's and still measure the same."""

_FIRST = ("dataset", "split", "image_size", "iterations")
"""What a footnote names first; the rest is counted when there is much of it."""


IMAGES = {
    ("cifar10", "train"): 50_000,
    ("cifar10", "all"): 60_000,
    ("cifar20", "all"): 60_000,
    ("mnist", "all"): 70_000,
    ("fmnist", "all"): 70_000,
    ("omniglot", "all"): 40_000,
}
"""Images of the official files: a cell on fewer was not measured as the paper's."""


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
    if len(tail) <= 2:
        head, tail = head + tail, []
    parts = [f"{short(n)} {value_text(ours[n])} (paper {value_text(values[n])})" for n in head]
    if tail:
        parts.append("settings " + ", ".join(short(n) for n in tail))
    return "; ".join(parts)


def gap(group: Group, theirs: Config, metrics: Iterable[str]) -> str:
    """What differs between how a cell of ours and the published one were measured.

    Empty where nothing does: same settings, as many images, those of the official files, and every
    finished trial at the paper's last iteration.
    """
    parts = [differences_text(group.settings, theirs, metrics), *_measured(group, theirs)]
    return "; ".join(part for part in parts if part)


def _measured(group: Group, theirs: Config) -> list[str]:
    """What the records say beyond the settings: iterations reached, images, notes on the images."""
    parts = []
    reached = _distinct(group, "iteration")
    if reached and reached != [f"{group.settings['iterations']:,}"]:
        parts.append(f"iterations reached {' and '.join(reached)} (paper {theirs.iterations:,})")
    images, count = _distinct(group, "n_images"), IMAGES.get((theirs.dataset, theirs.split))
    same_set = all(group.settings[n] == getattr(theirs, n) for n in ("dataset", "split"))
    if group.done and count and same_set and images != [f"{count:,}"]:
        parts.append(f"{' and '.join(images) or 'unknown number of'} images (paper {count:,})")
    return parts + _distinct(group, "data_notes")


def _distinct(group: Group, name: str) -> list[str]:
    values = sorted({t[name] for t in group.done} - {None}, key=str)
    return [f"{v:,}" if isinstance(v, int) else str(v).rstrip(".") for v in values]


def within(group: Group, figures: Mapping[str, Published | None]) -> str:
    """Ours minus theirs under the same protocol, and whether ours lies within their spread."""
    parts = []
    for metric, figure in figures.items():
        summary, spec = group.summary(metric), column(metric)
        if figure is None or not summary.n:
            continue
        difference = summary.mean.estimate - figure.mean
        inside = "within" if abs(difference) <= figure.std else "outside"
        spread = "no published spread" if math.isnan(figure.std) else f"{inside} their spread"
        sign = "+" if difference >= 0 else "−"
        parts.append(f"{spec.label} {sign}{spec.difference(abs(difference))}, {spread}")
    return "Same protocol as published; ours minus theirs: " + "; ".join(parts) + "."
