"""What a search looks for, as plain data, and whether it can find it.

A search whose objective no trial measures, or whose points are measured on different images, would
run to its end and find nothing: it is refused before it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mpcc import data_files, inception
from mpcc.config import Config, unknown
from mpcc.metrics import METRICS, NEED_LABELS
from tune.plan.plan import PLAN, Plan, PlanError
from tune.plan.pruning import PRUNERS
from tune.suggest.space import Space, short, space_of_dict

T = TypeVar("T")

SAMPLERS = ("tpe", "random")

DEFAULT_OBJECTIVE = "cluster_information"
"""It needs no labels and is measured on the real images. Over 24 random settings of the digits, 300
iterations each, its rank correlation with the accuracy was 0.78, that of the silhouette 0.83 and
that of the reconstruction error 0.28 the wrong way round. The silhouette does not mind empty
clusters; the losses' own values can be lowered by their weights or by spreading the prior."""

FIXED = ("space", "objectives", "seeds", "sampler", "sampler_seed", "startup", "ahead", "prune")
"""What cannot change once a search has begun: its later points would be those of another search."""

NEEDS = {
    "clusters": (
        *("acc_majority", "acc_hungarian", "nmi", "ari", "cluster_information", "silhouette"),
        *("diversity_min", "n_clusters_collapsed"),
    ),
    "generated images": ("inception_score", "fid", "kid", "fid_cnn"),
    "Inception": ("inception_score", "fid", "kid"),
    "grey images": ("fid_cnn",),
}
"""What some metrics cannot be measured without -> these metrics; for labels see NEED_LABELS.
Generated images are there at the last evaluation alone."""

_IMAGES = "points on different images cannot be compared"
_MEASURED = "it changes how a model is measured, not the model"
_FAILURE = "it changes what counts as a failure, not the model"
_SPEED = "it changes the speed of a trial, not the model"
NO_AXES = {
    **dict.fromkeys(("dataset", "split", "image_size"), _IMAGES),
    "iterations": "the longest training would win; give it as --iterations",
    "eval_every": "it changes when a model is measured, not the model",
    **dict.fromkeys(("n_generated", "n_is_splits", "n_standing_passes"), _MEASURED),
    **dict.fromkeys(("max_saturation", "min_diversity"), _FAILURE),
    **dict.fromkeys(("cpu_threads", "fast"), _SPEED),
}
"""Settings that no search can vary, and why."""

RISES_WITH_K = {
    "cluster_information": "it is log K at best",
    "acc_majority": "clusters of one image each would have all of it",
}
"""Objectives that more clusters make good by themselves."""


