"""A record is that of the trial which it names, whatever its folder is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import make_tables
from analysis.records.frame import DAMAGED, PLANNED
from analysis.records.load import load
from benchmarks.fault_tools import exchange
from mpcc.runs.run_dir import write_metrics
from tests.records import SweepBuilder

LOW, HIGH = {"prior_lr": 1e-3}, {"prior_lr": 2e-3}


def two_cells(path: Path) -> SweepBuilder:
    """Two cells of two seeds whose accuracies are far apart."""
    sweep = SweepBuilder(path).plan([LOW, HIGH], (0, 1), grid="eta_p=1e-3,2e-3")
    for change, accuracy in ((LOW, 0.5), (HIGH, 0.9)):
        for seed in (0, 1):
            sweep.trial(change, seed, {"acc_majority": accuracy + seed / 100})
    return sweep


def unseal(path: Path, name: str) -> None:
    record = json.loads((path / name).read_text())
    kept = {k: v for k, v in record.items() if k not in ("seal", "schema")}
    (path / name).write_text(json.dumps(kept))


def test_exchanged_folders_are_left_out_and_the_table_and_the_check_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = two_cells(tmp_path / "s")
    low, high = sweep.folder(LOW, 0), sweep.folder(HIGH, 0)
    command = ["--runs", str(sweep.path)]
    assert make_tables.main(command) == 0
    exchange(low, high)
    assert make_tables.main([*command, "--check"]) == 1
    words = f"trials/{low.name}/config.json is of trial {high.name}, not {low.name}: left out"
    assert f"left out: {words}" in capsys.readouterr().out
    assert make_tables.main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert words in printed and "2 of 4 trials done (2 damaged)" in printed
    assert "51.0 (1/2)" in printed and "91.0 (1/2)" in printed and "70." not in printed


def test_two_results_that_were_exchanged_are_left_out(tmp_path: Path) -> None:
    sweep = two_cells(tmp_path / "s")
    low, high = sweep.folder(LOW, 0), sweep.folder(HIGH, 0)
    for name in ("result.json", "metrics.jsonl"):
        exchange(low / name, high / name)
    frame = load([sweep.path]).trials
    assert frame["state"].tolist() == [DAMAGED, "done"] * 2
    assert f"result.json is of trial {high.name}" in frame["cause"][0]
    (sweep.path / "sweep.json").unlink()
    assert load([sweep.path]).trials["state"].tolist() == [DAMAGED, "done"] * 2


def test_a_folder_of_another_name_is_joined_to_the_trial_that_its_record_names(
    tmp_path: Path,
) -> None:
    sweep = two_cells(tmp_path / "s")
    before = load([sweep.path])
    folder = sweep.folder(LOW, 0)
    folder.rename(folder.with_name("renamed"))
    after = load([sweep.path])
    assert after.trials["acc_majority"].equals(before.trials["acc_majority"])
    assert after.notes == before.notes == ()


@pytest.mark.parametrize("rows", ["same", "other"])
def test_a_result_whose_seal_was_taken_off_is_left_out(tmp_path: Path, rows: str) -> None:
    sweep = two_cells(tmp_path / "s")
    folder = sweep.folder(LOW, 0)
    unseal(folder, "result.json")
    if rows == "other":
        write_metrics(folder, [{"iteration": 1500, "acc_majority": 0.99}])
    frame = load([sweep.path]).trials
    assert frame["state"].tolist() == [DAMAGED, "done", "done", "done"]
    assert frame["cause"][0].endswith("result.json has lost its seal: left out")
    assert frame["acc_majority"].isna().tolist() == [True, False, False, False]


def test_records_of_a_version_before_seals_count_and_say_what_they_are(tmp_path: Path) -> None:
    sweep = two_cells(tmp_path / "s")
    for change in (LOW, HIGH):
        for name in ("result.json", "provenance.json"):
            unseal(sweep.folder(change, 0), name)
    records = load([sweep.path])
    assert set(records.trials["state"]) == {"done"}
    assert records.notes == ("2 of the results are of an earlier version, without a seal",)
    write_metrics(sweep.folder(LOW, 0), [{"iteration": 1500, "acc_majority": 0.99}])
    frame = load([sweep.path]).trials
    assert frame["state"].tolist() == [DAMAGED, "done", "done", "done"]
    assert "the last row of metrics.jsonl differ in acc_majority: left out" in frame["cause"][0]


def test_an_unfinished_record_of_another_trial_is_left_out(tmp_path: Path) -> None:
    sweep = two_cells(tmp_path / "s")
    low = sweep.trial(LOW, 0, {"acc_majority": 0.5}, state=None)
    exchange(low, sweep.trial(HIGH, 0, {"acc_majority": 0.9}, state=None))
    assert load([sweep.path]).trials["state"].tolist() == [DAMAGED, "done"] * 2


def test_an_empty_folder_says_nothing_and_its_trial_has_stopped_before_its_start(
    tmp_path: Path,
) -> None:
    sweep = two_cells(tmp_path / "s").plan([{"prior_lr": 3e-3}], (0, 1))
    sweep.folder({"prior_lr": 3e-3}, 0).mkdir()
    assert load([sweep.path]).trials["state"].tolist()[-2:] == ["stopped", PLANNED]
