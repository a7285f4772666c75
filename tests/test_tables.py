"""Tables say what is there, what is missing, and never average, rank or compare unlike things."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis import make_tables
from analysis.output.export import cells_csv
from analysis.output.latex import latex
from analysis.output.render import markdown, text
from analysis.paper.protocol import (
    differences,
    gap,
    published,
    published_rows,
    table1_settings,
)
from analysis.paper.tables import table1, table1_groups, table2, table3, table4
from analysis.records.load import load
from analysis.report.page import report
from analysis.tables.assemble import files, products
from analysis.tables.columns import column
from analysis.tables.groups import groups
from analysis.tables.layout import PAPER, REFERENCE, Cell, Heading, Row, Table, on_one_page
from analysis.tables.shared import CHOOSE_K, absent_reason, shown_metrics
from mpcc.config import PRESETS
from mpcc.evaluation.metrics import METRICS
from tests.records import (
    SweepBuilder,
    filled,
    grid,
    notes_at,
    options,
    table1_changes,
    table1_sweep,
    texts,
)

LOW, HIGH = {"prior_lr": 1e-3}, {"prior_lr": 2e-3}
THREE = (0.60, 0.61, 0.62)
ACC = "Acc, %"
OFFICIAL = {"split": "train", "n_generated": 50_000, "iterations": 75_000}
ROWS = ((1, 2e-4), (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4))
"""Table 1 as the paper measured it."""


def latex_program() -> str | None:
    """tectonic, or a pdflatex that has booktabs; None where there is neither."""
    if shutil.which("tectonic") or not shutil.which("kpsewhich"):
        return shutil.which("tectonic")
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return shutil.which("pdflatex") if found.returncode == 0 else None


LATEX = latex_program()
compiles = pytest.mark.skipif(not LATEX, reason="neither tectonic nor a pdflatex with booktabs")


def table_of(path: Path, **pooled: bool) -> Table:
    records = load([path])
    return table1(records, table1_groups(groups(records, **pooled)), "welch")


# -- what a cell says ------------------------------------------------------------------------------


def test_cell_is_mean_and_std_with_ddof_one(tmp_path: Path) -> None:
    cells = [(change, (0.60, 0.62, 0.67)) for change in table1_changes()]
    assert texts(table_of(filled(tmp_path / "s", cells).path), ACC) == ["63.0 ± 3.6"] * 5


def test_one_seed_has_no_spread_and_no_test(tmp_path: Path) -> None:
    table = table_of(table1_sweep(tmp_path / "s", seeds=(0,)).path)
    assert all(re.fullmatch(r"\d\d\.\d", value) for value in texts(table, ACC))
    rows = [row.cells[2] for row in table.rows if row.kind == "ours"]
    assert [cell.best for cell in rows] == [False] * 4 + [True]
    assert not any(cell.tied for cell in rows)


DEFECTS = {
    "diverged": (
        {"state": "diverged", "cause": "loss/encoder is not finite"},
        "(2/3)",
        "seed 2 diverged (loss/encoder is not finite)",
    ),
    "out of memory": (
        {"state": "failed", "cause": "out of memory: 2 GB"},
        "(2/3)",
        "seed 2 failed (out of memory: 2 GB)",
    ),
    "stopped": ({"state": None}, "(2/3)", "seed 2 stopped at iteration 1,500"),
    "infinite": ({"value": float("inf")}, "(2/3)", "Infinite or undefined for seed 2"),
    "no reason": ({"value": None}, "(2/3)", "Acc n/a for seed 2: not recorded."),
    "reason": (
        {"value": None, "unavailable": {"acc_majority": "labels missing"}},
        "(2/3)",
        "Acc n/a for seed 2: labels missing.",
    ),
    "images": ({"fingerprint": "beef"}, "(2/3)", "not comparable"),
    "sample count": ({"n_images": 1000}, "(2/3)", "not comparable"),
    "code": ({"code": "other"}, "(2/3)", "not comparable"),
    "device": ({"device": "cuda:NVIDIA H200"}, "(2/3)", "not comparable"),
    "iterations": ({"iteration": 1000}, "(2/3)", "not comparable"),
    "no spread": ({"value": 0.5}, "50.0 ± 0.0", "spread of zero allows no interval and no test"),
}


@pytest.mark.parametrize(("trial", "shown", "note"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_cell_with_a_defect_counts_its_seeds_and_says_why(
    tmp_path: Path, trial: dict, shown: str, note: str
) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    for seed in range(3):
        sweep.trial(change, seed, {"acc_majority": 0.5, "mse": 0.1})
    value, named = trial.get("value", 0.99), {k: v for k, v in trial.items() if k != "value"}
    metrics = {"mse": 0.1} if value is None else {"mse": 0.1, "acc_majority": value}
    ended = named.get("state", "done") in ("done", None)
    sweep.trial(change, 2, metrics if ended else {}, **named)
    table = table_of(sweep.path)
    assert texts(table, ACC)[0].endswith(shown) and note in notes_at(table, 0, ACC)
    if note == "not comparable":  # What does not agree stands in a row of its own.
        assert texts(table, ACC)[1] == "99.0 (1/3)"


def test_a_cell_without_any_value_says_how_its_trials_ended_and_the_title_counts_them(
    tmp_path: Path,
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    for seed in range(3):
        sweep.trial(table1_changes()[0], seed, {}, state="diverged", cause="x")
    sweep.trial(table1_changes()[1], 0, {}, state="failed", cause="code: KeyError")
    table = table_of(sweep.path)
    assert texts(table, ACC)[0] == "diverged (0/3)"
    assert "11 of 15 trials done (3 diverged, 1 failed)" in table.title


def test_code_versions_are_averaged_only_on_request(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[0]
    sweep.trial(change, 2, {"acc_majority": 0.6}, code="other")
    table = table_of(sweep.path, pool_code=True)
    assert len(texts(table, ACC)) == 5
    (line,) = [line for line in table.made if "code c0de (" in line]
    assert "and other (esteps 1, eta_p 1e-3)" in line


def test_n_stands_under_the_table_or_in_the_cells_where_it_differs(tmp_path: Path) -> None:
    five = [0.60 + seed / 100 for seed in range(5)]
    table = grid(filled(tmp_path / "s", [(LOW, THREE), (HIGH, five)]).path).tables[0]
    assert texts(table, ACC) == ["61.0 ± 1.0 (n=3)", "62.0 ± 1.6 (n=5)"]
    same = grid(table1_sweep(tmp_path / "t").path).tables[0]
    assert "over n = 3 seeds" in same.measured and "(n=" not in text(same)


def test_row_says_how_far_a_cell_came_and_how_its_models_failed(tmp_path: Path) -> None:
    sweep = filled(tmp_path / "s", [(LOW, THREE), (HIGH, THREE)])
    sweep.fill(HIGH, THREE, iteration=700)
    for seed in (0, 2):
        sweep.trial(LOW, seed, {"acc_majority": 0.2}, failures=["collapsed", "saturated"])
    table = grid(sweep.path).tables[0]
    assert notes_at(table, 1, "eta_p") == "Reached 700 of 1,500 iterations."
    assert notes_at(table, 0, "eta_p").startswith("Collapsed: seed 0, 2; saturated: seed 0, 2 (")
    made = " ".join(table.made)
    assert "max_saturation 0.15" in made and "1,500 and 700 iterations" in made


def test_conflicting_duplicates_leave_their_cell_and_are_named_below(tmp_path: Path) -> None:
    a, b = (filled(tmp_path / name, [(LOW, THREE)]) for name in "ab")
    b.trial(LOW, 1, {}, state="diverged", cause="loss/encoder is not finite")
    table = grid(a.path, b.path).tables[0]
    assert texts(table, ACC) == ["61.0 ± 1.4 (2/3)"]
    assert "seed 1 conflicting" in notes_at(table, 0, ACC)
    assert "records that disagree (done and diverged): none is used" in " ".join(table.lines)


def test_modified_images_are_said_under_the_table(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([LOW], seeds=(0,))
    note = "cifar10: files differ from the official ones: recompressed"
    sweep.trial(LOW, 0, {"acc_majority": 0.5}, notes=[note])
    assert note in " ".join(grid(sweep.path).tables[0].lines)


# -- columns ---------------------------------------------------------------------------------------


def test_columns_that_nobody_measured_are_left_out_and_one_line_says_why(tmp_path: Path) -> None:
    table = table_of(table1_sweep(tmp_path / "s", n_generated=None).path)
    assert not {"IS", "FID"} & {h.text for h in table.headings}
    assert table.absent == (
        "Not measured, and left out: IS and FID: no images were generated; run with --set "
        "n_generated=N (50,000 in the paper)."
    )
    sweep = table1_sweep(tmp_path / "t", n_generated=1000)
    full = table_of(sweep.path)
    assert "Inception weights missing" in full.absent and "FID-CNN" not in full.absent
    assert "--set" not in latex(table) and "FID" not in latex(table)
    for change in table1_changes():
        why = {"fid": "Inception weights missing: get them with --inception-weights FILE"}
        sweep.trial(change, 0, {"acc_majority": 0.5}, unavailable=why)
    assert "FID: Inception weights missing: get them with" in table_of(sweep.path).absent
    (cell,) = groups(load([filled(tmp_path / "u", [(LOW, [{"mse": 0.1}])]).path]))
    reason = absent_reason(cell, column("acc_majority"))
    assert reason == "no finished trial recorded it; images without labels have none"


def test_fid_cnn_has_a_column_where_it_was_measured(tmp_path: Path) -> None:
    values = [{"acc_majority": 0.6, "fid_cnn": 9.0 + seed} for seed in range(3)]
    cells = [(change, values) for change in table1_changes()]
    sweep = filled(tmp_path / "s", cells, n_generated=1000)
    table = table_of(sweep.path)
    assert texts(table, "FID-CNN")[0].startswith("10.00 ± 1.00")
    assert "left out: IS and FID: " in table.absent
    assert shown_metrics(groups(load([sweep.path]))) == ["acc_majority", "fid_cnn"]


def test_a_column_that_some_cells_have_shows_a_dash_with_its_reason_in_the_others(
    tmp_path: Path,
) -> None:
    sweep = table1_sweep(tmp_path / "s", n_generated=1000)
    sweep.trial(table1_changes()[1], 0, {"acc_majority": 0.6, "fid": 20.0})
    table = table_of(sweep.path)
    assert texts(table, "FID") == ["–", "20.00 (1/3)", "–", "–", "–"]
    assert notes_at(table, 0, "FID").startswith("FID n/a: not recorded, without a reason")


def test_metric_of_generated_images_says_count_and_split(tmp_path: Path) -> None:
    values = [{"acc_majority": 0.6, "fid": 20.0 + seed} for seed in range(3)]
    sweep = filled(tmp_path / "s", [(LOW, values)], n_generated=5000, split="train")
    lines = " ".join(grid(sweep.path).tables[0].made)
    assert "FID: Fréchet distance" in lines and "(fid@5k-train)" in lines
    arguments = ["--runs", str(sweep.path), "--table", "grid", "--format", "csv"]
    assert make_tables.main(arguments) == 0
    rows = (sweep.path / "tables" / "grid.csv").read_text()
    assert ",fid,fid@5k-train," in rows and ",acc_majority,acc_majority," in rows


def test_directions_are_those_of_the_metrics() -> None:
    assert column("fid").better == "lower" and column("acc_majority").better == "higher"
    assert all(column(m).heading.startswith(METRICS[m].label) for m in METRICS)
    assert column("my_own").better == "neither"


def test_kmeans_has_a_row_for_each_data_set_and_is_never_averaged_over_them(tmp_path: Path) -> None:
    sets = [{"dataset": "digits"}, {"dataset": "mnist"}]
    sweep = SweepBuilder(tmp_path / "s").plan(sets, grid="dataset=digits,mnist")
    sweep.fill(sets[0], THREE, kmeans=0.79).fill(sets[1], THREE, kmeans=0.55, fingerprint="beef")
    table = grid(sweep.path).tables[0]
    assert texts(table, "dataset", REFERENCE) == ["k-means on digits", "k-means on mnist"]
    assert texts(table, ACC, REFERENCE) == ["79.0", "55.0"]
    records = load([sweep.path])
    page = report(records, groups(records), [], "welch")
    assert "reaches 79.0 % on digits and 55.0 % on mnist" in re.sub(r"<[^>]+>", "", page)
    assert len({part.split('"')[0] for part in page.split('<s style="left:')[1:]}) == 2
    other = SweepBuilder(tmp_path / "t").plan([LOW, HIGH], (0,))
    other.fill(LOW, [0.6], kmeans=0.7).fill(HIGH, [0.6], kmeans=0.5, fingerprint="beef")
    assert texts(grid(other.path).tables[0], "eta_p", REFERENCE) == [
        "k-means on digits (content f00d)",
        "k-means on digits (content beef)",
    ]


def test_kmeans_has_a_row_for_each_number_of_clusters(tmp_path: Path) -> None:
    sizes = [{"n_clusters": k} for k in (5, 10)]
    sweep = SweepBuilder(tmp_path / "s").plan(sizes, grid="K=5,10")
    sweep.fill(sizes[0], THREE, kmeans=0.41).fill(sizes[1], THREE, kmeans=0.79)
    table = grid(sweep.path).tables[0]
    assert texts(table, "K", REFERENCE) == ["k-means with K 5", "k-means with K 10"]
    assert texts(table, ACC, REFERENCE) == ["41.0", "79.0"]
    records = load([sweep.path])
    page = re.sub(r"<[^>]+>", "", report(records, groups(records), [], "welch"))
    assert "reaches 41.0 % with K 5 and 79.0 % with K 10." in page


def test_cells_of_a_cpu_and_a_gpu_are_neither_compared_nor_ranked(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[4]
    for seed in range(3):
        sweep.trial(change, seed, {"acc_majority": 0.9 + seed / 100}, device="cuda:NVIDIA H200")
    result = grid(sweep.path)
    (line,) = [line for line in result.lines if line.group.done[0]["device_kind"] == "cuda"]
    assert line.refused == "not compared: on cuda and cpu"
    best = [row.cells[2].best for row in result.tables[0].rows[:5]]
    assert best == [False, False, False, True, False]


def test_without_labels_the_columns_need_none_and_say_what_may_choose_k(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([{"n_clusters": 2}, {"n_clusters": 4}])
    found: dict[int, list[list[int]]] = {}
    rng = np.random.default_rng(0)
    for k in (2, 4):
        found[k] = [list(map(int, rng.integers(0, k, 60) * (np.arange(60) % 2))) for _ in range(3)]
        for seed in range(3):
            measured = {
                "cluster_information": k / 10,
                "cluster_information_share": k / 10 / math.log(k),
                "silhouette": 0.1 * k + seed / 100,
                "n_clusters_used": k,
                "mse": 0.1 + seed / 100,
            }
            unavailable = {"acc_majority": "the images have no labels"}
            clusters = found[k][seed]
            sweep.trial(
                {"n_clusters": k}, seed, measured, clusters=clusters, unavailable=unavailable
            )
    result = grid(sweep.path)
    table = result.tables[0]
    heads = [heading.text for heading in table.headings]
    columns = ["I(x; y) / log K", "Silhouette", "Clusters used", "Agreement of seeds", "MSE"]
    assert heads == ["K", *columns]
    pairs = [(0, 1), (0, 2), (1, 2)]
    for row, k in zip(table.rows, (2, 4), strict=False):
        oracle = np.mean([adjusted_rand_score(found[k][a], found[k][b]) for a, b in pairs])
        assert row.cells[4].text.startswith(f"{oracle:.3f} ± ")
    records = load([sweep.path])
    lines = [li for li in cells_csv(records, groups(records)).splitlines() if "agreement" in li]
    header = "n,mean,std_ddof1,t95_low,t95_high"
    assert header in cells_csv(records, [])
    assert len(lines) == 2 and all(re.search(r",3,[\d.]+,[\d.]+,,,", line) for line in lines)
    assert CHOOSE_K in table.lines
    depends = [line.refused for line in result.lines if line.metric == "seed_agreement"]
    assert depends == ["not compared: the figures of a cell's seeds depend on each other"]


# -- Table 1 ---------------------------------------------------------------------------------------


def test_rows_are_the_papers_with_the_published_row_below_in_grey(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    table = table_of(sweep.path)
    assert [row.kind for row in table.rows] == ["ours", PAPER] * 5 + [REFERENCE]
    paper = [row for row in table.rows if row.kind == PAPER]
    assert all(row.grey for row in paper)
    assert texts(table, ACC, PAPER)[-1] == "61.99 ± 4.96" and paper[2].cells[3].text == (
        "0.331 ± 0.09"
    )
    assert texts(table, ACC, REFERENCE) == ["79.0"]
    assert "the protocol differs: dataset digits (paper cifar10)" in " ".join(table.notes)
    pairs = table1_groups(groups(load([sweep.path])))
    assert [row["eta_p"] for _, row in pairs] == ["2e-4", "2e-4", "2e-4", "4e-4", "6e-4"]
    four = SweepBuilder(tmp_path / "t").plan(table1_changes()[:4])
    assert table1_groups(groups(load([four.path]))) == []


@pytest.mark.parametrize("n", [3, 5])
def test_best_is_marked_and_only_what_cannot_be_told_from_it_is_tied(
    tmp_path: Path, n: int
) -> None:
    apart = table_of(table1_sweep(tmp_path / "s", seeds=range(5)).path)
    cells = [
        (change, [0.6 + 0.05 * seed + 0.001 * i for seed in range(n)])
        for i, change in enumerate(table1_changes())
    ]
    overlapping = table_of(filled(tmp_path / "t", cells).path)
    for table, tied in ((apart, False), (overlapping, True)):
        rows = [row.cells[2] for row in table.rows if row.kind == "ours"]
        assert [cell.best for cell in rows] == [False] * 4 + [True]
        assert [cell.tied for cell in rows] == [tied] * 4 + [False]


def published_sweep(path: Path, rows: Sequence[tuple[int, float]] = ROWS, **trial: object) -> Table:
    """CIFAR-10 at full size: Table 1 as the paper measured it, but for `trial`."""
    changes = table1_changes(rows)
    sweep = SweepBuilder(path, "cifar10", **OFFICIAL).plan(changes)
    for change in changes:
        rest = {"fid": 7.0, "mse_published": 7e-4}
        values = [{"acc_majority": 0.61 + seed / 100} | rest for seed in range(3)]
        sweep.fill(change, values, **{"n_images": 50_000} | trial)
    return table_of(path)


def test_same_protocol_gives_a_difference_and_no_grey(tmp_path: Path) -> None:
    table = published_sweep(tmp_path / "s")
    paper = [row for row in table.rows if row.kind == PAPER]
    assert not any(row.grey for row in paper)
    note = table.notes[paper[-1].cells[0].notes[0] - 1]
    assert "Acc +0.0 points, within one published SD" in note
    assert "MSE as published −0.340×10⁻³, within one published SD" in note
    assert "FID +0.41, within one published SD" in note


@pytest.mark.parametrize(
    ("rows", "defect", "words"),
    [
        (ROWS, {"n_images": 4000}, "4,000 images (paper 50,000)"),
        (ROWS, {"notes": ["files differ from the official ones"]}, "files differ from the"),
        (ROWS, {"iteration": 700}, "iterations reached 700 (paper 75,000)"),
        (
            ((1, 3e-4), (2, 3e-4), (4, 3e-4), (4, 5e-4), (4, 7e-4)),
            {},
            "the protocol differs: eta_p 3e-4 (paper 2e-4)",
        ),
    ],
    ids=["fewer images", "other files", "stopped early", "its axis alone"],
)
def test_published_is_never_subtracted_from_what_was_measured_otherwise(
    tmp_path: Path, rows: Sequence[tuple[int, float]], defect: dict, words: str
) -> None:
    table = published_sweep(tmp_path / "s", rows, **defect)
    assert all(row.grey for row in table.rows if row.kind == PAPER)
    notes = " ".join(table.notes)
    assert words in notes and "published SD" not in notes and "()" not in notes


def test_protocol_names_each_setting_that_differs(tmp_path: Path) -> None:
    theirs = table1_settings(published_rows("table1")[4])
    assert differences(theirs.to_dict(), theirs, "fid") == []
    fewer = theirs.override(n_generated=10_000)
    assert differences(fewer.to_dict(), theirs, "fid") == ["n_generated"]
    assert differences(fewer.to_dict(), theirs, "acc_majority") == []
    planned = SweepBuilder(tmp_path / "s", "cifar10", **OFFICIAL).plan(table1_changes(ROWS[4:]))
    (group,) = groups(load([planned.path]))  # Nothing of it has run.
    assert gap(group, theirs, ["acc_majority"]) == ""


def test_published_figures_are_those_of_the_paper() -> None:
    row = published_rows("table1")[4]
    accuracy, error = published(row, "acc_majority"), published(row, "mse_published")
    assert accuracy is not None and error is not None
    assert (accuracy.mean, accuracy.std) == pytest.approx((0.6199, 0.0496))
    assert error.text == "1.04 ± 1.03"
    assert published(published_rows("table2")[0], "acc_majority") is None


# -- formats ---------------------------------------------------------------------------------------


def test_formats_hold_the_same_values(tmp_path: Path) -> None:
    table = table_of(table1_sweep(tmp_path / "s").path)
    values = texts(table, ACC)
    plain, md, tex = text(table), markdown(table), re.sub(r"\\phantom{0*}", "", latex(table))
    assert all(value in plain and value in md for value in values)
    numbers = [value.split(" ± ") for value in values]
    assert sum(rf"${mean} \pm {std}" in tex for mean, std in numbers) == 4
    assert rf"$\mathbf{{{numbers[4][0]}}} \pm \mathbf{{{numbers[4][1]}}}$" in tex  # the best


def test_latex_has_the_papers_symbols_and_escapes_what_would_break_it(tmp_path: Path) -> None:
    made = latex(table_of(table1_sweep(tmp_path / "s").path), "table1-how.md")
    assert (
        r"$E_{\mathrm{steps}}$ & $\eta_p$ & Acc (\%) & MSE as published ($\times10^{-3}$)" in made
    )
    assert r"4 & $5\times10^{-3}$ &" in made and "esteps" not in made and "e-3" not in made
    title = "Differences from esteps 4, eta_p 8e-4, K 10 of trial 123e45678901"
    words = r"$E_{\mathrm{steps}}=4$, $\eta_p=8\times10^{-4}$, $K=10$ of trial 123e45678901"
    assert words in latex(Table("t", title))
    table = Table("t", "50 % of a_b & c # {x} ~ \\y 漢")
    assert r"50 \% of a\_b \& c \# \{x\} $\sim$ \textbackslash{}y ?" in latex(table)


def test_latex_says_data_n_and_spread_in_its_caption_and_has_at_most_three_lines_of_notes(
    tmp_path: Path,
) -> None:
    sweep = table1_sweep(tmp_path / "s")
    for i, change in enumerate(table1_changes()):
        sweep.trial(change, i % 3, {}, state="failed", cause=f"code: KeyError {i} --set x=1")
    tables = grid(sweep.path).tables + [table_of(sweep.path)]
    for table in tables:
        made = latex(table, "how.md")
        notes = [line for line in made.splitlines() if line.startswith(r"\par ")]
        assert len(notes) <= 3 and sum(map(len, notes)) < 400
        assert notes[-1].endswith("ow these numbers were made: how.md.")
        assert "c0de" not in made and "f00d" not in made
        assert "--set" not in made.replace("-{}-", "--")
        assert made.count(r"\usepackage") == 1 and r"\usepackage{booktabs}" in made
    (caption,) = [line for line in latex(tables[-1]).splitlines() if line.startswith(r"\caption")]
    assert "on digits" in caption and r"Mean $\pm$ standard deviation over $n$~=~3 seeds" in caption


def compiled(folder: Path, name: str) -> Path:
    """The PDF of a file of LaTeX, without an overfull box."""
    assert LATEX
    flags = [] if LATEX.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    command = [LATEX, *flags, f"{name}.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "too large" not in done.stdout
    return folder / f"{name}.pdf"


@compiles
@pytest.mark.parametrize("way", ["as it stands", "by input", "over two columns"])
def test_latex_compiles_with_booktabs_alone(tmp_path: Path, way: str) -> None:
    sweep = table1_sweep(tmp_path / "s")
    cause = "code: 100% of a_b {x} \\y ~ # & 漢"
    sweep.trial(table1_changes()[0], 1, {}, state="failed", cause=cause)
    (tmp_path / "table.tex").write_text(latex(table_of(sweep.path)))
    wide = way == "over two columns"
    head = rf"\documentclass{'[twocolumn]' * wide}{{article}}\usepackage{{booktabs}}"
    head += r"\def\mpccfloat{table*}" * wide
    paper = head + r"\begin{document}Before.\input{table}\input{table}After.\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    pdf = compiled(tmp_path, "table" if way == "as it stands" else "paper")
    assert pdf.stat().st_size > 10_000


@compiles
def test_latex_of_a_long_and_wide_table_breaks_over_pages_and_fits_them(tmp_path: Path) -> None:
    long = Table("long", "Many rows", [Heading("a"), Heading("b")], notes=["a note"])
    long.rows = [Row((Cell(str(i)), Cell("1.0 ± 0.1", (1,)))) for i in range(200)]
    wide = Table("wide", "Many rows and columns", [Heading(f"column {i}") for i in range(24)])
    wide.rows = [Row(tuple(Cell(f"{i}.0 ± 0.1", (1,)) for i in range(24)))] * 100
    wide.rows.append(Row((Cell("k-means"), *[Cell("")] * 23), REFERENCE))
    wide.note("a note")
    for table in (long, wide):
        (tmp_path / f"{table.name}.tex").write_text(latex(table))
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + r"\input{wide}\end{document}")
    compiled(tmp_path, "long")
    compiled(tmp_path, "paper")
    assert "(continued)" not in latex(Table("short", "Few rows", [Heading("a")]))


def test_what_a_table_leaves_unsaid_stands_in_the_file_that_it_cites(tmp_path: Path) -> None:
    records = load([table1_sweep(tmp_path / "s").path])
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
    alone = grid(sweep.path).tables[0]
    first, second = on_one_page([table_of(sweep.path), alone])
    assert (first.notes_above, second.notes_above) == (0, len(first.notes))
    assert len(first.notes) == 3 and second.notes == []
    assert alone.rows[1].cells[2].notes == (1,) and alone.notes[0].startswith("Without a value")
    (number,) = second.rows[1].cells[2].notes
    assert first.notes[number - 1] == alone.notes[0]
    assert second.lines == [] and not second.measured and not second.absent
    assert alone.lines and alone.measured and alone.absent


# -- differences and effects -----------------------------------------------------------------------


def test_differences_are_from_one_named_baseline_with_holm(tmp_path: Path) -> None:
    from scipy.stats import ttest_ind

    sweep = table1_sweep(tmp_path / "s", seeds=range(4))
    result = grid(sweep.path, baseline="esteps=1")
    table = next(t for t in result.tables if t.name == "grid-differences")
    assert table.title == "Differences from esteps 1, eta_p 1e-3"
    lines = [line for line in result.lines if line.metric == "acc_majority"]
    first, *others = (g.summary("acc_majority").array for g in groups(load([sweep.path])))
    p = [ttest_ind(x, first, equal_var=False).pvalue for x in others]
    assert [line.result.p for line in lines] == pytest.approx(p)
    assert max(line.holm for line in lines) == pytest.approx(max(p))
    own = table1_sweep(tmp_path / "t", n_encoder_steps=2, prior_lr=1e-3)
    assert grid(own.path).tables[1].title == "Differences from esteps 2, eta_p 1e-3"


def test_small_n_is_called_small_and_never_no_effect(tmp_path: Path) -> None:
    one = grid(table1_sweep(tmp_path / "one", seeds=(0,)).path)
    three = grid(table1_sweep(tmp_path / "three").path, test="permutation")
    assert {line.verdict for line in [*one.lines, *three.lines]} == {"n too small"}
    text_of = "".join(text(t) for t in [*one.tables, *three.tables])
    assert "no effect" not in text_of.replace("is not 'no effect'", "").replace("\n", " ")


def test_unlike_cells_are_not_compared(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s")
    sweep.fill(table1_changes()[0], (0.50, 0.51, 0.52), fingerprint="beef")
    lines = grid(sweep.path, baseline="eta_p=5e-3").lines
    assert lines[0].verdict.startswith("not compared: measured on other images")
    assert "differs" in {line.verdict for line in lines}
    values = [{"fid": 9.0 + seed, "acc_majority": 0.6 + seed / 50} for seed in range(3)]
    counts = [({"n_generated": n}, values) for n in (1000, 5000)]
    other = grid(filled(tmp_path / "t", counts).path)
    verdicts = {line.metric: line.verdict for line in other.lines}
    assert verdicts["fid"] == "not compared: measured with n_generated 5000 and 1000"
    assert verdicts["acc_majority"] == "identical in every seed"


@pytest.mark.parametrize("trial", [{"state": "diverged"}, {"failures": ["collapsed"]}], ids=str)
def test_pooled_sd_is_refused_where_a_cell_collapsed(tmp_path: Path, trial: dict) -> None:
    sweep = table1_sweep(tmp_path / "s", seeds=range(4))
    assert "pooled SD" not in grid(sweep.path, test="pooled").lines[0].verdict
    sweep.trial(table1_changes()[0], 0, {} if "state" in trial else {"acc_majority": 0.61}, **trial)
    lines = [li for li in grid(sweep.path, test="pooled").lines if li.metric == "acc_majority"]
    assert all(line.verdict.startswith("pooled SD refused: a cell") for line in lines)


def test_effects_need_two_axes_and_name_a_partial_grid(tmp_path: Path) -> None:
    partial = grid(table1_sweep(tmp_path / "partial").path)
    table = next(t for t in partial.tables if t.name == "grid-effects")
    assert "main effects only" in table.notes[0]
    single = grid(filled(tmp_path / "single", [(LOW, THREE), (HIGH, THREE)]).path)
    assert "grid-effects" not in [t.name for t in single.tables]


def test_confirmation_on_fresh_seeds_is_never_averaged_with_the_choice(tmp_path: Path) -> None:
    sweep, change = table1_sweep(tmp_path / "s"), table1_changes()[4]
    sweep.cells[4]["confirm_seeds"] = [100, 101]
    sweep.write_plan()
    for seed in (100, 101):
        sweep.trial(change, seed, {"acc_majority": 0.70 + (seed - 100) / 100})
    result = grid(sweep.path)
    table = next(t for t in result.tables if t.name == "grid-confirm")
    first = [cell.text for cell in table.rows[0].cells]
    assert first[2:] == [ACC, "82.1 ± 1.3 (n=3)", "70.5 ± 0.7 (n=2)", "−11.6"]
    assert result.tables[0].rows[4].cells[2].text == "82.1 ± 1.3"
    sweep.trial(change, 101, {"acc_majority": 0.7}, code="other")
    records = load([sweep.path])
    for pooled, parts in ((False, 2), (True, 1)):  # Of several code versions only on request.
        (made,) = products(records, groups(records, pool_code=pooled), options("grid"))
        assert len(made.fresh) == parts


# -- Tables 2 to 4 ---------------------------------------------------------------------------------


def test_table_2_picks_its_rows_by_settings(tmp_path: Path) -> None:
    models = [("normal", False), ("normal", True), ("gaussian_mixture", True)]
    sweep = SweepBuilder(tmp_path / "s")
    for prior, shares in models:
        change = {"prior": prior, "encoder_shares_discriminator": shares}
        own = {"acc_majority": 0.61} if prior != "normal" else {}
        sweep.plan([change], grid="table 2").fill(
            change, [{"mse": 0.1 + s} | own for s in range(3)]
        )
    records = load([sweep.path])
    table, used = table2(records, groups(records))
    assert len(used) == 3 and [h.text for h in table.headings] == ["model", ACC, "MSE"]
    assert texts(table, ACC) == ["–", "–", "61.0 ± 0.0"]
    change = {"prior": "normal", "encoder_shares_discriminator": False}
    sweep.trial(change, 0, {"mse": 0.1, "fid": 9.0})
    records = load([sweep.path])
    table, _ = table2(records, groups(records))
    assert all(row.grey for row in table.rows if row.kind == PAPER)
    assert texts(table, "FID", PAPER)[0] == "21.55 ± 1.47"


def test_table_3_keeps_conditional_and_unconditional_apart(tmp_path: Path) -> None:
    cells = [
        ({"conditional": is_so}, [{"fid": fid + s, "inception_score": 2.0} for s in range(3)])
        for is_so, fid in ((False, 20.0), (True, 10.0))
    ]
    records = load([filled(tmp_path / "s", cells, grid="table 3", n_generated=100).path])
    for conditional, name, value in (
        (False, "table3a", "21.00 ± 1.00"),
        (True, "table3b", "11.00 ± 1.00"),
    ):
        table, used = table3(records, groups(records), conditional=conditional)
        assert table.name == name and len(used) == 1 and len(table.rows) == 7
        own = [cell.text for cell in table.rows[-1].cells]
        assert (own[0], own[2], own[3]) == ("MPCC, ours", value, "average of 3")


def test_table_4_has_a_column_per_data_set_and_the_best_three_of_five(tmp_path: Path) -> None:
    values = [{"acc_majority": 0.80 + seed / 100, "acc_hungarian": 0.7} for seed in range(5)]
    sweep = filled(tmp_path / "s", [({}, values)], "mnist", grid="seed", iterations=100)
    sweep.fill({}, values, n_images=70_000)
    records = load([sweep.path])
    table, _ = table4(records, groups(records))
    names = ["mnist", "omniglot", "fmnist", "cifar10", "cifar20"]
    assert [h.text for h in table.headings][1:] == names
    assert texts(table, "mnist") == ["82.0 ± 1.6", "70.0 ± 0.0", "83.0 ± 1.0"]
    assert "Chosen by the labels" in notes_at(table, -1, "model")
    assert (
        "mnist: another protocol than published (iterations 100 (paper 125000))" in table.lines[0]
    )
    for seed in (3, 4):
        sweep.trial({}, seed, {}, state="diverged", cause="x")
    records = load([sweep.path])
    table, _ = table4(records, groups(records))
    assert texts(table, "mnist")[-1] == "81.0 ± 1.0 (3/5)"
    assert "Only 3 of 5 runs have a value: no choice at all" in notes_at(table, -1, "mnist")


@pytest.mark.parametrize(("n_images", "grey"), [(70_000, False), (1000, True)])
def test_table_4_is_grey_only_where_the_protocol_differs(
    tmp_path: Path, n_images: int, grey: bool
) -> None:
    iterations = PRESETS["mnist"].iterations
    sweep = SweepBuilder(tmp_path / "s", "mnist", iterations=iterations).plan([{}])
    sweep.fill({}, (0.980, 0.981, 0.982), n_images=n_images)
    records = load([sweep.path])
    table, _ = table4(records, groups(records))
    models = {row.cells[0].text: row.grey for row in table.rows if row.kind == PAPER}
    assert models["MPCC (five runs)"] is grey and models["DEC"] is True


def test_cell_planned_for_a_table_comes_before_others_that_fit(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s", "mnist", iterations=100)
    sweep.plan([{"split": "train"}], grid="table 1").plan([{"split": "all"}], grid="table 4")
    sweep.fill({"split": "train"}, (0.5, 0.51, 0.52)).fill({"split": "all"}, (0.7, 0.71, 0.72))
    records = load([sweep.path])
    table, used = table4(records, groups(records))
    assert [group.settings["split"] for group in used] == ["all"]
    assert texts(table, "mnist")[0] == "71.0 ± 1.0"
