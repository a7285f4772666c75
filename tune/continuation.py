"""`--continue-training`: trials of a finished sweep go on to more iterations.

Nothing in a trial's course depends on how many iterations are planned, so a trial that goes on from
its checkpoint ends at the same numbers as one that was planned longer from the start. More
iterations are another trial with a key of its own: its run directory starts from the checkpoint and
the evaluations of the earlier one, which is then set aside, without its checkpoints, under
`earlier/`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from mpcc import run_dir
from tune import ledger
from tune.grid import Cell
from tune.ledger import LedgerError, Plan, Trial

EARLIER = "earlier"
_CHECKPOINTS = run_dir.CHECKPOINTS


def lengthen(plan: Plan, iterations: int) -> Plan:
    """The plan with every cell at so many iterations. LedgerError where that is not more."""
    before = {planned.cell.config.iterations for planned in plan.cells} | {plan.base.iterations}
    if before == {iterations}:
        return plan
    if iterations <= max(before):
        raise LedgerError(
            f"--continue-training needs more than the {max(before)} iterations that are planned, "
            f"got {iterations}"
        )
    base = plan.base.override(iterations=iterations)
    cells = []
    for planned in plan.cells:
        changes = {n: v for n, v in planned.cell.changes.items() if n != "iterations"}
        cell = Cell(planned.cell.config.override(iterations=iterations), changes)
        cells.append(dataclasses.replace(planned, cell=cell))
    if len({planned.cell.key for planned in cells}) < len(cells):
        raise LedgerError(
            "--continue-training: the iterations are an axis of this sweep; "
            "add a value to the axis instead"
        )
    earlier = tuple(sorted({*plan.earlier_iterations, *before}))
    search = plan.search
    if search is not None:
        keys = [(old.cell.key, new.cell.key) for old, new in zip(plan.cells, cells, strict=True)]
        search = {**search, "points": [dict(keys)[key] for key in search["points"]]}
    return dataclasses.replace(
        plan, base=base, cells=tuple(cells), earlier_iterations=earlier, search=search
    )


def goes_on_from(out: Path, plan: Plan, trial: Trial) -> int | None:
    """After how many iterations the run directory that this trial starts from ended, if any."""
    shorter = [n for n in plan.earlier_iterations if n < trial.config.iterations]
    return next(
        (n for n in sorted(shorter, reverse=True) if earlier_dir(out, trial, n).is_dir()), None
    )


def take_over(out: Path, plan: Plan, trial: Trial) -> None:
    """Start this trial's run directory from that of fewer iterations, where there is one.

    A kill at any moment leaves it to be done, or done; what has begun is never begun again.
    """
    n = goes_on_from(out, plan, trial)
    if n is None:
        return
    path, earlier = ledger.trial_dir(out, trial.key), earlier_dir(out, trial, n)
    if not path.exists():
        _copy(earlier, path, trial, n)
    aside = Path(out) / EARLIER / f"{n}-iterations" / earlier.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.replace(earlier, aside)
    for name in _CHECKPOINTS:
        (aside / name).unlink(missing_ok=True)


def earlier_dir(out: Path, trial: Trial, n: int) -> Path:
    """The run directory of the same trial with n iterations."""
    return ledger.trial_dir(out, trial.config.override(iterations=n).trial_key)


def _copy(earlier: Path, path: Path, trial: Trial, n: int) -> None:
    staged = path.with_name(f".{path.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in (*_CHECKPOINTS, run_dir.METRICS, run_dir.PROVENANCE):
        if (earlier / name).exists():
            shutil.copyfile(earlier / name, staged / name)
    known = run_dir.earlier_iterations(earlier)
    run_dir.write_json(staged / run_dir.CONTINUES, {"iterations": sorted({*known, n})})
    run_dir.write_json(staged / run_dir.CONFIG, trial.config.to_dict())
    os.replace(staged, path)
