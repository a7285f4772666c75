"""A sweep from end to end, with real Ray and real MLflow: killed, grown, interrupted, gone on with.

One story in three starts of Ray, told by the fixture; the tests look at its stages.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import NAMESAKES, Sweep, cut_power, wait_for, write_namesakes
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tests.stand_ins import spec_of
from tune.plan.cells import Trial, trials
from tune.plan.grid import cells, parse_grid
from tune.plan.state import State
from tune.store.folder import Store

pytestmark = pytest.mark.slow
COMMON = ["--preset", "tiny", "--iterations", "60", "--set", "eval_every=20"]
SMALL = [*COMMON, "--grid", "esteps=1,2", "--seeds", "2", "--checkpoint-seconds", "0"]
LARGE = [*COMMON, "--grid", "esteps=1,2,3", "--seeds", "2", "--checkpoint-seconds", "0"]
NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
"""In the environment of a command that a cell of Jupyter or VS Code runs."""
TIMEOUT = 600


def launch(out: Path, *argv: str) -> "subprocess.Popen[str]":
    return Sweep(out, argv).start()


def results(out: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Trial key -> time of writing and content of its result."""
    return Sweep(out, ()).results()


def wait(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    if not wait_for(process, condition):
        out, err = process.communicate()
        pytest.fail(f"the sweep ended early ({process.returncode}):\n{out}\n{err}")


def unfinished(out: Path, n_evaluations: int = 1) -> list[Path]:
    """Run directories with a checkpoint, no result and at most so many evaluations of three."""
    return [
        file.parent
        for file in out.glob("trials/*/checkpoint.pt")
        if not (file.parent / run_dir.RESULT).exists()
        and len(run_dir.read_metrics(file.parent)) <= n_evaluations
    ]


@dataclass
class Story:
    out: Path
    after_kill: dict[str, tuple[int, dict[str, Any]]]
    cut_off: list[str]
    interrupt_code: int
    interrupt_seconds: float
    interrupt_text: str
    after_interrupt: dict[str, tuple[int, dict[str, Any]]]
    states_after_interrupt: set[str]
    code: int
    text: str
    noise: str
    end: dict[str, tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    out = tmp_path_factory.mktemp("sweep") / "out"
    write_namesakes(out.parent)
    first = launch(out, *SMALL)
    wait(first, lambda: bool(results(out)) and bool(unfinished(out)))
    cut_power(first)
    after_kill = results(out)
    # A trial may have come a little further between the look and the blow.
    cut_off = [path.name for path in unfinished(out, n_evaluations=3)]

    second = launch(out, *LARGE)
    wait(second, lambda: len(results(out)) > len(after_kill) and bool(unfinished(out)))
    begun = time.monotonic()
    os.kill(second.pid, signal.SIGINT)
    text, _ = second.communicate(timeout=60)
    seconds = time.monotonic() - begun
    after_interrupt = results(out)
    store = Store(out)
    plan = store.read_plan()
    assert plan is not None
    states = {str(status.state) for status in store.statuses(plan.trials()).values()}

    third = Sweep(out, tuple(LARGE)).start(NOTEBOOK)
    final, noise = third.communicate(timeout=TIMEOUT)
    return Story(
        out, after_kill, cut_off, second.returncode, seconds, text, after_interrupt, states,
        third.returncode, final, noise, results(out),
    )  # fmt: skip


def expected_trials() -> list[Trial]:
    base = PRESETS["tiny"].override(iterations=60, eval_every=20)
    made = cells(base, parse_grid(["esteps=1,2,3"], "tiny"))
    return [trial for cell in made for trial in trials(cell, (0, 1))]


def test_a_sweep_killed_grown_and_interrupted_ends_with_every_trial_done(story: Story) -> None:
    assert story.code == 0, story.noise
    assert set(story.end) == {trial.key for trial in expected_trials()}
    assert {result["state"] for _, result in story.end.values()} == {"done"}
    assert "6 of 6 trials done" in story.text
    assert "make_tables.py" in story.text and "server --backend-store-uri" in story.text


def test_modules_in_the_directory_of_the_start_change_nothing(story: Story) -> None:
    assert all((story.out.parent / name).exists() for name in NAMESAKES)
    assert story.code == 0 and "working directory" not in story.text + story.noise


def test_what_was_done_is_never_run_again(story: Story) -> None:
    assert story.after_kill and story.cut_off
    for earlier, later in (
        (story.after_kill, story.after_interrupt),
        (story.after_interrupt, story.end),
    ):
        assert all(later[key] == earlier[key] for key in earlier)


def test_sigint_writes_checkpoints_and_exits_130_within_20_seconds(story: Story) -> None:
    assert story.interrupt_code == 130
    assert story.interrupt_seconds < 20
    assert len(story.after_interrupt) < 6
    assert story.states_after_interrupt <= {"done", "stopped", "planned"}
    assert "stopped: esteps=" in story.interrupt_text


def test_a_trial_in_the_sweep_equals_the_same_trial_alone(story: Story, tmp_path: Path) -> None:
    from mpcc.training.trainer import train

    by_key = {trial.key: trial for trial in expected_trials()}
    cut_off = by_key[story.cut_off[0]]
    newest = expected_trials()[-1]
    for trial in {cut_off.key: cut_off, newest.key: newest}.values():
        path = tmp_path / trial.key
        for _ in train(trial.config, path):
            pass
        alone = json.loads((path / run_dir.RESULT).read_text())
        swept = story.end[trial.key][1]
        assert swept["weights_sha256"] == alone["weights_sha256"]
        here = run_dir.read_metrics(Store(story.out).trial_dir(trial.key))
        assert [r["iteration"] for r in here] == [20, 40, 60]
        assert [_without_time(r) for r in here] == [
            _without_time(r) for r in run_dir.read_metrics(path)
        ]


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_mlflow_has_one_finished_run_per_trial_under_one_parent(story: Story) -> None:
    with sqlite3.connect(story.out / "mlflow.db") as connection:
        runs = connection.execute(
            "select t.value, r.status from runs r left join tags t on t.run_uuid = r.run_uuid and "
            "t.key = 'trial_key' where r.lifecycle_stage = 'active'"
        ).fetchall()
        rows = connection.execute(
            "select count(*), count(distinct step) from metrics where key = 'acc_majority' "
            "group by run_uuid"
        ).fetchall()
    assert sorted(key for key, _ in runs if key) == sorted(story.end)
    assert sum(key is None for key, _ in runs) == 1
    assert {status for _, status in runs} == {"FINISHED"}
    assert rows == [(3, 3)] * 6


def test_a_cell_of_a_notebook_is_not_filled_with_lines(story: Story) -> None:
    """One for each trial that has ended, one every 20 s, and nothing that draws a table anew."""
    assert "\r" not in story.noise and "\x1b" not in story.noise
    first, *lines = story.noise.splitlines()
    progress = [line for line in lines if " of 6 done, " in line]
    assert first.endswith("trials to run; starting Ray …")
    assert len(lines) == len(progress) + len(story.end) - len(story.after_interrupt)
    minutes, seconds = lines[-1].removeprefix("[").partition("]")[0].split(":")
    assert len(progress) <= (int(minutes) * 60 + int(seconds)) / 20


def test_ray_is_kept_out_of_the_way(story: Story) -> None:
    lines = story.noise.strip().splitlines()
    assert lines and all(line.startswith("[") or "trials to run" in line for line in lines), lines
    names = {path.name for path in story.out.iterdir()}
    assert names == {
        "sweep.json", "sweep-copy.json", "trials", "driver.lock",
        "mlflow.db", "mlflow.json", "mlflow-artifacts",
    }  # fmt: skip


REFUSING = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path, target=None):
        assert name not in ("torch", "ray", "mlflow", "pandas"), name
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program that must not import what takes long."""


def test_a_finished_sweep_starts_nothing_and_answers_at_once(story: Story) -> None:
    begun = time.monotonic()
    again = subprocess.run(
        [sys.executable, "-c", REFUSING, *Sweep(story.out, tuple(LARGE)).command()[1:]],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - begun < 3
    assert again.returncode == 0 and "6 of 6 trials done" in again.stdout, again.stderr
    assert results(story.out) == story.end


def test_a_lost_result_runs_its_trial_again_to_the_same_end(story: Story, tmp_path: Path) -> None:
    """Through the class that Tune drives, without Ray."""
    from tune.engine.trainable import MPCCTrainable

    out = tmp_path / "copy"
    shutil.copytree(story.out, out)
    store = Store(out)
    plan = store.read_plan()
    assert plan is not None and plan.data is not None
    trial = plan.trials()[0]
    path = store.trial_dir(trial.key)
    (path / run_dir.RESULT).unlink()
    assert store.repair(trial) is None
    spec = spec_of(out, trial, fingerprint=plan.fingerprint_for(trial.config))
    worker = MPCCTrainable.__new__(MPCCTrainable)
    worker.setup({"sweep": [spec]})
    while not (result := worker.step())["done"]:
        pass
    worker.cleanup()
    assert result["event"].state == State.DONE
    again = json.loads((path / run_dir.RESULT).read_text())
    assert again["weights_sha256"] == story.end[trial.key][1]["weights_sha256"]
