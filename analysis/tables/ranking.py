"""Which cell is best and which do not differ significantly from it, among comparable cells.

The best is chosen after looking, so a test against it is not a test against a cell fixed before.
The adjustment accounts for that: Holm over the k − 1 comparisons with the best, and Bonferroni over
the k cells that might have come out best. Cells are tested in one direction only (worse), so p is
multiplied by k/2. k counts the best and the cells tested against it, not cells that are identical
with it, have too few seeds or no spread. The probability that any cell that is truly as good as the
best goes unmarked is at most about 5 % (Welch's test is approximate): for each of the k possible
references Holm keeps it below 5 % / k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics import stats
from analysis.tables.columns import column, sign
from analysis.tables.comparable import collapse, identical, kind, spread_of
from analysis.tables.compare import compare_all, smallest_p
from analysis.tables.groups import Group

PROCEDURE = (
    "Holm over the comparisons with the best, times k/2 for the k cells that could have come out "
    "best, 5 %"
)
"""How the ties are adjusted, for the line under a table."""


@dataclass(frozen=True)
class Class:
    """Two or more comparable cells, ranked by one metric; cells by their index."""

    label: str
    """What distinguishes them from other cells of the table; empty if nothing does."""
    best: int
    same: frozenset[int]
    """Identical with the best in every seed: the same trials under another name."""
    tied: frozenset[int]
    """Tested against the best; no significant difference."""
    untested: frozenset[int]
    """Not compared with the best: no spread, or too few seeds for any p to count."""
    worse: frozenset[int]
    refused: str
    """Why the test was refused for all of them; empty if it was not."""


@dataclass(frozen=True)
class Ranking:
    """The classes of a table's cells in one metric, and what a table marks."""

    classes: tuple[Class, ...]
    alone: int
    """Cells with values that are not comparable with any other cell: they are not ranked."""
    failed: int = 0
    """Cells with a collapsed or diverged seed: none of them is called the best."""

    @property
    def best(self) -> set[int]:
        """The best of each class, under all its names."""
        return {i for one in self.classes for i in (one.best, *one.same)}

    @property
    def tied(self) -> set[int]:
        """Every cell that was tested against the best of its class and does not differ."""
        return {i for one in self.classes for i in one.tied}


def best_of(groups: Sequence[Group], metric: str, test: str) -> Group | None:
    """The best cell of the first class; None if no cells are ranked."""
    classes = rank(groups, metric, test).classes
    return groups[classes[0].best] if classes else None


def rank(groups: Sequence[Group], metric: str, test: str) -> Ranking:
    """The best cell of each class and those that do not differ significantly from it.

    A metric of which neither high nor low values are better has no ranking. A cell with a collapsed
    or diverged seed takes no part: the mean over its other seeds would be too good.
    """
    if column(metric).better == "neither":
        return Ranking((), 0)
    every = [i for i, group in enumerate(groups) if group.summary(metric).n]
    kinds = {i: kind(groups[i], metric) for i in every if not collapse([groups[i]])}
    classes: dict[tuple[str, ...], list[int]] = {}
    for i, found in kinds.items():
        classes.setdefault(tuple(found.values()), []).append(i)
    names = next(iter(kinds.values()), {})
    differing = [n for n in names if len({found[n] for found in kinds.values()}) > 1]
    several = [members for members in classes.values() if len(members) > 1]
    ranked = []
    for members in several:
        label = ", ".join(f"{n} {kinds[members[0]][n]}" for n in differing)
        ranked.append(_rank(groups, members, label, metric, test))
    alone = len(kinds) - sum(map(len, several))
    return Ranking(tuple(ranked), alone, len(every) - len(kinds))


def _rank(groups: Sequence[Group], members: list[int], label: str, metric: str, test: str) -> Class:
    best = max(members, key=lambda i: sign(metric) * groups[i].summary(metric).mean.estimate)
    reference, rest = groups[best], [i for i in members if i != best]
    same = frozenset(i for i in rest if identical(groups[i], reference))
    others = [i for i in rest if i not in same]
    cells = [groups[i] for i in others]
    pool = spread_of(groups, metric, reference) if test == "pooled" else None
    p = np.array([r.p for r in compare_all(cells, reference, metric, test, pool)])
    least = np.array([smallest_p(cell, reference, metric, test) for cell in cells])
    p[tie_adjusted(np.where(np.isnan(p), np.nan, least)) >= stats.ALPHA] = np.nan
    worse = tie_adjusted(p) < stats.ALPHA

    def those(chosen: np.ndarray) -> frozenset[int]:
        return frozenset(np.array(others, int)[chosen].tolist())

    untested, refusal = np.isnan(p), pool.refusal if pool else ""
    refused = f"pooled SD refused: {refusal}" if refusal else ""
    tied = those(~untested & ~worse)
    return Class(label, best, same, tied, those(untested), those(worse), refused)


def tie_adjusted(p: np.ndarray) -> np.ndarray:
    """p values of comparisons with the best of k cells, adjusted as the module docstring says."""
    k = np.count_nonzero(~np.isnan(p)) + 1
    return np.minimum(1.0, stats.holm(p) * k / 2)
