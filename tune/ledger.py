"""What a sweep has planned and what has become of it.

    sweep.json           the plan: base settings, cells, seeds; it grows and never shrinks
    trials/<trial_key>/  one run directory per trial (`mpcc.run_dir`): the truth about it

A trial's state is read from its run directory each time, so there is nothing to fall out of step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcc import run_dir
from mpcc.code_version import code_fingerprints, code_version
from mpcc.config import SHORT, Config, from_dict, trial_key, value_text
from mpcc.files import set_aside
from mpcc.repair import repair
from tune.grid import Cell

PLAN, TRIALS = "sweep.json", "trials"
SCHEMA = 1

PLANNED, RUNNING, STOPPED = "planned", "running", "stopped"
DONE, DIVERGED, FAILED = run_dir.DONE, run_dir.DIVERGED, run_dir.FAILED
PRUNED = run_dir.PRUNED
STATES = (PLANNED, RUNNING, DONE, DIVERGED, FAILED, PRUNED, STOPPED)
FULFILLED = (DONE, PRUNED)
"""With all its trials in these a sweep has nothing left to do: exit code 0."""


FULL_MODEL = "full-model"
"""The variant that the others leave one thing out of (`tune.leave_out`)."""


class LedgerError(ValueError):
    """The output folder does not fit what is asked for; the message is one line."""


class PlanChanged(Exception):
    """Another command has written the plan since it was read: it must be read again."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the plan with all the seeds that were ever asked for."""

    cell: Cell
    grids: tuple[str, ...]
    seeds: tuple[int, ...]
    variant: str | None = None
    confirm_seeds: tuple[int, ...] = ()
    """Fresh seeds that took no part in choosing this cell (`tune.confirm`)."""
    chosen_on: tuple[int, ...] = ()
    """The seeds whose results chose this cell as the full model of an ablation."""


@dataclass(frozen=True)
class Trial:
    """A cell and a seed."""

    cell: Cell
    seed: int
    config: Config
    key: str

    @property
    def text(self) -> str:
        return f"{self.cell.text}, seed={self.seed}"


@dataclass(frozen=True)
class Status:
    """What has become of a trial: one word, the cause where there is one, how far it came."""

    state: str
    cause: str | None = None
    iteration: int = 0
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The content of sweep.json."""

    preset: str
    base: Config
    cells: tuple[PlannedCell, ...]
    id: str
    code: str
    code_files: Mapping[str, str]
    data: Mapping[str, Any] | None = None
    earlier_iterations: tuple[int, ...] = ()
    """Iterations that were planned before the training was told to go on."""
    search: Mapping[str, Any] | None = None
    """What a search looks for and its points (`tune.points`); None for a grid."""
    confirm_by: tuple[str, ...] = ()
    """Metrics by which the cells with fresh seeds were chosen (`tune.confirm`)."""

    def grow(self, cells: Iterable[Cell], seeds: Iterable[int], grid: str) -> Plan:
        """This plan and these cells with these seeds; what was planned before stays."""
        seeds = tuple(seeds)
        known = {planned.cell.key: planned for planned in self.cells}
        for cell in cells:
            old = known.get(cell.key)
            if old is None:
                known[cell.key] = PlannedCell(cell, (grid,), tuple(sorted(seeds)))
            else:
                changes = old.cell.changes | cell.changes
                known[cell.key] = dataclasses.replace(
                    old,
                    cell=dataclasses.replace(old.cell, changes=changes),
                    grids=tuple(dict.fromkeys((*old.grids, grid))),
                    seeds=tuple(sorted({*old.seeds, *seeds})),
                )
        return dataclasses.replace(self, cells=tuple(known.values()))

    def trials(self) -> list[Trial]:
        """Every planned trial, cell by cell."""
        return [
            trial
            for planned in self.cells
            for trial in trials(planned.cell, (*planned.seeds, *planned.confirm_seeds))
        ]

    def to_dict(self) -> dict[str, Any]:
        base = {name: value for name, value in self.base.to_dict().items() if name != "seed"}
        values: dict[str, Any] = {
            "schema": SCHEMA,
            "id": self.id,
            "preset": self.preset,
            "base": base,
            "cells": [
                {
                    "key": planned.cell.key,
                    "changes": planned.cell.changes,
                    "variant": planned.variant,
                    "grids": list(planned.grids),
                    "seeds": list(planned.seeds),
                }
                | ({"confirm_seeds": list(planned.confirm_seeds)} if planned.confirm_seeds else {})
                | ({"chosen_on": list(planned.chosen_on)} if planned.chosen_on else {})
                for planned in self.cells
            ],
            "code": self.code,
            "code_files": dict(self.code_files),
        }
        if self.earlier_iterations:
            values["earlier_iterations"] = list(self.earlier_iterations)
        if self.confirm_by:
            values["confirm_by"] = list(self.confirm_by)
        more = {"search": self.search, "data": self.data}
        return values | {name: dict(value) for name, value in more.items() if value}


def united(mine: Plan, theirs: Plan) -> Plan:
    """My plan with what another driver has written into sweep.json meanwhile.

    The longer list of search points stays. Where the two disagree in a point theirs does: trials
    may have begun on it.
    """
    points = [list((plan.search or {}).get("points", ())) for plan in (mine, theirs)]
    if points[0][: len(points[1])] != points[1]:
        mine = dataclasses.replace(mine, cells=(), search=theirs.search)
    cells = {planned.cell.key: planned for planned in theirs.cells}
    for planned in mine.cells:
        known = cells.get(planned.cell.key, planned)
        cells[planned.cell.key] = dataclasses.replace(
            known,
            grids=tuple(dict.fromkeys((*known.grids, *planned.grids))),
            seeds=tuple(sorted({*known.seeds, *planned.seeds})),
        )
    data = {**(mine.data or {}), **(theirs.data or {})}
    return dataclasses.replace(mine, cells=tuple(cells.values()), data=data or None)


def trials(cell: Cell, seeds: Iterable[int]) -> list[Trial]:
    """The trials of one cell."""
    return [
        Trial(cell, seed, cell.config.with_seed(seed), trial_key(cell.key, seed)) for seed in seeds
    ]


def by_cell(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials of each cell, in the order given."""
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell.key, []).append(trial)
    return list(cells.values())


