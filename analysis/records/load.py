"""Load sweep folders from disk into one tidy DataFrame: a row per trial, planned or run.

A trial that was planned and left no record has a row too, with state `planned`, so that a table can
say what is missing. Nothing here trains, imports torch or talks to a server.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.records.folders import LoadError, check_folders, run_dirs
from analysis.records.frame import (
    AGREEMENT,
    CURVE,
    Records,
    Sweep,
    merge_duplicates,
    records,
    short,
)
from analysis.records.trial import blank, read_loose, read_record
from mpcc.config import DEFAULTS, EVALUATION, from_record, training_key, trial_key, value_text
from mpcc.evaluation.metrics import ari
from mpcc.runs.clusters import read_clusters
from mpcc.runs.code_version import latest_code
from mpcc.runs.run_dir import CONFIG, DONE, RunDirError, read_json
from tune.plan.cells import Cell
from tune.plan.plan import FULL_MODEL, MLFLOW, PLAN, TRIALS, Plan, PlanError
from tune.store.lock import sweep_owner
from tune.store.plan_file import COPY


def load(folders: Sequence[Path], *, curves: bool = False) -> Records:
    """The records of sweeps, run directories or folders of those; `curves` adds all evaluations."""
    check_folders(folders)
    sweeps, rows, notes = [], [], []
    for source, folder in enumerate(folders):
        sweep, sweep_rows, sweep_notes = _load_folder(Path(folder), curves)
        sweeps.append(sweep)
        rows += [row | {"source": source} for row in sweep_rows]
        notes += sweep_notes
    unsealed = sum(not row.pop("sealed", True) for row in rows)
    if unsealed:
        notes.append(f"{unsealed} of the results are of an earlier version, without a seal")
    rows, merged = merge_duplicates(rows)
    _add_agreement(rows, [Path(folder) for folder in folders])
    lines = [{"trial_key": row["trial_key"]} | line for row in rows for line in row.pop(CURVE, ())]
    return records(rows, sweeps, [*notes, *merged], lines)


def _add_agreement(rows: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    """Add to each finished trial on unlabelled data its mean adjusted Rand index with the cell's
    other seeds, a measure of stability (at most 1).

    folders: the sweeps' folders, indexed by the rows' `source`. A trial without a readable file of
    its clusters, or without another seed on the same images, gets no value.
    """
    cells: dict[tuple[Any, ...], dict[str, tuple[dict[str, Any], list[int]]]] = {}
    for row in rows:
        if row["state"] != DONE or "cluster_information" not in row or "acc_majority" in row:
            continue
        with suppress(RunDirError, OSError):
            lines = read_clusters(folders[row["source"]] / row["run_dir"])
            if lines:
                cell = cells.setdefault((row["cell_key"], row["fingerprint"]), {})
                cell[row["trial_key"]] = row, [int(line["cluster"]) for line in lines]
    for cell in cells.values():
        found = {}
        for a, b in itertools.combinations(cell, 2):
            (row, ours), (_, theirs) = cell[a], cell[b]
            found[a, b] = ari(theirs, ours, row["n_clusters"])
        for key, (row, _) in cell.items():
            if values := [value for pair, value in found.items() if key in pair]:
                row[AGREEMENT] = fmean(values)


def _load_folder(folder: Path, curves: bool) -> tuple[Sweep, list, list]:
    """A folder's sweep, the rows of its trials, and what is wrong with them."""
    found = _read_plan(folder)
    if found is None:
        return _load_loose(folder, curves)
    plan, base = found
    name, there = plan.preset, set[str]()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / TRIALS) as entries:
        there = {entry.name for entry in entries if entry.is_dir()}
    owner = sweep_owner(folder)
    running = owner.running if owner else ()
    rows = _planned_rows(plan)
    for row in rows:
        if row["trial_key"] in there:
            path = folder / TRIALS / row["trial_key"]
            row |= read_record(path, folder, row["trial_key"], running, curves)
    dropped = there.intersection(plan.dropped)
    known = {row["trial_key"] for row in rows} | _earlier(plan) | dropped
    paths = [folder / TRIALS / key for key in sorted(there - known)]
    extra = [read_loose(p, folder, name, running, curves) for p in paths if (p / CONFIG).exists()]
    extra, notes = _without_other_evaluations(extra, rows)
    unknown = (row["trial_key"] for row in extra if row["trial_key"] not in known)
    notes += [f"trial {key} is not in the plan of {name}" for key in unknown]
    equal: Mapping[str, Mapping[str, Any]] = plan.equal_code or {}
    runs = _mlflow_runs(folder)
    for row in rows + extra:  # Earlier versions recorded the MLflow run in each run directory.
        row["code_id"] = latest_code(row["code_id"], equal)
        row["mlflow_run"] = row["mlflow_run"] or runs.get(row["trial_key"])
    notes += [
        f"codes {code} and {found['code']} gave equal numbers on retrained trials "
        f"{', '.join(found['trials'])}, and count as one"
        for code, found in equal.items()
    ]
    if dropped:
        notes.append(f"trials taken out of the plan by --drop and left out: {len(dropped)}")
    # Axes are what a grid or a search varies, not what a named variant changes.
    cells = [planned.cell for planned in plan.cells]
    varied = [cell for cell in cells if cell.variant in (None, FULL_MODEL)]
    axes = tuple(dict.fromkeys(axis for cell in varied for axis in cell.changes))
    return Sweep(folder, name, axes, base, plan), rows + extra, notes


