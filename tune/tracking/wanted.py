"""The content that MLflow should hold for a sweep and its trials, from their records."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpcc.config import Config
from mpcc.runs import run_dir
from mpcc.runs.files import read_bytes
from tune.plan.cells import Trial
from tune.plan.plan import PLAN, Plan
from tune.plan.state import ENDED, FULFILLED, Row, State, Status
from tune.store.folder import Store
from tune.store.plan_file import readable

Evaluation = Mapping[str, float]
"""A row as MLflow gets it: `iteration` and its metrics as floats."""
TABLES = "tables"
"""The folder of make_tables' files, in the sweep's folder and in the artifacts of its run."""
NOTE = """A sweep. Each run below is one trial: one choice of settings (its `cell`) with one seed.
*Group by* the tag `cell` and a metric under *Columns* show each cell's mean over its seeds; leave
out trials whose `state` is not done. `best_cell` has the greatest mean I(x; y) in nats, which needs
no labels. Run `analysis/make_tables.py` and then the sweep's command again: the tables are among
the artifacts. `docs/tables-and-statistics.md` says how to read them."""
"""The description of a sweep's run."""


@dataclass(frozen=True)
class Wanted:
    """The content that MLflow should hold for a trial, or for the sweep."""

    name: str
    config: Config
    folder: Path
    artifacts: Sequence[str]
    """Patterns of names in the folder."""
    tags: Mapping[str, str]
    rows: Sequence[Evaluation] = ()
    data: Mapping[str, object] = field(default_factory=dict)
    """The trial's record of its images: `dataset`, `fingerprint`, `n_images`."""


def of_sweep(
    store: Store, plan: Plan, states: Sequence[State], best: Trial | None, *, running: bool
) -> Wanted:
    """The content of the sweep's own run. best: a trial of the best cell, once that is known."""
    out = store.out
    if running:
        state = State.RUNNING
    elif FULFILLED.issuperset(states):
        state = State.DONE
    else:
        state = State.FAILED if ENDED.issuperset(states) else State.STOPPED
    tags = {
        "sweep": plan.id,
        "kind": "sweep",
        "preset": plan.preset,
        "code": plan.code,
        **_source(plan, plan.code),
        "plan": hashlib.sha256(read_bytes(out / PLAN) or b"").hexdigest(),
        "cells": "; ".join(planned.cell.text for planned in plan.cells)[:4000],
        "state": str(state),
        "done": f"{states.count(State.DONE)} of {len(states)}",
    }
    files = table_files(out)
    if files:
        content = b"".join(file.name.encode() + (read_bytes(file) or b"") for file in files)
        tags[TABLES] = f"{len(files)} {hashlib.sha256(content).hexdigest()}"
    if best is not None:
        tags["best_cell"] = best.cell.text
        baseline = readable(store.trial_dir(best.key) / run_dir.RESULT).get("baseline")
        if isinstance(baseline, dict):  # What k-means reaches on the same images.
            tags |= {name: str(value)[:4000] for name, value in baseline.items()}
    return Wanted(out.resolve().name, plan.base, out, [PLAN, f"{TABLES}/*"], tags)


def of_trial(store: Store, plan: Plan, trial: Trial, status: Status, rows: Iterable[Row]) -> Wanted:
    """The content of a trial's run. rows: its evaluations; of equal iterations the last counts."""
    folder, cell = store.trial_dir(trial.key), trial.cell
    known = {row["iteration"]: row for row in map(_numbers, rows)}
    evaluations = [known[iteration] for iteration in sorted(known)]
    digest = hashlib.sha256(json.dumps(evaluations, sort_keys=True).encode()).hexdigest()
    provenance = readable(folder / run_dir.PROVENANCE)
    code = str(provenance.get("code", plan.code))
    tags = {
        "sweep": plan.id,
        "trial_key": trial.key,
        "cell_key": cell.key,
        "cell": cell.text,
        "seed": str(trial.seed),
        "code": code,
        **_source(plan, code),
        "state": str(status.state),
        "cause": (status.cause or "")[:4000],
        "rows": f"{len(evaluations)} {digest}",
    }
    data = provenance.get("data")
    data = data if isinstance(data, dict) and data.get("fingerprint") else {}
    if data:
        tags["data"] = f"{data.get('n_images')} images, content {data['fingerprint']}"
    name = f"{cell.text.replace(', ', ' ')} seed={trial.seed}"
    artifacts = () if status.state == State.RUNNING else ("*.json", "*.png")
    return Wanted(name, trial.config, folder, artifacts, tags, evaluations, data)


def table_files(out: Path) -> list[Path]:
    """The tables that the sweep's folder has now."""
    return sorted(file for file in (out / TABLES).glob("*") if file.is_file())


def _source(plan: Plan, code: str) -> dict[str, str]:
    """The source of a run, as MLflow's own tags."""
    command = "search" if plan.search else "ablation"
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": f"tune/{command}.py"}
    commit = code.partition("+")[0]
    return tags if commit == "unknown" else tags | {"mlflow.source.git.commit": commit}


def _numbers(row: Row) -> Evaluation:
    """A row as MLflow gets it, without `seconds`, in which a repeated row would differ.

    MLflow would store infinity as 1.8e308, so it becomes NaN; it takes no @ in a name.
    """
    numbers = {}
    for name, value in row.items():
        name = name.replace("@", "/")
        if isinstance(value, (int, float)) and name != "seconds":
            numbers[name] = float(value) if math.isfinite(value) else math.nan
        elif value in ("inf", "-inf", "nan"):  # As files of JSON hold them.
            numbers[name] = math.nan
    return numbers
