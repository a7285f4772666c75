"""Pictures of a search: history, importances, slices, contour, parallel coordinates, Pareto front.

As in `figures`, a drawing function takes matplotlib axes and returns them, in one style and
colour-blind-safe colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.figures import STYLE, WIDTH, saved
from analysis.output.html import COLOURS
from analysis.records.frame import short
from analysis.searches.search import Axis, Found, Importance, best, leader
from analysis.tables.columns import column, sign
from mpcc.config import value_text
from mpcc.evaluation.plots import own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP = "cividis"
LEAST_FOR_CONTOUR = 12


def pictures(search: Found) -> dict[str, tuple[bytes, str]]:
    """Name -> (PNG, what it shows); empty if no point is complete."""
    with own_style():
        return {
            name: (saved(figure, name, ("png",), 160)[f"{name}.png"], text)
            for name, (figure, text) in _figures(search).items()
        }


def files(search: Found) -> dict[str, bytes]:
    """`search-<name>.pdf` and `.png` of every picture; the same points give the same bytes."""
    made: dict[str, bytes] = {}
    with own_style():
        for name, (figure, _) in _figures(search).items():
            made |= saved(figure, f"search-{name}", ("pdf",), 100)
            made |= saved(figure, f"search-{name}", ("png",), 300)
    return made


def _figures(search: Found) -> dict[str, tuple[Figure, str]]:
    from matplotlib.figure import Figure

    made: dict[str, tuple[Figure, str]] = {}
    with own_style(STYLE):
        for name, text, plot in _plots(search) if search.points else ():
            wide = 1.7 if name == "parallel" else 1.0
            figure = Figure(figsize=(wide * WIDTH, 0.78 * WIDTH))
            plot(figure.subplots())
            made[name] = (figure, text)
    return made


def _plots(search: Found) -> Iterator[tuple[str, str, Callable[[Axes], Axes]]]:
    """The name of each picture, what it shows, and what draws it."""
    for i, name in enumerate(search.objectives):
        tag = f"-{name.replace('/', '-')}" if len(search.objectives) > 1 else ""
        label, measured = column(name).heading, search.importances[i]
        text = f"{label} of each point: mean over seeds, seeds as dots, and the best so far."
        yield f"course{tag}", text, partial(course, search, i)
        if measured:
            text = f"Share of the variation in {label} that an axis explains (fANOVA); the bar "
            text += "spans the middle 90 % of resamples of the points."
            yield f"importance{tag}", text, partial(importance, measured)
        for axis in search.axes:
            on = short(axis.name)
            text = f"{label} along {on}; all other axes vary too. Darker: earlier."
            yield f"slice{tag}-{on}", text, partial(slice_of, search, i, axis)
        pair = _pair(search, measured)
        if pair and len(search.points) >= LEAST_FOR_CONTOUR:
            over = " and ".join(short(axis.name) for axis in pair)
            text = f"{label} over {over}, interpolated between points; the others vary too."
            yield f"contour{tag}", text, partial(contour, search, i, pair)
    text = f"A line per point, coloured by {column(search.objectives[0]).heading}."
    yield "parallel", text, partial(parallel, search)
    for i, j in itertools.combinations(range(len(search.objectives)), 2):
        name = f"front-{i}-{j}" if len(search.objectives) > 2 else "front"
        text = "The Pareto front: no other point is as good in every objective and better in one."
        yield name, text, partial(front, search, i, j)


def course(search: Found, objective: int, ax: Axes) -> Axes:
    """Every point by its number, and the best mean so far as a step."""
    name = search.objectives[objective]
    spec = column(name)
    numbers = [point.number for point in search.points]
    means = np.array([point.values[objective] for point in search.points]) * spec.scale
    for point in search.points:
        seeds = point.seeds[objective] * spec.scale
        places = [point.number] * len(seeds)
        ax.scatter(places, seeds, s=6, color=COLOURS[6], alpha=0.5, linewidths=0)
    ax.scatter(numbers, means, s=16, color=COLOURS[0], zorder=3, label="mean of a point")
    grow = np.maximum if sign(name) > 0 else np.minimum
    able = search.candidates
    so_far = grow.accumulate(np.array([p.values[objective] for p in able]) * spec.scale)
    label, steps = "best so far", [point.number for point in able]
    ax.step(steps, so_far, where="post", color=COLOURS[1], label=label)
    ax.set(xlabel="point", ylabel=spec.heading)
    ax.legend(fontsize=7)
    return ax


def importance(measured: Sequence[Importance], ax: Axes) -> Axes:
    """A bar per axis, the most important on top, with the spread over resamples."""
    ranked = sorted(measured, key=lambda i: i.mean)
    places, means = np.arange(len(ranked)), np.array([i.mean for i in ranked])
    errors = np.abs([[i.mean - i.low for i in ranked], [i.high - i.mean for i in ranked]])
    ax.barh(places, means, color=COLOURS[5], height=0.6)
    ax.errorbar(means, places, xerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    ax.set_yticks(places, [short(i.axis) for i in ranked])
    ax.set(xlim=(0, 1), xlabel="importance")
    return ax


def slice_of(search: Found, objective: int, axis: Axis, ax: Axes) -> Axes:
    """The objective along one axis, with whiskers from the lowest to the highest seed."""
    spec = column(search.objectives[objective])
    x = _places(search, axis)
    shades = np.linspace(0, 0.85, max(2, search.n_points))
    from matplotlib import colormaps

    for place, point in zip(x, search.points, strict=True):
        colour = colormaps[MAP](shades[point.number])
        seeds = point.seeds[objective] * spec.scale
        ax.plot([place, place], [min(seeds), max(seeds)], color=colour, linewidth=0.8)
        ax.scatter([place], [point.values[objective] * spec.scale], s=16, color=colour, zorder=3)
    _scale(axis, ax.xaxis, ax.set_xscale)
    ax.set(xlabel=short(axis.name), ylabel=spec.heading)
    return ax


def contour(search: Found, objective: int, axes: tuple[Axis, Axis], ax: Axes) -> Axes:
    """The objective over two axes, interpolated linearly between the points."""
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    spec = column(search.objectives[objective])
    flat = [_places(search, axis) for axis in axes]
    flat = [np.log10(x) if axis.is_log else x for axis, x in zip(axes, flat, strict=True)]
    values = np.array([point.values[objective] for point in search.points]) * spec.scale
    width = [max(float(np.ptp(f)), 1e-12) for f in flat]
    places = np.unique(
        np.round(np.stack([f / w for f, w in zip(flat, width, strict=True)]), 9), axis=1
    )
    drawn = None
    if np.linalg.matrix_rank(places - places[:, :1], tol=1e-6) == 2:
        triangles = Triangulation(flat[0], flat[1])
        drawn = ax.tricontourf(triangles, values, levels=10, cmap=MAP)
    dots = ax.scatter(
        flat[0], flat[1], c=values, cmap=MAP, s=18, edgecolors="white", linewidths=0.6, zorder=3
    )
    ax.figure.colorbar(drawn or dots, ax=ax, label=spec.heading)
    for axis, each, name in zip(axes, (ax.xaxis, ax.yaxis), "xy", strict=True):
        if axis.is_whole and not axis.is_log:
            each.set_major_locator(MaxNLocator(integer=True))
        elif axis.is_log:
            each.set_major_formatter(lambda value, _: value_text(float(f"{10**value:.2g}")))
        getattr(ax, f"set_{name}label")(short(axis.name))
    return ax


def parallel(search: Found, ax: Axes) -> Axes:
    """Parallel coordinates: a line per point, coloured by the first objective, the best last."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    spec = column(search.objectives[0])
    values = np.array([point.values[0] for point in search.points]) * spec.scale
    norm = Normalize(float(values.min()), float(values.max()))
    heights = np.stack([_heights(search, axis) for axis in search.axes])
    first = leader(search)
    for i in np.argsort(sign(search.objectives[0]) * values):
        colour, width = colormaps[MAP](norm(values[i])), 2.2 if search.points[i] is first else 1.0
        ax.plot(range(len(heights)), heights[:, i], color=colour, linewidth=width)
    for place, axis in enumerate(search.axes):
        ax.axvline(place, color="0.6", linewidth=0.6, zorder=0)
        for height, value, side in zip((-0.02, 1.02), axis.ends, ("top", "bottom"), strict=True):
            ax.text(place, height, value_text(value), ha="center", va=side, fontsize=7)
    ax.set_xticks(range(len(search.axes)), [short(axis.name) for axis in search.axes])
    ax.tick_params(axis="x", length=0, pad=12)
    ax.set(yticks=[], ylim=(-0.05, 1.1))
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.figure.colorbar(ScalarMappable(norm, MAP), ax=ax, label=spec.heading)
    return ax


