"""Axes, cells and keys: what a `--grid` means."""

from pathlib import Path

import pytest

from mpcc.config import PRESETS, Config
from tune import ablation
from tune.plan.cells import Cell, chosen
from tune.plan.cost import checkpoint_bytes, cost, memory_need
from tune.plan.grid import (
    cells,
    default_levels,
    merged_cells_note,
    parse_grid,
    parse_seeds,
    table1_rows,
)
from tune.plan.plan import PlanError

DIGITS = PRESETS["digits"]


def texts(words: list[str], preset: str = "digits") -> list[str]:
    return [cell.text for cell in cells(PRESETS[preset], parse_grid(words, preset))]


def test_table_1_on_cifar10_has_the_papers_rows() -> None:
    published = ((1, 2e-4), (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4))
    assert table1_rows("cifar10") == published


@pytest.mark.parametrize("preset", PRESETS)
def test_table_1_ends_at_the_presets_own_settings(preset: str) -> None:
    rows = table1_rows(preset)
    assert rows[-1] == (PRESETS[preset].n_encoder_steps, PRESETS[preset].prior_lr)
    assert len(rows) == 5
    assert [e for e, _ in rows] == sorted(e for e, _ in rows)
    assert [lr for _, lr in rows] == sorted(lr for _, lr in rows)


@pytest.mark.parametrize(
    "words", [["esteps,eta_p"], ["eta_p", "esteps"], ["eta_p,n_encoder_steps"]]
)
def test_both_axes_of_table_1_without_values_are_its_five_rows(words: list[str]) -> None:
    grid = parse_grid(words, "digits")
    assert grid.text == "esteps,eta_p"
    made = cells(DIGITS, grid)
    assert [tuple(cell.changes.values()) for cell in made] == list(table1_rows("digits"))
    assert all(list(cell.changes) == ["n_encoder_steps", "prior_lr"] for cell in made)


def test_one_axis_of_table_1_alone_keeps_the_other_at_the_presets() -> None:
    levels = default_levels("prior_lr", "digits")
    assert levels is not None and len(levels) == 3
    made = cells(DIGITS, parse_grid(["eta_p"], "digits"))
    assert [cell.config.prior_lr for cell in made] == list(levels)
    assert {cell.config.n_encoder_steps for cell in made} == {DIGITS.n_encoder_steps}


def test_axes_with_values_span_their_product() -> None:
    assert texts(["esteps=1,2", "eta_p=1e-3,1e-2"]) == [
        "esteps=1, eta_p=1e-3",
        "esteps=1, eta_p=0.01",
        "esteps=2, eta_p=1e-3",
        "esteps=2, eta_p=0.01",
    ]
    assert texts(["esteps=1,2,eta_p=3e-3"]) == texts(["esteps=1,2", "eta_p=3e-3"])


def test_table_1_rows_multiply_with_further_axes() -> None:
    made = texts(["esteps,eta_p", "width=4,8"])
    assert len(made) == 10
    assert made[0].endswith("C=4") and made[1].endswith("C=8")


def test_lambda_p_has_zero_and_three_decades_around_the_preset() -> None:
    assert default_levels("prior_entropy_weight", "digits") == (0.0, 0.001, 0.01, 0.1)
    assert default_levels("batch_size", "cifar10") == (25, 50, 64)
    assert default_levels("width", "digits") is None


def test_values_are_typed_by_the_field() -> None:
    made = cells(DIGITS, parse_grid(["encoder_shares_discriminator=true,false"], "digits"))
    assert [cell.config.encoder_shares_discriminator for cell in made] == [True, False]
    modes = cells(DIGITS, parse_grid(["latent_mode=plain,copy"], "digits"))
    assert [cell.config.latent_mode for cell in modes] == ["plain", "copy"]


def test_a_seed_axis_means_seeds_and_makes_no_cells() -> None:
    grid = parse_grid(["seed=3,5", "esteps=1,2"], "digits")
    assert grid.seeds == (3, 5)
    assert len(cells(DIGITS, grid)) == 2
    alone = parse_grid(["seed"], "digits")
    assert not alone.seeds
    assert [cell.text for cell in cells(DIGITS, alone)] == ["base settings"]


