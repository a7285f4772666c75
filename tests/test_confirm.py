"""The best cells are planned on fresh seeds, once, and the plan remembers them apart."""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcc.config import PRESETS
from tests.records import SweepBuilder, metrics_of, table1_changes, table1_sweep
from tests.test_promises import DRY
from tune.ablation import main
from tune.plan import confirm
from tune.plan.cells import trials
from tune.plan.confirm import FIRST_FRESH_SEED
from tune.plan.grid import cells, parse_grid
from tune.plan.plan import Plan, PlanError, new_plan
from tune.plan.state import State, Status

DIGITS = PRESETS["digits"]


def table1(seeds: tuple[int, ...] = (0, 1, 2)) -> Plan:
    made = cells(DIGITS, parse_grid(["esteps,eta_p"], "digits"))
    return new_plan("digits", DIGITS).grow(made, seeds, "esteps,eta_p")


def confirmed(
    plan: Plan, n_seeds: int | None = None, taken: Collection[str] = (), number: int = 4
) -> Plan:
    """The plan with fresh seeds for the cell of this number."""
    best = [plan.cells[number].cell.key]
    return confirm.confirm(plan, best, ("acc_majority",), lambda key: key in taken, n_seeds)


def test_the_best_cell_gets_as_many_fresh_seeds_as_it_had() -> None:
    plan = confirmed(table1())
    (planned,) = confirm.confirmed(plan)
    fresh = (FIRST_FRESH_SEED, FIRST_FRESH_SEED + 1, FIRST_FRESH_SEED + 2)
    assert planned.confirm_seeds == fresh and planned.seeds == (0, 1, 2)
    assert len(plan.trials()) == 18


def test_fresh_seeds_can_be_counted() -> None:
    (planned,) = confirm.confirmed(confirmed(table1(), n_seeds=5))
    assert len(planned.confirm_seeds) == 5


def test_seeds_that_any_cell_had_are_not_fresh() -> None:
    plan = table1(seeds=(1000, 1001, 1003))
    (ran,) = trials(plan.cells[4].cell, [1004])  # has a run directory, but was never planned
    (planned,) = confirm.confirmed(confirmed(plan, taken={ran.key}))
    assert planned.confirm_seeds == (1002, 1005, 1006)


def test_a_confirmation_survives_the_disk_and_growth() -> None:
    plan = confirmed(table1())
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and confirm.confirmed(again) == confirm.confirmed(plan)
    grown = again.grow([plan.cells[4].cell], [7], "esteps=4")
    assert [c.confirm_seeds for c in grown.cells] == [c.confirm_seeds for c in again.cells]


def test_a_choice_waits_for_every_trial() -> None:
    plan = table1()
    statuses = {trial.key: Status(State.DONE) for trial in plan.trials()}
    confirm.check_ended(statuses.values())
    first, second = list(statuses)[:2]
    with pytest.raises(PlanError, match="1 of 15 trials have not ended"):
        confirm.check_ended((statuses | {first: Status(State.STOPPED)}).values())
    running = dict.fromkeys((first, second), Status(State.RUNNING))
    with pytest.raises(PlanError, match="2 of 15 trials have not ended"):
        confirm.check_ended((statuses | running).values())


def test_of_a_search_the_best_point_and_the_base_are_confirmed() -> None:
    plan = table1()  # whose last cell is the base settings
    keys = [planned.cell.key for planned in plan.cells]
    assert keys[4] == plan.base.cell_key
    searched = replace(plan, search={"points": keys, "seeds": [0, 1, 2]})
    grown = confirmed(searched, number=1)
    assert [c.cell.key for c in confirm.confirmed(grown)] == [keys[1], keys[4]]
    assert grown.search == searched.search
    without = confirmed(replace(plan, search={"points": keys[:3], "seeds": [0]}), number=1)
    assert [c.cell.key for c in confirm.confirmed(without)] == [keys[1]]


def test_nothing_to_confirm_is_refused_in_one_line() -> None:
    plan = table1()
    for planned, message in (
        (plan, "no best cell by mse: fewer than two cells have finished with it"),
        (replace(plan, search={"points": []}), "no point of the search is complete"),
    ):
        with pytest.raises(PlanError, match=message):
            confirm.confirm(planned, [], ("mse",), lambda key: False)


def test_confirm_excludes_what_would_plan_something_else(tmp_path: Path, capsys) -> None:
    sweep = table1_sweep(tmp_path / "s")  # the last row is the best by far
    words = ["--out", str(sweep.path), "--iterations", "1500", "--accept-changed-code"]
    assert main([*words, "--grid", "esteps", "--confirm"]) == 2
    assert "--confirm takes a folder whose grid has been run" in capsys.readouterr().err
    assert main([*words, "--confirm", "acc_majorty"]) == 2
    assert "unknown metric 'acc_majorty'; did you mean 'acc_majority'" in capsys.readouterr().err
    assert main([*words, "--confirm", *DRY]) == 0
    out = capsys.readouterr().out
    assert "best or tied by acc_majority: esteps=4, eta_p=5e-3" in out
    assert "1 cells, 3 trials, 3 to run" in out


def test_ties_with_the_best_are_confirmed_too(tmp_path: Path, capsys) -> None:
    changes = table1_changes()[:2]
    sweep, rng = SweepBuilder(tmp_path / "s").plan(changes), np.random.default_rng(0)
    for change in changes:
        for seed, accuracy in enumerate((0.60, 0.65, 0.70)):
            sweep.trial(change, seed, metrics_of(accuracy + 0.01 * (change == changes[1]), rng))
    words = ["--out", str(sweep.path), "--iterations", "1500", "--accept-changed-code"]
    assert main([*words, "--confirm", *DRY]) == 0
    out = capsys.readouterr().out
    assert out.count("best or tied by acc_majority: ") == 2
    assert "2 cells, 6 trials, 6 to run" in out
