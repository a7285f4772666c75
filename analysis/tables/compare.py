"""Cells compared with one named baseline: difference, interval, g, p, Holm's p and power."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.records.frame import short
from analysis.statistics import factorial, stats
from analysis.tables.comparable import apart, collapse, identical, spread_of
from analysis.tables.groups import Group
from mpcc.config import parse_settings, value_text
from tune.plan.plan import FULL_MODEL

TEST_WORDS = {
    "welch": "Welch's t test",
    "paired": "a paired t test over common seeds",
    "pooled": "a t test with the SD pooled over the grid",
    "permutation": "a permutation test",
}

NOT_COMPARED = "not compared"
IDENTICAL = "identical in every seed"
TOO_SMALL = "n too small"


@dataclass(frozen=True)
class Line:
    """One cell against the baseline in one metric, in recorded units."""

    metric: str
    group: Group
    baseline: Group
    result: stats.Comparison
    holm: float
    refused: str
    """Why there is no test; empty if there is one."""
    seeds_needed: int | None
    """Seeds per cell to detect a difference as large as the observed one, with 80 % power at Holm's
    first step; None above MAX_SEEDS, or if there was no test or its power is not known."""

    @property
    def verdict(self) -> str:
        """The result in words; never `no effect`."""
        found = "differs" if self.holm < stats.ALPHA else "not significant"
        return self.refused or found


def find_group(groups: Sequence[Group], name: str) -> Group:
    """The one cell that `name` means: settings like `esteps=4,eta_p=6e-4`, a variant, or a key.

    Settings may be written as tables print them: `esteps 4, eta_p 6e-4`. If a cell has parts, this
    is the first and largest. Raises ValueError, with a one-line message, unless one cell matches.
    """
    found = [g for g in groups if name in (g.variant, g.cell_key, g.key)]
    if len({g.cell_key for g in found}) != 1:
        wanted = parse_settings(name)
        found = [g for g in groups if all(g.settings.get(n) == v for n, v in wanted.items())]
    n_cells = len({g.cell_key for g in found})
    if n_cells != 1:
        what, known = (f"{n_cells} cells have", found) if found else ("no cell has", groups)
        some = "; ".join(g.label() for g in known[:6])
        raise ValueError(f"{what} {name}: there are {some}" + "; …" * (len(known) > 6))
    return found[0]


def compare_all(
    groups: Sequence[Group], reference: Group, metric: str, test: str, pool: stats.Spread | None
) -> list[stats.Comparison]:
    """Every group compared with the reference by `test`; NaN if there is nothing to test.

    pool: the spread for the pooled test; None for other tests. If pooling is refused, the interval
    is Welch's and p is NaN.
    """
    base = reference.summary(metric).array
    arrays = [g.summary(metric).array for g in groups]
    if test == "paired":
        return [stats.paired(*pairs(g, reference, metric)) for g in groups]
    if test == "permutation":
        return [stats.permutation(x, base) for x in arrays]
    if pool and not pool.refusal:
        return [stats.pooled(x, base, pool.std, pool.df) for x in arrays]
    found = [stats.welch(x, base) for x in arrays]
    return [replace(c, p=math.nan) for c in found] if pool else found


def pairs(a: Group, b: Group, metric: str) -> tuple[list[float], list[float]]:
    """The values of two cells on the seeds that both have."""
    left, right = dict(a.summary(metric).values), dict(b.summary(metric).values)
    seeds = sorted(left.keys() & right.keys())
    return [left[s] for s in seeds], [right[s] for s in seeds]


def smallest_p(a: Group, b: Group, metric: str, test: str) -> float:
    """The smallest p that this test can give for these two cells; 1 if it gives none."""
    values = (a.summary(metric).values, b.summary(metric).values)
    x, y = pairs(a, b, metric) if test == "paired" else values
    return stats.smallest_p(test, len(x), len(y))


def lines(groups: Sequence[Group], baseline: Group, metric: str, test: str) -> list[Line]:
    """Compare each other cell that has values with the baseline; Holm over the tested ones."""
    others = [g for g in groups if g is not baseline and g.summary(metric).n]
    if not baseline.summary(metric).n or not others:
        return []
    pool = spread_of(groups, metric, baseline) if test == "pooled" else None
    results = compare_all(others, baseline, metric, test, pool)
    whys, least = [], []
    for group, result in zip(others, results, strict=True):
        smallest = smallest_p(group, baseline, metric, test)
        why = apart(group, baseline, metric, baseline.axes)
        common = len(pairs(group, baseline, metric)[0])
        reasons = {
            f"{NOT_COMPARED}: {why}": why,
            IDENTICAL: identical(group, baseline),
            f"{'one' if common else 'no'} common seed": test == "paired" and common < 2,
            f"pooled SD refused: {pool and pool.refusal}": pool and pool.refusal,
            TOO_SMALL: smallest > stats.ALPHA,
            "no spread to test against": math.isnan(result.p),
        }
        whys.append(next((reason for reason, holds in reasons.items() if holds), ""))
        least.append(math.nan if whys[-1] else smallest)
    for i in np.flatnonzero(stats.holm(least) >= stats.ALPHA):
        whys[i] = TOO_SMALL  # Holm could not reach the level, whatever the values.
    results = [_shown(r, why) for r, why in zip(results, whys, strict=True)]
    adjusted = stats.holm([r.p for r in results])
    family = max(1, sum(not why for why in whys))
    needed: Sequence[int | None] = [None] * len(others)
    if test in factorial.POWERED:
        effects = [math.nan if why else r.effect for r, why in zip(results, whys, strict=True)]
        cells = max(2, pool.cells) if pool else 2
        needed = factorial.seeds_needed(effects, stats.ALPHA / family, test=test, cells=cells)
    return [
        Line(metric, g, baseline, r, float(p), why, n)
        for g, r, p, why, n in zip(others, results, adjusted, whys, needed, strict=True)
    ]


def _shown(result: stats.Comparison, why: str) -> stats.Comparison:
    """Remove from a refused comparison what must not be shown."""
    if not why:
        return result
    told, difference = replace(result, p=math.nan, df=math.nan), result.difference
    if why == IDENTICAL or why.startswith(NOT_COMPARED):
        estimate = difference.estimate if why == IDENTICAL else math.nan
        nothing = stats.Estimate(estimate, math.nan, math.nan, difference.n)
        told = replace(told, difference=nothing, g=math.nan, effect=math.nan)
    return told


@dataclass(frozen=True)
class Resolution:
    """The smallest differences that one metric's comparisons detect with 80 % power."""

    n: int
    """Seeds per cell in most comparisons."""
    fewer: str
    """A phrase on comparisons with fewer seeds; empty if there are none."""
    comparisons: int
    alone: float
    """In one comparison at 5 %, in SDs of a cell (if paired: of the differences)."""
    first: float
    """The same at Holm's first step over all comparisons."""
    unit: float
    """The SD that `alone` and `first` are multiples of, in the recorded unit of the metric."""
    without: str
    """Why one SD does not describe all cells; empty if it does."""


