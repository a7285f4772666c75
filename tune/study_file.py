"""The search as an Optuna study in study.db, for `optuna-dashboard` and for code of one's own.

The file is a view, as MLflow is: where it is lost, damaged or says something else, it is written
again. Where another program has it locked it is left alone.
"""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcc import run_dir
from tune import ledger
from tune.points import COMPLETE, OPEN, Point, Search, directions, frozen

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FILE = "study.db"
LOCK_SECONDS = 2.0
"""How long a reader, such as a dashboard, may keep a driver waiting."""
INTACT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}
"""Errors that say nothing against the file itself: it stays."""


def write_study(out: Path, name: str, search: Search, points: Sequence[Point]) -> None:
    """Bring study.db up to these points. OSError where it cannot be written."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = Path(out).resolve() / FILE
    try:
        _write(path, name, search, points)
    except (DatabaseError, optuna.exceptions.StorageInternalError, AssertionError) as error:
        if _code_of(error) in INTACT:
            raise _cannot(path, error) from None
        path.unlink(missing_ok=True)  # Torn or foreign: the run directories have it all.
        try:
            _write(path, name, search, points)
        except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
            raise _cannot(path, error) from None


def _code_of(error: BaseException | None) -> int | None:
    """SQLite's number of an error, from the one that it began with; None where it has none."""
    while error is not None:
        code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
        if code is not None:
            return int(code) & 0xFF
        error = error.__cause__ or error.__context__
    return None


def _cannot(path: Path, error: BaseException) -> OSError:
    locked = _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    why = "another program has it locked" if locked else str(error).splitlines()[0]
    return OSError(f"{path} cannot be written: {why}")


def _write(path: Path, name: str, search: Search, points: Sequence[Point]) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(
        f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}}
    )
    try:
        study, made = _study(storage, name, search), _made(path.parent, search, points)
        stored = study.get_trials(deepcopy=False)
        if len(stored) > len(points) or any(map(_differ, stored, made)):
            optuna.delete_study(study_name=name, storage=storage)
            study, stored = _study(storage, name, search), []
        for trial in made[len(stored) :]:
            study.add_trial(trial)
        for old, new in zip(stored, made, strict=False):
            if not old.state.is_finished() and new.state.is_finished():
                _tell(storage, old, new)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _study(storage: Any, name: str, search: Search) -> Study:
    import optuna

    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions(search), load_if_exists=True
    )
    if study.metric_names != list(search.objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(search.objectives))
        study.set_user_attr("labels chose", ", ".join(search.by_labels) or "nothing")
    return study


def _made(out: Path, search: Search, points: Sequence[Point]) -> list[FrozenTrial]:
    made = []
    for point in points:
        trial = frozen(search, point)
        trial.user_attrs |= _spread(search, point)
        trial.datetime_start, end = _times(out, search, point)
        trial.datetime_complete = None if point.state == OPEN else end
        made.append(trial)
    return made


def _differ(stored: FrozenTrial, made: FrozenTrial) -> bool:
    """Whether what is stored cannot become what the run directories say."""
    if stored.params != made.params:
        return True
    return stored.state.is_finished() and (stored.state, stored.values) != (made.state, made.values)


def _tell(storage: Any, stored: FrozenTrial, made: FrozenTrial) -> None:
    from sqlalchemy import text

    for key, value in made.user_attrs.items():
        storage.set_trial_user_attr(stored._trial_id, key, value)
    storage.set_trial_state_values(stored._trial_id, made.state, made.values)
    with storage.engine.begin() as connection:  # Optuna would have it end now, whenever it ended.
        connection.execute(
            text("update trials set datetime_start=:a, datetime_complete=:b where trial_id=:id"),
            {"a": made.datetime_start, "b": made.datetime_complete, "id": stored._trial_id},
        )


def _times(out: Path, search: Search, point: Point) -> tuple[datetime, datetime]:
    """When the first of a point's trials began and the last ended, by its records; local time.

    A point without records has just been drawn, as far as anyone can tell.
    """
    starts, ends = [], []
    for trial in ledger.trials(point.cell, search.seeds):
        path = ledger.trial_dir(out, trial.key)
        try:
            begun = run_dir.read_provenance(path).get("started")
            if begun:
                moment = datetime.fromisoformat(str(begun)).astimezone()
                starts.append(moment.replace(tzinfo=None))
            ends.append(datetime.fromtimestamp((path / run_dir.RESULT).stat().st_mtime))
        except (OSError, ValueError):
            continue
    start = min(starts or ends, default=datetime.now())
    return start, max([start, *ends])


def _spread(search: Search, point: Point) -> dict[str, Any]:
    """Each seed's value of each objective, and half the width of the mean's 95 % interval."""
    if point.state != COMPLETE:
        return {}
    attributes: dict[str, Any] = {}
    for name, values in zip(search.objectives, point.seeds, strict=True):
        attributes[f"{name} by seed"] = list(values)
        if len(values) > 1:
            attributes[f"{name} ± (95 %)"] = half_width(values)
    return attributes


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; nan for one value."""
    n = len(values)
    if n < 2:
        return math.nan
    from scipy.special import stdtrit

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)
