"""Cells against one named baseline: difference, interval, g, p, Holm, and what n could show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.records.frame import short
from analysis.statistics import factorial as designs
from analysis.statistics import stats
from analysis.tables.comparable import Spread, apart, collapse, spread_with
from analysis.tables.groups import Group, identical
from mpcc.config import from_record, parse_settings, value_text
from tune.plan.plan import FULL_MODEL

TEST_WORDS = {
    "welch": "Welch's t test",
    "paired": "a paired t test over common seeds",
    "pooled": "a t test with the SD pooled over the grid",
    "permutation": "a permutation test",
}


NOT_COMPARED = "not compared"
IDENTICAL = "identical in every seed"


@dataclass(frozen=True)
class Line:
    """One cell against the baseline in one metric, in recorded units."""

    metric: str
    group: Group
    baseline: Group
    result: stats.Comparison
    holm: float
    refused: str
    """Why there is no test; empty where there is one."""
    seeds_needed: int | None
    """Per cell, to find a difference as large as the one seen at Holm's first step with 80 % power;
    None beyond MAX_SEEDS, and where nothing was tested or the test's power is not known."""

    @property
    def is_compared(self) -> bool:
        """Whether the two cells may be set against each other at all."""
        return not self.refused.startswith(NOT_COMPARED)

    @property
    def verdict(self) -> str:
        """In words; never `no effect`."""
        if self.refused:
            return self.refused
        return "differs" if self.holm < stats.ALPHA else "not told apart"


def find_group(groups: Sequence[Group], name: str, axes: Sequence[str]) -> Group:
    """The one cell that `name` means: settings like `esteps=4,eta_p=6e-4`, a variant, or a key.

    Settings may be written as tables print them: `esteps 4, eta_p 6e-4`.

    Raises ValueError, in one line, where there is none or more than one.
    """
    by_name = [g for g in groups if name in (g.variant, g.cell_key, g.key)]
    if len({g.cell_key for g in by_name}) == 1:  # Of a cell in parts the first, which is largest.
        return by_name[0]
    wanted = parse_settings(name)
    found = [g for g in groups if all(g.settings.get(n) == v for n, v in wanted.items())]
    cells = {g.cell_key for g in found}
    if len(cells) != 1:
        some = "; ".join(g.label(axes) for g in (found or groups)[:6])
        what = "no cell has" if not found else f"{len(cells)} cells have"
        raise ValueError(f"{what} {name}: there are {some}" + ("; …" if len(groups) > 6 else ""))
    return found[0]


def default_baseline(groups: Sequence[Group], base: dict) -> Group:
    """The full model of an ablation, else the cell with the sweep's own base settings.

    Where there is neither: the first cell with a finished trial.
    """
    full = [g for g in groups if g.variant == FULL_MODEL]
    if full:
        return full[0]
    key = from_record({**base, "seed": 0}).cell_key
    own = [g for g in groups if g.cell_key == key]
    return own[0] if own else next((g for g in groups if g.done), groups[0])


def compare_all(
    groups: Sequence[Group], reference: Group, metric: str, test: str, pool: Spread | None
) -> list[stats.Comparison]:
    """Every group against the reference, as asked; NaN where there is nothing to test.

    `pool` is the spread that a pooled test goes by; the others look at none.
    """
    base = reference.summary(metric)
    arrays = [g.summary(metric).array for g in groups]
    if test == "welch":
        return stats.welch_many(arrays, base.array)
    if test == "permutation":
        return [stats.permutation(x, base.array) for x in arrays]
    if test == "pooled":
        assert pool is not None
        if pool.refusal:
            return [replace(c, p=math.nan) for c in stats.welch_many(arrays, base.array)]
        return [stats.pooled(x, base.array, pool.std, pool.df) for x in arrays]
    return [stats.paired(*pairs(g, reference, metric)) for g in groups]


def pairs(a: Group, b: Group, metric: str) -> tuple[list[float], list[float]]:
    """The values of two cells on the seeds that both have."""
    left, right = dict(a.summary(metric).values), dict(b.summary(metric).values)
    seeds = sorted(left.keys() & right.keys())
    return [left[s] for s in seeds], [right[s] for s in seeds]


def smallest_p(a: Group, b: Group, metric: str, test: str) -> float:
    """The smallest p that this test can give for these two cells; 1 where it gives none."""
    n = a.summary(metric).n, b.summary(metric).n
    if test == "paired":
        common = len(pairs(a, b, metric)[0])
        n = common, common
    return stats.smallest_p(test, *n)


