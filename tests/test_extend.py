"""A sweep is planned at more iterations; how its trials go on is in tests/test_continuation.py."""

import json
from dataclasses import replace

import pytest

from mpcc.config import PRESETS
from tune.plan.grid import cells, parse_grid
from tune.plan.plan import Plan, PlanError, new_plan

BASE = PRESETS["tiny"].override(iterations=4, eval_every=2)


def plan(*grid: str) -> Plan:
    made = cells(BASE, parse_grid(list(grid), "tiny"))
    return new_plan("tiny", BASE).grow(made, (0,), " ".join(grid))


def test_every_trial_of_an_extended_plan_has_more_iterations_and_a_key_of_its_own() -> None:
    short = plan("esteps=1,2")
    longer = short.extend(7)
    assert [t.config.iterations for t in longer.trials()] == [7, 7]
    assert [c.cell.text for c in longer.cells] == [c.cell.text for c in short.cells]
    assert not {t.key for t in short.trials()} & {t.key for t in longer.trials()}


def test_a_plan_can_be_extended_twice_and_remembers_both() -> None:
    twice = plan("esteps=1,2").extend(6).extend(9)
    assert twice.earlier_iterations == (4, 6)
    assert Plan.from_dict(json.loads(json.dumps(twice.to_dict()))) == twice
    assert twice.extend(9) is twice


def test_the_points_of_a_search_follow_their_cells() -> None:
    short = plan("esteps=1,2")
    points = [planned.cell.key for planned in reversed(short.cells)]
    longer = replace(short, search={"points": points, "sampler": "tpe"}).extend(7)
    assert longer.search == {
        "points": [planned.cell.key for planned in reversed(longer.cells)],
        "sampler": "tpe",
    }


@pytest.mark.parametrize("iterations", [1, 3])
def test_fewer_iterations_are_refused(iterations: int) -> None:
    with pytest.raises(PlanError, match="more than the 4 iterations"):
        plan("esteps=1,2").extend(iterations)


def test_an_axis_of_iterations_is_refused() -> None:
    with pytest.raises(PlanError, match="iterations is an axis"):
        plan("iterations=2,4").extend(9)
