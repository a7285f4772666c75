"""`--ablate`: which parts are left out, by name, from which model, and how the tables show it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from analysis.output.latex import latex
from analysis.output.render import markdown
from analysis.records.load import load
from analysis.tables.assemble import products
from analysis.tables.groups import groups
from mpcc.config import PRESETS, VARIANTS
from mpcc.evaluation.metrics import METRICS, NEED_LABELS
from mpcc.use.load import SCORE
from tests.records import SweepBuilder, metrics_of, options
from tests.test_promises import DRY
from tune.ablation import main
from tune.plan import leave_out
from tune.plan.cells import Cell
from tune.plan.plan import FULL_MODEL, Plan, PlanError, new_plan

DIGITS, CIFAR = PRESETS["digits"], PRESETS["cifar10"]


def names(*asked: str, base=DIGITS, **start) -> list[str]:
    return [str(cell.variant) for cell in leave_out.cells(base, start, asked)]


def test_all_that_apply_are_left_out_one_at_a_time() -> None:
    assert names() == [FULL_MODEL, *(n for n in leave_out.LEFT_OUT if n != "plain-latent")]
    assert names(base=CIFAR) == [FULL_MODEL, *leave_out.LEFT_OUT]
    assert "no-floor" not in names(prior_min_std=0.0)
    for cell in leave_out.cells(CIFAR, {}, ())[1:]:
        was, now = CIFAR.to_dict(), cell.config.to_dict()
        assert {n for n in was if was[n] != now[n]} == set(cell.changes), cell.variant
        assert len(cell.changes) == 1


def test_a_part_that_the_model_lacks_is_never_left_out() -> None:
    aim = names(base=DIGITS, prior="normal")
    assert aim == [FULL_MODEL, "not-shared", "one-encoder-step", "no-average"]
    assert "no-average" not in names(base=PRESETS["tiny"])  # It ends before the average begins.
    with pytest.raises(PlanError, match="--ablate no-floor changes nothing: the full"):
        names("no-floor", prior="normal")


def test_equal_rates_takes_the_networks_own() -> None:
    full, cell = leave_out.cells(DIGITS, {"network_lr": 3e-4}, ["equal-rates"])
    assert full.config.prior_lr == DIGITS.prior_lr and cell.config.prior_lr == 3e-4


def test_names_that_leave_nothing_out_are_refused() -> None:
    assert names("no-floor", "published-code") == [FULL_MODEL, "no-floor", "published-code"]
    for asked, message in (
        (["no-flor"], "unknown variant 'no-flor'; did you mean 'no-floor'?"),
        (["plain-latent"], "the full model does not have that part"),
        (["no-floor", "no-floor"], "or another name leaves it out"),
    ):
        with pytest.raises(PlanError, match=message):
            names(*asked)


def test_every_named_part_can_be_left_out_of_some_model() -> None:
    assert set(leave_out.LEFT_OUT) <= {*VARIANTS, "equal-rates"}


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
    product = products(records, groups(records), options("grid"))[0]
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
    words = ["--preset", "tiny", "--out", str(tmp_path / "s"), "--seeds", "2", *DRY]
    assert main([*words, "--ablate", "no-floor,normal-prior"]) == 0
    out = capsys.readouterr().out
    assert "full model: base settings" in out and "3 cells, 6 trials" in out
    assert main([*words, "--ablate"]) == 0
    assert "not a part of it: no-average, plain-latent" in capsys.readouterr().out
    for argv, message in (
        (["--ablate", "--grid", "esteps"], "--ablate is a plan of its own"),
        (["--grid", "esteps", "--ablate-from", "best"], "--ablate-from is of --ablate"),
        (["--ablate", "--ablate-from", "best"], "--ablate-from best: no grid is planned in"),
        (["--ablate", "--ablate-from", "esteps=7"], "0 cells are 'esteps=7'; there are: none yet"),
    ):
        assert main([*words, *argv]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
        assert not (tmp_path / "s").exists()


def two_cells() -> Plan:
    """A grid of two encoder steps with three seeds each."""
    cells = [
        Cell(DIGITS.override(**changes, seed=0), changes)
        for changes in ({"n_encoder_steps": 1}, {"n_encoder_steps": 2})
    ]
    return new_plan("digits", DIGITS).grow(cells, (0, 1, 2), "esteps=1,2")


def test_the_best_cell_of_a_grid_is_chosen_without_labels_among_trials_that_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert METRICS[SCORE].higher_is_better and SCORE not in NEED_LABELS
    sweep = SweepBuilder(tmp_path / "s").plan([{"n_encoder_steps": n} for n in (1, 2, 3)], (0, 1))
    sweep.plan([{"prior_min_std": 0.0}], (0, 1), variant="no-floor")
    command = ["--out", str(sweep.path), "--ablate", "--ablate-from", "best", "--status"]
    assert main(command) == 2
    assert "holds no trial that has begun" in capsys.readouterr().err
    sweep.fill({"n_encoder_steps": 1}, [{SCORE: 2.0, "acc_majority": 0.3}] * 2)
    sweep.fill({"n_encoder_steps": 2}, [{SCORE: 1.0, "acc_majority": 0.9}] * 2)
    sweep.fill({"n_encoder_steps": 3}, [{SCORE: 2.2}], state="diverged")
    sweep.fill({"n_encoder_steps": 3}, [{SCORE: 2.2}] * 2, state=None, iteration=10)
    sweep.fill({"prior_min_std": 0.0}, [{SCORE: 2.3}] * 2)  # a variant is no full model
    main(command)
    assert "full model: esteps=1\n" in capsys.readouterr().out


def test_the_full_model_is_named_by_settings_by_key_or_as_the_best() -> None:
    plan = two_cells()
    first = plan.cells[0].cell

    def start(choice: str | None) -> Cell:
        return leave_out.starting_cell(plan, choice)

    assert start(None).changes == {} and start(None).config == plan.base
    assert start("esteps=1") == start(first.key) == first
    for choice, error, message in (
        ("esteps=7", PlanError, "0 cells are 'esteps=7'; there are: esteps=1; esteps=2"),
        (f"eta_p={DIGITS.prior_lr}", PlanError, "2 cells are"),
        ("everything", ValueError, "names no cell"),
    ):
        with pytest.raises(error, match=message):
            start(choice)


def test_a_plan_keeps_the_seeds_that_chose_its_full_model() -> None:
    plan = two_cells()
    start = plan.cells[0].cell
    named = leave_out.cells(plan.base, start.changes, ["no-floor"])
    grown = plan.grow(named, (0, 1, 2), leave_out.NAME)
    assert [cell.cell.variant for cell in grown.cells] == [FULL_MODEL, None, "no-floor"]
    assert grown.cells[2].cell.changes == {"n_encoder_steps": 1, "prior_min_std": 0.0}
    assert [cell.chosen_on for cell in grown.cells] == [(), (), ()]
    chosen = plan.grow(named, (0, 1, 2), leave_out.NAME, best=True)
    assert [cell.chosen_on for cell in chosen.cells] == [(0, 1, 2), (), ()]
    more = chosen.grow(named, (7, 8), leave_out.NAME, best=True)
    assert more.cells[0].chosen_on == (0, 1, 2) and more.cells[0].seeds == (0, 1, 2, 7, 8)
    assert Plan.from_dict(json.loads(json.dumps(more.to_dict()))) == more
    # Again, without naming where to start: the same model.
    again = leave_out.starting_cell(grown, None)
    assert again.variant == FULL_MODEL and again.config == start.config


def test_a_point_of_a_search_was_chosen_on_the_seeds_of_the_search() -> None:
    plan = two_cells()
    points = [planned.cell.key for planned in plan.cells]
    searched = dataclasses.replace(plan, search={"points": points, "seeds": [0, 1]})
    named = leave_out.cells(plan.base, plan.cells[1].cell.changes, ["no-floor"])
    grown = searched.grow(named, (5, 6), leave_out.NAME, best=True)
    assert grown.cells[1].cell.variant == FULL_MODEL and grown.cells[1].chosen_on == (0, 1)


def test_a_full_model_judged_on_the_seeds_that_chose_it_is_told_and_fresh_seeds_judge_alone(
    tmp_path: Path,
) -> None:
    sweep = ablated(tmp_path / "s")
    full = next(cell for cell in sweep.cells if cell["variant"] == FULL_MODEL)

    def differences() -> tuple[str, list[str]]:
        records = load([sweep.path])
        made = products(records, groups(records), options("grid"))
        table = next(t for t in made[0].tables if t.name == "grid-differences")
        return markdown(table) + latex(table), [row.cells[3].text for row in table.rows]

    text, before = differences()
    assert "seeds that chose" not in text and "was chosen as" not in text
    full["chosen_on"] = full["seeds"]
    sweep.write_plan()
    text, same = differences()
    assert "was chosen as the best on seeds 0, 1, 2" in " ".join(text.split())
    assert "--ablate-from best --seeds A,B,C" in text and same == before
    assert text.count("which judge it here too") == 2  # In LaTeX, too.
    full["seeds"] = [*full["seeds"], 10, 11, 12]
    sweep.write_plan()
    rng = np.random.default_rng(3)
    for seed in (10, 11, 12):
        sweep.trial({}, seed, metrics_of(0.65 + 0.01 * seed % 3, rng))
    text, after = differences()
    assert "from its fresh seeds only (10, 11, 12)" in " ".join(text.split()) and after != before
