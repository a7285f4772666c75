"""The DataFrame of trials: its columns, its checks, and the merging of duplicate records."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mpcc.config import DEFAULTS, SHORT, from_record
from mpcc.evaluation.metrics import NEED_LABELS
from mpcc.runs.run_dir import DIVERGED, DONE, ENDED, FAILED, PRUNED
from tune.plan.plan import FULL_MODEL, Plan, PlannedCell
from tune.plan.pruning import BIAS
from tune.plan.state import State

PLANNED, RUNNING, STOPPED = str(State.PLANNED), str(State.RUNNING), str(State.STOPPED)
DAMAGED, CONFLICT = "damaged", "conflicting"
STATES = (DONE, DIVERGED, FAILED, PRUNED, STOPPED, RUNNING, PLANNED, DAMAGED, CONFLICT)
"""`conflicting`: several records of one trial that disagree; none of them is used."""

META = (
    *("source", "sweep", "trial_key", "cell_key", "variant", "changes", "planned"),
    *("state", "cause", "iteration", "seconds_train", "seconds_evaluate", "n_parameters"),
    *("processor", "code", "code_id", "device", "device_kind", "fingerprint", "n_images"),
    *("data_notes", "run_dir", "mlflow_run", "digest", "undefined", "unavailable"),
    *("failures", "confirm"),
)
"""Columns of the DataFrame that are neither settings nor metrics.

`source`: index of the trial's sweep in `Records.sweeps`;
`changes`: what a named variant changes in the full model, in words;
`code_id`: the hash of the modules that can change a number, if a trial recorded it, else `code`;
`device_kind`: `cpu` or `cuda`;
`n_parameters`: generator plus encoder; `processor`: name of the CPU or GPU that trained the model;
`run_dir`: relative to the sweep; `undefined`: names of metrics that were recorded as not a number;
`data_notes`: what a reader must know about the images;
`unavailable`: JSON, metric -> why it was not computed; `failures`: how a finished model failed
(Appendix D); `confirm`: whether the seed is fresh, to confirm a choice made on other seeds."""

BASELINE = "baseline/"
"""Prefix of a trial's reference figures (k-means on the same images)."""

AGREEMENT = "seed_agreement"
"""Metric: mean adjusted Rand index of a trial's clusters with those of its cell's other seeds."""

UNRECORDED = "a metric that the plan does not name"
"""Stands for the metric that chose the cells to confirm, if an older plan does not name it."""
CURVE = "curve"
"""Temporary key for a row's evaluations; never a column."""

MAX_BETWEEN = 4
"""Up to this many settings that differ between sweeps are all columns; beyond it see `_between`."""


@dataclass(frozen=True)
class Sweep:
    """What was planned in one folder."""

    path: Path
    name: str
    axes: tuple[str, ...]
    """Swept fields, full names, in the order they were asked for."""
    base: Mapping[str, Any]
    """The base settings as they were recorded."""
    plan: Plan | None = None
    """None for run directories without a plan."""

    @property
    def grids(self) -> tuple[str, ...]:
        """The grids that the plan's cells come from, as the plan spells them."""
        cells = self.plan.cells if self.plan else ()
        return tuple(dict.fromkeys(grid for cell in cells for grid in cell.grids))

    @property
    def base_key(self) -> str:
        """The key of the cell with the base settings."""
        return from_record({**self.base, "seed": 0}).cell_key


