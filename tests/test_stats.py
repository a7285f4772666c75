"""Statistics against sources of their own: R, statsmodels, closed forms, and published examples.

Values marked R were computed with R 4.2.2 on data sets that come with R; the command stands beside.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.statistics import factorial as designs
from analysis.statistics import stats

# R's data set `sleep`: Cushny and Peebles 1905, the example of Student 1908.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

# R's data set `npk`: Venables and Ripley, Modern Applied Statistics with S, 2002, section 6.7.
NPK_YIELD = [49.5, 62.8, 46.8, 57.0, 59.8, 58.5, 55.5, 56.0, 62.8, 55.8, 69.5, 55.0]
NPK_YIELD += [62.0, 48.8, 45.5, 44.2, 52.0, 51.5, 49.8, 48.8, 57.2, 59.0, 53.2, 56.0]
NPK_N = [0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0]
NPK_P = [1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]
NPK_K = [1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0]
NPK_BLOCK = [block for block in range(6) for _ in range(4)]

INSECTS = [  # R's `InsectSprays`: Beall 1942.
    [10, 7, 20, 14, 14, 12, 10, 23, 17, 20, 14, 13],
    [11, 17, 21, 11, 16, 14, 17, 17, 19, 21, 7, 13],
    [0, 1, 7, 2, 3, 1, 2, 1, 3, 0, 1, 4],
    [3, 5, 12, 6, 4, 3, 5, 5, 5, 5, 2, 4],
    [3, 5, 3, 5, 3, 6, 1, 1, 3, 2, 6, 4],
    [11, 9, 15, 22, 15, 16, 13, 10, 26, 26, 24, 13],
]


def test_paired_equals_r() -> None:
    """R: t.test(x, y, paired = TRUE)."""
    result = stats.paired(SLEEP_1, SLEEP_2)
    assert (result.df, result.difference.n) == (9, 10)
    assert result.p == pytest.approx(0.00283289019738427, abs=1e-8)
    assert result.difference.low == pytest.approx(-2.45988576327698, abs=1e-8)
    assert result.difference.high == pytest.approx(-0.700114236723018, abs=1e-8)


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 40):
        p = rng.random(n) ** 3
        assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_counts_only_what_was_tested() -> None:
    adjusted = stats.holm([0.02, math.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04]) and math.isnan(adjusted[1])


def test_hedges_g_equals_r() -> None:
    """R: (mean(x) - mean(y)) / sp * gamma(9) / (3 * gamma(8.5))."""
    assert stats.hedges_g(SLEEP_1, SLEEP_2) == pytest.approx(-0.796935239191121, abs=1e-8)


def test_hedges_correction_makes_d_unbiased() -> None:
    """E[d] = δ / J: the mean of the noncentral t (SciPy) gives J by another road."""
    from scipy.stats import nct

    for df in (4, 8, 18, 98):
        expected = 1.0 / float(nct.mean(df, 1.0))
        assert stats.hedges_correction(df) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("n", "correlation", "bound"), [(3, 0.0, 0.15), (3, 0.9, 0.08), (5, 0.0, 0.08), (5, 0.9, 0.05)]
)
def test_g_of_pairs_is_nearly_unbiased_whatever_the_correlation(
    n: int, correlation: float, bound: float
) -> None:
    rng = np.random.default_rng(0)
    common = math.sqrt(correlation) * rng.standard_normal((2000, n))
    x, y = (common + math.sqrt(1 - correlation) * rng.standard_normal((2000, n)) for _ in "xy")
    found = [stats.paired_g(a + 1, b) for a, b in zip(x, y, strict=True)]
    assert abs(float(np.mean(found)) - 1) < bound


def test_correction_for_pairs_is_close_to_a_published_one() -> None:
    """CohensdpLibrary 0.5 (Cousineau), J of twelve pairs with a correlation of .53: 0.9566549."""
    assert stats.hedges_correction(22 / (1 + 0.53**2)) == pytest.approx(0.9566549, abs=0.002)
    assert math.isnan(stats.hedges_correction(1))


def test_hedges_g_of_a_published_example() -> None:
    """Borenstein et al. 2009, Introduction to Meta-Analysis, pp. 26-28: d = 0.5970, g = 0.5924."""
    n = 50

    def sample(mean: float, spread: float) -> np.ndarray:
        x = np.linspace(-1, 1, n)
        return mean + spread * x / x.std(ddof=1)

    g = stats.hedges_g(sample(103, 5.5), sample(100, 4.5))
    assert g == pytest.approx(0.5924, abs=5e-5)


def test_mean_has_students_interval() -> None:
    """R: t.test(sleep$extra[1:10])$conf.int, from scipy.stats.t as its oracle."""
    from scipy.stats import sem, t

    result = stats.mean(SLEEP_1)
    expected = t.interval(0.95, 9, np.mean(SLEEP_1), sem(SLEEP_1))
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-12)
    assert result.n == 10


def test_one_value_has_neither_spread_nor_interval() -> None:
    result = stats.mean([3.0])
    assert (result.estimate, result.n) == (3.0, 1)
    assert math.isnan(result.low) and math.isnan(stats.std([3.0]))
    assert math.isnan(stats.mean([]).estimate)


@pytest.mark.parametrize("test", [stats.welch, stats.permutation])
def test_comparison_without_enough_seeds_or_spread_has_no_p(test) -> None:
    assert math.isnan(test([1.0], [2.0, 3.0]).p)
    assert math.isnan(stats.welch([1.0, 1.0], [2.0, 2.0]).p)
    assert stats.welch([1.0, 1.0], [2.0, 2.0]).difference.estimate == -1.0


@pytest.mark.parametrize("value", [0.1, 0.7, -1e5 / 3])
def test_rounding_of_equal_values_is_no_spread(value: float) -> None:
    """Three times 0.1 has a standard deviation of 1.7e-17, which once gave a g of 4.7e13."""
    flat, other = [value] * 3, [value + 0.001] * 3
    assert stats.std(flat) == 0 and stats.pooled_std([flat, other]) == 0
    assert math.isnan(stats.hedges_g(flat, other)) and math.isnan(stats.mean(flat).low)
    result = stats.welch(flat, other)
    assert math.isnan(result.p) and math.isnan(result.difference.low)
    assert stats.spread([flat, [1.0, 2.0, 4.0]]).ratio == math.inf
    with pytest.raises(ValueError, match="equal"):
        designs.anova([value] * 6, {"a": [0, 0, 0, 1, 1, 1]})
    assert stats.std([1e6, 1e6 + 1e-4, 1e6 + 2e-4]) == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize("start", [0.1, 0.7, 1000.0])
def test_pairs_with_a_constant_difference_have_no_test(start: float) -> None:
    y = np.array([0.0, 0.1, 0.3]) + start
    result = stats.paired(y + 0.1, y)
    assert math.isnan(result.p) and math.isnan(result.difference.low)
    assert result.difference.estimate == pytest.approx(0.1)
    with pytest.raises(ValueError, match="got 2 and 3"):
        stats.paired([1, 2], [1, 2, 3])


def test_pooled_comparison_of_two_groups_is_students_t_test() -> None:
    from scipy.stats import ttest_ind

    spread = stats.pooled_std([SLEEP_1, SLEEP_2])
    result = stats.pooled(SLEEP_1, SLEEP_2, spread, 18)
    expected = ttest_ind(SLEEP_1, SLEEP_2)
    interval = expected.confidence_interval()
    assert result.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert (result.difference.low, result.difference.high) == pytest.approx(interval, abs=1e-12)
    assert result.g == pytest.approx(stats.hedges_g(SLEEP_1, SLEEP_2), abs=1e-12)


def test_welch_is_scipys_whatever_the_sizes_and_spreads() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(3)
    base = rng.standard_normal(4)
    cells = [1 + scale * rng.standard_normal(n) for scale in (0.1, 1, 9) for n in (2, 3, 5)]
    for cell in cells:
        result = stats.welch(cell, base)
        expected = ttest_ind(cell, base, equal_var=False)
        interval = expected.confidence_interval()
        assert (result.p, result.df) == pytest.approx((expected.pvalue, expected.df), rel=1e-12)
        assert result.difference.low == pytest.approx(interval.low, abs=1e-12)
        assert result.difference.high == pytest.approx(interval.high, abs=1e-12)


def test_permutation_p_is_counted_by_hand() -> None:
    """1, 2, 3 against 7, 8, 9: of 20 arrangements 2 are as extreme."""
    assert stats.permutation([1, 2, 3], [7, 8, 9]).p == pytest.approx(0.1)
    assert stats.smallest_p("permutation", 3, 3) == pytest.approx(0.1)
    assert stats.smallest_p("permutation", 5, 5) == pytest.approx(2 / 252)
    assert stats.smallest_p("welch", 3, 3) == 0 and stats.smallest_p("welch", 1, 3) == 1
    smallest = stats.smallest_p("permutation", 10, 10)  # Too many arrangements: some are drawn.
    assert smallest == pytest.approx(2e-4)
    assert stats.permutation(np.arange(10.0), np.arange(10.0) + 100).p >= smallest * (1 - 1e-9)


def test_brown_forsythe_is_scipys_levene_about_the_median_and_that_of_r() -> None:
    """R: anova(lm(abs(y - ave(y, g, FUN = median)) ~ g)) on InsectSprays."""
    from scipy.stats import levene

    found = stats.spread(INSECTS)
    assert found.p == pytest.approx(0.00422279113899214, abs=1e-8)
    spreads = [np.std(group, ddof=1) for group in INSECTS]
    assert found.refusal and found.ratio == pytest.approx(max(spreads) / min(spreads))
    rng = np.random.default_rng(4)
    cells = [scale * rng.standard_normal(n) for scale, n in ((1, 3), (2, 5), (1, 4), (1, 2))]
    assert stats.spread(cells).p == pytest.approx(levene(*cells, center="median").pvalue, rel=1e-12)


def test_pooling_needs_spreads_that_can_be_compared() -> None:
    assert stats.spread([[1, 2, 3], [4, 4, 4]]).refusal == "a cell has no spread"
    assert stats.spread([[1, 2, 3], [4, 5.5, 6]]).refusal == ""
    few = stats.spread([[1.0, 2.0], [1.0, 2.5]])  # Two values say nothing.
    assert few.refusal and math.isnan(few.p) and few.ratio == pytest.approx(1.5)


def test_anova_with_block_equals_r() -> None:
    """R: summary(aov(yield ~ block + N * P + N * K + P * K, npk))."""
    factors = {"N": NPK_N, "P": NPK_P, "K": NPK_K}
    effects = {e.name: e for e in designs.anova(NPK_YIELD, factors, NPK_BLOCK)}
    p = {
        "seed": 0.01593879020819393,
        "N": 0.00437181182579939,
        "P": 0.47490409267443645,
        "K": 0.02879505350023277,
        "N × P": 0.26316528287716734,
        "N × K": 0.16864787850049232,
        "P × K": 0.86275208568540784,
    }
    assert {name: e.p for name, e in effects.items()} == pytest.approx(p, abs=1e-8)
    assert effects["N"].f == pytest.approx(12.2587342136508965, abs=1e-8)
    total = 343.295 + 189.28166666666667 + 8.4016666666666 + 95.2016666666665
    total += 21.2816666666667 + 33.135 + 0.481666666666665 + 185.286666666666861
    assert effects["N"].eta2 == pytest.approx(189.28166666666650 / total, abs=1e-8)


def test_anova_refuses_what_the_design_does_not_allow() -> None:
    with pytest.raises(ValueError, match="too few"):
        designs.anova([1.0, 2.0], {"a": [0, 1]})
    with pytest.raises(ValueError, match="equal"):
        designs.anova([1.0] * 6, {"a": [0, 0, 0, 1, 1, 1]})


@pytest.mark.parametrize("gap", [0, 1], ids=["full", "with a gap"])
def test_anova_of_values_without_noise_is_refused_and_not_an_enormous_f(gap: int) -> None:
    rows = [(a, b, s) for a in range(3) for b in range(2) for s in range(3)][gap:]
    values = [0.5 + 0.1 * a + 0.05 * b + 0.01 * s for a, b, s in rows]
    factors = {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}
    with pytest.raises(ValueError, match="nothing is left over"):
        designs.anova(values, factors, [row[2] for row in rows])


def test_anova_of_a_design_with_empty_combinations_is_refused_without_a_warning() -> None:
    rows = [(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (0, 0, 2)]
    factors = {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}
    with pytest.raises(ValueError, match="too few"):
        designs.anova([0.1, 0.2, 0.4, 0.3, 0.5], factors, [row[2] for row in rows])


def test_power_and_seeds_equal_r() -> None:
    """R: power.t.test(..., strict = TRUE), sd = 1."""
    assert designs.power(1.5, 3) == pytest.approx(0.293194700305873, abs=1e-8)
    assert designs.detectable(5) == pytest.approx(2.02443437094771, abs=1e-4)
    assert designs.seeds_needed([0.7]) == [math.ceil(33.0245832918179)]


def test_power_equals_that_of_the_noncentral_f_distribution_everywhere() -> None:
    from scipy.stats import f, ncf

    effects, n = np.meshgrid(np.linspace(0.05, 6, 30), [2, 3, 5, 10, 40, 100, 297, 1000])
    df = 2 * n - 2
    expected = ncf.sf(f.isf(0.05, 1, df), 1, df, effects**2 * n / 2)
    assert np.allclose(designs.power(effects, n), expected, rtol=0, atol=1e-7)
    assert designs.seeds_needed([math.inf, math.nan, 0.0]) == [2, None, None]


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_power_is_that_of_a_simulation(n: int, alpha: float) -> None:
    """Values of known truth, through SciPy's own tests."""
    from scipy.stats import t, ttest_ind, ttest_rel

    rng = np.random.default_rng(0)
    grid = rng.standard_normal((40_000, 9, n))
    for effect in (1.5, 3.0):
        x, y = grid[:, 0] + effect, grid[:, 1]
        welch = ttest_ind(x, y, axis=1, equal_var=False).pvalue
        spread = np.sqrt(grid.var(2, ddof=1).mean(1) * 2 / n)
        pooled = 2 * t.sf(np.abs(x.mean(1) - y.mean(1)) / spread, 9 * (n - 1))
        paired = ttest_rel(x, y, axis=1).pvalue
        for test, p, unit in (("welch", welch, 1), ("pooled", pooled, 1), ("paired", paired, 2)):
            expected = designs.power(effect / math.sqrt(unit), n, alpha, test, 9)
            assert (p < alpha).mean() == pytest.approx(expected, abs=0.01), (test, effect)


