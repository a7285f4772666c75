"""The best cell of a sweep in words: its value, what differs from it, k-means beside it."""

import math
from collections.abc import Sequence

from analysis.records.frame import Records
from analysis.tables.columns import Column, column
from analysis.tables.compare import TEST_WORDS
from analysis.tables.groups import Group, confirmed, references
from analysis.tables.layout import own_sentence
from analysis.tables.ranking import Class, best_of, rank
from analysis.tables.shared import shown_metrics

MAX_CLASSES = 3
"""The paragraph names the best of at most this many kinds of cells; the tables have all."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def best_cell(records: Records, groups: Sequence[Group], metric: str, test: str) -> list[str]:
    spec, ranking = column(metric), rank(groups, metric, test)
    failed = _unranked(ranking.failed, "with a collapsed or diverged seed")
    if not ranking.classes:
        valued = [g for g in groups if g.summary(metric).n]
        told = [
            own_sentence(f"{g.label()} gave {metric_name(spec)} {_value(g, spec)}")
            for g in valued[:MAX_CLASSES]
        ]
        if len(valued) > 1 and not ranking.failed:
            told.append("Cells that are not comparable are not ranked.")
        return told + failed
    whole, n_kinds = not ranking.failed, len(ranking.classes)
    told = [_winner(one, groups, spec, test, whole) for one in ranking.classes[:MAX_CLASSES]]
    if n_kinds > MAX_CLASSES:
        told.append(f"The tables rank {many(n_kinds, 'kind')} of cells in all.")
    told += failed + _unranked(ranking.alone, "not comparable with any other cell")
    best = groups[ranking.classes[0].best]
    fresh = confirmed(records, best)
    if fresh and fresh.summary(metric).n:
        told.append(
            f"On fresh seeds it reaches {_value(fresh, spec)}, which is the figure to quote."
        )
    else:
        told.append(
            "The best of several owes something to chance: before you quote it, run it on fresh "
            "seeds (ablation.py --confirm)."
        )
    return told + _other_metrics(groups, best, test)


def beside_kmeans(records: Records, groups: Sequence[Group], metric: str, test: str) -> list[str]:
    """Whether the best cell is better than k-means, judged on fresh seeds if there are any.

    They differ if the k-means value on the same images lies outside the cell's 95 % interval.
    """
    spec, known = column(metric), references(groups, metric)
    if not known:
        return []
    reached = [spec.amount(value) + name for name, value in known.items()]
    text = f"k-means on the same pixels reaches {' and '.join(reached)}"
    best = best_of(groups, metric, test)
    if best is None or len(known) > 1:
        return [f"{text}."]
    (reference,) = known.values()
    fresh = confirmed(records, best)
    judged = fresh if fresh and fresh.summary(metric).n else best
    mean = judged.summary(metric).mean
    if not math.isfinite(mean.low):
        alike = "seeds that do not differ" if judged.summary(metric).n > 1 else "one seed"
        return [f"{text}; {alike} cannot say more."]
    seeds = "fresh seeds" if judged is fresh else "the seeds that chose it"
    interval = f"interval of the best configuration, {spec.shown(mean.low)} to "
    interval += f"{spec.shown(mean.high)} on {seeds}"
    if mean.low <= reference <= mean.high:
        return [f"Not shown. {text}, which lies within the 95 % {interval}."]
    better = (reference < mean.estimate) == (spec.better == "higher")
    return [f"{'Yes' if better else 'No'}. {text}, outside the 95 % {interval}."]


def count(n: int) -> str:
    """Small numbers as words."""
    return _NUMBERS[n] if n < len(_NUMBERS) else f"{n:,}"


def many(n: int, word: str) -> str:
    return f"{count(n)} {word}{'' if n == 1 else 's'}"


def _value(group: Group, spec: Column) -> str:
    summary = group.summary(spec.metric)
    mean = summary.mean
    text = spec.shown(mean.estimate) + (" %" if spec.heading.endswith("%") else "")
    if summary.n < 2:
        return f"{text} (one seed)"
    if not summary.std:
        return f"{text} (the same for all {summary.n} seeds)"
    interval = ""
    if math.isfinite(mean.low):
        interval = f"95 % interval {spec.shown(mean.low)} to {spec.shown(mean.high)}, "
    return f"{text} (SD {spec.shown(summary.std)}, {interval}n = {summary.n})"


def _other_metrics(groups: Sequence[Group], best: Group, test: str) -> list[str]:
    """A sentence on the cells that are best by other metrics of the table, if not this `best`."""
    others = []
    for metric in shown_metrics(groups):
        other = best_of(groups, metric, test)
        if other and other.cell_key != best.cell_key:
            others.append(f"by {column(metric).label}, {other.label()}")
    return [f"Other cells lead in other metrics: {'; '.join(others)}."] if others else []


def _unranked(n: int, which: str) -> list[str]:
    """A sentence on `n` cells that are not ranked; empty if n is 0."""
    verb = "is" if n == 1 else "are"
    return [f"{many(n, 'cell').capitalize()} {which} {verb} not ranked."] if n else []


def _winner(one: Class, groups: Sequence[Group], spec: Column, test: str, whole: bool) -> str:
    """The best of one kind of cells, and the results of the tests against it, in words.

    whole: whether every cell of the kind was ranked.
    """
    best, n_tied, n_worse = groups[one.best], len(one.tied), len(one.worse)
    verb = "highest" if spec.better == "higher" else "lowest"
    where = f" among the cells with {one.label}" if one.label else ""
    text = f"The {verb} mean {metric_name(spec)}{where}, {_value(best, spec)}, "
    text += f"came with {best.label()}"
    if one.refused:
        return f"{text}; no other was compared with it ({one.refused})."
    method = f"from it ({TEST_WORDS[test]}, p adjusted for the choice of the best)"
    tied = [groups[i].label() for i in sorted(one.tied)]
    others = " and ".join(tied) if n_tied < 3 else f"{count(n_tied)} others"
    differ = f"{many(n_worse, 'other')} {'differs' if n_worse == 1 else 'differ'}"
    if whole and not one.untested:
        differ = f"every other configuration{' of this kind' * bool(one.label)} differs"
    same = " and ".join(groups[i].label() for i in sorted(one.same))
    left = f"{many(len(one.untested), 'other')} {'was' if len(one.untested) == 1 else 'were'}"
    told = [
        (True, text),
        (n_tied, f"{others} {'does' if n_tied == 1 else 'do'} not differ significantly {method}"),
        (n_worse and not n_tied, f"{differ} {method}"),
        (same, f"{same} {'has' if len(one.same) == 1 else 'have'} identical results in every seed"),
        (one.untested, f"{left} not compared: n too small or no spread"),
    ]
    return "; ".join(clause for holds, clause in told if holds) + "."


def metric_name(spec: Column) -> str:
    names = {
        "acc_majority": "accuracy (every cluster under its most frequent label)",
        "acc_hungarian": "one-to-one accuracy",
    }
    return names.get(spec.metric, spec.label)
