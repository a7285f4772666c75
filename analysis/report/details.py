"""Details at the end of the report: failures, every trial with its links, code, images, keys."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis.output import html
from analysis.records.frame import PLANNED, RUNNING, Records, short
from analysis.tables.columns import column
from analysis.tables.groups import Group
from analysis.tables.shared import cost_line, distinct, shown_metrics
from mpcc.config import DEFAULTS, value_text
from mpcc.runs.run_dir import DONE, METRICS, RESULT, read_json
from tune.plan.plan import MLFLOW

LOCAL_MLFLOW = "http://localhost:5000"
"""Address at which the command printed at a sweep's end serves the sweep's MLflow database."""


def cell_name(group: Group) -> str:
    return group.label() + (" (fresh seeds)" if group.confirm else "")


def failures(records: Records, groups: Sequence[Group]) -> str:
    rows = [
        [cell_name(g), str(t["seed"]), t["state"], f"{t['iteration']:,}", t["cause"] or ""]
        for g in groups
        for t in g.trials
        if t["state"] not in (DONE, PLANNED, RUNNING)
    ]
    models = [f"{g.label()}: {g.failures()}" for g in groups if g.failures()]
    odd = _list("Finished, but saturated or collapsed (Appendix D)", models)
    odd += _list("Records", records.notes)
    if not rows:
        return "<p>No trial failed.</p>" + odd
    return _plain_table(["cell", "seed", "state", "iteration", "cause"], rows) + odd


def _list(title: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h3>{escape(title)}</h3><ul>{lines}</ul>" if lines else ""


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        wraps = len(text) > 48 and not isinstance(text, html.Markup)
        return f'<td class="{"l w" if wraps else "l"}">{html.markup(text)}</td>'

    cells = "".join(f'<th class="l">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def trials(records: Records, groups: Sequence[Group], place: Path | None) -> str:
    """Every trial with its first metric and links to its pictures, scores and run in MLflow."""
    metric = shown_metrics(groups)[0]
    pages = [_mlflow_page(sweep.path) for sweep in records.sweeps]
    rows = []
    for group in groups:
        known = dict(group.summary(metric).values)
        for trial in group.trials:
            value = known.get(trial["seed"])
            page, run = pages[trial["source"]], trial["mlflow_run"]
            folder = records.run_dir(trial)
            files = ("samples.png", "reconstructions.png", "latent.png", "curves.png")
            row = [cell_name(group), str(trial["seed"]), trial["state"]]
            row += ["–" if value is None else column(metric).shown(value)]
            row += [_links(folder, files, place), _links(folder, (METRICS, RESULT), place)]
            row += [html.link(f"{page}/runs/{run}", "run") if page and run else "–"]
            rows.append(row)
    head = ["cell", "seed", "state", column(metric).heading, "pictures", "scores", "MLflow"]
    local = any(page and page.startswith(LOCAL_MLFLOW) for page in pages)
    note = "<p>The links to MLflow lead to a server that runs here, started as the sweep's last "
    note += "lines say.</p>"
    return folded(f"Every trial ({len(rows)})", (note if local else "") + _plain_table(head, rows))


def _links(folder: Path | None, names: Sequence[str], place: Path | None) -> str:
    """Links from `place` to those of these files that the folder has."""
    if folder is None or place is None:
        return "–"
    at = Path(os.path.relpath(folder, place)).as_posix()
    there = [name for name in names if (folder / name).is_file()]
    return html.Markup(" ".join(html.link(f"{at}/{n}", n.partition(".")[0]) for n in there) or "–")


def _mlflow_page(sweep: Path) -> str:
    """The address of the experiment that holds a sweep's runs; empty if none is recorded."""
    record = read_json(sweep / MLFLOW) or {}
    uri, experiment = str(record.get("tracking_uri", "")), record.get("experiment")
    server = uri.rstrip("/") if uri.startswith("http") else LOCAL_MLFLOW
    return f"{server}/#/experiments/{experiment}" if experiment else ""


def folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def provenance(records: Records, groups: Sequence[Group]) -> str:
    first = groups[0].settings
    shared = {
        n: first[n]
        for n in DEFAULTS
        if n != "seed" and all(g.settings[n] == first[n] for g in groups)
    }
    settings = ", ".join(f"{short(n)}={value_text(v)}" for n, v in shared.items())
    done = [trial for group in groups for trial in group.done]

    def known(name: str) -> str:
        return " and ".join(distinct(trial[name] for trial in done)) or "unknown"

    facts = [
        ["sweep", ", ".join(s.name for s in records.sweeps)],
        ["grids", "; ".join(g for s in records.sweeps for g in s.grids) or "none"],
        ["code", known("code")],
        ["images", f"{known('n_images')}, content {known('fingerprint')}"],
        ["device", known("device")],
        ["cost", cost_line(groups).removeprefix("Cost: ").removesuffix(".")],
        ["selection", f"{records.moment}; {records.selection}"],
    ]
    rows = [
        [t["trial_key"], cell_name(g), str(t["seed"]), _text(t["run_dir"])]
        + [_text(t["mlflow_run"]), _text(t["code"]), _text(t["digest"])]
        for g in groups
        for t in g.trials
    ]
    head = ["trial", "cell", "seed", "run directory", "MLflow run", "code", "records"]
    body = _plain_table(["", ""], facts)
    body += f"<p>Settings that all cells share: <code>{escape(settings)}</code></p>"
    return folded("Code, images, machine, keys", body + _plain_table(head, rows))


def _text(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
