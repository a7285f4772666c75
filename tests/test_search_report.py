"""A search in tables, pictures and the report: from records alone, and who chose is said."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.make_tables import main
from analysis.output.render import markdown
from analysis.output.search_figures import _heights as heights
from analysis.output.search_figures import parallel
from analysis.records.load import load
from analysis.searches import search as found_in
from analysis.searches.rival import _verdicts as verdicts
from analysis.searches.rival import against, against_base
from analysis.tables.assemble import files, products
from analysis.tables.groups import groups
from mpcc.config import trial_key
from tests.records import filled, options, table1_sweep
from tests.test_search import begun
from tests.test_suggest import finish, value_of
from tune import ablation
from tune.plan.cells import trials
from tune.plan.confirm import confirmed
from tune.plan.plan import Plan
from tune.plan.state import State
from tune.planning import planned
from tune.store.folder import Store, record_end
from tune.suggest.points import best
from tune.suggest.source import SearchSource


def searched(out: Path, n_points: int = 16, **changes) -> SearchSource:
    return begun(out, n_points, **changes)


def found(out: Path) -> found_in.Found:
    """What the records of a search hold."""
    records = load([out])
    search = found_in.found(records, groups(records))
    assert search is not None
    return search


def confirm(out: Path, *words: str) -> Plan:
    """Plan a confirmation as the command does."""
    store = Store(out)
    words = ("--out", str(out), "--accept-changed-code", "--confirm", *words)
    plan, _ = planned(ablation.parse(words), store, store.read_plan())
    store.write_plan(plan)
    return plan


def test_the_best_points_are_those_of_the_search(tmp_path: Path) -> None:
    source = searched(tmp_path)
    search = found(tmp_path)
    assert len(search.points) == 16
    assert [p.values for p in search.points] == [pytest.approx(p.values) for p in source.points]
    assert found_in.best(search)[0].number == best(source.search, source.points)[0].number
    text = markdown(found_in.best_table(search))
    assert "16 of 16 complete" in text
    made = products((records := load([tmp_path])), groups(records), options())[0].tables[0]
    told = " ".join(made.told(full=True))
    assert "Bold: best mean" in told and "without a seal" in told and "Cost: 32 trials" in told
    assert told.count("Mean ± standard deviation") == 1
    check_said(tmp_path, "nothing was chosen by labels: the search went by mse")


def collapsed(out: Path, key: str, seed: int = 0) -> None:
    """The model of this trial is collapsed."""
    path = out / "trials" / trial_key(key, seed) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failures": ["collapsed"]}))


def test_a_point_with_a_collapsed_seed_is_called_the_best_nowhere(tmp_path: Path) -> None:
    source = searched(tmp_path)
    lost = found_in.best(found(tmp_path))[0]
    collapsed(tmp_path, lost.group.cell_key)
    search = found(tmp_path)
    first, second = sorted(search.points, key=lambda point: point.values[0])[:2]
    assert first.number == lost.number and found_in.leader(search) is second
    (row,) = [row for row in found_in.best_table(search).rows if row.cells[-1].best]
    assert row.cells[0].text == str(second.number)
    import matplotlib.pyplot as plt

    lines = [line for line in parallel(search, plt.figure().subplots()).lines if line.get_lw() > 2]
    plt.close()
    place = search.points.index(second)
    assert len(lines) == 1 and lines[0].get_ydata()[1] == heights(search, search.axes[1])[place]

    grid = Store(tmp_path / "grid")
    plan = replace(source.plan, id="another", search=None, cells=())
    plan = plan.grow([source.points[first.number].cell], (0, 1), "esteps")
    grid.write_plan(plan)
    for trial in plan.trials():
        finish(grid, trial)
    collapsed(tmp_path / "grid", first.group.cell_key)
    records = load([tmp_path])
    (line,) = against(records, groups(records), load([tmp_path / "grid"]), "grid")
    assert f"({second.group.label()}) against the best cell of grid" in line  # It has no other.
    for point in search.points:
        for seed in (0, 1):
            collapsed(tmp_path, point.group.cell_key, seed)
    all_lost = found(tmp_path)
    assert found_in.leader(all_lost) is not None
    assert not [row for row in found_in.best_table(all_lost).rows if row.cells[-1].best]


def test_of_two_searches_it_is_said_that_one_is_left_out(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        searched(tmp_path / name, n_points=4, sampler_seed=seed)
    records = load([tmp_path / "a", tmp_path / "b"])
    (product,) = products(records, groups(records), options())
    assert "Of 2 searches only the first is shown" in " ".join(product.tables[0].lines)


def test_labels_that_chose_are_named_in_every_table(tmp_path: Path) -> None:
    searched(tmp_path, objectives=("acc_majority",))
    names = check_said(tmp_path, "settings were chosen by labels: the search went by acc_majority")
    assert {"search", "search-importance", "grid", "grid-differences"} <= names


def check_said(folder: Path, words: str) -> set[str]:
    """Each table and companion file of the folder says so, once; returns the tables' names."""
    records, names = load([folder]), set()
    cells = groups(records)
    for product in products(records, cells, options("all")):
        for table in product.tables:
            text = "\n".join([*table.lines, table.chosen]).lower()
            assert text.count(words) == text.count("chosen by labels") == 1
            names.add(table.name)
        made = files(records, product, options("all"), ("md", "csv", "tex"))
        companion = json.loads(made[f"{product.name}-provenance.json"])
        assert companion["selection"] == f"the last iteration (@last); {words}"
    return names


