"""The points of a search: their results, and the draw of the next one.

A point is a cell of the plan with the search's seeds; its value is the mean over them. Point n is
drawn from the points up to n - ahead and from nothing else, whatever has ended since, with a random
stream of its own. So the points are a function of the plan and the records, and do not depend on
the number of workers or on interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpcc.config import Config, trial_key
from mpcc.evaluation.failures import failures
from mpcc.evaluation.metrics import METRICS
from tune.plan.cells import Cell
from tune.plan.state import ENDED, State, Status
from tune.suggest.search import Search
from tune.suggest.space import category

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

DRAWS, RANDOM_FROM = 40, 15
"""Attempts to draw a new point; from attempt 15 on, drawn at random."""

OPTUNA = {
    State.PLANNED: "RUNNING",
    State.FAILED: "FAIL",  # It says nothing about the settings.
    State.DIVERGED: "PRUNED",  # It is worse than any value.
    State.PRUNED: "PRUNED",
    State.DONE: "COMPLETE",
}
"""State of a point -> its name in Optuna. A point is `planned` until all its seeds have ended; then
its state is the first of these that one of the seeds has."""


@dataclass(frozen=True)
class Point:
    """A point and its result."""

    number: int
    cell: Cell
    state: State
    """`diverged` also if an objective of a seed is missing or not finite."""
    seeds: tuple[tuple[float, ...], ...] = ()
    """For each objective its values by seed, if the point is done."""
    reason: str = ""
    """Why it is not done: the states of its seeds, or how one of them ended."""
    collapsed: bool = False
    """Whether the model of a seed has collapsed: points without a collapse rank above it."""

    @property
    def values(self) -> tuple[float, ...]:
        """Mean over seeds of each objective."""
        return tuple(map(statistics.fmean, self.seeds))


def read_points(search: Search, statuses: Mapping[str, Status]) -> list[Point]:
    """Every point, by number; a trial without a status is planned."""
    return [_read_point(search, n, cell, statuses) for n, cell in enumerate(search.points)]


def _read_point(search: Search, number: int, cell: Cell, statuses: Mapping[str, Status]) -> Point:
    planned = Status(State.PLANNED)
    ends = {seed: statuses.get(trial_key(cell.key, seed), planned) for seed in search.seeds}
    if any(end.state not in ENDED for end in ends.values()):
        reason = " ".join(f"seed {seed} {end.state}" for seed, end in ends.items())
        return Point(number, cell, State.PLANNED, reason=reason)
    seed, worst = min(ends.items(), key=lambda item: list(OPTUNA).index(item[1].state))
    if worst.state != State.DONE:
        return Point(number, cell, worst.state, reason=f"seed {seed} {worst.state}: {worst.cause}")
    values = tuple(tuple(_value(end, name) for end in ends.values()) for name in search.objectives)
    for name, by_seed in zip(search.objectives, values, strict=True):
        if not all(map(math.isfinite, by_seed)):
            reason = f"{name} is missing or not finite"
            return Point(number, cell, State.DIVERGED, reason=reason)
    limit = cell.config.max_saturation
    collapsed = any("collapsed" in failures(end.metrics, limit) for end in ends.values())
    return Point(number, cell, State.DONE, values, collapsed=collapsed)


def _value(end: Status, name: str) -> float:
    value = end.metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def best(search: Search, points: Sequence[Point]) -> list[Point]:
    """The best point that is done; with several objectives the Pareto front."""
    done = [point for point in points if point.state == State.DONE]
    done = [point for point in done if not point.collapsed] or done
    study = open_study(search)
    study.add_trials([frozen(search, point) for point in done])
    front = [done[trial.number] for trial in study.best_trials]
    return front if len(search.objectives) > 1 else front[:1]


def next_cell(search: Search, base: Config, points: Sequence[Point]) -> Cell | None:
    """The cell of the next point; None if the space has no other.

    The first point is the base settings if they lie in the space: every search then shows how its
    best point compares with them.
    """
    known = {point.cell.key for point in points}
    for values in _candidates(search, base, points):
        with contextlib.suppress(ValueError):  # Settings that exclude each other are no point.
            cell = Cell.of(base, values)
            if cell.key not in known:
                return cell
    return None


def _candidates(
    search: Search, base: Config, points: Sequence[Point]
) -> Iterator[Mapping[str, object]]:
    """Values for the next point, in the order in which they are tried."""
    if not points:
        own = {axis.field: getattr(base, axis.field) for axis in search.space.axes}
        with contextlib.suppress(ValueError):  # from Optuna, if they lie outside the space.
            frozen(search, Point(0, Cell(base, own), State.PLANNED))
            yield own
    n = search.rests_on(len(points))
    later = [replace(point, state=State.PLANNED, seeds=()) for point in points[n:]]
    trials = [frozen(search, point) for point in (*points[:n], *later)]
    for draw in range(DRAWS):
        yield _draw(search, trials, draw)
    yield from search.space.points()


def _draw(search: Search, trials: Sequence[FrozenTrial], draw: int) -> dict[str, object]:
    """One draw for the point after these, with a random stream of its own."""
    from optuna.samplers import RandomSampler, TPESampler

    stream = hashlib.sha256(f"{search.sampler_seed} {len(trials)} {draw}".encode()).digest()
    seed, axes = int.from_bytes(stream[:4], "big"), search.space.axes
    study = open_study(search)
    study.add_trials(trials)
    if search.sampler == "random" or draw >= RANDOM_FROM:
        study.sampler = RandomSampler(seed=seed)
    else:
        study.sampler = TPESampler(n_startup_trials=search.startup, seed=seed)
    drawn = study.ask({axis.name: axis.distribution for axis in axes}).params
    return {axis.field: axis.value(drawn[axis.name]) for axis in axes}


def open_study(
    search: Search, storage: BaseStorage | None = None, name: str | None = None
) -> Study:
    """The search's Optuna study in this storage, by default a new one in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    higher = [METRICS[objective].higher_is_better for objective in search.objectives]
    return optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["maximize" if is_better else "minimize" for is_better in higher],
        load_if_exists=True,
    )


def frozen(search: Search, point: Point) -> FrozenTrial:
    """The point as a trial of an Optuna study; its times are those of this call."""
    from optuna.trial import TrialState, create_trial

    axes, config = search.space.axes, point.cell.config
    attributes = {"cell_key": point.cell.key, "cell": point.cell.text, "reason": point.reason}
    by_seed = zip(search.objectives, map(list, point.seeds), strict=False)
    return create_trial(
        state=TrialState[OPTUNA[point.state]],
        values=list(point.values) or None,
        params={axis.name: category(getattr(config, axis.field)) for axis in axes},
        distributions={axis.name: axis.distribution for axis in axes},
        user_attrs=attributes | {f"{name} by seed": values for name, values in by_seed},
    )
