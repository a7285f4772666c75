"""`--ablate`: which parts are left out, by name, from which model, and how the tables show it."""

from pathlib import Path

import numpy as np
import pytest

from analysis.build import Choices, products
from analysis.cells import groups
from analysis.load import load
from analysis.render import markdown
from mpcc.config import PRESETS, VARIANTS
from tests.records import SweepBuilder, metrics_of
from tune import leave_out, ledger
from tune.ablation import main
from tune.ledger import FULL_MODEL, LedgerError

DIGITS, CIFAR = PRESETS["digits"], PRESETS["cifar10"]


def names(*asked: str, base=DIGITS, **start) -> list[str]:
    return [name for name, _ in leave_out.cells(asked, base, start)]


def test_all_that_apply_are_left_out_one_at_a_time() -> None:
    assert names() == [FULL_MODEL, *(n for n in leave_out.LEFT_OUT if n != "plain-latent")]
    assert names(base=CIFAR) == [FULL_MODEL, *leave_out.LEFT_OUT]
    assert "no-floor" not in names(prior_min_std=0.0)
    for name, cell in leave_out.cells((), CIFAR, {})[1:]:
        was, now = CIFAR.to_dict(), cell.config.to_dict()
        assert {n for n in was if was[n] != now[n]} == set(cell.changes), name
        assert len(cell.changes) == 1


def test_equal_rates_takes_the_networks_own() -> None:
    (_, full), (_, cell) = leave_out.cells(["equal-rates"], DIGITS, {"network_lr": 3e-4})
    assert full.config.prior_lr == DIGITS.prior_lr and cell.config.prior_lr == 3e-4


def test_names_that_leave_nothing_out_are_refused() -> None:
    assert names("no-floor", "published-code") == [FULL_MODEL, "no-floor", "published-code"]
    for asked, message in (
        (["no-flor"], "unknown variant 'no-flor'; did you mean 'no-floor'?"),
        (["plain-latent"], "leaves nothing out that is still there"),
        (["no-floor", "no-floor"], "leaves nothing out that is still there"),
    ):
        with pytest.raises(LedgerError, match=message):
            names(*asked)


def test_every_named_part_can_be_left_out_of_some_model() -> None:
    assert set(leave_out.LEFT_OUT) <= set(VARIANTS) | set(leave_out.RELATIVE)


def ablated(path: Path) -> SweepBuilder:
    """A sweep as --ablate leaves it: the full model, two parts less, all done."""
    sweep, rng = SweepBuilder(path), np.random.default_rng(0)
    for variant, changes, accuracy in (
        ("one-encoder-step", {"n_encoder_steps": 1}, 0.6),
        (FULL_MODEL, {}, 0.8),
        ("no-floor", {"prior_min_std": 0.0}, 0.3),
    ):
        sweep.plan([changes], variant=variant, grid=leave_out.NAME)
        for seed in range(3):
            sweep.trial(changes, seed, metrics_of(accuracy + 0.01 * seed, rng))
    return sweep


def test_the_table_names_variants_with_the_full_model_first_and_as_baseline(tmp_path: Path) -> None:
    records = load([ablated(tmp_path / "s").path])
    product = products(records, groups(records), Choices("grid"))[0]
    values, differences = (markdown(table) for table in product.tables[:2])
    rows = [line.split("|")[1:3] for line in values.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows][:3] == ["full-model", "no-floor", "one-encoder-step"]
    assert [row[1].strip() for row in rows][:3] == ["", r"sigma\_min=0", "esteps=1"]
    assert "Differences from full-model" in differences
    assert product.result and {line.group.variant for line in product.result.lines} == {
        "no-floor",
        "one-encoder-step",
    }


