"""Trials that go on to more iterations than were planned at first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpcc.runs import run_dir
from mpcc.training.trainer import train
from tests.stand_ins import planned
from tests.test_promises import DRY
from tests.test_trainer import evaluations
from tune import ablation
from tune.plan.plan import PLAN, Plan, PlanError
from tune.store import folder
from tune.store.adopt import extend, extends_from
from tune.store.folder import Store


def plan(*grid: str) -> Plan:
    return planned(*grid, seeds=(0,), iterations=4, eval_every=2)


def run(store: Store, short: Plan, images) -> None:
    for trial in short.trials():
        for _ in train(trial.config, store.trial_dir(trial.key), image_set=images):
            pass


def test_a_continued_trial_ends_as_one_that_was_planned_longer_from_the_start(
    digits, tmp_path: Path
) -> None:
    images = replace(digits, images=digits.images[:120], labels=digits.labels[:120])
    store, short = Store(tmp_path), plan("esteps=1,2")
    run(store, short, images)
    longer = short.extend(7)
    for trial in longer.trials():
        assert extends_from(store, longer, trial) == 4
        extend(store, longer, trial)
        assert store.status(trial).iteration == 4
        assert extends_from(store, longer, trial) is None
        extend(store, longer, trial)  # Twice is once.
    run(store, longer, images)
    for trial in longer.trials():
        path, alone = store.trial_dir(trial.key), tmp_path / "alone" / trial.key
        for _ in train(trial.config, alone, image_set=images):
            pass
        result, expected = (run_dir.read_result(p) for p in (path, alone))
        assert result and expected
        assert result["weights_sha256"] == expected["weights_sha256"]
        assert evaluations(path) == evaluations(alone)
        assert run_dir.earlier_iterations(path) == [4]
        assert run_dir.read_provenance(path)["starts"] == [0, 4]
    kept = sorted((tmp_path / "earlier" / "4-iterations").glob("*/*"))
    assert {file.name for file in kept} >= {"config.json", "metrics.jsonl", "result.json"}
    assert not any(file.suffix == ".pt" for file in kept)
    assert {p.name for p in (tmp_path / "trials").iterdir()} == {t.key for t in longer.trials()}


@pytest.mark.parametrize("moves", [0, 1])
def test_an_extension_that_was_cut_off_is_made_whole(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, short = Store(tmp_path), plan("esteps=1")
    (trial,) = short.trials()
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    run_dir.append_metrics(path, {"iteration": 4, "seconds": 1.0})
    run_dir.write_checkpoint(path, b"state")
    longer = short.extend(7)
    (more,) = longer.trials()
    move, moved = folder.os.replace, []

    def cut_off(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            if len(moved) == moves:
                raise KeyboardInterrupt
            moved.append(source)
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder.os, "replace", cut_off)
        extend(store, longer, more)
    assert path.is_dir() and extends_from(store, longer, more) == 4
    extend(store, longer, more)
    assert store.status(more).iteration == 4
    assert (store.trial_dir(more.key) / run_dir.CHECKPOINT).exists()
    assert [p.name for p in (tmp_path / "trials").iterdir()] == [more.key]


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
    points = [one.cell.key for one in reversed(short.cells)]
    longer = replace(short, search={"points": points, "sampler": "tpe"}).extend(7)
    assert longer.search == {
        "points": [one.cell.key for one in reversed(longer.cells)],
        "sampler": "tpe",
    }


@pytest.mark.parametrize("iterations", [1, 3])
def test_fewer_iterations_are_refused(iterations: int) -> None:
    with pytest.raises(PlanError, match="more than the 4 iterations"):
        plan("esteps=1,2").extend(iterations)


def test_an_axis_of_iterations_is_refused() -> None:
    with pytest.raises(PlanError, match="iterations is an axis"):
        plan("iterations=2,4").extend(9)


def command(out: Path, *words: str) -> int:
    return ablation.main(["--out", str(out), *words])


def test_more_iterations_are_refused_without_the_option_and_planned_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    Store(out).write_plan(plan("esteps=1,2"))
    settings = ["--preset", "tiny", "--set", "eval_every=2"]
    assert command(out, *settings, "--iterations", "8", *DRY) == 2
    assert "iterations=4, now 8; go on to more iterations with --continue-training" in (
        capsys.readouterr().err
    )
    for words in ([], settings, [*settings, "--grid", "esteps=1,2,4"]):
        longer = [*words, "--iterations", "8", "--continue-training", *DRY]
        assert command(out, *longer) == 0
        assert "8 iterations" in capsys.readouterr().out
    assert command(out, "--continue-training") == 2
    assert "--iterations N" in capsys.readouterr().err
    assert json.loads((out / PLAN).read_text())["base"]["iterations"] == 4
