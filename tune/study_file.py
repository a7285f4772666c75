"""The search as an Optuna study in study.db, for `optuna-dashboard` and for code of one's own.

The file is a view, as MLflow is: where it is lost or says something else, it is written again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.points import COMPLETE, OPEN, Point, Search, directions, frozen

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FILE = "study.db"


def write_study(out: Path, name: str, search: Search, points: Sequence[Point]) -> None:
    """Bring study.db up to these points. OSError where it cannot be written."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = Path(out).resolve() / FILE
    try:
        _write(path, name, search, points)
    except (DatabaseError, optuna.exceptions.StorageInternalError, AssertionError):
        path.unlink(missing_ok=True)  # Torn or foreign: the run directories have it all.
        try:
            _write(path, name, search, points)
        except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
            raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None


def _write(path: Path, name: str, search: Search, points: Sequence[Point]) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = _study(storage, name, search)
        stored = study.get_trials(deepcopy=False)
        if len(stored) > len(points) or any(map(_differ, stored, _made(search, points))):
            optuna.delete_study(study_name=name, storage=storage)
            study, stored = _study(storage, name, search), []
        for trial in _made(search, points)[len(stored) :]:
            study.add_trial(trial)
        for trial, point in zip(stored, points, strict=False):
            if not trial.state.is_finished() and point.state != OPEN:
                _tell(storage, trial, frozen(search, point))
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


def _made(search: Search, points: Sequence[Point]) -> list[FrozenTrial]:
    made = []
    for point in points:
        trial = frozen(search, point)
        trial.user_attrs |= _spread(search, point)
        made.append(trial)
    return made


def _differ(stored: FrozenTrial, made: FrozenTrial) -> bool:
    """Whether what is stored cannot become what the run directories say."""
    if stored.params != made.params:
        return True
    return stored.state.is_finished() and (stored.state, stored.values) != (made.state, made.values)


def _tell(storage: Any, stored: FrozenTrial, made: FrozenTrial) -> None:
    for key, value in made.user_attrs.items():
        storage.set_trial_user_attr(stored._trial_id, key, value)
    storage.set_trial_state_values(stored._trial_id, made.state, made.values)


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
