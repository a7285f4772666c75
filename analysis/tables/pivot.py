"""Cells laid out by any fields: as a pandas DataFrame, and as a table for the command line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.records.frame import NAMED, Records, short
from analysis.tables.columns import GRID, column, metric_name
from analysis.tables.groups import Group, groups
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    kmeans_rows,
    measured_of,
    progress,
    row_notes,
    shown_metrics,
    value_cells,
)
from mpcc.config import DEFAULTS, full_name, unknown, value_text
from mpcc.evaluation.metrics import COSTS, METRICS

STATISTICS = ("mean", "std", "n", "planned", "low", "high")
"""Statistics of a cell: `std` with ddof 1, `low` and `high` of the 95 % interval of the mean."""

Values = tuple[Any, ...]
Arranged = Mapping[Values, Mapping[Values, Group]]
"""The values of the rows' fields -> those of the columns' fields -> the cell."""


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
    The columns are (metric, values of `columns`, statistic); trials of a cell that are not
    comparable have separate rows, by `part`. Raises ValueError, with a one-line message, for an
    unknown name and for fields that do not distinguish the cells.
    """
    cells = groups(trials, pool_code=pool_code, confirm=fresh)
    down, across = fields_of(cells, rows, columns, trials.attrs.get("axes"))
    names = known_metrics(metrics, trials) if metrics is not None else shown_metrics(cells)
    rows_of = arrange(cells, down, across)
    heads = dict.fromkeys(_values(cell, across) for cell in cells)
    data = [
        [x for metric in names for head in heads for x in _figures(row.get(head), metric)]
        for row in rows_of.values()
    ]
    over = [(metric, *head, name) for metric in names for head in heads for name in STATISTICS]
    levels = pd.MultiIndex.from_tuples(over, names=["metric", *across, "statistic"])
    return pd.DataFrame(data, index=_index([*rows_of], down), columns=levels)


def _figures(cell: Group | None, metric: str) -> tuple[float, ...]:
    """STATISTICS of a cell; NaN and zero seeds if there is no cell."""
    if cell is None:
        return (math.nan, math.nan, 0, 0, math.nan, math.nan)
    summary = cell.summary(metric)
    mean = summary.mean
    return (mean.estimate, summary.std, summary.n, summary.n_planned, mean.low, mean.high)


