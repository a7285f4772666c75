"""Trials to cells: which trials may be averaged, what is missing, and the summary of each metric.

A cell is a configuration without its seed. Trials of one cell that differ in images, sample count,
code version, kind of device or iterations reached are not comparable: they make separate groups and
are never averaged.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.frame import (
    AGREEMENT,
    BASELINE,
    NAMED,
    PLANNED,
    STATES,
    Records,
    number,
    short,
)
from analysis.statistics import stats
from mpcc.config import DEFAULTS, value_text
from mpcc.runs.run_dir import DONE, PRUNED

MIX = {
    "fingerprint": "data",
    "n_images": "number of images",
    "iteration": "iterations reached",
    "code_id": "code",
    "device_kind": "device",
}
"""Columns that must agree among averaged trials -> how notes name them."""


@dataclass(frozen=True)
class Summary:
    """One metric of one group, in the recorded unit."""

    n_planned: int
    values: tuple[tuple[int, float], ...]
    """(seed, value) of every finished trial with a finite value, by seed."""
    not_finite: tuple[int, ...]
    """Seeds of finished trials whose value is infinite or undefined."""
    absent: bool
    """No finished trial recorded this metric at all."""
    n_pruned: int = 0
    """Pruned trials. If there is one, the cell has no mean."""
    dependent: bool = False
    """Whether the values depend on each other, so that their mean has no interval."""

    @cached_property
    def array(self) -> np.ndarray:
        """The values, by seed."""
        return np.array([value for _, value in self.values], float)

    @cached_property
    def mean(self) -> stats.Estimate:
        """Mean with Student's t interval, unless the values depend on each other."""
        mean = stats.mean(self.array)
        return replace(mean, low=math.nan, high=math.nan) if self.dependent else mean

    @cached_property
    def std(self) -> float:
        """Standard deviation, ddof 1."""
        return stats.std(self.array)

    @property
    def n(self) -> int:
        """Values that enter the mean."""
        return len(self.values)


@dataclass(frozen=True)
class Group:
    """Trials that may be averaged: a cell, or the comparable part of one."""

    cell_key: str
    part: str
    """What distinguishes this part of the cell from its other parts; empty if it has none."""
    settings: dict[str, Any]
    """Every field of Config but the seed."""
    variant: str | None
    trials: tuple[dict[str, Any], ...]
    """Rows of the frame, by seed."""
    n_planned: int
    axes: tuple[str, ...]
    """The swept settings without the seed; `label` names a cell by them."""
    code_pooled: bool = False
    """Whether trials of different code versions may be averaged and compared (--pool-code)."""

    @cached_property
    def counts(self) -> Counter[str]:
        """Trials per state."""
        return Counter(trial["state"] for trial in self.trials)

    @cached_property
    def done(self) -> tuple[dict[str, Any], ...]:
        """Finished trials."""
        return tuple(trial for trial in self.trials if trial["state"] == DONE)

    @property
    def confirm(self) -> bool:
        """Whether these are fresh seeds, which confirm a choice made on other seeds."""
        return bool(self.trials[0]["confirm"])

    @property
    def changes(self) -> str:
        """What a named variant changes in the full model, in words; empty for a cell of a grid."""
        return str(self.trials[0]["changes"] or "")

    @property
    def key(self) -> str:
        """The cell's key, with `part` in brackets if the cell has several parts."""
        return self.cell_key + (f" ({self.part})" if self.part else "")

    @cached_property
    def _summaries(self) -> dict[str, Summary]:
        return {}

    def summary(self, metric: str) -> Summary:
        """This metric over the finished trials."""
        if metric not in self._summaries:
            self._summaries[metric] = self._summarise(metric)
        return self._summaries[metric]

    def _summarise(self, metric: str) -> Summary:
        if n_pruned := self.counts[PRUNED]:
            # A mean over the seeds that survived pruning would be too good.
            return Summary(self.n_planned, (), (), False, n_pruned)
        found = [(trial["seed"], number(trial.get(metric)), trial) for trial in self.done]
        values = tuple((seed, value) for seed, value, _ in found if math.isfinite(value))
        odd = tuple(s for s, v, trial in found if math.isinf(v) or metric in trial["undefined"])
        absent = not (values or odd)
        return Summary(self.n_planned, values, odd, absent, dependent=metric == AGREEMENT)

    @cached_property
    def outcome(self) -> dict[int, tuple[tuple[str, str], ...]]:
        """Seed -> everything that was measured of its finished trial."""
        return {
            trial["seed"]: tuple((n, repr(v)) for n, v in trial.items() if n not in NAMED)
            for trial in self.done
        }

    def reference(self, metric: str) -> float | None:
        """The value that k-means reaches on the images of these trials; None if unknown."""
        return next(iter(references([self], metric).values()), None)

    def label(self, axes: Iterable[str] | None = None) -> str:
        """The cell in words: its variant and its settings on `axes` (default: its own axes)."""
        named = self.axes if axes is None else axes
        parts = [f"{short(a)} {value_text(self.settings[a])}" for a in named]
        name = ", ".join(([self.variant] if self.variant else []) + parts) or "the base settings"
        return f"{name} [{self.part}]" if self.part else name

    def failures(self) -> str:
        """Failures of finished models of this cell (Appendix D) with their seeds; or empty."""
        names = sorted({name for trial in self.done for name in trial["failures"]})
        parts = []
        for name in names:
            seeds = ", ".join(str(t["seed"]) for t in self.done if name in t["failures"])
            parts.append(f"{name}: seed {seeds}")
        return "; ".join(parts)

    def missing(self) -> list[str]:
        """A phrase for every trial that is not done, by seed: its state and the cause."""
        phrases = []
        for trial in self.trials:
            if trial["state"] == DONE:
                continue
            state = "not run yet" if trial["state"] == PLANNED else trial["state"]
            cause = f" ({trial['cause']})" if trial["cause"] else ""
            at = f" at iteration {trial['iteration']:,}" if state in ("running", "stopped") else ""
            phrases.append(f"seed {trial['seed']} {state}{at}{cause}")
        return phrases


