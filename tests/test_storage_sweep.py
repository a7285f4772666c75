"""A sweep with a storage, from end to end with real Ray, in one story told by the fixture.

Killed, gone on with from another folder as another machine would, the storage away for a while.
"""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fault_tools import Sweep, cut_power
from mpcc.runs import run_dir
from tests.test_sweep import (
    LARGE,
    SMALL,
    TIMEOUT,
    expected_trials,
    launch,
    results,
    unfinished,
    wait,
)
from tune.store.folder import Store

pytestmark = pytest.mark.slow


@dataclass
class Story:
    store: Path
    first: Path
    second: Path
    after_kill: dict
    cut_off: list[str]
    status: str
    code: int
    noise: str
    end: dict


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    base = tmp_path_factory.mktemp("stored")
    store, first, second = base / "store", base / "first", base / "second"
    storage = ["--storage", str(store)]
    driver = launch(first, *SMALL, *storage)
    wait(driver, lambda: bool(results(store)) and bool(unfinished(store)))
    cut_power(driver)
    after_kill = results(store)
    cut_off = [path.name for path in unfinished(store, n_evaluations=3)]

    driver = launch(second, *LARGE, *storage)
    wait(driver, lambda: len(results(store)) > len(after_kill) and bool(unfinished(store)))
    watcher = Sweep(base / "third", ("--status", *storage)).command()
    status = ""
    while "running" not in status and driver.poll() is None:  # Two may just have ended at a time.
        status = subprocess.run(watcher, capture_output=True, text=True, timeout=60).stdout
    store.rename(base / "away")
    time.sleep(3)
    (base / "away").rename(store)
    _, noise = driver.communicate(timeout=TIMEOUT)
    return Story(
        store, first, second, after_kill, cut_off, status, driver.returncode, noise, results(store)
    )


def test_another_machine_ends_the_sweep_and_runs_nothing_twice(story: Story) -> None:
    assert story.code == 0, story.noise
    assert set(story.end) == {trial.key for trial in expected_trials()}
    assert {result["state"] for _, result in story.end.values()} == {"done"}
    assert story.after_kill and story.cut_off
    assert all(story.end[key] == story.after_kill[key] for key in story.after_kill)


def test_a_trial_that_was_cut_off_equals_the_same_trial_alone(story: Story, tmp_path: Path) -> None:
    from mpcc.training.trainer import train

    trial = {trial.key: trial for trial in expected_trials()}[story.cut_off[0]]
    for _ in train(trial.config, tmp_path / "alone"):
        pass
    alone = run_dir.read_result(tmp_path / "alone")
    assert alone and story.end[trial.key][1]["weights_sha256"] == alone["weights_sha256"]
    for folder in (story.store, story.second):
        rows = run_dir.read_metrics(Store(folder).trial_dir(trial.key))
        assert [row["iteration"] for row in rows] == [20, 40, 60]


def test_the_output_folder_holds_every_record_and_no_checkpoint(story: Story) -> None:
    names = {path.name for path in story.second.glob("trials/*/*")}
    assert {"config.json", "metrics.jsonl", "result.json", "samples.png"} <= names
    assert not any(name.startswith(("checkpoint", "owner", "attempts")) for name in names)
    assert all(
        (story.second / path.relative_to(story.store)).read_bytes() == path.read_bytes()
        for path in story.store.glob("trials/*/result.json")
    )


def test_the_state_is_seen_from_any_machine_while_the_sweep_runs(story: Story) -> None:
    assert "running" in story.status and "driver: process" in story.status


def test_the_first_folder_fetches_the_rest_without_being_told_where(story: Story) -> None:
    first, second = Sweep(story.first, ()), Sweep(story.second, ())
    text = first.run()
    assert "6 of 6 trials done" in text and "starting Ray" not in text
    assert first.tables() and first.tables() == second.tables()