@dataclass(frozen=True)
class Records:
    """One or more sweeps, loaded."""

    trials: pd.DataFrame
    """A row per trial: META, every field of Config, every metric of the last evaluation.
    `attrs["axes"]` are the axes."""
    sweeps: tuple[Sweep, ...]
    notes: tuple[str, ...] = ()
    """What was wrong or merged while loading; printed under the tables."""
    metrics: tuple[str, ...] = ()
    evaluations: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per evaluation (`trial_key`, `iteration`, metrics, `undefined`), if asked for."""
    moment: str = "the last iteration (@last)"
    """Which evaluation of each trial the metrics come from, in words."""
    between: tuple[str, ...] = ()
    """Settings that no sweep varies but in which the sweeps differ: tables have them as axes."""

    @property
    def plans(self) -> list[Plan]:
        """The plan of each sweep that has one."""
        return [sweep.plan for sweep in self.sweeps if sweep.plan]

    @property
    def cells(self) -> list[PlannedCell]:
        """Every planned cell, as the plans have it."""
        return [cell for plan in self.plans for cell in plan.cells]

    def planned_by(self, *grids: str) -> set[str]:
        """Keys of the cells that come from one of these grids, named as the plan spells them."""
        return {c.cell.key for c in self.cells if not set(grids).isdisjoint(c.grids)}

    @property
    def searches(self) -> tuple[Mapping[str, Any], ...]:
        """The definition of each plan's search (`tune.suggest.search.Search`), as recorded."""
        return tuple(plan.search for plan in self.plans if plan.search)

    @property
    def selection(self) -> str:
        """Whether labels chose the settings, and by which metrics: a clause for every table."""
        goals = list(dict.fromkeys(name for s in self.searches for name in s["objectives"]))
        fresh = self.confirmed_by
        head = "nothing was chosen by labels"
        if any(name in NEED_LABELS for name in (*goals, *fresh)):
            head = "settings were chosen by labels"
            goals, fresh = ([n for n in names if n in NEED_LABELS] for names in (goals, fresh))
        elif UNRECORDED in fresh:
            head = "settings may have been chosen by labels"
        ways = [("the search went by", goals), ("the cells to confirm were chosen by", fresh)]
        how = " and ".join(f"{way} {' and '.join(names)}" for way, names in ways if names)
        return f"{head}: {how}" if how else head

    @property
    def confirmed_by(self) -> list[str]:
        """The metrics by which cells were chosen for fresh seeds (`tune.plan.confirm`)."""
        names = [name for plan in self.plans for name in plan.confirm_by]
        unsaid = [c for p in self.plans if not p.confirm_by for c in p.cells if c.confirm_seeds]
        return list(dict.fromkeys([*names, *([UNRECORDED] if unsaid else [])]))

    def chosen_on(self, cell_key: str) -> tuple[int, ...]:
        """The seeds whose results chose this cell as an ablation's full model; usually empty."""
        own = [cell.chosen_on for cell in self.cells if cell.cell.key == cell_key]
        return tuple(dict.fromkeys(seed for seeds in own for seed in seeds))

    @property
    def pruning(self) -> list[str]:
        """How pruning biases these records: a paragraph per pruner, for every table."""
        return [
            f"The search was pruned ({prune}), which {BIAS[prune]}. A point is pruned if any one "
            "of its seeds is: more seeds prune more points. It has no mean and no rank, and the "
            "values of its other seeds are not used."
            for prune in dict.fromkeys(s["prune"] for s in self.searches if s["prune"])
        ]

    @property
    def axes(self) -> tuple[str, ...]:
        """The swept fields of all sweeps, in order, then those in which the sweeps differ."""
        return tuple(dict.fromkeys((*_swept(self.sweeps), *self.between)))

    @property
    def swept(self) -> list[str]:
        """The axes of a table: all but the seed, which is averaged over."""
        return [axis for axis in self.axes if axis != "seed"]

    def run_dir(self, trial: Mapping[str, Any]) -> Path | None:
        """The run directory of a trial; None if it left no records."""
        return self.sweeps[trial["source"]].path / trial["run_dir"] if trial["run_dir"] else None


def records(
    rows: list[dict[str, Any]],
    sweeps: Sequence[Sweep],
    notes: Sequence[str] = (),
    curves: Sequence[dict[str, Any]] = (),
) -> Records:
    """The rows as Records, sorted by settings and seed, never by when they ran.

    Settings and META keep None and integers as they are: in a float column None would become NaN.
    Raises ValueError for an unknown state.
    """
    extra = sorted({name for row in rows for name in row} - NAMED)
    metrics = tuple(name for name in extra if not name.startswith(BASELINE))
    columns = {
        name: pd.Series([row[name] for row in rows], dtype=_KINDS.get(name, "object"))
        for name in (*META, *DEFAULTS)
    }
    for name in extra:
        columns[name] = pd.Series([number(row.get(name)) for row in rows], dtype="float64")
    frame = pd.DataFrame(columns)
    between, more = _between(rows, sweeps)
    axes = dict.fromkeys((*_swept(sweeps), *between))
    order = ["variant", *axes, "cell_key", "seed", "sweep"]
    frame = frame.sort_values(order, key=_sortable, kind="stable", ignore_index=True)
    frame.attrs["axes"] = [*axes]
    unknown = sorted(set(frame["state"]) - set(STATES))
    if unknown:
        raise ValueError(f"unknown state {', '.join(map(str, unknown))}")
    evaluations = pd.DataFrame(list(curves))
    return Records(frame, tuple(sweeps), (*notes, *more), metrics, evaluations, between=between)