def _mlflow_runs(folder: Path) -> dict[str, str]:
    """Trial key -> MLflow run id, as the upload to MLflow recorded it; empty if unreadable."""
    runs: Any = {}
    with suppress(RunDirError, OSError):
        runs = (read_json(folder / MLFLOW) or {}).get("runs")
    known = runs.items() if isinstance(runs, dict) else ()
    return {key: run for key, run in known if isinstance(run, str)}


def _read_plan(folder: Path) -> tuple[Plan, dict[str, Any]] | None:
    """The plan of a sweep and its recorded base settings; None if missing, LoadError if damaged."""
    file = folder / PLAN
    try:
        record = read_json(file)
        return None if record is None else (Plan.from_dict(record), record["base"])
    except (RunDirError, PlanError) as error:
        wrong = str(error).split(";")[0].removeprefix(f"{file} ")
        other = "name another folder with --runs"
        restored = f"`python tune/ablation.py --out {folder}` restores it from its copy and goes on"
        what_helps = f"{restored}, or {other}" if (folder / COPY).exists() else other
        raise LoadError(f"{file} {wrong}; {what_helps}") from None


def _planned_rows(plan: Plan) -> list[dict[str, Any]]:
    """A row without results for every planned trial."""
    rows = []
    full = {p.cell.variant: p.cell.changes for p in plan.cells}.get(FULL_MODEL, {})
    for planned in plan.cells:
        cell, fresh = planned.cell, {*planned.confirm_seeds} - {*planned.seeds}
        empty = blank(cell.config, plan.preset, variant=cell.variant, planned=True)
        if cell.variant is not None:  # What the variant changes in the full model.
            new = {name: v for name, v in cell.changes.items() if full.get(name) != v}
            empty["changes"] = ", ".join(f"{short(n)}={value_text(v)}" for n, v in new.items())
        for seed in sorted({*planned.seeds, *fresh}):
            key = trial_key(cell.key, seed)
            rows.append(empty | {"seed": seed, "trial_key": key, "confirm": seed in fresh})
    return rows


def _earlier(plan: Plan) -> set[str]:
    """Keys that trials had before --continue-training extended them to more iterations."""
    return {
        trial_key(Cell.of(plan.base, {**p.cell.changes, "iterations": n}).key, seed)
        for n in plan.earlier_iterations
        for p in plan.cells
        for seed in (*p.seeds, *p.confirm_seeds)
    }


def _without_other_evaluations(
    extra: list[dict[str, Any]], planned: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Drop unplanned rows that are another evaluation of a planned model; returns the other rows
    and a note on which evaluation is shown."""
    shown = {_trained(row): row for row in planned} if extra else {}
    pairs = [(row, shown.get(_trained(row), row)) for row in extra]
    other = [(row, plan, n) for row, plan in pairs for n in EVALUATION if row[n] != plan[n]]
    if not other:
        return extra, []
    kept = [row for row, plan in pairs if all(row[n] == plan[n] for n in EVALUATION)]
    was = dict.fromkeys(f"{short(n)}={value_text(row[n])}" for row, _, n in other)
    now = dict.fromkeys(f"{short(n)}={value_text(plan[n])}" for _, plan, n in other)
    return kept, [
        f"models are evaluated with {', '.join(now)}; {len(extra) - len(kept)} records of other "
        f"evaluations, with {', '.join(was)}, are left out"
    ]


def _trained(row: Mapping[str, Any]) -> str:
    """Key of the training behind a row, whatever its evaluation (`mpcc.config.training_key`)."""
    return training_key(from_record({name: row[name] for name in DEFAULTS}))


def _load_loose(folder: Path, curves: bool) -> tuple[Sweep, list, list]:
    """Load run directories without a plan: tables count the trials found as all that were planned.

    The sweep is named after its data sets, since the folder's name may differ between machines.
    """
    rows = [read_loose(path, folder, "", (), curves) for path in run_dirs(folder)]
    name = " and ".join(sorted({row["dataset"] for row in rows}))
    for row in rows:
        row["sweep"] = name
    note = f"{name} has no plan ({PLAN}): trials that are missing cannot be known"
    fields = [name for name in DEFAULTS if name != "seed"]
    axes = tuple(n for n in fields if len({repr(row[n]) for row in rows}) > 1)
    base = {n: rows[0][n] for n in fields if n not in axes}
    return Sweep(folder, name, axes, base), rows, [note]
