"""How long a sweep will take: the arithmetic, the records it is taken from, and a measurement."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpcc.pace import Pace, Shape, shape
from tune.engine.settings import Settings
from tune.plan import cells as plan_cells
from tune.plan.cells import Trial
from tune.plan.grid import cells, parse_grid
from tune.plan.plan import PLAN
from tune.store.folder import Store

from mpcc import run_dir
from mpcc.config import PRESETS
from tune import ablation, estimate

BASE = PRESETS["tiny"].override(iterations=100, eval_every=50)


def trials(*grid: str) -> list[Trial]:
    made = cells(BASE, parse_grid(list(grid), "tiny"))
    return [trial for cell in made for trial in plan_cells.trials(cell, (0, 1))]


def write(out: Path, trial: Trial, train: float, evaluate: float) -> None:
    path = Store(out).trial_dir(trial.key)
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
    assert found.seconds is not None
    own = 4 * (11 + 4) + 4 * (22 + 4) + 8 * estimate.TRIAL_SECONDS - (5.5 + 2)
    assert found.device_hours == pytest.approx(own / 3600)
    assert found.seconds == pytest.approx(estimate.START_SECONDS + own / 2, rel=0.15)
    for file in tmp_path.glob(f"trials/*/{run_dir.PROVENANCE}"):
        run_dir.write_json(file, {"machine": "elsewhere", "device": "cpu"})
    assert estimate.from_records([tmp_path]) == {}


def test_a_shape_without_records_takes_the_nearest_ones_pace_times_its_work() -> None:
    known = {shape(BASE.override(n_encoder_steps=1)): Pace(0.1, 1.0, "cuda:0")}
    one, four = (trials(f"esteps={n}")[:1] for n in (1, 4))
    hours = [
        found.device_hours * 3600 - estimate.TRIAL_SECONDS - 2.0
        for found in (estimate.estimate(t, {}, known, None, 1, "records") for t in (one, four))
        if found.seconds is None and "GPU-hours" in found.text
    ]
    updates = BASE.n_discriminator_steps + 1
    assert hours[0] == pytest.approx(10.0)
    assert hours[1] == pytest.approx(10.0 * (updates + 4) / (updates + 1))


WORDS = ["--preset", "tiny", "--grid", "esteps=1,2", "--iterations", "100", "--seeds", "2",
         "--set", "eval_every=50", "--dry-run"]  # fmt: skip


def dry_run(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert ablation.main(["--out", str(out), *WORDS, *words]) == 0
    said = capsys.readouterr()
    return said.out.splitlines()[-1], said.err


def test_a_dry_run_measures_only_where_no_finished_trial_is_like_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(todo: list[Trial], settings: Settings) -> dict[Shape, Pace]:
        measured.append(todo[0].text)
        return {shape(trial.config): Pace(0.1, 1.0, "cpu") for trial in todo}

    monkeypatch.setattr(estimate, "measure", measure)
    said, _ = dry_run(tmp_path / "out", capsys)
    assert "core-hours (from a measurement)" in said and len(measured) == 1
    write(tmp_path / "other", trials("esteps=1")[0], 10.0, 4.0)
    (tmp_path / "other" / PLAN).write_text(json.dumps({}))
    said, _ = dry_run(tmp_path / "out", capsys)
    assert "from earlier trials on this machine" in said and len(measured) == 1
    dry_run(tmp_path / "out", capsys, "--set", "width=3")  # Of that size nothing is known.
    assert len(measured) == 2


def test_what_cannot_be_measured_says_why_and_the_plan_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)
    said, _ = dry_run(tmp_path / "out", capsys, "--address", "auto")
    assert said == "time: not known (only trials and data of this machine can be measured)"
    said, _ = dry_run(tmp_path / "out", capsys, "--data-dir", str(tmp_path / "none"))
    assert said.startswith("time: not known (") and "no folder" in said
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", 0.0)
    said, err = dry_run(tmp_path / "out", capsys)
    assert said == "time: not known (nothing measured within 0 s)"
    assert "measuring 1 of 2: esteps=" in err
    monkeypatch.setattr(estimate.sys, "executable", "/bin/false")
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", 60.0)
    assert "measuring failed: no reason given" in dry_run(tmp_path / "out", capsys)[0]


@pytest.mark.slow
def test_a_dry_run_shows_its_plan_at_once_and_then_measures_real_iterations(
    tmp_path: Path,
) -> None:
    words = ["--preset", "tiny", "--grid", "esteps=2", "--seeds", "2", "--dry-run"]
    program, begun = str(Path(ablation.__file__)), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, program, "--out", "out", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    while "on the disk" not in process.stdout.readline():
        pass
    assert time.monotonic() - begun < 2  # Half a second on a machine with nothing else to do.
    out, err = process.communicate(timeout=300)
    assert "measuring 1 of 1: esteps=2" in err and process.returncode == 0
    assert "time: about" in out and "core-hours (from a measurement)" in out
    assert list(tmp_path.iterdir()) == []
