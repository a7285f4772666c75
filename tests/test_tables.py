"""Tables say what is there, what is missing, and never average unlike things."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from analysis.output.latex import latex
from analysis.output.render import markdown, text
from analysis.paper.protocol import differences, published, published_rows, table1_settings
from analysis.paper.table4 import table4
from analysis.paper.tables import table1, table1_groups, table2, table3
from analysis.records.frame import Records
from analysis.records.load import load
from analysis.tables.assemble import files, products
from analysis.tables.columns import column
from analysis.tables.grid import GridResult, baseline_of, grid_tables
from analysis.tables.groups import groups
from analysis.tables.layout import PAPER, REFERENCE, Cell, Heading, Row, Table, on_one_page
from analysis.tables.shared import shown_metrics
from mpcc.evaluation.metrics import METRICS
from tests.records import SweepBuilder, metrics_of, options, table1_changes, table1_sweep


def latex_program() -> str | None:
    """tectonic, or a pdflatex that has booktabs; None where there is neither."""
    if shutil.which("tectonic") or not shutil.which("kpsewhich"):
        return shutil.which("tectonic")
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return shutil.which("pdflatex") if found.returncode == 0 else None


LATEX = latex_program()


def table_of(records: Records, **options: bool) -> Table:
    pairs = table1_groups(groups(records, **options))
    assert pairs
    return table1(records, pairs, "welch")


def ours(table: Table, heading: str) -> list[str]:
    place = [h.text for h in table.headings].index(heading)
    return [row.cells[place].text for row in table.rows if row.kind == "ours"]


def note_of(table: Table, row: int, heading: str) -> str:
    place = [h.text for h in table.headings].index(heading)
    cells = [r for r in table.rows if r.kind == "ours"][row].cells[place]
    return " ".join(table.notes[number - 1] for number in cells.notes)


def test_cell_is_mean_and_std_with_ddof_one(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes())
    for change in table1_changes():
        for seed, accuracy in enumerate((0.60, 0.62, 0.67)):
            sweep.trial(change, seed, {"acc_majority": accuracy})
    assert ours(table_of(load([sweep.path])), "Acc, %") == ["63.0 ± 3.6"] * 5


def test_rows_are_the_papers_with_the_published_row_below_in_grey(tmp_path: Path) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s").path]))
    assert [row.kind for row in table.rows[:-1]] == ["ours", PAPER] * 5
    assert table.rows[-1].kind == REFERENCE
    paper = [row for row in table.rows if row.kind == PAPER]
    assert all(row.grey for row in paper)
    assert [row.cells[2].text for row in paper][-1] == "61.99 ± 4.96"
    assert paper[2].cells[3].text == "0.331 ± 0.09"
    assert "another protocol (dataset digits (paper cifar10)" in " ".join(table.notes)


def test_columns_that_nobody_measured_are_left_out_and_one_line_says_how_to_get_them(
    tmp_path: Path,
) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s").path]))
    assert not {"IS", "FID"} & {h.text for h in table.headings}
    assert table.absent == (
        "Not measured, and left out: IS and FID: no images were generated; run with --set "
        "n_generated=N (50,000 in the paper)."
    )
    full = table_of(load([table1_sweep(tmp_path / "t", n_generated=1000).path]))
    assert "Inception weights missing" in full.absent and "FID-CNN" not in full.absent
    assert "--set" not in latex(table) and "FID" not in latex(table)


def test_fid_cnn_has_a_column_where_it_was_measured(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s", n_generated=1000)
    for changes in table1_changes():
        for seed in (0, 1, 2):
            sweep.trial(changes, seed, {"acc_majority": 0.6, "fid_cnn": 9.0 + seed})
    records = load([sweep.path])
    table = table_of(records)
    assert ours(table, "FID-CNN")[0].startswith("10.00 ± 1.00")
    assert "left out: IS and FID: " in table.absent
    assert shown_metrics(groups(records)) == ["acc_majority", "fid_cnn"]


def test_a_column_that_some_cells_have_shows_a_dash_with_its_reason_in_the_others(
    tmp_path: Path,
) -> None:
    sweep = table1_sweep(tmp_path / "s", n_generated=1000)
    sweep.trial(table1_changes()[1], 0, {"acc_majority": 0.6, "fid": 20.0})
    table = table_of(load([sweep.path]))
    assert ours(table, "FID") == ["–", "20.00 (1/3)", "–", "–", "–"]
    assert note_of(table, 0, "FID").startswith("FID n/a: not recorded, nor why")


def test_kmeans_on_the_same_pixels_stands_under_ours(tmp_path: Path) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s").path]))
    assert table.rows[-1].cells[2].text == "79.0"


def test_missing_and_diverged_trials_are_counted_in_the_cell_and_explained(tmp_path: Path) -> None:
    sweep, changes = table1_sweep(tmp_path / "s"), table1_changes()
    sweep.trial(changes[1], 2, {}, state="diverged", cause="loss/encoder is not finite")
    (sweep.folder(changes[3], 1) / "result.json").unlink()
    table = table_of(load([sweep.path]))
    accuracy = ours(table, "Acc, %")
    assert [value.endswith("(2/3)") for value in accuracy] == [False, True, False, True, False]
    assert "seed 2 diverged (loss/encoder is not finite)" in note_of(table, 1, "Acc, %")
    assert "seed 1 stopped at iteration 1,500" in note_of(table, 3, "Acc, %")
    assert "13 of 15 trials done (1 diverged, 1 stopped)" in table.title


def test_cell_in_which_all_seeds_diverged_says_so(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    for seed in range(3):
        sweep.trial(change, seed, {}, state="diverged", cause="x")
    assert ours(table_of(load([sweep.path])), "Acc, %")[0] == "diverged (0/3)"


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s", seeds=(0,)).path]))
    assert all(re.fullmatch(r"\d\d\.\d", value) for value in ours(table, "Acc, %"))
    assert [r.cells[2].best for r in table.rows if r.kind == "ours"] == [False] * 4 + [True]
    assert not any(r.cells[2].tied for r in table.rows)  # nothing was tested


def test_zero_spread_is_said(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    for seed in range(3):
        sweep.trial(change, seed, {"acc_majority": 0.5})
    table = table_of(load([sweep.path]))
    assert ours(table, "Acc, %")[0] == "50.0 ± 0.0"
    assert "spread of zero" in note_of(table, 0, "Acc, %")


def test_infinite_value_is_counted_out_and_said(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    sweep.trial(change, 1, {"acc_majority": 0.6, "mse": float("inf")})
    table = table_of(load([sweep.path]))
    assert ours(table, "MSE")[0].endswith("(2/3)")
    assert "Infinite or undefined for seed 1" in note_of(table, 0, "MSE")


@pytest.mark.parametrize(
    "defect",
    [{"fingerprint": "beef"}, {"n_images": 1000}, {"code": "other"}, {"iteration": 1000}],
    ids=["images", "sample count", "code", "iterations"],
)
def test_unlike_trials_of_a_cell_are_never_averaged(tmp_path: Path, defect: dict) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    sweep.trial(change, 2, metrics_of(0.99, np.random.default_rng(0)), **defect)
    table = table_of(load([sweep.path]))
    assert [value[-5:] for value in ours(table, "Acc, %")[:2]] == ["(2/3)", "(1/3)"]
    assert ours(table, "Acc, %")[1] == "99.0 (1/3)"
    assert "not alike" in note_of(table, 0, "Acc, %")


def test_code_versions_are_averaged_only_on_request(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    sweep.trial(change, 2, metrics_of(0.6, np.random.default_rng(0)), code="other")
    table = table_of(load([sweep.path]), pool_code=True)
    assert len(ours(table, "Acc, %")) == 5
    (line,) = [line for line in table.made if "code c0de (" in line]
    assert "and other (esteps 1, eta_p 1e-3)" in line


def test_best_is_marked_and_what_cannot_be_told_from_it_is_tied(tmp_path: Path) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s", seeds=range(5)).path]))
    rows = [row.cells[2] for row in table.rows if row.kind == "ours"]
    assert [cell.best for cell in rows] == [False] * 4 + [True]
    assert not any(cell.tied for cell in rows)


def test_cells_whose_seeds_overlap_are_tied_with_the_best(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes())
    for i, change in enumerate(table1_changes()):
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.6 + 0.05 * seed + 0.001 * i})
    cells = [r.cells[2] for r in table_of(load([sweep.path])).rows if r.kind == "ours"]
    assert [cell.tied for cell in cells] == [True] * 4 + [False] and cells[4].best


def test_cells_of_another_shape_are_not_table_1(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes()[:4])
    assert table1_groups(groups(load([sweep.path]))) == []


def test_published_rows_are_matched_by_order_of_settings(tmp_path: Path) -> None:
    pairs = table1_groups(groups(load([table1_sweep(tmp_path / "s").path])))
    assert [row["eta_p"] for _, row in pairs] == ["2e-4", "2e-4", "2e-4", "4e-4", "6e-4"]


def test_same_protocol_gives_a_difference_and_no_grey(tmp_path: Path) -> None:
    rows = [(1, 2e-4), (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4)]
    settings = {"split": "train", "n_generated": 50_000, "iterations": 75_000}
    changes = table1_changes(rows)
    sweep = SweepBuilder(tmp_path / "s", "cifar10", **settings).plan(changes)
    for change in changes:
        for seed in range(3):
            values = {"acc_majority": 0.61 + seed / 100, "fid": 7.0, "mse_published": 7e-4}
            sweep.trial(change, seed, values, n_images=50_000)
    table = table_of(load([sweep.path]))
    paper = [row for row in table.rows if row.kind == PAPER]
    assert not any(row.grey for row in paper)
    note = table.notes[paper[-1].cells[0].notes[0] - 1]
    assert "Acc +0.0 points, within their spread" in note
    assert "MSE as published −0.340×10⁻³, within their spread" in note
    assert "FID +0.41, within their spread" in note


def test_protocol_names_each_setting_that_differs() -> None:
    theirs = table1_settings(published_rows("table1")[4])
    assert differences(theirs.to_dict(), theirs, "fid") == []
    fewer = theirs.override(n_generated=10_000)
    assert differences(fewer.to_dict(), theirs, "fid") == ["n_generated"]
    assert differences(fewer.to_dict(), theirs, "acc_majority") == []


def test_published_figures_are_those_of_the_paper() -> None:
    row = published_rows("table1")[4]
    accuracy, error = published(row, "acc_majority"), published(row, "mse_published")
    assert accuracy is not None and error is not None
    assert (accuracy.mean, accuracy.std) == pytest.approx((0.6199, 0.0496))
    assert error.text == "1.04 ± 1.03"
    assert published(published_rows("table2")[0], "acc_majority") is None


def test_directions_are_those_of_the_metrics() -> None:
    assert column("fid").better == "lower" and column("acc_majority").better == "higher"
    assert all(column(m).heading.startswith(METRICS[m].label) for m in METRICS)
    assert column("my_own").better == "neither"


def test_formats_hold_the_same_values(tmp_path: Path) -> None:
    table = table_of(load([table1_sweep(tmp_path / "s").path]))
    values = ours(table, "Acc, %")
    plain, md, tex = text(table), markdown(table), re.sub(r"\\phantom{0*}", "", latex(table))
    assert all(value in plain and value in md for value in values)
    numbers = [value.split(" ± ") for value in values]
    assert sum(rf"${mean} \pm {std}" in tex for mean, std in numbers) == 4
    assert rf"$\mathbf{{{numbers[4][0]}}} \pm \mathbf{{{numbers[4][1]}}}$" in tex  # the best


def test_latex_has_the_papers_symbols_and_numbers(tmp_path: Path) -> None:
    made = latex(table_of(load([table1_sweep(tmp_path / "s").path])), "table1-how.md")
    assert (
        r"$E_{\mathrm{steps}}$ & $\eta_p$ & Acc (\%) & MSE as published ($\times10^{-3}$)" in made
    )
    assert r"4 & $5\times10^{-3}$ &" in made and "esteps" not in made and "e-3" not in made
    title = "Differences from esteps 4, eta_p 8e-4, K 10 of trial 123e45678901"
    words = r"$E_{\mathrm{steps}}=4$, $\eta_p=8\times10^{-4}$, $K=10$ of trial 123e45678901"
    assert words in latex(Table("t", title))


def test_latex_says_data_n_and_spread_in_its_caption_and_has_at_most_three_lines_of_notes(
    tmp_path: Path,
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    for i, change in enumerate(table1_changes()):
        sweep.trial(change, i % 3, {}, state="failed", cause=f"code: KeyError {i} --set x=1")
    tables = grid_of(sweep.path).tables + [table_of(load([sweep.path]))]
    for table in tables:
        made = latex(table, "how.md")
        notes = [line for line in made.splitlines() if line.startswith(r"\par ")]
        assert len(notes) <= 3 and sum(map(len, notes)) < 400
        assert notes[-1].endswith("ow these numbers were made: how.md.")
        assert (
            "c0de" not in made and "f00d" not in made and "--set" not in made.replace("-{}-", "--")
        )
        assert made.count(r"\usepackage") == 1 and r"\usepackage{booktabs}" in made
    (caption,) = [line for line in latex(tables[-1]).splitlines() if line.startswith(r"\caption")]
    assert "on digits" in caption and r"Mean $\pm$ standard deviation over $n$~=~3 seeds" in caption


def test_what_a_table_leaves_unsaid_stands_in_the_file_that_it_cites(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    records = load([sweep.path])
    (product,) = products(records, groups(records), options("1"))
    made = files(records, product, options("1"), ("md", "csv", "tex"))
    (table,) = product.tables
    assert "[How these numbers were made](table1-how.md)" in made["table1.md"]
    assert "table1-how.md" in made["table1.tex"]
    for line in (*table.made, *table.notes):
        assert line.replace("_", "\\_").replace("~", "\\~") in made["table1-how.md"]
    full = files(records, product, options("1", "--style", "full"), ("md",))["table1.md"]
    assert "code c0de" in full and "code c0de" not in made["table1.md"]


def test_two_tables_of_one_page_do_not_repeat_each_others_notes_and_lines(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    sweep.trial(table1_changes()[1], 2, {}, state="diverged", cause="boom")
    records = load([sweep.path])
    first, second = on_one_page([table_of(records), grid_of(sweep.path).tables[0]])
    alone = grid_of(sweep.path).tables[0]
    assert (first.notes_above, second.notes_above) == (0, len(first.notes))
    assert len(first.notes) == 3 and second.notes == []
    assert alone.rows[1].cells[2].notes == (1,) and alone.notes[0].startswith("Without a value")
    (number,) = second.rows[1].cells[2].notes
    assert first.notes[number - 1] == alone.notes[0]
    assert second.lines == [] and not second.measured and not second.absent
    assert alone.lines and alone.measured and alone.absent


def test_latex_escapes_what_would_break_it() -> None:
    table = Table("t", "50 % of a_b & c # {x} ~ \\y 漢")
    assert r"50 \% of a\_b \& c \# \{x\} $\sim$ \textbackslash{}y ?" in latex(table)


@pytest.mark.skipif(not LATEX, reason="neither tectonic nor a pdflatex with booktabs: not compiled")
@pytest.mark.parametrize("way", ["as it stands", "by input", "over two columns"])
def test_latex_compiles_with_booktabs_alone(tmp_path: Path, way: str) -> None:
    sweep = table1_sweep(tmp_path / "s")
    sweep.trial(
        table1_changes()[0], 1, {}, state="failed", cause="code: 100% of a_b {x} \\y ~ # & 漢"
    )
    (tmp_path / "table.tex").write_text(latex(table_of(load([sweep.path]))))
    wide = way == "over two columns"
    head = rf"\documentclass{'[twocolumn]' * wide}{{article}}\usepackage{{booktabs}}"
    head += r"\def\mpccfloat{table*}" * wide
    paper = head + r"\begin{document}Before.\input{table}\input{table}After.\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    assert LATEX
    options = [] if LATEX.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    name = "table" if way == "as it stands" else "paper"
    command = [LATEX, *options, f"{name}.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / f"{name}.pdf").stat().st_size > 10_000
    assert "Overfull" not in done.stdout


def grid_of(path: Path, test: str = "welch", baseline: str | None = None) -> GridResult:
    records = load([path])
    cells = groups(records)
    return grid_tables(records, cells, test, baseline_of(records, cells, baseline))


def test_differences_are_from_one_named_baseline_with_holm(tmp_path: Path) -> None:
    from scipy.stats import ttest_ind

    sweep = table1_sweep(tmp_path / "s", seeds=range(4))
    result = grid_of(sweep.path, baseline="esteps=1")
    table = next(t for t in result.tables if t.name == "grid-differences")
    assert table.title == "Differences from esteps 1, eta_p 1e-3"
    lines = [line for line in result.lines if line.metric == "acc_majority"]
    assert len(lines) == 4
    records = load([sweep.path])
    values = {g.label(["n_encoder_steps", "prior_lr"]): g.summary("acc_majority").array
              for g in groups(records)}  # fmt: skip
    base = values.pop("esteps 1, eta_p 1e-3")
    p = [ttest_ind(x, base, equal_var=False).pvalue for x in values.values()]
    assert [line.result.p for line in lines] == pytest.approx(p)
    assert max(line.holm for line in lines) == pytest.approx(max(p))


def test_base_settings_are_the_default_baseline(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s", n_encoder_steps=2, prior_lr=1e-3)
    table = grid_of(sweep.path).tables[1]
    assert table.title == "Differences from esteps 2, eta_p 1e-3"


def test_small_n_is_called_small_and_never_no_effect(tmp_path: Path) -> None:
    one = grid_of(table1_sweep(tmp_path / "one", seeds=(0,)).path)
    assert {line.verdict for line in one.lines} == {"n too small"}
    three = grid_of(table1_sweep(tmp_path / "three").path, test="permutation")
    assert {line.verdict for line in three.lines} == {"n too small"}
    text_of = "".join(text(t) for t in [*one.tables, *three.tables])
    assert "no effect" not in text_of.replace("is not 'no effect'", "").replace("\n", " ")


def test_unlike_cells_are_not_compared(tmp_path: Path) -> None:
    sweep, changes = table1_sweep(tmp_path / "s"), table1_changes()
    for seed in range(3):
        sweep.trial(changes[0], seed, {"acc_majority": 0.5 + seed / 100}, fingerprint="beef")
    lines = grid_of(sweep.path, baseline="eta_p=5e-3").lines
    assert lines[0].verdict.startswith("not compared: measured on other images")
    assert "differs" in {line.verdict for line in lines}


def test_sample_counts_are_never_mixed_in_a_comparison(tmp_path: Path) -> None:
    counts = [{"n_generated": 1000}, {"n_generated": 5000}]
    sweep = SweepBuilder(tmp_path / "s").plan(counts, grid="n_generated=1000,5000")
    for change in counts:
        for seed in range(3):
            values = {"fid": 9.0 + seed, "acc_majority": 0.6 + seed / 50}
            sweep.trial(change, seed, values, n_images=1797)
    result = grid_of(sweep.path)
    verdicts = {line.metric: line.verdict for line in result.lines}
    assert verdicts["fid"] == "not compared: measured with n_generated 5000 and 1000"
    assert verdicts["acc_majority"] == "identical in every seed"


@pytest.mark.parametrize(
    ("state", "extra"), [("diverged", {}), ("done", {"failures": ["collapsed"]})]
)
def test_pooled_sd_is_refused_where_a_cell_collapsed(
    tmp_path: Path, state: str, extra: dict
) -> None:
    sweep = table1_sweep(tmp_path / "s", seeds=range(4))
    assert "pooled SD" not in grid_of(sweep.path, "pooled").lines[0].verdict
    values = {"acc_majority": 0.61, "mse": 0.11} if state == "done" else {}
    sweep.trial(table1_changes()[0], 0, values, state=state, **extra)
    lines = [li for li in grid_of(sweep.path, "pooled").lines if li.metric == "acc_majority"]
    assert all(line.verdict.startswith("pooled SD refused: a cell") for line in lines)


def test_effects_need_two_axes_and_name_a_partial_grid(tmp_path: Path) -> None:
    partial = grid_of(table1_sweep(tmp_path / "partial").path)
    table = next(t for t in partial.tables if t.name == "grid-effects")
    assert "main effects only" in table.notes[0]
    changes = [{"prior_lr": 1e-3}, {"prior_lr": 2e-3}]
    single = SweepBuilder(tmp_path / "single").plan(changes)
    for change in changes:
        for seed in range(3):
            single.trial(change, seed, {"acc_majority": 0.5 + seed / 100})
    assert "grid-effects" not in [t.name for t in grid_of(single.path).tables]


def test_refused_effects_have_no_table_and_say_why(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    sweep.trial(table1_changes()[0], 0, {}, state="diverged", cause="boom")
    tables = {table.name: table for table in grid_of(sweep.path).tables}
    assert "grid-effects" not in tables
    assert "No analysis of variance: a cell diverged." in tables["grid"].made


def test_fresh_seeds_of_several_code_versions_are_averaged_only_on_request(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[4]
    sweep.cells[4]["confirm_seeds"] = [100, 101]
    sweep.write_plan()
    for seed, code in ((100, "c0de"), (101, "other")):
        sweep.trial(change, seed, {"acc_majority": 0.7}, code=code)
    records = load([sweep.path])
    for pooled, parts in ((False, 2), (True, 1)):
        (made,) = products(records, groups(records, pool_code=pooled), options("grid"))
        assert len(made.fresh) == parts


def test_confirmation_on_fresh_seeds_is_never_averaged_with_the_choice(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[4]
    sweep.cells[4]["confirm_seeds"] = [100, 101]
    sweep.write_plan()
    for seed in (100, 101):
        sweep.trial(change, seed, {"acc_majority": 0.70 + (seed - 100) / 100})
    result = grid_of(sweep.path)
    table = next(t for t in result.tables if t.name == "grid-confirm")
    first = [cell.text for cell in table.rows[0].cells]
    assert first[2:] == ["Acc, %", "82.1 ± 1.3 (n=3)", "70.5 ± 0.7 (n=2)", "−11.6"]
    assert result.tables[0].rows[4].cells[2].text == "82.1 ± 1.3"


def test_modified_images_are_said_under_the_table(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([{"prior_lr": 1e-3}], seeds=(0,))
    note = "cifar10: files differ from the official ones: recompressed"
    sweep.trial({"prior_lr": 1e-3}, 0, {"acc_majority": 0.5}, notes=[note])
    lines = " ".join(grid_of(sweep.path).tables[0].lines)
    assert note in lines


def test_table_2_picks_its_rows_by_settings(tmp_path: Path) -> None:
    changes = [
        {"prior": "normal", "encoder_shares_discriminator": False},
        {"prior": "normal", "encoder_shares_discriminator": True},
        {"prior": "gaussian_mixture", "encoder_shares_discriminator": True},
    ]
    sweep = SweepBuilder(tmp_path / "s").plan(changes, grid="table 2")
    for change in changes:
        for seed in range(3):
            values = {"mse": 0.1 + seed / 100}
            if change["prior"] != "normal":
                values |= {"acc_majority": 0.6 + seed / 100}
            sweep.trial(change, seed, values)
    records = load([sweep.path])
    table, used = table2(records, groups(records))
    assert len(used) == 3
    rows = {row.cells[0].text: row for row in table.rows if row.kind == "ours"}
    assert [r.cells[1].text for r in rows.values()] == ["–", "–", "61.0 ± 1.0"]
    assert [h.text for h in table.headings] == ["model", "Acc, %", "MSE"]
    sweep.trial(changes[0], 0, {"mse": 0.1, "fid": 9.0})
    records = load([sweep.path])
    table, _ = table2(records, groups(records))
    paper = [row for row in table.rows if row.kind == PAPER]
    assert all(row.grey for row in paper) and paper[0].cells[2].text == "21.55 ± 1.47"


def test_table_3_keeps_conditional_and_unconditional_apart(tmp_path: Path) -> None:
    changes = [{"conditional": False}, {"conditional": True}]
    sweep = SweepBuilder(tmp_path / "s", n_generated=100).plan(changes, grid="table 3")
    for change, fid in zip(changes, (20.0, 10.0), strict=True):
        for seed in range(3):
            sweep.trial(change, seed, {"fid": fid + seed, "inception_score": 2.0})
    records = load([sweep.path])
    for conditional, name, value in (
        (False, "table3a", "21.00 ± 1.00"),
        (True, "table3b", "11.00 ± 1.00"),
    ):
        table, used = table3(records, groups(records), conditional=conditional)
        assert table.name == name and len(used) == 1
        assert table.rows[-1].cells[0].text == "MPCC, ours"
        assert table.rows[-1].cells[2].text == value
        assert table.rows[-1].cells[3].text == "average of 3"
        assert len(table.rows) == 7


def test_table_4_has_a_column_per_data_set_and_the_best_three_of_five(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", "mnist", iterations=100).plan([{}], range(5), grid="seed")
    for seed in range(5):
        sweep.trial(
            {}, seed, {"acc_majority": 0.80 + seed / 100, "acc_hungarian": 0.7}, n_images=70000
        )
    records = load([sweep.path])
    table, used = table4(records, groups(records))
    assert [h.text for h in table.headings][1:] == [
        "mnist",
        "omniglot",
        "fmnist",
        "cifar10",
        "cifar20",
    ]
    ours_rows = [row for row in table.rows if row.kind == "ours"]
    assert ours_rows[0].cells[1].text == "82.0 ± 1.6"
    assert ours_rows[-1].cells[1].text == "83.0 ± 1.0"
    assert "Chosen by the labels" in table.notes[ours_rows[-1].cells[0].notes[0] - 1]
    assert (
        "mnist: another protocol than published (iterations 100 (paper 125000))" in table.lines[0]
    )


def test_saturated_and_collapsed_models_are_named_at_their_row(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[2]
    for seed in (0, 2):
        sweep.trial(change, seed, {"acc_majority": 0.2}, failures=["collapsed", "saturated"])
    table = table_of(load([sweep.path]))
    row = [r for r in table.rows if r.kind == "ours"][2]
    note = table.notes[row.cells[0].notes[0] - 1]
    assert note.startswith("Collapsed: seed 0, 2; saturated: seed 0, 2 (")
    assert any("max_saturation 0.15" in line for line in table.made)


def test_recorded_reason_for_an_absent_metric_is_the_footnote(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", n_generated=100).plan(table1_changes())
    for change in table1_changes():
        why = {"fid": "Inception weights missing: get them with --inception-weights FILE"}
        sweep.trial(change, 0, {"acc_majority": 0.5}, unavailable=why)
    table = table_of(load([sweep.path]))
    assert "FID: Inception weights missing: get them with" in table.absent


@pytest.mark.skipif(not LATEX, reason="neither tectonic nor a pdflatex with booktabs: not compiled")
def test_latex_of_a_long_table_breaks_over_pages(tmp_path: Path) -> None:
    table = Table("long", "Many rows", [Heading("a"), Heading("b")], notes=["a note"])
    table.rows = [Row((Cell(str(i)), Cell("1.0 ± 0.1", (1,)))) for i in range(200)]
    (tmp_path / "long.tex").write_text(latex(table))
    assert LATEX
    options = [] if LATEX.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    command = [LATEX, *options, "long.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "(continued)" not in latex(Table("short", "Few rows", [Heading("a")]))


@pytest.mark.skipif(not LATEX, reason="neither tectonic nor a pdflatex with booktabs: not compiled")
def test_latex_of_a_long_and_wide_table_fits_the_page(tmp_path: Path) -> None:
    table = Table("wide", "Many rows and columns", [Heading(f"column {i}") for i in range(24)])
    table.rows = [Row(tuple(Cell(f"{i}.0 ± 0.1", (1,)) for i in range(24)))] * 100
    table.rows.append(Row((Cell("k-means"), *[Cell("")] * 23), REFERENCE))
    table.note("a note")
    (tmp_path / "wide.tex").write_text(latex(table))
    assert LATEX
    options = [] if LATEX.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + r"\input{wide}\end{document}")
    command = [LATEX, *options, "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "too large" not in done.stdout


def test_cell_planned_for_a_table_comes_before_others_that_fit(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", "mnist", iterations=100)
    sweep.plan([{"split": "train"}], grid="table 1").plan([{"split": "all"}], grid="table 4")
    for split, accuracy in (("train", 0.5), ("all", 0.7)):
        for seed in range(3):
            sweep.trial({"split": split}, seed, {"acc_majority": accuracy + seed / 100})
    records = load([sweep.path])
    table, used = table4(records, groups(records))
    assert [group.settings["split"] for group in used] == ["all"]
    assert [r for r in table.rows if r.kind == "ours"][0].cells[1].text == "71.0 ± 1.0"
