"""When a search gives a trial up: bounds on its objective at evaluations before the last.

The bounds of point n come from the same seed's trials of the points up to n - ahead, as its
settings do, so they too are the same however the search was run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpcc import run_dir
from mpcc.config import Config
from mpcc.metrics import METRICS
from tune import ledger
from tune.ledger import LedgerError, Trial
from tune.points import PRUNERS, Point, Search

LEAST = {"median": 5, "halving": 3}
"""Earlier trials that an evaluation is measured against, at least."""

REDUCTION = 3
"""Successive halving keeps the best third at a third, a ninth ... of the iterations."""

BIAS = {
    "median": "gives up slow starters, such as small learning rates",
    "halving": "gives up slow starters, such as small learning rates, most of all in the first "
    "points of a rung, which few others are measured against",
}
"""What each way of pruning does to what a search finds; its values never enter a mean."""


def check(search: Search) -> None:
    """LedgerError where this search cannot be pruned."""
    if search.prune is None:
        return
    if search.prune not in PRUNERS:
        raise LedgerError(f"--prune must be {' or '.join(PRUNERS)}, got '{search.prune}'")
    if len(search.objectives) > 1:
        raise LedgerError("--prune is for one objective: with several none is worse by itself")
    if search.objectives[0] in ("fid", "kid", "inception_score", "fid_cnn"):
        raise LedgerError(
            f"--prune cannot go by {search.objectives[0]}, which the last iteration alone has"
        )


def limit(
    out: Path, search: Search, points: Sequence[Point], number: int, trial: Trial
) -> dict[str, Any] | None:
    """What a worker must know to give this trial of point `number` up; None for nothing."""
    if search.prune is None:
        return None
    metric = search.objectives[0]
    higher = METRICS[metric].higher_is_better
    earlier = [
        run_dir.read_metrics(ledger.trial_dir(out, before.key))
        for point in points[: max(0, number - search.ahead + 1)]
        for before in ledger.trials(point.cell, (trial.seed,))
    ]
    at = {}
    for iteration in rungs(search.prune, trial.config):
        values = [
            float(row[metric])
            for rows in earlier
            for row in rows
            if row["iteration"] == iteration and isinstance(row.get(metric), int | float)
        ]
        if len(values) >= LEAST[search.prune]:
            at[str(iteration)] = _bound(search.prune, values, higher)
    if not at:
        return None
    part = "median" if search.prune == "median" else "best third"
    return {
        "metric": metric,
        "higher": higher,
        "at": at,
        "why": f"worse than the {part} of earlier points,",
    }


def rungs(prune: str, config: Config) -> list[int]:
    """The evaluations, before the last, at which a trial may be given up."""
    every = list(range(config.eval_every, config.iterations, config.eval_every))
    if prune == "median" or not every:
        return every
    chosen, wanted = set(), config.iterations / REDUCTION
    while wanted >= config.eval_every / 2:
        chosen.add(min(every, key=lambda iteration: abs(iteration - wanted)))
        wanted /= REDUCTION
    return sorted(chosen)


def _bound(prune: str, values: Sequence[float], higher: bool) -> float:
    if prune == "median":
        return statistics.median(values)
    ranked = sorted(values, reverse=higher)
    return ranked[max(0, len(ranked) // REDUCTION - 1)]