def lines(
    groups: Sequence[Group], baseline: Group, metric: str, test: str, axes: Sequence[str] = ()
) -> list[Line]:
    """Every other cell that has values against the baseline; Holm over all that are tested."""
    others = [g for g in groups if g is not baseline and g.summary(metric).n]
    if not baseline.summary(metric).n or not others:
        return []
    pool = spread_with(groups, baseline, metric) if test == "pooled" else None
    results = compare_all(others, baseline, metric, test, pool)
    refused = [
        _refused(g, baseline, metric, test, axes, pool, r)
        for g, r in zip(others, results, strict=True)
    ]
    least = [
        math.nan if why else smallest_p(g, baseline, metric, test)
        for g, why in zip(others, refused, strict=True)
    ]
    for i in np.flatnonzero(stats.holm(least) >= stats.ALPHA):
        refused[i] = "n too small"  # Holm could not reach the level, whatever the values.
    results = [_told(r, why) for r, why in zip(results, refused, strict=True)]
    adjusted = stats.holm([r.p for r in results])
    family = max(1, sum(not why for why in refused))
    effects = [math.nan if why else r.effect for r, why in zip(results, refused, strict=True)]
    needed = seeds_needed(effects, test, family, pool.cells if pool else 2)
    return [
        Line(metric, g, baseline, r, float(p), why, n)
        for g, r, p, why, n in zip(others, results, adjusted, refused, needed, strict=True)
    ]


def seeds_needed(
    effects: Sequence[float], test: str, family: int, cells: int
) -> Sequence[int | None]:
    """Seeds per cell for these effects at Holm's first step over so many comparisons."""
    if test not in designs.POWERED:
        return [None] * len(effects)
    return designs.seeds_needed(effects, stats.ALPHA / family, test=test, cells=max(2, cells))


def _told(result: stats.Comparison, why: str) -> stats.Comparison:
    """What of a comparison is told where it was refused for this reason: never a p."""
    if not why:
        return result
    told, difference = replace(result, p=math.nan, df=math.nan), result.difference
    if why == IDENTICAL or why.startswith(NOT_COMPARED):
        estimate = difference.estimate if why == IDENTICAL else math.nan
        nothing = stats.Estimate(estimate, math.nan, math.nan, difference.n)
        told = replace(told, difference=nothing, g=math.nan, effect=math.nan)
    return told


def _refused(
    a: Group,
    b: Group,
    metric: str,
    test: str,
    axes: Sequence[str],
    pool: Spread | None,
    result: stats.Comparison,
) -> str:
    why = apart(a, b, metric, axes)
    if why:
        return f"{NOT_COMPARED}: {why}"
    if identical(a, b):
        return IDENTICAL
    if test == "paired" and len(pairs(a, b, metric)[0]) < 2:
        return "one common seed" if pairs(a, b, metric)[0] else "no common seed"
    if pool and pool.refusal:
        return pool.refusal
    if smallest_p(a, b, metric, test) > stats.ALPHA:
        return "n too small"
    return "no spread to test against" if math.isnan(result.p) else ""


def seed_correlation(groups: Sequence[Group], metric: str) -> float:
    """How much seeds share over the cells, from the seeds that all cells with values have."""
    tables = [dict(g.summary(metric).values) for g in groups if g.summary(metric).n]
    common = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    return designs.seed_correlation(np.array([[t[s] for s in common] for t in tables], float))


def effects(
    groups: Sequence[Group], axes: Sequence[str], metric: str
) -> tuple[list[designs.Effect], str]:
    """Main effects and interactions of a grid with two or more axes, and a line on the design.

    No effects, and why, where values that are not alike would be averaged over an axis.
    """
    cells = [g for g in groups if g.variant in (None, FULL_MODEL)]
    used = [g for g in cells if g.summary(metric).n]
    varied = [a for a in axes if len({g.settings[a] for g in used}) > 1]
    if len(varied) < 2:
        return [], ""
    why = _unlike_cells(used, metric, axes) or collapse(cells)
    if why:
        return [], f"No analysis of variance: {why}."
    levels = {a: len({g.settings[a] for g in used}) for a in varied}
    full = len({tuple(g.settings[a] for a in varied) for g in used}) == math.prod(levels.values())
    rows = [(g, seed, v) for g in used for seed, v in g.summary(metric).values]
    factors = {short(a): [value_text(g.settings[a]) for g, _, _ in rows] for a in varied}
    try:
        found = designs.anova(
            [v for *_, v in rows], factors, [seed for _, seed, _ in rows], interactions=full
        )
    except ValueError as error:
        return [], f"No analysis of variance: {error}."
    if full:
        return found, ""
    return found, "Not every combination was run: main effects only, as if they added up."


def _unlike_cells(used: Sequence[Group], metric: str, axes: Sequence[str]) -> str:
    """Why these cells may not stand in one analysis; empty where they may."""
    parts = [g.part for g in used if g.part]
    if parts:
        return f"a cell has trials that are not alike ({parts[0]})"
    whys = (apart(g, used[0], metric, axes) for g in used[1:])
    why = next((w for w in whys if w), "")
    return f"cells are not alike ({why})" if why else ""
