"""Every trial behind one cell of a table: how it ended, its values, and where its records are."""

import math
from collections.abc import Sequence
from typing import Any

from analysis.output.render import text
from analysis.records.frame import Records
from analysis.tables.columns import column
from analysis.tables.compare import find_group
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.shared import shown_metrics
from mpcc.config import value_text
from mpcc.runs.run_dir import DONE


def explain(records: Records, groups: Sequence[Group], name: str) -> str:
    """The report; ValueError, with a one-line message, unless `name` means exactly one cell."""
    key = find_group(groups, name).cell_key
    parts = [group for group in groups if group.cell_key == key]
    parts += [group for group in groups_of(records, confirm=True) if group.cell_key == key]
    settings = ", ".join(f"{k}={value_text(v)}" for k, v in parts[0].settings.items())
    cell = f"{parts[0].label().split(' [')[0]}: cell {key}"
    head = [cell, "", f"settings: {settings}", ""]
    return "\n".join([*head, *(_part(records, part) for part in parts)])


def _part(records: Records, group: Group) -> str:
    metrics = shown_metrics([group])
    title = group.part or f"{len(group.done)} of {group.n_planned} trials done"
    title = f"fresh seeds, to confirm the choice: {title}" if group.confirm else title
    table = Table("explain", title)
    table.headings = [Heading("seed"), Heading("state", numeric=False), Heading("iteration")]
    table.headings += [Heading(column(m).heading) for m in metrics]
    table.headings += [Heading(h, numeric=False) for h in ("code", "device", "data")]
    for trial in group.trials:
        done = trial["state"] == DONE
        values = [_value(trial, metric) if done else "" for metric in metrics]
        origin = [str(trial[name] or "–") for name in ("code", "device", "fingerprint")]
        items = [str(trial["seed"]), trial["state"], f"{trial['iteration']:,}", *values, *origin]
        table.rows.append(Row(tuple(Cell(item) for item in items)))
    lines = []
    for trial in group.trials:
        folder = records.run_dir(trial)
        where = str(folder.resolve()) if folder else "no records"
        lines.append(f"seed {trial['seed']}: {where}; MLflow run {trial['mlflow_run'] or 'none'}")
        lines += [f"  {trial['state']}: {trial['cause']}"] if trial["cause"] else []
    return text(table) + "\n" + "\n".join(lines) + "\n"


def _value(trial: dict[str, Any], metric: str) -> str:
    value = trial.get(metric, math.nan)
    if math.isinf(value) or metric in trial["undefined"]:
        return "not finite"
    return column(metric).shown(value) if math.isfinite(value) else "–"
