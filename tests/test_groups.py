"""Trials that share a process under Ray: which do, that each is what it is alone, and faults."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import ROOT, TRIAL, kill, processes
from mpcc import run_dir, trainer
from mpcc.config import PRESETS
from tests.test_trainer import files
from tune import ablation, groups, ledger, sweep
from tune.grid import cells, parse_grid
from tune.ledger import Trial
from tune.mirror import STOP
from tune.settings import trial_spec


def planned(*grid: str, **changes: Any) -> tuple[ledger.Plan, list[Trial]]:
    base = PRESETS["tiny"].override(**({"iterations": 12, "eval_every": 6} | changes))
    plan = ledger.new_plan("tiny", base)
    plan = plan.grow(cells(base, parse_grid(list(grid), "tiny")), (0, 1), "test")
    return plan, plan.trials()


def specs_of(out: Path, plan: ledger.Plan, trials: list[Trial], **more: Any) -> list[groups.Spec]:
    settings = sweep.Settings(out=out, uri="", checkpoint_seconds=0)
    return [trial_spec(t, plan, settings, "test") | {"device": "cpu"} | more for t in trials]


def sizes(found: list[list[groups.Spec]]) -> list[int]:
    return [len(group) for group in found]


def test_groups_are_even_keep_every_gpu_busy_and_keep_the_order(tmp_path: Path) -> None:
    plan, trials = planned("esteps=1,2,3,4,5")
    specs = specs_of(tmp_path, plan, trials)
    assert sizes(groups.grouped(specs, 1)) == [1] * 10
    assert sizes(groups.grouped(specs, 8)) == [5, 5]
    assert sizes(groups.grouped(specs, 16)) == [10]
    assert sizes(groups.grouped(specs, 16, n_gpus=4)) == [2, 3, 2, 3]
    assert sizes(groups.grouped(specs, 3, n_gpus=3)) == [1, 2, 2, 1, 2, 2]
    assert sizes(groups.grouped(specs[:2], 8, n_gpus=4)) == [1, 1]
    flat = [spec["key"] for group in groups.grouped(specs, 4) for spec in group]
    assert flat == [trial.key for trial in trials]


def test_only_trials_that_want_the_same_of_a_process_share_one(tmp_path: Path) -> None:
    plan, trials = planned("precision=float32,tf32,bfloat16", "esteps=1,2")
    specs = specs_of(tmp_path, plan, trials)
    found = groups.grouped(specs, 16)
    assert sizes(found) == [8, 4] and all(spec["shares_process"] for spec in found[0])
    precision = [{spec["config"]["precision"] for spec in group} for group in found]
    assert precision == [{"float32", "bfloat16"}, {"tf32"}]
    mixed = [specs[0], specs[4], specs[1]]
    assert groups.leading(mixed, 8) == [specs[0]]  # and nothing behind the second is passed over
    assert len(groups.leading(specs, 3)) == 3


def test_a_search_hands_its_trials_on_in_groups(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tune.engine import Feed

    plan, trials = planned("esteps=1,2,3")
    feed = Feed(4)
    assert feed.suggest("a") is None
    for spec in specs_of(tmp_path, plan, trials):
        feed.put(spec)
    feed.close()
    found = [feed.suggest("b")["trials"] for _ in range(2)]
    assert sizes(found) == [4, 2] and feed.suggest("c") == Feed.FINISHED
    assert [spec["key"] for group in found for spec in group] == [t.key for t in trials]


def group_runner(specs: list[groups.Spec]) -> Any:
    from tune.trainable import GroupRunner

    runner = GroupRunner.__new__(GroupRunner)
    runner.setup({"trials": groups.shared(specs)})
    return runner


def reports(runner: Any) -> list[dict[str, Any]]:
    said = [runner.step()]
    while not said[-1]["done"]:
        said.append(runner.step())
    return [step["report"] for step in said]


@pytest.mark.slow
def test_trials_of_a_group_equal_each_alone_to_the_bit(tmp_path: Path) -> None:
    plan, trials = planned("esteps=1,2")
    said = reports(group_runner(specs_of(tmp_path, plan, trials)))
    ends = {report["trial_key"]: report["state"] for report in said if report["done"]}
    assert ends == {trial.key: "done" for trial in trials}
    for trial in trials:
        list(trainer.train(trial.config, tmp_path / "alone" / trial.key, device="cpu"))
        assert files(ledger.trial_dir(tmp_path, trial.key)) == files(tmp_path / "alone" / trial.key)


def faulty(monkeypatch: pytest.MonkeyPatch, key: str, error: BaseException) -> None:
    """Training as it is, but for one trial, which raises this after its first word."""
    usual = trainer.train

    def train(config: Any, *args: Any, **named: Any) -> Iterator[Any]:
        run = usual(config, *args, **named)
        if config.trial_key == key:
            yield next(run)
            raise error
        yield from run

    monkeypatch.setattr(trainer, "train", train)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("its own"), "failed"),
        (RuntimeError("CUDA out of memory"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device fault"),
    ],
)
def test_what_ends_one_trial_of_a_group_leaves_the_others_alone(
    error: Exception, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trials = planned("esteps=1,2")
    faulty(monkeypatch, trials[1].key, error)
    runner = group_runner(specs_of(tmp_path, plan, trials))
    ends = {r["trial_key"]: r["state"] for r in reports(runner) if r["done"]}
    assert ends.pop(trials[1].key) == state and set(ends.values()) == {"done"}
    recorded = ledger.status(tmp_path, trials[1]).state
    assert recorded == ("failed" if state == "failed" else "stopped")  # else: once more, alone
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    runner.reset_config({"trials": groups.shared(specs_of(tmp_path, plan, trials[:1]))})
    assert exits == ([1] if state == "device fault" else [])
    runner.cleanup()


@pytest.mark.slow
def test_a_fault_of_the_machine_ends_the_process_with_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trials = planned("esteps=1,2", iterations=10_000, eval_every=10_000)
    faulty(monkeypatch, trials[1].key, OSError(errno.EIO, "disk"))
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.01)
    others = set(threading.enumerate())  # a library's, from tests before
    runner = group_runner(specs_of(tmp_path, plan, trials))
    with pytest.raises(OSError):
        reports(runner)
    runner.cleanup()
    assert set(threading.enumerate()) <= others
    for trial in (trials[0], *trials[2:]):
        assert (ledger.trial_dir(tmp_path, trial.key) / run_dir.CHECKPOINT).exists()
        assert ledger.status(tmp_path, trial).state == "stopped"


@pytest.mark.slow
def test_a_stop_asked_for_reaches_every_trial_of_a_group(tmp_path: Path) -> None:
    plan, trials = planned("esteps=1,2", iterations=10_000, eval_every=10_000)
    runner = group_runner(specs_of(tmp_path, plan, trials))
    runner.step()
    (tmp_path / STOP).touch()
    said = reports(runner)
    assert {r["trial_key"] for r in said if r["state"] == "stopped"} == {t.key for t in trials}
    runner.cleanup()


@contextmanager
def local_ray() -> Iterator[Path]:
    """The engine with a Ray of its own, of two cores; yields the folder for what Tune writes."""
    from tune import cluster, engine

    temp_dir = engine.make_temp_dir()
    environment = cluster.environment(cluster.LOCAL, 1, storage=False)
    engine.start(cluster.LOCAL, 2, 1.0, temp_dir, environment)
    results = temp_dir / "results"
    results.mkdir()
    yield results
    engine.shutdown()
    shutil.rmtree(temp_dir)


def said_by(function: Callable[[Path], None], out: Path) -> Any:
    """What the function, called with this folder in a process of its own, prints as JSON."""
    name, module = function.__name__, function.__module__.removeprefix("tests.")
    program = f"from tests.{module} import {name}, Path; {name}(Path({str(out)!r}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def under_ray(out: Path) -> None:
    """A sweep's engine with groups of three, one of which loses its process; prints the events."""
    from tune import engine

    plan, trials = planned("esteps=1,2,3", iterations=60, eval_every=20)
    events: list[tuple[str, str]] = []
    killed: list[int] = []

    def reported(report: dict[str, Any]) -> None:
        events.append((report["trial_key"], report["state"]))
        if report["evaluated"] and not killed:
            killed.append(kill(processes(os.getpid(), *TRIAL)[:1]))

    reporter = engine.Reporter(
        lambda key: events.append((key, "started")),
        lambda key: events.append((key, "again")),
        reported,
        lambda key, cause, text: events.append((key, f"failed {cause} {text}")),
    )
    found = groups.grouped(specs_of(out, plan, trials), 3)
    with local_ray() as results:
        engine.fit(found, {"cpu": 1.0}, None, results, reporter)
    print(json.dumps({"events": events, "killed": killed}))


@pytest.mark.slow
def test_groups_under_ray_killed_in_the_middle_end_as_each_alone(tmp_path: Path) -> None:
    said = said_by(under_ray, tmp_path)
    assert said["killed"] == [1] and any(state == "again" for _, state in said["events"])
    _, trials = planned("esteps=1,2,3", iterations=60, eval_every=20)
    ends = sorted(key for key, state in said["events"] if state == "done")
    assert ends == sorted(trial.key for trial in trials)  # each once
    for trial in trials[::3]:
        list(trainer.train(trial.config, tmp_path / "alone" / trial.key, device="cpu"))
        swept = ledger.trial_dir(tmp_path, trial.key)
        assert files(swept) == files(tmp_path / "alone" / trial.key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0"], "--trials-per-gpu must be between 1 and 64, got '0'"),
        (["many"], "--trials-per-gpu must be between 1 and 64, got 'many'"),
        (["4", "--gpus-per-trial", "0.5"], "--trials-per-gpu and --gpus-per-trial exclude"),
    ],
)
def test_trials_per_gpu_that_make_no_sense_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--grid", "esteps", "--out", str(tmp_path / "out"), "--trials-per-gpu", *words]
    assert ablation.main(argv) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
