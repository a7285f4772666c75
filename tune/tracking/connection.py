"""The connection to MLflow, and the SQLite file in which MLflow keeps a sweep by default.

The file only repeats the run directories: if it is damaged, a new one is filled. MLflow makes its
tables in some forty steps and cannot go on if it was killed between two of them, so a new file is
made in another folder first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mpcc.runs.files import quarantine
from tune.store.transfer import scratch_dir
from tune.tracking.uri import ARTIFACTS, SQLITE, default_uri, file_of, first_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    # Connections end after use: one to a file that was moved would write to the moved file.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""With these MLflow raises errors soon, and does not print them."""
DAMAGE = ("not a database", "malformed", "no such table", "out-of-date database schema")
"""Parts of the messages of SQLite and MLflow about a file that must be replaced."""
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
"""The start of the name of a folder in which a new file is made."""


class DamagedDatabase(OSError):
    """The sweep's own database was damaged and moved aside; the next delivery fills a new one."""


def check_reachable(uri: str, out: Path, preset: str, *, begun: bool) -> str | None:
    """ValueError if the MLflow of --tracking-uri cannot be written to, before the first trial.

    For an existing sweep (`begun`), return the problem instead: training goes on and results are
    delivered later. The sweep's own file is not checked: it is made during the training.
    """
    if uri == default_uri(out):
        return None
    try:
        client, experiment = open_experiment(uri, out, preset)
        client.set_experiment_tag(experiment, *KIND)  # A write, which may be forbidden.
        return None
    except Exception as error:  # whatever a database or a server can raise
        problem = first_line(error)
    if begun:
        return problem
    raise ValueError(
        f"MLflow at {uri} cannot be written to ({problem}): repair it, correct --tracking-uri, or "
        f"leave that out (a SQLite file in {out}) and deliver later with --sync --tracking-uri"
    )


def open_experiment(uri: str, out: Path, preset: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the preset's experiment, which is made if it is missing.

    Raises what MLflow raises, and DamagedDatabase if the sweep's own file was damaged and is now
    moved aside.
    """
    file, name = file_of(uri), f"mpcc-{preset}"
    if file is not None and not file.exists():
        _make_database(file)
    try:
        client = connect(uri)
        experiment = client.get_experiment_by_name(name)
    except Exception as error:
        if file is None or uri != default_uri(out) or not any(t in str(error) for t in DAMAGE):
            raise
        for part in (file, *file.parent.glob(f"{file.name}-*")):  # with SQLite's journal
            quarantine(part)
        text = f"{file} was damaged: it was moved aside and a new database is being filled"
        raise DamagedDatabase(text) from None
    if experiment is not None and uri == default_uri(out):
        if not _is_here(str(experiment.artifact_location), out):
            # The folder was moved or is a copy: pictures would go to the other folder.
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


def _make_database(file: Path) -> None:
    """Make a new file, whole or not at all."""
    folder = scratch_dir(file.parent, NEW)  # Other sweeps may share the file, and make it now.
    try:
        connect(f"{SQLITE}{folder / 'new.db'}").search_experiments(max_results=1)
        try:
            os.link(folder / "new.db", file)
        except FileExistsError:  # Another sweep was faster.
            pass
        except OSError:  # A file system without links.
            os.replace(folder / "new.db", file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
