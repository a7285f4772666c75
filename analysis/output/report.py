"""One self-contained HTML page of a sweep: it needs no network, no server and no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from analysis.output import html
from analysis.output import summary as words
from analysis.output.confusion import figure as confusion
from analysis.records.frame import Records, short
from analysis.tables.assemble import Product
from analysis.tables.columns import column
from analysis.tables.grid import swept
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Table, on_one_page
from analysis.tables.shared import own_sentence, progress, shown_metrics, unfinished, value_cell
from mpcc.config import DEFAULTS, value_text
from mpcc.runs.run_dir import DONE

MAX_PANELS, MAX_SHEETS = 60, 12
"""Cells whose curves, and whose pictures, are shown; the page says when there are more."""

PICTURE = "samples.png"


def report(
    records: Records,
    groups: Sequence[Group],
    products: Sequence[Product],
    test: str,
    *,
    pictures: bool = True,
    lines: Sequence[str] = (),
) -> str:
    """The page; `lines` say how a search compares with another sweep.

    Same records, same bytes: it holds no time stamp and no path of a machine.
    """
    title = " and ".join(dict.fromkeys(sweep.name for sweep in records.sweeps))
    result = next((p.result for p in products if p.result), None)
    fresh = groups_of(records, confirm=True)
    sections = {
        "Summary": f"<p>{html.prose(words.paragraph(records, groups, result, test))} "
        f"{html.prose(own_sentence(records.selection))}</p>",
        "Search": _search(records, groups, lines) if pictures else "",
        "Tables": _tables(_distinct_tables(products)),
        "Seeds": _strips(records, groups),
        "Curves": _curves(records, groups),
        "Samples": _sheets(records, groups) if pictures else "",
        "Failures": _failures(records, [*groups, *fresh]),
        "Provenance": _provenance(records, [*groups, *fresh]),
    }
    kept = {name: body for name, body in sections.items() if body}
    links = " ".join(f'<a href="#{name.lower()}">{name}</a>' for name in kept)
    body = "".join(f'<h2 id="{n.lower()}">{n}</h2>{content}' for n, content in kept.items())
    badge = f'<span class="badge{" open" if unfinished(groups) else ""}">{progress(groups)}</span>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>MPCC ablation: {escape(title)}</title><style>{html.style()}</style></head><body>"
        f"<header><h1>MPCC ablation: {escape(title)}</h1><p>{badge}</p><nav>{links}</nav></header>"
        f"<main>{body}</main><script>{html.script()}</script></body></html>\n"
    )


def _distinct_tables(products: Sequence[Product]) -> list[Table]:
    """Every table once: a confirmation may belong to Table 1 and to the grid."""
    found: dict[str, Table] = {}
    for table in (table for product in products for table in product.tables):
        found.setdefault(table.title, table)
    return list(found.values())


def _tables(tables: Sequence[Table]) -> str:
    """The tables, each line under the first that has it, and how their numbers were made."""
    shown = on_one_page(tables)
    lines = "".join(f'<p class="lines">{escape(line)}</p>' for t in shown for line in t.made)
    how = f"<details><summary>How these numbers were made</summary>{lines}</details>"
    return "".join(map(html.table, shown)) + (how if lines else "")


def _cell_name(group: Group, axes: Sequence[str]) -> str:
    return group.label(axes) + (" (fresh seeds)" if group.confirm else "")


def _named(records: Records, groups: Sequence[Group], metric: str) -> list[tuple[str, Group, str]]:
    axes, scratch = swept(records), Table("", "")
    return [(g.label(axes), g, value_cell(scratch, g, metric).text) for g in groups]


def _search(records: Records, groups: Sequence[Group], lines: Sequence[str]) -> str:
    """The pictures of a search; Optuna and matplotlib are opened only where there is one."""
    if not records.searches:
        return ""
    from analysis.output.search_figures import pictures
    from analysis.searches.search import found

    search = found(records, groups)
    parts = [f"<p>{escape(line)}</p>" for line in (own_sentence(records.selection), *lines)]
    figures = []
    for name, (png, text) in (pictures(search) if search else {}).items():
        wide = ' class="wide"' if name == "parallel" else ""
        data = base64.b64encode(png).decode()
        figures.append(
            f'<figure{wide}><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )
    none = "<p>No point is complete yet.</p>" if not figures else ""
    return "".join(parts) + none + f'<div class="pictures">{"".join(figures)}</div>'


def _strips(records: Records, groups: Sequence[Group]) -> str:
    parts = []
    for metric in shown_metrics(groups):
        drawn = html.strips(_named(records, groups, metric), column(metric))
        if drawn:
            parts.append(f"<h3>{escape(column(metric).heading)}</h3>{drawn}")
    if not parts:
        return ""
    legend = (
        '<p class="soft">Ring: a seed. Bar: the mean. Band: its 95 % interval (Student’s t), cut '
        "off at the edge. Dashed: k-means on the pixels of that cell, where it is known.</p>"
    )
    return legend + "".join(parts)


def _curves(records: Records, groups: Sequence[Group]) -> str:
    frame = records.evaluations
    if frame.empty:
        return ""
    shown = list(groups)[:MAX_PANELS]
    parts = []
    by_trial = {key: rows for key, rows in frame.groupby("trial_key", sort=False)}
    known = [m for m in shown_metrics(groups) if m in frame]
    for metric in dict.fromkeys([*known[:1], *known[-1:]]):
        panels = []
        for group in shown:
            lines = {}
            for trial in group.trials:
                rows = by_trial.get(trial["trial_key"])
                if rows is not None:
                    points = zip(rows["iteration"].astype(int), rows[metric], strict=True)
                    lines[trial["seed"]] = [(int(i), float(v)) for i, v in points]
            panels.append((group.label(swept(records)), lines))
        drawn = html.curves(panels, column(metric))
        if drawn:
            parts.append(f"<h3>{escape(column(metric).heading)} over iterations</h3>{drawn}")
    if not parts:
        return ""
    more = f" The first {MAX_PANELS} of {len(groups)} cells." if len(groups) > len(shown) else ""
    return f'<p class="soft">A line per seed, the same axes everywhere.{more}</p>' + "".join(parts)


def _sheets(records: Records, groups: Sequence[Group]) -> str:
    metric, axes = shown_metrics(groups)[0], swept(records)
    spec = column(metric)
    figures, n_cells = [], 0
    for group in groups:
        values = sorted(group.summary(metric).values, key=lambda item: item[1])
        if not values or n_cells == MAX_SHEETS:
            continue
        if spec.better == "lower":
            values.reverse()
        found = []
        ends = [("worst", values[0]), ("best", values[-1])][len(values) == 1 :]
        for rank, (seed, value) in reversed(ends):
            picture = _picture(records, group, seed)
            word = "" if len(ends) == 1 else f", {rank} seed"
            text = f"{group.label(axes)}: seed {seed}{word}, {spec.label} {spec.amount(value)}"
            if picture:
                alt = f"Samples: {text}"
                found.append(
                    f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{picture}">'
                    f"<figcaption>{escape(text)}</figcaption></figure>"
                )
            trial = next(t for t in group.done if t["seed"] == seed)
            found.append(confusion(records.run_dir(trial), text))
        figures += found
        n_cells += any(found)
    if not any(figures):
        return ""
    return (
        f'<p class="soft">Best and worst seed by {escape(spec.label)}, two columns '
        f"per cluster, and how many percent of each label are in each cluster; up to {MAX_SHEETS} "
        "cells. They illustrate and prove nothing.</p>"
        f'<div class="sheets">{"".join(figures)}</div>'
    )


def _picture(records: Records, group: Group, seed: int) -> str:
    folder = records.run_dir(next(t for t in group.done if t["seed"] == seed))
    path = folder / PICTURE if folder else None
    return base64.b64encode(path.read_bytes()).decode() if path and path.is_file() else ""


def _failures(records: Records, groups: Sequence[Group]) -> str:
    axes = swept(records)
    rows = [
        [_cell_name(g, axes), str(t["seed"]), t["state"], f"{t['iteration']:,}", t["cause"] or ""]
        for g in groups
        for t in g.trials
        if t["state"] != DONE
    ]
    models = [f"{g.label(axes)}: {g.failures()}" for g in groups if g.failures()]
    odd = _list("Finished, but saturated or collapsed (Appendix D)", models)
    odd += _list("Records", records.notes[:50])
    if not rows:
        return "<p>Every planned trial finished.</p>" + odd
    return _plain_table(["cell", "seed", "state", "iteration", "cause"], rows) + odd


def _list(title: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h3>{escape(title)}</h3><ul>{lines}</ul>" if lines else ""


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th class="l">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{_width(item)}">{escape(item)}</td>' for item in row)
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _width(text: str) -> str:
    """Long text may wrap."""
    return "l w" if len(text) > 48 else "l"


def _provenance(records: Records, groups: Sequence[Group]) -> str:
    first, axes = groups[0].settings, swept(records)
    shared = {
        n: first[n]
        for n in DEFAULTS
        if n != "seed" and all(g.settings[n] == first[n] for g in groups)
    }
    settings = ", ".join(f"{short(n)}={value_text(v)}" for n, v in shared.items())
    trials = [t for g in groups for t in g.trials]
    facts = [
        ["sweep", ", ".join(s.name for s in records.sweeps)],
        ["grids", "; ".join(g for s in records.sweeps for g in s.grids) or "none"],
        ["code", _distinct(trials, "code")],
        ["images", f"{_distinct(trials, 'n_images')}, content {_distinct(trials, 'fingerprint')}"],
        ["device", _distinct(trials, "device")],
        ["selection", f"{records.moment}; {records.selection}"],
    ]
    rows = [
        [t["trial_key"], _cell_name(g, axes), str(t["seed"]), t["state"], _text(t["run_dir"])]
        + [_text(t["mlflow_run"]), _text(t["code"]), _text(t["digest"])]
        for g in groups
        for t in g.trials
    ]
    head = ["trial", "cell", "seed", "state", "run directory", "MLflow run", "code", "records"]
    return (
        _plain_table(["", ""], facts)
        + f"<p>Settings that all cells share: <code>{escape(settings)}</code></p>"
        + f"<details><summary>Every trial ({len(rows)})</summary>"
        + f"{_plain_table(head, rows)}</details>"
    )


def _distinct(trials: Sequence[dict[str, Any]], name: str) -> str:
    values = {t[name] for t in trials if t["state"] == DONE and t[name] is not None}
    return " and ".join(_text(v) for v in sorted(values, key=str)) or "unknown"


def _text(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
