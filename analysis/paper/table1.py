"""The paper's Table 1: five rows of E_steps and η_p, each with the published one below it."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.paper.protocol import gap, published, published_rows, table1_settings, within
from analysis.records.frame import Records, short
from analysis.tables.columns import TABLE1, column, recorded
from analysis.tables.groups import Group
from analysis.tables.layout import PAPER, Cell, Heading, Row, Table
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    kmeans_rows,
    measured_of,
    progress,
    row_notes,
    value_cell,
    with_best,
)
from mpcc.config import value_text

TABLE1_AXES = ("n_encoder_steps", "prior_lr")


def table1_groups(groups: Sequence[Group]) -> list[tuple[Group, dict[str, str]]]:
    """The groups that are Table 1's five rows, each with its published row; empty if they are not.

    Rows of another scale are known by their shape: three values of E_steps at the lowest η_p, then
    two higher η_p at the highest E_steps, all else equal.
    """
    cells: dict[tuple[int, float], list[Group]] = {}
    for group in groups:
        rest = {k: v for k, v in group.settings.items() if k not in TABLE1_AXES}
        first = {k: v for k, v in groups[0].settings.items() if k not in TABLE1_AXES}
        if rest != first or group.variant:
            return []
        cells.setdefault(tuple(group.settings[a] for a in TABLE1_AXES), []).append(group)
    keys = sorted(cells)
    if len(keys) != 5:
        return []
    steps, rates = zip(*keys, strict=True)
    shape = (
        steps[0] < steps[1] < steps[2] == steps[3] == steps[4]
        and rates[0] == rates[1] == rates[2] < rates[3] < rates[4]
    )
    if not shape:
        return []
    rows = published_rows("table1")
    return [(group, rows[i]) for i, key in enumerate(keys) for group in cells[key]]


def table1(records: Records, pairs: Sequence[tuple[Group, dict[str, str]]], test: str) -> Table:
    """The paper's Table 1, each row with the published one below it."""
    groups = [group for group, _ in pairs]
    asked = recorded(TABLE1, groups)
    settings = groups[0].settings
    table = Table("table1", f"Table 1 on {settings['dataset']}: {progress(groups)}")
    table.counts = counts_differ(groups)
    table.headings = [Heading(short(axis)) for axis in TABLE1_AXES]
    metrics = measured_of(groups, asked)
    table.headings += [Heading(column(metric).heading) for metric in metrics]
    columns = {
        metric: with_best(
            groups, [value_cell(table, group, metric) for group in groups], metric, test
        )
        for metric in metrics
    }
    for i, (group, row) in enumerate(pairs):
        label = [Cell(value_text(group.settings[a]), sort=group.settings[a]) for a in TABLE1_AXES]
        label[0] = Cell(label[0].text, row_notes(table, group), sort=label[0].sort)
        table.rows.append(Row((*label, *(columns[metric][i] for metric in metrics))))
        if i + 1 == len(pairs) or pairs[i + 1][1] is not row:
            table.rows.append(_paper_row(table, group, row, metrics))
    table.rows += kmeans_rows(table, groups, len(TABLE1_AXES), metrics)
    return explain_numbers(table, records, groups, asked, test)


def _paper_row(table: Table, group: Group, row: dict[str, str], metrics: Sequence[str]) -> Row:
    theirs = table1_settings(row)
    shown = [metric for metric in metrics if published(row, metric)]
    what = gap(group, theirs, shown)
    notes: tuple[int, ...] = ()
    if what:
        notes = (
            table.note(
                "Published figures, beside ours for orientation only: another protocol "
                f"({what}). They are not subtracted."
            ),
        )
    elif any(group.summary(m).n for m in shown):
        notes = (table.note(within(group, {m: published(row, m) for m in shown})),)
    cells = [Cell("paper", notes), Cell(value_text(theirs.prior_lr))]
    for metric in metrics:
        figure = published(row, metric)
        cells.append(Cell(figure.text if figure else ""))
    return Row(tuple(cells), PAPER, grey=bool(what))
