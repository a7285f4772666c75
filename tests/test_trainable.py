"""`MPCCTrainable` in a Tuner of the user's own: samples, early stopping, restoring after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training.trainer import train
from tune.engine import environment as ray_variables
from tune.engine.trainable import OwnRun, config_of

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import json, os, sys
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from tune.engine.trainable import MPCCTrainable

storage = sys.argv[1]
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
path = os.path.join(storage, "own")
if tune.Tuner.can_restore(path):
    tuner = tune.Tuner.restore(path, trainable=MPCCTrainable)
else:
    tuner = tune.Tuner(
        MPCCTrainable,
        param_space={
            "preset": "tiny", "iterations": 40, "eval_every": 10, "seed": 0,
            "prior_lr": tune.loguniform(1e-3, 1e-1),
        },
        tune_config=tune.TuneConfig(
            metric="cluster_information", mode="max", num_samples=6, max_concurrent_trials=2,
            scheduler=ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2),
            search_alg=OptunaSearch(seed=1),
        ),
        run_config=tune.RunConfig(
            name="own", storage_path=storage, verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
        ),
    )
found = []
for result in tuner.fit():
    found.append({
        "config": result.config, "metrics": {k: v for k, v in result.metrics.items()
        if isinstance(v, (int, float, str)) and k != "date"}, "error": str(result.error or ""),
    })
print("RESULTS " + json.dumps(found, default=str))
"""


def environment() -> dict[str, str]:
    """That of a user's shell: without what our engine has set in this process for its own runs."""
    ours = {*ray_variables.ALWAYS, *ray_variables.LOCAL, *ray_variables.CLUSTER, "RAY_AUTH_TOKEN"}
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "PYTHONPATH": str(ROOT),
        "TUNE_GLOBAL_CHECKPOINT_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }


def finished(storage: Path) -> dict[str, list[int]]:
    """Folder of each Tune trial that has reported its end -> the iterations of its results.

    What was reported right before a kill Tune may ask for again: the last one can stand there
    twice.
    """
    found = {}
    for file in storage.glob("own/*/result.json"):
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        if rows and rows[-1]["done"]:
            found[file.parent.name] = [row["iteration"] for row in rows]
            if found[file.parent.name][-2:] == [rows[-1]["iteration"]] * 2:
                del found[file.parent.name][-1]
    return found


@pytest.mark.slow
def test_a_tuner_of_ones_own_stops_early_and_is_restored_after_a_kill(tmp_path: Path) -> None:
    script, storage = tmp_path / "own.py", tmp_path / "results"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(storage)]
    first = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not finished(storage) and time.monotonic() < end:
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    before = finished(storage)
    assert before
    time.sleep(1)  # Tune saves its own state at its next step.
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    time.sleep(5)  # Ray's processes end with their driver.

    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    line = next(x for x in second.stdout.splitlines() if x.startswith("RESULTS "))
    results = json.loads(line.removeprefix("RESULTS "))
    assert len(results) == 6 and not any(result["error"] for result in results), second.stderr
    after = finished(storage)
    assert {name: after[name] for name in before} == before  # none was trained again
    iterations = [result["metrics"]["iteration"] for result in results]
    assert min(iterations) < 40 <= max(iterations)  # ASHA stopped one, and one ran to its end

    best = max(results, key=lambda result: result["metrics"]["iteration"])
    out = tmp_path / "alone"
    list(train(config_of(best["config"]), out, device="cpu"))
    (row,) = [r for r in run_dir.read_metrics(out) if r["iteration"] == 40]
    for name, value in row.items():
        if name != "seconds":
            assert best["metrics"][name] == value, name


def test_the_config_of_a_tuner_is_a_preset_and_fields() -> None:
    config = config_of({"preset": "tiny", "prior_lr": 0.01, "seed": 3})
    assert config == PRESETS["tiny"].override(prior_lr=0.01, seed=3)
    with pytest.raises(ValueError, match="prior_lrr"):
        config_of({"preset": "tiny", "prior_lrr": 0.01})


def test_a_saved_trial_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    config = PRESETS["tiny"].override(iterations=6, eval_every=2)
    whole, part, rest = (OwnRun(config) for _ in range(3))
    expected = [whole.step() for _ in range(3)]
    found = [part.step()]
    part.save(tmp_path)
    found.append(part.step())
    assert not found[-1]["done"] and expected[-1]["done"]
    rest.load(tmp_path)
    found[1:] = [rest.step(), rest.step()]
    for run in (whole, part, rest):
        run.release()
    for a, b in zip(found, expected, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }


def test_population_based_training_is_refused_in_one_line(tmp_path: Path) -> None:
    config = PRESETS["tiny"].override(iterations=6, eval_every=2)
    run, other = OwnRun(config), OwnRun(config.override(prior_lr=0.5))
    run.step()
    run.save(tmp_path)
    with pytest.raises(ValueError, match="prior_lr=.*population-based training is not supported"):
        other.load(tmp_path)
    run.release()
    other.release()
