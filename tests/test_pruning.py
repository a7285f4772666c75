"""When a trial is pruned: at which evaluations, by which bounds, and the cause that it gets."""

import math

import pytest

from mpcc.config import PRESETS
from tune.plan.pruning import BIAS, LEAST, PRUNERS, PruneRule, prune_rule, rungs

DIGITS = PRESETS["digits"].override(iterations=4, eval_every=2)


def rows(*values: float) -> list[dict[str, object]]:
    return [{"iteration": 2 * n, "mse": value} for n, value in enumerate(values, 1)]


def test_halving_keeps_the_best_third_at_its_rungs() -> None:
    config = PRESETS["digits"].override(iterations=1500, eval_every=250)
    assert rungs("halving", config) == [250, 500]
    assert rungs("median", config) == [250, 500, 750, 1000, 1250]
    for values, higher_is_better, bound in (
        ((5.0, 1.0, 2.0, 3.0, 4.0, 6.0), False, 2.0),
        ((5.0, 1.0, 2.0), True, 5.0),
    ):
        earlier = [[{"iteration": 250, "mse": value}] for value in values]
        rule = prune_rule("halving", "mse", higher_is_better, config, earlier)
        assert rule is not None and rule.bounds == {250: bound}


@pytest.mark.parametrize("prune", PRUNERS)
def test_a_trial_of_one_evaluation_has_no_rung(prune: str) -> None:
    assert rungs(prune, DIGITS.override(eval_every=4)) == []
    assert prune in BIAS


def test_the_bound_of_an_evaluation_is_the_median_of_enough_earlier_trials() -> None:
    earlier = [rows(value, 0.0) for value in (0.5, 0.1, 0.4, 0.2)]
    assert prune_rule("median", "mse", False, DIGITS, earlier) is None
    earlier.append([{"iteration": 2}])  # not measured: it does not count
    assert prune_rule("median", "mse", False, DIGITS, earlier) is None
    earlier.append(rows(0.3, 0.0))
    rule = prune_rule("median", "mse", False, DIGITS, earlier)
    assert len(earlier) == LEAST["median"] + 1
    reason = "worse than the median of earlier points,"
    assert rule == PruneRule("mse", False, {2: 0.3}, reason)


def test_a_trial_beyond_its_bound_is_pruned_with_the_cause() -> None:
    rule = PruneRule("mse", False, {2: 0.5}, "worse than the median of")
    assert rule.cause(rows(0.4, 9.0)) is None and rule.cause([]) is None
    assert rule.cause(rows(0.5)) is None
    cause = "mse 0.6 at 2, worse than the median of 0.5"
    assert rule.cause(rows(0.6)) == rule.cause(rows(0.6, 0.1)) == cause
    higher = PruneRule("mse", True, {2: 0.5}, "worse than the median of")
    assert higher.cause(rows(0.6)) is None and higher.cause(rows(0.4)) is not None


@pytest.mark.parametrize("row", [{"iteration": 2}, {"iteration": 2, "mse": math.nan}])
def test_a_value_that_is_missing_or_not_a_number_is_beyond_any_bound(row) -> None:
    assert PruneRule("mse", False, {2: 0.5}, "worse than").cause([row]) == (
        "mse nan at 2, worse than 0.5"
    )
