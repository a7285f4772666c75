"""The best cell of a sweep in words: its value, what it can be told from, k-means beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.records.frame import Records
from analysis.tables.columns import Column, column
from analysis.tables.compare import TEST_WORDS
from analysis.tables.groups import Group, Summary, references
from analysis.tables.groups import groups as groups_of
from analysis.tables.ranking import Class, rank
from analysis.tables.shared import shown_metrics

MAX_CLASSES = 3
"""Kinds of cells whose best the paragraph names; the tables have all."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def best_cell(records: Records, groups: Sequence[Group], metric: str, test: str) -> list[str]:
    spec, axes, ranking = column(metric), records.swept, rank(groups, metric, test)
    failed = _unranked(ranking.failed, "with a collapsed or diverged seed")
    if not ranking.classes:
        valued = [g for g in groups if g.summary(metric).n]
        told = [
            f"{g.label(axes).capitalize()} gave {metric_name(spec)} {_value(g, spec)}."
            for g in valued[:MAX_CLASSES]
        ]
        if len(valued) > 1 and not ranking.failed:
            told.append("Cells that are not measured alike are not ranked.")
        return told + failed + _kmeans(groups, metric)
    whole, n_kinds = not ranking.failed, len(ranking.classes)
    told = [_winner(one, groups, spec, axes, test, whole) for one in ranking.classes[:MAX_CLASSES]]
    if n_kinds > MAX_CLASSES:
        told.append(f"The tables rank {many(n_kinds, 'kind')} of cells in all.")
    told += failed + _unranked(ranking.alone, "measured like no other")
    best = groups[ranking.classes[0].best]
    again = [g for g in groups_of(records, confirm=True) if g.cell_key == best.cell_key]
    judged = best.summary(metric)
    if again and again[0].summary(metric).n:
        judged = again[0].summary(metric)
        told.append(
            f"On fresh seeds it reaches {_value(again[0], spec)}, which is the figure to quote."
        )
    else:
        told.append(
            "The best of several owes something to chance: quote a run on fresh seeds "
            "(ablation.py --confirm)."
        )
    return told + _kmeans(groups, metric, judged) + _other_metrics(groups, best, metric, test)


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
    interval = f"{spec.shown(mean.low)} to {spec.shown(mean.high)}"
    return f"{text} (SD {spec.shown(summary.std)}, 95 % interval {interval}, n = {summary.n})"


def _kmeans(groups: Sequence[Group], metric: str, best: Summary | None = None) -> list[str]:
    """What k-means reaches on each data set, as a sentence; none where that is not known.

    best: the values of the best cell, whose interval then says whether it is told from k-means.
    """
    spec, known = column(metric), references(groups, metric)
    reached = [
        spec.amount(sum(values) / len(values)) + (f" on {name}" if len(known) > 1 else "")
        for name, values in known.items()
    ]
    if not reached:
        return []
    text, verdict = f"k-means on the same pixels reaches {' and '.join(reached)}", ""
    if best and len(known) == 1 and math.isfinite(best.mean.low):
        ((value, *others),) = known.values()
        inside = best.mean.low <= value <= best.mean.high
        above = (value < best.mean.estimate) == (spec.better == "higher")
        verdict = f": the best configuration is {'better' if above else 'worse'}"
        if inside:
            verdict = ", within this interval: it cannot be told from the best configuration"
        verdict *= not others
    return [f"{text}{verdict}."]


def _other_metrics(groups: Sequence[Group], best: Group, metric: str, test: str) -> list[str]:
    """Which cells are best by the other metrics of the table, where it is another one."""
    others = []
    for other in shown_metrics(groups):
        classes = rank(groups, other, test).classes if other != metric else ()
        if classes and groups[classes[0].best].cell_key != best.cell_key:
            others.append(column(other).label)
    return [f"By {' and '.join(others)} another configuration is best."] if others else []


def _unranked(n: int, which: str) -> list[str]:
    """A sentence on so many cells that are not ranked; none for no cell."""
    verb = "is" if n == 1 else "are"
    return [f"{many(n, 'cell').capitalize()} {which} {verb} not ranked."] if n else []


def _winner(
    one: Class,
    groups: Sequence[Group],
    spec: Column,
    axes: Sequence[str],
    test: str,
    whole: bool,
) -> str:
    """The best of one kind of cells, and what the test says of the others it compared.

    whole: whether every cell of the kind was ranked.
    """
    best, n_tied, n_worse = groups[one.best], len(one.tied), len(one.worse)
    verb = "highest" if spec.better == "higher" else "lowest"
    where = f" among the cells with {one.label}" if one.label else ""
    text = f"The {verb} mean {metric_name(spec)}{where}, {_value(best, spec)}, "
    text += f"came with {best.label(axes)}"
    if one.refused:
        return f"{text}; no other was compared with it ({one.refused})."
    method = f"from it ({TEST_WORDS[test]}, p adjusted for the choice of the best)"
    tied = [groups[i].label(axes) for i in sorted(one.tied)]
    others = " and ".join(tied) if n_tied < 3 else f"{count(n_tied)} others"
    differ = f"{many(n_worse, 'other')} {'differs' if n_worse == 1 else 'differ'}"
    if whole and not one.untested:
        differ = "every other configuration differs"
    same = " and ".join(groups[i].label(axes) for i in sorted(one.same))
    left = f"{many(len(one.untested), 'other')} {'was' if len(one.untested) == 1 else 'were'}"
    told = [
        (True, text),
        (n_tied, f"{others} cannot be told {method}"),
        (n_worse and not n_tied, f"{differ} {method}"),
        (same, f"{same} is the same in all"),
        (one.untested, f"{left} not compared: n too small or no spread"),
    ]
    return "; ".join(clause for holds, clause in told if holds) + "."


def metric_name(spec: Column) -> str:
    names = {
        "acc_majority": "accuracy (every cluster under its most frequent label)",
        "acc_hungarian": "one-to-one accuracy",
    }
    return names.get(spec.metric, spec.label)
