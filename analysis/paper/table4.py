"""The paper's Table 4: clustering accuracy per data set, the published methods first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.paper.protocol import against, gap, published, published_rows
from analysis.paper.tables import choose, finish
from analysis.records.frame import Records
from analysis.statistics import stats
from analysis.tables.columns import column
from analysis.tables.groups import Group
from analysis.tables.layout import PAPER, Cell, Heading, Row, Table
from analysis.tables.shared import counts_differ, value_cell
from mpcc.config import PRESETS

DATASETS = ("mnist", "omniglot", "fmnist", "cifar10", "cifar20")
"""Columns, in the paper's order."""

N_PUBLISHED = 5
"""Runs behind the paper's rows; the best three of them make its last one."""

ACCURACY = ("acc_majority", "acc_hungarian")

Chosen = Mapping[str, tuple[list[Group], str]]
"""Data set -> the parts of our cell, and a line where the choice was not free of doubt."""


def table4(records: Records, groups: Sequence[Group]) -> tuple[Table, list[Group]]:
    """The table and the cells in it."""
    names = list(DATASETS)
    names += sorted({g.settings["dataset"] for g in groups} - set(names))
    mixture = {"prior": "gaussian_mixture", "conditional": False}
    chosen: Chosen = {
        name: choose(records, groups, mixture | {"dataset": name}, "4") for name in names
    }
    used = [group for parts, _ in chosen.values() for group in parts]
    table = Table("table4", "Table 4, accuracy in %", counts=counts_differ(used))
    table.headings = [Heading("model", numeric=False), *map(Heading, names)]
    by_model: dict[str, dict[str, dict[str, str]]] = {}
    for row in published_rows("table4"):
        by_model.setdefault(row["model"], {})[row["dataset"]] = row
    gaps = [
        gap(parts[0], PRESETS[name], ACCURACY[:1])
        for name, (parts, _) in chosen.items()
        if name in DATASETS and len(parts) == 1 and parts[0].summary("acc_majority").n
    ]
    as_published = bool(gaps) and not any(gaps)  # On every data set on which there are ours.
    for model, rows in by_model.items():
        grey = not (model.startswith("MPCC") and as_published)
        cells = [_published_cell(table, rows.get(name)) for name in names]
        table.rows.append(Row((Cell(model), *cells), PAPER, grey))
    for metric in ACCURACY:
        cells = [_ours(table, *chosen[name], metric) for name in names]
        table.rows.append(Row((Cell(f"ours, {column(metric).label}"), *cells)))
    best = [_best_three(table, parts) for parts, _ in chosen.values()]
    if any(cell.text for cell in best):
        why = "Chosen by the labels, as the paper's row is: not an estimate for new runs."
        label = Cell("ours, Acc, best three of five", table.noted((True, why)))
        table.rows.append(Row((label, *best)))
    five = by_model["MPCC (five runs)"]
    for name, (parts, _) in chosen.items():
        if name in DATASETS and len(parts) == 1:
            what, within = against(parts[0], five[name], PRESETS[name], ACCURACY[:1])
            other = f"another protocol than published ({what}); not subtracted."
            table.lines += [f"{name}: {other if what else within}"] if what or within else []
    return finish(table, records, used, ACCURACY), used


def _published_cell(table: Table, row: Mapping[str, str] | None) -> Cell:
    figure = published(row, "acc_majority") if row else None
    if not row or not figure:
        return Cell("")
    return Cell(figure.text, table.noted((True, f"Published: {row['runs']}")))


def _ours(table: Table, parts: Sequence[Group], why: str, metric: str) -> Cell:
    if len(parts) > 1:
        note = "The trials of this cell are not alike; see the grid."
        return Cell("not averaged", table.noted((True, note)))
    cell = value_cell(table, parts[0], metric) if parts else Cell("–")
    return Cell(cell.text, cell.notes + table.noted((why, why)), sort=cell.sort)


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
    why = f"Only {summary.n} of {N_PUBLISHED} runs have a value: {choice}, not the best three of "
    why += f"{N_PUBLISHED}."
    return Cell(f"{text} ({summary.n}/{N_PUBLISHED})", table.noted((True, why)))
