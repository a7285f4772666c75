"""Figures for a paper: the effect of each axis, and the heat map of a grid of two axes.

A figure takes axes and gives them back; what is written is PDF and PNG without time stamps, in one
style, in colours that every kind of colour vision tells apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import stats
from analysis.cells import Group
from analysis.columns import Column, column
from analysis.frame import short
from analysis.html import COLOURS
from mpcc.config import value_text

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
    "svg.hashsalt": "mpcc",
}
WIDTH = 3.3
"""Inches: one column of a two-column page."""

MAX_LINES = 7
"""Levels of a second axis that are drawn as lines of their own: there are so many colours."""


def figures(groups: Sequence[Group], axes: Sequence[str], metric: str) -> dict[str, bytes]:
    """File name -> content: `effect-<axis>` for each axis, `heatmap` for a full grid of two."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    used = [g for g in groups if g.summary(metric).n and not g.part and not g.variant]
    varied = [a for a in axes if len({g.settings[a] for g in used}) > 1]
    made: dict[str, bytes] = {}
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        for axis in varied:
            figure, ax = plt.subplots(figsize=(WIDTH, 0.75 * WIDTH))
            effect(used, axis, [a for a in varied if a != axis], metric, ax)
            made |= _files(figure, f"effect-{short(axis)}")
            plt.close(figure)
        if len(varied) == 2:
            figure, ax = plt.subplots(figsize=(WIDTH, 0.8 * WIDTH))
            heatmap(used, (varied[0], varied[1]), metric, ax)
            made |= _files(figure, "heatmap")
            plt.close(figure)
    return made


def effect(
    groups: Sequence[Group], axis: str, others: Sequence[str], metric: str, ax: Axes
) -> Axes:
    """Mean and 95 % interval along one axis, a line per setting of the others, dots for seeds."""
    spec = column(metric)
    levels = _levels(groups, axis)
    lines: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        lines.setdefault(tuple(value_text(group.settings[a]) for a in others), []).append(group)
    ranked = sorted(lines.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_LINES]
    for i, (setting, members) in enumerate(ranked):
        label = ", ".join(f"{short(a)} {v}" for a, v in zip(others, setting, strict=True))
        shift = 0.08 * (i - (len(ranked) - 1) / 2)
        _line(members, axis, levels, spec, ax, COLOURS[i], label or None, shift)
    ax.set_xticks(range(len(levels)), [value_text(v) for v in levels])
    ax.set_xlabel(short(axis))
    ax.set_ylabel(_label(spec))
    if others and len(ranked) > 1:
        ax.legend(fontsize=7)
    return ax


def _line(
    members: Sequence[Group],
    axis: str,
    levels: Sequence[Any],
    spec: Column,
    ax: Axes,
    colour: str,
    label: str | None,
    shift: float,
) -> None:
    members = sorted(members, key=lambda g: levels.index(g.settings[axis]))
    x = np.array([levels.index(g.settings[axis]) + shift for g in members])
    summaries = [g.summary(spec.metric) for g in members]
    means = [s.mean.estimate * spec.scale for s in summaries]
    ax.plot(x, means, color=colour, marker="o", markersize=3.5, label=label, zorder=3)
    for place, summary in zip(x, summaries, strict=True):
        values = summary.array * spec.scale
        ax.scatter(np.full(len(values), place), values, s=7, color=colour, alpha=0.35, linewidths=0)
        if math.isfinite(summary.mean.low):
            ends = [summary.mean.low * spec.scale, summary.mean.high * spec.scale]
            ax.plot([place, place], ends, color=colour, linewidth=0.8)


def heatmap(groups: Sequence[Group], axes: tuple[str, str], metric: str, ax: Axes) -> Axes:
    """Means over a grid of two axes, written into their places; one without cells is blank."""
    spec = column(metric)
    rows, columns = _levels(groups, axes[0]), _levels(groups, axes[1])
    values = np.full((len(rows), len(columns)), math.nan)
    for group in groups:
        place = rows.index(group.settings[axes[0]]), columns.index(group.settings[axes[1]])
        values[place] = stats.mean(group.summary(metric).array).estimate * spec.scale
    ax.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    if values.size <= 120:
        for (i, j), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "black" if value > middle else "white"
                text = f"{value:.{spec.decimals}f}"
                ax.text(j, i, text, ha="center", va="center", color=ink, fontsize=7)
    ax.set_xticks(range(len(columns)), [value_text(v) for v in columns])
    ax.set_yticks(range(len(rows)), [value_text(v) for v in rows])
    ax.set_xlabel(short(axes[1]))
    ax.set_ylabel(short(axes[0]))
    ax.set_title(_label(spec), fontsize=8)
    return ax


def _label(spec: Column) -> str:
    return spec.heading.replace("×10⁻³", r"$\times 10^{-3}$")


def _levels(groups: Sequence[Group], axis: str) -> list[Any]:
    """The settings on an axis, numbers by size, all else by its text."""
    values = {g.settings[axis] for g in groups}
    numbers = all(isinstance(v, int | float) for v in values)
    return sorted(values, key=None if numbers else value_text)


def _files(figure: Figure, name: str) -> dict[str, bytes]:
    """The figure as PDF and PNG; no date or program name enters, so bytes repeat."""
    made = {}
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=300, metadata=metadata)
        made[f"{name}.{kind}"] = file.getvalue()
    return made
