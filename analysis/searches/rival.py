"""A search's best point against the base settings, or against the best cell of another sweep."""

import math
from collections.abc import Sequence

from analysis.records.frame import Records
from analysis.searches.search import found, leader
from analysis.statistics import stats
from analysis.tables.columns import column, sign
from analysis.tables.comparable import apart, collapse
from analysis.tables.groups import Group, confirmed
from analysis.tables.groups import groups as groups_of


def against_base(records: Records, groups: Sequence[Group]) -> list[str]:
    """A line that says whether the best point beats the base settings, once both are confirmed."""
    keys = [sweep.base_key for sweep in records.sweeps if sweep.plan and sweep.plan.search]
    base = next((g for g in groups if g.cell_key in keys[:1]), None)
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

    Both are the best by the search's first objective on the seeds that chose them, among cells
    without a collapsed or diverged seed if there are any. They are tested only on fresh seeds,
    since each looks too good on the seeds that chose it.
    """
    ours, metric = _best_point(records, groups)
    if ours is None:
        return []
    every = groups_of(other, pool_code=ours.code_pooled)
    known = [g for g in every if g.summary(metric).n]
    if not known:
        return [f"{name} has no cell with {metric}: nothing to compare with."]
    known = [g for g in known if not collapse([g])] or known
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
    """The best point by the first objective, and that objective; None, "" if none is complete."""
    search = found(records, groups)
    first = leader(search) if search else None
    return (first.group, search.objectives[0]) if search and first else (None, "")


def _verdicts(a: Group, b: Group, metric: str, *, tested: bool = True) -> str:
    names = dict.fromkeys([metric, "acc_majority"])
    shown = [name for name in names if a.summary(name).n and b.summary(name).n]
    results = [stats.welch(a.summary(m).array, b.summary(m).array) for m in shown]
    whys = [apart(a, b, m) for m in shown]
    holm = stats.holm([math.nan if why else r.p for r, why in zip(results, whys, strict=True)])
    told = []
    for name, result, why, p in zip(shown, results, whys, holm, strict=True):
        text = f"{column(name).label} not compared: {why}"
        told.append(text if why else _verdict(a, b, name, result.difference, p, tested))
    return "; ".join(told)


def _verdict(
    a: Group, b: Group, metric: str, difference: stats.Estimate, p: float, tested: bool
) -> str:
    """Two cells in one metric, in words. `p`: Welch's test, Holm over the compared metrics."""
    spec, x, y = column(metric), a.summary(metric), b.summary(metric)
    text = f"{spec.reading(x.mean.estimate)} to {spec.amount(y.mean.estimate)}"
    shift = spec.difference(difference.estimate)
    if not tested:
        return f"{text} (difference {shift})"
    if not math.isfinite(p):
        why = "too few seeds" if min(x.n, y.n) < 2 else "the seeds differ too little"
        return f"{text}, {why} for a test"
    better = (difference.estimate > 0) == (spec.better == "higher")
    words = "beats it" if better else "is beaten"
    words = words if p < stats.ALPHA else "not significant"
    low, high = (spec.shown(end).replace("-", "−") for end in (difference.low, difference.high))
    return (
        f"{text} ({words}; difference {shift}, 95 % interval {low} to {high}, "
        f"Welch's p (Holm) {stats.p_text(p)}, n = {x.n} and {y.n})"
    )
