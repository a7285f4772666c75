"""Estimates, intervals and tests from arrays. The seed is the sampling unit throughout.

SciPy is used where possible. Implemented here, because SciPy lacks it or because scipy.stats takes
a second to import: Hedges' exact g, the pooled comparison, Welch's test (on SciPy's Student t) and
Holm (statsmodels has it). The tests check every one of them against an independent source.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""A spread below this share of the largest value counts as rounding error of equal values."""
MAX_ARRANGEMENTS = 9999
"""A permutation test enumerates up to this many arrangements; of more it samples this many."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN if n or the spread allows none."""

    estimate: float
    low: float
    high: float
    n: int


def _quantile(df: ArrayLike) -> float:
    """Half the width of Student's t interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + CONFIDENCE) / 2))


def mean(values: ArrayLike) -> Estimate:
    """Mean with its 95 % Student's t interval."""
    x = np.asarray(values, float)
    n, spread = x.size, std(x)
    centre = _mean(x) if n else math.nan
    if not spread > 0:
        return Estimate(centre, math.nan, math.nan, n)
    half = _quantile(n - 1) * spread / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def std(values: ArrayLike, size: float | None = None) -> float:
    """Standard deviation with ddof 1; NaN below two values, 0 if it is only rounding error.

    Three times 0.1 has a standard deviation of 1.7e-17 in floating point. `size` is the largest
    magnitude of the numbers that the values were computed from, if larger than the values.
    """
    x = np.asarray(values, float)
    if x.size < 2:
        return math.nan
    spread = math.dist(x.tolist(), [_mean(x)] * x.size) / math.sqrt(x.size - 1)
    largest = float(np.abs(x).max()) if size is None else size
    return 0.0 if spread <= ROUNDING * largest else spread


def _mean(x: NDArray[np.float64]) -> float:
    """The mean, rounded once; for three values a dozen times as fast as NumPy's."""
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
    """Two-sided. NaN if n is too small for a test or there is no spread."""
    g: float
    """Hedges' g: the difference divided by the pooled SD, corrected for small n."""
    test: str
    effect: float = math.nan
    """The effect size for `factorial.power`: for a paired test in SDs of the differences, corrected
    for small n; else g."""


def _nothing(x: NDArray[np.float64], y: NDArray[np.float64], test: str) -> Comparison:
    """The result if no test is possible: the difference of the means, if both exist."""
    difference = _mean(x) - _mean(y) if x.size and y.size else math.nan
    estimate = Estimate(difference, math.nan, math.nan, min(x.size, y.size))
    return Comparison(estimate, math.nan, math.nan, math.nan, test)


def _student(
    x: NDArray[np.float64], y: NDArray[np.float64], error: float, df: float, g: float, test: str
) -> Comparison:
    """Student's t test of the difference of the means, given its standard error and `df`."""
    from scipy.special import stdtr

    difference = float(x.mean() - y.mean())
    half, p = _quantile(df) * error, 2 * float(stdtr(df, -abs(difference) / error))
    estimate = Estimate(difference, difference - half, difference + half, min(x.size, y.size))
    return Comparison(estimate, df, p, g, test, g)