def confirmed_grid(folder: Path, *metric: str) -> Plan:
    """Table 1's sweep on disk, its best cell run again on fresh seeds."""
    sweep = table1_sweep(folder)
    plan = confirm(folder, *metric)
    for cell in confirmed(plan):
        for seed in cell.confirm_seeds:
            sweep.trial(dict(cell.cell.changes), seed, {"acc_majority": 0.8, "mse": 0.1})
    return plan


def test_labels_that_chose_what_to_confirm_are_named_in_every_table(tmp_path: Path) -> None:
    confirmed_grid(tmp_path / "s")
    words = "settings were chosen by labels: the cells to confirm were chosen by acc_majority"
    assert {"table1", "grid", "grid-confirm", "grid-effects"} <= check_said(tmp_path / "s", words)
    confirmed_grid(tmp_path / "t", "mse")
    check_said(
        tmp_path / "t", "nothing was chosen by labels: the cells to confirm were chosen by mse"
    )


def test_a_plan_that_does_not_say_who_chose_is_not_taken_for_an_innocent_one(
    tmp_path: Path,
) -> None:
    plan = confirmed_grid(tmp_path / "s", "mse")
    Store(tmp_path / "s").write_plan(replace(plan, confirm_by=()))
    check_said(
        tmp_path / "s",
        "settings may have been chosen by labels: the cells to confirm were chosen by a metric "
        "that the plan does not name",
    )


def test_a_search_without_labels_that_is_confirmed_by_labels_says_the_latter(
    tmp_path: Path, capsys
) -> None:
    source = searched(tmp_path)
    assert confirm(tmp_path, "acc_majority").confirm_by == ("acc_majority",)
    check_said(
        tmp_path, "settings were chosen by labels: the cells to confirm were chosen by acc_majority"
    )
    Store(tmp_path).write_plan(source.plan)
    assert confirm(tmp_path).confirm_by == ("mse",)
    assert "best by mse, or the base settings: " in capsys.readouterr().out


def test_the_page_of_a_sweep_says_who_chose(tmp_path: Path, capsys) -> None:
    confirmed_grid(tmp_path / "s")
    assert main(["--runs", str(tmp_path / "s"), "--format", "html,tex,md,csv"]) == 0
    words = "the cells to confirm were chosen by acc"
    for file in (tmp_path / "s" / "tables").iterdir():
        if file.suffix != ".csv":
            assert words in " ".join(file.read_text().split()), file.name
    capsys.readouterr()