def front(search: Found, i: int, j: int, ax: Axes) -> Axes:
    """All points by two objectives, the Pareto front in another colour and shape."""
    specs = [column(search.objectives[k]) for k in (i, j)]
    numbers = {point.number for point in best(search)}
    for chosen, colour, marker, label in (
        (False, COLOURS[6], "o", "other points"),
        (True, COLOURS[1], "D", "Pareto front"),
    ):
        members = [p for p in search.points if (p.number in numbers) == chosen]
        xy = [[p.values[k] * s.scale for p in members] for k, s in zip((i, j), specs, strict=True)]
        ax.scatter(xy[0], xy[1], s=20, color=colour, marker=marker, label=label)
    ax.set(xlabel=specs[0].heading, ylabel=specs[1].heading)
    ax.legend(fontsize=7)
    return ax


def _pair(search: Found, measured: Sequence[Importance]) -> tuple[Axis, Axis] | None:
    """The two most important ranges among the axes, or the first two without importances."""
    means = {i.axis: i.mean for i in measured}
    ranges = [axis for axis in search.axes if axis.is_range]
    ranges.sort(key=lambda axis: -means.get(axis.name, 0.0))
    return (ranges[0], ranges[1]) if len(ranges) > 1 else None


def _places(search: Found, axis: Axis) -> np.ndarray:
    """Where each point lies on an axis."""
    return np.array([axis.place(point.group.settings[axis.name]) for point in search.points])


def _heights(search: Found, axis: Axis) -> np.ndarray:
    """Where each point crosses an axis of the parallel coordinates, 0 to 1."""
    places, ends = _places(search, axis), np.array([axis.place(end) for end in axis.ends])
    if axis.is_log:
        places, ends = np.log(places), np.log(ends)
    return (places - ends[0]) / (ends[1] - ends[0] or 1.0)


def _scale(axis: Axis, ticks: Any, set_scale: Callable[[str], Any]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if axis.is_log:
        set_scale("log")
        low, high = axis.ends
        steps = (1, 2, 5) if high / low < 100 else (1,)
        ticks.set_major_locator(LogLocator(subs=steps))
        ticks.set_major_formatter(lambda value, _: value_text(float(f"{value:.2g}")))
        ticks.set_minor_formatter(NullFormatter())
    elif axis.is_whole:
        ticks.set_major_locator(MaxNLocator(integer=True))
    elif not axis.is_range:
        ticks.set_ticks(range(len(axis.options)), axis.options)
