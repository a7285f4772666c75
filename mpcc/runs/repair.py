"""Repair a trial's run directory: quarantine damaged files, and write the records that a checkpoint
holds again, so that nothing is retrained without need.

Imports no torch, and is quick for trials that have ended: their checkpoints are read only if the
records beside them are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcc.config import Config
from mpcc.runs import checkpoints, run_dir
from mpcc.runs.checkpoints import Checkpoint
from mpcc.runs.files import RunDirError, belongs, quarantine, remove_scraps
from mpcc.runs.run_dir import CHECKPOINTS, CONFIG, CONTINUES, METRICS, PROVENANCE, RESULT


def repair(path: Path, config: Config, fingerprint: str | None = None) -> list[str]:
    """Repair the directory of this trial; returns the names of the files that were damaged.

    fingerprint: of the images, if known; files of other images count as damaged.
    """
    path = Path(path)
    remove_scraps(path)
    damaged = _quarantine_unreadable(path, config)
    damaged += _quarantine_other_images(path, fingerprint)
    result = None if RESULT in damaged else run_dir.read_result_record(path)
    try:
        run_dir.refuse_foreign_checkpoints(path)
    except RunDirError:  # Quarantine a foreign file here, so that train() accepts the trial.
        damaged += checkpoints.quarantine_damaged(path)[1]
    if result is None or not _evaluations_fit(path, result):
        damaged += _restore(path, config, result, RESULT in damaged)
    if not (path / CONFIG).exists():
        run_dir.write_json(path / CONFIG, config.to_dict())
    return damaged


def _quarantine_unreadable(path: Path, config: Config) -> list[str]:
    def own_config(path: Path) -> None:
        if run_dir.read_config(path) not in (None, config):
            raise RunDirError(f"{path / CONFIG} is of another trial")

    damaged = []
    for name, read in (
        (CONFIG, own_config),
        (PROVENANCE, run_dir.read_provenance),
        (CONTINUES, run_dir.earlier_iterations),
        (RESULT, run_dir.read_result_record),
    ):
        try:
            read(path)
        except RunDirError:
            quarantine(path / name)
            damaged.append(name)
    return damaged


def _quarantine_other_images(path: Path, fingerprint: str | None) -> list[str]:
    """Quarantine the records, and delete the checkpoints, of images with another fingerprint."""
    found = (run_dir.read_provenance(path).get("data") or {}).get("fingerprint")
    if fingerprint is None or found in (None, fingerprint):
        return []
    names = [n for n in (PROVENANCE, METRICS, RESULT, *CHECKPOINTS) if (path / n).exists()]
    for name in names:
        if name in CHECKPOINTS:
            (path / name).unlink()
        else:
            quarantine(path / name)
    return [f"{name} (of other images)" for name in names]


def _evaluations_fit(path: Path, result: Mapping[str, Any]) -> bool:
    """Whether the evaluations are those that the result was recorded with."""
    try:
        rows = run_dir.read_trial(path)[1]
    except RunDirError:
        return False
    return _reaches(result, rows)


def _reaches(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """False if the trial is done and its last evaluation is missing, else True."""
    return result["state"] != run_dir.DONE or bool(
        rows and rows[-1]["iteration"] == result.get("iteration")
    )


def _restore(
    path: Path, config: Config, result: dict[str, Any] | None, result_damaged: bool
) -> list[str]:
    """Write result and evaluations again from the checkpoints; returns what else was damaged."""
    found, problems = checkpoints.quarantine_damaged(path)
    damaged = list(problems)
    if result_damaged:
        result = next((c.result for c in found if _is_result(c.result, config)), None)
        if result is not None:
            run_dir.write_json(path / RESULT, result)
    if result is not None and _evaluations_fit(path, result):
        return damaged
    if result is not None:
        rows = next((c.rows for c in found if c.rows is not None and _fits(result, c.rows)), None)
        if rows is not None:
            run_dir.write_metrics(path, rows)
            return [METRICS, *damaged]
        # Lost evaluations need retraining from the last checkpoint with rows.
        (path / RESULT).unlink()
        if os.path.lexists(path / METRICS):
            quarantine(path / METRICS)
        damaged = [METRICS, *damaged]
    going_on = [c for c in found if c.iteration is None or c.iteration < config.iterations]
    damaged += _restore_rows(path, going_on)
    return list(dict.fromkeys(damaged))


def _restore_rows(path: Path, going_on: Sequence[Checkpoint]) -> list[str]:
    """Make metrics.jsonl hold the newest checkpoint's evaluations; returns its name if damaged.

    A checkpoint of version 1 has none: the file's own rows are kept, or an older checkpoint's used.
    """
    try:
        rows: list[dict[str, Any]] | None = run_dir.read_metrics(path)
    except RunDirError:
        rows = None
    carried = next((list(c.rows) for c in going_on if c.rows is not None), None)
    if rows is None and carried is None:
        quarantine(path / METRICS)
        for name in CHECKPOINTS:  # Of version 1: only a fresh start gives the rows again.
            (path / name).unlink(missing_ok=True)
        return [METRICS]
    if carried is None or (rows is not None and going_on[0].rows is None):
        return []
    sound = rows is not None and rows[: len(carried)] == carried
    run_dir.write_metrics(path, carried)
    return [] if sound else [METRICS]


def _is_result(result: Mapping[str, Any] | None, config: Config) -> bool:
    return result is not None and result.get("trial_key") == config.trial_key


def _fits(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    return belongs(result, METRICS, run_dir.metrics_text(rows)) and _reaches(result, rows)