def test_fanova_finds_the_axis_that_matters_and_says_how_sure_it_is(tmp_path: Path) -> None:
    searched(tmp_path, n_points=24, sampler="random")
    search = found(tmp_path)
    by_axis = {i.axis: i for i in search.importances[0]}
    rate, steps = by_axis["prior_lr"], by_axis["n_encoder_steps"]
    assert rate.mean > 0.5 > steps.mean
    assert rate.low < rate.mean < rate.high <= 1
    assert replace(search).importances == search.importances
    few = replace(search, points=search.points[:5])
    assert few.importances == [[]] and len(found_in.tables(few)) == 1


def test_the_front_of_two_objectives_is_a_table_of_its_own(tmp_path: Path) -> None:
    source = searched(tmp_path, objectives=("mse", "acc_majority"))
    search = found(tmp_path)
    table = found_in.best_table(search)
    assert table.title.startswith("Pareto front")
    front = best(source.search, source.points)
    assert {row.cells[0].text for row in table.rows} == {str(p.number) for p in front}


def test_unfinished_and_pruned_points_are_left_out_and_counted(tmp_path: Path) -> None:
    source = searched(tmp_path, n_points=10, prune="median")
    pruned_seed(tmp_path, source, 3, 0)
    search = found(tmp_path)
    assert len(search.points) == 9
    table = found_in.best_table(search)
    assert "9 of 10 complete" in table.title


def pruned_seed(out: Path, source: SearchSource, number: int, seed: int) -> None:
    """A seed of a point is pruned, the others are done."""
    trial = trials(source.points[number].cell, (seed,))[0]
    path = Store(out).trial_dir(trial.key)
    (path / "result.json").unlink()
    record_end(path, trial.config, State.PRUNED, "mse 0.9 at 2")


def test_a_cell_with_a_pruned_seed_has_no_mean_and_no_rank_in_any_table(tmp_path: Path) -> None:
    source = searched(tmp_path, n_points=10, prune="median")
    first = best(source.search, source.points)[0]
    pruned_seed(tmp_path, source, first.number, 0)
    records = load([tmp_path])
    found = groups(records)
    own = next(g for g in found if g.cell_key == first.cell.key)
    assert own.summary("mse").n == 0 and own.summary("mse").n_pruned == 1 and len(own.done) == 1
    made = products(records, found, options("all"))
    values = next(t for p in made for t in p.tables if t.name == "grid")
    row = next(r for r in values.rows if any("pruned (1 of 2 seeds)" in c.text for c in r.cells))
    assert not any(cell.best or cell.tied for cell in row.cells)
    assert any(cell.best for other in values.rows for cell in other.cells)
    differences = [t for p in made for t in p.tables if t.name == "grid-differences"]
    assert not any("pruned" in c.text for t in differences for r in t.rows for c in r.cells)


def test_every_table_of_a_pruned_search_says_what_that_does(tmp_path: Path) -> None:
    searched(tmp_path, n_points=10, prune="median")
    records = load([tmp_path])
    tables = [t for p in products(records, groups(records), options("all")) for t in p.tables]
    assert len(tables) >= 3
    for table in tables:
        line = " ".join(table.lines)
        assert "tends to prune slow starters" in line and "any one of its seeds" in line, table.name
    searched(tmp_path / "whole", n_points=10)
    records = load([tmp_path / "whole"])
    for product in products(records, groups(records), options("all")):
        assert not any("pruned" in line for table in product.tables for line in table.lines)


def test_the_report_carries_the_pictures_of_a_search(tmp_path: Path, capsys) -> None:
    searched(tmp_path)
    argv = ["--runs", str(tmp_path), "--format", "html,md,csv,tex"]
    assert main(argv) == 0
    page = (tmp_path / "tables" / "report.html").read_text()
    shown = ("best so far", "fANOVA", "along eta_p", "along esteps", "interpolated", "A line per")
    for words in shown:
        assert words in page
    assert page.count("data:image/png;base64,") == 6
    assert (tmp_path / "tables" / "search.md").exists()
    assert (tmp_path / "tables" / "search-importance.tex").exists()
    assert main([*argv, "--check"]) == 0  # The same records, the same bytes.
    capsys.readouterr()


