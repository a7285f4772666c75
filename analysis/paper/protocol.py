"""The published figures, and whether a cell of ours was measured as they were.

The two numbers measure the same thing only if data, split, counts, weights and iterations agree.
Otherwise the published figure is shown in grey, with what differs, and is never subtracted.
"""

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
from analysis.tables.shared import distinct
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
"""Settings in which a cell may differ from the paper's and still measure the same thing."""

_FIRST = ("dataset", "split", "image_size", "iterations")
"""Settings that a footnote gives first; of more than two others it gives only the names."""


IMAGES = {
    ("cifar10", "train"): 50_000,
    ("cifar10", "all"): 60_000,
    ("cifar20", "all"): 60_000,
    ("mnist", "all"): 70_000,
    ("fmnist", "all"): 70_000,
    ("omniglot", "all"): 40_000,
}
"""Images in the official files: a cell on another number was not measured as the paper's."""


@dataclass(frozen=True)
class Published:
    """One published figure, in the unit of the records, and as the paper prints it."""

    mean: float
    std: float
    """NaN if none was printed."""
    text: str


@cache
def published_rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a published table as they stand in its file."""
    with (PAPER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def published(row: Mapping[str, str], metric: str) -> Published | None:
    """One figure of a published row; None if the table has none."""
    prefix = _PREFIX.get(metric)
    mean = row.get(f"{prefix}_mean", "") if prefix else ""
    if not mean:
        return None
    std = row.get(f"{prefix}_std", "")
    unit = 0.01 if prefix == "acc" else 1.0
    text = _printed(mean, prefix) + (f" ± {_printed(std, prefix)}" if std else "")
    return Published(float(mean) * unit, float(std) * unit if std else math.nan, text)


def _printed(number: str, prefix: str | None) -> str:
    """The number with the digits of the paper, which prints mean squared errors ×10⁻³."""
    return f"{Decimal(number).scaleb(3):f}" if prefix == "mse" else number


def table1_settings(row: Mapping[str, str]) -> Config:
    """What the paper's row of Table 1 was run with: CIFAR-10's training images at full size."""
    changes = {full_name(name): parse_value(name, row[name]) for name in ("esteps", "eta_p")}
    return paper_settings("cifar10", **changes)


def paper_settings(dataset: str, **changes: Any) -> Config:
    """The paper's own settings: training images and 50,000 samples for tables 1 to 3."""
    return PRESETS[dataset].override(split="train", n_generated=50_000, n_is_splits=10, **changes)


def differences(ours: Mapping[str, Any], theirs: Config, metric: str) -> list[str]:
    """Names of the settings in which our cell differs from the paper's, those of _FIRST first.

    The number of generated images counts only for metrics that are computed from them.
    """
    apart = {*_NO_MATTER, *({"n_generated", "n_is_splits"} - {*column(metric).depends_on})}
    names = [n for n, v in theirs.to_dict().items() if n not in apart and ours[n] != v]
    return sorted(names, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))


def gap(group: Group, theirs: Config, metrics: Iterable[str]) -> str:
    """What differs between how a cell of ours and the published one were measured, for a footnote.

    Empty if nothing differs: same settings, the number of images in the official files, no notes on
    the data, and every finished trial at the paper's last iteration.
    """
    ours, values = group.settings, theirs.to_dict()
    names = dict.fromkeys(name for m in metrics for name in differences(ours, theirs, m))
    rest = [name for name in names if name not in _FIRST]
    named = [name for name in names if name in _FIRST or len(rest) <= 2]
    parts = [f"{short(n)} {value_text(ours[n])} (paper {value_text(values[n])})" for n in named]
    if len(rest) > 2:
        parts.append("settings " + ", ".join(short(n) for n in rest))
    reached, images = _distinct(group, "iteration"), _distinct(group, "n_images")
    if reached and reached != [f"{ours['iterations']:,}"]:
        parts.append(f"iterations reached {' and '.join(reached)} (paper {theirs.iterations:,})")
    count = IMAGES.get((theirs.dataset, theirs.split))
    same_set = (ours["dataset"], ours["split"]) == (theirs.dataset, theirs.split)
    if group.done and count and same_set and images != [f"{count:,}"]:
        parts.append(f"{' and '.join(images) or 'unknown number of'} images (paper {count:,})")
    return "; ".join([*parts, *_distinct(group, "data_notes")])


def _distinct(group: Group, name: str) -> list[str]:
    return [text.rstrip(".") for text in distinct(trial[name] for trial in group.done)]


def against(
    group: Group, row: Mapping[str, str], theirs: Config, metrics: Iterable[str]
) -> tuple[str, str]:
    """The `gap` between a cell of ours and a published row, and, if empty, ours minus theirs.

    Each is a text, empty if there is nothing to say.
    """
    figures = {metric: published(row, metric) for metric in metrics}
    what = gap(group, theirs, [metric for metric, figure in figures.items() if figure])
    parts = []
    for metric, figure in figures.items():
        summary, spec = group.summary(metric), column(metric)
        if what or figure is None or not summary.n:
            continue
        difference = summary.mean.estimate - figure.mean
        inside = "within" if abs(difference) <= figure.std else "outside"
        spread = "no published spread" if math.isnan(figure.std) else f"{inside} one published SD"
        parts.append(f"{spec.label} {spec.signed(difference, unit=True)}, {spread}")
    within = f"Same protocol as published; ours minus theirs: {'; '.join(parts)}."
    return what, within if parts else ""
