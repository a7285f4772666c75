"""What an experimental design can show: power, seeds needed, analysis of variance.

statsmodels does the analysis of variance of incomplete designs. Implemented here are that of
complete designs, which takes statsmodels minutes at hundreds of cells, and power from SciPy's
noncentral t, for thousands of cells at once. The tests check both against statsmodels and R.
"""

import itertools
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.stats import ALPHA, std

POWER = 0.80
MAX_SEEDS = 1000
"""If more seeds per cell are needed, the table prints `> 1,000`."""


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


POWERED = ("welch", "paired", "pooled")
"""The tests whose power is known; that of a permutation test depends on the values."""


def power(
    effect: ArrayLike, n: ArrayLike, alpha: float = ALPHA, test: str = "pooled", cells: int = 2
) -> NDArray[np.float64]:
    """Power of a two-sided test between two cells of n seeds each, for normal values.

    `effect` is in SDs of a cell, for `paired` in SDs of the differences; it broadcasts with `n`.
    The pooled SD is over this many `cells`: with two, the test is Student's.
    """
    from scipy.special import stdtrit

    d, n = np.broadcast_arrays(np.abs(np.asarray(effect, float)), np.asarray(n, float))
    if test == "paired":
        return _beyond(n - 1, d * np.sqrt(n), stdtrit(n - 1, 1 - alpha / 2))
    if test == "pooled":
        df = cells * (n - 1)
        return _beyond(df, d * np.sqrt(n / 2), stdtrit(df, 1 - alpha / 2))
    return _welch_power(d, n, alpha)


def _welch_power(
    d: NDArray[np.float64], n: NDArray[np.float64], alpha: float
) -> NDArray[np.float64]:
    """Power of Welch's test if the true spreads are equal.

    With equal n its t is Student's t and independent of each sample variance's share in their sum.
    The share follows a Beta distribution and sets Welch's df and critical value, so the power is
    averaged over it (Gauss-Legendre over the lower half of its quantiles; the upper mirrors it).
    """
    from scipy.special import betaincinv, stdtrit

    nodes, weights = np.polynomial.legendre.leggauss(8)
    n = n[..., None]
    share = betaincinv((n - 1) / 2, (n - 1) / 2, (nodes + 1) / 4)
    critical = stdtrit((n - 1) / (share**2 + (1 - share) ** 2), 1 - alpha / 2)
    beyond = _beyond(2 * n - 2, d[..., None] * np.sqrt(n / 2), critical)
    return (weights / 2 * beyond).sum(-1)


