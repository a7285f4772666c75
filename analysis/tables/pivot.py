"""Cells laid out by any fields: for pandas as a summary frame, for the command line as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.records.frame import NAMED, Records, short
from analysis.tables.columns import GRID, column, metric_name
from analysis.tables.grid import setting_cell
from analysis.tables.groups import Group, groups_of
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    kmeans_rows,
    measured_of,
    progress,
    shown_metrics,
    value_cells,
)
from mpcc.config import DEFAULTS, full_name, unknown, value_text
from mpcc.evaluation.metrics import METRICS
from mpcc.evaluation.shown import COSTS

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
    down, across = fields_of(cells, rows, columns, trials.attrs.get("axes"))
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
    """These metrics by name or printed label, `all` of them where that is asked for.

    Raises ValueError for one that neither METRICS nor any trial has.
    """
    if [*names] == ["all"]:
        return [name for name in METRICS if name in trials.columns] or [GRID[0]]
    found = [metric_name(name) for name in names]
    # What trials measured that METRICS does not know: another version's metrics.
    recorded = {*trials.columns} - NAMED
    for name in found:
        if name not in METRICS and name not in COSTS and name not in recorded:
            raise ValueError(unknown("metric", name, [*METRICS, *COSTS]))
    return list(dict.fromkeys(found))


def fields_of(
    cells: Sequence[Group],
    rows: Sequence[str] | None,
    columns: Sequence[str],
    swept: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """The fields of the rows and of the columns, by their full names.

    rows: by default what was swept but for what stands in the columns; where that is not known,
    what differs. `part` is added where trials of a cell are unlike.
    """
    across = [field_name(name) for name in columns]
    if rows is None:
        names = ["variant"] if any(cell.variant for cell in cells) else []
        if swept is None:
            every = () if names else DEFAULTS
            swept = [n for n in every if n != "seed" and _levels(cells, n) > 1]
        down = [n for n in (*names, *swept) if n != "seed" and n not in across]
    else:
        down = [field_name(name) for name in rows]
    twice = next((n for n in down if n in across), None)
    if twice:
        raise ValueError(f"{short(twice)} stands in both --rows and --columns; choose one")
    return down + ["part"] * any(cell.part for cell in cells), across


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


def layout_table(
    records: Records,
    cells: Sequence[Group],
    test: str,
    metrics: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = (),
) -> Table:
    """`summarise` as a table: without `columns` a column per metric, else one per value of them.

    Raises ValueError, in one line, as `summarise` does.
    """
    down, across = fields_of(cells, rows, columns, records.axes)
    asked = known_metrics(metrics, records.trials) if metrics else shown_metrics(cells)
    names = measured_of(cells, asked)
    placed = arrange(cells, down, across)
    heads = list(dict.fromkeys(column for _, column in placed))
    by = " × ".join(map(short, (*down, *across))) or "seeds"
    dataset = " and ".join(sorted({cell.settings["dataset"] for cell in cells}))
    several = bool(across) and len(names) > 1
    what = f"{column(names[0]).heading}: " if across and not several else ""
    title = f"{what}{by} on {dataset}: {progress(cells)}"
    table = Table("layout", title, counts=counts_differ(cells))
    texts = {
        (metric, id(cell)): shown
        for metric in names
        for cell, shown in zip(cells, value_cells(table, cells, metric, test), strict=True)
    }
    table.headings = [Heading(short(name), name != "variant") for name in down]
    table.headings += [Heading("metric", numeric=False)] * several
    for place in heads if across else ():
        table.headings.append(Heading(", ".join(map(_placed_text, across, place))))
    for metric in () if across else names:
        table.headings.append(Heading(column(metric).heading))
    for row in dict.fromkeys(row for row, _ in placed):
        label = [_label(name, value) for name, value in zip(down, row, strict=True)]
        for group in [[m] for m in names] if across else [names]:
            head = [Cell(column(group[0]).heading)] * several
            found = [(m, placed.get((row, place))) for place in heads for m in group]
            values = [texts[m, id(cell)] if cell else Cell("") for m, cell in found]
            table.rows.append(Row((*label, *head, *values)))
    if not across:
        table.rows += kmeans_rows(table, cells, len(down), names)
    return explain_numbers(table, records, cells, asked, test)


def _label(name: str, value: Any) -> Cell:
    """The first cells of a row: a setting, a variant or a part."""
    cell = setting_cell(value)
    return Cell(str(value) or "–", sort=cell.sort) if name in ("variant", "part") else cell


def _placed_text(name: str, value: Any) -> str:
    """A column's setting; of text, which speaks for itself, without its name."""
    text = _label(name, value).text
    return text if isinstance(value, str) else f"{short(name)} {text}"
