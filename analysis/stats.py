"""Arrays in; estimate, interval and n out. The seed is the sampling unit throughout.

SciPy does what it has. Here by hand, because it is missing there or costs seconds of import: Hedges'
g, Holm (statsmodels has it), and power of the t test as arrays (statsmodels has it one at a time).
Every one of them is checked in the tests against an independent source.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
CONFIDENCE = 0.95
POWER = 0.80


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where n does not allow one."""

    estimate: float
    low: float
    high: float
    n: int


def _t_quantile(confidence: float, df: ArrayLike) -> NDArray[np.float64]:
    from scipy.special import stdtrit

    return stdtrit(np.asarray(df, float), (1 + confidence) / 2)


def mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Mean with Student's t interval."""
    x = np.asarray(values, float)
    n = x.size
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(x[0]), math.nan, math.nan, 1)
    half = float(_t_quantile(confidence, n - 1)) * std(x) / math.sqrt(n)
    centre = float(x.mean())
    return Estimate(centre, centre - half, centre + half, n)


def std(values: ArrayLike) -> float:
    """Standard deviation with ddof 1; NaN below two values."""
    x = np.asarray(values, float)
    return float(x.std(ddof=1)) if x.size > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """One cell against another: mean difference (first minus second) and what it rests on."""

    difference: Estimate
    """n is the smaller of the two counts, or the number of pairs."""
    df: float
    p: float
    """Two-sided. NaN where n is too small to test at all."""
    g: float
    """Hedges' g: the difference in pooled standard deviations, corrected for small n."""
    test: str


def _nothing(a: NDArray[np.float64], b: NDArray[np.float64], test: str, n: int) -> Comparison:
    difference = float(a.mean() - b.mean()) if a.size and b.size else math.nan
    return Comparison(
        Estimate(difference, math.nan, math.nan, n), math.nan, math.nan, math.nan, test
    )


def welch(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Comparison:
    """Welch's t test and its interval; no assumption that the spreads agree."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    n = min(x.size, y.size)
    if n < 2 or (std(x) == 0 and std(y) == 0):
        return _nothing(x, y, "Welch", n)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        # One cell without spread is no loss of precision: the other's variance is all there is.
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        result = ttest_ind(x, y, equal_var=False)
    interval = result.confidence_interval(confidence)
    difference = Estimate(float(x.mean() - y.mean()), float(interval.low), float(interval.high), n)
    return Comparison(difference, float(result.df), float(result.pvalue), hedges_g(x, y), "Welch")


def paired(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Comparison:
    """Paired t test of values that belong together by position (the same seed)."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.size != y.size:
        raise ValueError(f"pairs need equally many values, got {x.size} and {y.size}")
    if x.size < 2 or std(x - y) == 0:
        return _nothing(x, y, "paired t", x.size)
    from scipy.stats import ttest_rel

    result = ttest_rel(x, y)
    interval = result.confidence_interval(confidence)
    difference = Estimate(float((x - y).mean()), float(interval.low), float(interval.high), x.size)
    return Comparison(
        difference, float(result.df), float(result.pvalue), hedges_g(x, y), "paired t"
    )


def hedges_g(a: ArrayLike, b: ArrayLike) -> float:
    """Mean difference in pooled standard deviations, times Hedges' exact correction J(df).

    J(df) = Γ(df/2) / (√(df/2) Γ((df−1)/2)): Hedges 1981, eq. 6e. NaN where the spread is zero.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    df = x.size + y.size - 2
    if df < 2:
        return math.nan
    scale = pooled_std([x, y])
    return float(x.mean() - y.mean()) / scale * hedges_correction(df) if scale else math.nan


def hedges_correction(df: float) -> float:
    """J(df), the factor that makes Cohen's d unbiased under normality."""
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def pooled_std(groups: Sequence[ArrayLike]) -> float:
    """Root of the residual variance around the groups' own means; NaN without residual degrees."""
    arrays = [np.asarray(g, float) for g in groups]
    df = sum(x.size - 1 for x in arrays if x.size)
    if df < 1:
        return math.nan
    return math.sqrt(sum(float(((x - x.mean()) ** 2).sum()) for x in arrays if x.size) / df)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p values, in the order given. NaN stays NaN and counts in no family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
