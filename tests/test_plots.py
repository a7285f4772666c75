"""Plots show what they were given, write whole files, and give the same bytes twice."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpcc.evaluation import plots

ROOT = Path(__file__).resolve().parents[1]


def size(path):
    with Image.open(path) as image:
        return image.size


def mixture(k, j=6, n=300):
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(k, j)) * 4, rng.uniform(0.5, 2, size=(k, j))
    groups = rng.integers(k, size=n)
    noise = rng.normal(size=(n, j)) * np.sqrt(variances[groups])
    return means[groups] + noise, groups, means, variances


def test_principal_axes_find_the_directions_of_greatest_variance():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 4)) * [1.0, 5.0, 0.1, 2.0] + 7
    centre, axes, share = plots.principal_axes(z)
    assert centre == pytest.approx([7, 7, 7, 7], abs=0.1)
    assert axes == pytest.approx(np.eye(4)[:, [1, 3]], abs=0.02)
    assert share == pytest.approx([25 / 30.01, 4 / 30.01], abs=0.01)


def test_one_dimension_can_be_drawn(tmp_path):
    z, groups, means, variances = mixture(3, j=1)
    path = tmp_path / "latent.png"
    plots.latent_picture(z, groups, path, prior_means=means, prior_covariances=variances)
    assert size(path)[0] > 500


def test_variances_and_diagonal_covariances_are_one_ellipse():
    _, _, _, variances = mixture(3)
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 2)))[0]
    full = np.stack([np.diag(v) for v in variances])
    assert plots._projected(variances, axes) == pytest.approx(plots._projected(full, axes))


@pytest.mark.parametrize("k", [1, 10, 100])
def test_latent_picture_is_drawn_for_any_number_of_clusters(tmp_path, k):
    z, groups, means, variances = mixture(k)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        plots.latent_picture(z, groups, path, prior_means=means, prior_covariances=variances)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert size(paths[0])[0] == (1100 if k > 20 else 770)


def test_curves_leave_out_what_never_occurs_and_bear_what_is_not_finite(tmp_path):
    rows = [
        {"iteration": 1, "acc_majority": 0.2, "loss/generator": "nan"},
        {"iteration": 2, "acc_majority": 0.4, "loss/generator": 0.5, "kid": None},
    ]
    plots.curve_picture(rows, tmp_path / "curves.png")
    only = [{k: v for k, v in row.items() if k in ("iteration", "kid")} for row in rows]
    plots.curve_picture(only, tmp_path / "one.png")
    assert size(tmp_path / "curves.png")[0] > size(tmp_path / "one.png")[0]
    plots.curve_picture([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_colours_of_clusters_differ():
    for n in (10, 20, 100):
        assert len({tuple(c) for c in plots._colours(n)}) == n


DRAW = """
import sys
from mpcc.evaluation import plots
rows = [{"iteration": i, "mse": 1 / (i + 1), "nmi": i / 9} for i in range(9)]
plots.curve_picture(rows, sys.argv[1] + "/curves.png")
plots.latent_picture([[i, i * i % 7, 1] for i in range(9)], [0, 1, 2] * 3, sys.argv[1] + "/z.png")
"""


ODD = {
    "MPLBACKEND": "no such backend",
    "HOME": "/proc/nowhere",
    "XDG_CACHE_HOME": "",
    "XDG_CONFIG_HOME": "/proc",
    "PYTHONOPTIMIZE": "2",
    "LC_ALL": "C",
    "TZ": "Asia/Kolkata",
}


@pytest.mark.parametrize("surroundings", [ODD, {"MPLBACKEND": ""}])
def test_pictures_are_the_same_bytes_whatever_the_users_style_and_surroundings(
    tmp_path, monkeypatch, surroundings
):
    style = "font.size: 30\nfigure.facecolor: black\nbackend: tkagg\nlines.linewidth: 9\n"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPCC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn = []
    for folder, more in ((tmp_path / "plain", {}), (tmp_path / "theirs", surroundings)):
        folder.mkdir()
        if folder.name == "theirs":
            (folder / "matplotlibrc").write_text(style)
        command = [sys.executable, "-c", DRAW, str(folder)]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | more, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr == ""
        drawn.append([(folder / name).read_bytes() for name in ("curves.png", "z.png")])
    assert drawn[0] == drawn[1]