def test_power_of_welchs_test_equals_an_integral_over_both_variances() -> None:
    from scipy.integrate import dblquad
    from scipy.special import ndtr, stdtrit
    from scipy.stats import chi2

    n, d = 3, 2.0

    def share(a: float, b: float) -> float:
        u, v = chi2.ppf(a, n - 1), chi2.ppf(b, n - 1)
        df = (n - 1) * (u + v) ** 2 / (u**2 + v**2)
        limit = stdtrit(df, 0.975) * math.sqrt((u + v) / (n - 1) / n)
        scale = math.sqrt(2 / n)
        return float(ndtr((d - limit) / scale) + ndtr((-d - limit) / scale))

    expected = dblquad(share, 0, 1, 0, 1, epsabs=1e-5)[0]
    assert designs.power(d, n, test="welch") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("test", designs.POWERED)
def test_smallest_difference_has_the_power_that_it_promises(test: str) -> None:
    for n, alpha in ((2, 0.05), (3, 0.05 / 36), (5, 0.05), (40, 0.05 / 300)):
        least = designs.detectable(n, alpha, test=test, cells=4)
        assert designs.power(least, n, alpha, test, 4) == pytest.approx(0.8, abs=1e-4)
        assert designs.seeds_needed([least * 1.001], alpha, test=test, cells=4) == [n]


