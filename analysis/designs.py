"""What a design can show: whether spreads agree, power, seeds needed, analysis of variance.

statsmodels does the analysis of variance. Power is here by hand, on SciPy's noncentral t, because
tables need it for thousands of cells at once; the tests check it against statsmodels.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats import ALPHA, std

POWER = 0.80
MAX_SEEDS = 1000
"""Beyond so many seeds per cell a table says `more than`."""


def spreads_agree(groups: Sequence[ArrayLike]) -> tuple[bool, float, float]:
    """Whether a pooled SD is fair: (yes or no, Brown-Forsythe p, largest / smallest SD).

    No where p < 0.05, the ratio reaches 3, or a group has no spread at all.
    """
    arrays = [x for x in (np.asarray(g, float) for g in groups) if x.size > 1]
    spreads = [std(x) for x in arrays]
    if len(arrays) < 2 or min(spreads) == 0:
        return False, math.nan, math.inf
    from scipy.stats import levene

    p = float(levene(*arrays, center="median").pvalue)
    ratio = max(spreads) / min(spreads)
    return bool(p >= ALPHA and ratio < 3), p, ratio


def seed_correlation(table: ArrayLike) -> float:
    """How much seeds share across cells: the intraclass correlation of a cells × seeds table.

    From the two-way mean squares, ICC(3,1) of Shrout and Fleiss 1979 with seeds as the targets.
    NaN below two cells or two seeds, or without any spread.
    """
    x = np.asarray(table, float)
    if x.ndim != 2 or min(x.shape) < 2:
        return math.nan
    k, n = x.shape
    seeds = x.mean(0) - x.mean()
    residual = x - x.mean(1, keepdims=True) - seeds
    between = k * float((seeds**2).sum()) / (n - 1)
    within = float((residual**2).sum()) / ((n - 1) * (k - 1))
    total = between + (k - 1) * within
    return (between - within) / total if total else math.nan


def power(effect: ArrayLike, n: ArrayLike, alpha: float = ALPHA) -> NDArray[np.float64]:
    """Power of the two-sided two-sample t test; `effect` in standard deviations, n per cell."""
    from scipy.special import nctdtr, stdtrit

    d, n = np.broadcast_arrays(np.asarray(effect, float), np.asarray(n, float))
    df, shift = 2 * n - 2, np.abs(d) * np.sqrt(n / 2)
    critical = stdtrit(df, 1 - alpha / 2)
    below = nctdtr(df, shift, critical) - nctdtr(df, shift, -critical)
    # Far out nctdtr underflows to NaN: there a difference is always found.
    return 1 - np.where(np.isnan(below) & (shift > 10), 0.0, below)


@cache
def detectable(n: int, alpha: float = ALPHA, target: float = POWER) -> float:
    """The smallest difference, in standard deviations, that n seeds per cell find so often."""
    if n < 2:
        return math.inf
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, n, alpha) < target else (low, middle)
    return high


def seeds_needed(effect: float, alpha: float = ALPHA, target: float = POWER) -> int | None:
    """Seeds per cell to find a difference of so many standard deviations; None beyond MAX_SEEDS."""
    if not abs(effect) >= detectable(MAX_SEEDS, alpha, target):
        return None
    low, high = 2, MAX_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (middle + 1, high) if detectable(middle, alpha, target) > abs(effect) else (low, middle)
        )
    return low


@dataclass(frozen=True)
class Effect:
    """One line of an analysis of variance."""

    name: str
    df: int
    f: float
    p: float
    eta2: float
    """Share of the total sum of squares."""


def anova(
    values: ArrayLike,
    factors: Mapping[str, Sequence[Hashable]],
    block: Sequence[Hashable] | None = None,
    *,
    interactions: bool = True,
) -> list[Effect]:
    """Main effects and two-way interactions (type II), with the seed as a block.

    Raises ValueError, in words, where the design does not allow it.
    """
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    y = np.asarray(values, float)
    names = [n for n, levels in factors.items() if len(set(levels)) > 1]
    columns = {f"f{i}": [str(v) for v in factors[n]] for i, n in enumerate(names)}
    terms = [f"C({c})" for c in columns]
    words = dict(zip(terms, names, strict=True))
    if interactions:
        for a, b in itertools.combinations(terms, 2):
            words[f"{a}:{b}"] = f"{words[a]} × {words[b]}"
    if block is not None and len(set(block)) > 1:
        columns["block"] = [str(v) for v in block]
        words["C(block)"] = "seed"
    model = ols("y ~ " + " + ".join(words), pd.DataFrame({"y": y, **columns})).fit()
    total = float(((y - y.mean()) ** 2).sum())
    if model.df_resid < 1 or np.linalg.matrix_rank(model.model.exog) < model.model.exog.shape[1]:
        raise ValueError("too few trials for this design")
    if not total > 0:
        raise ValueError("all values are equal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        lines = anova_lm(model, typ=2)
    return [
        Effect(
            words[t], int(row["df"]), float(row["F"]), float(row["PR(>F)"]), row["sum_sq"] / total
        )
        for t, row in lines.iterrows()
        if t != "Residual"
    ]
