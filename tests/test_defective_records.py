"""Records with a defect, all the way to a table: it says so, and never averages unlike things."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from analysis import make_tables
from analysis.output.render import text
from analysis.paper.protocol import gap, published_rows, table1_settings
from analysis.paper.table4 import table4
from analysis.paper.tables import table1, table1_groups
from analysis.records.load import load
from analysis.report.page import report
from analysis.tables.grid import baseline_of, grid_tables
from analysis.tables.groups import groups
from analysis.tables.layout import PAPER, REFERENCE, Table
from mpcc.config import PRESETS
from mpcc.runs.files import sealed
from tests.records import SweepBuilder, table1_changes, table1_sweep

LOW, HIGH = {"prior_lr": 1e-3}, {"prior_lr": 2e-3}
OFFICIAL = {"split": "train", "n_generated": 50_000, "iterations": 75_000}
ROWS = [(1, 2e-4), (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4)]


def grid(*folders: Path) -> list[Table]:
    records = load(folders)
    cells = groups(records)
    return grid_tables(records, cells, "welch", baseline_of(records, cells, None)).tables


def cells_of(table: Table, heading: str, kind: str = "ours") -> list[str]:
    place = [h.text for h in table.headings].index(heading)
    return [row.cells[place].text for row in table.rows if row.kind == kind]


def notes_of(table: Table, row: int, place: int) -> str:
    return " ".join(table.notes[number - 1] for number in table.rows[row].cells[place].notes)


def published_sweep(path: Path, rows=ROWS, **trial: object) -> Table:
    """CIFAR-10 at full size: Table 1 as the paper measured it, but for `trial`."""
    changes = table1_changes(rows)
    sweep = SweepBuilder(path, "cifar10", **OFFICIAL).plan(changes)
    for change in changes:
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.5}, **{"n_images": 50_000} | trial)
    records = load([path])
    return table1(records, table1_groups(groups(records)), "welch")


# -- the reference ---------------------------------------------------------------------------------


def two_data_sets(path: Path) -> SweepBuilder:
    changes = [{"dataset": "digits"}, {"dataset": "mnist"}]
    sweep = SweepBuilder(path).plan(changes, grid="dataset=digits,mnist")
    for change, kmeans, content in zip(changes, (0.79, 0.55), ("f00d", "beef"), strict=True):
        for seed in range(3):
            values = {"acc_majority": 0.6 + seed / 100}
            sweep.trial(change, seed, values, kmeans=kmeans, fingerprint=content)
    return sweep


def test_kmeans_has_a_row_for_each_data_set_and_is_never_averaged_over_them(tmp_path: Path) -> None:
    table = grid(two_data_sets(tmp_path / "s").path)[0]
    rows = [row for row in table.rows if row.kind == REFERENCE]
    assert [(row.cells[0].text, row.cells[1].text) for row in rows] == [
        ("k-means on digits", "79.0"),
        ("k-means on mnist", "55.0"),
    ]


def test_kmeans_of_the_same_name_on_other_images_is_told_apart_by_content(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW, HIGH], (0,))
    for change, kmeans, content in ((LOW, 0.7, "f00d"), (HIGH, 0.5, "beef")):
        sweep.trial(change, 0, {"acc_majority": 0.6}, kmeans=kmeans, fingerprint=content)
    named = cells_of(grid(sweep.path)[0], "eta_p", REFERENCE)
    assert named == ["k-means on digits (content f00d)", "k-means on digits (content beef)"]


def test_page_draws_and_says_the_reference_of_each_data_set(tmp_path: Path) -> None:
    records = load([two_data_sets(tmp_path / "s").path])
    page = report(records, groups(records), [], "welch")
    words = re.sub(r"<[^>]+>", "", page)
    assert "reaches 79.0 % on digits and 55.0 % on mnist" in words
    places = {part.split('"')[0] for part in page.split('<s style="left:')[1:]}
    assert len(places) == 2


# -- the published figures -------------------------------------------------------------------------


def test_as_published_is_compared(tmp_path: Path) -> None:
    table = published_sweep(tmp_path / "s")
    assert not any(row.grey for row in table.rows if row.kind == PAPER)
    assert "Acc −12.0 points, outside their spread" in " ".join(table.notes)


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ({"n_images": 4000}, "4,000 images (paper 50,000)"),
        ({"notes": ["files differ from the official ones"]}, "files differ from the official"),
        ({"iteration": 700}, "iterations reached 700 (paper 75,000)"),
    ],
    ids=["fewer images", "other files", "stopped early"],
)
def test_published_is_never_subtracted_from_what_was_measured_on_other_data(
    tmp_path: Path, defect: dict, words: str
) -> None:
    table = published_sweep(tmp_path / "s", **defect)
    assert all(row.grey for row in table.rows if row.kind == PAPER)
    notes = " ".join(table.notes)
    assert words in notes and "their spread" not in notes


def test_a_row_that_differs_in_its_axis_alone_says_so(tmp_path: Path) -> None:
    rows = [(1, 3e-4), (2, 3e-4), (4, 3e-4), (4, 5e-4), (4, 7e-4)]
    notes = " ".join(published_sweep(tmp_path / "s", rows).notes)
    assert "another protocol (eta_p 3e-4 (paper 2e-4))" in notes and "()" not in notes


def test_gap_needs_no_finished_trial(tmp_path: Path) -> None:
    change = table1_changes(ROWS)[0]
    sweep = SweepBuilder(tmp_path / "s", "cifar10", **OFFICIAL).plan([change])
    (group,) = groups(load([sweep.path]))
    assert gap(group, table1_settings(published_rows("table1")[0]), ["acc_majority"]) == ""


def test_table_4_is_grey_only_where_the_protocol_differs(tmp_path: Path) -> None:
    for n_images, grey in ((70_000, False), (1000, True)):
        path = tmp_path / str(n_images)
        sweep = SweepBuilder(path, "mnist", iterations=PRESETS["mnist"].iterations).plan([{}])
        for seed in range(3):
            sweep.trial({}, seed, {"acc_majority": 0.98 + seed / 1000}, n_images=n_images)
        records = load([path])
        table, _ = table4(records, groups(records))
        models = {row.cells[0].text: row.grey for row in table.rows if row.kind == PAPER}
        assert models["MPCC (five runs)"] is grey and models["DEC"] is True


def test_best_three_of_five_says_of_how_many_it_is(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", "mnist", iterations=100).plan([{}], range(5), grid="seed")
    for seed in range(3):
        sweep.trial({}, seed, {"acc_majority": 0.80 + seed / 100})
    for seed in (3, 4):
        sweep.trial({}, seed, {}, state="diverged", cause="x")
    records = load([sweep.path])
    table, _ = table4(records, groups(records))
    assert table.rows[-1].cells[1].text == "81.0 ± 1.0 (3/5)"
    assert "Only 3 of 5 runs have a value: no choice at all" in notes_of(table, -1, 1)


# -- counts, gaps, reasons -------------------------------------------------------------------------


def test_n_stands_under_the_table_or_in_the_cells_where_it_differs(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW]).plan([HIGH], range(5))
    for change, n in ((LOW, 3), (HIGH, 5)):
        for seed in range(n):
            sweep.trial(change, seed, {"acc_majority": 0.6 + seed / 100})
    table = grid(sweep.path)[0]
    assert cells_of(table, "Acc, %") == ["61.0 ± 1.0 (n=3)", "62.0 ± 1.6 (n=5)"]
    same = grid(table1_sweep(tmp_path / "t").path)[0]
    assert "over n = 3 seeds" in same.measured and "(n=" not in text(same)


def test_finished_trial_without_a_metric_has_its_reason_at_the_cell(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", n_generated=1000).plan([LOW])
    why = {"fid": "Inception weights missing"}
    sweep.trial(LOW, 0, {"acc_majority": 0.6}, unavailable=why)
    for seed in (1, 2):
        sweep.trial(LOW, seed, {"acc_majority": 0.6, "fid": 20.0 + seed})
    table = grid(sweep.path)[0]
    assert cells_of(table, "FID") == ["21.50 ± 0.71 (2/3)"]
    place = [h.text for h in table.headings].index("FID")
    assert notes_of(table, 0, place) == "FID n/a for seed 0: Inception weights missing."


def test_failed_and_out_of_memory_trials_are_told_apart_in_the_notes(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW, HIGH])
    sweep.trial(LOW, 0, {"acc_majority": 0.5})
    sweep.trial(LOW, 1, {}, state="failed", cause="out of memory: 2 GB")
    sweep.trial(LOW, 2, {}, state="failed", cause="code: KeyError")
    for seed in range(3):
        sweep.trial(HIGH, seed, {}, state="failed", cause="out of memory: 2 GB")
    table = grid(sweep.path)[0]
    assert cells_of(table, "Acc, %") == ["50.0 (1/3)", "failed (0/3)"]
    note = notes_of(table, 0, 1)
    assert "seed 1 failed (out of memory: 2 GB); seed 2 failed (code: KeyError)" in note
    assert "1 of 6 trials done (5 failed)" in table.title


def test_absent_accuracy_is_not_guessed_at(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW], (0,))
    sweep.trial(LOW, 0, {"mse": 0.1, "acc_hungarian": 0.5})
    records = load([sweep.path])
    cells = groups(records)
    from analysis.tables.columns import column
    from analysis.tables.shared import absent_reason

    reason = absent_reason(cells[0], column("acc_majority"))
    assert reason == "no finished trial recorded it; images without labels have none"


def test_cell_that_stopped_early_says_so_at_its_row(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW, HIGH])
    for change, reached in ((LOW, 1500), (HIGH, 700)):
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.6 + seed / 100}, iteration=reached)
    table = grid(sweep.path)[0]
    assert notes_of(table, 1, 0) == "Reached 700 of 1,500 iterations." and not notes_of(table, 0, 0)
    assert any(line.startswith("1,500 and 700 iterations") for line in table.made)


def test_code_versions_that_differ_between_cells_name_their_cells(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW, HIGH])
    for change, code in ((LOW, "aaa"), (HIGH, "bbb")):
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.6 + seed / 100}, code=code)
    (line,) = [line for line in grid(sweep.path)[0].made if "code " in line]
    assert "code aaa (eta_p 1e-3) and bbb (eta_p 2e-3)." in line


def test_sweeps_under_other_base_settings_have_a_column_for_what_differs(tmp_path: Path) -> None:
    folders = []
    for name, iterations in (("a", 1500), ("b", 3000)):
        sweep = SweepBuilder(tmp_path / name, iterations=iterations).plan([LOW, HIGH])
        folders.append(sweep.path)
        for change in (LOW, HIGH):
            for seed in range(3):
                sweep.trial(change, seed, {"acc_majority": 0.6 + seed / 100})
    table = grid(*folders)[0]
    assert [h.text for h in table.headings][:2] == ["eta_p", "iterations"]
    assert cells_of(table, "iterations") == ["1500", "3000"] * 2


def test_metric_of_generated_images_says_count_and_split(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", n_generated=5000, split="train").plan([LOW])
    for seed in range(3):
        sweep.trial(LOW, seed, {"acc_majority": 0.6, "fid": 20.0 + seed})
    lines = " ".join(grid(sweep.path)[0].made)
    assert "FID: Fréchet distance" in lines and "(fid@5k-train)" in lines
    arguments = ["--runs", str(sweep.path), "--table", "grid", "--format", "csv"]
    assert make_tables.main(arguments) == 0
    rows = (sweep.path / "tables" / "grid.csv").read_text().splitlines()
    assert any(",fid,fid@5k-train," in row for row in rows)
    assert any(",acc_majority,acc_majority," in row for row in rows)


# -- duplicates ------------------------------------------------------------------------------------


def test_conflicting_duplicates_leave_their_cell_and_are_named_below(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        sweep = SweepBuilder(tmp_path / name).plan([LOW])
        folders.append(sweep.path)
        for seed in range(3):
            sweep.trial(LOW, seed, {"acc_majority": 0.6 + seed / 100})
    sweep.trial(LOW, 1, {}, state="diverged", cause="loss/encoder is not finite")
    table = grid(*folders)[0]
    assert cells_of(table, "Acc, %") == ["61.0 ± 1.4 (2/3)"]
    assert "seed 1 conflicting" in notes_of(table, 0, 1)
    assert "records that disagree (done and diverged): none is used" in " ".join(table.lines)


def delivered(path: Path) -> str:
    """Table 1's rows with one seed more diverged, delivered to MLflow on SQLite; its address."""
    from tune.store.folder import Store
    from tune.tracking import sync
    from tune.tracking.uri import default_uri

    sweep = table1_sweep(path, (0, 1))
    sweep.trial(table1_changes()[3], 1, {}, state="diverged", cause="loss/encoder is not finite")
    plan, uri = Store(path).read_plan(), default_uri(path)
    assert plan
    sync(Store(path), uri, plan)
    return uri


