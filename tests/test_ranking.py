"""Only like is ranked, compared and pooled; marks and words say what was tested, and of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.records.load import load
from analysis.report.summary import answers
from analysis.tables.compare import find_group
from analysis.tables.grid import GridResult
from analysis.tables.groups import groups
from analysis.tables.ranking import Ranking, rank, tie_adjusted
from tests.records import SweepBuilder, grid

METRIC = "acc_majority"
RATES = [{"prior_lr": 1e-3 * (i + 1)} for i in range(9)]
SQUARE = [{"prior_lr": a, "n_encoder_steps": b} for a in (1e-3, 2e-3) for b in (1, 2)]


def noisy(
    path: Path,
    changes: Sequence[dict[str, Any]],
    means: Sequence[float],
    n: int = 3,
    extra: Sequence[dict[str, Any]] = ({},) * 9,
    **base: Any,
) -> SweepBuilder:
    """A sweep whose cells have these means and a spread of 0.01."""
    sweep, rng = SweepBuilder(path, **base).plan(changes, range(n)), np.random.default_rng(0)
    for change, mean, more in zip(changes, means, extra, strict=False):
        values = [mean + 0.01 * float(rng.standard_normal()) for _ in range(n)]
        sweep.fill(change, [{METRIC: v, "fid": 100 * (1 - v)} for v in values], **more)
    return sweep


def ranked(*paths: Path, metric: str = METRIC, test: str = "welch"):
    return rank(groups(load(paths)), metric, test)


def words(*paths: Path, test: str = "welch") -> str:
    records = load(paths)
    return " ".join(answers(records, groups(records), grid(*paths, test=test), test).values())


def marks(result: GridResult, column: int) -> list[str]:
    rows = [row for row in result.tables[0].rows if row.kind == "ours"]
    return ["*" if r.cells[column].best else "~" * r.cells[column].tied for r in rows]


def test_scores_at_other_counts_are_not_ranked_together(tmp_path: Path) -> None:
    counts = [{"n_generated": n, "prior_lr": r} for n in (1000, 50_000) for r in (1e-3, 2e-3)]
    sweep = noisy(tmp_path / "s", counts, (0.6, 0.8, 0.7, 0.9))
    found = ranked(sweep.path, metric="fid")
    assert [c.label for c in found.classes] == ["n_generated 1000", "n_generated 50000"]
    assert found.best == {1, 3} and ranked(sweep.path).best == {3}


def test_a_data_set_does_not_win_over_another(tmp_path: Path) -> None:
    sets = [{"dataset": "digits"}, {"dataset": "mnist"}]
    extra = ({"fingerprint": "f00d"}, {"fingerprint": "beef", "n_images": 70_000})
    sweep = noisy(tmp_path / "s", sets, (0.6, 0.9), extra=extra)
    assert ranked(sweep.path) == Ranking((), 2)
    text = words(sweep.path)
    assert "not comparable are not ranked" in text and "highest" not in text
    assert "No configuration was compared with the baseline: measured with dataset" in text


def test_what_is_left_beside_a_collapsed_cell_is_not_called_incomparable(tmp_path: Path) -> None:
    collapsed = {"failures": ["collapsed"]}
    sweep = noisy(tmp_path / "s", RATES[:2], (0.6, 0.8), extra=(collapsed, {}))
    text = words(sweep.path)
    assert "One cell with a collapsed or diverged seed is not ranked." in text
    assert "not comparable" not in text and "highest" not in text


def test_a_fragment_of_other_code_is_not_the_best(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", SQUARE, (0.5, 0.6, 0.7, 0.8))
    sweep.trial(SQUARE[0], 2, {METRIC: 0.99}, code="other")
    assert marks(grid(sweep.path), 2) == ["", "", "", "", "*"]
    text = words(sweep.path)
    assert "came with eta_p 2e-3, esteps 2" in text
    assert "One cell not comparable with any other cell is not ranked" in text


@pytest.mark.parametrize(
    "defect", [{"code": "new"}, {"iteration": 700}], ids=["code", "iterations"]
)
def test_cells_of_other_code_or_fewer_iterations_are_neither_compared_nor_ranked(
    tmp_path: Path, defect: dict
) -> None:
    sweep = noisy(tmp_path / "s", RATES[:2], (0.6, 0.8), extra=({}, defect))
    assert ranked(sweep.path).classes == ()
    verdicts = {line.verdict for line in grid(sweep.path).lines}
    assert all(v.startswith("not compared: ") for v in verdicts) and len(verdicts) == 1


def test_cells_that_a_name_fits_are_all_named(tmp_path: Path) -> None:
    more = [{"n_encoder_steps": 2}, {"n_encoder_steps": 2, "prior_lr": 9e-3}]
    cells = groups(load([SweepBuilder(tmp_path / "s").plan(RATES + more).path]))
    with pytest.raises(ValueError, match="2 cells have esteps=2: .*esteps 2$"):
        find_group(cells, "esteps=2")
    with pytest.raises(ValueError, match="no cell has esteps=9: .*…$"):
        find_group(cells, "esteps=9")


def test_code_versions_are_compared_on_request(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", RATES[:2], (0.6, 0.8), extra=({}, {"code": "new"}))
    found = rank(groups(load([sweep.path]), pool_code=True), METRIC, "welch")
    assert found.best == {1} and not found.tied


def test_iterations_that_were_swept_are_compared_but_not_ranked(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", [{"iterations": 500}, {"iterations": 1500}], (0.6, 0.8))
    assert "differs" in {line.verdict for line in grid(sweep.path).lines}
    assert ranked(sweep.path).classes == ()


def test_settings_in_which_folders_differ_are_factors_and_never_averaged_over(
    tmp_path: Path,
) -> None:
    one = noisy(tmp_path / "one", SQUARE, (0.50, 0.52, 0.54, 0.56))
    for name, base in (("longer", {"iterations": 3000}), ("wider", {"batch_size": 60})):
        two = noisy(tmp_path / name, SQUARE, (0.80, 0.82, 0.84, 0.86), **base)
        result = grid(one.path, two.path)
        found, why = result.effects[METRIC]
        assert not why and set(base) <= {effect.name for effect in found}
        assert {heading.text for heading in result.tables[0].headings} >= set(base)
        assert len({line.group.cell_key for line in result.lines if line.metric == METRIC}) == 7
    watched = noisy(tmp_path / "watched", [{"prior_lr": 9e-3}], (0.5,), eval_every=100)
    assert "not compared" not in " ".join(
        line.verdict for line in grid(one.path, watched.path).lines
    )


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        ({"code": "other"}, "a cell has trials that are not comparable (code"),
        ({"n_images": 1000}, "a cell has trials that are not comparable (number of images"),
        ({"state": "diverged"}, "a cell diverged"),
        ({"failures": ["collapsed"]}, "a cell collapsed"),
    ],
)
def test_no_analysis_of_variance_over_unlike_trials(tmp_path: Path, trial: dict, why: str) -> None:
    sweep = noisy(tmp_path / "s", SQUARE, (0.5, 0.6, 0.7, 0.8))
    assert grid(sweep.path).effects[METRIC][0]
    sweep.trial(SQUARE[0], 2, {METRIC: 0.5}, **trial)
    result = grid(sweep.path)
    found, remark = result.effects[METRIC]
    assert not found and remark.startswith(f"No analysis of variance: {why}")
    assert "grid-effects" not in [table.name for table in result.tables]
    assert remark in result.tables[0].made


def test_a_cell_that_diverged_altogether_forbids_the_pooled_sd_everywhere(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", RATES[:3], (0.6, 0.8, 0.7), n=5)
    assert ranked(sweep.path, test="pooled").classes[0].worse
    for seed in range(5):
        sweep.trial(RATES[2], seed, {}, state="diverged")
    one = ranked(sweep.path, test="pooled").classes[0]
    assert one.untested == {0} and one.refused == "pooled SD refused: a cell diverged"
    text = words(sweep.path, test="pooled")
    assert text.count("pooled SD refused: a cell diverged") == 2
    assert "differs from it" not in text and "four times in five" not in text
    needed = [line.seeds_needed for line in grid(sweep.path, test="pooled").lines]
    assert set(needed) == {None}


def test_words_count_only_what_was_tested(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", RATES[:3], (0.6, 0.8, 0.7))
    for seed in (1, 2):
        sweep.trial(RATES[2], seed, {}, state="failed", cause="out of memory")
    text = words(sweep.path)
    assert "one other differs from it" in text
    assert "one other was not compared: n too small or no spread" in text
    assert "the one other configuration differs" in text


def test_permutations_too_few_for_holm_are_called_too_few(tmp_path: Path) -> None:
    """Five seeds give 2/252 at least: times eight comparisons that is above 5 %."""
    means = [0.1 * (i + 1) for i in range(9)]
    result = grid(noisy(tmp_path / "nine", RATES, means, n=5).path, test="permutation")
    assert {line.verdict for line in result.lines} == {"n too small"}
    assert marks(result, 1) == [""] * 8 + ["*"]
    text = " ".join(line for table in result.tables for line in table.made)
    assert "power of this test depends" in text and "80 %" not in text
    two = grid(noisy(tmp_path / "two", RATES[:3], means, n=5).path, test="permutation")
    assert {line.verdict for line in two.lines if line.metric == METRIC} == {"differs"}


@pytest.mark.parametrize("test", ["welch", "pooled", "paired"])
def test_smallest_difference_is_that_of_the_test_in_use(tmp_path: Path, test: str) -> None:
    from analysis.statistics import factorial as designs

    sweep, rng = SweepBuilder(tmp_path / "s").plan(RATES[:3], range(5)), np.random.default_rng(4)
    for change in RATES[:3]:
        values = 0.6 + 0.01 * rng.standard_normal(5)
        for seed, value in enumerate(values):
            sweep.trial(change, seed, {METRIC: value})
    cells = groups(load([sweep.path]))
    x = [g.summary(METRIC).array for g in cells]
    cloud = [v - x[0] for v in x[1:]] if test == "paired" else x
    unit = np.sqrt(np.mean([np.var(v, ddof=1) for v in cloud]))
    alone = designs.detectable(5, test=test, cells=3) * unit * 100
    first = designs.detectable(5, 0.025, test=test, cells=3) * unit * 100
    lines = " ".join(grid(sweep.path, test=test).tables[1].made)
    assert f"5 seeds find a difference of {alone:.1f} points with 80 % power by" in lines
    assert f"of {first:.1f} points at Holm's first step over 2" in lines
    text = words(sweep.path, test=test)
    assert f"a true difference of {alone:.1f} points is found four times in five" in text
    assert f"two comparisons at once it must be {first:.1f} points (Holm)" in text


def test_smallest_difference_has_no_unit_where_spreads_differ(tmp_path: Path) -> None:
    sweep = noisy(tmp_path / "s", RATES[:2], (0.6, 0.8))
    for seed, value in enumerate((0.2, 0.5, 0.9)):
        sweep.trial(RATES[1], seed, {METRIC: value})
    lines = " ".join(grid(sweep.path).tables[1].made)
    assert "3 seeds find a difference of 3.5 SD with 80 % power" in lines
    assert "SD of a cell: none for all, the largest SD is" in lines
    assert "four times in five" not in words(sweep.path)


def test_ties_are_adjusted_for_the_choice_of_the_best() -> None:
    assert tie_adjusted(np.array([0.01])) == pytest.approx([0.01])
    adjusted = tie_adjusted(np.array([0.001, 0.02, np.nan]))
    assert adjusted[:2] == pytest.approx([0.001 * 2 * 1.5, 0.02 * 1.5]) and np.isnan(adjusted[2])


def test_differences_come_with_interval_g_and_adjusted_p_in_this_order(tmp_path: Path) -> None:
    result = grid(noisy(tmp_path / "s", RATES[:3], (0.6, 0.8, 0.7), n=5).path)
    heads = [h.text for h in result.tables[1].headings]
    assert heads[2:7] == ["difference", "95 % interval", "g", "p", "p (Holm)"]
    line, row = result.lines[0], result.tables[1].rows[0]
    low, high = line.result.difference.low * 100, line.result.difference.high * 100
    assert row.cells[3].text == f"{low:+.1f} to {high:+.1f}".replace("-", "−")
    assert row.cells[4].text == f"{line.result.g:.2f}".replace("-", "−")
