"""One self-contained HTML page of a sweep: it needs no network, no server and no other file.

Only its links to the folders of trials and to MLflow lead elsewhere.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from analysis.output import html
from analysis.records.frame import PLANNED, RUNNING, STOPPED, Records
from analysis.report.confusion import figure as confusion
from analysis.report.details import failures, folded, provenance, trials
from analysis.report.summary import answers
from analysis.tables.assemble import Product, search_of
from analysis.tables.columns import column
from analysis.tables.groups import Group, tally
from analysis.tables.groups import groups as groups_of
from analysis.tables.layout import Table, on_one_page, own_sentence
from analysis.tables.shared import progress, shown_metrics, value_cell

ABOUT = (
    '<p class="soft">MPCC is a network that sorts images into clusters without labels and draws '
    "new ones (Matching Priors and Conditionals for Clustering, ECCV 2020; “the paper” below). A "
    "sweep trains it with several settings, each with several seeds.</p>"
)
SCREEN_DPI = 200
MAX_PANELS, MAX_SHEETS = 60, 12
"""At most this many cells have their curves, and their pictures, shown; the page says how many."""

PICTURES = {
    "samples.png": "drawn by the model, none of them real, two columns for each cluster, headed by "
    "its number",
    "reconstructions.png": "pairs under each label: the real image, and right of it its "
    "reconstruction",
}
"""File of a trial's folder -> what it shows."""


def report(
    records: Records,
    groups: Sequence[Group],
    products: Sequence[Product],
    test: str,
    *,
    pictures: bool = True,
    verdicts: Sequence[str] = (),
    place: Path | None = None,
) -> str:
    """The HTML of the page. verdicts: lines that compare a search with another sweep.

    place: the folder of the page, from which it links to the trials' folders; None if those are not
    kept. The same records give the same bytes: the page holds no time stamp and no path of a
    machine.
    """
    title = " and ".join(dict.fromkeys(str(group.settings["dataset"]) for group in groups))
    result = next((p.result for p in products if p.result), None)
    fresh = groups_of(records, confirm=True)
    answered = "".join(
        f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>"
        for question, answer in answers(records, groups, result, test).items()
    )
    tables: dict[str, Table] = {}  # By title: Table 1 and the grid may share a confirmation.
    for table in (table for product in products for table in product.tables):
        tables.setdefault(table.title, table)
    sections = {
        "Summary": f'<dl class="answers">{answered}</dl>',
        "Search": _search(records, groups, products, verdicts),
        "Effects": _effects(records, groups),
        "Seeds": _strips(groups),
        "Curves": _curves(records, groups),
        "Tables": _tables([*tables.values()]),
        "Pictures": _sheets(records, groups) if pictures else "",
        "Failures": failures(records, [*groups, *fresh]),
        "Trials": trials(records, [*groups, *fresh], place),
        "Provenance": provenance(records, [*groups, *fresh]),
    }
    kept = {name: body for name, body in sections.items() if body}
    links = " ".join(f'<a href="#{name.lower()}">{name}</a>' for name in kept)
    body = "".join(f'<h2 id="{n.lower()}">{n}</h2>{content}' for n, content in kept.items())
    css, js = html.asset("report.css"), html.asset("report.js")
    to_come = not {PLANNED, RUNNING, STOPPED}.isdisjoint(tally(groups))
    badge = f'<span class="badge{" open" if to_come else ""}">{progress(groups)}</span>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>MPCC ablation: {escape(title)}</title><style>{css}</style></head><body>"
        f"<header><h1>MPCC ablation: {escape(title)}</h1><p>{badge}</p>{ABOUT}"
        f"<nav>{links}</nav></header>"
        f"<main>{body}</main><script>{js}</script></body></html>\n"
    )


def _effects(records: Records, groups: Sequence[Group]) -> str:
    """Figures of the first metric along each axis; matplotlib is imported only if there is one."""
    axes, metric = records.swept, shown_metrics(groups)[0]
    if records.searches or not axes or not any(group.summary(metric).n for group in groups):
        return ""
    from analysis.output.figures import figures

    label, drawn = column(metric).heading, []
    for name, png in figures(groups, axes, metric, ("png",), SCREEN_DPI).items():
        axis = name.removesuffix(".png").removeprefix("effect-")
        text = f"Mean {label} in every cell"
        if axis != "heatmap":
            text = (
                f"{label} along {axis}. Large dots: means; bars: their 95 % intervals; small dots: "
                "seeds; dashed: k-means on the same pixels"
            )
        drawn.append(html.picture(png, text))
    return f'<div class="pictures">{"".join(drawn)}</div>' if drawn else ""


