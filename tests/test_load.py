"""Sweep folders on disk become one row per planned trial, nothing lost or invented."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from analysis import make_tables
from analysis.records.folders import LoadError, latest_sweep
from analysis.records.frame import CONFLICT, DAMAGED, PLANNED, RUNNING, STOPPED, Records
from analysis.records.load import load
from analysis.records.load_mlflow import fetch
from analysis.tables.groups import groups
from mpcc.runs.files import sealed
from tests.records import SweepBuilder, metrics_of, table1_changes, table1_sweep
from tune.store.folder import Store
from tune.store.lock import sweep_lock

CHANGE = {"prior_lr": 1e-3}


def one_cell(path: Path, seeds: tuple[int, ...] = (0, 1)) -> SweepBuilder:
    return SweepBuilder(path).plan([CHANGE], seeds, grid="eta_p=1e-3")


def metrics(accuracy: float = 0.7) -> dict[str, float]:
    return metrics_of(accuracy, np.random.default_rng(0))


def test_every_planned_trial_is_a_row_with_its_settings_and_metrics(tmp_path: Path) -> None:
    table1_sweep(tmp_path / "digits")
    records = load([tmp_path / "digits"])
    assert len(records.trials) == 15 and set(records.trials["state"]) == {"done"}
    assert records.axes == ("n_encoder_steps", "prior_lr")
    assert records.trials["n_encoder_steps"].tolist() == [1] * 3 + [2] * 3 + [4] * 9
    assert "acc_majority" in records.metrics and "iteration" not in records.metrics


def test_trial_without_a_result_is_running_only_while_a_driver_has_it(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s")
    curve = [{"iteration": 250, "acc_majority": 0.3}]
    path = sweep.trial(CHANGE, 0, metrics(), state=None, curve=curve)
    row = load([sweep.path]).trials.iloc[0]
    assert (row["state"], row["iteration"], row["acc_majority"]) == (STOPPED, 250, 0.3)
    with sweep_lock(Store(sweep.path)) as lock:
        lock.renew([path.name])
        end = time.monotonic() + 10
        while load([sweep.path]).trials.iloc[0]["state"] != RUNNING:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_diverged_and_failed_trials_keep_their_cause(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s")
    sweep.trial(CHANGE, 0, {}, state="diverged", cause="loss/encoder is not finite", iteration=3)
    sweep.trial(CHANGE, 1, {}, state="failed", cause="out of memory: 2 GB", iteration=0)
    frame = load([sweep.path]).trials
    assert frame["state"].tolist() == ["diverged", "failed"]
    assert frame["cause"].tolist() == ["loss/encoder is not finite", "out of memory: 2 GB"]


def test_damaged_record_is_named_and_has_no_value(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    path = sweep.trial(CHANGE, 0, metrics())
    (path / "result.json").write_text('{"state": "do')
    row = load([sweep.path]).trials.iloc[0]
    assert row["state"] == DAMAGED
    assert "result.json" in row["cause"] and str(tmp_path) not in row["cause"]


def test_infinite_and_undefined_values_are_kept_apart(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    sweep.trial(CHANGE, 0, {"fid": float("inf"), "mse": float("nan"), "acc_majority": 0.5})
    row = load([sweep.path]).trials.iloc[0]
    assert row["fid"] == math.inf and math.isnan(row["mse"]) and row["undefined"] == "mse"


def test_one_trial_in_two_folders_counts_once_if_the_records_agree(tmp_path: Path) -> None:
    table1_sweep(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    records = load([tmp_path / "a", tmp_path / "b"])
    assert len(records.trials) == 15
    assert len(records.notes) == 15 and "counts once" in records.notes[0]
    key = one_cell(tmp_path / "b", (0,)).trial(table1_changes()[0], 0, state=None).name
    notes = load([tmp_path / name for name in "ab"]).notes
    assert f"trial {key} has 2 records (done and stopped): only one that is done is used" in notes


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"metrics": metrics(0.8)}, "disagree: none is used"),
        ({"state": "diverged", "cause": "x"}, "disagree (done and diverged): none is used"),
    ],
    ids=["another number", "another end"],
)
def test_one_trial_with_two_different_results_is_used_by_neither(
    tmp_path: Path, other: dict, said: str
) -> None:
    one_cell(tmp_path / "a", (0,)).trial(CHANGE, 0, metrics())
    one_cell(tmp_path / "b", (0,)).trial(CHANGE, 0, **other)
    records = load([tmp_path / "a", tmp_path / "b"])
    assert records.trials["state"].tolist() == [CONFLICT]
    assert said in records.notes[0]


def test_curve_of_a_trial_that_is_there_twice_is_there_once(tmp_path: Path) -> None:
    curve = [{"iteration": i, "acc_majority": i / 1000} for i in (250, 500)]
    for name in ("a", "b"):
        one_cell(tmp_path / name, (0,)).trial(CHANGE, 0, metrics(), curve=curve)
    frame = load([tmp_path / "a", tmp_path / "b"], curves=True).evaluations
    assert frame["iteration"].tolist() == [250, 500]


def test_settings_that_are_none_stay_none_and_whole_numbers_whole(tmp_path: Path) -> None:
    changes = [{"n_generated": n} for n in (5000, 20_000, None)]
    sweep = SweepBuilder(tmp_path / "s").plan(changes, (0,), grid="n_generated")
    sweep.trial(changes[0], 0, metrics())
    values = [g.settings["n_generated"] for g in groups(load([sweep.path]))]
    assert repr(values) == "[None, 5000, 20000]"


def test_settings_in_which_sweeps_differ_are_axes(tmp_path: Path) -> None:
    for name, iterations in (("a", 1500), ("b", 3000)):
        sweep = SweepBuilder(tmp_path / name, iterations=iterations).plan([CHANGE], (0,))
        sweep.trial(CHANGE, 0, metrics())
    records = load([tmp_path / "a", tmp_path / "b"])
    assert records.axes == ("prior_lr", "iterations")
    labels = [g.label(records.axes) for g in groups(records)]
    assert labels == ["eta_p 1e-3, iterations 1500", "eta_p 1e-3, iterations 3000"]


def test_sweeps_of_two_presets_are_told_apart_by_few_columns_and_the_rest_is_noted(
    tmp_path: Path,
) -> None:
    for name in ("digits", "cifar10"):
        SweepBuilder(tmp_path / name, name, iterations=100).plan([CHANGE], (0,))
    records = load([tmp_path / "digits", tmp_path / "cifar10"])
    assert records.axes == ("prior_lr", "dataset")
    assert "the sweeps differ also in" in records.notes[0] and "image_size" in records.notes[0]


def test_run_directory_is_found_in_the_sweep_that_the_trial_is_of(tmp_path: Path) -> None:
    paths = {}
    for name, iterations in (("a", 1500), ("b", 3000)):
        sweep = SweepBuilder(tmp_path / name, iterations=iterations).plan([CHANGE], (0,))
        paths[iterations] = sweep.trial(CHANGE, 0, metrics())
    records = load([tmp_path / "a", tmp_path / "b"])
    found = {g.settings["iterations"]: records.run_dir(g.trials[0]) for g in groups(records)}
    assert found == paths


def test_provenance_is_part_of_the_digest(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    path = sweep.trial(CHANGE, 0, metrics())
    before = load([sweep.path]).trials["digest"].tolist()
    file = path / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"libraries": {"torch": "9.9"}}))
    assert load([sweep.path]).trials["digest"].tolist() != before


def test_a_pipe_in_the_place_of_a_record_is_damage_and_not_waited_for(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    file = sweep.trial(CHANGE, 0, metrics()) / "metrics.jsonl"
    file.unlink()
    os.mkfifo(file)
    (trial,) = load([sweep.path]).trials.to_dict("records")
    assert trial["state"] == "damaged" and "is no file" in trial["cause"]


def test_name_of_the_folder_is_in_no_note(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "folder-a", (0,))
    for seed in (0, 5):
        sweep.trial(CHANGE, seed, metrics())
    assert "folder-a" not in " ".join(load([sweep.path]).notes)
    (sweep.path / "sweep.json").unlink()
    loose = load([sweep.path])
    assert "folder-a" not in " ".join(loose.notes) + loose.sweeps[0].name


def test_seed_that_took_part_in_the_choice_is_not_fresh(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s")
    sweep.cells[0]["confirm_seeds"] = [1, 1000]
    sweep.write_plan()
    frame = load([sweep.path]).trials
    assert dict(zip(frame["seed"], frame["confirm"], strict=True)) == {
        0: False,
        1: False,
        1000: True,
    }


def test_done_record_stands_for_the_same_trial_that_is_only_planned_elsewhere(
    tmp_path: Path,
) -> None:
    one_cell(tmp_path / "a")
    one_cell(tmp_path / "b").trial(CHANGE, 0, metrics())
    records = load([tmp_path / "a", tmp_path / "b"])
    assert records.trials["state"].tolist() == ["done", PLANNED]
    assert records.notes == ()


def test_run_directories_without_a_plan_are_loaded_with_a_note(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s")
    for seed in (0, 1):
        sweep.trial(CHANGE, seed, metrics())
    (sweep.path / "sweep.json").unlink()
    records = load([sweep.path])
    assert records.trials["seed"].tolist() == [0, 1]
    assert "no plan" in records.notes[0]


def test_trial_outside_the_plan_is_shown_and_noted(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    sweep.trial(CHANGE, 0, metrics())
    sweep.trial(CHANGE, 5, metrics())
    records = load([sweep.path])
    assert records.trials["seed"].tolist() == [0, 5]
    assert "not in the plan" in records.notes[0]


def test_trials_that_have_gone_on_to_more_iterations_are_left_aside(tmp_path: Path) -> None:
    sweep = one_cell(tmp_path / "s", (0,))
    sweep.trial(CHANGE, 0, metrics())
    sweep.trial(CHANGE | {"iterations": 700}, 0, metrics())
    assert len(load([sweep.path]).trials) == 2
    plan = json.loads((sweep.path / "sweep.json").read_text())
    (sweep.path / "sweep.json").write_text(json.dumps(plan | {"earlier_iterations": [700]}))
    records = load([sweep.path])
    assert records.trials["iterations"].tolist() == [sweep.base.iterations]
    assert not records.notes


def test_latest_sweep_is_where_something_happened_last(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(("new", "old")):
        sweep = one_cell(tmp_path / "runs" / name, (0,))
        os.utime(sweep.path / "sweep.json", (1e9 - age, 1e9 - age))
    assert latest_sweep(tmp_path).name == "new"
    with pytest.raises(LoadError, match="no sweep under"):
        latest_sweep(tmp_path / "runs")


@pytest.mark.parametrize("content", ["[]", "{", '{"schema": 7, "cells": []}'])
def test_plan_that_is_not_ours_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError) as error:
        load([tmp_path])
    assert "sweep.json" in str(error.value) and "\n" not in str(error.value)


def test_rows_are_ordered_by_settings_and_seed_not_by_plan(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(reversed(table1_changes()), (2, 0, 1))
    frame = load([sweep.path]).trials
    assert frame["prior_lr"].iloc[-1] == 5e-3
    assert frame["seed"].tolist() == [0, 1, 2] * 5


TABLES = ["--table", "all", "--format", "md,csv,tex,html", "--no-pictures", "--out"]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, str, Path]:
    """A sweep with a diverged and an unfinished trial, as the driver delivers it, and its tables;
    then deleted."""
    from tune.tracking.delivery import sync
    from tune.tracking.uri import default_uri

    changes, path = table1_changes(), tmp_path_factory.mktemp("mlflow") / "digits"
    sweep = SweepBuilder(path).plan(changes, (0, 1))
    for change in changes[:3]:
        sweep.trial(change, 0, metrics())
    sweep.trial(changes[0], 1, {}, state="diverged", cause="loss/encoder is not finite")
    curve = [{"iteration": 250, "acc_majority": 0.25}, {"iteration": 500, "acc_majority": 0.5}]
    sweep.trial(changes[1], 1, {}, state=None, curve=curve)
    plan, uri, tables = Store(path).read_plan(), default_uri(path), path / "made"
    assert plan
    sync(Store(path), uri, plan)
    records = load([path])
    assert make_tables.main(["--runs", str(path), *TABLES, str(tables)]) == 0
    shutil.rmtree(path / "trials")
    (path / "sweep.json").unlink()
    return records, uri, tables


@pytest.mark.slow
def test_mlflow_alone_gives_the_frame_and_the_tables_that_the_records_give(
    delivered: tuple[Records, str, Path], tmp_path: Path
) -> None:
    import mlflow

    before, uri, tables = delivered
    own = mlflow.get_tracking_uri()
    after = load(fetch(uri, tmp_path))
    assert mlflow.get_tracking_uri() == own  # A notebook goes on with its own MLflow.
    kept = [name for name in before.trials if name != "digest"]
    # Of metrics.jsonl MLflow holds the numbers, not the bytes: the digest may differ.
    assert after.trials[kept].equals(before.trials[kept])
    for sweep, code in (("digits", 0), ("abc", 0), ("none", 2)):  # By preset, by its identity.
        words = ["--mlflow", uri, "--sweep", sweep, *TABLES, str(tmp_path / "made")]
        assert make_tables.main(words) == code
    for name in ("table1.md", "grid.md", "grid.csv", "table1.tex"):
        assert (tmp_path / "made" / name).read_bytes() == (tables / name).read_bytes(), name
    assert "diverged" in (tmp_path / "made" / "report.html").read_text()
    words = ["--mlflow", uri, "--sweep", "abc", "--export", str(tmp_path / "all.zip")]
    assert make_tables.main(words) == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as packed:
        (rows,) = [n for n in packed.namelist() if f"{before.trials['trial_key'][0]}/metrics" in n]
        assert "acc_majority" in packed.read(rows).decode()  # Without --format html, too.


@pytest.mark.slow
def test_mlflow_without_its_files_still_gives_every_number(
    delivered: tuple[Records, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, uri, _ = delivered
    monkeypatch.setattr("analysis.records.load_mlflow._artifact", lambda *_: None)
    (folder,) = fetch(uri, tmp_path, "digits", curves=True)
    after = load([folder], curves=True)
    ended = before.trials[before.trials["state"] != PLANNED]
    for name in ("trial_key", "state", "cause", "seed", "prior_lr"):
        assert after.trials[name].tolist() == ended[name].tolist()
    for name in ("acc_majority", "mse"):
        assert after.trials[name].tolist() == pytest.approx(ended[name].tolist(), nan_ok=True)
    assert 0.25 in after.evaluations["acc_majority"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("differing", [False, True], ids=["same", "other result"])
def test_trial_that_mlflow_has_twice_counts_once_or_where_they_differ_not_at_all(
    delivered: tuple[Records, str, Path], tmp_path: Path, differing: bool
) -> None:
    from mlflow.tracking import MlflowClient

    before, uri, _ = delivered
    client = MlflowClient(tracking_uri=uri)
    done = before.trials[before.trials["state"] == "done"].iloc[0]
    run = client.get_run(done["mlflow_run"])
    twin = client.create_run(run.info.experiment_id, tags=dict(run.data.tags)).info.run_id
    for name in ("config.json", "provenance.json", "result.json"):
        file = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        if differing and name == "result.json":
            other = json.loads(file.read_text()) | {"state": "diverged", "cause": "x"}
            file.write_text(json.dumps(sealed(other)))
        client.log_artifact(twin, str(file))
    folders = fetch(uri, tmp_path / "laid")
    client.delete_run(twin)
    after, notes = load(folders), " ".join(load(folders).notes)
    states = after.trials["state"].tolist()
    assert len(folders) == 2 and states.count(CONFLICT) == differing
    if differing:
        assert "(done and diverged): none is used" in notes
    else:
        assert "counts once" in notes
        assert after.trials["acc_majority"].equals(before.trials["acc_majority"])


@pytest.mark.slow
def test_mlflow_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/no.db", "ftp://x", "http://127.0.0.1:9"):
        with pytest.raises(LoadError) as error:
            fetch(uri, tmp_path)
        assert "\n" not in str(error.value)
