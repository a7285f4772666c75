"""`python analysis/make_tables.py` from any folder: what it prints, writes and refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import make_tables
from mpcc.runs.run_dir import read_provenance, read_result, write_provenance
from results import claims
from tests.records import SweepBuilder, table1_changes, table1_sweep

SCRIPT = Path(make_tables.__file__)


def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_prints_table_1_and_writes_every_format_from_any_folder(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    done = call("--runs", sweep.path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Table 1 on digits: 15 of 15 trials done")
    assert "Written to digits/tables" in done.stdout
    assert set(contents(sweep.path / "tables")) == {
        "table1.md",
        "table1-how.md",
        "table1.csv",
        "table1-trials.csv",
        "table1.tex",
        "table1-provenance.json",
    }
    assert "\x1b" not in done.stdout


def test_style_full_says_under_each_table_how_its_numbers_were_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    words = "1,500 iterations; 1,797 images (content f00d); code c0de."
    for style, said in (("compact", False), ("full", True)):
        assert make_tables.main(["--runs", str(sweep.path), "--style", style]) == 0
        assert (words in capsys.readouterr().out) is said
        assert (words in (sweep.path / "tables" / "table1.md").read_text()) is said
        assert words in (sweep.path / "tables" / "table1-how.md").read_text()


def test_latest_sweep_under_runs_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table1_sweep(tmp_path / "runs" / "digits")
    monkeypatch.setattr(make_tables, "ROOT", tmp_path)
    assert make_tables.main([]) == 0
    assert capsys.readouterr().out.startswith("Table 1 on digits")


@pytest.mark.parametrize(
    ("option", "table"),
    [
        (["--baseline", "esteps=1"], "1"),
        *((["--test", "paired"], name) for name in ("2", "3a", "4")),
    ],
)
def test_what_a_table_does_not_compare_is_refused(
    option: list[str], table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--runs", str(table1_sweep(tmp_path / "digits").path), *option]
    assert make_tables.main([*command, "--table", table]) == 2
    assert f"{option[0]} does nothing in table{table}; " in capsys.readouterr().err
    assert make_tables.main([*command, "--table", "grid"]) == 0


def test_check_fails_when_any_record_changes(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    command = ["--runs", str(sweep.path)]
    assert make_tables.main(command) == 0
    before = contents(sweep.path / "tables")
    metrics = sweep.folder(table1_changes()[0], 0) / "metrics.jsonl"
    metrics.write_text('{"iteration": 250, "acc_majority": 0.1}\n' + metrics.read_text())
    assert make_tables.main([*command, "--check"]) == 1
    assert contents(sweep.path / "tables") == before


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> SweepBuilder:
    """A sweep with every table in every format."""
    sweep = table1_sweep(tmp_path_factory.mktemp("everything") / "digits")
    assert make_tables.main(["--runs", str(sweep.path), *EVERYTHING]) == 0
    return sweep


EVERYTHING = ["--table", "all", "--format", "md,csv,tex,html,fig", "--no-pictures"]


def test_every_table_and_format_in_one_command_twice_the_same(everything: SweepBuilder) -> None:
    first = contents(everything.path / "tables")
    expected = {"report.html", "effect-esteps.pdf", "effect-eta_p.png", "heatmap.pdf"}
    expected |= {"grid-differences.csv", "grid-effects.tex", "table1.md"}
    assert expected <= first.keys()
    for path in (everything.path / "tables").iterdir():
        path.unlink()
    assert make_tables.main(["--runs", str(everything.path), *EVERYTHING]) == 0
    assert contents(everything.path / "tables") == first
    assert make_tables.main(["--runs", str(everything.path), *EVERYTHING, "--check"]) == 0


def test_check_finds_stale_files_of_formats_and_tables_that_were_not_asked_for(
    everything: SweepBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--runs", str(everything.path)]
    assert make_tables.main([*command, "--check"]) == 0
    for name in ("metrics.jsonl", "result.json", "provenance.json", "config.json"):
        file = everything.folder(table1_changes()[0], 0) / name
        before = file.read_bytes()
        file.write_bytes(b"" if name == "metrics.jsonl" else before + b"\n")
        assert make_tables.main([*command, "--format", "md"]) == 0
        capsys.readouterr()
        assert make_tables.main([*command, "--format", "md", "--check"]) == 1
        printed = capsys.readouterr().out
        assert all(f"{n}-provenance.json" in printed for n in ("grid", "report", "figures"))
        if name == "metrics.jsonl":  # The trial is damaged: its value has gone from the table.
            assert "table1.csv, table1-trials.csv, table1.tex" in printed
        file.write_bytes(before)
        assert make_tables.main(command) == 0
    assert make_tables.main([*command, "--check"]) == 0


def test_check_finds_that_a_cell_of_a_table_not_asked_for_has_a_trial_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    command = ["--runs", str(sweep.path), "--format", "md"]
    for table in ("1", "grid"):
        assert make_tables.main([*command, "--table", table]) == 0
    sweep.plan([{"prior_lr": 9e-3}], grid="other").trial({"prior_lr": 9e-3}, 0, {"mse": 0.1})
    assert make_tables.main([*command, "--table", "grid"]) == 0
    assert make_tables.main([*command, "--table", "grid", "--check"]) == 0  # no row of Table 1
    sweep.trial(table1_changes()[0], 3, {"acc_majority": 0.6})
    assert make_tables.main([*command, "--table", "grid"]) == 0
    capsys.readouterr()
    assert make_tables.main([*command, "--table", "grid", "--check"]) == 1
    assert "table1-provenance.json" in capsys.readouterr().out


def test_folder_of_another_name_gives_the_same_bytes_even_with_a_trial_that_was_not_planned(
    tmp_path: Path,
) -> None:
    made = []
    for name in ("digits", "renamed"):
        sweep = table1_sweep(tmp_path / name)
        sweep.trial(table1_changes()[0], 7, {"acc_majority": 0.6})
        assert make_tables.main(["--runs", str(sweep.path), "--format", "md,csv,tex,html"]) == 0
        made.append(contents(sweep.path / "tables"))
    assert made[0] == made[1]


def test_fresh_seeds_are_in_every_file_and_a_change_of_theirs_makes_all_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, change = table1_sweep(tmp_path / "digits"), table1_changes()[4]
    sweep.cells[4]["confirm_seeds"] = [1000, 1001]
    sweep.write_plan()
    path = sweep.trial(change, 1000, {"acc_majority": 0.75})
    sweep.trial(change, 1001, {}, state="diverged", cause="boom")
    command = ["--runs", str(sweep.path), "--format", "md,csv,tex,html"]
    assert make_tables.main(command) == 0
    assert "Confirmation on fresh seeds: 1 of 2 trials done" in capsys.readouterr().out
    tables = sweep.path / "tables"
    for name in ("table1-trials.csv", "table1-provenance.json", "report.html"):
        assert path.name in (tables / name).read_text(), name
    assert ",fresh," in (tables / "table1.csv").read_text()
    assert "75.0 (1/2)" in (tables / "table1-confirm.md").read_text()
    page = (tables / "report.html").read_text()
    assert page.count("<caption><span>Confirmation on fresh seeds") == 1
    assert "boom" in page.split('id="failures"')[1].split("<h2")[0]
    assert make_tables.main([*command, "--check"]) == 0
    assert make_tables.main(["--runs", str(sweep.path), "--explain", "esteps=4,eta_p=5e-3"]) == 0
    printed = capsys.readouterr().out
    assert "fresh seeds, to confirm the choice: 1 of 2 trials done" in printed and "boom" in printed
    (path / "provenance.json").write_text("{}")
    assert make_tables.main([*command, "--check"]) == 1


def test_key_of_a_cell_in_parts_names_the_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, change = table1_sweep(tmp_path / "digits"), table1_changes()[0]
    sweep.trial(change, 2, {"acc_majority": 0.9}, code="other")
    key = sweep.config(change, 0).cell_key
    command = ["--runs", str(sweep.path)]
    assert make_tables.main([*command, "--explain", key]) == 0
    assert "code c0de" in (printed := capsys.readouterr().out) and "code other" in printed
    assert make_tables.main([*command, "--table", "grid", "--baseline", key]) == 0
    assert "Differences from esteps 1, eta_p 1e-3 [code c0de]" in capsys.readouterr().out


def test_setting_that_is_none_can_be_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "digits", n_generated=None).plan(
        [{"n_generated": 1000}], grid="n_generated"
    )
    for seed in range(3):
        sweep.trial({"n_generated": 1000}, seed, {"acc_majority": 0.6, "fid": 9.0 + seed})
    command = ["--runs", str(sweep.path)]
    assert make_tables.main([*command, "--explain", "n_generated=none,esteps=1"]) == 0
    assert capsys.readouterr().out.startswith("esteps 1, eta_p 1e-3, n_generated none: cell")
    assert make_tables.main([*command, "--table", "1"]) == 0
    printed = capsys.readouterr().out
    assert "no images were generated" in printed
    assert "Inception weights missing" not in printed


def test_cells_of_another_grid_are_printed_as_a_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([{"prior_entropy_weight": 0.0}], grid="lambda_p")
    sweep.trial({"prior_entropy_weight": 0.0}, 0, {"acc_majority": 0.7})
    assert make_tables.main(["--runs", str(sweep.path)]) == 0
    assert "lambda_p on digits: 1 of 3 trials done (2 planned)" in capsys.readouterr().out


def test_companion_file_names_test_code_and_records_of_every_trial(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    make_tables.main(["--runs", str(sweep.path), "--format", "md"])
    companion = json.loads((sweep.path / "tables" / "table1-provenance.json").read_text())
    assert companion["statistics"]["ddof"] == 1 and companion["statistics"]["test"] == "welch"
    assert len(companion["trials"]) == 15
    assert all(len(trial["records"]) == 12 for trial in companion["trials"].values())
    assert str(tmp_path) not in json.dumps(companion)


def test_report_beside_a_table_of_ones_own_has_the_grid(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits", seeds=(0, 1))
    command = ["--runs", str(sweep.path), "--metrics", "nmi", "--format", "html", "--no-pictures"]
    assert make_tables.main([*command, "--baseline", "esteps=1"]) == 0
    page = (sweep.path / "tables" / "report.html").read_text()
    assert "Differences from esteps 1" in page and "What mattered?" in page


BAD = {
    "unknown option": ["--tabel", "1"],
    "unknown table": ["--table", "9"],
    "unknown format": ["--format", "mdd"],
    "empty format": ["--format", ","],
    "no such folder": ["--runs", "nowhere"],
    "empty folder": ["--runs", "."],
    "two sources": ["--runs", ".", "--mlflow", "sqlite:///x.db"],
    "sweep of a folder": ["--runs", ".", "--sweep", "digits"],
    "no such data base": ["--mlflow", "sqlite:///nowhere.db"],
    "no such server kind": ["--mlflow", "ftp://ada:secret@x"],
    "no driver of a database": ["--mlflow", "mysql+none://ada:secret@x/db"],
    "no archive": ["--export", "supplement.pdf"],
    "archive and folder": ["--export", "supplement.zip", "--out", "tables"],
    "archive and check": ["--export", "supplement.zip", "--check"],
    "anonymous tables": ["--anonymous"],
    "pictures without a page": ["--no-pictures"],
    "explain and write": ["--explain", "esteps=1", "--out", "x"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_usage_error_is_one_line_and_writes_nothing(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # of argparse
        assert make_tables.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("make_tables: ") and error.count("\n") == 1
    assert "secret" not in error
    assert list(tmp_path.iterdir()) == []


def test_explain_shows_every_trial_of_one_cell_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    change = table1_changes()[1]
    sweep.trial(change, 1, {"acc_majority": 0.5}, run_id="run7")
    sweep.trial(change, 2, {}, state="failed", cause="out of memory: 2 GB")
    assert make_tables.main(["--runs", str(sweep.path), "--explain", "esteps=2"]) == 0
    printed = capsys.readouterr().out
    assert str(sweep.folder(change, 1)) + "; MLflow run run7" in printed
    assert "failed: out of memory: 2 GB" in printed and "50.0" in printed and "c0de" in printed
    for idle in (["--table", "grid"], ["--test", "paired"], ["--style", "full"]):
        words = ["--runs", str(sweep.path), "--explain", "esteps=2", *idle]
        assert make_tables.main(words) == 2
        assert f"{idle[0]} does nothing with --explain" in capsys.readouterr().err
    assert not (sweep.path / "tables").exists()


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("esteps=9", "no cell has"),
        ("esteps=4", "3 cells have"),
        ("estep=4", "did you mean"),
        ("x", "no cell"),
    ],
)
def test_explain_of_no_or_several_cells_is_refused(
    cell: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    for option in (["--explain"], ["--table", "grid", "--baseline"]):
        command = ["--runs", str(sweep.path), *option, cell]
        assert make_tables.main(command) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_out_names_another_folder_and_leaves_the_sweep_alone(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    before = {path for path in sweep.path.rglob("*")}
    out = tmp_path / "new" / "place"
    assert make_tables.main(["--runs", str(sweep.path), "--out", str(out)]) == 0
    assert (out / "table1.md").exists()
    assert {path for path in sweep.path.rglob("*")} == before


def unpacked(archive: Path, place: Path) -> Path:
    """The folder of the only sweep in an archive."""
    shutil.unpack_archive(archive, place)
    (folder,) = (path for path in place.iterdir() if path.is_dir())
    return folder


def test_export_packs_records_and_tables_without_models_and_check_agrees(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "digits")
    path = sweep.trial(table1_changes()[1], 1, {"acc_majority": 0.5}, run_id="run7")
    for name in ("checkpoint.pt", "checkpoint-previous.pt", "model.mpcc", "clusters.csv.gz"):
        (path / name).write_bytes(b"large")
    (path / "samples.png").write_bytes(b"picture")
    (sweep.path / "driver.json").write_text("{}")
    server = {"tracking_uri": "postgresql://ada:geheim@server/db", "runs": {path.name: "run7"}}
    (sweep.path / "mlflow.json").write_text(json.dumps(server))
    options = ["--table", "all", "--format", "md,csv,tex,html"]
    archive = tmp_path / "supplement.zip"
    assert make_tables.main(["--runs", str(sweep.path), *options, "--export", str(archive)]) == 0
    first = archive.read_bytes()
    assert not (sweep.path / "tables").exists()
    assert make_tables.main(["--runs", str(sweep.path), *options, "--export", str(archive)]) == 0
    assert archive.read_bytes() == first

    folder = unpacked(archive, tmp_path / "elsewhere")
    assert make_tables.main(["--runs", str(folder), *options, "--check"]) == 0
    readme = (folder.parent / "README.md").read_text()
    assert f"--runs digits {' '.join(options)} --check" in readme
    made = contents(folder / "tables")
    assert make_tables.main(["--runs", str(sweep.path), *options]) == 0
    here = contents(sweep.path / "tables")
    page = {"report.html": here["report.html"]}  # Shows clusters and links to files left behind.
    assert made | page == here
    names = {file.name for file in folder.rglob("*") if file.is_file()} - made.keys()
    records = {"config.json", "provenance.json", "metrics.jsonl", "result.json", "samples.png"}
    assert names == records | {"sweep.json", "mlflow.json"}
    assert "geheim" not in (folder / "mlflow.json").read_text()


def test_the_command_in_an_archive_of_several_sweeps_checks_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table1_sweep(Path("last"), seeds=(0, 1))
    table1_sweep(Path("first"), seeds=(5,))
    assert make_tables.main(["--runs", "last", "first", "--export", "all.zip"]) == 0
    shutil.unpack_archive("all.zip", "place")
    monkeypatch.chdir("place")
    (words,) = re.findall(r"make_tables.py (.*)", Path("README.md").read_text())
    assert words == "--runs last first --check"
    assert make_tables.main(words.split()) == 0


def test_anonymous_export_holds_no_name_of_a_person_or_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "ada lovelace"
    names = ("ada lovelace", "adalovelace", "engine-7", "node-of-ada", "analytical", "lab.example")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "adalovelace")
    monkeypatch.setattr("socket.gethostname", lambda: "engine-7.lab.example")
    (home / "analytical").mkdir(parents=True)
    monkeypatch.chdir(home / "analytical")
    sweep = table1_sweep(Path("sweep-of-ada"))
    change = table1_changes()[1]
    cause = f"{home}/data/x.bin (adalovelace on engine-7) is missing at s3://analytical/of/ada"
    path = sweep.trial(change, 1, {}, state="failed", cause=cause)
    reasons = {"fid": "no weights in ~/analytical/w.pth; scp ada@lab.example:w.pth"}
    sweep.trial(change, 2, {"acc_majority": 0.5}, unavailable=reasons)
    provenance = {"code": "c0de", "device": "cpu", "machine": "node-of-ada", "data": {}}
    provenance["data"] = {"fingerprint": "f00d", "n_images": 1797, "notes": [f"from {home}/d"]}
    write_provenance(path, provenance)

    command = ["--runs", "sweep-of-ada", "--format", "md,csv,tex,html", "--export", "s.zip"]
    assert make_tables.main([*command, "--anonymous"]) == 0
    folder = unpacked(Path("s.zip"), Path("out"))
    assert make_tables.main(["--runs", str(folder), *command[2:4], "--check"]) == 0
    files = [file for file in [Path("s.zip"), *Path("out").rglob("*")] if file.is_file()]
    texts = {str(file): file.read_bytes().lower() for file in files}
    found = [
        (name, file) for file, text in texts.items() for name in names if name.encode() in text
    ]
    assert found == [] and str(home) not in str(texts)
    result = read_result(folder / "trials" / path.name)
    assert result and "the seal is made anew" in result["anonymous"]
    assert result["cause"] == "PATH (USER on machine-1) is missing at ADDRESS"
    assert read_provenance(folder / "trials" / path.name)["machine"] == "machine-3"

    (path / "result.json").write_text((path / "result.json").read_text().replace("1500", "1501"))
    capsys.readouterr()
    assert make_tables.main([*command, "--anonymous"]) == 2
    assert "result.json is damaged (wrong hash)" in capsys.readouterr().err


KEPT = sorted(file.parent for file in (SCRIPT.parents[1] / "results").glob("*/sweep.json"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_tables_of_the_kept_results_are_what_their_records_give(folder: Path) -> None:
    assert make_tables.main(["--runs", str(folder), "--format", "md,csv", "--check"]) == 0


def test_the_claims_in_the_readme_of_the_results_are_what_the_records_give() -> None:
    effects = claims.effects()
    text = (claims.HERE / "README.md").read_text()
    assert [effect.row for effect in effects if effect.row not in text] == []
    drawn = claims.figure(effects)
    assert sum(len(ax.get_yticks()) for ax in drawn.axes) == len(effects) > 0


def test_table_1_of_other_cells_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes()[:3])
    assert make_tables.main(["--runs", str(sweep.path), "--table", "1"]) == 2
    assert "--table grid" in capsys.readouterr().err
    assert not (sweep.path / "tables").exists()


def test_table_1_imports_neither_torch_nor_ray_nor_mlflow_and_costs_at_most_three_seconds(
    tmp_path: Path,
) -> None:
    """CPU seconds, which other work on the machine does not change much."""
    sweep = table1_sweep(tmp_path / "digits")
    heavy = {"torch", "ray", "mlflow", "matplotlib", "statsmodels", "scipy.stats"}
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parents[1])!r})\n"
        "from analysis import make_tables\n"
        f"assert make_tables.main(['--runs', {str(sweep.path)!r}]) == 0\n"
        f"found = {heavy!r} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system <= 3
