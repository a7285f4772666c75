"""Simulation with known truth: do the intervals cover, and do the tests keep their promises?

Normal values, 10,000 repetitions, n = 3 and 5. Every figure is a claim with bounds: one outside
them makes the run fail. Figures come in vectors; a sample of the repetitions goes through the
functions of `analysis/` one by one and must agree.

    python benchmarks/statistics_simulation.py [--repetitions N] [--seed S]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]

from scipy import special  # noqa: E402

from analysis.statistics import factorial as designs  # noqa: E402
from analysis.statistics import stats  # noqa: E402
from analysis.tables.ranking import tie_adjusted  # noqa: E402

Array = NDArray[np.float64]
CELLS = 9
"""Cells of the simulated grid: a baseline and eight others."""
EFFECT = 1.5
"""Difference in standard deviations at which power is measured."""
FULL = 10_000
"""Repetitions for which the bounds are meant; fewer get the slack of their own noise."""
CHECKED = 20
"""Repetitions that go through the functions of `analysis/` one by one."""


@dataclass(frozen=True)
class Claim:
    """One measured figure and the bounds that it is held to."""

    name: str
    value: float
    low: float
    high: float
    deviation: float = 0.5
    """Standard deviation of one repetition; a share has at most a half."""
    sharp: bool = False
    """The truth may lie close to the bound: three standard errors of the simulation are allowed."""

    def holds(self, repetitions: int) -> bool:
        """Whether the figure is within its bounds; a shortened run gets the slack of its noise."""
        errors = 4 if repetitions < FULL else 3 if self.sharp else 0
        slack = errors * self.deviation / math.sqrt(repetitions)
        return self.low - slack <= self.value <= self.high + slack


def about(name: str, value: float, truth: float, by: float, deviation: float = 0.5) -> Claim:
    """A claim that a figure lies so near to a known one."""
    return Claim(name, value, truth - by, truth + by, deviation)


def at_most(name: str, value: float, bound: float = stats.ALPHA) -> Claim:
    """A claim that an error is no more frequent than this."""
    return Claim(name, value, 0.0, bound, math.sqrt(bound * (1 - bound)), sharp=True)


# -- tests in vectors: the last axis holds the seeds -----------------------------------------------


def welch(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """p, difference and half width of the interval of Welch's test."""
    n = x.shape[-1]
    a, b = x.var(-1, ddof=1) / n, y.var(-1, ddof=1) / n
    difference, error = x.mean(-1) - y.mean(-1), np.sqrt(a + b)
    df = (a + b) ** 2 / ((a**2 + b**2) / (n - 1))
    return (
        2 * special.stdtr(df, -np.abs(difference) / error),
        difference,
        special.stdtrit(df, 0.975) * error,
    )