def _beyond(
    df: NDArray[np.float64], shift: NDArray[np.float64], critical: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The probability that a noncentral t lies beyond ± critical."""
    from scipy.special import nctdtr

    df, shift, critical = np.broadcast_arrays(df, shift, critical)
    upper, lower = nctdtr(df, shift, critical), np.zeros(shift.shape)
    near = shift <= 5  # Beyond 5 the lower tail is negligible, and nctdtr gives NaN.
    lower[near] = np.nan_to_num(nctdtr(df[near], shift[near], -critical[near]))
    return 1 - (np.where(np.isnan(upper) & ~near, 0.0, upper) - lower)


@cache
def detectable(n: int, alpha: float = ALPHA, test: str = "pooled", cells: int = 2) -> float:
    """The smallest difference that n seeds detect with power POWER, in the units of `effect`."""
    if n < 2:
        return math.inf
    low, high = 0.0, 1.0
    while power(high, n, alpha, test, cells) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        enough = power(middle, n, alpha, test, cells) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def seeds_needed(
    effects: ArrayLike, alpha: float = ALPHA, test: str = "pooled", cells: int = 2
) -> list[int | None]:
    """For each effect, the seeds per cell that detect it with power POWER; None above MAX_SEEDS."""
    from scipy.special import ndtri

    d = np.abs(np.asarray(effects, float))
    known = np.isfinite(d) & (d > 0)
    # The z test, which knows the spread, needs no more than a test that must estimate it.
    z, pair = ndtri(1 - alpha / 2) + ndtri(POWER), 1 if test == "paired" else 2
    at_least = np.where(known, np.floor(pair * (z / np.where(known, d, 1.0)) ** 2), 0)
    low = np.clip(at_least, 2, MAX_SEEDS + 1).astype(int)
    high, step = np.where(known, MAX_SEEDS + 1, low), 2
    while (left := np.flatnonzero(low < high)).size:  # a bisection that looks near `low` first
        middle = np.minimum((low[left] + high[left]) // 2, low[left] + step)
        enough = power(d[left], middle, alpha, test, cells) >= POWER
        high[left[enough]], low[left[~enough]] = middle[enough], middle[~enough] + 1
        step *= 2
    return [
        2 if math.isinf(size) else int(n) if k and n <= MAX_SEEDS else None
        for n, k, size in zip(high, known, d, strict=True)
    ]


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

    values: (N,); factors: name -> N levels; block: N seeds. statsmodels fits the model. If every
    combination has every seed once, the sums of squares come from the means instead: the same
    values, faster. Raises ValueError, with the reason, if the design allows no answer.
    """
    y = np.asarray(values, float)
    if not std(y) > 0:
        raise ValueError("all values are equal")
    axes = {name: list(levels) for name, levels in factors.items() if len(set(levels)) > 1}
    if block is not None and len(set(block)) > 1:
        axes[BLOCK] = list(block)
        cube = _cube(y, axes)
        if cube is not None:
            return _balanced(cube, list(axes), interactions)
    if len(y) * _width(axes, interactions) ** 2 > MAX_WORK:
        raise ValueError("the grid is incomplete and too large to fit")
    return _fitted(y, axes, interactions)


BLOCK = "seed"
MAX_WORK = 2e7
"""Trials × columns² beyond which a model is not fitted: it would take more than seconds."""


TOO_FEW = "too few trials for this design"
NO_NOISE = "nothing is left over to test against: the effects add up to the values exactly"
NO_RESIDUAL = 1e-12
"""A residual below this share of the total sum of squares is rounding."""


def _width(axes: Mapping[str, Sequence[Hashable]], interactions: bool) -> int:
    """Number of columns of the design matrix."""
    df = [len(set(levels)) - 1 for name, levels in axes.items() if name != BLOCK]
    pairs = sum(a * b for a, b in itertools.combinations(df, 2)) if interactions else 0
    return 1 + sum(df) + pairs + len(set(axes.get(BLOCK, [0]))) - 1


def _cube(
    y: NDArray[np.float64], axes: Mapping[str, Sequence[Hashable]]
) -> NDArray[np.float64] | None:
    """The values, one dimension per axis; None if a combination is missing or occurs twice."""
    known = [{v: i for i, v in enumerate(dict.fromkeys(levels))} for levels in axes.values()]
    shape = [len(levels) for levels in known]
    if math.prod(shape) != y.size:
        return None
    cube = np.full(shape, math.nan)
    places = [[at[v] for v in levels] for at, levels in zip(known, axes.values(), strict=True)]
    cube[tuple(places)] = y
    return None if np.isnan(cube).any() else cube


def _balanced(cube: NDArray[np.float64], names: Sequence[str], interactions: bool) -> list[Effect]:
    from scipy.special import fdtrc

    centred = cube - cube.mean()
    total = float((centred**2).sum())

    def marginal(*kept: int) -> NDArray[np.float64]:
        rest = tuple(i for i in range(cube.ndim) if i not in kept)
        return centred.mean(axis=rest, keepdims=True)

    own = [i for i, name in enumerate(names) if name != BLOCK]
    terms: list[tuple[int, ...]] = [(i,) for i in range(cube.ndim)]
    terms += itertools.combinations(own, 2) if interactions else ()
    parts = []
    for term in terms:
        part, df = marginal(*term), math.prod(cube.shape[i] - 1 for i in term)
        for i in term if len(term) > 1 else ():
            part = part - marginal(i)
        parts.append((" × ".join(names[i] for i in term), df, part))
    squares = [float((part**2).sum()) * cube.size / part.size for _, _, part in parts]
    rest, rest_df = total - sum(squares), cube.size - 1 - sum(df for _, df, _ in parts)
    if rest_df < 1:
        raise ValueError(TOO_FEW)
    if rest <= NO_RESIDUAL * total:
        raise ValueError(NO_NOISE)
    found = []
    for (name, df, _), square in zip(parts, squares, strict=True):
        f = square / df / (rest / rest_df)
        found.append(Effect(name, df, f, float(fdtrc(df, rest_df, f)), square / total))
    return sorted(found, key=lambda effect: effect.name == BLOCK)


def _fitted(
    y: NDArray[np.float64], axes: Mapping[str, Sequence[Hashable]], interactions: bool
) -> list[Effect]:
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    columns = {f"f{i}": [str(v) for v in levels] for i, levels in enumerate(axes.values())}
    words = {f"C({c})": name for c, name in zip(columns, axes, strict=True)}
    if interactions:
        own = [term for term, name in words.items() if name != BLOCK]
        for a, b in itertools.combinations(own, 2):
            words[f"{a}:{b}"] = f"{words[a]} × {words[b]}"
    design = ols("y ~ " + " + ".join(words), pd.DataFrame({"y": y, **columns}))
    rank = np.linalg.matrix_rank(design.exog)
    if rank < design.exog.shape[1] or y.size - rank < 1:
        raise ValueError(TOO_FEW)
    model = design.fit()
    total = float(((y - y.mean()) ** 2).sum())
    if model.ssr <= NO_RESIDUAL * total:
        raise ValueError(NO_NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        lines = anova_lm(model, typ=2)
    found = [
        Effect(
            words[t], int(row["df"]), *map(float, (row["F"], row["PR(>F)"], row["sum_sq"] / total))
        )
        for t, row in lines.iterrows()
        if t != "Residual"
    ]
    return sorted(found, key=lambda effect: effect.name == BLOCK)
