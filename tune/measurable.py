"""Whether a search's objectives will be measured, and whether its axes leave them comparable.

A search that goes by what no trial measures, or whose points are measured on different images,
would run to its end and find nothing: it is refused before it begins.
"""

from __future__ import annotations

from pathlib import Path

from mpcc import data_files, inception
from mpcc.config import SHORT, Config
from mpcc.metrics import METRICS, NEED_LABELS
from tune.ledger import LedgerError
from tune.points import Search

OF_INCEPTION = ("inception_score", "fid", "kid")
OF_GENERATED = (*OF_INCEPTION, "fid_cnn")
OF_CLUSTERS = (
    *("acc_majority", "acc_hungarian", "nmi", "ari", "cluster_information", "silhouette"),
    *("diversity_min", "n_clusters_collapsed"),
)

NO_AXES = {
    "dataset": "points on different images cannot be compared",
    "split": "points on different images cannot be compared",
    "image_size": "points on different images cannot be compared",
    "iterations": "the longest training would win; give it as --iterations",
    "eval_every": "it changes when a model is measured, not the model",
    "n_generated": "it changes how a model is measured, not the model",
    "n_is_splits": "it changes how a model is measured, not the model",
    "n_standing_passes": "it changes how a model is measured, not the model",
    "max_saturation": "it changes what counts as a failure, not the model",
    "min_diversity": "it changes what counts as a failure, not the model",
    "cpu_threads": "it changes the speed of a trial, not the model",
    "fast": "it changes the speed of a trial, not the model",
}
"""Settings that no search can vary, and why."""

RISES_WITH_K = {
    "cluster_information": "it is log K at best",
    "acc_majority": "clusters of one image each would have all of it",
}
"""Objectives that more clusters make good by themselves."""


def check(search: Search, base: Config) -> None:
    """LedgerError for an axis that makes no sense, or an objective that is not to be had."""
    for axis in search.space.axes:
        if axis.field in NO_AXES:
            name = SHORT.get(axis.field, axis.field)
            raise LedgerError(f"{name} is no axis of a search: {NO_AXES[axis.field]}")
    priors = {base.prior}
    for axis in search.space.axes:
        if axis.field == "prior":
            priors = set(axis.values() or ())
    for name in search.objectives:
        if name in OF_GENERATED and base.n_generated is None:
            raise LedgerError(
                f"--objective {name} is measured on generated images and none are asked for: "
                "add --set n_generated=50000"
            )
        if name == "fid_cnn" and base.n_channels != 1:
            raise LedgerError(
                f"--objective fid_cnn is of grey images, those of {base.dataset} have "
                f"{base.n_channels} colours: choose fid"
            )
        if name in OF_CLUSTERS and "normal" in priors:
            raise LedgerError(
                f"--objective {name} is of clusters, and prior=normal has none: "
                f"choose another prior or objective ({_without_clusters()})"
            )


def check_here(search: Search, base: Config, data_dir: Path | str | None) -> None:
    """The same for what lies on this machine: Inception's weights, labels of one's own images."""
    if any(name in OF_INCEPTION for name in search.objectives):
        inception.find_weights()
    wanted = [name for name in search.objectives if name in NEED_LABELS]
    if wanted and base.dataset == "folder":
        found = data_files.find_images(data_dir)
        if not any(label for _, label in found):
            raise LedgerError(
                f"--objective {wanted[0]} needs labels and the images in {data_dir} have none: "
                "put them into subfolders named by label, or choose another objective"
            )


def warnings(search: Search) -> list[str]:
    """What the space does to the objectives by itself, a line each."""
    if not any(axis.field == "n_clusters" for axis in search.space.axes):
        return []
    return [
        f"More clusters make {name} better by themselves ({RISES_WITH_K[name]}): the search will "
        "lean to a large n_clusters"
        for name in search.objectives
        if name in RISES_WITH_K
    ]


def _without_clusters() -> str:
    names = [n for n in METRICS if n.startswith("mse") or n == "saturation"]
    return ", ".join(names)
