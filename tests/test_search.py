"""`python tune/search.py`: what it answers; searches that run are in test_promises_sweep.py."""

import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcc.config import PRESETS
from tests.test_suggest import begin, drive
from tune import search
from tune.store.folder import Store
from tune.suggest.points import best
from tune.suggest.source import SearchSource

ROOT = Path(search.__file__).resolve().parents[1]
TINY = PRESETS["tiny"]
pytestmark = pytest.mark.usefixtures("nothing_is_measured")
SPACE = ("eta_p=1e-4..1e-1:log", "esteps=1..4")


def begun(out: Path, n_points: int, n_ends: int = 10**6, **changes: Any) -> SearchSource:
    """A search in this folder whose first trials have ended, in any order."""
    plan = begin(n_points=n_points, **changes)
    return drive(out, plan, random.Random(1), stop_after=n_ends)


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = search.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


S = ["--space", "eta_p=1e-3..1e-2:log"]
NONE = ["--set", "n_generated=none"]
LARGE = ["--set", "image_size=16", "n_generated=99"]

BAD = [
    ([], "no search is planned in"),
    (["--space", "eta_q=1..2"], "did you mean 'eta_p'?"),
    (["--space"], "argument --space: expected at least one argument"),
    ([*S, "--objective", "mze"], "unknown objective 'mze'; did you mean 'mse'?"),
    ([*S, "--objective", ","], "--objective is empty"),
    ([*S, "--objective", "mse,mse"], "given twice"),
    ([*S, "--objective", "loss/encoder"], "loss/encoder is no objective"),
    ([*S, "--points", "0"], "--points: must be a whole number from 1 to 10000, got '0'"),
    ([*S, "--seeds", "none"], "--seeds must be a count or a list"),
    ([*S, "--sampler", "tpa"], "argument --sampler: invalid choice: 'tpa' (choose from 'tpe'"),
    ([*S, "--ahead", "1.5"], "--ahead: must be a whole number"),
    ([*S, "--sampler", "random", "--startup", "3"], "--startup is of --sampler tpe"),
    ([*S, "--startup", "-1"], "--startup: must be a whole number from 1"),
    ([*S, "--sampler-seed", "x"], "--sampler-seed: must be a whole number from"),
    ([*S, *NONE, "--objective", "fid"], "--objective fid is measured on generated images and none"),
    ([*S, *NONE, "--objective", "mse,kid"], "add --set n_generated=50000"),
    ([*S, *NONE, "--objective", "fid_cnn"], "add --set n_generated=50000"),
    (
        [*S, "--set", "n_generated=99", "--objective", "fid"],
        "nothing of 8×8 pixels: choose fid_cnn",
    ),
    ([*S, "--objective", "silhouette", "--set", "prior=normal"], "of clusters, and prior=normal"),
    ([*S, "prior=normal,gaussian_mixture"], "cluster_information is of clusters"),
    (["--space", "dataset=digits,mnist"], "dataset is no axis of a search: points on different"),
    (["--space", "iterations=4..8"], "iterations is no axis of a search: the longest training"),
    (["--space", "cpu_threads=1,2"], "cpu_threads is no axis of a search: it changes the speed"),
    (["--space", "n_generated=10,20"], "n_generated is no axis of a search"),
    ([*S, "--prune", "asha"], "argument --prune: invalid choice: 'asha' (choose from 'median'"),
    ([*S, "--prune", "median", "--objective", "mse,silhouette"], "--prune is for one objective"),
    (
        [*S, "--prune", "median", "--objective", "fid", *LARGE],
        "cannot go by fid",
    ),
    ([*S, "--set", "eta_p=1e-3"], "eta_p is both set and searched"),
    ([*S, "--preset", "digit"], "did you mean 'digits'?"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = [] if "--preset" in argv else ["--preset", "tiny"]
    code, out, err = call(capsys, *preset, "--out", str(tmp_path / "s"), *argv)
    assert code == 2 and out == ""
    assert err.startswith("search.py: ") and err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_status_shows_each_point_its_value_and_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = begun(tmp_path, 5, n_ends=8)
    code, out, err = call(capsys, "--out", str(tmp_path), "--status")
    first = best(source.search, source.points)[0]
    assert code == 3 and err == ""
    value = f"MSE {first.values[0]:.4f} ± {statistics.stdev(first.seeds[0]):.4f}"
    assert f"point {first.number:>3} * {first.cell.key}  {value}  " in out
    assert "of 5 points have ended" in out and f"Best: {first.cell.text}" in out


def test_a_search_that_grows_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, 5)
    _, out, _ = call(capsys, "--out", str(tmp_path), "--points", "7", "--status")
    assert f"{tmp_path} holds a search of 5 points; now 7\n" in out


def test_a_finished_search_answers_under_changed_code_and_knows_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path, 5)
    plan = Store(tmp_path).read_plan()
    assert plan is not None
    old = replace(plan, code_files={**plan.code_files, "mpcc/config/presets.py": "older"})
    Store(tmp_path).write_plan(old)
    same = ["--out", str(tmp_path), "--dry-run"]
    code, out, _ = call(capsys, *same)
    assert code == 0 and "time:" not in out and "5 points of 2 seeds, 10 trials" in out
    code, _, err = call(capsys, *same, "--points", "6")
    assert code == 2 and "other code" in err
    code, out, _ = call(capsys, *same, "--points", "6", "--accept-changed-code")
    assert code == 0 and "time:" in out


def test_a_begun_search_cannot_become_another_but_may_grow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path, 5)
    same = ["--out", str(tmp_path), "--dry-run"]
    for argv, message in (
        (["--space", "esteps=1..3"], "with space eta_p=1e-4..0.1:log esteps=1..4, now esteps=1..3"),
        (["--objective", "silhouette"], "with objectives ('mse',), now ('silhouette',)"),
        (["--sampler-seed", "4"], "with sampler_seed 0, now 4"),
        (["--ahead", "7"], "with ahead 3, now 7"),
        (["--points", "3"], "has 5 points already"),
    ):
        code, _, err = call(capsys, *same, *argv)
        assert code == 2 and message in err and err.count("\n") == 1
    code, out, _ = call(capsys, *same, "--points", "8")
    assert code == 0 and "8 points of 2 seeds" in out


def test_what_is_measured_with_something_that_is_missing_here_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"")
    monkeypatch.delenv("MPCC_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    out = ["--preset", "tiny", *S, "--out", str(tmp_path / "s")]
    own = ["--set", "dataset=folder", "--data-dir", str(images)]
    for argv, message in (
        ([*own, "--objective", "acc_majority"], "--objective acc_majority needs labels and the"),
        (["--objective", "fid", *LARGE], "Inception weights missing: give"),
    ):
        code, said, err = call(capsys, *out, *argv)
        assert code == 2 and said == "" and message in err and err.count("\n") == 1
        assert not (tmp_path / "s").exists()


def test_a_space_that_leans_to_one_side_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "tiny", "--space", "n_clusters=5..20", "--out", str(tmp_path / "s")]
    _, said, _ = call(capsys, *words, "--dry-run")
    assert "More clusters make cluster_information better by themselves" in said
    _, said, _ = call(capsys, *words, "--objective", "mse", "--dry-run")
    assert "More clusters" not in said
