"""The points of a search that have ended as an Optuna study, for `optuna-dashboard` and own code.

study.db is a view, as MLflow is: where it is lost, damaged or differs from the records, it is
written again. A file that another program has locked is left alone until later. Points are added
in the order of their numbers, once they and all before them have ended: Optuna takes the times of
a trial from us only when it is added.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from threading import Thread
from typing import TYPE_CHECKING

from mpcc import run_dir
from mpcc.config import trial_key
from tune.store.folder import Store
from tune.suggest.points import Point, PointState, directions, frozen, half_width
from tune.suggest.search import Search

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FILE = "study.db"
LOCK_SECONDS = 2.0
"""How long SQLite waits for a reader, such as a dashboard; Optuna may try several times."""
RETRY_SECONDS = 10.0
"""Until the study is tried again, where it could not be written."""


class StudyWriter:
    """Writes study.db in a thread, so that no caller waits; the latest points win."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted: tuple[Search, Sequence[Point]] | None = None
        self._written: tuple[Search, Sequence[Point]] | None = None
        self._thread: Thread | None = None
        self._not_before = 0.0
        self.problem: str | None = None
        """Why the study could not be written the last time."""

    def write(self, search: Search, points: Sequence[Point]) -> None:
        """Have these points written; call it often, a failed attempt is repeated after a while."""
        self._wanted = search, points
        if self._thread is not None and self._thread.is_alive():
            return
        if self._wanted != self._written and time.monotonic() >= self._not_before:
            self._thread = Thread(target=self._try, args=(search, points), daemon=True)
            self._thread.start()

    def close(self, seconds: float = 2 * LOCK_SECONDS) -> str | None:
        """Have the latest points written; the problem where they are not after so many seconds."""
        deadline, self._not_before = time.monotonic() + seconds, 0.0
        for _ in range(2):  # What is being written now, then what has changed meanwhile.
            if self._thread is not None:
                self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._wanted is not None:
                self.write(*self._wanted)
        if self._wanted == self._written:
            return None
        return self.problem or f"{self._store.out / FILE} cannot be written in {seconds:g} seconds"

    def _try(self, search: Search, points: Sequence[Point]) -> None:
        self._not_before = time.monotonic() + RETRY_SECONDS
        try:
            write_study(self._store, search, points)
            self._written, self.problem, self._not_before = (search, points), None, 0.0
        except OSError as error:
            self.problem = str(error)


def write_study(store: Store, search: Search, points: Sequence[Point]) -> None:
    """Bring study.db up to these points. OSError where it cannot be written."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # RuntimeError: the tables are those of another version of Optuna.
    faults = (DatabaseError, optuna.exceptions.StorageInternalError, AssertionError, RuntimeError)
    file = store.out / FILE
    try:
        _write(store, search, points)
    except faults as error:
        # SQLite's word for a lock, a full disk, missing permissions: the file itself is sound.
        if isinstance(_origin(error), sqlite3.OperationalError):
            raise OSError(f"{file} cannot be written: {_origin(error)}") from None
        file.unlink(missing_ok=True)
        try:
            _write(store, search, points)
        except faults as again:
            raise OSError(f"{file} cannot be written: {_origin(again)}") from None


def _origin(error: BaseException) -> BaseException:
    """The error that this one began with."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _write(store: Store, search: Search, points: Sequence[Point]) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(
        f"sqlite:///{store.out.resolve() / FILE}",
        engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
    )
    try:
        study = _open(storage, store.out.name, search)
        ended = list(itertools.takewhile(lambda point: point.state != PointState.OPEN, points))
        stored = study.get_trials(deepcopy=False)
        same = map(_is_same, stored, (frozen(search, point) for point in ended))
        if len(stored) > len(ended) or not all(same):
            optuna.delete_study(study_name=store.out.name, storage=storage)
            study, stored = _open(storage, store.out.name, search), []
        for point in ended[len(stored) :]:
            study.add_trial(_with_record(store, search, point))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open(storage: RDBStorage, name: str, search: Search) -> Study:
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


def _is_same(stored: FrozenTrial, made: FrozenTrial) -> bool:
    wanted = made.params, made.state, made.values
    return (stored.params, stored.state, stored.values) == wanted


def _with_record(store: Store, search: Search, point: Point) -> FrozenTrial:
    """The point with its values by seed, and the times at which its trials began and ended."""
    trial = frozen(search, point)
    for name, values in zip(search.objectives, point.seeds, strict=False):
        trial.user_attrs[f"{name} by seed"] = list(values)
        if len(values) > 1:
            trial.user_attrs[f"{name} ± (95 %)"] = half_width(values)
    starts, ends = [], []
    for seed in search.seeds:
        path = store.trial_dir(trial_key(point.cell.key, seed))
        try:
            ends.append(datetime.fromtimestamp((path / run_dir.RESULT).stat().st_mtime))
            begun = datetime.fromisoformat(str(run_dir.read_provenance(path)["started"]))
            starts.append(begun.astimezone().replace(tzinfo=None))
        except (OSError, ValueError, KeyError):  # A trial that failed before it wrote them.
            continue
    trial.datetime_start = min(starts or ends, default=datetime.now())
    trial.datetime_complete = max([trial.datetime_start, *ends])
    return trial
