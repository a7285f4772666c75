"""How long a sweep will take: the arithmetic, the records it is taken from, and a measurement."""

import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training.pace import Pace, Shape, shape
from tests.stand_ins import planned
from tune import ablation, estimate
from tune.engine.spec import Settings
from tune.plan.cells import Trial
from tune.store.folder import Store

BASE = PRESETS["tiny"].override(iterations=100, eval_every=50)


def trials(*grid: str) -> list[Trial]:
    return planned(*grid, iterations=100, eval_every=50).trials()


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
        write(tmp_path / "sweep", trial, train, 4.0)
    paces = estimate.from_records(tmp_path, "cpu")
    assert len(paces) == 2
    wanted = trials("esteps=1,2", "eta_p=5e-3,8e-3")
    assert {shape(trial.config) for trial in wanted} == set(paces)
    assert {pace.evaluation for pace in paces.values()} == {2.0}
    fast, slow = sorted(pace.iteration for pace in paces.values())
    assert fast in (0.1, 0.12) and slow in (0.2, 0.24)
    for file in tmp_path.glob(f"*/trials/*/{run_dir.PROVENANCE}"):
        run_dir.write_json(file, {"machine": "elsewhere", "device": "cpu"})
    assert estimate.from_records(tmp_path, "cpu") == {}


def test_a_trial_takes_its_iterations_and_evaluations_from_where_it_is() -> None:
    config, pace = BASE, Pace(0.1, 1.0, "cpu", scores=3.0)
    fixed = estimate.TRIAL_SECONDS + 3.0
    assert estimate.trial_seconds(config, 0, pace) == pytest.approx(10.0 + 2.0 + fixed)
    assert estimate.trial_seconds(config, 50, pace) == pytest.approx(5.0 + 1.0 + fixed)
    assert estimate.trial_seconds(config, 60, pace) == pytest.approx(4.0 + 1.0 + fixed)


def test_an_estimate_names_the_time_the_hours_and_how_many_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 0.0)
    todo = trials("esteps=1", "eta_p=1e-3,2e-3")
    write(tmp_path / "other", todo[0], 3600 - 4, 4.0)
    store = Store(tmp_path / "out")
    here = Settings(store.out, "", gpus=0, cpus=1.0, max_concurrent=1)
    hours = "4 core-hours (from earlier trials on this machine)"
    told = estimate.estimate(here, store, todo, {})
    assert told == f"about 4:00:07, {hours}, 1 at a time"
    # Half of a trial has been done; how many run at a time, only a cluster knows.
    there = Settings(store.out, "", gpus=0, cpus=2.0, address="head:6379")
    told = estimate.estimate(there, store, todo[:1], {todo[0].key: 50})
    assert told == "1 core-hours (from earlier trials on this machine)"


WORDS = ["--preset", "tiny", "--grid", "esteps=1,2", "--iterations", "100", "--seeds", "2",
         "--set", "eval_every=50", "--dry-run"]  # fmt: skip


def dry_run(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert ablation.main(["--out", str(out), *WORDS, *words]) == 0
    said = capsys.readouterr()
    return said.out.splitlines()[-1], said.err


def test_a_dry_run_measures_only_where_no_finished_trial_is_like_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[set[str]] = []

    def measure(todo: list[Trial], settings: Settings) -> dict[Shape, Pace]:
        measured.append({trial.cell.text for trial in todo})
        return {shape(trial.config): Pace(0.1, 1.0, "cpu") for trial in todo}

    monkeypatch.setattr(estimate, "measure", measure)
    said, _ = dry_run(tmp_path / "out", capsys)
    assert "core-hours (from a measurement)" in said
    write(tmp_path / "one", trials("esteps=1")[0], 10.0, 4.0)
    assert "core-hours (from a measurement)" in dry_run(tmp_path / "out", capsys)[0]
    write(tmp_path / "two", trials("esteps=2")[0], 10.0, 4.0)
    said, _ = dry_run(tmp_path / "out", capsys)
    assert "from earlier trials on this machine" in said
    assert measured == [{"esteps=1", "esteps=2"}, {"esteps=2"}]
    dry_run(tmp_path / "out", capsys, "--set", "width=3")  # Of that size nothing is known.
    assert len(measured) == 3


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
    assert said == "time: not known (measuring took more than 0 s)"
    assert "measuring (settings: 2, " in err
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
    assert "measuring (settings: 1, " in err and process.returncode == 0
    assert "time: about" in out and "core-hours (from a measurement)" in out
    assert list(tmp_path.iterdir()) == []
