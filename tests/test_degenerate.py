"""Sweeps on which statistics are undefined: every output says so in words, and holds no nan."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import make_tables
from analysis.records.load import load
from analysis.tables.comparable import spread_of
from analysis.tables.compare import Line
from analysis.tables.groups import groups
from analysis.tables.layout import Table
from tests.records import SweepBuilder, filled, grid, metrics_of, table1_changes
from tests.test_search import begun
from tests.test_suggest import finish, value_of
from tune.store.folder import Store

NAN, INF = math.nan, math.inf
CHANGES = table1_changes()
FOREIGN = re.compile(r"(?<![A-Za-z])(?:nan|NaN|inf|Infinity|None)(?![A-Za-z])|np\.|float64")

Values = Callable[[int, int], Mapping[str, Any] | None]
"""(cell, seed) -> the metrics of that trial; None for one that was not run."""


def plausible(cell: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(10 * cell + seed)
    return metrics_of(0.6 + cell / 20 + 0.01 * float(rng.standard_normal()), rng)


def same(cell: int, seed: int) -> dict[str, Any]:
    return {"acc_majority": 0.5, "acc_hungarian": 0.5, "mse": 0.1}


def where(hit: Callable[[int, int], bool], other: Mapping[str, Any] | None) -> Values:
    """Plausible values, but these for some trials."""
    return lambda c, s: (None if other is None else plausible(c, s) | other) if hit(c, s) else (
        plausible(c, s)
    )  # fmt: skip


CASES: dict[str, tuple[Sequence[int], Values]] = {
    "one seed": ((0,), plausible),
    "two seeds": ((0, 1), plausible),
    "unequal n": ((0, 1, 2), where(lambda c, s: s > c, None)),
    "no common seed": ((0, 1, 2, 3), where(lambda c, s: s % 2 == c % 2, None)),
    "one common seed": ((0, 1, 2), where(lambda c, s: s == 1 + c % 2, None)),
    "no spread": ((0, 1, 2), same),
    "no spread in one": ((0, 1, 2), lambda c, s: same(c, s) if c == 1 else plausible(c, s)),
    "one trial is nan": ((0, 1, 2), where(lambda c, s: (c, s) == (1, 1), {"mse": NAN})),
    "one cell is nan": ((0, 1, 2), where(lambda c, s: c == 1, {"acc_majority": NAN, "mse": NAN})),
    "the baseline is nan": ((0, 1), where(lambda c, s: c == 0, {"acc_majority": NAN})),
    "all are nan": ((0, 1), lambda c, s: {"acc_majority": NAN, "mse": NAN}),
    "one is infinite": ((0, 1, 2), where(lambda c, s: (c, s) == (0, 0), {"mse": INF})),
    "one cell is infinite": ((0, 1, 2), where(lambda c, s: c == 0, {"mse": -INF})),
    "nothing was run": ((0, 1), where(lambda c, s: True, None)),
    "one cell was run": ((0, 1, 2), where(lambda c, s: c > 0, None)),
    "nothing was measured": ((0, 1), lambda c, s: {}),
}


def built(path: Path, case: str, variants: bool) -> SweepBuilder:
    seeds, values = CASES[case]
    sweep = SweepBuilder(path)
    names = ("full-model", "a", "b", "c", "d") if variants else (None,) * 5
    for change, name in zip(CHANGES, names, strict=True):
        sweep.plan([change], seeds, variant=name)
    for cell, change in enumerate(CHANGES):
        for seed in seeds:
            found = values(cell, seed)
            if found is not None:
                sweep.trial(change, seed, found, kmeans=NAN if "nan" in case else 0.79)
    return sweep


def outputs(folder: Path) -> dict[str, str]:
    """The text of every file that people or programs read, without what only draws."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".md", ".csv", ".tex", ".html", ".json"):
            continue
        text = file.read_text()
        if file.suffix == ".html":
            text = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)
            text = html.unescape(re.sub(r"base64,[\w+/=]+", "", text))
        found[file.name] = text
    return found


def check(name: str, text: str) -> None:
    for line in text.splitlines():
        found = FOREIGN.search(line)
        assert not found, f"{name}: …{line[max(0, found.start() - 120) : found.end() + 60]}…"