@pytest.mark.slow
def test_tables_from_mlflow_alone_are_those_of_the_deleted_records(tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "digits"
    uri = delivered(path)
    formats = ["--table", "all", "--format", "md,csv,tex,html", "--no-pictures"]
    assert make_tables.main(["--runs", str(path), *formats, "--out", str(tmp_path / "a")]) == 0
    shutil.rmtree(path / "trials")
    (path / "sweep.json").unlink()
    assert make_tables.main(["--mlflow", uri, *formats, "--out", str(tmp_path / "b")]) == 0
    for name in ("table1.md", "grid.md", "grid-differences.csv", "grid.csv", "table1.tex"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    assert "diverged" in (tmp_path / "b" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("differing", [False, True], ids=["same", "other result"])
def test_trial_that_mlflow_has_twice_counts_once_or_not_at_all_in_a_table(
    tmp_path: Path, differing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    path = tmp_path / "digits"
    uri = delivered(path)
    client = MlflowClient(tracking_uri=uri)
    done = load([path]).trials.iloc[0]
    run = client.get_run(done["mlflow_run"])
    twin = client.create_run(run.info.experiment_id, tags=dict(run.data.tags)).info.run_id
    for name in ("config.json", "provenance.json", "result.json"):
        file = path / done["run_dir"] / name
        if differing and name == "result.json":
            result = json.loads(file.read_text())
            file = tmp_path / name
            other = sealed(result | {"state": "diverged", "cause": "x"})
            file.write_text(json.dumps(other))
        client.log_artifact(twin, str(file))
    command = ["--mlflow", uri, "--table", "grid", "--format", "md", "--out", str(tmp_path / "o")]
    assert make_tables.main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    if differing:
        assert "(done and diverged): none is used" in printed and "conflicting" in printed
    else:
        assert "records that agree: it counts once" in printed and "conflicting" not in printed
