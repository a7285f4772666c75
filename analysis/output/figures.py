"""Figures for a paper: the effect of each axis, and the heat map of a grid of two axes.

A drawing function takes matplotlib axes and returns them. Files are PDF and PNG without time
stamps, in one style and colour-blind-safe colours. Each figure states what it leaves out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.html import COLOURS
from analysis.records.frame import short
from analysis.tables.columns import Column, column
from analysis.tables.groups import Group
from analysis.tables.shared import sorted_levels, state_word
from mpcc.config import value_text
from mpcc.evaluation.plots import own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
WIDTH = 3.3
"""Inches: one column of a two-column page."""

MAX_TEXTS = 120
"""A heat map with more places shows no text: the places would be too small."""

MAX_LINES = 7
"""At most this many settings of the other axes are drawn as lines: one per colour."""


def figures(
    groups: Sequence[Group],
    axes: Sequence[str],
    metric: str,
    kinds: Sequence[str] = ("pdf", "png"),
    dpi: int = 300,
) -> dict[str, bytes]:
    """File name -> content: `effect-<axis>` for each varied axis, `heatmap` if two are varied."""
    grid = [g for g in groups if not g.variant]
    used = [g for g in grid if g.summary(metric).n and not g.part]
    varied = [a for a in axes if len({g.settings[a] for g in used}) > 1]
    left = left_out(groups, metric)
    made: dict[str, bytes] = {}
    with own_style(STYLE):
        from matplotlib.figure import Figure

        for axis in varied:
            figure = Figure(figsize=(WIDTH, 0.75 * WIDTH))
            others = [a for a in varied if a != axis]
            effect(used, axis, others, metric, figure.subplots(), left)
            made |= saved(figure, f"effect-{short(axis)}", kinds, dpi)
        if len(varied) == 2:
            figure = Figure(figsize=(WIDTH, 0.8 * WIDTH))
            rest = [axis for axis in axes if axis not in varied]  # One setting of each has values.
            drawn = [g for g in grid if all(g.settings[a] == used[0].settings[a] for a in rest)]
            heatmap(drawn, (varied[0], varied[1]), metric, figure.subplots())
            made |= saved(figure, "heatmap", kinds, dpi)
    return made


def left_out(groups: Sequence[Group], metric: str) -> list[str]:
    """What the figure of an axis's effect leaves out, one phrase each."""
    grid = [g for g in groups if not g.variant]
    drawn = [g for g in grid if g.summary(metric).n and not g.part]
    counts = {
        "of incomparable trials not drawn": len({g.cell_key for g in grid if g.part}),
        "without a value not drawn": sum(not (g.summary(metric).n or g.part) for g in grid),
        "of a named variant not drawn": len(groups) - len(grid),
        "with fewer seeds than planned": sum(g.summary(metric).n < g.n_planned for g in drawn),
    }
    return [f"{n} cell{'' if n == 1 else 's'} {what}" for what, n in counts.items() if n]


