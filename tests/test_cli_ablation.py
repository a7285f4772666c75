"""`python tune/ablation.py`: what it answers before anything is trained."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import make_tables
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tune import ablation, run
from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.planning import planned
from tune.store.folder import Store
from tune.store.lock import sweep_lock

ROOT = Path(ablation.__file__).resolve().parents[1]
TINY = ["--preset", "tiny"]
pytestmark = pytest.mark.usefixtures("nothing_is_measured")


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = ablation.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_plan(out: Path, *argv: str) -> Plan:
    """Plan without running, as the driver does before it trains."""
    store = Store(out)
    options = ablation.parse([*TINY, "--out", str(out), *argv])
    plan, _ = planned(options, store, store.read_plan())
    store.write_plan(plan)
    return plan


def finish(out: Path, trial: Trial, state: str = "done", cause: str | None = None) -> None:
    path = run_dir.open_run(Store(out).trial_dir(trial.key), trial.config)
    metrics = {"acc_majority": 0.75, "saturation_excess": 0.5, "n_clusters_collapsed": 1}
    run_dir.append_metrics(path, {"iteration": 4, "seconds": 1.0} | metrics)
    result = {"state": state, "cause": cause, "iteration": 4, "metrics": metrics}
    run_dir.write_json(path / run_dir.RESULT, result)


BAD = [
    (["--grid", "esteps", "--seed", "3"], "did you mean --seeds?"),
    (["--grid", "eta_p=0,001"], "write 0.001, not 0,001"),
    (["--grid", "esteps,eta_q"], "unknown field 'eta_q'; did you mean 'eta_p'?"),
    (["--grid", "esteps=1", "2"], "'2' in --grid is no axis; values follow each other by commas"),
    (["--grid", "esteps", "--preset", "MNIST"], "unknown preset 'MNIST'; did you mean 'mnist'?"),
    (["--grid"], "argument --grid: expected at least one argument"),
    (["--grid", "esteps=1", "esteps=2"], "axis esteps is given twice"),
    (["--grid", "K=10,1798"], "n_clusters=1798 is more than the 1797 images of digits"),
    (["--grid", "K=10,1798", "--dry-run"], "n_clusters=1798 is more than the 1797 images"),
    (["--grid", "conditional=true", "--set", "K=9", "--dry-run"], "set n_clusters=10, not 9"),
    (
        ["--grid", "image_size=16", "--set", "n_generated=9"],
        "n_generated must be at least n_is_splits",
    ),
    (["--grid", "esteps", "--preset", "digit"], "did you mean 'digits'?"),
    (["--grid", "esteps", "--dataset", "omniglt"], "did you mean 'omniglot'?"),
    (["--table", "5"], "unknown table '5'; available: 1, 2, 3a, 3b, 4"),
    (["--table", "1", "--scale", "labtop"], "unknown scale 'labtop'; did you mean 'laptop'?"),
    (["--table", "1", "--grid", "esteps"], "--table and --grid exclude each other"),
    (["--table", "4", "--preset", "mnist"], "--table and --preset exclude each other"),
    (["--scale", "laptop"], "--scale is of --table"),
    (["--drop", "esteps=3"], "--drop: nothing is planned in"),
    (["--grid", "esteps", "--drop", "esteps=3"], "--drop and --grid exclude each other"),
    (["--confirm", "--only", "esteps=1"], "--confirm chooses the cells itself"),
    (["--grid", "esteps", "--next", "--max-concurrent", "2"], "--next and --max-concurrent"),
    (["--grid", "esteps", "--set", "width"], "expected field=value, got 'width'"),
    (["--grid", "esteps", "--set", "width=many"], "width must be a whole number, got 'many'"),
    (["--grid", "esteps", "--set", "width=0"], "width must be between 1 and 1024, got 0"),
    (["--grid", "esteps", "--set", "C=3", "--set", "width=3"], "width is given twice"),
    (["--grid", "esteps", "--set", "esteps=3"], "esteps is both set and varied"),
    (["--grid", "esteps", "--set", "seed=3"], "give the seeds as --seeds 3,"),
    (["--grid", "esteps", "--seeds", "0"], "--seeds must be between 1 and"),
    (["--grid", "esteps", "--seeds", "a"], "--seeds must be a count or a list like 0,3,7"),
    (["--grid", "seed=1,2", "--seeds", "2"], "the seeds are given by both"),
    (["--grid", "esteps", "--iterations", "none"], "iterations must be a whole number"),
    (["--grid", "esteps", "--iterations", "5", "--set", "iterations=5"], "by both --iterations"),
    (["--grid", "esteps", "--only", "esteps=3"], "no cell is 'esteps=3'; there are: esteps=1"),
    (["--grid", "esteps=1", "--skip", "esteps=1"], "leave no cell"),
    (["--grid", "esteps", "--max-concurrent", "1.5"], "--max-concurrent: must be a whole number"),
    (["--grid", "esteps", "--cpus-per-trial", "nan"], "--cpus-per-trial: must be a number from"),
    (["--grid", "esteps", "--address", "here"], "--address: must be local, auto or HOST:PORT"),
    (["--grd", "esteps"], "unrecognized arguments: --grd esteps"),
    ([], "nothing is planned in"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = [] if {"--preset", "--dataset", "--table"} & set(argv) else TINY
    code, out, err = call(capsys, *preset, "--out", str(tmp_path / "sweep"), *argv)
    assert code == 2
    assert err.startswith("ablation.py: ") and err.count("\n") == 1
    assert message in err
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["MPCC_DATA_DIR", "MPCC_CACHE_DIR"])
def test_a_folder_of_an_unknown_user_in_the_environment_is_one_line(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)
    monkeypatch.setenv(name, "~no-such-user/x")
    code, _, err = call(
        capsys, "--dataset", "mnist", "--grid", "esteps", "--out", str(tmp_path / "sweep")
    )
    assert code == 2 and err.count("\n") == 1 and f"{name}: '~no-such-user/x'" in err
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_told_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)
    code, _, err = call(
        capsys, "--dataset", "mnist", "--grid", "esteps", "--out", str(tmp_path / "sweep")
    )
    assert code == 2 and err.count("\n") == 1 and "mnist" in err
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_on_the_disk_is_told_with_both_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "sweep")
    code, _, err = call(capsys, *TINY, "--set", "width=1024", "--grid", "seed", "--seeds", "300",
                        "--out", out)  # fmt: skip
    assert code == 2 and "TB on the disk" in err and "are free" in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_not_ours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in call(capsys, *TINY, "--grid", "esteps", "--out", str(file))[2]
    assert "holds other files" in call(capsys, *TINY, "--grid", "esteps", "--out", str(tmp_path))[2]
    (tmp_path / "sweep.json").write_text("{")
    code, _, err = call(capsys, *TINY, "--grid", "esteps", "--out", str(tmp_path))
    assert code == 2 and "sweep.json" in err and err.count("\n") == 1


def test_a_dry_run_says_what_is_done_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, "--grid", "esteps=1,2", "--seeds", "2")
    finish(tmp_path, plan.trials()[0])
    code, text, _ = call(
        capsys, *TINY, "--grid", "esteps=1,2,4", "--seeds", "2", "--out", str(tmp_path), "--dry-run"
    )
    assert code == 0 and "3 cells, 6 trials, 5 to run" in text
    assert text.count("done") == 1


def test_what_is_new_in_a_folder_that_grows_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, "--grid", "esteps=1,2", "--seeds", "2")
    ask = [*TINY, "--out", str(tmp_path), "--dry-run", "--grid"]
    _, text, _ = call(capsys, *ask, "esteps=1,2,4", "--seeds", "2")
    assert text.startswith(
        f"{tmp_path} holds 2 cells, 4 trials; 2 trials are new: esteps=4, seeds 0, 1\n"
    )
    assert "are new" not in call(capsys, *ask, "esteps=1,2", "--seeds", "2")[1]


def test_trials_are_taken_out_of_a_plan_and_put_back_without_touching_their_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, "--grid", "esteps=1,2,4", "--seeds", "2")
    for trial in plan.trials():
        finish(tmp_path, trial)
    records = {file: file.read_bytes() for file in (tmp_path / "trials").rglob("*.*")}
    drop = ["--drop", "E_steps 2", "--drop", "esteps=4,seed=1"]
    before = (tmp_path / "sweep.json").read_bytes()
    code, text, _ = call(capsys, "--out", str(tmp_path), *drop, "--dry-run")
    assert code == 0 and "2 cells, 3 trials, 0 to run" in text
    assert "taken out: esteps=2, seed=0; esteps=2, seed=1; esteps=4, seed=1" in text
    assert (tmp_path / "sweep.json").read_bytes() == before
    smaller = write_plan(tmp_path, *drop)
    assert [trial.text for trial in smaller.trials()] == [
        "esteps=1, seed=0", "esteps=1, seed=1", "esteps=4, seed=0",
    ]  # fmt: skip
    status = call(capsys, "--out", str(tmp_path), "--status")[1]
    assert "trials out of the plan by --drop: 3; their records stay" in status
    assert "3 trials: 3 done" in status
    assert make_tables.main(["--runs", str(tmp_path), "--table", "grid"]) == 0
    table = capsys.readouterr().out
    assert "3 of 3 trials done" in table and "by --drop and left out: 3" in table
    again = ["--grid", "esteps=1,2,4", "--seeds", "2", "--dry-run"]
    text = call(capsys, *TINY, "--out", str(tmp_path), *again)[1]
    assert "3 cells, 6 trials, 0 to run" in text and "--drop" not in text
    assert records == {file: file.read_bytes() for file in records}
    for choice, said in (("esteps=3", "no planned trial has that"), ("seed=0", None)):
        code, _, err = call(capsys, "--out", str(tmp_path), "--drop", choice, "--dry-run")
        assert (code, said in err if said else err) == ((2, True) if said else (0, ""))
    everything = call(capsys, "--out", str(tmp_path), "--drop", "K=10", "--dry-run")
    assert everything[0] == 2 and "leaves no trial" in everything[2]


def test_an_option_without_effect_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = [*TINY, "--grid", "esteps=1", "--out", str(tmp_path / "s"), "--dry-run", "--data-dir"]
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"")
    code, text, _ = call(capsys, *ask, str(tmp_path), "--inception-weights", str(weights))
    assert code == 0 and "note: --data-dir: without effect, the digits come with" in text
    assert "note: --inception-weights: without effect, no images are generated" in text
    assert "note:" not in call(capsys, *ask[:-1])[1]


def test_a_dry_run_counts_what_retry_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path, write_plan(tmp_path, "--grid", "esteps=1").trials()[0], "failed", "x")
    ask = ["--out", str(tmp_path), "--dry-run"]
    assert "3 trials, 2 to run" in call(capsys, *ask)[1]
    assert "3 trials, 3 to run" in call(capsys, *ask, "--retry", "failed")[1]


def test_status_shows_every_state_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, "--grid", "esteps=1,2", "--seeds", "2")
    done, diverged, failed, _ = plan.trials()
    finish(tmp_path, done)
    finish(tmp_path, diverged, "diverged", "loss/encoder is not finite at iteration 3")
    finish(tmp_path, failed, "failed", "out of memory: 3 GB")
    code, text, err = call(capsys, "--out", str(tmp_path), "--status")
    assert code == 3 and err == ""
    assert "4 trials: 1 planned, 1 done, 1 diverged, 1 failed" in text
    assert "done          4 of 4  Acc 75.0 %, saturated, collapsed\n" in text
    assert "loss/encoder is not finite at iteration 3" in text and "out of memory: 3 GB" in text


def test_other_base_settings_are_refused_and_a_larger_grid_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, "--grid", "esteps=1,2", "--seeds", "2")
    same = [*TINY, "--out", str(tmp_path), "--dry-run"]
    code, _, err = call(capsys, *same, "--grid", "esteps=1,2", "--set", "eta=3e-3")
    assert code == 2 and "now 3e-3" in err and "eta=" in err and err.count("\n") == 1
    code, _, err = call(capsys, *same, "--grid", "esteps=1,2", "--iterations", "9")
    assert code == 2 and "iterations=4, now 9" in err
    assert call(capsys, *same, "--grid", "lambda_p", "--seeds", "5")[0] == 0
    assert "2 cells, 4 trials" in call(capsys, *same)[1]
    assert "2 cells, 10 trials" in call(capsys, *same, "--seeds", "5")[1]


def test_a_folder_of_an_earlier_preset_goes_on_with_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = PRESETS["tiny"]
    earlier = now.override(n_encoder_steps=8, network_lr=1e-4, prior_lr=1e-3, n_clusters=7)
    table1 = ["--grid", "esteps,eta_p", "--out", str(tmp_path)]
    monkeypatch.setitem(PRESETS, "tiny", earlier)
    plan = write_plan(tmp_path, *table1[:2])
    keys = {trial.key for trial in plan.trials()}
    older = replace(plan, code_files={**plan.code_files, "mpcc/config/presets.py": "older"})
    Store(tmp_path).write_plan(older)
    for trial in plan.trials():
        finish(tmp_path, trial)
    monkeypatch.setitem(PRESETS, "tiny", now)
    # All has ended: nothing is trained, so that other code mixes nothing.
    code, text, err = call(capsys, *table1, "--dry-run")
    assert code == 0 and err == "" and "5 cells, 15 trials, 0 to run" in text
    first, rest = text.split("\n", 1)
    assert "goes on with the settings that it was begun with, not those of preset tiny: " in first
    assert f"K=7, now {now.n_clusters}" in first and all(key in rest for key in keys)
    # More of it is trained by changed code only where that is accepted, and under its settings.
    code, _, err = call(capsys, *table1, "--seeds", "4", "--dry-run")
    assert code == 2 and "presets.py changed since" in err and err.count("\n") == 1
    accepted = ablation.parse([*table1, "--seeds", "4", "--accept-changed-code"])
    grown, trials = planned(accepted, Store(tmp_path), older)
    assert grown.base == earlier and len(trials) == 20 and keys < {t.key for t in trials}
    assert {t.config.n_clusters for t in trials} == {7}
    # What is typed is compared.
    code, _, err = call(capsys, *TINY, *table1, "--dry-run")
    assert code == 2 and f"K=7, now {now.n_clusters}" in err


def test_the_status_of_what_a_search_gave_up_is_as_good_as_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, "--grid", "esteps=1", "--seeds", "2")
    first, second = plan.trials()
    finish(tmp_path, first)
    assert call(capsys, "--out", str(tmp_path), "--status")[0] == 3
    finish(tmp_path, second, "pruned", "worse than the median")
    assert call(capsys, "--out", str(tmp_path), "--status")[0] == 0


def test_a_released_folder_has_no_driver_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, "--grid", "esteps=1")
    release = ["--out", str(tmp_path), "--release"]
    with sweep_lock(Store(tmp_path)):
        code, out, _ = call(capsys, *release)
        assert code == 0 and f"is free; it was held by process {os.getpid()} on" in out
    code, out, _ = call(capsys, *release)
    assert code == 0 and "no driver holds" in out


def test_a_plan_that_another_command_has_just_changed_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(tmp_path, "--grid", "esteps=1")
    before = (tmp_path / "sweep.json").read_bytes()

    def reachable(*_: object, **__: object) -> None:
        write_plan(tmp_path, "--grid", "esteps=2")

    monkeypatch.setattr(run, "check_reachable", reachable)
    code, _, err = call(capsys, "--out", str(tmp_path), "--seeds", "5")
    assert code == 2 and "another command has just changed the plan" in err
    after = json.loads((tmp_path / "sweep.json").read_text())
    assert len(after["cells"]) == 2 and (tmp_path / "sweep.json").read_bytes() != before
    assert [cell["seeds"] for cell in after["cells"]] == [[0, 1, 2]] * 2


def test_settings_stand_behind_one_set_or_behind_several() -> None:
    one = ablation.parse(["--set", "width=8", "eta_p=1e-3", "--grid", "esteps=1"])
    several = ablation.parse(["--set", "width=8", "--set", "eta_p=1e-3", "--grid", "esteps=1"])
    assert one == several and list(one.changes) == ["width=8", "eta_p=1e-3"]
