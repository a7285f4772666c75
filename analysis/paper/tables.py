"""The paper's tables 1 to 4: the cells of ours that belong in each, beside the published rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.paper.protocol import (
    against,
    paper_settings,
    published,
    published_rows,
    table1_settings,
)
from analysis.records.frame import Records, short
from analysis.statistics import stats
from analysis.tables.columns import TABLE1, TABLE3, column, recorded
from analysis.tables.groups import Group
from analysis.tables.layout import PAPER, Cell, Heading, Row, Table
from analysis.tables.pivot import label_cells
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    kmeans_rows,
    measured_of,
    progress,
    row_notes,
    value_cell,
    value_cells,
)
from mpcc.config import PRESETS, Config, value_text

DATASETS = ("mnist", "omniglot", "fmnist", "cifar10", "cifar20")
"""Columns of Table 4, in the paper's order."""

N_PUBLISHED = 5
"""Runs behind the paper's rows of Table 4; the last row has only the best three of them."""

ACCURACY = ("acc_majority", "acc_hungarian")

TABLE1_AXES = ("n_encoder_steps", "prior_lr")
ASIDE = "Published figures, for orientation only, since the protocol differs: {}."


def table1_groups(groups: Sequence[Group]) -> list[tuple[Group, dict[str, str]]]:
    """The groups that are Table 1's five rows, each with its published row; empty if they are not.

    Rows are recognised by their shape, not their values: three values of E_steps at the lowest η_p,
    then two higher η_p at the highest E_steps, all else equal.
    """
    cells: dict[tuple[int, float], list[Group]] = {}
    for group in groups:
        rest, first = (dict(g.settings) for g in (group, groups[0]))
        key: Any = tuple(rest.pop(axis) for axis in TABLE1_AXES)
        if group.variant or any(value != first[name] for name, value in rest.items()):
            return []
        cells.setdefault(key, []).append(group)
    keys = sorted(cells)
    if len(keys) != 5:
        return []
    steps, rates = zip(*keys, strict=True)
    shape = (
        steps[0] < steps[1] < steps[2] == steps[3] == steps[4]
        and rates[0] == rates[1] == rates[2] < rates[3] < rates[4]
    )
    rows = published_rows("table1")
    return [(g, rows[i]) for i, key in enumerate(keys) for g in cells[key]] if shape else []


def table1(records: Records, pairs: Sequence[tuple[Group, dict[str, str]]], test: str) -> Table:
    """The paper's Table 1: five rows of E_steps and η_p, each with the published one below it."""
    groups = [group for group, _ in pairs]
    asked = recorded(TABLE1, groups)
    metrics = measured_of(groups, asked)
    title = f"Table 1 on {groups[0].settings['dataset']}: {progress(groups)}"
    table = Table("table1", title, counts=counts_differ(groups))
    table.headings = [Heading(short(axis)) for axis in TABLE1_AXES]
    table.headings += [Heading(column(metric).heading) for metric in metrics]
    columns = [value_cells(table, groups, metric, test) for metric in metrics]
    for i, (group, row) in enumerate(pairs):
        label = label_cells(group, TABLE1_AXES, row_notes(table, group))
        table.rows.append(Row((*label, *(cells[i] for cells in columns))))
        if i + 1 == len(pairs) or pairs[i + 1][1] is not row:
            theirs = table1_settings(row)
            below = published_row(table, "paper", row, metrics, group, theirs, ASIDE)
            first, *figures = below.cells
            cells = (first, Cell(value_text(theirs.prior_lr)), *figures)
            table.rows.append(Row(cells, PAPER, below.grey))
    table.rows += kmeans_rows(table, groups, len(TABLE1_AXES), metrics)
    return explain_numbers(table, records, groups, asked, test)


def plan_names(table: str) -> tuple[str, ...]:
    """The names that a plan may give to the grid of one of the paper's tables."""
    return (f"table {table}", f"table={table}", f"--table {table}")