def effect(
    groups: Sequence[Group],
    axis: str,
    others: Sequence[str],
    metric: str,
    ax: Axes,
    left: Sequence[str] = (),
) -> Axes:
    """Mean and 95 % interval along one axis, a line per setting of the others, dots for seeds.

    The title says what the figure leaves out: `left`, and the lines beyond MAX_LINES.
    """
    spec = column(metric)
    places = {a: sorted_levels(groups, a) for a in (*others, axis)}
    levels = places[axis]
    lines: dict[tuple[str, ...], list[Group]] = {}
    for group in sorted(groups, key=lambda g: [places[a].index(g.settings[a]) for a in places]):
        lines.setdefault(tuple(value_text(group.settings[a]) for a in others), []).append(group)
    most = sorted(lines, key=lambda setting: -len(lines[setting]))[:MAX_LINES]
    ranked = [(setting, lines[setting]) for setting in lines if setting in most]
    for i, (setting, members) in enumerate(ranked):
        label = ", ".join(f"{short(a)} {v}" for a, v in zip(others, setting, strict=True))
        shift, ink = 0.08 * (i - (len(ranked) - 1) / 2), COLOURS[i]
        x = np.array([levels.index(g.settings[axis]) + shift for g in members])
        means = [g.summary(metric).mean.estimate * spec.scale for g in members]
        ax.plot(x, means, color=ink, marker="o", markersize=3.5, label=label or None, zorder=3)
        for place, summary in zip(x, (g.summary(metric) for g in members), strict=True):
            values, mean = summary.array * spec.scale, summary.mean
            dots = np.full(len(values), place)
            ax.scatter(dots, values, s=7, color=ink, alpha=0.35, linewidths=0)
            if math.isfinite(mean.low):
                ends = [mean.low * spec.scale, mean.high * spec.scale]
                ax.plot([place, place], ends, color=ink, linewidth=0.8)
    known = {group.reference(metric) for group in groups}
    reference = known.pop() if len(known) == 1 else None  # Several values: none is drawn.
    if reference is not None:
        ax.axhline(reference * spec.scale, color=COLOURS[-1], ls="--", lw=0.8, label="k-means")
    ax.set_xticks(range(len(levels)), [value_text(v) for v in levels])
    ax.set(xlabel=short(axis), ylabel=_label(spec))
    if reference is not None or (others and len(ranked) > 1):
        size = 7 if len(ranked) < 5 else 5
        ax.legend(fontsize=size, frameon=True, framealpha=0.85, edgecolor="none")
    if len(ranked) < len(lines):
        left = [*left, f"{len(ranked)} of {len(lines)} lines drawn; all are in the table"]
    if left:
        ax.set_title("\n".join(left), fontsize=6, loc="left")
    return ax


def heatmap(groups: Sequence[Group], axes: tuple[str, str], metric: str, ax: Axes) -> Axes:
    """Means over a grid of two axes, as colours and, up to MAX_TEXTS places, as text.

    The text also says what a place lacks: (n/planned), how trials ended, incomparable, not planned.
    """
    spec = column(metric)
    rows, columns = sorted_levels(groups, axes[0]), sorted_levels(groups, axes[1])
    values = np.full((len(rows), len(columns)), math.nan)
    texts: dict[tuple[int, int], str] = {}
    for group in groups:
        place = rows.index(group.settings[axes[0]]), columns.index(group.settings[axes[1]])
        summary = group.summary(metric)
        if group.part:
            texts[place] = "not com-\nparable"
            continue
        values[place] = summary.mean.estimate * spec.scale
        gap = f"\n({summary.n}/{summary.n_planned})" if summary.n < summary.n_planned else ""
        known = spec.shown(summary.mean.estimate) if summary.n else state_word(group, summary)
        texts[place] = known + gap
    drawn = ax.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.9)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    size = 6 if len(columns) <= 6 else 5
    for (i, j), text in texts.items() if values.size <= MAX_TEXTS else ():
        ink = "white" if values[i, j] <= middle else "black"
        ax.text(j, i, text, ha="center", va="center", color=ink, fontsize=size)
    for i, j in zip(*np.nonzero(np.isnan(values)), strict=True):
        if (i, j) not in texts and values.size <= MAX_TEXTS:
            ax.text(j, i, "not\nplanned", ha="center", va="center", color="0.5", fontsize=size)
    ax.set_xticks(range(len(columns)), [value_text(v) for v in columns])
    ax.set_yticks(range(len(rows)), [value_text(v) for v in rows])
    ax.set(xlabel=short(axes[1]), ylabel=short(axes[0]))
    gaps = {g.cell_key for g in groups if g.part or g.summary(metric).n < g.n_planned}
    more = f"; {len(gaps)} of {len({g.cell_key for g in groups})} cells lack values"
    without_texts = gaps and values.size > MAX_TEXTS
    ax.set_title(_label(spec) + (more if without_texts else ""), fontsize=8)
    return ax


def _label(spec: Column) -> str:
    return spec.heading.replace("×10⁻³", r"$\times 10^{-3}$")


def saved(figure: Figure, name: str, kinds: Sequence[str], dpi: int) -> dict[str, bytes]:
    """File name -> the figure in each format, without a date, so that bytes are reproducible."""
    made = {}
    unsaid = {"pdf": "CreationDate", "png": "Software"}
    for kind in kinds:
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=dpi, metadata={unsaid[kind]: None})
        made[f"{name}.{kind}"] = file.getvalue()
    return made