@dataclass(frozen=True)
class Search:
    """What sweep.json says of a search."""

    space: Space
    objectives: tuple[str, ...] = (DEFAULT_OBJECTIVE,)
    seeds: tuple[int, ...] = (0, 1, 2)
    sampler: str = "tpe"
    sampler_seed: int = 0
    startup: int = 10
    """Points drawn by chance before the sampler looks at results."""
    ahead: int = 4
    """A point is drawn when all but the last `ahead` - 1 points before it have ended."""
    prune: str | None = None
    n_points: int = 20
    points: tuple[str, ...] = ()
    """Cell keys of the points, by number."""

    @property
    def by_labels(self) -> tuple[str, ...]:
        """The objectives that look at labels."""
        return tuple(name for name in self.objectives if name in NEED_LABELS)

    def rests_on(self, number: int) -> int:
        """How many points, from the first on, a point's settings and its pruning rest on."""
        return max(0, number - self.ahead + 1)

    def to_dict(self) -> dict[str, object]:
        """The search as sweep.json holds it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(values[name]) for name in ("objectives", "seeds", "points")}
        return values | {"space": self.space.to_dict()} | lists


def search_of(plan: Plan) -> Search | None:
    """The search of this plan, None where it has none; PlanError where it is damaged."""
    if plan.search is None:
        return None
    try:
        known = {f.name: plan.search[f.name] for f in dataclasses.fields(Search)}
        sampler, prune = str(known["sampler"]), known["prune"]
        if not set(plan.search_points) <= {planned.cell.key for planned in plan.cells}:
            raise ValueError("a point has no cell")
        return Search(
            space=space_of_dict(_typed(dict, known["space"]), plan.base),
            objectives=check_objectives([str(name) for name in _typed(list, known["objectives"])]),
            seeds=plan.search_seeds,
            sampler=sampler,
            sampler_seed=_typed(int, known["sampler_seed"]),
            startup=_typed(int, known["startup"]),
            ahead=_typed(int, known["ahead"]),
            prune=None if prune is None else str(prune),
            n_points=_typed(int, known["n_points"]),
            points=plan.search_points,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"the search in {PLAN} is damaged ({error})") from None


def check_same(out: Path, was: Search, now: Search) -> None:
    """PlanError that names what of a begun search is asked to be different."""
    for name in FIXED:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            texts = [v.text if isinstance(v, Space) else str(v) for v in (before, after)]
            raise PlanError(
                f"{out} holds a search with {name} {texts[0]}, now {texts[1]}: "
                "leave it as it is, or choose another --out"
            )
    if now.n_points < len(was.points):
        raise PlanError(f"{out} has {len(was.points)} points already; --points cannot be fewer")


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """These metrics as objectives; ValueError for one that is unknown, repeated or has no end."""
    for name in names:
        if name not in METRICS:
            raise ValueError(unknown("objective", name, METRICS))
        if name.startswith(("loss/", "prior/")) or name == "n_clusters_used":
            raise ValueError(f"{name} is no objective: neither more nor less of it is better")
    if len(set(names)) < len(names):
        raise ValueError(f"an objective is given twice: {', '.join(names)}")
    if not names:
        raise ValueError("--objective is empty; the default is " + DEFAULT_OBJECTIVE)
    return tuple(names)


def check(search: Search, base: Config) -> None:
    """ValueError for an axis or a pruning rule that makes no sense, or an objective that no trial
    of these base settings measures."""
    _check_prune(search)
    priors: set[object] = {base.prior}
    for axis in search.space.axes:
        if axis.field in NO_AXES:
            raise ValueError(f"{short(axis.field)} is no axis of a search: {NO_AXES[axis.field]}")
        if axis.field == "prior":
            priors = set(axis.options or ())
    for name in search.objectives:
        if name in NEEDS["generated images"] and base.n_generated is None:
            raise ValueError(
                f"--objective {name} is measured on generated images and none are asked for: "
                "add --set n_generated=50000"
            )
        if name in NEEDS["grey images"] and base.n_channels != 1:
            raise ValueError(
                f"--objective {name} is of grey images, those of {base.dataset} have "
                f"{base.n_channels} colours: choose fid"
            )
        if name in NEEDS["clusters"] and "normal" in priors:
            others = [n for n in METRICS if n.startswith("mse") or n == "saturation"]
            raise ValueError(
                f"--objective {name} is of clusters, and prior=normal has none: "
                f"choose another prior or objective ({', '.join(others)})"
            )


def _check_prune(search: Search) -> None:
    if search.prune is None:
        return
    if search.prune not in PRUNERS:
        raise ValueError(f"--prune must be {' or '.join(PRUNERS)}, got '{search.prune}'")
    if len(search.objectives) > 1:
        raise ValueError("--prune is for one objective: with several none is worse by itself")
    if search.objectives[0] in NEEDS["generated images"]:
        raise ValueError(
            f"--prune cannot go by {search.objectives[0]}, which the last iteration alone has"
        )


def check_here(search: Search, base: Config, data_dir: Path | str | None) -> None:
    """ValueError where this machine lacks Inception's weights, or labels of one's own images."""
    if not set(search.objectives).isdisjoint(NEEDS["Inception"]):
        inception.find_weights()
    if search.by_labels and base.dataset == "folder":
        found = data_files.find_images(data_dir)
        if not any(label for _, label in found):
            raise ValueError(
                f"--objective {search.by_labels[0]} needs labels and the images in {data_dir} have "
                "none: put them into subfolders named by label, or choose another objective"
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


def _typed(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
