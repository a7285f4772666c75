"""The points of a search: what each came to, and which is next.

A point is a cell of the plan with the search's seeds; its value is the mean over them. Point n is
drawn from the points up to n - ahead and from nothing else, whatever has ended since, with a random
stream of its own. So the points are a function of the plan and the records: with any number of
workers, or killed and resumed, a search is the same search.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from mpcc.config import Config, trial_key
from mpcc.metrics import METRICS
from tune.plan.cells import Cell
from tune.plan.plan import Plan
from tune.plan.state import ENDED, State, Status
from tune.suggest.search import Search
from tune.suggest.space import category, short

if TYPE_CHECKING:
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

DRAWS, RANDOM_FROM = 40, 15
"""Draws of a point until one is new, and the draw from which chance alone decides."""


class PointState(StrEnum):
    """The state of a point, which follows from those of its trials."""

    OPEN = "open"
    COMPLETE = "complete"
    PRUNED = "pruned"
    """A seed diverged, was pruned or measured no finite value: worse than any value."""
    FAILED = "failed"
    """A seed failed, which says nothing of the settings."""


@dataclass(frozen=True)
class Point:
    """One point and what it came to."""

    number: int
    cell: Cell
    state: PointState
    values: tuple[float, ...] = ()
    """Mean over seeds of each objective, where the point is complete."""
    seeds: tuple[tuple[float, ...], ...] = ()
    """Every seed's value of each objective."""
    reason: str = ""


def read_points(plan: Plan, search: Search, statuses: Mapping[str, Status]) -> list[Point]:
    """Every point, by number; a trial without a status is planned."""
    cells = {planned.cell.key: planned.cell for planned in plan.cells}
    return [
        _read_point(search, number, cells[key], statuses)
        for number, key in enumerate(search.points)
    ]


def _read_point(search: Search, number: int, cell: Cell, statuses: Mapping[str, Status]) -> Point:
    planned = Status(State.PLANNED)
    ends = [statuses.get(trial_key(cell.key, seed), planned) for seed in search.seeds]
    if any(end.state not in ENDED for end in ends):
        return Point(number, cell, PointState.OPEN)
    for state in (State.FAILED, State.DIVERGED, State.PRUNED):
        for seed, end in zip(search.seeds, ends, strict=True):
            if end.state == state:
                becomes = PointState.FAILED if state == State.FAILED else PointState.PRUNED
                return Point(number, cell, becomes, reason=f"seed {seed} {state}: {end.cause}")
    values = tuple(tuple(_value(end, name) for end in ends) for name in search.objectives)
    for name, by_seed in zip(search.objectives, values, strict=True):
        if not all(map(math.isfinite, by_seed)):
            reason = f"{name} is missing or not finite"
            return Point(number, cell, PointState.PRUNED, reason=reason)
    means = tuple(math.fsum(by_seed) / len(by_seed) for by_seed in values)
    return Point(number, cell, PointState.COMPLETE, means, values)


def ready(search: Search, points: Sequence[Point]) -> bool:
    """Whether there is a next point and all points that it rests on have ended."""
    number = len(points)
    before = points[: search.rests_on(number)]
    return number < search.n_points and all(p.state != PointState.OPEN for p in before)


def next_cell(search: Search, base: Config, points: Sequence[Point]) -> Cell | None:
    """The cell of the next point; None where the space has no other.

    The first point is the base settings where they lie in the space: every search then says how
    its best compares with what one had.
    """
    known = {point.cell.key for point in points}
    for values in _candidates(search, base, points):
        try:
            config = base.override(**values, seed=0)
        except ValueError:  # Settings that exclude each other are no point of the space.
            continue
        if config.cell_key not in known:
            return Cell(config, {name: getattr(config, name) for name in values})
    return None


def best(search: Search, points: Sequence[Point]) -> list[Point]:
    """The best complete point; with several objectives those that no other one beats in all."""
    complete = [point for point in points if point.state == PointState.COMPLETE]
    signs = [1 if METRICS[name].higher_is_better else -1 for name in search.objectives]

    def beats(a: Point, b: Point) -> bool:
        gains = [s * (x - y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = [p for p in complete if not any(beats(other, p) for other in complete)]
    return front if len(search.objectives) > 1 else front[:1]


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; nan for one value."""
    n = len(values)
    if n < 2:
        return math.nan
    from scipy.special import stdtrit

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)


def frozen(search: Search, point: Point) -> FrozenTrial:
    """The point as a trial of an Optuna study.

    No clock enters it, since the sampler sees it: `tune.suggest.study` adds the record's times.
    """
    from optuna.trial import TrialState, create_trial

    states = {
        PointState.OPEN: TrialState.RUNNING,
        PointState.COMPLETE: TrialState.COMPLETE,
        PointState.PRUNED: TrialState.PRUNED,
        PointState.FAILED: TrialState.FAIL,
    }
    axes, config = search.space.axes, point.cell.config
    trial = create_trial(
        state=states[point.state],
        values=list(point.values) or None,
        params={short(a.field): category(getattr(config, a.field)) for a in axes},
        distributions={short(axis.field): axis.distribution() for axis in axes},
        user_attrs={"cell_key": point.cell.key, "cell": point.cell.text, "reason": point.reason},
    )
    trial.datetime_start = datetime.fromtimestamp(0)
    trial.datetime_complete = None if point.state == PointState.OPEN else trial.datetime_start
    return trial


def directions(search: Search) -> list[StudyDirection]:
    """Optuna's directions of the objectives."""
    from optuna.study import StudyDirection

    up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    return [up if METRICS[name].higher_is_better else down for name in search.objectives]


def _candidates(
    search: Search, base: Config, points: Sequence[Point]
) -> Iterator[Mapping[str, object]]:
    """Values for the next point, in the order in which they are tried."""
    own = search.space.values_of(base)
    if not points and own is not None:
        yield own
    n = search.rests_on(len(points))
    seen = [p if p.number < n else replace(p, state=PointState.OPEN, values=()) for p in points]
    trials = [frozen(search, point) for point in seen]
    for draw in range(DRAWS):
        yield _draw(search, trials, draw)
    yield from search.space.points() or ()


def _draw(search: Search, trials: Sequence[FrozenTrial], draw: int) -> dict[str, object]:
    """One draw for the point after these, with a random stream of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stream = hashlib.sha256(f"{search.sampler_seed} {len(trials)} {draw}".encode()).digest()
    seed = int.from_bytes(stream[:4], "big")
    sampler: optuna.samplers.BaseSampler
    if search.sampler == "random" or draw >= RANDOM_FROM:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(n_startup_trials=search.startup, seed=seed)
    study = optuna.create_study(directions=directions(search), sampler=sampler)
    study.add_trials(trials)
    axes = search.space.axes
    found = study.ask({short(axis.field): axis.distribution() for axis in axes}).params
    return {axis.field: axis.rounded(found[short(axis.field)]) for axis in axes}


def _value(end: Status, name: str) -> float:
    value = end.metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan
