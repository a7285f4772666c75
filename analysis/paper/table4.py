"""The paper's Table 4: clustering accuracy per data set, the published methods first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.paper.protocol import gap, published, published_rows, within
from analysis.paper.tables import Choice, choose, finish
from analysis.records.frame import Records
from analysis.statistics import stats
from analysis.tables.columns import column
from analysis.tables.groups import Group
from analysis.tables.layout import OURS, PAPER, Cell, Heading, Row, Table
from analysis.tables.shared import counts_differ, sentence, value_cell
from mpcc.config import PRESETS

DATASETS = ("mnist", "omniglot", "fmnist", "cifar10", "cifar20")
"""Columns, in the paper's order."""

N_PUBLISHED = 5
"""Runs behind the paper's rows; the best three of them make its last one."""

Chosen = Mapping[str, tuple[list[Group], str]]
"""Data set -> the parts of our cell, and a line where the choice was not free of doubt."""


def table4(records: Records, groups: Sequence[Group]) -> tuple[Table, list[Group]]:
    """The table and the cells in it."""
    names = list(DATASETS)
    names += sorted({g.settings["dataset"] for g in groups} - set(names))
    chosen = {name: choose(records, groups, _clusters(name), "4") for name in names}
    used = [group for parts, _ in chosen.values() for group in parts]
    table = Table("table4", "Table 4, accuracy in %", counts=counts_differ(used))
    table.headings = [Heading("model", numeric=False), *(Heading(name) for name in names)]
    rows = published_rows("table4")
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = {row["dataset"]: row for row in rows if row["model"] == model}
        grey = not (model.startswith("MPCC") and _as_published(chosen))
        cells = _published_cells(table, of_model, names)
        table.rows.append(Row((Cell(model), *cells), PAPER, grey))
    for metric in ("acc_majority", "acc_hungarian"):
        cells = [_ours(table, *chosen[name], metric) for name in names]
        table.rows.append(Row((Cell(f"ours, {column(metric).label}"), *cells), OURS))
    best = [_best_three(table, parts) for parts, _ in chosen.values()]
    if any(cell.text for cell in best):
        note = table.note(
            "Chosen by the labels, as the paper's row is: not an estimate for new runs."
        )
        table.rows.append(Row((Cell("ours, Acc, best three of five", (note,)), *best), OURS))
    for name in names:
        _protocol_line(table, name, chosen[name][0])
    return finish(table, records, used, ("acc_majority", "acc_hungarian")), used


def _clusters(dataset: str) -> Choice:
    def fits(settings: Mapping[str, Any]) -> bool:
        mixture = settings["prior"] == "gaussian_mixture" and not settings["conditional"]
        return mixture and settings["dataset"] == dataset

    return fits


def _published_cells(
    table: Table, rows: Mapping[str, Mapping[str, str]], names: Sequence[str]
) -> list[Cell]:
    cells = []
    for name in names:
        figure = published(rows[name], "acc_majority") if name in rows else None
        notes = (table.note(sentence(f"Published: {rows[name]['runs']}")),) if figure else ()
        cells.append(Cell(figure.text if figure else "", notes))
    return cells


def _as_published(chosen: Chosen) -> bool:
    """Whether ours were measured as the paper's, on every data set on which there are ours."""
    gaps = [
        gap(parts[0], PRESETS[name], ("acc_majority",))
        for name, (parts, _) in chosen.items()
        if name in DATASETS and len(parts) == 1 and parts[0].summary("acc_majority").n
    ]
    return bool(gaps) and not any(gaps)


def _ours(table: Table, parts: Sequence[Group], why: str, metric: str) -> Cell:
    if len(parts) > 1:
        note = table.note("The trials of this cell are not alike; see the grid.")
        return Cell("not averaged", (note,))
    if not parts:
        return Cell("–", (table.note(why),) if why else ())
    cell = value_cell(table, parts[0], metric)
    notes = cell.notes + ((table.note(why),) if why else ())
    return Cell(cell.text, notes, sort=cell.sort)


def _best_three(table: Table, parts: Sequence[Group]) -> Cell:
    """The three best of five runs; where fewer than five finished, a note says of how many."""
    if len(parts) != 1 or parts[0].n_planned != N_PUBLISHED:
        return Cell("")
    summary, spec = parts[0].summary("acc_majority"), column("acc_majority")
    if summary.n < 3:
        return Cell("")
    values = sorted(summary.array)[-3:]
    text = f"{spec.shown(float(sum(values)) / 3)} ± {spec.shown(stats.std(values))}"
    if summary.n == N_PUBLISHED:
        return Cell(text)
    choice = "no choice at all" if summary.n == 3 else f"the best three of {summary.n}"
    note = table.note(
        f"Only {summary.n} of {N_PUBLISHED} runs have a value: {choice}, not the best three of "
        f"{N_PUBLISHED}."
    )
    return Cell(f"{text} ({summary.n}/{N_PUBLISHED})", (note,))


def _protocol_line(table: Table, name: str, parts: Sequence[Group]) -> None:
    """A line on ours against the published five runs, where there are both."""
    if name not in DATASETS or len(parts) != 1:
        return
    group = parts[0]
    row = next(
        r
        for r in published_rows("table4")
        if r["model"] == "MPCC (five runs)" and r["dataset"] == name
    )
    what = gap(group, PRESETS[name], ["acc_majority"])
    if what:
        table.lines.append(f"{name}: another protocol than published ({what}); not subtracted.")
    elif group.summary("acc_majority").n:
        figures = {"acc_majority": published(row, "acc_majority")}
        table.lines.append(f"{name}: {within(group, figures)}")
