"""How long a sweep will take: the arithmetic, the records it is taken from, and a real pilot."""

import json
import platform
from pathlib import Path

import pytest

from mpcc import run_dir
from mpcc.config import PRESETS
from tune import ablation, estimate, ledger
from tune.estimate import Pace
from tune.grid import cells, parse_grid
from tune.ledger import Trial

BASE = PRESETS["tiny"].override(iterations=100, eval_every=50)


def trials(*grid: str) -> list[Trial]:
    made = cells(BASE, parse_grid(list(grid), "tiny"))
    return [trial for cell in made for trial in ledger.trials(cell, (0, 1))]


def write(out: Path, trial: Trial, train: float, evaluate: float) -> None:
    path = ledger.trial_dir(out, trial.key)
    path.mkdir(parents=True)
    run_dir.write_json(path / run_dir.CONFIG, trial.config.to_dict())
    run_dir.write_json(
        path / run_dir.PROVENANCE, {"machine": platform.node(), "device": "cpu:some chip"}
    )
    for iteration in (50, 100):
        run_dir.append_metrics(path, {"iteration": iteration})
    seconds = {"train": train, "evaluate": evaluate}
    result = {"state": "done", "iteration": 100, "metrics": {}, "seconds": seconds}
    run_dir.write_json(path / run_dir.RESULT, result)


def test_the_longest_trials_are_dealt_out_first() -> None:
    assert estimate.makespan([1, 1, 4, 2, 2], 2) == 5
    assert estimate.makespan([3, 3, 3], 2) == 6
    assert estimate.makespan([5], 4) == 5


def test_records_of_other_learning_rates_and_seeds_serve_and_of_other_machines_do_not(
    tmp_path: Path,
) -> None:
    done = trials("esteps=1,2", "eta_p=1e-3")
    for trial, train in zip(done, (10.0, 12.0, 20.0, 24.0), strict=True):
        write(tmp_path, trial, train, 4.0)
    paces = estimate.from_records([tmp_path])
    assert len(paces) == 2
    assert {round(pace.iteration, 6) for pace in paces.values()} == {0.11, 0.22}
    assert {pace.evaluation for pace in paces.values()} == {2.0}
    wanted = trials("esteps=1,2", "eta_p=5e-3,8e-3")
    reached = {wanted[0].key: 50}
    found = estimate.estimate(wanted, reached, paces, 2, 1, "records")
    assert found is not None and found.seconds is not None
    own = 4 * (11 + 4) + 4 * (22 + 4) + 8 * estimate.TRIAL_SECONDS - (5.5 + 2)
    assert found.device_hours == pytest.approx(own / 3600)
    assert found.seconds == pytest.approx(estimate.START_SECONDS + own / 2, rel=0.15)
    for file in tmp_path.glob(f"trials/*/{run_dir.PROVENANCE}"):
        run_dir.write_json(file, {"machine": "elsewhere", "device": "cpu"})
    assert estimate.from_records([tmp_path]) == {}
    assert estimate.estimate(wanted, {}, {}, 2, 1, "nothing") is None


def test_a_shape_without_records_takes_the_nearest_ones_pace_times_its_work() -> None:
    known = {estimate.shape(BASE.override(n_encoder_steps=1)): Pace(0.1, 1.0, "cuda:0")}
    one, four = (trials(f"esteps={n}")[:1] for n in (1, 4))
    hours = [
        found.device_hours * 3600 - estimate.TRIAL_SECONDS - 2.0
        for found in (estimate.estimate(t, {}, known, None, 1, "records") for t in (one, four))
        if found and found.seconds is None and "GPU-hours" in found.text
    ]
    updates = BASE.n_discriminator_steps + 1
    assert hours[0] == pytest.approx(10.0)
    assert hours[1] == pytest.approx(10.0 * (updates + 4) / (updates + 1))


@pytest.mark.slow
def test_a_pilot_measures_real_iterations_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "tiny", "--grid", "esteps=2", "--seeds", "2", "--pilot"]
    out = tmp_path / "out"
    assert ablation.main(["--out", str(out), *words]) == 0
    said = capsys.readouterr()
    assert "pilot 1 of 1: esteps=2" in said.err
    assert "time: about" in said.out and "core-hours (from a pilot)" in said.out
    assert not out.exists()


def test_without_records_a_dry_run_says_how_to_get_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--preset", "tiny", "--grid", "esteps=1,2", "--iterations", "100", "--seeds", "2"]
    words += ["--set", "eval_every=50"]
    assert ablation.main(["--out", str(out), *words, "--dry-run"]) == 0
    assert "--pilot measures it" in capsys.readouterr().out
    for trial in trials("esteps=1")[:1]:
        write(tmp_path / "other", trial, 10.0, 4.0)
        (tmp_path / "other" / ledger.PLAN).write_text(json.dumps({}))
    assert ablation.main(["--out", str(out), *words, "--dry-run"]) == 0
    assert "from earlier trials on this machine" in capsys.readouterr().out
