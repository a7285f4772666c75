"""The table of any ablation: a row per cell, a column per metric."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cells import Group
from analysis.columns import GRID, column
from analysis.layout import Cell, Heading, Row, Table
from analysis.load import Records, short
from analysis.tables import (
    kmeans_row,
    progress,
    provenance_line,
    record_lines,
    spread_lines,
    value_cell,
    with_best,
)
from mpcc.config import value_text


def grid_table(records: Records, groups: Sequence[Group], test: str) -> Table:
    """Every cell with its swept settings and metrics."""
    axes = [axis for axis in records.axes if axis != "seed"]
    table = Table("grid", f"{' × '.join(map(short, axes)) or 'seeds'}: {progress(groups)}")
    metrics = [m for m in GRID if any(g.summary(m).n for g in groups)] or ["acc_majority"]
    first = axes or [""]
    table.headings = [Heading(short(axis), numeric=bool(axis)) for axis in first]
    table.headings += [Heading(column(metric).heading) for metric in metrics]
    columns = [
        with_best(groups, [value_cell(table, g, metric) for g in groups], metric, test)
        for metric in metrics
    ]
    for i, group in enumerate(groups):
        label = [Cell(value_text(group.settings[a]), sort=group.settings[a]) for a in axes]
        label = label or [Cell(group.label(axes))]
        if group.part:
            label[0] = Cell(label[0].text, (table.note(f"Only {group.part}."),))
        table.rows.append(Row((*label, *(cells[i] for cells in columns))))
    reference = kmeans_row(table, groups, len(first), metrics)
    table.rows += [reference] if reference else []
    table.lines = [
        *spread_lines(groups, metrics, test),
        provenance_line(groups),
        *record_lines(records),
    ]
    return table
