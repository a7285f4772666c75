"""Pieces of the HTML report: tables that sort, strips of seeds, curves. Text in, markup out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from analysis.tables.columns import Column
from analysis.tables.groups import Group
from analysis.tables.layout import OURS, PAPER, Cell, Row, Table

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")

_HERE = Path(__file__).resolve().parent


def style() -> str:
    """The page's style sheet, which the page carries with it."""
    return (_HERE / "report.css").read_text(encoding="utf-8")


def script() -> str:
    """Sorting, the page's only script."""
    return (_HERE / "report.js").read_text(encoding="utf-8")


_UNBROKEN = re.compile(r"[\w.,]+e-\d+|(?:[pη²n]+ )?(?:&lt;|=) [\d.]+|[\d.]+ %")
"""What no line may break within: a number with its exponent, its sign or its unit."""


def prose(text: str) -> str:
    """Text as markup, its numbers whole."""
    return _UNBROKEN.sub(lambda found: f'<span class="n">{found[0]}</span>', escape(text))


def _marks(notes: tuple[int, ...]) -> str:
    return f"<sup>{','.join(map(str, notes))}</sup>" if notes else ""


def table(laid_out: Table) -> str:
    """A table with its notes. A click on a heading sorts; published rows stay with ours."""
    head = "".join(
        f'<th scope="col"{_left(h.numeric)}>'
        + (f'<button type="button">{escape(h.text)}</button>' if h.text else "")
        + f"{_marks(h.notes)}</th>"
        for h in laid_out.headings
    )
    paired = any(row.kind == OURS for row in laid_out.rows)
    body = "".join(_row(laid_out, row, paired) for row in laid_out.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in laid_out.notes)
    told = [laid_out.measured, *laid_out.lines, laid_out.chosen, laid_out.absent]
    lines = "".join(f'<p class="lines">{escape(line)}</p>' for line in told if line)
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
        text += ' <span title="cannot be told from the best">~</span>'
    number = isinstance(cell.sort, int | float) and math.isfinite(cell.sort)
    value = f' data-v="{cell.sort:.10g}"' if number else ""
    return f"<td{_left(numeric)}{value}>{text}{_marks(cell.notes)}</td>"


def strips(named: Sequence[tuple[str, Group, str]], spec: Column) -> str:
    """A row per cell: every seed as a ring, the mean as a bar, the 95 % interval as a band.

    Dashed stands what k-means reaches on the images of that cell.
    """
    values = [v for _, g, _ in named for _, v in g.summary(spec.metric).values]
    if not values:
        return ""
    known = [g.reference(spec.metric) for _, g, _ in named]
    ends = [*values, *(value for value in known if value is not None)]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or abs(high) * 0.05 or 1.0
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
"""Seed -> (iteration, value) by rising iteration."""


def curves(panels: Sequence[tuple[str, Curve]], spec: Column) -> str:
    """A small panel per cell, all on the same axes, a line per seed."""
    points = [p for _, curve in panels for line in curve.values() for p in line]
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return ""
    last = max(i for i, _ in points) or 1
    low, high = min(v for _, v in points), max(v for _, v in points)
    high = high if high > low else low + 1
    figures = [_panel(label, curve, spec, last, low, high) for label, curve in panels]
    return f'<div class="panels">{"".join(figures)}</div>'


def _panel(label: str, curve: Curve, spec: Column, last: int, low: float, high: float) -> str:
    width, height, left, bottom = 220, 130, 38, 18

    def x(iteration: int) -> float:
        return left + (width - left - 6) * iteration / last

    def y(value: float) -> float:
        return 6 + (height - bottom - 10) * (1 - (value - low) / (high - low))

    lines = []
    for seed, points in curve.items():
        finite = [(i, v) for i, v in points if math.isfinite(v)]
        path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in finite)
        colour = COLOURS[seed % len(COLOURS)]
        shape = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if len(finite) == 1:
            i, v = finite[0]
            shape = f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>'
        lines.append(f"<g><title>seed {seed}</title>{shape}</g>" if finite else "")
    axis = f"M{left},6V{height - bottom}H{width - 6}"
    ticks = (
        f'<text x="{left - 4}" y="14" text-anchor="end">{spec.shown(high)}</text>'
        f'<text x="{left - 4}" y="{height - bottom}" text-anchor="end">{spec.shown(low)}</text>'
        f'<text x="{width - 6}" y="{height - 5}" text-anchor="end">{last:,}</text>'
        f'<text x="{left}" y="{height - 5}">0</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<path d="{axis}" fill="none" stroke="#999"/>{ticks}{"".join(lines)}</svg>'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )
