"""Sweep folders on disk as one tidy frame: a row per trial, planned or run.

A trial that was planned and left no record is a row too, with state `planned`, so that a table can
say what is missing. Nothing here trains, opens torch or talks to a server.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis.records.agreement import add_agreement
from analysis.records.folders import LoadError, check_folders
from analysis.records.frame import CURVE, Records, Sweep, merge_duplicates, records, short
from analysis.records.trial import blank, read_loose, read_record
from mpcc.config import DEFAULTS, EVALUATION, from_record, training_key, trial_key, value_text
from mpcc.runs.code_version import latest_code
from mpcc.runs.run_dir import CONFIG, RunDirError, read_json
from tune.plan.plan import FULL_MODEL, MLFLOW, PLAN
from tune.store.lock import sweep_owner
from tune.store.plan_file import COPY


def load(folders: Sequence[Path], *, curves: bool = False) -> Records:
    """The records of these folders: sweeps, or single run directories, or folders of those."""
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
    add_agreement(rows, [Path(folder) for folder in folders])
    lines = [{"trial_key": row["trial_key"]} | line for row in rows for line in row.pop(CURVE, ())]
    return records(rows, sweeps, [*notes, *merged], lines)


def _load_folder(folder: Path, curves: bool) -> tuple[Sweep, list, list]:
    """A folder's sweep, the rows of its trials, and what is wrong with them."""
    plan = _read_plan(folder)
    if plan is None:
        return _load_loose(folder, curves)
    name, there = str(plan.get("preset") or "sweep"), set[str]()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / "trials") as entries:
        there = {entry.name for entry in entries if entry.is_dir()}
    owner = sweep_owner(folder)
    running = owner.running if owner else ()
    rows = planned_rows(plan, name)
    for row in rows:
        if row["trial_key"] in there:
            path = folder / "trials" / row["trial_key"]
            row |= read_record(path, folder, row["trial_key"], running, curves)
    dropped = there.intersection(plan.get("dropped", ()))
    known = {row["trial_key"] for row in rows} | _earlier(plan) | dropped
    paths = [folder / "trials" / key for key in sorted(there - known)]
    extra = [read_loose(p, folder, name, running, curves) for p in paths if (p / CONFIG).exists()]
    extra, notes = _without_other_evaluations(extra, rows)
    unknown = (row["trial_key"] for row in extra if row["trial_key"] not in known)
    notes += [f"trial {key} is not in the plan of {name}" for key in unknown]
    equal = plan.get("equal_code") or {}
    for row in rows + extra:
        row["code_id"] = latest_code(row["code_id"], equal)
    notes += [
        f"codes {code} and {found['code']} gave equal numbers on trained-anew trials "
        f"{', '.join(found['trials'])}, and count as one"
        for code, found in equal.items()
    ]
    if dropped:
        notes.append(f"trials taken out of the plan by --drop and left out: {len(dropped)}")
    runs = _mlflow_runs(folder)
    for row in rows + extra:  # Sweeps of earlier code have the run beside each trial.
        row["mlflow_run"] = row["mlflow_run"] or runs.get(row["trial_key"])
    # What a grid or a search varies; what a named variant changes is no axis.
    cells = [cell for cell in plan["cells"] if cell.get("variant") in (None, FULL_MODEL)]
    axes = tuple(dict.fromkeys(axis for cell in cells for axis in cell["changes"]))
    grids = tuple(dict.fromkeys(g for cell in plan["cells"] for g in cell.get("grids", [])))
    return Sweep(folder, name, axes, grids, plan["base"], plan), rows + extra, notes


def _mlflow_runs(folder: Path) -> dict[str, str]:
    """Trial key -> run, as the delivery to MLflow wrote it down; none where that cannot be read."""
    try:
        runs = (read_json(folder / MLFLOW) or {}).get("runs")
    except (RunDirError, OSError):
        return {}
    known = runs.items() if isinstance(runs, dict) else ()
    return {key: run for key, run in known if isinstance(run, str)}


def _what_to_do(folder: Path) -> str:
    """What helps where sweep.json is damaged."""
    other = "name another folder with --runs"
    restored = f"`python tune/ablation.py --out {folder}` restores it from its copy and goes on"
    return f"{restored}, or {other}" if (folder / COPY).exists() else other


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """sweep.json, with what is read of it checked; LoadError in one line."""
    file = folder / PLAN
    try:
        plan = read_json(file)
    except RunDirError as error:
        raise LoadError(f"{str(error).split(';')[0]}; {_what_to_do(folder)}") from None
    if plan is None:
        return None
    if plan.get("schema") != 1 or not isinstance(plan.get("cells"), list):
        raise LoadError(f"{file} is not a plan that this version reads (schema 1)")
    try:
        from_record(plan["base"])
        if not all(isinstance(name, str) for name in [*plan.get("confirm_by", ())]):
            raise ValueError("a metric of confirm_by is no text")
        if not all(isinstance(key, str) for key in [*plan.get("dropped", ())]):
            raise ValueError("a key of dropped is no text")
        for found in (plan.get("equal_code") or {}).values():
            if not isinstance(found["code"], str) or not isinstance(found["trials"], list):
                raise ValueError("a code of equal_code has no other code and trials")
        for cell in plan["cells"]:
            from_record(cell["changes"])
            texts = [cell["key"], *cell.get("grids", []), cell.get("variant") or ""]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a cell's key, variant or grid is no text")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is damaged: {error}"
        raise LoadError(f"{file} {what}; {_what_to_do(folder)}") from None
    return plan


def planned_rows(plan: Mapping[str, Any], sweep: str) -> list[dict[str, Any]]:
    """A row without results for every planned trial."""
    rows, fits = [], set[int]()
    try:
        for cell in plan["cells"]:
            config = from_record({**plan["base"], **cell["changes"], "seed": 0})
            empty = blank(config, sweep, variant=cell.get("variant"), planned=True)
            empty["changes"] = _change_text(plan, cell)
            fresh = set(cell.get("confirm_seeds", ())) - set(cell["seeds"])
            for seed in sorted({*cell["seeds"], *fresh}):
                if seed not in fits:  # to check each of thousands of trials anew takes a second
                    fits.add(dataclasses.replace(config, seed=seed).seed)
                key = trial_key(empty["cell_key"], seed)
                rows.append(empty | {"seed": seed, "trial_key": key, "confirm": seed in fresh})
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{PLAN} does not fit this version: {error}") from None
    return rows


def _earlier(plan: Mapping[str, Any]) -> set[str]:
    """Keys of the trials that have gone on to more iterations since (--continue-training)."""
    cells = [
        cell | {"changes": cell["changes"] | {"iterations": int(n)}}
        for cell in plan["cells"]
        for n in plan.get("earlier_iterations", ())
    ]
    return {row["trial_key"] for row in planned_rows({**plan, "cells": cells}, "")}


def _change_text(plan: Mapping[str, Any], cell: Mapping[str, Any]) -> str | None:
    """What a variant changes of the full model: `esteps=1`; None for a cell of a grid."""
    if cell.get("variant") is None:
        return None
    full = {c.get("variant"): c["changes"] for c in plan["cells"]}.get(FULL_MODEL, {})
    new = {name: value for name, value in cell["changes"].items() if full.get(name) != value}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in new.items()}
    return ", ".join(f"{short(name)}={value_text(value)}" for name, value in values.items())


def _without_other_evaluations(
    extra: list[dict[str, Any]], planned: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The unplanned rows but for planned trials that were evaluated in another way, and which way
    is shown: that of the plan."""
    shown = {_trained(row): row for row in planned} if extra else {}
    pairs = [(row, shown.get(_trained(row), row)) for row in extra]
    kept = [row for row, plan in pairs if all(row[n] == plan[n] for n in EVALUATION)]
    if len(kept) == len(extra):
        return extra, []
    was, now = (
        dict.fromkeys(
            f"{short(n)}={value_text(pair[which][n])}"
            for pair in pairs
            for n in EVALUATION
            if pair[0][n] != pair[1][n]
        )
        for which in (0, 1)
    )
    return kept, [
        f"models are evaluated with {', '.join(now)}; {len(extra) - len(kept)} records of other "
        f"evaluations, with {', '.join(was)}, are left out"
    ]


def _trained(row: Mapping[str, Any]) -> str:
    """What the model of a row is (`mpcc.config.training_key`)."""
    return training_key(from_record({name: row[name] for name in DEFAULTS}))


def _load_loose(folder: Path, curves: bool) -> tuple[Sweep, list, list]:
    """Run directories without a plan: what is there is what was planned.

    They go by their data set: the folder's name may differ on another machine.
    """
    paths = [folder] if (folder / CONFIG).exists() else []
    paths += sorted(p.parent for p in folder.glob(f"*/{CONFIG}"))
    paths += sorted(p.parent for p in folder.glob(f"trials/*/{CONFIG}"))
    rows = [read_loose(path, folder, "", (), curves) for path in paths]
    name = " and ".join(sorted({row["dataset"] for row in rows}))
    for row in rows:
        row["sweep"] = name
    note = f"{name} has no plan ({PLAN}): trials that are missing cannot be known"
    fields = [name for name in DEFAULTS if name != "seed"]
    axes = tuple(n for n in fields if len({repr(row[n]) for row in rows}) > 1)
    base = {n: rows[0][n] for n in fields if n not in axes}
    return Sweep(folder, name, axes, (), base, None), rows, [note]