def test_a_cell_has_the_same_key_in_every_grid_that_contains_it() -> None:
    row = cells(DIGITS, parse_grid(["esteps,eta_p"], "digits"))[-1]
    weight = cells(DIGITS, parse_grid(["lambda_p"], "digits"))[2]
    assert row.key == weight.key == DIGITS.cell_key
    assert row.changes != weight.changes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the grid is empty"),
        ([","], "the grid is empty"),
        (["esteps,,eta_p"], "empty name"),
        (["estep"], "did you mean 'esteps'?"),
        (["esteps="], "axis esteps has no values"),
        (["esteps=1,,2"], "axis esteps has an empty value"),
        (["esteps=1,1"], "axis esteps has the value 1 twice"),
        (["eta_p=0.001,1e-3"], "axis eta_p has the value 1e-3 twice"),
        (["esteps,n_encoder_steps"], "axis n_encoder_steps is given twice"),
        (["width"], "axis width needs values"),
        (["esteps=two"], "esteps must be a whole number, got 'two'"),
        (["esteps=1e999"], "esteps must be a whole number"),
        (["eta_p=nan"], "eta_p must be a finite number"),
        (["eta_p=inf"], "eta_p must be a finite number"),
        (["esteps=0"], "n_encoder_steps must be between 1 and 1000, got 0"),
        (["latent_mode=plane"], "did you mean 'plain'?"),
        (["seed=1,1"], "axis seed has the value 1 twice"),
        (["seed=-1"], "seed must be at least 0"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        cells(DIGITS, parse_grid(words, "digits"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_too_large_to_be_meant_is_refused_before_it_is_built() -> None:
    many = ",".join(str(n) for n in range(1, 501))
    with pytest.raises(PlanError, match="125,000,000 cells"):
        cells(DIGITS, parse_grid([f"width={many}", f"dsteps={many}", f"esteps={many}"], "digits"))


def test_seeds_are_a_count_or_a_list() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("0,3,7") == (0, 3, 7)
    assert parse_seeds("7,") == (7,)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", ",", "1,1", "1.5", "1,-2", "inf", "1e99"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_seeds(text)
    assert "\n" not in str(error.value)


def test_a_choice_names_cells_by_settings_or_key() -> None:
    made = cells(DIGITS, parse_grid(["esteps=1,2", "eta_p=1e-3,1e-2"], "digits"))
    assert [chosen(cell, "esteps=1") for cell in made] == [True, True, False, False]
    assert [chosen(cell, "esteps=2, eta_p=0.01") for cell in made] == [False, False, False, True]
    assert [chosen(cell, made[2].key) for cell in made] == [False, False, True, False]
    with pytest.raises(ValueError, match="names no cell"):
        chosen(made[0], "everything")


def test_more_encoder_steps_cost_more() -> None:
    costs = [cost(DIGITS.override(n_encoder_steps=steps)) for steps in (1, 2, 4)]
    assert costs == sorted(costs) and costs[0] < costs[2]


def test_a_wider_network_needs_a_larger_checkpoint_and_more_memory() -> None:
    narrow, wide = DIGITS, DIGITS.override(width=2 * DIGITS.width)
    assert checkpoint_bytes(narrow) < checkpoint_bytes(wide)
    assert memory_need(wide) - memory_need(narrow) > 2 * checkpoint_bytes(narrow)


def test_the_estimated_checkpoint_of_mnist_fits_its_known_parameter_counts() -> None:
    generator, discriminator, own = 157_249, 148_465, 171_120
    shared = 277_968 - own
    numbers = 4 * generator + 3 * discriminator + 3 * own + 2 * shared
    assert checkpoint_bytes(PRESETS["mnist"]) == pytest.approx(4 * numbers, rel=0.15)


def test_too_many_trials_are_refused_before_their_keys_are_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, "trial_key", property(lambda _: pytest.fail("a key was computed")))
    argv = ["--grid", "esteps=1,2", "--seeds", "60000", "--out", str(tmp_path / "s"), "--dry-run"]
    assert ablation.main(argv) == 2
    assert "120,000 trials; at most 100,000 are allowed" in capsys.readouterr().err


def test_cells_that_differ_in_settings_that_do_nothing_are_one() -> None:
    grid = parse_grid(["prior=normal,gaussian_mixture", "K=5,10,20"], "digits")
    made = cells(DIGITS, grid)
    assert [cell.text for cell in made] == [
        "prior=normal, K=5",
        *(f"prior=gaussian_mixture, K={k}" for k in (5, 10, 20)),
    ]
    assert merged_cells_note(grid, made) == (
        "of the grid's 6 cells 4 are kept: some do not depend on K, so duplicates are left out"
    )
    # A folder that has them all goes on with them all, and runs none anew.
    known = {Cell.of(DIGITS, {"prior": "normal", "n_clusters": k}).key for k in (5, 10, 20)}
    assert len(cells(DIGITS, grid, known)) == 6
    weights = parse_grid(
        ["K=3", "given_cluster_weights=none,8/1/1,0.8/0.1/0.1,1/1/1e-20"], "digits"
    )
    made = cells(DIGITS, weights)
    assert [cell.changes["given_cluster_weights"] for cell in made] == [
        None,
        (8.0, 1.0, 1.0),
        (1.0, 1.0, 1e-20),
    ]
    said = merged_cells_note(weights, made)
    assert said is not None and "4 cells 3 are kept: only the ratios of cluster weights" in said
    usual = parse_grid(["esteps,eta_p"], "digits")
    assert merged_cells_note(usual, cells(DIGITS, usual)) is None