def test_a_search_is_compared_with_the_best_of_another_sweep_on_fresh_seeds(
    tmp_path: Path, capsys
) -> None:
    source, grid = searched(tmp_path / "s"), Store(tmp_path / "grid")
    plan = replace(source.plan, id="another", search=None, cells=())
    plan = plan.grow([source.points[0].cell], (0, 1), "esteps")
    grid.write_plan(plan)
    for trial in plan.trials():
        finish(Store(tmp_path / "grid"), trial)
    argv = ["--runs", str(tmp_path / "s"), "--baseline", str(tmp_path / "grid")]
    assert main(argv) == 0
    assert "on the seeds that chose both, which favour both: MSE" in (
        text := " ".join(capsys.readouterr().out.split())
    )
    assert "beats it" not in text and "Welch's p" not in text
    assert "Which is better only fresh seeds of both can say." in text

    own = confirm(tmp_path / "s", "--seeds", "3")
    fresh = confirmed(own)[0].confirm_seeds
    theirs = replace(plan, cells=(replace(plan.cells[0], confirm_seeds=fresh),))
    grid.write_plan(theirs)
    capsys.readouterr()
    for out, made in ((tmp_path / "s", own), (tmp_path / "grid", theirs)):
        for trial in made.trials():
            if trial.seed in fresh:
                noise = 1e-3 * (trial.seed % 5)
                mse = value_of(trial.config.override(seed=0))["mse"] + noise
                finish(Store(out), trial, metrics={"mse": mse})
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "against the best cell of grid" in text and "on fresh seeds: MSE" in text
    assert "beats it" in text and "n = 3 and 3" in text and "Welch's p (Holm)" in text
    assert "against the base settings, on fresh seeds: MSE" in text
    first = filled(tmp_path / "first", [({}, [0.5, 0.6])]).path
    records = load([first, tmp_path / "s"])  # The base settings are those of the search.
    assert "against the base settings" in against_base(records, groups(records))[0]
    for path in (tmp_path / "grid").glob("trials/*"):
        (path / "provenance.json").write_text('{"code": "other"}')
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "MSE not compared: code" in text
    assert "beats it" not in text.partition("best cell of grid")[2].partition("base settings")[0]


def test_the_metrics_of_a_comparison_are_adjusted_for_their_number(tmp_path: Path) -> None:
    from scipy.stats import ttest_ind

    values = [
        [(0.10, 0.60), (0.12, 0.64), (0.11, 0.63)],
        [(0.13, 0.61), (0.15, 0.67), (0.16, 0.66)],
    ]
    rows = [[dict(zip(("mse", "acc_majority"), v, strict=True)) for v in cell] for cell in values]
    cells = [({"prior_lr": 1e-3 * (i + 1)}, row) for i, row in enumerate(rows)]
    text = verdicts(*groups(load([filled(tmp_path / "s", cells).path])), "mse")
    p = [ttest_ind(*np.array(values)[:, :, i], equal_var=False).pvalue for i in (0, 1)]
    shown = [float(number) for number in re.findall(r"p \(Holm\) ([0-9.]+)", text)]
    assert shown == pytest.approx([2 * p[0], p[1]], abs=5e-4) and p[1] > 2 * p[0]


def test_a_folder_is_a_baseline_for_a_search_alone(tmp_path: Path, capsys) -> None:
    sweep = table1_sweep(tmp_path / "s")
    assert main(["--runs", str(sweep.path), "--baseline", str(tmp_path)]) == 2
    assert "is a folder, which only a search takes" in capsys.readouterr().err
    assert main(["--runs", str(sweep.path), "--table", "search"]) == 2
    assert "hold no search" in capsys.readouterr().err
