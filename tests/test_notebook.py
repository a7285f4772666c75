"""`from analysis import load, summarise` gives the tables' numbers to a pandas user."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis import load, make_tables, summarise
from analysis.tables.columns import GRID, column
from analysis.tables.pivot import field_name
from mpcc.config import ALIASES, DEFAULTS, full_name, parse_assignment, preset, value_text
from mpcc.config.fields import SPELLINGS
from tests.records import SweepBuilder, filled, grid, table1_changes, table1_sweep
from tune.plan.cells import Cell, chosen
from tune.plan.grid import parse_grid
from tune.suggest.space import parse_space

ROOT = Path(__file__).resolve().parents[1]
LOW, HIGH = {"prior_lr": 1e-3}, {"prior_lr": 2e-3}


def test_the_page_runs_line_by_line(tmp_path: Path) -> None:
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "docs" / "tables-in-a-notebook.md").read_text(), re.S
    )
    assert code
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 10
    table1_sweep(tmp_path / "runs" / "digits")
    names: dict[str, object] = {}
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        shown = [exec(line, names) if "=" in line.split("#")[0].split("(")[0] or "import" in line
                 else eval(line.split("  #")[0], names) for line in lines]  # fmt: skip
    finally:
        os.chdir(before)
    frames = [one for one in shown if isinstance(one, pd.DataFrame)]
    assert len(frames) == 3 and not any(frame.empty for frame in frames)
    wide = names["wide"]
    assert isinstance(wide, pd.DataFrame) and wide.index.name == "n_encoder_steps"


def test_the_figures_are_those_of_the_table(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    sweep.trial(table1_changes()[1], 2, {}, state="diverged", cause="x")
    values = grid(sweep.path).tables[0]
    made = summarise(load(sweep.path))
    assert [row.cells[0].text for row in values.rows[:-1]] == [str(n) for n, _ in made.index]
    metrics = list(dict.fromkeys(made.columns.get_level_values("metric")))
    assert metrics == [m for m in GRID if column(m).heading in [h.text for h in values.headings]]
    for i, (_, own) in enumerate(made.iterrows()):
        for j, metric in enumerate(metrics):
            spec, figures = column(metric), own[metric]
            text = f"{spec.shown(figures['mean'])} ± {spec.shown(figures['std'])}"
            if figures["n"] < figures["planned"]:
                text += f" ({int(figures['n'])}/{int(figures['planned'])})"
            assert values.rows[i].cells[2 + j].text == text


def test_the_interval_is_students(tmp_path: Path) -> None:
    from scipy.stats import t

    sweep = filled(tmp_path / "s", [(LOW, (0.60, 0.62, 0.67))])
    own = summarise(load(sweep.path))["acc_majority"].iloc[0]
    expected = t.interval(0.95, 2, 0.63, own["std"] / math.sqrt(3))
    assert (own["low"], own["high"]) == pytest.approx(expected)
    assert own["std"] == pytest.approx(pd.Series([0.60, 0.62, 0.67]).std())


def test_rows_and_columns_are_any_fields_and_empty_places_have_no_seeds(tmp_path: Path) -> None:
    trials = load(table1_sweep(tmp_path / "s").path)
    wide = summarise(trials, metrics=["nmi"], rows=["λ_p", "E_steps"], columns=["η_p"])
    assert wide.index.names == ["prior_entropy_weight", "n_encoder_steps"]
    assert wide["nmi"].columns.get_level_values(0).unique().tolist() == [1e-3, 2e-3, 5e-3]
    empty = wide["nmi", 5e-3].loc[(0.01, 1)]
    assert (empty["n"], empty["planned"]) == (0, 0) and math.isnan(empty["mean"])


def test_fields_that_do_not_tell_the_cells_apart_are_refused(tmp_path: Path) -> None:
    trials = load(table1_sweep(tmp_path / "s").path)
    with pytest.raises(ValueError, match="which differ in eta_p: add it"):
        summarise(trials, rows=["esteps"])
    with pytest.raises(ValueError, match="did you mean 'acc_majority'"):
        summarise(trials, metrics=["acc_majorit"])
    with pytest.raises(ValueError, match="did you mean 'eta_p'"):
        summarise(trials, rows=["etap"])


def test_unlike_trials_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW, HIGH], (0, 1, 2))
    for change in (LOW, HIGH):
        for seed in range(3):
            code = "other" if change is LOW and seed == 2 else "c0de"
            sweep.trial(change, seed, {"acc_majority": 0.6}, code=code)
    made = summarise(load(sweep.path))
    assert made.index.tolist() == [(1e-3, "code c0de"), (1e-3, "code other"), (2e-3, "")]
    assert made["acc_majority"]["n"].tolist() == [2, 1, 3]
    pooled = summarise(load(sweep.path), pool_code=True)
    assert pooled["acc_majority"]["n"].tolist() == [3, 3]


def test_fresh_seeds_are_apart(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW], (0, 1))
    sweep.cells[0]["confirm_seeds"] = [7]
    sweep.write_plan()
    for seed, value in ((0, 0.6), (1, 0.62), (7, 0.5)):
        sweep.trial(LOW, seed, {"acc_majority": value})
    trials = load(sweep.path)
    assert summarise(trials)["acc_majority"]["mean"].tolist() == [pytest.approx(0.61)]
    assert summarise(trials, fresh=True)["acc_majority"]["mean"].tolist() == [0.5]


# -- the command line ------------------------------------------------------------------------------


def made(sweep: SweepBuilder, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert make_tables.main(["--runs", str(sweep.path), *options]) == 0
    return capsys.readouterr().out


def test_a_table_of_ones_own_has_the_metrics_rows_and_columns_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    words = ("--metrics", "acc_hungarian,nmi,ari", "--rows", "esteps", "--columns", "eta_p")
    printed = made(sweep, capsys, *words)
    assert re.search(r"esteps  metric +eta_p 1e-3 +eta_p 2e-3 +eta_p 5e-3\n", printed)
    wide = summarise(load(sweep.path), ["nmi"], ["esteps"], ["eta_p"])["nmi", 5e-3].loc[4]
    (line,) = [li for li in printed.splitlines() if re.match(r" +4  NMI", li)]
    assert line.endswith(f"{wide['mean']:.3f} ± {wide['std']:.3f}*")
    assert "Not measured, and left out: ARI: no finished trial recorded it" in printed
    tables = sweep.path / "tables"
    assert r"$\eta_p=5\times10^{-3}$" in (tables / "layout.tex").read_text()
    assert make_tables.main(["--runs", str(sweep.path), *words, "--check"]) == 0


def two_sets(path: Path) -> SweepBuilder:
    """One cell on each of two data sets."""
    sets = [{"dataset": name} for name in ("digits", "mnist")]
    sweep = SweepBuilder(path).plan(sets, (0, 1), grid="dataset=digits,mnist")
    for change, content in zip(sets, ("f00d", "beef"), strict=True):
        sweep.fill(change, [{"nmi": 0.5}, {"nmi": 0.6}], fingerprint=content)
    return sweep


def test_columns_may_be_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = made(two_sets(tmp_path / "s"), capsys, "--metrics", "nmi", "--columns", "dataset")
    row = r"base settings  0.550 ± 0.071  0.550 ± 0.071\n"
    assert re.search(rf"cell +digits +mnist\n─+\n{row}", printed)
    file = tmp_path / "others.csv"
    file.write_text(OTHERS, encoding="utf-8-sig")  # As Excel writes it.
    words = ("--metrics", "nmi", "--columns", "dataset", "--beside", str(file))
    printed = made(two_sets(tmp_path / "t"), capsys, *words)
    assert re.search(r"\nIIC +0\.970 ± 0\.01² +0\.978", printed)


def test_a_table_of_one_configuration_says_how_its_models_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = filled(tmp_path / "s", [({}, [0.5, 0.6])])
    sweep.trial({}, 0, {"acc_majority": 0.5}, failures=["saturated"])
    for words in ([], ["--columns", "esteps"]):
        printed = made(sweep, capsys, "--metrics", "acc_majority", *words)
        assert "base settings" in printed and "Saturated: seed 0 (as in" in printed
    assert "k-means" in made(sweep, capsys, "--metrics", "acc_majority")


def test_every_spelling_that_is_printed_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    tables = [
        made(sweep, capsys, "--metrics", metrics, "--rows", rows, "--columns", columns)
        for metrics, rows, columns in (
            ("acc_hungarian", "n_encoder_steps", "prior_lr"),
            ("Acc 1:1", "esteps", "eta_p"),
            ("Acc 1:1", "E_steps", "η_p"),
        )
    ]
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("name", [*DEFAULTS, *ALIASES, *SPELLINGS])
def test_every_name_of_a_setting_is_taken_by_every_option(name: str) -> None:
    """--set, --grid, --only, --space as they are typed, --rows and --columns."""
    base, field = preset("digits"), full_name(name)
    text = value_text(getattr(base, field))
    assert parse_assignment(f"{name}={text}") == (field, getattr(base, field))
    assert field_name(name) == field
    grid = parse_grid([f"{name}={text}"], "digits")
    assert grid.seeds == (0,) if field == "seed" else grid.axes == [[{field: getattr(base, field)}]]
    cell = Cell.of(base, {field: getattr(base, field)} if field != "seed" else {})
    assert chosen(cell, f"{name}={text}") and chosen(cell, f"{name} {text}")
    if name in {**ALIASES, **SPELLINGS}:  # All of them numbers.
        assert parse_space([f"{name}=1..4"], base).axes[0].field == field


def test_what_a_trial_cost_is_a_column_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    text = made(sweep, capsys, "--metrics", "Acc,seconds_train,Parameters", "--style", "full")
    assert "Training, s  Parameters" in text and re.search(r"\d  +12\.5  +1,234\n", text)
    assert "Cost: 15 trials, 0.062 core-hours on a processor not recorded; parameters of" in text
    for change in table1_changes():
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.5 + seed / 10}, cost={})  # As once.
    text = made(sweep, capsys, "--metrics", "Acc,seconds_train", "--style", "full")
    assert "Not measured, and left out: Training" in text
    assert "Cost: 15 trials, time n/a; parameters of generator and encoder n/a." in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "esteps"], "which differ in eta_p: add it to one of them"),
        (["--rows", "esteps,eta_p", "--columns", "eta_p"], "eta_p is in both"),
        (["--metrics", "accuracy"], "unknown metric 'accuracy'"),
        (["--columns", "etap"], "did you mean 'eta_p'"),
        (["--columns", "eta_p", "--table", "grid"], "leave out --table"),
        (["--at", "700"], "no trial was evaluated at 700; there are iterations 1500"),
        (["--at", "soon"], "--at must be an iteration or best:METRIC"),
        (["--at", "0"], "--at must be an iteration or best:METRIC"),
        (["--at", "best:acc_majority"], "an iteration is chosen without labels, by one of"),
        (["--at", "best:diversity_min"], "an iteration is chosen without labels, by one of"),
    ],
)
def test_a_layout_or_a_moment_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(table1_sweep(tmp_path / "s"), words, said, capsys)


def refused(
    sweep: SweepBuilder, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_tables.main(["--runs", str(sweep.path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (sweep.path / "tables").exists()


# -- one iteration ---------------------------------------------------------------------------------


def curved(path: Path) -> SweepBuilder:
    """Two cells: one finished, whose accuracy falls at the end, one under way."""
    sweep = SweepBuilder(path).plan([LOW, HIGH], (0, 1), grid="eta_p=1e-3,2e-3")
    for change, ends in ((LOW, (500, 1000, 1500)), (HIGH, (500, 1000))):
        for seed in (0, 1):
            rows = [
                {
                    "iteration": i,
                    "acc_majority": (0.5 if i == 1500 else i / 2000) + seed / 100,
                    "cluster_information": 1.0 if i == 500 else 0.5,
                }
                for i in ends
            ]
            state = "done" if ends[-1] == 1500 else None
            sweep.trial(change, seed, rows[-1], state=state, curve=rows)
    return sweep


def test_every_cell_stands_at_one_iteration_while_trials_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = curved(tmp_path / "s")
    assert "stopped (0/2)" in made(sweep, capsys, "--table", "grid")
    before = (sweep.path / "tables" / "grid.md").read_bytes()
    printed = made(sweep, capsys, "--table", "grid", "--at", "1000")
    assert re.search(r"1e-3¹ +50.5 ± 0.7.*\n +2e-3¹ +50.5 ± 0.7", printed)
    assert "Values are those of iteration 1,000 (@1000)." in printed and "4 of 4" in printed
    assert (sweep.path / "tables" / "grid.md").read_bytes() == before
    assert (sweep.path / "tables" / "at-1000" / "grid.md").exists()
    last = made(sweep, capsys, "--table", "grid", "--at", "1500")
    assert "50.5 ± 0.7" in last and "stopped (0/2)" in last
    rows = [{"iteration": 1000, "acc_majority": float("nan")}]
    sweep.trial(HIGH, 0, rows[-1], curve=rows)
    printed = made(sweep, capsys, "--table", "grid", "--at", "1000")
    assert "Infinite or undefined for seed 0" in printed


def test_the_iteration_may_be_chosen_without_labels_and_is_named_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = made(
        curved(tmp_path / "s"), capsys, "--table", "grid", "--at", "best:cluster_information"
    )
    assert printed.count("25.5 ± 0.7") == 2
    assert "of the iteration that cluster_information chose (@best)" in printed


# -- other methods' numbers ------------------------------------------------------------------------

HEAD = "method,dataset,metric,mean,std,n,protocol,source\n"
OTHERS = HEAD + (
    "DEC,digits,nmi,0.803,,,all images,Xie 2016\n"
    "IIC,digits,acc_hungarian,98.4,0.65,5,,Ji 2019\n"
    "IIC,digits,nmi,0.970,0.01,5,,Ji 2019\n"
    "IIC,mnist,nmi,0.978,0.01,5,,Ji 2019\n"
)


def test_other_methods_numbers_stand_beside_ours_cited_and_untested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, file = table1_sweep(tmp_path / "s"), tmp_path / "others.csv"
    file.write_text(OTHERS)
    words = ("--metrics", "acc_hungarian,nmi", "--beside", str(file))
    alone, printed = made(sweep, capsys, *words[:2]), made(sweep, capsys, *words)
    own = [
        [line.split() for line in text.splitlines() if re.match(r" +\d ", line)]
        for text in (alone, printed)
    ]
    assert own[0] == own[1] and len(own[0]) == 5
    assert re.search(r"DEC +0\.803¹\n +IIC +98\.4 ± 0\.65² +0\.970 ± 0\.01²\n", printed)
    assert "¹ Published: Xie 2016; all images; runs not given. Not compared with ours." in printed
    assert "² Published: Ji 2019; 5 runs. Not compared with ours." in printed
    assert "Xie 2016" not in (sweep.path / "tables" / "layout.csv").read_text()


def test_other_methods_numbers_go_under_their_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = two_sets(tmp_path / "s")
    file = tmp_path / "others.csv"
    file.write_text(OTHERS)
    words = ("--metrics", "NMI", "--rows", "K", "--columns", "dataset", "--beside", str(file))
    printed = made(sweep, capsys, *words)
    assert re.search(r"DEC +0\.803¹\nIIC +0\.970 ± 0\.01² +0\.978 ± 0\.01²\n", printed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n", "the first line must be method,dataset,metric,mean"),
        (HEAD + "DEC,mnist,accuracy,1,,,,x\n", "line 2: unknown metric 'accuracy'"),
        (HEAD + "DEC,minst,nmi,1,,,,x\n", "did you mean 'mnist'"),
        (HEAD + "DEC,mnist,nmi,high,,,,x\n", "line 2: could not convert"),
        (HEAD + "DEC,mnist,nmi,nan,,,,x\n", "must be finite"),
        (HEAD + "DEC,mnist,nmi,0.8,,,,\n", "source is empty"),
        (HEAD + "DEC,mnist\n", "metric"),
        (HEAD + "DEC,mnist,nmi,0.8,,,,x\n", "has no figure on digits for a column of this table"),
    ],
)
def test_a_file_of_numbers_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, file = table1_sweep(tmp_path / "s", seeds=(0,)), tmp_path / "others.csv"
    file.write_text(text)
    refused(sweep, ["--table", "grid", "--beside", str(file)], said, capsys)
