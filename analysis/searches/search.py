"""Tables of a search: its best points and the importance of each axis.

Only complete points are used: a point with a diverged, failed or pruned seed has no mean. The
Optuna study that fANOVA needs is rebuilt from the records, so study.db is not needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.records.frame import Records, short
from analysis.statistics import stats
from analysis.tables.columns import column, sign
from analysis.tables.comparable import collapse
from analysis.tables.groups import Group
from analysis.tables.layout import Cell, Heading, Row, Table
from analysis.tables.shared import row_notes
from mpcc.config import value_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

N_RESAMPLES = 24
LEAST_POINTS = 8
"""With fewer complete points, no importance is computed."""
N_BEST = 10


@dataclass(frozen=True)
class Point:
    """A complete point of a search."""

    number: int
    group: Group
    seeds: tuple[np.ndarray, ...]
    """For each objective, the value of every seed: shape (n_seeds,), in recorded units."""
    values: tuple[float, ...]
    """For each objective, the mean over the seeds."""


@dataclass(frozen=True)
class Axis:
    """A searched field: a range, or a list of values."""

    name: str
    entry: Any
    """{low, high, log, step} or the list of its values, as sweep.json has it."""

    @property
    def is_range(self) -> bool:
        """Whether it is a range from low to high, not a list of values."""
        return isinstance(self.entry, Mapping)

    @property
    def is_log(self) -> bool:
        """Whether the axis was searched on a logarithmic scale."""
        return self.is_range and bool(self.entry.get("log"))

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return self.is_range and isinstance(self.entry["low"], int)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The lowest and the highest value, or the first and the last of the list."""
        entry = self.entry
        return (entry["low"], entry["high"]) if self.is_range else (entry[0], entry[-1])

    @property
    def options(self) -> list[str]:
        """The values of a list, as text."""
        return [_text(value) for value in self.entry]

    def place(self, value: Any) -> float:
        """The coordinate of a value on the axis: the value itself, or its index in the list."""
        return float(value if self.is_range else self.options.index(_text(value)))


