"""What a design could have found: the smallest difference, by the test that is in use."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.statistics import factorial as designs
from analysis.statistics import stats
from analysis.tables.comparable import Spread, collapse, spread
from analysis.tables.compare import Line, pairs
from analysis.tables.groups import Group


@dataclass(frozen=True)
class Resolution:
    """The smallest differences that one metric's comparisons find with 80 % power."""

    n: int
    """Seeds of most comparisons."""
    fewest: int
    """Seeds of the comparison that has the fewest."""
    comparisons: int
    alone: float
    """In one comparison at 5 %, in standard deviations of a cell (of a difference, if paired)."""
    first: float
    """At Holm's first step over all comparisons."""
    unit: float
    """The standard deviation that these are in; NaN where no single one stands for all."""
    without: str
    """Why there is no such unit; empty where there is one."""

    @property
    def fewer(self) -> str:
        """Words for comparisons that have fewer seeds; empty where all have as many."""
        return f" (as few as {self.fewest} in a comparison)" if self.fewest < self.n else ""


def resolution(
    groups: Sequence[Group], lines: Sequence[Line], metric: str, test: str
) -> Resolution | None:
    """What the tested comparisons of a metric could find; None where none was, or none can tell.

    The power of a permutation test depends on more than n and the spread: none is stated.
    """
    tested = [line for line in lines if not line.refused]
    counts = [line.result.difference.n for line in tested]
    n = statistics.mode(counts) if counts else 0
    if test not in designs.POWERED or n < 2:
        return None
    pool = _unit(tested, metric, test)
    without = collapse(groups) or pool.refusal.replace("pooled SD refused: ", "")
    if not without and not pool.std > 0:
        without = "no spread"
    cells = max(2, pool.cells)
    alone = designs.detectable(n, test=test, cells=cells)
    first = designs.detectable(n, stats.ALPHA / len(tested), test=test, cells=cells)
    unit = math.nan if without else pool.std
    return Resolution(n, min(counts), len(tested), alone, first, unit, without)


def _unit(tested: Sequence[Line], metric: str, test: str) -> Spread:
    """The spread of the cells or, for a paired test, of the differences from the baseline."""
    baseline = tested[0].baseline
    if test != "paired":
        return spread([baseline, *(line.group for line in tested)], metric)
    found = [pairs(line.group, baseline, metric) for line in tested]
    values = [[x - y for x, y in zip(*pair, strict=True)] for pair in found]
    if len(values) == 1:
        return Spread(stats.std(values[0]), len(values[0]) - 1, 1, True, math.nan, 1.0, "")
    agree, p, ratio = designs.spreads_agree(values)
    df = sum(len(x) - 1 for x in values)
    return Spread(stats.pooled_std(values), df, len(values), agree, p, ratio, "")
