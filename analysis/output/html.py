"""Pieces of the HTML report: tables that sort, strips of seeds, curves, pictures that enlarge.

Text goes in, markup comes out.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from analysis.statistics import stats
from analysis.tables.columns import Column
from analysis.tables.groups import Group
from analysis.tables.layout import OURS, PAPER, Cell, Row, Table

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


def asset(name: str) -> str:
    """The text of a file beside this module, to be embedded in the page."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _marks(notes: tuple[int, ...]) -> str:
    return f"<sup>{','.join(map(str, notes))}</sup>" if notes else ""


def table(laid_out: Table) -> str:
    """A table with its notes. A click on a heading sorts; published rows stay with ours."""
    head = "".join(
        f'<th scope="col"{_left(h.numeric)}>'
        + (f'<button type="button">{escape(h.text)}</button>' if h.text else "")
        + "</th>"
        for h in laid_out.headings
    )
    paired = any(row.kind == OURS for row in laid_out.rows)
    body = "".join(_row(laid_out, row, paired) for row in laid_out.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in laid_out.notes)
    lines = "".join(f'<p class="lines">{escape(line)}</p>' for line in laid_out.told())
    first = laid_out.notes_above + 1
    caption = f"<caption><span>{escape(laid_out.title)}</span></caption>"
    return (
        f'<div class="scroll"><table class="sort">{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'<ol class="notes" start="{first}">{notes}</ol>' if notes else "")
        + lines
    )


def _left(numeric: bool) -> str:
    return "" if numeric else ' class="l"'


def _row(laid_out: Table, row: Row, paired: bool) -> str:
    classes = [row.kind] if row.kind != PAPER or paired else []
    classes += ["grey"] if row.grey else []
    cells = "".join(
        _cell(cell, heading.numeric)
        for cell, heading in zip(row.cells, laid_out.headings, strict=True)
    )
    return f'<tr class="{" ".join(classes)}">{cells}</tr>'


def _cell(cell: Cell, numeric: bool) -> str:
    text = escape(cell.text)
    if cell.best:
        text = f"<strong>{text}</strong>"
    elif cell.tied:
        text += ' <span title="no significant difference from the best">~</span>'
    known = cell.sort is not None and math.isfinite(cell.sort)
    value = f' data-v="{cell.sort:.10g}"' if known else ""
    return f"<td{_left(numeric)}{value}>{text}{_marks(cell.notes)}</td>"


TERMS = {
    "95 % interval": "a range of plausible true differences; of many such intervals 95 in 100 hold "
    "the true one",
    "g": "the difference in units of the spread over seeds; 0.8 is commonly called large",
    "p": "the probability of a test statistic at least this extreme if there were no true "
    "difference",
    "p (Holm)": "p made larger since several cells were compared; below 0.05 a cell differs, and "
    "only this decides, not the interval, which is of one comparison",
    "seeds needed": "seeds per cell that would find such a difference four times in five",
    "df": "degrees of freedom of the effect; for one axis, its levels less one",
    "F": "mean square of the effect over the residual mean square",
    "η²": "share of all variation that goes with the effect, 0 to 1; the rest is unexplained",
    "importance": "share of the objective's variation over the searched space, 0 to 1",
}
"""What the headings of statistics mean, in plain words."""


def terms(laid_out: Table, said: set[str]) -> str:
    """The meaning of this table's statistics, except those in `said`, to which it adds them."""
    new = [h.text for h in laid_out.headings if h.text in TERMS and h.text not in said]
    said.update(new)
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(TERMS[name])}</dd>" for name in new)
    return f'<dl class="terms">{items}</dl>' if new else ""


class Markup(str):
    """Text that is markup already."""


def markup(text: str) -> str:
    """The text, escaped unless it is markup already."""
    return text if isinstance(text, Markup) else escape(text)


def link(address: str, text: str) -> Markup:
    """A link in the page's text."""
    return Markup(f'<a href="{escape(address)}">{escape(text)}</a>')