@dataclass(frozen=True)
class Found:
    """What a search looked for and found."""

    axes: tuple[Axis, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    n_points: int
    points: tuple[Point, ...]

    @cached_property
    def candidates(self) -> list[Point]:
        """The points that can be the best: without a collapsed seed, or all if each has one."""
        sound = [point for point in self.points if not collapse([point.group])]
        return sound or list(self.points)

    @cached_property
    def importances(self) -> list[list[Importance]]:
        """For each objective, the importance of every axis; empty if there are too few points."""
        return [_importances(self, i) for i in range(len(self.objectives))]


@dataclass(frozen=True)
class Importance:
    """An axis's share (0 to 1) of an objective's variation over the search space, by fANOVA."""

    axis: str
    mean: float
    low: float
    high: float
    """`low` to `high`: the middle 90 % of bootstrap resamples of the points."""


def found(records: Records, groups: Sequence[Group]) -> Found | None:
    """The first search among these records; None if there is none."""
    plan = next(iter(records.searches), None)
    if plan is None:
        return None
    objectives, seeds = tuple(plan["objectives"]), tuple(plan["seeds"])
    by_key = {group.cell_key: group for group in groups if not group.part}
    points = []
    for number, key in enumerate(plan["points"]):
        group = by_key.get(key)
        known = [dict(group.summary(name).values) for name in objectives] if group else []
        if group and all(seed in values for values in known for seed in seeds):
            of_seeds = tuple(np.array([values[seed] for seed in seeds]) for values in known)
            means = tuple(math.fsum(values) / len(seeds) for values in of_seeds)
            points.append(Point(number, group, of_seeds, means))
    axes = tuple(Axis(name, entry) for name, entry in plan["space"].items())
    return Found(axes, objectives, seeds, len(plan["points"]), tuple(points))


def left_out(records: Records) -> list[str]:
    """A line on the searches that `found` leaves out."""
    n = len(records.searches)
    return [f"Of {n} searches only the first is shown: name one folder."] if n > 1 else []


def best(search: Found) -> list[Point]:
    """The best point, or the Pareto front of several objectives, by number."""
    signs = np.array([sign(name) for name in search.objectives])
    gains = [signs * np.array(point.values) for point in search.candidates]
    front = [
        point
        for point, own in zip(search.candidates, gains, strict=True)
        if not any((other >= own).all() and (other > own).any() for other in gains)
    ]
    return front if len(search.objectives) > 1 else front[:1]


def leader(search: Found) -> Point | None:
    """The best point by the first objective; None if no point is complete."""
    up = sign(search.objectives[0])
    return max(best(search), key=lambda point: up * point.values[0], default=None)


def tables(search: Found) -> list[Table]:
    """The best points, and the importance of the axes if there are enough points."""
    made = [best_table(search)]
    return [*made, importance_table(search)] if any(search.importances) else made


def best_table(search: Found) -> Table:
    """The best points by the objective, or the Pareto front."""
    front, several, n = best(search), len(search.objectives) > 1, len(search.seeds)
    up = sign(search.objectives[0])
    shown = front if several else search.points
    ranked = sorted(shown, key=lambda p: (-up * p.values[0], p.number))[:N_BEST]
    what = "Pareto front" if several else "Best points"
    complete = f"{len(search.points)} of {search.n_points} complete"
    table = Table("search", f"{what} of the search: {complete}")
    table.headings = [Heading("point"), *(Heading(short(axis.name)) for axis in search.axes)]
    table.headings += [Heading(column(name).heading) for name in search.objectives]
    for point in ranked:
        star = not several and point in front and not collapse([point.group])
        cells = [Cell(str(point.number), row_notes(table, point.group), sort=point.number)]
        cells += [Cell(value_text(point.group.settings[axis.name])) for axis in search.axes]
        for name, seeds, value in zip(search.objectives, point.seeds, point.values, strict=True):
            spread = f" ± {column(name).shown(stats.std(seeds))}" if n > 1 else ""
            text = column(name).shown(stats.mean(seeds).estimate) + spread
            cells.append(Cell(text, best=star, sort=value))
        table.rows.append(Row(tuple(cells)))
    table.measured = "One seed per point: no spread."
    if n > 1:
        table.measured = f"Mean ± standard deviation over n = {n} seeds (ddof 1)."
    if not several:
        curse = "The best of many looks better than it is (the winner's curse)"
        table.lines.append(f"{curse}: confirm it on fresh seeds.")
    if any(collapse([point.group]) for point in search.points):
        table.lines.append("A point with a collapsed seed is not called the best.")
    if len(search.points) < LEAST_POINTS:
        table.absent = (
            f"No importance of the axes: it needs {LEAST_POINTS} complete points, here are "
            f"{len(search.points)}."
        )
    return table


def importance_table(search: Found) -> Table:
    """fANOVA's importance of each axis, with its range over bootstrap resamples of the points."""
    table = Table("search-importance", "Importance of each axis (fANOVA)")
    table.headings = [Heading("axis", numeric=False)]
    table.headings += [Heading(column(name).heading) for name in search.objectives]
    by_axis = [{i.axis: i for i in importance} for importance in search.importances]
    names = [axis.name for axis in search.axes]
    for axis in sorted(names, key=lambda a: -by_axis[0][a].mean if by_axis[0] else 1):
        cells = [Cell(short(axis))]
        for known in by_axis:
            own = known.get(axis)
            text = f"{own.mean:.2f} ({own.low:.2f} to {own.high:.2f})" if own else "–"
            cells.append(Cell(text, sort=own.mean if own else None))
        table.rows.append(Row(tuple(cells)))
    table.lines = [
        "Share of the objective's variation over the space that an axis explains by itself; in "
        "brackets the middle 90 % of resamples of the points."
    ]
    table.made = [
        f"Importance by fANOVA on a random forest, over {N_RESAMPLES} resamples of the "
        f"{len(search.points)} complete points. A sampler that has gone for good points saw less "
        "of the rest: with few points take it as a hint."
    ]
    return table


def _importances(search: Found, objective: int) -> list[Importance]:
    """The importance of each axis over bootstrap resamples of the points, a forest for each."""
    if len(search.points) < LEAST_POINTS:
        return []
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = _trials(search, objective)
    rng, shares = np.random.default_rng(0), []
    for seed in range(N_RESAMPLES):
        chosen = [trials[i] for i in rng.integers(0, len(trials), len(trials))]
        if len({trial.value for trial in chosen}) < 2:
            continue
        study = optuna.create_study()
        study.add_trials(chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares.append(FanovaImportanceEvaluator(n_trees=32, seed=seed).evaluate(study))
    if not shares:
        return []
    made = []
    for axis in search.axes:
        values = np.array([share.get(short(axis.name), 0.0) for share in shares])
        low, high = np.quantile(values, (0.05, 0.95))
        made.append(Importance(axis.name, float(values.mean()), float(low), float(high)))
    return made


def _trials(search: Found, objective: int) -> list[FrozenTrial]:
    from optuna.trial import create_trial

    kinds = {short(axis.name): _distribution(axis) for axis in search.axes}
    return [
        create_trial(
            params={short(a.name): _category(point.group.settings[a.name]) for a in search.axes},
            distributions=kinds,
            value=point.values[objective],
        )
        for point in search.points
    ]


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna import distributions as kinds

    if not axis.is_range:
        return kinds.CategoricalDistribution([_category(value) for value in axis.entry])
    low, high = axis.ends
    if isinstance(low, int) and isinstance(high, int):
        step = axis.entry.get("step") or 1
        return kinds.IntDistribution(low, high, log=axis.is_log, step=step)
    return kinds.FloatDistribution(low, high, log=axis.is_log)


def _category(value: Any) -> Any:
    return _text(value) if isinstance(value, tuple | list) else value


def _text(value: Any) -> str:
    return value_text(tuple(value) if isinstance(value, list) else value)