def resolution(
    groups: Sequence[Group], lines: Sequence[Line], metric: str, test: str
) -> Resolution | None:
    """What a metric's tested comparisons can detect; None if none was tested or power is unknown.

    The power of a permutation test depends on more than n and the spread, so it is not stated.
    """
    tested = [line for line in lines if not line.refused]
    counts = [line.result.difference.n for line in tested]
    n = statistics.mode(counts) if counts else 0
    if test not in factorial.POWERED or n < 2:
        return None
    baseline, others = tested[0].baseline, [line.group for line in tested]
    if test == "paired":
        values = [np.subtract(*pairs(group, baseline, metric)) for group in others]
        pool = stats.spread(values)
        pool = replace(pool, refusal="") if len(values) == 1 else pool
    else:
        pool = spread_of([baseline, *others], metric)
    without = collapse(groups) or pool.refusal or ("" if pool.std > 0 else "no spread")
    cells, fewest = max(2, pool.cells), min(counts)
    alone = factorial.detectable(n, test=test, cells=cells)
    first = factorial.detectable(n, stats.ALPHA / len(tested), test=test, cells=cells)
    fewer = f" (as few as {fewest} in a comparison)" if fewest < n else ""
    return Resolution(n, fewer, len(tested), alone, first, pool.std, without)


def seed_correlation(groups: Sequence[Group], metric: str) -> float:
    """Intraclass correlation of seeds over cells, on the seeds that all cells with values have."""
    tables = [dict(g.summary(metric).values) for g in groups if g.summary(metric).n]
    common = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    return factorial.seed_correlation(np.array([[t[s] for s in common] for t in tables], float))


def effects(
    groups: Sequence[Group], axes: Sequence[str], metric: str
) -> tuple[list[factorial.Effect], str]:
    """Main effects and interactions of a grid with two or more axes, and a note on the design.

    If incomparable values would be averaged over an axis: no effects, and the reason as the note.
    """
    cells = [g for g in groups if g.variant in (None, FULL_MODEL)]
    used = [g for g in cells if g.summary(metric).n]
    levels = {a: len({g.settings[a] for g in used}) for a in axes}
    varied = [axis for axis, n in levels.items() if n > 1]
    if len(varied) < 2:
        return [], ""
    parts = [f"a cell has trials that are not comparable ({g.part})" for g in used if g.part]
    whys = filter(None, (apart(g, used[0], metric, axes) for g in used[1:]))
    parts += [f"cells are not comparable ({why})" for why in whys]
    why = parts[0] if parts else collapse(cells)
    if why:
        return [], f"No analysis of variance: {why}."
    combinations = {tuple(g.settings[a] for a in varied) for g in used}
    full = len(combinations) == math.prod(levels.values())
    rows = [(g, seed, v) for g in used for seed, v in g.summary(metric).values]
    factors = {short(a): [value_text(g.settings[a]) for g, _, _ in rows] for a in varied}
    try:
        found = factorial.anova(
            [v for *_, v in rows], factors, [seed for _, seed, _ in rows], interactions=full
        )
    except ValueError as error:
        return [], f"No analysis of variance: {error}."
    if full:
        return found, ""
    return found, "Not every combination was run: main effects only, as if they added up."
