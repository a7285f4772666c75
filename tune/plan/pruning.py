"""The pruning rules of a search: bounds on its objective at evaluations before the last.

`tune.suggest` decides which earlier trials a bound rests on. Here a bound is a function of their
rows alone, so it is the same however the search was run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpcc.config import Config
from tune.plan.state import Row

PRUNERS = ("median", "halving")

LEAST = {"median": 5, "halving": 3}
"""The least number of earlier trials that an evaluation is compared with."""

REDUCTION = 3
"""Successive halving keeps the best third at a third, a ninth ... of the iterations."""

BIAS = {
    "median": "tends to prune slow starters, such as small learning rates",
    "halving": "tends to prune slow starters, such as small learning rates, most of all in the "
    "first points of a rung, which are compared with few others",
}
"""The bias of each rule in a search; a pruned trial's values never enter a mean."""


@dataclass(frozen=True)
class PruneRule:
    """The bounds of one trial."""

    metric: str
    higher_is_better: bool
    bounds: Mapping[int, float]
    """Iteration -> the worst value with which the trial goes on."""
    reason: str
    """Start of the message for a value beyond its bound; the bound is appended."""

    def cause(self, rows: Iterable[Row]) -> str | None:
        """Why a trial with these evaluations is pruned, None if it goes on.

        All evaluations count, not only the last, so a trial that was killed right after one is
        pruned all the same. A missing value or NaN is beyond any bound.
        """
        sign = 1.0 if self.higher_is_better else -1.0
        for row in rows:
            iteration = row["iteration"]
            bound = self.bounds.get(iteration) if isinstance(iteration, int) else None
            value = row.get(self.metric)
            value = value if isinstance(value, (int, float)) else math.nan
            if bound is not None and not sign * value >= sign * bound:
                return f"{self.metric} {value:.4g} at {iteration}, {self.reason} {bound:.4g}"
        return None


def prune_rule(
    prune: str,
    metric: str,
    higher_is_better: bool,
    config: Config,
    earlier: Sequence[Sequence[Row]],
) -> PruneRule | None:
    """The rule for a trial of this configuration; None if there are too few earlier trials.

    earlier: the evaluations of each earlier trial with the same seed.
    """
    bounds = {}
    for iteration in rungs(prune, config):
        found = [
            row.get(metric) for rows in earlier for row in rows if row["iteration"] == iteration
        ]
        values = [float(value) for value in found if isinstance(value, (int, float))]
        if len(values) < LEAST[prune]:
            continue
        if prune == "median":
            bounds[iteration] = statistics.median(values)
        else:
            best_first = sorted(values, reverse=higher_is_better)
            bounds[iteration] = best_first[len(values) // REDUCTION - 1]
    if not bounds:
        return None
    part = "median" if prune == "median" else "best third"
    reason = f"worse than the {part} of earlier points,"
    return PruneRule(metric, higher_is_better, bounds, reason)


def rungs(prune: str, config: Config) -> list[int]:
    """The evaluations, before the last, at which a trial may be pruned."""
    every = list(range(config.eval_every, config.iterations, config.eval_every))
    if prune == "median" or not every:
        return every
    rungs, wanted = set(), config.iterations / REDUCTION
    while wanted >= config.eval_every / 2:
        rungs.add(min(every, key=lambda iteration: abs(iteration - wanted)))
        wanted /= REDUCTION
    return sorted(rungs)
