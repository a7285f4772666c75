"""Load the records of a sweep from MLflow alone, for when the run directories are gone.

The records are written to a folder as run directories, which everything else reads: so there is one
path from records to tables. A trial that MLflow has twice is written twice, to two folders.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis.records.folders import LoadError
from mpcc.config import REMOVED, full_name, parse_value
from mpcc.evaluation.metrics import TEST
from mpcc.runs import run_dir
from mpcc.runs.files import SEAL
from mpcc.shell import message_of
from tune.plan.plan import MLFLOW, PLAN, TRIALS

_PICTURE = "samples.png"


def fetch(uri: str, folder: Path, name: str | None = None, *, curves: bool = False) -> list[Path]:
    """Download the latest sweep (with this preset, sweep id or run name, if given) below `folder`.

    Returns the folders to load. `curves` also downloads every evaluation and the sample sheets.
    Raises LoadError, with a one-line message, if the server does not answer or has no such sweep.
    """
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    try:
        return _lay_out(client, _parent(client, uri, name), folder, curves)
    except (MlflowException, OSError) as error:
        reason = message_of(error, 200)
        raise LoadError(f"MLflow at {uri} does not answer as it should: {reason}") from None


def _client(uri: str) -> Any:
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise LoadError(f"{uri} is no database; MLflow's is <sweep>/mlflow.db by default")
    if not uri.startswith(("sqlite:///", "http://", "https://", "postgresql", "mysql")):
        raise LoadError(f"--mlflow must be sqlite:///FILE or the URL of a server, got '{uri}'")
    for key, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(key, value)
    import logging

    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "alembic", "mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        return MlflowClient(tracking_uri=uri)  # The process's own tracking URI stays as it is.
    except Exception as error:  # such as a database's driver that is not installed
        reason = message_of(error, 200)
        raise LoadError(f"MLflow at {uri} cannot be opened: {reason}") from None


def _search(client: Any, text: str) -> Iterator[Any]:
    """The runs of all experiments that match this filter string, in order of their start time."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order, token = ["attributes.start_time ASC"], None
    while True:
        page = client.search_runs(experiments, text, order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _parent(client: Any, uri: str, name: str | None) -> Any:
    found = list(_search(client, "tags.kind = 'sweep'"))
    if name:
        found = [
            run
            for run in found
            if name in (run.data.tags["sweep"], run.data.tags.get("preset"), run.info.run_name)
        ]
    if not found:
        raise LoadError(f"MLflow at {uri} has no sweep" + (f" '{name}'" if name else ""))
    return found[-1]


def _lay_out(client: Any, parent: Any, folder: Path, curves: bool) -> list[Path]:
    preset, runs = parent.data.tags.get("preset", "sweep"), dict[str, list[Any]]()
    for run in _search(client, f"tags.sweep = '{parent.data.tags['sweep']}'"):
        if key := run.data.tags.get("trial_key"):
            runs.setdefault(key, []).append(run)
    n_folders = max(map(len, runs.values()), default=1)
    folders = [folder / (f"{preset}-{n}" if n else preset) for n in (0, *range(2, n_folders + 1))]
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
        _artifact(client, parent.info.run_id, PLAN, place)
    for key, same in runs.items():
        for place, run in zip(folders, same, strict=False):
            _trial(client, run, place / TRIALS / key, curves)
    return folders


def _trial(client: Any, run: Any, path: Path, curves: bool) -> None:
    """Write a run directory: stored files; missing ones are rebuilt from parameters and metrics."""
    path.mkdir(parents=True, exist_ok=True)
    run_id, tags = run.info.run_id, run.data.tags
    names = [run_dir.CONFIG, run_dir.PROVENANCE, run_dir.RESULT, *([_PICTURE] if curves else [])]
    files = {name for name in names if _artifact(client, run_id, name, path)}
    if run_dir.CONFIG not in files:
        values = {name: _value(name, text) for name, text in run.data.params.items()}
        run_dir.write_json(path / run_dir.CONFIG, values)
    if run_dir.PROVENANCE not in files:
        run_dir.write_provenance(path, {"code": tags.get("code")})
    rows = _rows(client, run) if curves or run_dir.RESULT not in files else []
    run_dir.write_metrics(path, rows)
    if run_dir.RESULT in files:
        # Reseal a valid result over the rows as MLflow returns them.
        with suppress(run_dir.RunDirError):
            sound = run_dir.read_result_record(path)
            if sound is not None and SEAL in sound:
                run_dir.write_result(path, sound)
    elif tags.get("state") in run_dir.ENDED:
        last = dict(rows[-1]) if rows else {}
        result = {"state": tags["state"], "cause": tags.get("cause") or None}
        result |= {"iteration": last.pop("iteration", 0), "metrics": last}
        run_dir.write_result(path, result | {"trial_key": tags["trial_key"]})
    run_dir.write_json(path / MLFLOW, {"run_id": run_id})


MLFLOW_TEST = (TEST.replace("@", "/"), TEST)
"""Suffix of a metric measured on images that were not trained on: in MLflow, and in records."""


def _rows(client: Any, run: Any) -> list[dict[str, Any]]:
    """Every evaluation, from the histories of the run's metrics."""
    rows: dict[int, dict[str, Any]] = {}
    for name in sorted(run.data.metrics):
        for item in client.get_metric_history(run.info.run_id, name):
            row = rows.setdefault(item.step, {"iteration": item.step})
            row[name.replace(*MLFLOW_TEST)] = (
                item.value if math.isfinite(item.value) else str(item.value)
            )
    return [rows[step] for step in sorted(rows)]


def _value(name: str, text: str) -> Any:
    """A parameter's text as a value: parsed as JSON, else as the command line parses it."""
    try:
        return json.loads(text)
    except ValueError:
        return text if name in REMOVED else parse_value(full_name(name), text)


def _artifact(client: Any, run_id: str, name: str, place: Path) -> bool:
    """Download this file of a run into `place`; False if MLflow cannot deliver it."""
    from mlflow.exceptions import MlflowException

    try:
        client.download_artifacts(run_id, name, str(place))
        return True
    except (MlflowException, OSError):
        (place / name).unlink(missing_ok=True)  # A partial download.
        return False