def welch(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Welch's t test and its interval; no assumption that the spreads agree."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if min(x.size, y.size) < 2 or std(x) == std(y) == 0:
        return _nothing(x, y, "Welch")
    u, v = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    df = (u + v) ** 2 / (u**2 / (x.size - 1) + v**2 / (y.size - 1))
    found = _student(x, y, math.sqrt(u + v), df, hedges_g(x, y), "Welch")
    # The table's means are rounded once (`_mean`), and so is their difference.
    return replace(found, difference=replace(found.difference, estimate=_mean(x) - _mean(y)))


def pooled(a: ArrayLike, b: ArrayLike, spread: float, df: float) -> Comparison:
    """t test with a standard deviation pooled over a whole grid, with `df` degrees of freedom.

    More powerful than Welch's test at three seeds, but valid only if the cells' spreads are equal.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if not min(x.size, y.size) or not spread > 0:
        return _nothing(x, y, "pooled SD")
    error = spread * math.sqrt(1 / x.size + 1 / y.size)
    g = float(x.mean() - y.mean()) / spread * hedges_correction(df)
    return _student(x, y, error, df, g, "pooled SD")


def paired(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Paired t test of values that belong together by position (the same seed)."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.size != y.size:
        raise ValueError(f"pairs need equally many values, got {x.size} and {y.size}")
    spread = std(x - y, float(np.abs([x, y]).max(initial=0.0)))
    if not spread > 0:
        return _nothing(x, y, "paired t")
    from scipy.stats import ttest_rel

    result = ttest_rel(x, y)
    interval = result.confidence_interval(CONFIDENCE)
    difference = Estimate(float((x - y).mean()), float(interval.low), float(interval.high), x.size)
    effect = difference.estimate / spread * hedges_correction(x.size - 1)
    df, p = float(result.df), float(result.pvalue)
    return Comparison(difference, df, p, paired_g(x, y), "paired t", effect)


def permutation(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Permutation test of the mean difference, exact up to MAX_ARRANGEMENTS; Welch's interval."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    base = welch(x, y)
    if min(x.size, y.size) < 2:
        return base
    from scipy.stats import permutation_test

    def statistic(u: NDArray[np.float64], v: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(u.mean(axis=axis) - v.mean(axis=axis))

    rng, draws = np.random.default_rng(0), MAX_ARRANGEMENTS
    result = permutation_test((x, y), statistic, vectorized=True, n_resamples=draws, rng=rng)
    return Comparison(base.difference, math.nan, float(result.pvalue), base.g, "permutation")


def hedges_g(a: ArrayLike, b: ArrayLike) -> float:
    """Mean difference divided by the pooled SD, times Hedges' exact correction J(df).

    J(df) = Γ(df/2) / (√(df/2) Γ((df−1)/2)): Hedges 1981, eq. 6e. NaN if df < 2 or no spread.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    df = x.size + y.size - 2
    if df < 2:
        return math.nan
    scale = pooled_std([x, y])
    return (_mean(x) - _mean(y)) / scale * hedges_correction(df) if scale else math.nan


def paired_g(a: ArrayLike, b: ArrayLike) -> float:
    """Hedges' g of paired values: the pooled SD of correlated samples has fewer degrees of freedom.

    J(df) with df = 2 (n − 1) / (1 + r²): Cousineau 2020 (TQMP 16, 418-421), with r as covariance
    over mean variance. With df = 2n − 2, g of three pairs of correlation 0.9 would be 18 % too
    large; since r is estimated, g is up to 9 % too small at n = 3, and 2 % at n = 5.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    scale = pooled_std([x, y])
    if x.size < 2 or not scale > 0:
        return math.nan
    r = float(((x - x.mean()) * (y - y.mean())).mean()) * x.size / (x.size - 1) / scale**2
    df = 2 * (x.size - 1) / (1 + r**2)
    return float((x - y).mean()) / scale * hedges_correction(df)


def hedges_correction(df: float) -> float:
    """J(df), the factor that makes Cohen's d unbiased under normality; NaN if df <= 1."""
    if df <= 1:
        return math.nan
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def pooled_std(groups: Sequence[ArrayLike]) -> float:
    """Root of the residual variance around each group's mean; NaN without degrees of freedom."""
    arrays = [np.asarray(g, float) for g in groups]
    df = sum(x.size - 1 for x in arrays if x.size)
    if df < 1:
        return math.nan
    return math.sqrt(sum((x.size - 1) * std(x) ** 2 for x in arrays if x.size > 1) / df)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p values, in the order given. NaN stays NaN and is not in the family."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def smallest_p(test: str, n_a: int, n_b: int) -> float:
    """The smallest p value that this test can give with so many seeds; 1 if it gives none."""
    if min(n_a, n_b) < 1 or (test != "pooled" and min(n_a, n_b) < 2):
        return 1.0
    if test != "permutation":
        return 0.0
    return 2 / min(math.comb(n_a + n_b, n_a), MAX_ARRANGEMENTS + 1)


@dataclass(frozen=True)
class Spread:
    """The spread of one metric over a grid, and whether one SD describes all cells."""

    std: float
    """Pooled residual SD."""
    df: int
    cells: int
    """Cells that have a spread."""
    p: float
    """p of the Brown-Forsythe test for equal spreads."""
    ratio: float
    """Largest SD over the smallest."""
    refusal: str
    """Why a pooled SD is refused; empty if it is not."""


def spread(groups: Sequence[ArrayLike], forbidden: str = "") -> Spread:
    """The pooled residual SD of these cells' values, and whether it may be used.

    Refused if p < 0.05, the ratio reaches 3, a cell has no spread at all, fewer than two cells have
    two values, or no cell has three (with two, the test is void).
    forbidden: a reason to refuse it whatever the values are; empty if there is none.
    """
    arrays = [np.asarray(g, float) for g in groups]
    several = [x for x in arrays if x.size > 1]
    spreads, p, ratio, refusal = [std(x) for x in several], math.nan, math.nan, ""
    if len(several) < 2:
        refusal = "fewer than two cells have two seeds"
    elif min(spreads) == 0:
        ratio, refusal = math.inf, "a cell has no spread"
    else:
        ratio = max(spreads) / min(spreads)
        if max(x.size for x in several) < 3:
            refusal = "two seeds are too few to compare spreads"
        elif not (p := _brown_forsythe(several)) >= ALPHA:
            refusal = f"spreads differ (Brown-Forsythe p {p_text(p)}, ratio {ratio:.1f})"
        elif ratio >= 3:
            refusal = f"the largest SD is {ratio:.1f} times the smallest"
    df = sum(x.size - 1 for x in arrays if x.size)
    return Spread(pooled_std(arrays), df, len(several), p, ratio, forbidden or refusal)


def _brown_forsythe(arrays: Sequence[NDArray[np.float64]]) -> float:
    """p of the test for equal spreads: analysis of variance of the distances from each median.

    Implemented here since `scipy.stats` takes a second to import; tested against its `levene`.
    """
    from scipy.special import fdtrc

    distances = [np.abs(x - statistics.median(x.tolist())) for x in arrays]
    sizes = np.array([d.size for d in distances])
    means = np.array([d.mean() for d in distances])
    df = len(arrays) - 1, int(sizes.sum()) - len(arrays)
    between = float((sizes * (means - np.concatenate(distances).mean()) ** 2).sum()) / df[0]
    within = sum(float(((d - m) ** 2).sum()) for d, m in zip(distances, means, strict=True)) / df[1]
    if not within:
        return 0.0 if between else math.nan
    return float(fdtrc(*df, between / within))


def p_text(p: float) -> str:
    """A p value to three decimals; `< 0.001` if smaller, `–` if NaN."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
