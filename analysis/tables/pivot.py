"""Cells laid out by any fields: for pandas as a summary frame, for the command line as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.records.frame import short
from analysis.tables.groups import Group, groups_of
from analysis.tables.shared import shown_metrics
from mpcc.config import DEFAULTS, full_name, unknown, value_text
from mpcc.evaluation.metrics import METRICS

STATISTICS = ("mean", "std", "n", "planned", "low", "high")
"""Of a summary frame: `std` with ddof 1, `low` and `high` of the 95 % interval of the mean."""

Place = tuple[tuple[Any, ...], tuple[Any, ...]]
"""The values of a cell in the fields of the rows and in those of the columns."""


def summarise(
    trials: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    *,
    fresh: bool = False,
    pool_code: bool = False,
) -> pd.DataFrame:
    """Mean, std, n, planned, low and high of every cell and metric, over its seeds.

    trials: a row per trial, as `analysis.load` gives them, or a part of those rows.
    metrics: names of METRICS, those of the grid's table by default; values are in recorded units.
    rows, columns: fields by any of their names; by default what was swept is in the rows.
    fresh: only the seeds that confirm a choice; without it, only the others.
    pool_code: average trials of different code versions.
    Its columns are (metric, values of `columns`, statistic); trials of a cell that are unlike stand
    in rows of their own, by `part`. Raises ValueError, in one line, for an unknown name and for
    fields that do not tell the cells apart.
    """
    cells = groups_of(trials, pool_code=pool_code, confirm=fresh)
    across = [field_name(name) for name in columns]
    down = [field_name(name) for name in rows] if rows is not None else _axes(trials, cells, across)
    if any(cell.part for cell in cells):
        down.append("part")
    names = known_metrics(metrics, trials) if metrics is not None else shown_metrics(cells)
    placed = arrange(cells, down, across)
    index = list(dict.fromkeys(row for row, _ in placed))
    heads = list(dict.fromkeys(column for _, column in placed))
    data = {
        (metric, *head, name): [_figures(placed.get((row, head)), metric)[name] for row in index]
        for metric in names
        for head in heads
        for name in STATISTICS
    }
    levels = pd.MultiIndex.from_tuples(list(data), names=["metric", *across, "statistic"])
    frame = pd.DataFrame(dict(enumerate(data.values())), index=_index(index, down))
    return frame.set_axis(levels, axis=1)


def _figures(cell: Group | None, metric: str) -> dict[str, float]:
    if cell is None:
        return dict.fromkeys(STATISTICS, float("nan")) | {"n": 0, "planned": 0}
    summary = cell.summary(metric)
    mean = summary.mean
    values = (mean.estimate, summary.std, summary.n, summary.n_planned, mean.low, mean.high)
    return dict(zip(STATISTICS, values, strict=True))


def _index(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> pd.Index:
    if not names:
        return pd.Index(["base settings"] * len(rows))
    if len(names) == 1:
        return pd.Index([row[0] for row in rows], name=names[0])
    return pd.MultiIndex.from_tuples(rows, names=names)


def field_name(name: str) -> str:
    """A field of Config by any of its names, or `variant`; ValueError names the nearest."""
    return name if name in ("variant", "part") else full_name(name)


def known_metrics(names: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """These metrics by name or printed label; ValueError for one that no trial and no list has."""
    labels = {metric.label: name for name, metric in METRICS.items()}
    found = [labels.get(name, name) for name in names]
    for name in found:
        if name not in METRICS and name not in trials.columns:
            raise ValueError(unknown("metric", name, METRICS))
    return list(dict.fromkeys(found))


def _axes(trials: pd.DataFrame, cells: Sequence[Group], across: Sequence[str]) -> list[str]:
    """What was swept, but for what stands in the columns; of a frame made by hand, what differs."""
    names = ["variant"] if any(cell.variant for cell in cells) else []
    swept = trials.attrs.get("axes")
    if swept is None:
        swept = () if names else [n for n in DEFAULTS if n != "seed" and _levels(cells, n) > 1]
    return [n for n in (*names, *swept) if n != "seed" and n not in across]


def _levels(cells: Sequence[Group], name: str) -> int:
    return len({value_text(cell.settings[name]) for cell in cells})


def arrange(
    cells: Sequence[Group], rows: Sequence[str], columns: Sequence[str]
) -> Mapping[Place, Group]:
    """The cell at each place; ValueError, in one line, where two cells would share one."""
    placed: dict[Place, Group] = {}
    for cell in cells:
        place = _values(cell, rows), _values(cell, columns)
        other = placed.setdefault(place, cell)
        if other is not cell:
            told = {*rows, *columns}
            names = [n for n in cell.settings if n not in told]
            differ = [short(n) for n in names if cell.settings[n] != other.settings[n]]
            raise ValueError(
                f"rows and columns do not tell the cells apart, which differ in "
                f"{', '.join(differ) or 'what may be averaged'}: add it to --rows or --columns"
            )
    return placed


def _values(cell: Group, names: Sequence[str]) -> tuple[Any, ...]:
    own = {"variant": cell.variant or "", "part": cell.part}
    return tuple(own[n] if n in own else cell.settings[n] for n in names)