def paired(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """The same of the paired t test."""
    d, n = x - y, x.shape[-1]
    error = d.std(-1, ddof=1) / math.sqrt(n)
    p = 2 * special.stdtr(n - 1, -np.abs(d.mean(-1)) / error)
    return p, d.mean(-1), special.stdtrit(n - 1, 0.975) * error


def pooled(x: Array, y: Array, grid: Array) -> tuple[Array, Array, Array]:
    """The same with the SD pooled over a grid (repetitions, cells, seeds)."""
    cells, n = grid.shape[1:]
    error = np.sqrt(grid.var(2, ddof=1).mean(1) * 2 / n)
    error = error.reshape(error.shape + (1,) * (x.ndim - 2))
    difference, df = x.mean(-1) - y.mean(-1), cells * (n - 1)
    p = 2 * special.stdtr(df, -np.abs(difference) / error)
    return p, difference, special.stdtrit(df, 0.975) * error


TESTS = {"welch": welch, "paired": paired}


def p_of(test: str, x: Array, y: Array, grid: Array) -> Array:
    """p of a test by its name, checked against the test of the tables."""
    p = pooled(x, y, grid)[0] if test == "pooled" else TESTS[test](x, y)[0]
    for i in range(CHECKED):
        a, b = (np.broadcast_to(v, x.shape)[i].reshape(-1, x.shape[-1])[0] for v in (x, y))
        if test == "pooled":
            spread = stats.pooled_std(list(grid[i]))
            one = stats.pooled(a, b, spread, grid.shape[1] * (x.shape[-1] - 1))
        else:
            one = stats.welch(a, b) if test == "welch" else stats.paired(a, b)
        assert np.isclose(one.p, p[i].flat[0]), test
    return p


def holm(p: Array) -> Array:
    """Holm's adjusted p values in every row."""
    order, m = np.argsort(p, 1), p.shape[1]
    steps = np.maximum.accumulate(np.take_along_axis(p, order, 1) * np.arange(m, 0, -1), 1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(steps, 1), 1)
    assert np.allclose(adjusted[:CHECKED], [stats.holm(row) for row in p[:CHECKED]])
    return adjusted


# -- claims ----------------------------------------------------------------------------------------


def correlated(repetitions: int, n: int, rng: np.random.Generator, share: float = 0.0) -> Array:
    """A grid of equal cells; seeds are correlated over cells by `share`."""
    grid = rng.standard_normal((repetitions, CELLS, n))
    common = rng.standard_normal((repetitions, 1, n))
    return math.sqrt(share) * common + math.sqrt(1 - share) * grid


def coverage(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """Intervals hold the truth as often as they say; Welch's is wider than that at n = 3."""
    grid = correlated(repetitions, n, rng)
    x, y = grid[:, 1], grid[:, 0]
    half = special.stdtrit(n - 1, 0.975) * y.std(1, ddof=1) / math.sqrt(n)
    checked = [stats.mean(row) for row in y[:CHECKED]]
    assert np.allclose([e.high - e.estimate for e in checked], half[:CHECKED])
    yield about("coverage: Student's t, one mean", (np.abs(y.mean(1)) <= half).mean(), 0.95, 0.01)
    _, difference, half = pooled(x, y, grid)
    yield about("coverage: pooled SD", (np.abs(difference) <= half).mean(), 0.95, 0.01)
    common = correlated(repetitions, n, rng, 0.5)
    _, difference, half = paired(common[:, 1], common[:, 0])
    share = (np.abs(difference) <= half).mean()
    yield about("coverage: paired t, correlation .5", share, 0.95, 0.01)
    for shift in (0.0, EFFECT):
        _, difference, half = welch(x + shift, y)
        share = (np.abs(difference - shift) <= half).mean()
        low, high = (0.95, 0.98) if n == 3 else (0.94, 0.965)
        yield Claim(f"coverage: Welch, difference {shift:g} σ", float(share), low, high)


def families(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """Holm over eight comparisons with a baseline: any true hypothesis rejected, at most 5 %."""
    for shifted in (0, 4):
        null = f"{CELLS - 1 - shifted} of {CELLS - 1} true"
        shift = np.array([0.0] * (CELLS - shifted) + [4.0] * shifted)[None, :, None]
        for test, share in (("welch", 0.0), ("pooled", 0.0), ("paired", 0.5)):
            grid = correlated(repetitions, n, rng, share) + shift
            p = holm(p_of(test, grid[:, 1:], grid[:, :1], grid))
            wrong = (p[:, : CELLS - 1 - shifted] < stats.ALPHA).any(1).mean()
            yield at_most(f"family-wise error: {test}, {null}", float(wrong))
    grid = correlated(repetitions, n, rng) * np.array([1.0] + [3.0] * (CELLS - 1))[None, :, None]
    wrong = (holm(p_of("welch", grid[:, 1:], grid[:, :1], grid)) < stats.ALPHA).any(1).mean()
    yield at_most("family-wise error: welch, others 3 × as spread", float(wrong), 0.065)


def ties(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """A cell as good as the best of its table goes unmarked, at most 5 %."""
    for cells, worse in ((CELLS, 0), (3, 0), (CELLS, 4)):
        truth = np.array([0.0] * (cells - worse) + [-2.0] * worse)
        for test, share in (("welch", 0.0), ("pooled", 0.0), ("paired", 0.5)):
            grid = correlated(repetitions, n, rng, share)[:, :cells] + truth[None, :, None]
            best = grid.mean(2).argmax(1)
            rows = np.arange(repetitions)
            others = np.argsort(np.arange(cells)[None] == best[:, None], 1, kind="stable")[:, :-1]
            x = grid[rows[:, None], others]
            p = p_of(test, x, grid[rows, best][:, None], grid)
            adjusted = np.minimum(1, holm(p) * cells / 2)
            assert np.allclose(adjusted[:CHECKED], [tie_adjusted(row) for row in p[:CHECKED]])
            wrong = (adjusted < stats.ALPHA) & (truth[others] >= truth[best][:, None])
            name = f"tie marks: {test}, {cells - worse} of {cells} cells equal"
            yield at_most(name, float(wrong.any(1).mean()))


def power(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """Power at 1.5 σ, and 80 % at the smallest difference that the tables state."""
    own = {"welch": {3: 0.22, 5: 0.52}, "pooled": {3: 0.41, 5: 0.63}}
    grid, alphas = correlated(repetitions, n, rng), (stats.ALPHA, stats.ALPHA / (CELLS - 1))
    x, y = grid[:, 1], grid[:, 0]
    for test, known in own.items():
        share = float((p_of(test, x + EFFECT, y, grid) < stats.ALPHA).mean())
        yield about(f"power at 1.5 σ: {test}", share, known[n], 0.02)
    share = float((pooled(x + EFFECT, y, grid[:, :2])[0] < stats.ALPHA).mean())
    yield about("power at 1.5 σ: Student, own SD", share, {3: 0.293, 5: 0.549}[n], 0.02)
    for test in designs.POWERED:
        unit = math.sqrt(2) if test == "paired" else 1.0
        for alpha, words in zip(alphas, ("alone", "at Holm's first step"), strict=True):
            least = designs.detectable(n, alpha, test=test, cells=CELLS) * unit
            share = float((p_of(test, x + least, y, grid) < alpha).mean())
            yield about(f"power at the stated difference: {test} {words}", share, 0.8, 0.02)


def effect_sizes(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """What standard deviations, Hedges' g and the best of nine are in the mean."""
    grid = correlated(repetitions, n, rng)
    known = {3: 0.886, 5: 0.940}[n]
    yield about("E[std]/σ, ddof 1", float(grid.std(2, ddof=1).mean()), known, 0.01)
    best = float((grid.mean(2).max(1) - grid[:, 0].mean(1)).mean())
    yield about("best of nine equal cells over the base, σ", best, 1.485 / math.sqrt(n), 0.02, 1.0)
    g = [stats.hedges_g(x + EFFECT, y) for x, y in zip(grid[:, 1], grid[:, 0], strict=True)]
    yield about("bias of g at 1.5 σ", float(np.mean(g)) - EFFECT, 0.0, 0.05, 1.5)
    for share, down in ((0.0, {3: 0.12, 5: 0.05}), (0.9, {3: 0.06, 5: 0.03})):
        two = correlated(repetitions, n, rng, share)
        g = [stats.paired_g(x + 1, y) for x, y in zip(two[:, 1], two[:, 0], strict=True)]
        name = f"bias of g of pairs at 1 σ, correlation {share:g}"
        yield Claim(name, float(np.mean(g)) - 1, -down[n], 0.03, 1.0)


def gate(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """How often nine cells of equal spread are found equal enough to pool."""
    grid = correlated(repetitions, n, rng)
    spreads = grid.std(2, ddof=1)
    distance = np.abs(grid - np.median(grid, 2, keepdims=True))
    within = distance.var(2, ddof=1).mean(1)
    f = n * distance.mean(2).var(1, ddof=1) / within
    p = special.fdtrc(CELLS - 1, CELLS * (n - 1), f)
    agree = (p >= stats.ALPHA) & (spreads.max(1) < 3 * spreads.min(1))
    checked = [not stats.spread(list(cells)).refusal for cells in grid[:CHECKED]]
    assert checked == agree[:CHECKED].tolist()
    yield about("nine equal cells may pool", float(agree.mean()), {3: 0.09, 5: 0.46}[n], 0.02)


def variance(n: int, repetitions: int, rng: np.random.Generator) -> Iterator[Claim]:
    """Effects that are not there, found by the analysis of variance of a 3 × 3 grid: 5 %."""
    a, b, seed = (axis.ravel().tolist() for axis in np.indices((3, 3, n)))
    found = [
        [e.p < stats.ALPHA for e in designs.anova(values.ravel(), {"a": a, "b": b}, seed)]
        for values in correlated(repetitions, n, rng, 0.3)
    ]
    for name, share in zip(("a", "b", "a × b"), np.mean(found, 0), strict=False):
        yield about(f"analysis of variance, false: {name}", float(share), 0.05, 0.01)


STUDIES = (coverage, families, ties, power, effect_sizes, gate, variance)


def study(n: int, repetitions: int, rng: np.random.Generator) -> list[Claim]:
    """Every claim for one number of seeds."""
    return [claim for part in STUDIES for claim in part(n, repetitions, rng)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per figure, a column per number of seeds; 1 where a claim is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=FULL)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng, r = np.random.default_rng(options.seed), options.repetitions
    if r < CHECKED:
        parser.error(f"--repetitions must be at least {CHECKED}, got {r}")
    columns = [study(n, r, rng) for n in (3, 5)]
    print(f"{r:,} repetitions, normal data; in brackets: the bounds each figure is held to")
    print("" if r >= FULL else "A shortened run: the bounds are widened by its own noise.\n")
    print(f"{'':60} {'n = 3':>22} {'n = 5':>22}")
    broken = []
    for row in zip(*columns, strict=True):
        shown = [f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in row]
        print(f"{row[0].name:60} {shown[0]:>22} {shown[1]:>22}")
        broken += [
            f"{c.name}: {c.value:.4f}, not in [{c.low:.4f}, {c.high:.4f}]"
            for c in row
            if not c.holds(r)
        ]
    print(
        "\nWelch's interval is wider than it says at n = 3 (about 96.6 %), the price of not"
        "\nassuming equal spreads: it is held to 95 to 98 %. A power of .58 at n = 5 and 1.5 σ, as"
        "\nquoted elsewhere for a test with its own SD, is reached by none: Welch .52, Student .549"
        "\n(R: power.t.test(n = 5, delta = 1.5)). Errors of at most 5 % may be exceeded by three"
        "\nstandard errors of the simulation; where all other cells are three times as spread as"
        "\nthe baseline, Welch's test with Holm's steps errs in about 6 % of tables at n = 5."
    )
    for line in broken:
        print(f"BROKEN: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
