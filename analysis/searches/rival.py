"""A search's best point against the base settings, or against the best cell of another sweep."""

import math
from collections.abc import Sequence

from analysis.records.frame import Records
from analysis.searches.search import found
from analysis.statistics import stats
from analysis.tables.columns import column, sign
from analysis.tables.comparable import unlike
from analysis.tables.groups import Group, confirmed
from analysis.tables.groups import groups as groups_of


def against_base(records: Records, groups: Sequence[Group]) -> list[str]:
    """A line that says whether the best point beats the base settings, once both are confirmed."""
    key = records.sweeps[0].base_key
    base = next((g for g in groups if g.cell_key == key), None)
    ours, metric = _best_point(records, groups)
    if ours is None or base is None or base is ours:
        return []
    a, b = confirmed(records, ours), confirmed(records, base)
    if a is None or b is None:
        return []
    head = f"The best point ({ours.label()}) against the base settings, on fresh seeds"
    return [f"{head}: {_verdicts(a, b, metric)}."]


def against(records: Records, groups: Sequence[Group], other: Records, name: str) -> list[str]:
    """Lines that say whether the search's best point beats the best cell of another sweep.

    Each is the best by the search's first objective on the seeds that chose it. They are tested on
    their fresh seeds alone: on those that chose it each is too good.
    """
    ours, metric = _best_point(records, groups)
    if ours is None:
        return []
    known = [g for g in groups_of(other) if g.summary(metric).n]
    if not known:
        return [f"{name} has no finished trial with {metric}: nothing to compare with."]
    rival = max(known, key=lambda g: sign(metric) * g.summary(metric).mean.estimate)
    head = (
        f"The search's best point ({ours.label()}) against the best cell of {name} "
        f"({rival.label()})"
    )
    a, b = confirmed(records, ours), confirmed(other, rival)
    if a and b:
        return [f"{head}, on fresh seeds: {_verdicts(a, b, metric)}."]
    said = _verdicts(ours, rival, metric, tested=False)
    return [
        f"{head}, on the seeds that chose both, which favour both: {said}. Which is better only "
        "fresh seeds of both can say."
    ]


def _best_point(records: Records, groups: Sequence[Group]) -> tuple[Group | None, str]:
    """The best point by the first objective, where one is complete, and that objective."""
    search = found(records, groups)
    if search is None or not search.points:
        return None, ""
    metric = search.objectives[0]
    return max(search.points, key=lambda point: sign(metric) * point.values[0]).group, metric


def _verdicts(a: Group, b: Group, metric: str, *, tested: bool = True) -> str:
    names = dict.fromkeys([metric, "acc_majority"])
    shown = [name for name in names if a.summary(name).n and b.summary(name).n]
    return "; ".join(_verdict(a, b, name, tested) for name in shown)


def _verdict(a: Group, b: Group, metric: str, tested: bool) -> str:
    spec, why = column(metric), unlike(a, b, metric)
    if why:
        return f"{spec.label} not compared: {why}"
    x, y = a.summary(metric), b.summary(metric)
    result = stats.welch(x.array, y.array)
    difference = result.difference
    text = f"{spec.reading(x.mean.estimate)} to {spec.amount(y.mean.estimate)}"
    shift = spec.difference(difference.estimate)
    if not tested:
        return f"{text} (difference {shift})"
    if not math.isfinite(result.p):
        return f"{text}, too few seeds for a test"
    better = (difference.estimate > 0) == (spec.better == "higher")
    words = "beats it" if better else "is beaten"
    words = words if result.p < stats.ALPHA else "not significant"
    low, high = (spec.shown(end).replace("-", "−") for end in (difference.low, difference.high))
    return (
        f"{text} ({words}; difference {shift}, 95 % interval {low} to {high}, "
        f"Welch's p {stats.p_text(result.p)}, n = {x.n} and {y.n})"
    )
