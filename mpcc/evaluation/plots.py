"""The latent space in two dimensions and metrics over iterations, with matplotlib.

matplotlib takes about a second to import and is imported when the first picture is drawn. Margins
are fixed: constrained layout doubles the time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpcc.data.places import cache_dir
from mpcc.runs.run_dir import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CURVE_PANELS = (
    ("acc_majority", "acc_hungarian", "nmi", "ari"),
    ("loss/discriminator", "loss/generator"),
    ("loss/encoder", "loss/membership", "loss/entropy"),
    ("mse",),
    ("mse_published", "mse_squared_mean"),
    ("fid", "fid_cnn", "kid"),
    ("inception_score",),
    ("saturation_excess", "saturation", "diversity_min"),
    ("n_clusters_used", "n_clusters_collapsed"),
    ("prior/std", "prior/std_mean"),
)
"""Metrics that share an axis in the picture of curves."""
N_POINTS = 5000
"""Encodings that the picture of the latent space shows at most."""


@contextlib.contextmanager
def own_style(changes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """matplotlib's defaults with these changes, whatever the user's files and variables say.

    Draw and save a figure inside the block, so that it has the same bytes for every user.
    """
    matplotlib = _matplotlib()
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with matplotlib.rc_context(defaults | dict(changes or {})):
        yield


@functools.cache
def _matplotlib() -> Any:
    """matplotlib, imported with the agg backend and a writable config folder, whatever MPLBACKEND
    and HOME are."""
    ours = {"MPLBACKEND": "agg"}  # A notebook names a backend that only its kernel has.
    if "MPLCONFIGDIR" not in os.environ:
        ours["MPLCONFIGDIR"] = str(cache_dir() / "matplotlib")
    theirs = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    try:
        import matplotlib.font_manager  # It reads its list of fonts on import.
    finally:
        for name, value in theirs.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return matplotlib


@own_style()
def latent_picture(
    encodings: ArrayLike,
    groups: ArrayLike,
    path: Path,
    *,
    prior_means: ArrayLike | None = None,
    prior_covariances: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Write encodings (N, J) in their two principal directions, coloured by group (N,).

    The prior's components, means (K, J) and covariances (K, J, J) or variances (K, J), are drawn
    as ellipses of two standard deviations of the projected component, with their numbers.
    """
    z, groups = np.asarray(encodings, np.float64), np.asarray(groups)
    centre, axes, share = principal_axes(z)
    chosen = np.random.default_rng(0).permutation(len(z))[:N_POINTS]
    points, groups = (z[chosen] - centre) @ axes, groups[chosen]

    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    present = np.unique(groups)
    colours = _colours(int(present.max()) + 1)
    many = len(present) > 20 or (prior_means is not None and len(np.asarray(prior_means)) > 20)
    side = 10 if many else 7
    figure = Figure(figsize=(side, side), dpi=110)
    ax = figure.add_axes((0.12, 0.07, 0.86, 0.88))
    for k in present:
        ours = points[groups == k]
        ax.scatter(ours[:, 0], ours[:, 1], s=7, color=colours[k], label=str(k), lw=0, alpha=0.7)
    if prior_means is not None and prior_covariances is not None:
        means = (np.asarray(prior_means, np.float64) - centre) @ axes
        spreads = _projected(prior_covariances, axes)
        thin = {"fill": False, "lw": 0.4, "alpha": 0.5} if many else {"fill": False, "lw": 0.9}
        for k, (mean, covariance) in enumerate(zip(means, spreads, strict=True)):
            values, vectors = np.linalg.eigh(covariance)
            angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
            wide, high = 4 * np.sqrt(np.clip(values[::-1], 0, None))
            ax.add_patch(Ellipse((mean[0], mean[1]), wide, high, angle=angle, **thin))
            number = ax.annotate(str(k), (mean[0], mean[1]), ha="center", va="center")
            number.set_fontsize(7 if many else 9)
            number.set_bbox(
                {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7}
            )
        ax.autoscale_view()
    ax.set_xlabel(f"first principal direction ({share[0]:.0%} of the variance)")
    ax.set_ylabel(f"second ({share[1]:.0%})")
    ax.set_title(title)
    if len(present) <= 20:
        ax.legend(markerscale=3, fontsize=8, loc="best", ncols=1 + len(present) // 11)
    _save_figure(figure, path)


@own_style()
def curve_picture(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Write metrics over iterations, rows as in metrics.jsonl, one panel per group of names.

    Values that are not finite leave gaps; metrics that never occur are left out.
    """
    from matplotlib.figure import Figure

    known = {name for row in rows for name in row}
    groups = [[n for n in group if n in known] for group in CURVE_PANELS]
    groups = [group for group in groups if group]
    if not groups:
        return
    n_columns = min(2, len(groups))
    n_rows = -(-len(groups) // n_columns)
    figure = Figure(figsize=(5 * n_columns, 3 * n_rows), dpi=100)
    iterations = [row["iteration"] for row in rows]
    for i, group in enumerate(groups):
        row, column = n_rows - 1 - i // n_columns, i % n_columns
        ax = figure.add_axes((
            (column + 0.14) / n_columns,
            (row + 0.17) / n_rows,
            0.82 / n_columns,
            0.75 / n_rows,
        ))  # fmt: skip
        for name in group:
            values = [_finite(row.get(name)) for row in rows]
            ax.plot(iterations, values, marker=".", label=name)
        ax.set_xlabel("iteration")
        ax.locator_params(nbins=5)
        ax.ticklabel_format(axis="y", scilimits=(-3, 4))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    _save_figure(figure, path)


def principal_axes(
    z: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean (J,), the two directions of greatest variance (J, 2), and their shares of it (2,).

    The sign of each direction makes its largest coefficient positive, so that pictures of equal
    encodings are equal. One-dimensional encodings get a second direction of zeros.
    """
    centre = z.mean(0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
    axes, values = vectors[:, ::-1][:, :2], np.clip(values[::-1], 0, None)
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    share = values[:2] / max(values.sum(), 1e-300)
    missing = 2 - axes.shape[1]
    return centre, np.pad(axes, ((0, 0), (0, missing))), np.pad(share, (0, missing))


def _projected(covariances: ArrayLike, axes: NDArray[Any]) -> NDArray[np.float64]:
    """Covariances (K, 2, 2) of components in the plane of the picture."""
    spread = np.asarray(covariances, np.float64)
    if spread.ndim == 2:
        return np.einsum("ja,kj,jb->kab", axes, spread, axes)
    return axes.T @ spread @ axes


def _colours(n: int) -> list[Any]:
    """n different colours: tab10 or tab20 or, for more than 20, spread around the hue circle."""
    import matplotlib

    if n <= 20:
        return [matplotlib.colormaps["tab10" if n <= 10 else "tab20"](k) for k in range(n)]
    return [matplotlib.colormaps["hsv"](k * 0.618034 % 1) for k in range(n)]


def _finite(value: Any) -> float:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan


def _save_figure(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