def groups(
    records: Records | pd.DataFrame, *, pool_code: bool = False, confirm: bool = False
) -> list[Group]:
    """The groups of these records, or of a part of their frame, in the order of their settings.

    confirm: only trials that confirm a choice on fresh seeds; without it, only the others.
    pool_code: average trials of different code versions; a note under the table then says so.
    """
    trials = records.trials if isinstance(records, Records) else records
    mix = [name for name in MIX if not (pool_code and name == "code_id")]
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in trials[trials["confirm"] == confirm].to_dict("records"):
        row["iteration"] = int(row["iteration"] or 0)
        row["undefined"] = (row["undefined"] or "").split()
        row["failures"] = (row["failures"] or "").split()
        row["unavailable"] = json.loads(row["unavailable"]) if row["unavailable"] else {}
        cells.setdefault(row["cell_key"], []).append(row)
    axes = tuple(axis for axis in trials.attrs.get("axes", ()) if axis != "seed")
    found = []
    for key, rows in cells.items():
        for part, members in _comparable(rows, mix):
            first, by_seed = members[0], sorted(members, key=lambda trial: trial["seed"])
            settings = {name: first[name] for name in DEFAULTS if name != "seed"}
            own = settings, first["variant"], tuple(by_seed)
            found.append(Group(key, part, *own, len(rows), axes, pool_code))
    return found


def confirmed(records: Records, chosen: Group) -> Group | None:
    """The chosen cell on seeds that took no part in choosing it; None if not yet confirmed."""
    again = groups(records, pool_code=chosen.code_pooled, confirm=True)
    return next((g for g in again if g.cell_key == chosen.cell_key and g.done), None)


def _comparable(
    trials: list[dict[str, Any]], mix: Sequence[str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Parts of a cell whose finished trials agree in `mix`; other trials join the largest part."""
    parts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trial in trials:
        if trial["state"] == DONE:
            parts.setdefault(tuple(trial[name] for name in mix), []).append(trial)
    if len(parts) <= 1:
        return [("", trials)]
    differing = [i for i in range(len(mix)) if len({key[i] for key in parts}) > 1]
    order = sorted(parts, key=lambda key: (-len(parts[key]), [str(k) for k in key]))
    parts[order[0]] += [trial for trial in trials if trial["state"] != DONE]
    named = []
    for key in order:
        texts = {i: f"{key[i]:,}" if isinstance(key[i], int) else key[i] for i in differing}
        words = [f"{MIX[mix[i]]} {text or 'unknown'}" for i, text in texts.items()]
        named.append((", ".join(words), parts[key]))
    return named


def references(found: Iterable[Group], metric: str) -> dict[str, float]:
    """What k-means reached: ` on DATASET (content HASH) with K N` -> its value of `metric`.

    A key names only what distinguishes the values: that of a single value is empty. k-means has one
    seed; values from other versions of its library may differ a little, and the first one is used.
    """
    name = f"{BASELINE}kmeans_{metric}"
    values: dict[tuple[str, str, int], float] = {}
    for group in found:
        for trial in group.done:
            value = trial.get(name, math.nan)
            if math.isfinite(value):
                dataset, k = group.settings["dataset"], group.settings["n_clusters"]
                values.setdefault((dataset, trial["fingerprint"] or "unknown", k), value)
    images = {(dataset, content) for dataset, content, _ in values}
    names, several_k = Counter(dataset for dataset, _ in images), len({k for *_, k in values}) > 1
    return {
        f" on {dataset}" * (len(images) > 1)
        + f" (content {content})" * (names[dataset] > 1)
        + f" with K {k}" * several_k: value
        for (dataset, content, k), value in values.items()
    }


def tally(found: Sequence[Group]) -> dict[str, int]:
    """Trials per state over all groups, in the order of STATES, without zeros."""
    total: Counter[str] = Counter()
    for group in found:
        total.update(group.counts)
    return {state: total[state] for state in STATES if total[state]}