def _tables(tables: Sequence[Table]) -> str:
    """The tables, repeated lines only under the first, and how their numbers were made."""
    shown = on_one_page(tables)
    lines = "".join(f'<p class="lines">{escape(line)}</p>' for t in shown for line in t.made)
    how = folded("How these numbers were made", lines)
    said: set[str] = set()
    made = "".join(html.table(table) + html.terms(table, said) for table in shown)
    if any(row.grey for table in shown for row in table.rows):
        made += '<p class="lines">Grey italics: published figures; they enter no test.</p>'
    return made + (how if lines else "")


def _search(
    records: Records, groups: Sequence[Group], products: Sequence[Product], verdicts: Sequence[str]
) -> str:
    """The pictures of a search; Optuna and matplotlib are imported only if there is one."""
    if not records.searches:
        return ""
    from analysis.output.search_figures import pictures
    from analysis.searches.search import left_out

    search = search_of(records, groups, products)
    told = (own_sentence(records.selection), *left_out(records), *verdicts)
    parts = [f"<p>{escape(line)}</p>" for line in told]
    figures = []
    for name, (png, text) in (pictures(search) if search else {}).items():
        figures.append(html.picture(png, text, wide=name == "parallel"))
    none = "<p>No point is complete yet.</p>" if not figures else ""
    return "".join(parts) + none + f'<div class="pictures">{"".join(figures)}</div>'


def _strips(groups: Sequence[Group]) -> str:
    scratch, parts = Table("", ""), []
    for metric in shown_metrics(groups):
        named = [(g.label(), g, value_cell(scratch, g, metric).text) for g in groups]
        if drawn := html.strips(named, column(metric)):
            spec = column(metric)
            better = f"; {spec.better} is better" if spec.better != "neither" else ""
            what = f'<p class="soft">{escape(spec.protocol.removesuffix("."))}{better}.</p>'
            parts.append(f"<h3>{escape(spec.heading)}</h3>{what}{drawn}")
    if not parts:
        return ""
    legend = (
        '<p class="soft">A row for each cell: the seeds of one configuration. Ring: a seed. Bar: '
        "the mean. Band: its 95 % interval (Student’s t). Dashed: k-means on the same images. "
        "Right: mean ± standard deviation over the seeds, their scatter.</p>"
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
            panels.append((group.label(), lines))
        counts = [len(points) for _, lines in panels for points in lines.values()]
        drawn = html.curves(panels, column(metric)) if max(counts, default=0) > 1 else ""
        if drawn:
            parts.append(f"<h3>{escape(column(metric).heading)} over iterations</h3>{drawn}")
    if not parts:
        return ""
    more = f" The first {MAX_PANELS} of {len(groups)} cells." if len(groups) > len(shown) else ""
    return f'<p class="soft">A line per seed, the same axes everywhere.{more}</p>' + "".join(parts)


def _sheets(records: Records, groups: Sequence[Group]) -> str:
    metric = shown_metrics(groups)[0]
    spec = column(metric)
    sign = -1 if spec.better == "lower" else 1
    parts: list[str] = []
    n_cells = 0
    valued = [group for group in groups if group.summary(metric).n]
    for group in sorted(valued, key=lambda g: -sign * g.summary(metric).mean.estimate):
        if n_cells == MAX_SHEETS:
            break
        values = sorted(group.summary(metric).values, key=lambda item: sign * item[1])
        n_parts = len(parts)
        ends = [("worst", values[0]), ("best", values[-1])][len(values) == 1 :]
        for rank, (seed, value) in reversed(ends):
            word = "" if len(ends) == 1 else f", {rank} seed"
            text = f"{group.label()}: seed {seed}{word}, {spec.reading(value)}"
            folder = records.run_dir(next(t for t in group.done if t["seed"] == seed))
            drawn = [
                html.picture((folder / name).read_bytes(), f"{text}: {what}")
                for name, what in PICTURES.items()
                if folder and (folder / name).is_file()
            ]
            drawn.append(confusion(folder, text))
            if any(drawn):
                parts.append(f'<div class="sheets">{"".join(drawn)}</div>')
        n_cells += len(parts) > n_parts
    if not parts:
        return ""
    total = f" of {len(valued)}" if n_cells == MAX_SHEETS < len(valued) else ""
    cells = f"{n_cells}{total} cells"
    return (
        f'<p class="soft">Best and worst seed by {escape(spec.label)} of {cells}, the best '
        "cell first: examples, from which no conclusion follows. A cluster’s number means nothing "
        "by itself and differs from seed to seed; the squares show which labels a cluster holds. A "
        f"click enlarges a picture.</p>{''.join(parts)}"
    )