@pytest.mark.parametrize(
    ("case", "variants"),
    [*((case, False) for case in CASES), ("unequal n", True), ("one cell is nan", True)],
    ids=lambda value: {True: "leave one out", False: "grid"}.get(value, value),
)
def test_no_output_of_a_degenerate_sweep_has_a_number_that_is_none(
    tmp_path: Path, case: str, variants: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = built(tmp_path / "s", case, variants)
    command = ["--runs", str(sweep.path), "--table"]
    everything, numbers = ["all", "--format", "md,csv,tex,html"], ["grid", "--format", "csv"]
    for test in ("welch", "paired", "pooled", "permutation"):
        words = everything if test == "welch" else numbers
        assert make_tables.main([*command, *words, "--test", test]) == 0
        check(f"{test}, printed", capsys.readouterr().out)
        for name, text in outputs(sweep.path / "tables").items():
            check(f"{test}, {name}", text)
    if not variants:
        own = ["--metrics", "all", "--rows", "esteps", "--columns", "eta_p"]
        assert make_tables.main([*command[:2], *own]) == 0
        check("a table of one's own", capsys.readouterr().out)
        check("layout.tex", outputs(sweep.path / "tables")["layout.tex"])
    key = sweep.config(CHANGES[0], 0).cell_key
    assert make_tables.main(["--runs", str(sweep.path), "--explain", key]) == 0
    check("explain", capsys.readouterr().out)


@pytest.mark.parametrize(
    "metrics",
    [{}, {"acc_majority": NAN}, {"mse": 0.1, "acc_majority": 0.5}],
    ids=["one seed", "nan", "no spread"],
)
def test_no_output_of_a_degenerate_search_has_a_number_that_is_none(
    tmp_path: Path, metrics: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    source = begun(tmp_path, 9, seeds=(0,))
    for trial in source.plan.trials():
        finish(Store(tmp_path), trial, metrics=value_of(trial.config) | metrics)
    command = ["--runs", str(tmp_path), "--table", "all", "--format", "md,csv,tex,html"]
    assert make_tables.main(command) == 0
    check("printed", capsys.readouterr().out)
    for name, text in outputs(tmp_path / "tables").items():
        check(name, text)


def tables_of(path: Path, test: str = "welch") -> tuple[list[Table], list[Line]]:
    made = grid(path, test=test)
    return made.tables, [line for line in made.lines if line.metric == "acc_majority"]


def two(path: Path, first: Sequence[float], second: Sequence[float], **more: Any) -> SweepBuilder:
    """Two cells, with these accuracies by seed; `more` is of the second cell's trials."""
    sweep = SweepBuilder(path).plan(CHANGES[:2], range(max(len(first), len(second))))
    for change, values, extra in ((CHANGES[0], first, {}), (CHANGES[1], second, more)):
        for seed, value in enumerate(values):
            if not math.isnan(value):
                sweep.trial(change, seed, {"acc_majority": value}, **extra)
    return sweep


def row_of(tables: Sequence[Table], name: str) -> dict[str, str]:
    """The first row of a table: heading -> text."""
    table = next(table for table in tables if table.name == name)
    cells = zip(table.headings, table.rows[0].cells, strict=True)
    return {heading.text: cell.text for heading, cell in cells}


def csv_of(folder: Path, name: str) -> list[dict[str, str]]:
    text = (folder / "tables" / name).read_text()
    return list(csv.DictReader(io.StringIO(text)))


def test_a_paired_test_without_a_common_seed_has_no_difference(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", (0.5, NAN, 0.52, NAN), (NAN, 0.7, NAN, 0.74))
    tables, (line,) = tables_of(sweep.path, "paired")
    assert line.verdict == "no common seed"
    row = row_of(tables, "grid-differences")
    assert (row["difference"], row["95 % interval"], row["seeds needed"]) == ("–", "–", "–")


def test_seeds_needed_are_not_stated_where_the_effect_is_undefined(tmp_path: Path) -> None:
    """Of two pairs the spread has one degree of freedom, for which Hedges' J is not defined."""
    sweep = two(tmp_path / "s", (0.50, 0.52), (0.7001, 0.72))
    tables, (line,) = tables_of(sweep.path, "paired")
    assert line.verdict == "differs" and row_of(tables, "grid-differences")["seeds needed"] == "–"


def test_a_csv_has_no_difference_that_the_table_refuses(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", (0.50, 0.52), (0.70, 0.72), fingerprint="beef")
    assert make_tables.main(["--runs", str(sweep.path), "--table", "grid"]) == 0
    (row,) = csv_of(sweep.path, "grid-differences.csv")
    assert row["verdict"].startswith("not compared: measured on other images")
    for name in ("difference", "ci95_low", "ci95_high", "hedges_g", "p", "p_holm", "seeds_needed"):
        assert row[name] == "", name


def test_cells_that_are_the_same_trials_are_identical_and_in_no_family(tmp_path: Path) -> None:
    values = [
        [{"acc_majority": v + more, "mse": v - more} for v in (0.50, 0.53, 0.57)]
        for more in (0.0, 0.0, 0.2)
    ]
    sweep = filled(tmp_path / "s", zip(CHANGES[:3], values, strict=True))
    tables, lines = tables_of(sweep.path)
    assert [line.verdict for line in lines] == ["identical in every seed", "differs"]
    assert lines[1].holm == lines[1].result.p  # the only comparison of its family
    row = row_of(tables, "grid-differences")
    assert (row["difference"], row["95 % interval"], row["g"], row["p"]) == ("+0.0", "–", "–", "–")
    best = [(r.cells[-1].best, r.cells[-1].tied) for r in tables[0].rows if r.kind == "ours"]
    assert best == [(False, False), (False, False), (True, False)]  # the lowest MSE is the third's
    ablated = two(tmp_path / "t", (0.50, 0.53, 0.57), (0.50, 0.53, 0.57))
    marked = [r.cells[2] for r in tables_of(ablated.path)[0][0].rows if r.kind == "ours"]
    assert all(cell.best and not cell.tied for cell in marked)


def test_what_was_refused_a_test_is_not_marked_as_tested(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", (0.1, 0.2, 0.3), (0.9, 0.9001, 0.9002))
    marked = [r.cells[2] for r in tables_of(sweep.path, "pooled")[0][0].rows if r.kind == "ours"]
    assert [(cell.best, cell.tied) for cell in marked] == [(False, False), (True, False)]


def test_a_cell_with_a_collapsed_or_diverged_seed_is_not_the_best(tmp_path: Path) -> None:
    means = (0.5, 0.6, 0.7)
    cells = [(c, [m, m + 0.01, m + 0.02]) for c, m in zip(CHANGES[:3], means, strict=True)]
    sweep = filled(tmp_path / "s", cells)
    sweep.trial(CHANGES[2], 0, {"acc_majority": 0.7}, failures=["collapsed"])
    table = tables_of(sweep.path)[0][0]
    assert [row.cells[2].best for row in table.rows if row.kind == "ours"] == [False, True, False]
    assert "No cell with a collapsed or diverged seed is called the best." in table.lines


def test_the_seeds_of_most_comparisons_are_named_and_the_fewest_beside_them(tmp_path: Path) -> None:
    sweep = built(tmp_path / "s", "two seeds", variants=False)
    sweep.plan(CHANGES, (0, 1, 2, 3))
    for cell, change in enumerate(CHANGES[:-1]):
        for seed in range(4):
            sweep.trial(change, seed, plausible(cell, seed))
    tables, _ = tables_of(sweep.path)
    made = " ".join(next(t for t in tables if t.name == "grid-differences").made)
    assert "Acc: 4 seeds (as few as 2 in a comparison) find a difference of" in made


def test_a_mean_of_nothing_is_not_said_to_be_over_the_others(tmp_path: Path) -> None:
    values = [{"acc_majority": NAN, "mse": 0.1 + seed} for seed in (0, 1)]
    table = tables_of(filled(tmp_path / "s", [(CHANGES[0], values)]).path)[0][0]
    assert "Infinite or undefined for seed 0, 1, so that there is no mean." in table.notes
    assert not any("over the others" in note for note in table.notes)


def test_spreads_are_not_said_to_differ_by_a_p_that_says_nothing(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", (0.50, 0.51, 0.52), (0.60, 0.64, 0.68))
    found = spread_of(groups(load([sweep.path])), "acc_majority")
    assert found.p > 0.05 and found.refusal == "the largest SD is 4.0 times the smallest"


def test_a_cell_can_be_named_as_the_tables_print_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = two(tmp_path / "s", (0.50, 0.51), (0.60, 0.64))
    for name in ("esteps 2, eta_p 1e-3", "esteps=2, eta_p=1e-3", "E_steps=2"):
        assert make_tables.main(["--runs", str(sweep.path), "--explain", name]) == 0
        assert capsys.readouterr().out.startswith("esteps 2, eta_p 1e-3: cell")
