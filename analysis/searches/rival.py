"""A search's best point against the base settings, or against the best cell of another sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.records.frame import Records
from analysis.searches.search import Found, found
from analysis.statistics import stats
from analysis.tables.columns import Column, column
from analysis.tables.comparable import p_text, unlike
from analysis.tables.groups import Group
from analysis.tables.groups import groups as groups_of
from mpcc.config import from_record
from mpcc.evaluation.metrics import METRICS


def against_base(records: Records, groups: Sequence[Group]) -> list[str]:
    """A line that says whether the best point beats the base settings, once both are confirmed."""
    search = found(records, groups)
    if search is None or not search.points:
        return []
    ours = _best_by_first(search)
    key = from_record({**records.sweeps[0].base, "seed": 0}).cell_key
    base = next((g for g in groups if g.cell_key == key), None)
    if base is None or base is ours:
        return []
    a, b = _fresh(records, ours), _fresh(records, base)
    if a is None or b is None:
        return []
    head = f"The best point ({ours.label(search.axes)}) against the base settings, on fresh seeds"
    return [f"{head}: {_verdicts(a, b, search.objectives[0])}."]


def _best_by_first(search: Found) -> Group:
    """The best point by the first objective."""
    sign = 1 if METRICS[search.objectives[0]].higher_is_better else -1
    return max(search.points, key=lambda point: sign * point.values[0]).group


def against(records: Records, groups: Sequence[Group], other: Records, name: str) -> list[str]:
    """Lines that say whether the search's best point beats the best cell of another sweep.

    Each is the best by the search's first objective on the seeds that chose it. They are tested on
    their fresh seeds alone: on those that chose it each is too good.
    """
    search = found(records, groups)
    if search is None or not search.points:
        return []
    metric, theirs = search.objectives[0], groups_of(other)
    sign = 1 if METRICS[metric].higher_is_better else -1
    known = [g for g in theirs if g.summary(metric).n]
    if not known:
        return [f"{name} has no finished trial with {metric}: nothing to compare with."]
    rival = max(known, key=lambda g: sign * g.summary(metric).mean.estimate)
    ours = _best_by_first(search)
    fresh = [_fresh(r, chosen) for r, chosen in ((records, ours), (other, rival))]
    a, b = (fresh[0] or ours, fresh[1] or rival) if all(fresh) else (ours, rival)
    where = "on fresh seeds" if all(fresh) else "on the seeds that chose both, which favour both"
    head = (
        f"The search's best point ({ours.label(search.axes)}) against the best cell of {name} "
        f"({rival.label(list(other.axes))}), {where}"
    )
    advice = "" if all(fresh) else ". Which is better only fresh seeds of both can say"
    return [f"{head}: {_verdicts(a, b, metric, tested=all(fresh))}{advice}."]


def _verdicts(a: Group, b: Group, metric: str, *, tested: bool = True) -> str:
    names = dict.fromkeys([metric, "acc_majority"])
    shown = [name for name in names if a.summary(name).n and b.summary(name).n]
    return "; ".join(_verdict(a, b, column(name), tested) for name in shown)


def _fresh(records: Records, chosen: Group) -> Group | None:
    """The chosen cell on seeds that took no part in choosing it, where it has been confirmed."""
    again = groups_of(records, confirm=True)
    return next((g for g in again if g.cell_key == chosen.cell_key and g.done), None)


def _verdict(a: Group, b: Group, spec: Column, tested: bool) -> str:
    why = unlike(a, b, spec.metric)
    if why:
        return f"{spec.label} not compared: {why}"
    x, y = a.summary(spec.metric), b.summary(spec.metric)
    result = stats.welch(x.array, y.array)
    difference = result.difference
    text = f"{spec.reading(x.mean.estimate)} to {spec.amount(y.mean.estimate)}"
    if not tested:
        return f"{text} (difference {spec.difference(difference.estimate)})"
    if not math.isfinite(result.p):
        return f"{text}, too few seeds for a test"
    better = (difference.estimate > 0) == (spec.better == "higher")
    words = ("beats it" if better else "is beaten") if result.p < stats.ALPHA else "not told apart"
    low, high = (spec.shown(end).replace("-", "−") for end in (difference.low, difference.high))
    shift = spec.difference(difference.estimate)
    return (
        f"{text} ({words}; difference {shift}, 95 % interval {low} to {high}, "
        f"Welch's p {p_text(result.p)}, n = {x.n} and {y.n})"
    )
