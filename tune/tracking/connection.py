"""The connection to MLflow, and the SQLite file in which MLflow keeps a sweep by default.

That is a view of the run directories: where the file is damaged, a new one is filled. MLflow makes
its tables in some forty steps and cannot go on where it was killed between two of them, so a new
file is made in another folder first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mpcc.runs.files import set_aside
from tune.tracking.uri import ARTIFACTS, SQLITE, default_uri, file_of, one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    # No connection outlives its use: one to a file that was moved away would write there.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""So that errors are raised soon, and are not printed."""
DAMAGE = ("not a database", "malformed", "no such table", "out-of-date database schema")
"""What SQLite or MLflow says of a file that only a new one can replace."""
KIND = ("mlflow.experimentKind", "custom_model_development")
"""Opens an experiment in MLflow's pages for trained models, not those for language models."""
NOTE = (
    "mlflow.note.content",
    "One preset of MPCC. Each run is a sweep, with a run for each of its trials below it. Metrics "
    "are as they were recorded: acc_majority 0.582 is Acc 58.2 % in tables and on the terminal. A "
    "run's params are its settings by their full names.",
)
"""The description of an experiment."""
NEW = ".mlflow.db."
"""Begins the name of a folder in which a new file is made."""


class DamagedDatabase(OSError):
    """The sweep's own database was damaged; it is quarantined, and the next delivery fills anew."""


def check_reachable(uri: str, out: Path, preset: str, *, begun: bool) -> str | None:
    """ValueError where an MLflow of the user's cannot be written to, before the first trial.

    Once a sweep has `begun` that does not hold it up: then what hinders is returned, and results
    are delivered later. The sweep's own file is made beside the training.
    """
    if uri == default_uri(out):
        return None
    try:
        client, experiment = open_experiment(uri, out, preset)
        client.set_experiment_tag(experiment, *KIND)  # Writes, which it may not be allowed to.
        return None
    except Exception as error:  # whatever a database or a server can raise
        problem = one_line(error)
    if begun:
        return problem
    raise ValueError(
        f"MLflow at {uri} cannot be written to ({problem}): repair it, correct --tracking-uri, or "
        f"leave that out (a SQLite file in {out}) and deliver later with --sync --tracking-uri"
    )


def open_experiment(uri: str, out: Path, preset: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the preset's experiment, made where missing.

    Raises what MLflow raises, and DamagedDatabase where the sweep's own file was damaged and is
    now out of the way.
    """
    file, name = file_of(uri), f"mpcc-{preset}"
    if file is not None and not file.exists():
        _make_database(file, out)
    try:
        client = connect(uri)
        experiment = client.get_experiment_by_name(name)
    except Exception as error:
        if file is None or uri != default_uri(out) or not any(t in str(error) for t in DAMAGE):
            raise
        for part in (file, *file.parent.glob(f"{file.name}-*")):  # with SQLite's journal
            set_aside(part)
        raise DamagedDatabase(f"{file} was damaged; it is quarantined, a new one filled") from None
    if experiment is not None and uri == default_uri(out):
        if not _is_here(str(experiment.artifact_location), out):
            # The folder was moved or is a copy: pictures would go to the place of the other.
            old = experiment.experiment_id
            client.rename_experiment(old, f"{name}, moved ({old})")
            client.delete_experiment(old)
            experiment = None
    if experiment is None:
        # A server keeps artifacts where it is told to; a database alone has no place for them.
        local = not uri.startswith("http")
        location = (out.resolve() / ARTIFACTS / name).as_uri() if local else None
        return client, client.create_experiment(name, location, dict([KIND, NOTE]))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return client, str(experiment.experiment_id)


def _is_here(location: str, out: Path) -> bool:
    """Whether artifacts at this URI lie in this folder, also by another path to it."""
    folder = Path(unquote(urlsplit(location).path)).parent.parent
    try:
        return folder == out or folder.samefile(out)
    except OSError:
        return False


def connect(uri: str) -> MlflowClient:
    """A client for this URI."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _make_database(file: Path, out: Path) -> None:
    """Put a new file there, whole or not at all."""
    for left in out.glob(f"{NEW}*"):  # A dead driver's: only one works on a sweep's folder.
        shutil.rmtree(left, ignore_errors=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=NEW, dir=file.parent) as folder:
        new = Path(folder) / "new.db"
        connect(f"{SQLITE}{new}").search_experiments(max_results=1)
        try:
            os.link(new, file)
        except FileExistsError:  # Another sweep that shares the file was faster.
            pass
        except OSError:  # A file system without links.
            os.replace(new, file)
