"""Figures say what they leave out, and a heat map what each of its places lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.output.figures import MAX_LINES, effect, figures, heatmap, left_out
from analysis.records.load import load
from analysis.tables.groups import Group, groups
from tests.records import SweepBuilder

AXES = ("n_encoder_steps", "prior_lr")


@pytest.fixture
def cells(tmp_path: Path) -> list[Group]:
    """A grid of 2 × 9: a cell of two code versions, one with a diverged seed, one all diverged."""
    changes = [{AXES[0]: b, AXES[1]: a * 1e-3} for b in (1, 2) for a in range(1, 10)]
    sweep = SweepBuilder(tmp_path / "s").plan(changes)
    for i, change in enumerate(changes):
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.3 + 0.02 * i + 0.01 * seed})
    sweep.trial(changes[0], 2, {"acc_majority": 0.9}, code="other")
    sweep.trial(changes[3], 2, {}, state="diverged", cause="x")
    for seed in range(3):
        sweep.trial(changes[5], seed, {}, state="diverged", cause="x")
    return groups(load([sweep.path]))


@pytest.fixture
def ax():
    """Axes to draw on, closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_effect_says_which_cells_and_lines_it_leaves_out(cells: list[Group], ax) -> None:
    left = left_out(cells, "acc_majority")
    assert left == [
        "1 cell of incomparable trials not drawn",
        "1 cell without a value not drawn",
        "1 cell with fewer seeds than planned",
    ]
    drawn = [g for g in cells if g.summary("acc_majority").n and not g.part]
    effect(drawn, AXES[0], [AXES[1]], "acc_majority", ax, left)
    said = ax.get_title(loc="left")
    assert f"{MAX_LINES} of 9 lines drawn" in said and left[0] in said


def test_heat_map_marks_what_a_place_lacks(cells: list[Group], ax) -> None:
    heatmap(cells, AXES, "acc_majority", ax)
    texts = [text.get_text() for text in ax.texts]
    assert {"not com-\nparable", "36.5\n(2/3)", "diverged\n(0/3)", "33.0"} <= set(texts)
    assert len(texts) == 18


def test_heat_map_is_of_the_cells_that_have_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [{AXES[0]: b, AXES[1]: a, "n_clusters": k} for k in (5, 9) for b in (1, 2)
               for a in (1e-3, 2e-3)]  # fmt: skip
    sweep, drawn = SweepBuilder(tmp_path / "s").plan(changes), list[list[Group]]()
    for change in changes[:4]:  # Those of K 9 have not run yet.
        sweep.fill(change, [0.5])
    monkeypatch.setattr(
        "analysis.output.figures.heatmap", lambda cells, *rest: drawn.append([*cells])
    )
    figures(groups(load([sweep.path])), [*AXES, "n_clusters"], "acc_majority", ("png",))
    assert [g.settings["n_clusters"] for g in drawn[0]] == [5] * 4


def test_figures_of_a_grid_with_gaps_are_written(cells: list[Group]) -> None:
    assert {"effect-esteps.pdf", "effect-eta_p.png", "heatmap.pdf"} <= figures(
        cells, AXES, "acc_majority"
    ).keys()


def test_figures_are_the_same_bytes_whatever_the_users_style(cells: list[Group]) -> None:
    import matplotlib

    plain = figures(cells, AXES, "acc_majority")
    theirs = {"font.size": 30, "figure.facecolor": "black", "savefig.dpi": 20, "pdf.fonttype": 3}
    with matplotlib.rc_context({**theirs, "axes.grid": True}):
        assert figures(cells, AXES, "acc_majority") == plain
        assert matplotlib.rcParams["font.size"] == 30  # Theirs is theirs.
