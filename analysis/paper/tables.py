"""The paper's tables 2, 3a and 3b: ours among the published rows, and which cell is meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.paper.protocol import (
    gap,
    paper_settings,
    published,
    published_rows,
    within,
)
from analysis.records.frame import Records
from analysis.tables.columns import TABLE2, TABLE3, column, recorded
from analysis.tables.groups import Group
from analysis.tables.layout import OURS, PAPER, Cell, Heading, Row, Table
from analysis.tables.shared import (
    counts_differ,
    explain_numbers,
    measured_of,
    progress,
    row_notes,
    value_cell,
)
from mpcc.config import Config, from_record

Choice = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Model:
    """One row of Table 2: its name in the paper and the cells that are it."""

    name: str
    shares: bool
    prior: str

    def is_it(self, settings: Mapping[str, Any]) -> bool:
        """Whether a cell with these settings is this model."""
        same = settings["encoder_shares_discriminator"] == self.shares
        return same and settings["prior"] == self.family and not settings["conditional"]

    @property
    def family(self) -> str:
        """The prior by the name that Config has for it."""
        return "normal" if self.prior == "normal" else "gaussian_mixture"


def table2_models() -> list[Model]:
    """Table 2's rows as published."""
    return [
        Model(r["model"], r["encoder_shares_discriminator"] == "true", r["prior"])
        for r in published_rows("table2")
    ]


def plan_names(table: str) -> tuple[str, ...]:
    """How a plan may spell that a cell is there for one of the paper's tables."""
    return (f"table {table}", f"table={table}", f"--table {table}")


def choose(
    records: Records, groups: Sequence[Group], fits: Choice, table: str
) -> tuple[list[Group], str]:
    """The parts of the one cell that fits, and a line where the choice was not free of doubt.

    Cells that were planned for the table come first. Among several, the cell with its sweep's base
    settings is meant: no result takes part in the choice.
    """
    fitting = [g for g in groups if fits(g.settings)]
    planned = records.planned_by(*plan_names(table))
    fitting = [g for g in fitting if g.cell_key in planned] or fitting
    keys = {g.cell_key for g in fitting}
    if len(keys) <= 1:
        return fitting, ""
    bases = {from_record({**sweep.base, "seed": 0}).cell_key for sweep in records.sweeps}
    own = [g for g in fitting if g.cell_key in bases]
    if len({g.cell_key for g in own}) == 1:
        return own, f"Of {len(keys)} cells that fit, the one with the base settings."
    return [], f"{len(keys)} cells fit and none has the base settings alone; see the grid."


def _published_row(
    table: Table,
    label: str,
    row: Mapping[str, str],
    metrics: Sequence[str],
    group: Group | None,
    theirs: Config,
) -> Row:
    shown = [m for m in metrics if published(row, m)]
    what = gap(group, theirs, shown) if group else ""
    notes: tuple[int, ...] = ()
    if what:
        notes = (table.note(f"Published, another protocol ({what}); not subtracted."),)
    elif group and any(group.summary(m).n for m in shown):
        figures = {m: published(row, m) for m in shown}
        notes = (table.note(within(group, figures)),)
    grey = group is None or bool(what)
    return Row((Cell(label, notes), *_figures(row, metrics)), PAPER, grey)


def _figures(row: Mapping[str, str], metrics: Sequence[str]) -> list[Cell]:
    figures = [published(row, metric) for metric in metrics]
    return [Cell(figure.text if figure else "") for figure in figures]


def _ours(
    table: Table, label: str, parts: Sequence[Group], why: str, metrics: Sequence[str]
) -> list[Row]:
    notes = (table.note(why),) if why else ()
    if not parts:
        return [Row((Cell(label, notes), *[Cell("not run")] * len(metrics)), OURS)]
    rows = []
    for group in parts:
        cells = [_value_or_empty(table, group, metric) for metric in metrics]
        rows.append(Row((Cell(label, notes + row_notes(table, group)), *cells), OURS))
    return rows


def _value_or_empty(table: Table, group: Group, metric: str) -> Cell:
    clusters = group.settings["prior"] != "normal" and not group.settings["conditional"]
    if metric.startswith("acc") and not clusters:
        return Cell("–", (table.note("This model does not cluster: no accuracy."),))
    return value_cell(table, group, metric)


def finish(table: Table, records: Records, used: Sequence[Group], metrics: Sequence[str]) -> Table:
    """The table with how far its trials are in the title and the lines that every table has."""
    table.title += f": {progress(used)}" if used else ": nothing of it was run yet"
    return explain_numbers(table, records, used, metrics) if used else table


def table2(records: Records, groups: Sequence[Group]) -> tuple[Table, list[Group]]:
    """Table 2: with and without clusters in the prior and shared layers in the encoder."""
    table = Table("table2", "Table 2")
    table.headings = [Heading("model", numeric=False)]
    theirs, models = paper_settings("cifar10"), table2_models()
    chosen = [choose(records, groups, model.is_it, "2") for model in models]
    used = [group for parts, _ in chosen for group in parts]
    asked = recorded(TABLE2, used)
    metrics = measured_of(used, asked)
    table.headings += [Heading(column(m).heading) for m in metrics]
    table.counts = counts_differ(used)
    rows = published_rows("table2")
    for model, (parts, why), row in zip(models, chosen, rows, strict=True):
        table.rows += _ours(table, model.name, parts, why, metrics)
        settings = theirs.override(
            encoder_shares_discriminator=model.shares,
            prior=model.family,
        )
        table.rows.append(
            _published_row(table, "paper", row, metrics, parts[0] if parts else None, settings)
        )
    return finish(table, records, used, asked), used


def table3(
    records: Records, groups: Sequence[Group], *, conditional: bool
) -> tuple[Table, list[Group]]:
    """Table 3a (unconditional) or 3b (conditional): IS and FID among the published methods."""
    setting = "conditional" if conditional else "unconditional"
    table = Table("table3b" if conditional else "table3a", f"Table 3{'ab'[conditional]}, {setting}")
    table.headings = [Heading("model", numeric=False)]
    table.headings += [
        *(Heading(column(m).heading) for m in TABLE3),
        Heading("runs", numeric=False),
    ]

    def fits(settings: Mapping[str, Any]) -> bool:
        return settings["conditional"] == conditional and settings["prior"] == "gaussian_mixture"

    parts, why = choose(records, groups, fits, "3b" if conditional else "3a")
    theirs = paper_settings("cifar10", conditional=conditional)
    for row in published_rows("table3"):
        if row["setting"] != setting:
            continue
        ours = row["model"] == "MPCC" and parts
        name = f"{row['model']}, published"
        line = _published_row(table, name, row, TABLE3, parts[0] if ours else None, theirs)
        table.rows.append(Row((*line.cells, Cell(row["runs"])), PAPER, line.grey))
    for row_ours in _ours(table, "MPCC, ours", parts, why, TABLE3):
        n = max((len(g.done) for g in parts), default=0)
        table.rows.append(Row((*row_ours.cells, Cell(f"average of {n}" if n else "")), OURS))
    table.lines = [
        "Published rows: on CIFAR-10, as the paper quotes them, each with its own counts."
    ]
    return finish(table, records, parts, TABLE3), list(parts)