NAMED = {*META, *DEFAULTS}
"""Columns of the DataFrame that are neither a metric nor a reference figure."""


_KINDS = {"seed": "int64", "planned": "bool", "confirm": "bool"}
"""Dtypes of the settings and META columns that never hold None; the others have dtype object."""


def _swept(sweeps: Sequence[Sweep]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(axis for sweep in sweeps for axis in sweep.axes))


def _between(
    rows: Sequence[Mapping[str, Any]], sweeps: Sequence[Sweep]
) -> tuple[tuple[str, ...], list[str]]:
    """Settings that are not swept but distinguish the sweeps' cells, and a note on the rest.

    If sweeps differ in many settings (other presets), columns for all would hide the table: then
    only settings that separate further cells become columns, and a note lists the others.
    """
    bases = [{**DEFAULTS, **sweep.base} for sweep in sweeps]
    names = dict.fromkeys(n for n in (*_FIRST, *DEFAULTS) if n not in {"seed", *_swept(sweeps)})
    differing = [n for n in names if _told_apart(bases, n) > 1 and _told_apart(rows, n) > 1]
    if len(differing) <= MAX_BETWEEN:
        return tuple(differing), []
    cells = list({row["cell_key"]: row for row in rows}.values())
    kept = ["variant", *_swept(sweeps)]
    for name in differing:
        if _told_apart(cells, *kept, name) > _told_apart(cells, *kept):
            kept.append(name)
    rest = ", ".join(short(n) for n in differing if n not in kept)
    between = tuple(n for n in differing if n in kept)
    return between, [f"the sweeps differ also in {rest}"] if rest else []


_FIRST = ("dataset", "split", "iterations")


def _told_apart(rows: Sequence[Mapping[str, Any]], *names: str) -> int:
    """The number of distinct rows if only these columns are compared."""
    return len({tuple(repr(row[name]) for name in names) for row in rows})


def number(value: Any) -> float:
    """A recorded value as a float, NaN if it is no number; records store `inf` as a string."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def merge_duplicates(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per trial, and a note for each trial that had several records.

    An ended record replaces an unfinished one. Ended records that agree count once; if they differ
    in state or in a number, the trial becomes `conflicting`: to choose one of them would be to
    choose a result.
    """
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["trial_key"], []).append(row)
    merged, notes = [], []
    for key, same in by_key.items():
        best = min(same, key=lambda row: STATES.index(row["state"]))
        ended = [row for row in same if row["state"] in ENDED]
        known = sorted((row["state"] for row in same if row["state"] != PLANNED), key=STATES.index)
        if len({_outcome(row) for row in ended}) > 1:
            ends = sorted({row["state"] for row in ended}, key=STATES.index)
            why = f"disagree ({' and '.join(ends)})" if len(ends) > 1 else "disagree"
            notes.append(f"trial {key} has {len(known)} records that {why}: none is used")
            best = best | {"state": CONFLICT, "cause": f"records of this trial {why}", CURVE: []}
        elif len(known) > 1:
            states = " and ".join(dict.fromkeys(known))
            what = f"({states}): only one that is {known[0]} is used"
            what = "that agree: it counts once" if len(ended) == len(known) else what
            notes.append(f"trial {key} has {len(known)} records {what}")
        merged.append(best | {"planned": any(row["planned"] for row in same)})
    return merged, sorted(notes)


def _outcome(row: Mapping[str, Any]) -> str:
    values = {k: repr(v) for k, v in row.items() if k not in NAMED and k != CURVE}
    return json.dumps([row["state"], row["iteration"], sorted(values.items())])


def _sortable(column: pd.Series) -> pd.Series:
    """Sort keys: numbers by size, everything else by its text; None first."""
    kinds = {type(v) for v in column} - {type(None)}
    if kinds and kinds <= {int, float}:
        return pd.Series([-math.inf if v is None else float(v) for v in column], column.index)
    if column.name == "variant":  # Cells of a grid, the full model, then other variants.
        return column.map(lambda v: {None: "", FULL_MODEL: "1"}.get(v, f"2 {v}"))
    return column.map(lambda v: "" if v is None else str(v))


def short(name: str) -> str:
    """The heading of a setting: its short name if it has one, else its full name."""
    return SHORT.get(name, name)
