"""The winner and its ties are planned on fresh seeds, once, and the plan remembers them apart."""

from pathlib import Path

import pytest

from tests.records import SweepBuilder, metrics_of, table1_changes, table1_sweep
from tune import ledger
from tune.ablation import main
from tune.confirm import FIRST_FRESH_SEED, confirm


def plan_of(path: Path) -> ledger.Plan:
    plan = ledger.read_plan(path)
    assert plan is not None
    return plan


def test_the_best_cell_gets_as_many_fresh_seeds_as_it_had(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")  # the last row is the best by far
    plan, cells, _ = confirm(plan_of(sweep.path), sweep.path, "acc_majority")
    assert [c.cell.changes for c in cells] == [table1_changes()[4]]
    fresh = (FIRST_FRESH_SEED, FIRST_FRESH_SEED + 1, FIRST_FRESH_SEED + 2)
    assert cells[0].confirm_seeds == fresh and cells[0].seeds == (0, 1, 2)
    assert len(plan.trials()) == 18


def test_ties_with_the_best_are_confirmed_too(tmp_path: Path) -> None:
    changes = table1_changes()[:2]
    sweep = SweepBuilder(tmp_path / "s").plan(changes)
    import numpy as np

    rng = np.random.default_rng(0)
    for change in changes:
        for seed, accuracy in enumerate((0.60, 0.65, 0.70)):
            sweep.trial(change, seed, metrics_of(accuracy + 0.01 * (change == changes[1]), rng))
    _, cells, _ = confirm(plan_of(sweep.path), sweep.path, "acc_majority")
    assert len(cells) == 2


def test_a_confirmation_survives_the_disk_and_is_not_planned_twice(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    plan, cells, _ = confirm(plan_of(sweep.path), sweep.path, "acc_majority")
    ledger.write_plan(sweep.path, plan)
    again, same, _ = confirm(plan_of(sweep.path), sweep.path, "acc_majority")
    assert again == plan_of(sweep.path) and same == cells
    grown = again.grow([cells[0].cell], [7], "esteps=4")
    assert [c.confirm_seeds for c in grown.cells] == [c.confirm_seeds for c in again.cells]


def test_a_choice_waits_for_every_trial_and_knows_its_metric(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    (sweep.folder(table1_changes()[0], 1) / "result.json").unlink()
    with pytest.raises(ledger.LedgerError, match="1 of 15 trials have not ended"):
        confirm(plan_of(sweep.path), sweep.path, "acc_majority")
    with pytest.raises(ledger.LedgerError, match="did you mean 'acc_majority'"):
        confirm(plan_of(sweep.path), sweep.path, "acc_majorty")


def test_confirm_excludes_what_would_plan_something_else(tmp_path: Path, capsys) -> None:
    sweep = table1_sweep(tmp_path / "s")
    words = ["--out", str(sweep.path), "--iterations", "1500", "--accept-changed-code"]
    assert main([*words, "--grid", "esteps", "--confirm"]) == 2
    assert "--confirm takes a folder whose grid has been run" in capsys.readouterr().err
    assert main([*words, "--confirm", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "best or tied by acc_majority: esteps=4, eta_p=5e-3" in out
    assert "1 cells, 3 trials, 3 to run" in out


def test_fresh_seeds_can_be_counted(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    _, cells, name = confirm(plan_of(sweep.path), sweep.path, n_seeds=5)
    assert len(cells[0].confirm_seeds) == 5 and name == "best or tied by acc_majority"


def test_seeds_that_any_cell_had_are_not_fresh(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s", seeds=(1000, 1001, 1003))
    sweep.trial(table1_changes()[4], 1004, {"acc_majority": 0.8})  # ran, but was never planned
    _, cells, _ = confirm(plan_of(sweep.path), sweep.path)
    assert cells[0].confirm_seeds == (1002, 1005, 1006)


def test_of_a_search_the_best_point_and_the_base_are_confirmed(tmp_path: Path) -> None:
    import random

    from tests.test_search import begin, drive

    supply = drive(tmp_path, begin(tmp_path, n_points=6), random.Random(1))
    plan, cells, name = confirm(supply.plan, tmp_path, n_seeds=4)
    best = min(supply.found, key=lambda point: point.values[0])
    expected = {best.cell.key, supply.plan.base.cell_key}
    assert {c.cell.key for c in cells} == expected
    assert name == "best by mse, or the base settings"
    assert all(len(c.confirm_seeds) == 4 for c in cells)
    assert plan.search == supply.plan.search
