"""A sweep with a storage, from end to end with real Ray and real MLflow, as one story.

Killed; grown, and its terminal closed; gone on with from another folder as another machine would,
the storage away for a while. Three starts of Ray, told by the fixture; tests look at its stages.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import (
    NAMESAKES,
    Sweep,
    cut_power,
    descendants,
    mlflow_runs,
    process_table,
    wait_for,
    write_namesakes,
)
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tests.test_exposure import is_loopback, listening
from tests.test_trainer import evaluations
from tune.plan.cells import Trial, trials
from tune.plan.grid import cells, parse_grid
from tune.store.folder import Store

pytestmark = pytest.mark.slow
COMMON = ["--preset", "tiny", "--iterations", "60", "--set", "eval_every=20"]
SMALL = [*COMMON, "--grid", "esteps=1,2", "--seeds", "2", "--checkpoint-seconds", "0"]
LARGE = [*COMMON, "--grid", "esteps=1,2,3", "--seeds", "2", "--checkpoint-seconds", "0"]
NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
"""In the environment of a command that a cell of Jupyter or VS Code runs."""
TIMEOUT = 600


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
    store: Path
    first: Path
    second: Path
    after_kill: dict[str, tuple[int, dict[str, Any]]]
    cut_off: list[str]
    interrupt_code: int
    interrupt_seconds: float
    interrupt_text: str
    interrupt_noise: str
    left: list[int]
    runs_after_interrupt: set[str]
    after_interrupt: dict[str, tuple[int, dict[str, Any]]]
    states_after_interrupt: set[str]
    status: str
    sockets: dict[str, str]
    code: int
    text: str
    noise: str
    end: dict[str, tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    base = tmp_path_factory.mktemp("sweep")
    store, first, second = base / "store", base / "first", base / "second"
    storage = ("--storage", str(store))
    write_namesakes(base)
    driver = Sweep(first, (*SMALL, *storage)).start()
    wait(driver, lambda: bool(results(store)) and bool(unfinished(store)))
    cut_power(driver)
    after_kill = results(store)
    # A trial may have come a little further between the look and the blow.
    cut_off = [path.name for path in unfinished(store, n_evaluations=3)]

    driver = Sweep(first, tuple(LARGE)).start()
    wait(driver, lambda: len(results(store)) > len(after_kill) and bool(unfinished(store)))
    below, begun = descendants(driver.pid), time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    interrupt_text, interrupt_noise = driver.communicate(timeout=60)
    interrupt_code, seconds = driver.returncode, time.monotonic() - begun
    end = time.monotonic() + 15
    while process_table().keys() & below and time.monotonic() < end:
        time.sleep(0.2)
    left = sorted(process_table().keys() & below)
    runs = {status for _, status, *_ in mlflow_runs(first / "mlflow.db")}
    after_interrupt = results(store)
    plan = Store(first).read_plan()
    assert plan is not None
    states = {str(status.state) for status in Store(store).statuses(plan.trials()).values()}

    driver = Sweep(second, (*LARGE, *storage)).start(NOTEBOOK)
    watcher = Sweep(base / "third", ("--status", *storage)).command()
    status, sockets = "", {}
    while "running" not in status and driver.poll() is None:  # Two may just have ended at a time.
        sockets = listening(driver.pid) or sockets
        status = subprocess.run(watcher, capture_output=True, text=True, timeout=60).stdout
    store.rename(base / "away")
    time.sleep(3)
    (base / "away").rename(store)
    text, noise = driver.communicate(timeout=TIMEOUT)
    return Story(
        store, first, second, after_kill, cut_off, interrupt_code, seconds, interrupt_text,
        interrupt_noise, left, runs, after_interrupt, states, status, sockets, driver.returncode,
        text, noise, results(store),
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
    assert all((story.store.parent / name).exists() for name in NAMESAKES)
    assert story.code == 0 and "working directory" not in story.text + story.noise


def test_what_was_done_is_never_run_again(story: Story) -> None:
    assert story.after_kill and story.cut_off
    for earlier, later in (
        (story.after_kill, story.after_interrupt),
        (story.after_interrupt, story.end),
    ):
        assert all(later[key] == earlier[key] for key in earlier)


def test_sigint_writes_checkpoints_and_exits_130_within_20_seconds(story: Story) -> None:
    """To the whole process group, as of a terminal: Ray outlives it until all is written."""
    assert story.interrupt_code == 130
    assert story.interrupt_seconds < 20
    assert "writing checkpoints" in story.interrupt_noise
    assert "Ray has died" not in story.interrupt_noise and "received" not in story.interrupt_noise
    assert story.left == [] and story.runs_after_interrupt <= {"FINISHED", "KILLED"}
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
        for folder in (story.store, story.second):
            here = evaluations(Store(folder).trial_dir(trial.key))
            assert [r["iteration"] for r in here] == [20, 40, 60]
            assert here == evaluations(path)


def test_mlflow_has_one_finished_run_per_trial_under_one_parent(story: Story) -> None:
    runs = mlflow_runs(story.second / "mlflow.db")
    assert len(runs) == 7 and {key for key, *_ in runs} == {None, *story.end}
    assert {status for _, status, *_ in runs} == {"FINISHED"}
    assert {(rows, steps) for key, _, rows, steps in runs if key} == {(3, 3)}


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


def test_no_process_of_a_sweep_listens_beyond_the_loopback(story: Story) -> None:
    for program in ("gcs_server", "raylet"):
        assert any(program in command for command in story.sockets.values()), story.sockets
    assert [line for line in story.sockets.items() if not is_loopback(line[0])] == []


def test_the_state_is_seen_from_any_machine_while_the_sweep_runs(story: Story) -> None:
    assert "running" in story.status and "driver: process" in story.status


def test_the_output_folder_holds_every_record_and_no_checkpoint(story: Story) -> None:
    names = {path.name for path in story.second.glob("trials/*/*")}
    assert {"config.json", "metrics.jsonl", "result.json", "samples.png"} <= names
    assert not any(name.startswith(("checkpoint", "owner", "attempts")) for name in names)
    assert all(
        (story.second / path.relative_to(story.store)).read_bytes() == path.read_bytes()
        for path in story.store.glob("trials/*/result.json")
    )


def test_the_first_folder_fetches_the_rest_without_being_told_where(story: Story) -> None:
    first, second = Sweep(story.first, ()), Sweep(story.second, ())
    text = first.run()
    assert "6 of 6 trials done" in text and "starting Ray" not in text
    assert first.tables() and first.tables() == second.tables()


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
        [sys.executable, "-c", REFUSING, *Sweep(story.second, tuple(LARGE)).command()[1:]],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - begun < 3
    assert again.returncode == 0 and "6 of 6 trials done" in again.stdout, again.stderr
    assert results(story.store) == story.end
