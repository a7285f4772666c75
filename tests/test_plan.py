"""The plan of a sweep: what sweep.json holds, how it grows, and what does not fit it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcc.config import PRESETS, from_dict
from mpcc.runs.code_version import code_hash
from tune.plan.cells import by_cell
from tune.plan.grid import cells, parse_grid, table1_rows
from tune.plan.plan import (
    Plan,
    PlanError,
    check_same_base,
    check_same_code,
    images_name,
    new_plan,
)
from tune.plan.source import GridSource
from tune.plan.state import State, Status

TINY = PRESETS["tiny"]
DIGITS = images_name(TINY)
OUT = Path("runs/tiny")


def planned(*words: str, seeds: tuple[int, ...] = (0, 1)) -> Plan:
    return grown(new_plan("tiny", TINY), *words, seeds=seeds)


def grown(plan: Plan, *words: str, seeds: tuple[int, ...] = (0, 1)) -> Plan:
    grid = parse_grid(words, "tiny")
    return plan.grow(cells(TINY, grid), seeds, grid.text)


def saved(plan: Plan) -> dict[str, Any]:
    """The plan as it comes back from sweep.json."""
    values: dict[str, Any] = json.loads(json.dumps(plan.to_dict()))
    return values


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = planned("esteps,eta_p")
    assert Plan.from_dict(saved(plan)) == plan
    values = saved(plan)
    assert values["schema"] == 1 and "seed" not in values["base"]
    steps, rate = table1_rows("tiny")[0]
    assert values["cells"][0]["changes"] == {"n_encoder_steps": steps, "prior_lr": rate}
    assert values["cells"][0]["seeds"] == [0, 1]
    cell = replace(plan.cells[0].cell, variant="a")
    named = replace(plan.cells[0], cell=cell, confirm_seeds=(1000,), chosen_on=(0, 1))
    full = replace(
        plan,
        cells=(named,),
        data={DIGITS: {"fingerprint": "f00d"}},
        earlier_iterations=(1, 2),
        search={"points": [plan.cells[0].cell.key], "seeds": [0, 1], "sampler": "tpe"},
        confirm_by=("mse",),
    )
    assert Plan.from_dict(saved(full)) == full
    assert full.search_points == (plan.cells[0].cell.key,) and full.search_seeds == (0, 1)
    assert plan.search_points == plan.search_seeds == ()


def test_every_key_of_the_plan_follows_from_base_changes_and_seed() -> None:
    plan = planned("esteps=1,2")
    values = saved(plan)
    keys = [
        from_dict(values["base"] | cell["changes"] | {"seed": seed}).trial_key
        for cell in values["cells"]
        for seed in cell["seeds"]
    ]
    assert keys == [trial.key for trial in plan.trials()]
    assert len(set(keys)) == 4


def test_a_plan_grows_by_cells_and_seeds_and_never_shrinks() -> None:
    plan = planned("esteps=1,2")
    more = grown(plan, "esteps=2,4", seeds=(1, 5))
    assert [cell.cell.text for cell in more.cells] == ["esteps=1", "esteps=2", "esteps=4"]
    assert [cell.seeds for cell in more.cells] == [(0, 1), (0, 1, 5), (1, 5)]
    assert {t.key for t in plan.trials()} < {t.key for t in more.trials()}
    assert more.cells[1].grids == ("esteps=1,2", "esteps=2,4")
    assert grown(more, "esteps=2,4", seeds=(1, 5)) == more


def test_a_cell_of_two_grids_is_planned_once_with_the_changes_of_both() -> None:
    both = grown(planned("esteps,eta_p"), "lambda_p")
    shared = [cell for cell in both.cells if len(cell.grids) == 2]
    assert len(both.cells) == 5 + 4 - 1 and len(shared) == 1
    assert set(shared[0].cell.changes) == {"n_encoder_steps", "prior_lr", "prior_entropy_weight"}


def test_other_base_settings_are_refused_by_name() -> None:
    plan = planned("esteps=1,2")
    check_same_base(OUT, plan, TINY.override(seed=3))
    with pytest.raises(PlanError, match=r"eta=\S+, now 3e-3; give the.*choose another --out"):
        check_same_base(OUT, plan, TINY.override(network_lr=3e-3))
    with pytest.raises(PlanError, match="go on to more iterations with --continue-training"):
        check_same_base(OUT, plan, TINY.override(iterations=TINY.iterations + 1))


def test_changed_code_is_refused_by_file_and_comments_do_not_count() -> None:
    plan = planned("esteps=1,2")
    check_same_code(OUT, plan)
    assert "mpcc/model/losses.py" in plan.code_files
    assert not {"mpcc/runs/run_dir.py", "mpcc/shell.py"} & set(plan.code_files)
    other = replace(plan, code_files={**plan.code_files, "mpcc/model/losses.py": "0"})
    with pytest.raises(PlanError, match=r"other code: mpcc/model/losses.py changed"):
        check_same_code(OUT, other)
    module = 'def f():\n    """Text."""\n    return 1  # reason\n'
    plain = "def f():\n    return 1\n"
    assert code_hash(module) == code_hash(plain)
    assert code_hash(plain) != code_hash(plain.replace("1", "2"))


CELL = {"key": "x", "changes": {"width": 3}, "grids": [], "seeds": [0]}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"schema": None}, "has schema None, this version reads 1"),
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"base": 3}, "is damaged (3 is no object)"),
        ({"base": {"widht": 3}}, "is damaged (unknown field 'widht'; did you mean 'width'?"),
        ({"cells": [{"key": "x"}]}, "is damaged ('changes')"),
        ({"cells": [CELL]}, "is damaged (cell x has other settings)"),
        ({"cells": {}}, "is damaged ({} is no list)"),
        ({"data": {"digits": {}}}, "is damaged ('fingerprint')"),
        ({"data": {"digits": {"fingerprint": 3}}}, "is damaged (the fingerprint of digits is no"),
        ({"earlier_iterations": ["many"]}, "is damaged (iterations must be a whole number"),
        ({"search": [1]}, "is damaged ([1] is no object)"),
        ({"search": {"points": [3]}}, "is damaged ([3] are no texts)"),
        ({"search": {"seeds": [-1]}}, "is damaged (seed must be at least 0"),
        ({"confirm_by": "mse"}, "is damaged ('mse' is no list)"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(damage: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError) as error:
        Plan.from_dict(saved(planned("esteps=1")) | damage)
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


@pytest.mark.parametrize("seeds", [["a"], [0.5], [-1], "01", None])
@pytest.mark.parametrize("name", ["seeds", "confirm_seeds", "chosen_on"])
def test_damaged_seeds_of_a_plan_are_refused(name: str, seeds: Any) -> None:
    values = saved(planned("esteps=1"))
    values["cells"][0][name] = seeds
    with pytest.raises(PlanError, match="is damaged"):
        Plan.from_dict(values)


def test_the_images_that_a_trial_recorded_are_known_for_all_trials_of_the_same_set() -> None:
    plan = planned("esteps=1,2")
    assert plan.fingerprint_for(TINY) is None
    assert plan.with_data(DIGITS, {}) == plan
    known = plan.with_data(DIGITS, {"fingerprint": "f00d", "n_images": 3})
    assert known.fingerprint_for(TINY) == "f00d"
    assert known.fingerprint_for(TINY.override(image_size=16)) is None
    assert known.with_data(DIGITS, {"fingerprint": "f11d"}) == known  # the first one stays
    assert Plan.from_dict(saved(known)) == known


def test_a_grid_hands_out_what_has_not_ended_the_longest_first_and_seed_by_seed() -> None:
    plan = planned("esteps=1,2")
    short, long = by_cell(plan.trials())
    source = GridSource(plan, plan.trials())
    states = {long[0].key: Status(State.DONE), short[1].key: Status(State.STOPPED)}
    assert source.n_trials == 4 and not source.finished
    assert source.ready(states) == [long[1], short[0], short[1]]
    assert source.finished and source.ready(states) == []