def test_seeds_needed_reach_the_power_and_one_less_does_not() -> None:
    for effect in (0.2, 0.8, 1.5, 3.0, 9.0):
        (n,) = designs.seeds_needed([effect])
        assert n is not None and designs.power(effect, n) >= 0.8
        assert n == 2 or designs.power(effect, n - 1) < 0.8
    assert designs.seeds_needed([1e-6, -1.5]) == [None, *designs.seeds_needed([1.5])]


def test_seed_correlation_is_one_for_common_shifts_and_about_zero_for_noise() -> None:
    seeds = np.array([0.0, 1.0, 5.0])
    assert designs.seed_correlation(seeds + np.array([[0.0], [3.0]])) == pytest.approx(1)
    noise = np.random.default_rng(0).standard_normal((6, 2000))
    assert abs(designs.seed_correlation(noise)) < 0.03
    assert math.isnan(designs.seed_correlation([[1.0, 2.0]]))


def test_seed_correlation_of_a_published_example() -> None:
    """Shrout and Fleiss 1979, table 4: six targets, four judges, ICC(3,1) = 0.71."""
    targets = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert designs.seed_correlation(np.array(targets).T) == pytest.approx(0.715, abs=5e-4)


def test_anova_of_a_full_grid_equals_statsmodels() -> None:
    """Sums of squares by means, where every combination has every seed, against a fitted model."""
    rng = np.random.default_rng(3)
    rows = [(a, b, c, s) for a in "xyz" for b in range(4) for c in (False, True) for s in range(3)]
    y = [0.3 * b + ord(a) / 50 + 0.1 * s + rng.standard_normal() for a, b, c, s in rows]
    factors = {n: [row[i] for row in rows] for i, n in enumerate("abc")}
    seeds = [row[3] for row in rows]
    for interactions in (True, False):
        fast = designs.anova(y, factors, seeds, interactions=interactions)
        axes = factors | {designs.BLOCK: seeds}
        fitted = designs._fitted(np.array(y), axes, interactions)
        assert [e.name for e in fast] == [e.name for e in fitted]
        for one, other in zip(fast, fitted, strict=True):
            assert (one.f, one.p, one.eta2) == pytest.approx(
                (other.f, other.p, other.eta2), abs=1e-8
            )
            assert one.df == other.df


def test_anova_of_a_large_grid_with_gaps_is_refused_rather_than_slow() -> None:
    rows = [(a, b, s) for a in range(40) for b in range(40) for s in range(2)][1:]
    y = np.random.default_rng(0).random(len(rows))
    factors = {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}
    with pytest.raises(ValueError, match="too large"):
        designs.anova(y, factors, [row[2] for row in rows])