def choose(
    records: Records, groups: Sequence[Group], settings: Mapping[str, Any], table: str
) -> tuple[list[Group], str]:
    """The parts of the one cell with these settings, and a note if several cells have them.

    Cells that were planned for the table are preferred, and among these the cell with its sweep's
    base settings: no result influences the choice.
    """
    fitting = [g for g in groups if all(g.settings[n] == v for n, v in settings.items())]
    planned = records.planned_by(*plan_names(table))
    fitting = [g for g in fitting if g.cell_key in planned] or fitting
    keys = {g.cell_key for g in fitting}
    if len(keys) <= 1:
        return fitting, ""
    bases = {sweep.base_key for sweep in records.sweeps}
    if len(keys & bases) == 1:
        own = [g for g in fitting if g.cell_key in bases]
        return own, f"Of {len(keys)} cells that fit, the one with the base settings."
    return [], f"{len(keys)} cells fit and not exactly one has the base settings; see the grid."


def published_row(
    table: Table,
    label: str,
    row: Mapping[str, str],
    metrics: Sequence[str],
    group: Group | None,
    theirs: Config,
    aside: str = "Published, another protocol ({}); not subtracted.",
) -> Row:
    """A published row: in grey, unless ours was measured the same way; then with the difference.

    aside: the note if the protocols differ; its `{}` is replaced by how they differ.
    """
    what, within = against(group, row, theirs, metrics) if group else ("", "")
    notes = table.noted((what, aside.format(what)), (within, within))
    figures = [published(row, metric) for metric in metrics]
    cells = [Cell(figure.text if figure else "") for figure in figures]
    return Row((Cell(label, notes), *cells), PAPER, grey=group is None or bool(what))


def _ours(
    table: Table, label: str, parts: Sequence[Group], why: str, metrics: Sequence[str]
) -> list[Row]:
    """A row for each part of our cell."""
    notes = table.noted((why, why))
    if not parts:
        return [Row((Cell(label, notes), *[Cell("not run")] * len(metrics)))]
    rows = []
    for group in parts:
        clusters = group.settings["prior"] != "normal" and not group.settings["conditional"]
        none = "This model does not cluster: no accuracy."
        cells = [
            value_cell(table, group, metric)
            if clusters or not metric.startswith("acc")
            else Cell("–", table.noted((True, none)))
            for metric in metrics
        ]
        rows.append(Row((Cell(label, notes + row_notes(table, group)), *cells)))
    return rows


def finish(table: Table, records: Records, used: Sequence[Group], metrics: Sequence[str]) -> Table:
    """The table with its trials' progress in the title and with the lines that every table has."""
    table.title += f": {progress(used)}" if used else ": nothing of it was run yet"
    return explain_numbers(table, records, used, metrics) if used else table


def table2(records: Records, groups: Sequence[Group]) -> tuple[Table, list[Group]]:
    """Table 2: with and without clusters in the prior and shared layers in the encoder."""
    rows = published_rows("table2")
    models = [
        {
            "encoder_shares_discriminator": row["encoder_shares_discriminator"] == "true",
            "prior": "normal" if row["prior"] == "normal" else "gaussian_mixture",
            "conditional": False,
        }
        for row in rows
    ]
    chosen = [choose(records, groups, model, "2") for model in models]
    used = [group for parts, _ in chosen for group in parts]
    asked = recorded(TABLE1, used)
    metrics = measured_of(used, asked)
    table = Table("table2", "Table 2", counts=counts_differ(used))
    table.headings = [Heading("model", numeric=False)]
    table.headings += [Heading(column(m).heading) for m in metrics]
    for model, (parts, why), row in zip(models, chosen, rows, strict=True):
        table.rows += _ours(table, row["model"], parts, why, metrics)
        group, theirs = parts[0] if parts else None, paper_settings("cifar10", **model)
        table.rows.append(published_row(table, "paper", row, metrics, group, theirs))
    return finish(table, records, used, asked), used