def _index(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> pd.Index:
    if not names:
        return pd.Index(["base settings"] * len(rows))
    if len(names) == 1:
        return pd.Index([row[0] for row in rows], name=names[0])
    return pd.MultiIndex.from_tuples(rows, names=names)


def field_name(name: str) -> str:
    """Full name of a field of Config, or `variant` or `part`; ValueError suggests the nearest."""
    return name if name in ("variant", "part") else full_name(name)


def known_metrics(names: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """Names of the metrics given by name or printed label; ["all"]: every metric of the trials.

    Raises ValueError for a metric that neither METRICS nor any trial has.
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

    rows: by default the swept fields without those of the columns; if `swept` is None, the settings
    that differ. `part` is added if trials of a cell are not comparable.
    """
    across = [field_name(name) for name in columns]
    if rows is None:
        names = ["variant"] if any(cell.variant for cell in cells) else []
        if swept is None:
            every = () if names else DEFAULTS
            levels = {n: {value_text(c.settings[n]) for c in cells} for n in every if n != "seed"}
            swept = [name for name, found in levels.items() if len(found) > 1]
        down = [n for n in (*names, *swept) if n != "seed" and n not in across]
    else:
        down = [field_name(name) for name in rows]
    twice = next((n for n in down if n in across), None)
    if twice:
        raise ValueError(f"{short(twice)} is in both rows and columns; choose one")
    return down + ["part"] * any(cell.part for cell in cells), across


def arrange(cells: Sequence[Group], rows: Sequence[str], columns: Sequence[str]) -> Arranged:
    """The cell at each place; ValueError, with a one-line message, if two would share a place."""
    placed: dict[Values, dict[Values, Group]] = {}
    for cell in cells:
        row = placed.setdefault(_values(cell, rows), {})
        other = row.setdefault(_values(cell, columns), cell)
        if other is not cell:
            told = {*rows, *columns}
            names = [n for n in cell.settings if n not in told]
            differ = [short(n) for n in names if cell.settings[n] != other.settings[n]]
            raise ValueError(
                f"rows and columns do not tell the cells apart, which differ in "
                f"{', '.join(differ) or 'what may be averaged'}: add it to one of them"
            )
    return placed


def _values(cell: Group, names: Sequence[str]) -> tuple[Any, ...]:
    own = {"variant": cell.variant or "", "part": cell.part, "key": cell.key}
    return tuple(own[n] if n in own else cell.settings[n] for n in names)


def layout_table(
    records: Records,
    cells: Sequence[Group],
    test: str,
    metrics: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = (),
) -> Table:
    """`summarise` as a table: a column per metric or, given `columns`, per value of these fields.

    Raises ValueError, with a one-line message, as `summarise` does.
    """
    down, across = fields_of(cells, rows, columns, records.axes)
    asked = known_metrics(metrics, records.trials) if metrics else shown_metrics(cells)
    names = measured_of(cells, asked)
    by = " × ".join(map(short, (*down, *across))) or "seeds"
    what = f"{column(names[0]).heading}: " if across and len(names) == 1 else ""
    table = table_of("layout", what + by, cells, (down, across), names, test)
    return explain_numbers(table, records, cells, asked, test)


def table_of(
    name: str,
    what: str,
    cells: Sequence[Group],
    fields: tuple[Sequence[str], Sequence[str]],
    metrics: Sequence[str],
    test: str,
    *,
    each: bool = False,
) -> Table:
    """A table of these cells, labelled by the fields of its rows and of its columns.

    what: the beginning of its title. each: one row per cell, even if cells have the same label.
    """
    down, across = fields
    labels = down or ["cell"]
    placed = arrange(cells, ["key"] if each else down, across)
    heads = list(dict.fromkeys(_values(cell, across) for cell in cells))
    dataset = " and ".join(sorted({cell.settings["dataset"] for cell in cells}))
    table = Table(name, f"{what} on {dataset}: {progress(cells)}", counts=counts_differ(cells))
    several = bool(across) and len(metrics) > 1
    texts = {}
    for metric in metrics:
        for cell, shown in zip(cells, value_cells(table, cells, metric, test), strict=True):
            own = row_notes(table, cell) if across else ()
            texts[metric, id(cell)] = replace(shown, notes=shown.notes + own)
    table.headings = [*label_headings(labels), *[Heading("metric", numeric=False)] * several]
    for place in heads if across else ():
        table.headings.append(Heading(", ".join(map(_placed_text, across, place))))
    table.headings += [] if across else [Heading(column(m).heading) for m in metrics]
    for row in placed.values():
        first = next(iter(row.values()))
        label = label_cells(first, labels, () if across else row_notes(table, first))
        for group in [[m] for m in metrics] if across else [metrics]:
            head = [Cell(column(group[0]).heading)] * several
            found = [(m, row.get(place)) for place in heads for m in group]
            values = [texts[m, id(cell)] if cell else Cell("") for m, cell in found]
            table.rows.append(Row((*label, *head, *values)))
    if not across:
        table.rows += kmeans_rows(table, cells, len(labels), metrics)
    return table


def label_headings(names: Sequence[str]) -> list[Heading]:
    """The headings over `label_cells`."""
    texts = {"variant": "variant", "changes": "change", "cell": "cell"}
    return [Heading(texts.get(name, short(name)), name not in texts) for name in names]


def label_cells(group: Group, names: Sequence[str], notes: tuple[int, ...] = ()) -> list[Cell]:
    """The first cells of a row: settings, `variant`, its `changes`, `part`, or only `cell`.

    notes: the numbers of notes on the first of these cells.
    """
    own = {"variant": group.variant or "–", "changes": group.changes, "part": group.part or "–"}
    own["cell"] = "base settings"
    cells = [Cell(own[n]) if n in own else setting_cell(group.settings[n]) for n in names]
    return [replace(cell, notes=() if i else notes) for i, cell in enumerate(cells)]


def setting_cell(value: Any) -> Cell:
    """The cell of a setting; a sortable table sorts numbers by size."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value_text(value), sort=value if number else None)


def _placed_text(name: str, value: Any) -> str:
    """A column's setting with its name; text, which needs no explanation, without the name."""
    text = value_text(value) or "–"
    return text if isinstance(value, str) else f"{short(name)} {text}"
