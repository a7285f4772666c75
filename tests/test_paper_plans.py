"""The plans of the paper's tables are the paper's, and shared trials are one trial."""

import pytest

from mpcc.config import PRESETS, parse_assignment, parse_value, value_text
from tune.plan import paper
from tune.plan.plan import images_name, new_plan


def test_table_1_at_full_scale_is_the_papers_five_rows_on_training_images():
    cells = paper.cells("1", "full", {})
    rows = [(c.config.n_encoder_steps, round(c.config.prior_lr, 12)) for c in cells]
    assert rows == [(1, 2e-4), (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4)]
    for cell in cells:
        assert (cell.config.split, cell.config.n_generated) == ("train", 50_000)
        assert cell.config.iterations == 75_000 and cell.config.dataset == "cifar10"


def test_tables_1_2_and_3a_share_the_cell_of_the_paper_s_best_row():
    for scale in paper.SCALES:
        one, two, three = (paper.cells(table, scale, {})[-1].key for table in ("1", "2", "3a"))
        assert one == two == three


def test_table_2_is_a_normal_prior_apart_and_shared_and_the_mixture():
    rows = [
        (c.config.prior, c.config.encoder_shares_discriminator)
        for c in paper.cells("2", "full", {})
    ]
    assert rows == [("normal", False), ("normal", True), ("gaussian_mixture", True)]


def test_table_4_is_each_data_set_at_its_own_settings_on_all_images():
    for cell, name in zip(paper.cells("4", "full", {}), paper.DATASETS, strict=True):
        assert cell.config == PRESETS[name].override(seed=0)
        assert cell.changes["dataset"] == name


@pytest.mark.parametrize("scale", paper.SCALES)
@pytest.mark.parametrize("table", paper.TABLES)
def test_what_a_cell_changes_leads_from_the_base_to_its_settings(table, scale):
    for cell in paper.cells(table, scale, {}):
        assert paper.base(scale).override(**cell.changes, seed=0) == cell.config


def test_a_plan_knows_each_set_of_images_by_itself():
    plan = new_plan("cifar10", paper.base("minute"))
    for table in ("1", "4"):
        plan = plan.grow(paper.cells(table, "minute", {}), [0], f"table {table}")
    first = plan.trials()[0].config
    plan = plan.with_data(images_name(first), {"fingerprint": "abc"})
    expected = {
        (t.config.dataset, t.config.split): plan.fingerprint_for(t.config) for t in plan.trials()
    }
    assert expected.pop(("cifar10", "train")) == "abc"
    assert len(expected) == 5 and set(expected.values()) == {None}


@pytest.mark.parametrize("scale", paper.SCALES)
@pytest.mark.parametrize("table", paper.TABLES)
def test_a_cell_that_is_typed_as_it_is_printed_is_the_same_cell(table, scale):
    base = paper.base(scale)
    for cell in paper.cells(table, scale, {}):
        words = [] if cell.text == "base settings" else cell.text.split(", ")
        typed = base.override(**dict(parse_assignment(word) for word in words))
        assert typed.cell_key == cell.key
        for field, value in cell.config.to_dict().items():
            assert parse_value(field, value_text(value)) == value


def test_rates_at_a_smaller_scale_are_round():
    rates = [value_text(cell.config.prior_lr) for cell in paper.cells("1", "minute", {})]
    assert rates == ["1e-3", "1e-3", "1e-3", "2e-3", "3e-3"]
