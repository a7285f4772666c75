"""The definition of a search, as plain data, and the checks that it can find something.

A search whose objective no trial measures, or whose points are measured on different images, would
run to its end and find nothing: it is refused before it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcc.config import Config, unknown
from mpcc.data import folder
from mpcc.evaluation import inception
from mpcc.evaluation.metrics import METRICS, NEED_CLUSTERS, NEED_LABELS, TEST
from tune.plan.cells import Cell, Trial, trials
from tune.plan.plan import PLAN, Plan, PlanError
from tune.suggest.space import Space, space_of_dict

SAMPLERS = ("tpe", "random")

DEFAULT_OBJECTIVE = "cluster_information"
"""It needs no labels and is measured on the real images. Over 24 random settings of the digits, 300
iterations each, its rank correlation with the accuracy was 0.78, that of the silhouette 0.83,
that of the reconstruction error 0.28 with the wrong sign. The silhouette ignores empty clusters;
the losses' own values can be lowered by their weights or by spreading the prior."""

NEEDS = {
    "clusters": tuple(name for name in NEED_CLUSTERS if METRICS[name].has_better_end),
    "generated images": ("inception_score", "fid", "kid", "fid_cnn"),
    "Inception": ("inception_score", "fid", "kid"),
    "grey images": ("fid_cnn",),
    "test images": tuple(name for name in METRICS if name.endswith(TEST)),
}
"""Requirement -> metrics that need it (labels: NEED_LABELS). Images are generated only at the last
evaluation."""

LACKING = {
    "clusters": "is of clusters, and prior=normal has none: choose another prior, or mse",
    "generated images": "is measured on generated images and none are asked for: "
    "add --set n_generated=50000",
    "Inception": "is of the Inception network, which says nothing of 8×8 pixels: choose fid_cnn",
    "grey images": "is of grey images, and these have colours: choose fid",
    "test images": "is of images that are not trained on: add --set split=train eval_split=test",
}
"""Requirement -> message for an objective if it is not met."""

NO_AXES = {
    "points on different images cannot be compared": ("dataset", "split", "image_size"),
    "the longest training would win; give it as --iterations": ("iterations",),
    "it changes when or how a model is measured, not the model": (
        *("eval_every", "eval_split", "n_generated", "n_is_splits", "n_standing_passes"),
    ),
    "it changes what counts as a failure, not the model": ("max_saturation", "min_diversity"),
    "it changes the speed of a trial, not the model": ("cpu_threads", "fast"),
}
"""Reason -> the settings that no search can vary for that reason."""

RISES_WITH_K = {
    "cluster_information": "it is log K at best",
    "acc_majority": "clusters of one image each would have all of it",
}
"""Objective that more clusters alone improve -> the reason."""


