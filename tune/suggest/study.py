"""The ended points of a search as an Optuna study, for `optuna-dashboard` and code of your own.

study.db is a view, as MLflow is: if it is lost, damaged or differs from the records, it is written
again. A file that another program has locked is left alone until later. Points are added in the
order of their numbers, once they and all before them have ended: Optuna takes the times of a trial
from us only when it is added.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING

from mpcc.config import trial_key
from mpcc.runs import run_dir
from tune.plan.plan import STUDY
from tune.store.folder import Store
from tune.suggest.points import Point, frozen, open_study
from tune.suggest.search import Search

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LOCK_SECONDS = 2.0
"""How long SQLite waits for a reader, such as a dashboard; Optuna may try several times."""


def write_study(store: Store, search: Search, points: Sequence[Point]) -> None:
    """Make study.db hold these points, which have ended. OSError if it cannot be written."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DatabaseError

    file = store.out / STUDY
    for last in (False, True):
        try:
            return _write(store, search, points)
        # RuntimeError: the tables are those of another version of Optuna.
        except (DatabaseError, StorageInternalError, AssertionError, RuntimeError) as error:
            cause: BaseException = error
            while (earlier := cause.__cause__ or cause.__context__) is not None:
                cause = earlier
            # SQLite's error for a lock, a full disk, missing permissions: the file itself is sound.
            if last or isinstance(cause, sqlite3.OperationalError):
                raise OSError(f"{file} cannot be written: {cause}") from None
            file.unlink(missing_ok=True)


def _write(store: Store, search: Search, points: Sequence[Point]) -> None:
    """Add the points that study.db lacks, or all of them if it holds others."""
    import optuna

    timeout = {"connect_args": {"timeout": LOCK_SECONDS}}
    url = f"sqlite:///{store.out.resolve() / STUDY}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs=timeout)
    try:
        study = open_study(search, storage, store.out.name)
        stored = study.get_trials(deepcopy=False)
        wanted = [frozen(search, point) for point in points[: len(stored)]]
        content = attrgetter("params", "state", "values")
        if list(map(content, stored)) != list(map(content, wanted)):
            optuna.delete_study(study_name=store.out.name, storage=storage)
            study, stored = open_study(search, storage, store.out.name), []
        if study.metric_names is None:
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(search.objectives))
            study.set_user_attr("labels chose", ", ".join(search.by_labels) or "nothing")
        for point in points[len(stored) :]:
            study.add_trial(_with_times(store, search, point))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _with_times(store: Store, search: Search, point: Point) -> FrozenTrial:
    """The point with the times at which its trials began and ended, by their records."""
    trial, times = frozen(search, point), []
    for seed in search.seeds:
        path = store.trial_dir(trial_key(point.cell.key, seed))
        with contextlib.suppress(OSError, ValueError, KeyError):  # A trial that failed early.
            times.append(datetime.fromtimestamp((path / run_dir.RESULT).stat().st_mtime))
            begun = datetime.fromisoformat(str(run_dir.read_provenance(path)["started"]))
            times.append(begun.astimezone().replace(tzinfo=None))
    if times:
        trial.datetime_start, trial.datetime_complete = min(times), max(times)
    return trial
