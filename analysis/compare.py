"""Cells against one named baseline: difference, interval, g, p, Holm, and what n could show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import designs, stats
from analysis.cells import Group, unlike
from analysis.frame import short
from mpcc.config import from_dict, full_name, parse_value, value_text
from mpcc.run_dir import DIVERGED
from tune.ledger import FULL_MODEL

TEST_WORDS = {
    "welch": "Welch's t test",
    "paired": "a paired t test over common seeds",
    "pooled": "a t test with the SD pooled over the grid",
    "permutation": "a permutation test",
}


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
    """Per cell, for a difference as large as the one seen, at 80 % power."""

    @property
    def verdict(self) -> str:
        """In words; never `no effect`."""
        if self.refused:
            return self.refused
        return "differs" if self.holm < stats.ALPHA else "not told apart"


@dataclass(frozen=True)
class Spread:
    """The spread of one metric over a grid, and whether one SD may stand for all cells."""

    std: float
    """Pooled residual SD."""
    df: int
    agree: bool
    p: float
    """Brown-Forsythe."""
    ratio: float
    collapsed: str
    """The cell that forbids pooling, by name; empty where none does."""

    @property
    def refusal(self) -> str:
        """Why a pooled SD is refused; empty where it is not."""
        if self.collapsed:
            return f"pooled SD refused: {self.collapsed}"
        if not self.agree:
            if math.isnan(self.ratio):
                return "pooled SD refused: fewer than two cells have two seeds"
            if math.isnan(self.p) and math.isfinite(self.ratio):
                return "pooled SD refused: two seeds are too few to compare spreads"
            ratio = "a cell has none" if math.isinf(self.ratio) else f"ratio {self.ratio:.1f}"
            test = "" if math.isnan(self.p) else f"Brown-Forsythe p {p_text(self.p)}, "
            return f"pooled SD refused: spreads differ ({test}{ratio})"
        return ""


def find_group(groups: Sequence[Group], name: str, axes: Sequence[str]) -> Group:
    """The one cell that `name` means: settings like `esteps=4,eta_p=6e-4`, a variant, or a key.

    Raises ValueError, in one line, where there is none or more than one.
    """
    by_name = [g for g in groups if name in (g.variant, g.cell_key, g.key)]
    if len({g.cell_key for g in by_name}) == 1:  # Of a cell in parts the first, which is largest.
        return by_name[0]
    wanted = {}
    for part in name.split(","):
        field, equals, text = part.strip().partition("=")
        if not equals:
            raise ValueError(
                f"'{name}' is no cell: give settings like esteps=4,eta_p=6e-4, a variant or a key"
            )
        wanted[full_name(field)] = parse_value(field, text)
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
    key = from_dict({**base, "seed": 0}).cell_key
    own = [g for g in groups if g.cell_key == key]
    return own[0] if own else next((g for g in groups if g.done), groups[0])


def spread(groups: Sequence[Group], metric: str) -> Spread:
    """The pooled residual SD of a metric and whether it may be used."""
    values = [g.summary(metric).array for g in groups if g.summary(metric).n]
    agree, p, ratio = designs.spreads_agree(values)
    df = sum(x.size - 1 for x in values)
    collapsed = next((why for g in groups if (why := _collapse(g))), "")
    return Spread(stats.pooled_std(values), df, agree, p, ratio, collapsed)


def _collapse(group: Group) -> str:
    if group.counts.get(DIVERGED):
        return "a cell diverged"
    return "a cell collapsed" if any("collapsed" in t["failures"] for t in group.done) else ""


def compare_all(
    groups: Sequence[Group], baseline: Group, metric: str, test: str
) -> list[stats.Comparison]:
    """Every group against the baseline, as asked; NaN where there is nothing to test."""
    base = baseline.summary(metric)
    arrays = [g.summary(metric).array for g in groups]
    if test == "welch":
        return stats.welch_many(arrays, base.array)
    if test == "permutation":
        return [stats.permutation(x, base.array) for x in arrays]
    if test == "pooled":
        pool = spread([*groups, baseline], metric)
        if pool.refusal:
            return [replace(c, p=math.nan) for c in stats.welch_many(arrays, base.array)]
        return [stats.pooled(x, base.array, pool.std, pool.df) for x in arrays]
    return [_paired(g, baseline, metric) for g in groups]


def _paired(a: Group, b: Group, metric: str) -> stats.Comparison:
    left, right = dict(a.summary(metric).values), dict(b.summary(metric).values)
    seeds = sorted(left.keys() & right.keys())
    return stats.paired([left[s] for s in seeds], [right[s] for s in seeds])


def lines(groups: Sequence[Group], baseline: Group, metric: str, test: str) -> list[Line]:
    """Every other cell that has values against the baseline; Holm over all that are tested."""
    others = [g for g in groups if g is not baseline and g.summary(metric).n]
    if not baseline.summary(metric).n or not others:
        return []
    results = compare_all(others, baseline, metric, test)
    pool = spread(groups, metric)
    refused = [
        _refused(g, baseline, metric, test, pool, r) for g, r in zip(others, results, strict=True)
    ]
    results = [
        replace(r, p=math.nan) if why else r for r, why in zip(results, refused, strict=True)
    ]
    adjusted = stats.holm([r.p for r in results])
    return [
        Line(metric, g, baseline, r, float(p), why, designs.seeds_needed(r.g))
        for g, r, p, why in zip(others, results, adjusted, refused, strict=True)
    ]


def _refused(
    a: Group, b: Group, metric: str, test: str, pool: Spread, result: stats.Comparison
) -> str:
    why = unlike(a, b, metric)
    if why:
        return f"not compared: {why}"
    if test == "pooled" and pool.refusal:
        return pool.refusal
    n = a.summary(metric).n, b.summary(metric).n
    if test == "paired":
        n = (result.difference.n, result.difference.n)
    if stats.smallest_p(test, *n) > stats.ALPHA:
        return "n too small"
    return "no spread to test against" if math.isnan(result.p) else ""


def best_and_tied(
    groups: Sequence[Group], metric: str, better: str, test: str
) -> tuple[int | None, set[int]]:
    """Index of the best mean, and of every group that cannot be told from it.

    The tie is Holm-adjusted over the comparisons with the best; a cell of one seed is always tied.
    """
    ranked = [i for i, group in enumerate(groups) if group.summary(metric).n]
    if better == "neither" or len(ranked) < 2:
        return None, set()
    sign = 1 if better == "higher" else -1
    best = max(ranked, key=lambda i: sign * groups[i].summary(metric).mean.estimate)
    others = [i for i in ranked if i != best and not unlike(groups[i], groups[best], metric)]
    results = compare_all([groups[i] for i in others], groups[best], metric, test)
    adjusted = stats.holm([r.p for r in results])
    return best, {i for i, p in zip(others, adjusted, strict=True) if not p < stats.ALPHA}


def seed_correlation(groups: Sequence[Group], metric: str) -> float:
    """How much seeds share over the cells, from the seeds that all cells with values have."""
    tables = [dict(g.summary(metric).values) for g in groups if g.summary(metric).n]
    common = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    return designs.seed_correlation(np.array([[t[s] for s in common] for t in tables], float))


def effects(
    groups: Sequence[Group], axes: Sequence[str], metric: str
) -> tuple[list[designs.Effect], str]:
    """Main effects and interactions of a grid with two or more axes, and a line on the design."""
    used = [g for g in groups if g.summary(metric).n and g.variant in (None, FULL_MODEL)]
    axes = [a for a in axes if len({g.settings[a] for g in used}) > 1]
    if len(axes) < 2:
        return [], ""
    levels = {a: len({g.settings[a] for g in used}) for a in axes}
    cells = {tuple(g.settings[a] for a in axes) for g in used}
    full = len(cells) == math.prod(levels.values())
    rows = [(g, seed, v) for g in used for seed, v in g.summary(metric).values]
    factors = {short(a): [value_text(g.settings[a]) for g, _, _ in rows] for a in axes}
    try:
        found = designs.anova(
            [v for *_, v in rows], factors, [seed for _, seed, _ in rows], interactions=full
        )
    except ValueError as error:
        return [], f"No analysis of variance: {error}."
    if full:
        return found, ""
    return found, "Not every combination was run: main effects only, as if they added up."


def p_text(p: float) -> str:
    """A p value to three digits, the least as a bound."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
