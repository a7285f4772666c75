"""Which cell is best and which cannot be told from it, among cells that are measured alike.

The best is chosen by looking, so that a test against it is not a test against a cell named before.
The marks hold all the same: Holm over the k − 1 comparisons with the best, and Bonferroni over the
k cells that might have come out best. A cell is called worse in one direction only, so that p is
multiplied by k/2. k counts the best and the cells that are tested against it, not those that are
identical with it, have too few seeds or no spread. The chance that any cell which in truth is as
good as the best goes unmarked is at most 5 %: for each of the k possible references Holm keeps it
below 5 % / k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics import stats
from analysis.tables.comparable import collapse, kind, spread_with
from analysis.tables.compare import compare_all, smallest_p
from analysis.tables.groups import Group, identical

PROCEDURE = (
    "Holm over the comparisons with the best, times k/2 for the k cells that could have come out "
    "best, 5 %"
)
"""How the ties are adjusted, for the line under a table."""


@dataclass(frozen=True)
class Class:
    """Two or more cells that are measured alike, ranked by one metric; cells by their index."""

    label: str
    """What sets them apart from other cells of the table; empty where nothing does."""
    best: int
    same: frozenset[int]
    """Identical with the best in every seed: the same trials under another name."""
    tied: frozenset[int]
    """Tested, and not told from the best."""
    untested: frozenset[int]
    """Not compared with the best: no spread, or too few seeds for any p to count."""
    worse: frozenset[int]
    refused: str
    """Why the test was refused for all of them; empty where it was not."""


@dataclass(frozen=True)
class Ranking:
    """The classes of a table's cells in one metric, and what a table marks."""

    classes: tuple[Class, ...]
    alone: int
    """Cells with values that no other cell is measured like: they are ranked with none."""
    failed: int = 0
    """Cells with a collapsed or diverged seed: none of them is called the best."""

    @property
    def best(self) -> set[int]:
        """The best of each class, under all its names."""
        return {i for one in self.classes for i in (one.best, *one.same)}

    @property
    def tied(self) -> set[int]:
        """Every cell that was tested against the best of its class and not told from it."""
        return {i for one in self.classes for i in one.tied}


def rank(groups: Sequence[Group], metric: str, better: str, test: str) -> Ranking:
    """The best cell of each class and those that cannot be told from it; none for `neither`.

    A cell with a collapsed or diverged seed takes no part: its other seeds are the lucky ones.
    """
    if better == "neither":
        return Ranking((), 0)
    every = [i for i, group in enumerate(groups) if group.summary(metric).n]
    valued = [i for i in every if not collapse([groups[i]])]
    failed = len(every) - len(valued)
    kinds = {i: kind(groups[i], metric) for i in valued}
    classes: dict[tuple[str, ...], list[int]] = {}
    for i in valued:
        classes.setdefault(tuple(kinds[i].values()), []).append(i)
    several = [members for members in classes.values() if len(members) > 1]
    differing = [
        n for n in (kinds[valued[0]] if valued else ()) if len({k[n] for k in kinds.values()}) > 1
    ]
    found = []
    for members in several:
        label = ", ".join(f"{n} {kinds[members[0]][n]}" for n in differing)
        found.append(_rank(groups, members, label, metric, better, test))
    return Ranking(tuple(found), len(valued) - sum(map(len, several)), failed)


def _rank(
    groups: Sequence[Group], members: list[int], label: str, metric: str, better: str, test: str
) -> Class:
    sign = 1 if better == "higher" else -1
    best = max(members, key=lambda i: sign * groups[i].summary(metric).mean.estimate)
    same = [i for i in members if i != best and identical(groups[i], groups[best])]
    others = [i for i in members if i != best and i not in same]
    cells, reference = [groups[i] for i in others], groups[best]
    pool = spread_with(groups, reference, metric) if test == "pooled" else None
    p = np.array([r.p for r in compare_all(cells, reference, metric, test, pool)])
    least = np.array([smallest_p(cell, reference, metric, test) for cell in cells])
    p[tie_adjusted(np.where(np.isnan(p), np.nan, least)) >= stats.ALPHA] = np.nan
    adjusted = tie_adjusted(p)

    def those(chosen: np.ndarray) -> frozenset[int]:
        return frozenset(i for i, one in zip(others, chosen, strict=True) if one)

    refused = pool.refusal if pool else ""
    tested = ~np.isnan(p)
    worse = tested & (adjusted < stats.ALPHA)
    return Class(
        label, best, frozenset(same), those(tested & ~worse), those(~tested), those(worse), refused
    )


def tie_adjusted(p: np.ndarray) -> np.ndarray:
    """p values of comparisons with the best of k cells, adjusted as the head of this file says."""
    k = np.count_nonzero(~np.isnan(p)) + 1
    return np.minimum(1.0, stats.holm(p) * k / 2)
