"""Arrays in; estimate, interval and n out. The seed is the sampling unit throughout.

SciPy does what it has. Here by hand, because it is missing there or would cost every table a
second of import: Hedges' exact g, the pooled comparison, Welch's test (on SciPy's Student t) and
Holm (statsmodels has it). The tests check every one of them against an independent source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""A spread below this share of the values themselves is the rounding of equal values."""
MAX_ARRANGEMENTS = 9999
"""A permutation test goes through all arrangements up to so many, and else draws so many."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where n or the spread allows none."""

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
    centre, spread = _mean(x), std(x)
    if spread == 0:
        return Estimate(centre, math.nan, math.nan, n)
    half = float(_t_quantile(confidence, n - 1)) * spread / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def std(values: ArrayLike, size: float | None = None) -> float:
    """Standard deviation with ddof 1; NaN below two values, 0 where it is nothing but rounding.

    0.1 three times has a standard deviation of 1.7e-17 in floating point. `size` is the size of the
    numbers that the values were computed from, where those are larger than the values.
    """
    x = np.asarray(values, float)
    if x.size < 2:
        return math.nan
    spread = math.dist(x.tolist(), [_mean(x)] * x.size) / math.sqrt(x.size - 1)
    largest = float(np.abs(x).max()) if size is None else size
    return 0.0 if spread <= ROUNDING * largest else spread


def _mean(x: NDArray[np.float64]) -> float:
    """The mean, rounded once; of three values a dozen times as fast as NumPy's."""
    try:
        return math.fsum(x.tolist()) / x.size
    except OverflowError:  # the sum is beyond the largest number
        return float((x / x.size).sum())


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
    effect: float = math.nan
    """The difference in the standard deviations that power goes by: those of the differences for a
    paired test, else g."""


TESTS = ("welch", "paired", "pooled", "permutation")


def _nothing(a: NDArray[np.float64], b: NDArray[np.float64], test: str, n: int) -> Comparison:
    difference = _mean(a) - _mean(b) if a.size and b.size else math.nan
    return Comparison(
        Estimate(difference, math.nan, math.nan, n), math.nan, math.nan, math.nan, test
    )


def welch(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Comparison:
    """Welch's t test and its interval; no assumption that the spreads agree."""
    from scipy.special import stdtr

    x, y = np.asarray(a, float), np.asarray(b, float)
    n = min(x.size, y.size)
    if n < 2 or std(x) == std(y) == 0:
        return _nothing(x, y, "Welch", n)
    u, v = x.var(ddof=1) / x.size, y.var(ddof=1) / y.size
    df = (u + v) ** 2 / (u**2 / (x.size - 1) + v**2 / (y.size - 1))
    difference, error = x.mean() - y.mean(), np.sqrt(u + v)
    half = _t_quantile(confidence, df) * error
    p = 2 * stdtr(df, -abs(difference) / error)
    interval = float(difference - half), float(difference + half)
    estimate, g = Estimate(_mean(x) - _mean(y), *interval, n), hedges_g(x, y)
    return Comparison(estimate, float(df), float(p), g, "Welch", g)


def paired(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Comparison:
    """Paired t test of values that belong together by position (the same seed)."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.size != y.size:
        raise ValueError(f"pairs need equally many values, got {x.size} and {y.size}")
    size = float(np.abs([x, y]).max()) if x.size else 0.0
    spread = std(x - y, size)
    if x.size < 2 or spread == 0:
        return _nothing(x, y, "paired t", x.size)
    from scipy.stats import ttest_rel

    result = ttest_rel(x, y)
    interval = result.confidence_interval(confidence)
    difference = Estimate(float((x - y).mean()), float(interval.low), float(interval.high), x.size)
    effect = difference.estimate / spread * hedges_correction(x.size - 1)
    return Comparison(
        difference, float(result.df), float(result.pvalue), paired_g(x, y), "paired t", effect
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
    return (_mean(x) - _mean(y)) / scale * hedges_correction(df) if scale else math.nan


def paired_g(a: ArrayLike, b: ArrayLike) -> float:
    """Hedges' g of values that belong together: the pooled SD of related samples has fewer degrees.

    J(df) with df = 2 (n − 1) / (1 + r²): Cousineau 2020 (TQMP 16, 418-421), with r as covariance
    over mean variance. With 2n − 2, three pairs of correlation .9 would give 18 % too much; with r
    from so few pairs it is up to 9 % too little at n = 3, and 2 % at n = 5.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    scale = pooled_std([x, y])
    if x.size < 2 or not scale > 0:
        return math.nan
    r = float(((x - x.mean()) * (y - y.mean())).mean()) * x.size / (x.size - 1) / scale**2
    df = 2 * (x.size - 1) / (1 + r**2)
    return float((x - y).mean()) / scale * hedges_correction(df)


def hedges_correction(df: float) -> float:
    """J(df), the factor that makes Cohen's d unbiased under normality; NaN up to one degree."""
    if df <= 1:
        return math.nan
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def pooled_std(groups: Sequence[ArrayLike]) -> float:
    """Root of the residual variance around the groups' own means; NaN without residual degrees."""
    arrays = [np.asarray(g, float) for g in groups]
    df = sum(x.size - 1 for x in arrays if x.size)
    if df < 1:
        return math.nan
    return math.sqrt(sum((x.size - 1) * std(x) ** 2 for x in arrays if x.size > 1) / df)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p values, in the order given. NaN stays NaN and counts in no family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def pooled(
    a: ArrayLike, b: ArrayLike, spread: float, df: float, confidence: float = CONFIDENCE
) -> Comparison:
    """t test with a standard deviation pooled over a whole grid, which has `df` degrees.

    Stronger than Welch at three seeds, and only right where the cells' spreads agree.
    """
    from scipy.special import stdtr

    x, y = np.asarray(a, float), np.asarray(b, float)
    n = min(x.size, y.size)
    if not n or not spread > 0:
        return _nothing(x, y, "pooled SD", n)
    difference = float(x.mean() - y.mean())
    error = spread * math.sqrt(1 / x.size + 1 / y.size)
    half = float(_t_quantile(confidence, df)) * error
    p = 2 * float(stdtr(df, -abs(difference) / error))
    g = difference / spread * hedges_correction(df)
    estimate = Estimate(difference, difference - half, difference + half, n)
    return Comparison(estimate, df, p, g, "pooled SD", g)


def permutation(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> Comparison:
    """Permutation test of the mean difference, exact up to MAX_ARRANGEMENTS; Welch's interval."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    base = welch(x, y, confidence)
    if min(x.size, y.size) < 2:
        return base
    from scipy.stats import permutation_test

    def statistic(u: NDArray[np.float64], v: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(u.mean(axis=axis) - v.mean(axis=axis))

    result = permutation_test(
        (x, y),
        statistic,
        vectorized=True,
        n_resamples=MAX_ARRANGEMENTS,
        rng=np.random.default_rng(0),
    )
    return Comparison(base.difference, math.nan, float(result.pvalue), base.g, "permutation")


def smallest_p(test: str, n_a: int, n_b: int) -> float:
    """The smallest p value that this test can give with so many seeds; 1 where it gives none."""
    if min(n_a, n_b) < 1 or (test != "pooled" and min(n_a, n_b) < 2):
        return 1.0
    if test != "permutation":
        return 0.0
    return 2 / min(math.comb(n_a + n_b, n_a), MAX_ARRANGEMENTS + 1)