def picture(png: bytes, text: str, *, wide: bool = False) -> str:
    """A figure with its caption; a click enlarges it to the window, a second click restores it."""
    data = base64.b64encode(png).decode()
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure{kind}><label><input type="checkbox" aria-label="enlarge">'
        f'<img alt="{escape(text)}" src="data:image/png;base64,{data}"></label>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def strips(named: Sequence[tuple[str, Group, str]], spec: Column) -> str:
    """A row per cell: every seed as a ring, the mean as a bar, the 95 % interval as a band.

    A dashed mark shows the value of k-means on the images of that cell.
    """
    values = [v for _, g, _ in named for _, v in g.summary(spec.metric).values]
    if not values:
        return ""
    known = [g.reference(spec.metric) for _, g, _ in named]
    means = [g.summary(spec.metric).mean for _, g, _ in named if g.summary(spec.metric).n > 2]
    intervals = [end for mean in means for end in (mean.low, mean.high)]
    ends = [*values, *(value for value in known if value is not None), *intervals]
    low, high = min(ends), max(ends)
    margin = 0.03 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> str:
        return f"{100 * min(max((value - low) / (high - low), 0), 1):.2f}%"

    rows = []
    for (label, group, shown), reference in zip(named, known, strict=True):
        summary = group.summary(spec.metric)
        marks = []
        interval = summary.mean
        if math.isfinite(interval.low):
            left, right = (min(max(x, low), high) for x in (interval.low, interval.high))
            width = f"{100 * (right - left) / (high - low):.2f}%"
            title = f"95 % interval {spec.shown(interval.low)} to {spec.shown(interval.high)}"
            marks.append(f'<u style="left:{place(left)};width:{width}" title="{title}"></u>')
        if reference is not None:
            marks.append(f'<s style="left:{place(reference)}" title="k-means"></s>')
        if summary.n > 1:
            marks.append(f'<b style="left:{place(interval.estimate)}" title="mean"></b>')
        marks += [
            f'<i style="left:{place(v)}" title="seed {seed}: {spec.shown(v)}"></i>'
            for seed, v in summary.values
        ]
        rows.append(
            f'<div class="row"><span class="name">{escape(label)}</span>'
            f'<div class="strip">{"".join(marks)}</div>'
            f'<span class="shown">{escape(shown)}</span></div>'
        )
    scale = f"<span>{spec.shown(low)}</span><span>{spec.shown(high)}</span>"
    rows.append(f'<div class="row"><span></span><div class="scale">{scale}</div></div>')
    return f'<div class="strips">{"".join(rows)}</div>'


Curve = Mapping[int, Sequence[tuple[int, float]]]
"""Seed -> (iteration, value) pairs in order of iteration."""


def curves(panels: Sequence[tuple[str, Curve]], spec: Column) -> str:
    """A small panel per cell, all on the same axes: a line per seed, their mean with its band."""
    points = [p for _, curve in panels for line in curve.values() for p in line]
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return ""
    last = max(i for i, _ in points) or 1
    low, high = min(v for _, v in points), max(v for _, v in points)
    high = high if high > low else low + 1
    seeds = sorted({seed for _, curve in panels for seed in curve})
    keys = [(COLOURS[seed % len(COLOURS)], f"seed {seed}") for seed in seeds[: len(COLOURS)]]
    if any(_means(curve) for _, curve in panels):
        keys.append(("var(--ink)", "mean; grey: its 95 % interval (Student’s t)"))
    legend = "".join(f'<span><i style="background:{c}"></i>{text}</span>' for c, text in keys)
    figures = [_panel(label, curve, spec, (last, low, high)) for label, curve in panels]
    return f'<p class="key">{legend}</p><div class="panels">{"".join(figures)}</div>'


def _panel(label: str, curve: Curve, spec: Column, ends: tuple[int, float, float]) -> str:
    width, height, left, bottom = 220, 130, 44, 18
    last, low, high = ends

    def x(iteration: int) -> float:
        return left + (width - left - 6) * iteration / last

    def y(value: float) -> float:
        return 6 + (height - bottom - 10) * (1 - (min(max(value, low), high) - low) / (high - low))

    def path(points: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in points)

    lines = []
    for seed, points in curve.items():
        finite = [(i, v) for i, v in points if math.isfinite(v)]
        colour = COLOURS[seed % len(COLOURS)]
        shape = f'<polyline points="{path(finite)}" fill="none" stroke="{colour}"/>'
        if len(finite) == 1:
            i, v = finite[0]
            shape = f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>'
        lines.append(f"<g><title>seed {seed}</title>{shape}</g>" if finite else "")
    means = _means(curve)
    if means:
        upper = [(i, mean.high) for i, mean in means]
        lower = [(i, mean.low) for i, mean in reversed(means)]
        middle = path([(i, mean.estimate) for i, mean in means])
        lines.insert(0, f'<polygon points="{path([*upper, *lower])}" fill="#0002"/>')
        lines.append(f'<polyline class="mean" points="{middle}" fill="none"/>')
    axis = f"M{left},6V{height - bottom}H{width - 6}"
    ticks = []
    for part in (0.0, 0.5, 1.0):
        value, at = low + part * (high - low), round(part * last)
        axis += f"M{left - 3},{y(value):.1f}h3M{x(at):.1f},{height - bottom}v3"
        anchor = {0.0: "start", 1.0: "end"}.get(part, "middle")
        ticks.append(
            f'<text x="{left - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{spec.shown(value)}'
            f'</text><text x="{x(at):.1f}" y="{height - 4}" '
            f'text-anchor="{anchor}">{at:,}</text>'
        )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<path d="{axis}" fill="none" stroke="#999"/>{"".join(ticks)}{"".join(lines)}</svg>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )


def _means(curve: Curve) -> list[tuple[int, stats.Estimate]]:
    """(iteration, mean) for each iteration at which every seed has a finite value; empty below two
    seeds or two such iterations."""
    values = [{i: v for i, v in points if math.isfinite(v)} for points in curve.values()]
    shared = set.intersection(*map(set, values)) if len(values) > 1 else set()
    means = [(i, stats.mean(np.array([known[i] for known in values]))) for i in sorted(shared)]
    return means if len(means) > 1 else []