def table3(
    records: Records, groups: Sequence[Group], *, conditional: bool
) -> tuple[Table, list[Group]]:
    """Table 3a (unconditional) or 3b (conditional): IS and FID among the published methods."""
    setting, name = ("conditional", "3b") if conditional else ("unconditional", "3a")
    table = Table(f"table{name}", f"Table {name}, {setting}")
    table.headings = [Heading("model", numeric=False)]
    table.headings += [Heading(column(m).heading) for m in TABLE3]
    table.headings.append(Heading("runs", numeric=False))
    model = {"conditional": conditional, "prior": "gaussian_mixture"}
    parts, why = choose(records, groups, model, name)
    for row in published_rows("table3"):
        if row["setting"] == setting:
            ours = parts[0] if parts and row["model"] == "MPCC" else None
            label, theirs = f"{row['model']}, published", paper_settings("cifar10", **model)
            line = published_row(table, label, row, TABLE3, ours, theirs)
            table.rows.append(Row((*line.cells, Cell(row["runs"])), PAPER, line.grey))
    n = max((len(group.done) for group in parts), default=0)
    runs = Cell(f"average of {n}" if n else "")
    table.rows += [Row((*r.cells, runs)) for r in _ours(table, "MPCC, ours", parts, why, TABLE3)]
    table.lines = [
        "Published rows: on CIFAR-10, as the paper quotes them, each with its own counts."
    ]
    return finish(table, records, parts, TABLE3), list(parts)


def table4(records: Records, groups: Sequence[Group]) -> tuple[Table, list[Group]]:
    """Table 4, accuracy on each data set, and the cells in it."""
    names = list(DATASETS)
    names += sorted({g.settings["dataset"] for g in groups} - set(names))
    mixture = {"prior": "gaussian_mixture", "conditional": False}
    chosen = {name: choose(records, groups, mixture | {"dataset": name}, "4") for name in names}
    used = [group for parts, _ in chosen.values() for group in parts]
    table = Table("table4", "Table 4, accuracy in %", counts=counts_differ(used))
    table.headings = [Heading("model", numeric=False), *map(Heading, names)]
    by_model: dict[str, dict[str, dict[str, str]]] = {}
    for row in published_rows("table4"):
        by_model.setdefault(row["model"], {})[row["dataset"]] = row
    five, told = by_model["MPCC (five runs)"], dict[str, tuple[str, str]]()
    for name, (parts, _) in chosen.items():
        if name in DATASETS and len(parts) == 1:
            told[name] = against(parts[0], five[name], PRESETS[name], ACCURACY[:1])
    gaps = [what for n, (what, _) in told.items() if chosen[n][0][0].summary(ACCURACY[0]).n]
    as_published = bool(gaps) and not any(gaps)  # On every data set with a result of ours.
    for model, rows in by_model.items():
        grey = not (model.startswith("MPCC") and as_published)
        cells = []
        for row in (rows.get(name, {}) for name in names):
            figure = published(row, "acc_majority")
            notes = table.noted((figure, f"Published: {row.get('runs')}"))
            cells.append(Cell(figure.text if figure else "", notes))
        table.rows.append(Row((Cell(model), *cells), PAPER, grey))
    for metric in ACCURACY:
        cells = [_accuracy(table, *chosen[name], metric) for name in names]
        table.rows.append(Row((Cell(f"ours, {column(metric).label}"), *cells)))
    best = [_best_three(table, parts) for parts, _ in chosen.values()]
    if any(cell.text for cell in best):
        why = "Chosen by the labels, as the paper's row is: not an estimate for new runs."
        label = Cell("ours, Acc, best three of five", table.noted((True, why)))
        table.rows.append(Row((label, *best)))
    for name, (what, within) in told.items():
        other = f"another protocol than published ({what}); not subtracted."
        table.lines += [f"{name}: {other if what else within}"] if what or within else []
    return finish(table, records, used, ACCURACY), used


def _accuracy(table: Table, parts: Sequence[Group], why: str, metric: str) -> Cell:
    if len(parts) > 1:
        note = "The trials of this cell are not comparable; see the grid."
        return Cell("not averaged", table.noted((True, note)))
    cell = value_cell(table, parts[0], metric) if parts else Cell("–")
    return Cell(cell.text, cell.notes + table.noted((why, why)), sort=cell.sort)


def _best_three(table: Table, parts: Sequence[Group]) -> Cell:
    """Mean ± SD of the best three of five runs; if fewer than five have a value, with a note."""
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