def test_the_command_plans_the_variants_and_goes_on_with_them(tmp_path: Path, capsys) -> None:
    words = ["--preset", "tiny", "--out", str(tmp_path / "s"), "--seeds", "2", "--dry-run"]
    assert main([*words, "--ablate", "no-floor,normal-prior"]) == 0
    out = capsys.readouterr().out
    assert "full model: base settings" in out and "3 cells, 6 trials" in out
    assert main([*words, "--ablate"]) == 0
    assert "not a part of it: plain-latent" in capsys.readouterr().out
    for argv, message in (
        (["--ablate", "--grid", "esteps"], "--ablate is a plan of its own"),
        (["--grid", "esteps", "--ablate-from", "best"], "--ablate-from is of --ablate"),
        (["--ablate", "--ablate-from", "best"], "no trial has cluster_information yet"),
        (["--ablate", "--ablate-from", "esteps=7"], "0 cells are 'esteps=7'; there are: none yet"),
    ):
        assert main([*words, *argv]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
        assert not (tmp_path / "s").exists()


def test_parts_can_be_left_out_of_the_best_cell_without_labels(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(
        [{"n_encoder_steps": steps} for steps in (1, 2)], grid="esteps=1,2"
    )
    for steps, information, accuracy in ((1, 2.0, 0.3), (2, 1.0, 0.9)):
        for seed in range(3):
            values = {"cluster_information": information, "acc_majority": accuracy}
            sweep.trial({"n_encoder_steps": steps}, seed, values)
    plan = ledger.read_plan(sweep.path)
    assert plan is not None
    start = leave_out.starting_cell("best", plan, sweep.path)
    assert start.changes == {"n_encoder_steps": 1}
    named = leave_out.cells(["no-floor"], plan.base, start.changes)
    grown = leave_out.grow(plan, named, (0, 1, 2))
    assert [cell.variant for cell in grown.cells] == [FULL_MODEL, None, "no-floor"]
    assert grown.cells[2].cell.changes == {"n_encoder_steps": 1, "prior_min_std": 0.0}
    assert [cell.chosen_on for cell in grown.cells] == [(), (), ()]
    chosen = leave_out.grow(plan, named, (0, 1, 2), chosen=True)
    assert [cell.chosen_on for cell in chosen.cells] == [(0, 1, 2), (), ()]
    more = leave_out.grow(chosen, named, (7, 8), chosen=True)
    assert more.cells[0].chosen_on == (0, 1, 2) and more.cells[0].seeds == (0, 1, 2, 7, 8)
    ledger.write_plan(tmp_path / "again", more)
    assert ledger.read_plan(tmp_path / "again") == more
    # Again, without saying from where: the same model.
    assert leave_out.starting_cell(None, grown, sweep.path) == grown.cells[0].cell


def test_a_full_model_judged_on_the_seeds_that_chose_it_is_told_and_fresh_seeds_judge_alone(
    tmp_path: Path,
) -> None:
    sweep = ablated(tmp_path / "s")
    full = next(cell for cell in sweep.cells if cell["variant"] == FULL_MODEL)

    def differences() -> tuple[str, list[str]]:
        records = load([sweep.path])
        made = products(records, groups(records), Choices("grid"))
        table = next(t for t in made[0].tables if t.name == "grid-differences")
        return markdown(table), [row.cells[3].text for row in table.rows]

    text, before = differences()
    assert "seeds that chose" not in text and "was chosen" not in text
    full["chosen_on"] = full["seeds"]
    sweep.write_plan()
    text, same = differences()
    assert "was chosen as the best on seeds 0, 1, 2" in " ".join(text.split())
    assert "--ablate-from best --seeds A,B,C" in text and same == before
    full["seeds"] = [*full["seeds"], 10, 11, 12]
    sweep.write_plan()
    rng = np.random.default_rng(3)
    for seed in (10, 11, 12):
        sweep.trial({}, seed, metrics_of(0.65 + 0.01 * seed % 3, rng))
    text, after = differences()
    assert "from its fresh seeds 10, 11, 12 alone" in " ".join(text.split()) and after != before