def new_plan(preset: str, base: Config) -> Plan:
    """A plan without cells."""
    files = code_fingerprints()
    return Plan(preset, base.override(seed=0), (), secrets.token_hex(6), code_version(), files)


def read_plan(out: Path) -> Plan | None:
    """The plan of this output folder, None where there is none. LedgerError where it is damaged."""
    path = Path(out) / PLAN
    try:
        values = run_dir.read_json(path)
    except (run_dir.RunDirError, OSError) as error:
        raise LedgerError(
            f"{path} cannot be read ({_reason(error)}); choose another --out"
        ) from None
    if values is None:
        return None
    if values.get("schema") != SCHEMA:
        raise LedgerError(
            f"{path} has schema {values.get('schema')!r}, this version reads {SCHEMA}; "
            "choose another --out"
        )
    try:
        return _plan(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LedgerError(f"{path} is damaged ({_reason(error)}); choose another --out") from None


def write_plan(out: Path, plan: Plan) -> None:
    """Write sweep.json, whole or not at all; nothing where it says the same already.

    What it knows of the images stays known.
    """
    path = Path(out) / PLAN
    values, before = plan.to_dict(), run_dir.read_json(path)
    if before and before.get("id") == plan.id and before.get("data"):
        values["data"] = before["data"] | values.get("data", {})
    if before != json.loads(json.dumps(values)):
        path.parent.mkdir(parents=True, exist_ok=True)
        run_dir.write_json(path, values)


def check_same_base(out: Path, plan: Plan, base: Config) -> None:
    """LedgerError that names each setting in which the folder's base settings differ from these."""
    was, now = plan.base.to_dict(), base.override(seed=0).to_dict()
    differing = [name for name in was if was[name] != now[name]]
    if differing:
        text = ", ".join(
            f"{SHORT.get(name, name)}={value_text(was[name])}, now {value_text(now[name])}"
            for name in differing
        )
        longer = differing == ["iterations"] and now["iterations"] > was["iterations"]
        more = "go on to more iterations with --continue-training, " if longer else ""
        raise LedgerError(
            f"{out} was written under other base settings: {text}; "
            f"{more}give the same settings or choose another --out"
        )


def check_same_code(out: Path, plan: Plan) -> None:
    """LedgerError that names the modules whose code, comments aside, is not the plan's."""
    now = code_fingerprints()
    changed = [name for name in now if plan.code_files.get(name) != now[name]]
    changed += [name for name in plan.code_files if name not in now]
    if changed:
        raise LedgerError(
            f"{out} was written by other code: {', '.join(sorted(changed))} changed since; "
            "choose another --out, or mix old and new results knowingly with --accept-changed-code"
        )


def trial_dir(out: Path, key: str) -> Path:
    """The run directory of a trial."""
    return Path(out) / TRIALS / key


def status(out: Path, trial: Trial, running: Collection[str] = ()) -> Status:
    """What has become of a trial; `running` are the keys that a living driver has in hand.

    A result or a table of metrics that cannot be read counts as `stopped`: the trial runs again.
    """
    path = trial_dir(out, trial.key)
    if not path.is_dir():
        return Status(RUNNING if trial.key in running else PLANNED)
    try:
        result, last = run_dir.read_end(path)
        reached = int(last.get("iteration", 0))
        if result and result["state"] == DONE and result.get("iteration") != reached:
            raise run_dir.RunDirError(f"{path / run_dir.METRICS} misses the last evaluation")
    except (run_dir.RunDirError, OSError) as error:
        return Status(RUNNING if trial.key in running else STOPPED, str(error))
    if result is None:
        return Status(RUNNING if trial.key in running else STOPPED, None, reached, last)
    metrics = result.get("metrics") or last
    return Status(result["state"], result.get("cause"), int(result.get("iteration") or 0), metrics)


def mend(out: Path, trial: Trial, fingerprint: str | None = None) -> str | None:
    """Put a run directory in order, so that the trial can go on; says what was damaged.

    `fingerprint` is that of the images where it is known, see `mpcc.repair`.
    """
    path = trial_dir(out, trial.key)
    if not path.is_dir():
        if not os.path.lexists(path):
            return None
        set_aside(path)
        return f"{path} was no folder; set aside, runs again"
    damaged = repair(path, trial.config, fingerprint)
    if not damaged:
        return None
    ended = (path / run_dir.RESULT).exists()
    return f"{path}: {', '.join(damaged)} damaged, {'mended' if ended else 'runs again'}"


def forget(out: Path, trial: Trial, state: str) -> None:
    """Make an ended trial run again: a failed one from its checkpoint, a diverged one afresh."""
    for name in forgotten(state):
        (trial_dir(out, trial.key) / name).unlink(missing_ok=True)


def forgotten(state: str) -> list[str]:
    """The files that go when a trial that ended like this is to run again."""
    if state == DIVERGED:
        return [run_dir.RESULT, *run_dir.CHECKPOINTS, run_dir.METRICS]
    return [run_dir.RESULT]


def record_failed(path: Path, config: Config, cause: str) -> None:
    """Write the result of a trial that ended by an error, where it has no result yet."""
    record_end(path, config, FAILED, cause)


def record_end(path: Path, config: Config, state: str, cause: str) -> None:
    """Write the result of a trial that ended before its last iteration, where it has none yet."""
    path.mkdir(parents=True, exist_ok=True)
    if run_dir.read_result(path) is not None:
        return
    if not (path / run_dir.CONFIG).exists():
        run_dir.write_json(path / run_dir.CONFIG, config.to_dict())
    rows = run_dir.read_metrics(path)
    result = {
        "state": state,
        "cause": cause,
        "iteration": _last(rows),
        "trial_key": config.trial_key,
        "metrics": rows[-1] if rows else {},
        "weights_sha256": None,
    }
    run_dir.write_result(path, result)


def _plan(values: Mapping[str, Any]) -> Plan:
    base = from_dict(values["base"])
    data = values.get("data") or {}
    for name, known in data.items():
        if not isinstance(known["fingerprint"], str):
            raise ValueError(f"the fingerprint of {name} is no text")
    cells = []
    for saved in values["cells"]:
        changes = {name: _untuple(value) for name, value in saved["changes"].items()}
        cell = Cell(base.override(**changes), changes)
        if cell.key != saved["key"]:
            raise ValueError(f"cell {saved['key']} has other settings")
        seeds = tuple(sorted(base.with_seed(seed).seed for seed in saved["seeds"]))
        fresh = tuple(base.with_seed(seed).seed for seed in saved.get("confirm_seeds", ()))
        grids = tuple(saved["grids"])
        if not all(isinstance(grid, str) for grid in grids):
            raise ValueError(f"the grids of cell {saved['key']} are no texts")
        chose = tuple(base.override(seed=seed).seed for seed in saved.get("chosen_on", ()))
        cells.append(PlannedCell(cell, grids, seeds, saved.get("variant"), fresh, chose))
    return Plan(
        str(values["preset"]),
        base,
        tuple(cells),
        str(values["id"]),
        str(values.get("code", "unknown")),
        dict(values.get("code_files", {})),
        data or None,
        tuple(base.override(iterations=n).iterations for n in values.get("earlier_iterations", ())),
        values.get("search"),
        tuple(str(name) for name in values.get("confirm_by", ())),
    )


def _untuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _last(rows: list[dict[str, Any]]) -> int:
    return int(rows[-1]["iteration"]) if rows else 0


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