@dataclass(frozen=True)
class Search:
    """The definition of a search, as sweep.json holds it."""

    space: Space
    objectives: tuple[str, ...] = (DEFAULT_OBJECTIVE,)
    seeds: tuple[int, ...] = (0, 1, 2)
    sampler: str = "tpe"
    sampler_seed: int = 0
    startup: int = 10
    """Random points before the sampler uses results."""
    ahead: int = 4
    """A point is drawn when all but the last `ahead` - 1 points before it have ended."""
    prune: str | None = None
    n_points: int = 20
    points: tuple[Cell, ...] = ()
    """The points by number; sweep.json has the keys of these cells."""

    @property
    def by_labels(self) -> tuple[str, ...]:
        """The objectives that use labels."""
        return tuple(name for name in self.objectives if name in NEED_LABELS)

    def rests_on(self, number: int) -> int:
        """How many points, from the first on, decide this point's settings and pruning."""
        return max(0, number - self.ahead + 1)

    def trials(self) -> list[Trial]:
        """The trials of every point so far, by number."""
        return [trial for cell in self.points for trial in trials(cell, self.seeds)]

    def to_dict(self) -> dict[str, object]:
        """The search as sweep.json holds it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {"objectives": list(self.objectives), "seeds": list(self.seeds)}
        points = [cell.key for cell in self.points]
        return values | lists | {"space": self.space.to_dict(), "points": points}


def search_of(plan: Plan) -> Search:
    """The search of this plan; PlanError if it has none or if that is damaged."""
    if plan.search is None:
        raise PlanError(f"{PLAN} holds no search")
    cells = {planned.cell.key: planned.cell for planned in plan.cells}
    try:
        match plan.search:
            case {
                "space": dict(axes),
                "objectives": list(names),
                "sampler": str(sampler),
                "sampler_seed": int(sampler_seed),
                "startup": int(startup),
                "ahead": int(ahead),
                "prune": (str() | None) as prune,
                "n_points": int(n_points),
            }:
                return Search(
                    space_of_dict(axes, plan.base),
                    known_metrics([*map(str, names)]),
                    plan.search_seeds,
                    *(sampler, sampler_seed, startup, ahead, prune, n_points),
                    tuple(cells[key] for key in plan.search_points),
                )
        raise ValueError("a value is missing or of another type")
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"the search in {PLAN} is damaged ({error})") from None


def check_same(out: Path, was: Search, now: Search) -> None:
    """PlanError that names the setting in which an existing search would change."""
    for field in dataclasses.fields(Search):
        before, after = getattr(was, field.name), getattr(now, field.name)
        if before != after and field.name not in ("n_points", "points"):
            raise PlanError(
                f"{out} holds a search with {field.name} {before}, now {after}: "
                "leave it as it is, or choose another --out"
            )
    if now.n_points < len(was.points):
        raise PlanError(f"{out} has {len(was.points)} points already; --points cannot be fewer")


def known_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """These names; ValueError for one that no version measures."""
    for name in names:
        if name not in METRICS:
            measured = [n for n, metric in METRICS.items() if metric.replaced_by is None]
            raise ValueError(unknown("objective", name, measured))
    return tuple(names)


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """These metrics as objectives; ValueError for one that is unknown or repeated, that has no
    better end, or that earlier versions measured."""
    for name in known_metrics(names):
        metric = METRICS[name]
        if metric.replaced_by is not None:
            raise ValueError(
                f"{name} is no objective: trials measure {metric.replaced_by} in its place"
            )
        if not metric.has_better_end:
            best = "" if metric.ideal is None else f"; {metric.ideal:g} is best"
            raise ValueError(f"{name} is no objective: neither more nor less of it is better{best}")
    if len(set(names)) < len(names):
        raise ValueError(f"an objective is given twice: {', '.join(names)}")
    if not names:
        raise ValueError("--objective is empty; the default is " + DEFAULT_OBJECTIVE)
    return tuple(names)


def check(search: Search, base: Config) -> None:
    """ValueError for an axis or a pruning rule that makes no sense, or an objective that no trial
    of these base settings measures."""
    axes = search.space.axes
    for reason, fields in NO_AXES.items():
        for axis in axes:
            if axis.field in fields:
                raise ValueError(f"{axis.name} is no axis of a search: {reason}")
    priors = [prior for axis in axes if axis.field == "prior" for prior in axis.options or ()]
    lacking = {
        "clusters": "normal" in (priors or [base.prior]),
        "generated images": base.n_generated is None,
        "Inception": base.n_generated is not None and not base.scored_by_inception,
        "grey images": base.n_channels != 1,
        "test images": base.eval_split != "test",
    }
    for need, text in LACKING.items():
        for name in search.objectives:
            if lacking[need] and name in NEEDS[need]:
                raise ValueError(f"--objective {name} {text}")
    if search.prune is not None and len(search.objectives) > 1:
        raise ValueError("--prune is for one objective: with several none is worse by itself")
    if search.prune is not None and search.objectives[0] in NEEDS["generated images"]:
        raise ValueError(
            f"--prune cannot go by {search.objectives[0]}, which the last iteration alone has"
        )


def check_here(search: Search, base: Config, data_dir: Path | str | None) -> None:
    """ValueError if this machine lacks Inception's weights, or labels of the user's own images."""
    if not set(search.objectives).isdisjoint(NEEDS["Inception"]):
        inception.find_weights()
    if search.by_labels and base.dataset == "folder":
        if not any(label for _, label in folder.find(data_dir).images):
            raise ValueError(
                f"--objective {search.by_labels[0]} needs labels and the images in {data_dir} have "
                "none: put them into subfolders named by label, or choose another objective"
            )


def warnings(search: Search) -> list[str]:
    """Warnings about objectives that a larger n_clusters alone improves, one line each."""
    return [
        f"More clusters make {name} better by themselves ({reason}): the search will lean to a "
        "large n_clusters; cluster_information_share can be compared over them"
        for name, reason in RISES_WITH_K.items()
        if name in search.objectives and any(a.field == "n_clusters" for a in search.space.axes)
    ]
