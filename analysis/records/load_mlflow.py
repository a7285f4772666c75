"""The records of a sweep from an MLflow server alone, for when the run directories are gone.

What MLflow holds is laid out as run directories in a folder, and everything else reads those: there
is one way from records to tables. A trial that MLflow has twice is laid out twice, in two folders.
"""

from __future__ import annotations

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
from mpcc.runs.files import SEAL
from mpcc.runs.run_dir import (
    CONFIG,
    ENDED,
    METRICS,
    PROVENANCE,
    RESULT,
    RunDirError,
    read_result_alone,
    write_bytes,
    write_json,
    write_provenance,
    write_result,
)
from tune.plan.plan import MLFLOW, PLAN

_PICTURE = "samples.png"


def fetch(uri: str, folder: Path, name: str | None = None, *, curves: bool = False) -> list[Path]:
    """Lay out the latest sweep (or the one of that preset, sweep id or run name) below `folder`.

    Returns the folders to load. `curves` also fetches every evaluation and the sample sheets.
    Raises LoadError, in one line, where the server does not answer or has no such sweep.
    """
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    try:
        parent = _parent(client, uri, name)
        return _lay_out(client, parent, folder, curves)
    except (MlflowException, OSError) as error:
        line = str(error).splitlines()[0][:200]
        raise LoadError(f"MLflow at {uri} does not answer as it should: {line}") from None


def _client(uri: str) -> Any:
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise LoadError(f"{uri} is no data base; MLflow's is <sweep>/mlflow.db by default")
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
    return MlflowClient(tracking_uri=uri)


def _search(client: Any, text: str) -> Iterator[Any]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(
            experiments,
            text,
            order_by=["attributes.start_time ASC"],
            max_results=1000,
            page_token=token,
        )
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
    preset = parent.data.tags.get("preset", "sweep")
    folders: list[Path] = []
    seen: dict[str, int] = {}
    first = _folder(client, parent, folder / preset, folders)
    for run in _search(client, f"tags.sweep = '{parent.data.tags['sweep']}'"):
        key = run.data.tags.get("trial_key")
        if not key:
            continue
        times = seen[key] = seen.get(key, 0) + 1
        place = first
        if times > 1:
            place = folder / f"{preset}-{times}"
            place = place if place in folders else _folder(client, parent, place, folders)
        _trial(client, run, place / "trials" / key, curves)
    return folders


def _folder(client: Any, parent: Any, place: Path, folders: list[Path]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    plan = _artifact(client, parent.info.run_id, PLAN)
    if plan is not None:
        write_bytes(place / PLAN, plan)
    folders.append(place)
    return place


def _trial(client: Any, run: Any, path: Path, curves: bool) -> None:
    """One run directory. Files that MLflow holds as they were go before what it holds in parts."""
    path.mkdir(parents=True, exist_ok=True)
    run_id, tags = run.info.run_id, run.data.tags
    names = [CONFIG, PROVENANCE, RESULT, *([_PICTURE] if curves else [])]
    files = {name: _artifact(client, run_id, name) for name in names}
    for name, data in files.items():
        if data is not None:
            write_bytes(path / name, data)
    if files[CONFIG] is None:
        values = {name: _value(name, text) for name, text in run.data.params.items()}
        write_json(path / CONFIG, values)
    if files[PROVENANCE] is None:
        write_provenance(path, {"code": tags.get("code")})
    rows = _rows(client, run) if curves or files[RESULT] is None else []
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_bytes(path / METRICS, text.encode())
    if files[RESULT] is not None:
        _seal_again(path)
    elif tags.get("state") in ENDED:
        last = {k: v for k, v in rows[-1].items() if k != "iteration"} if rows else {}
        iteration = rows[-1]["iteration"] if rows else 0
        result = {
            "state": tags["state"],
            "cause": tags.get("cause") or None,
            "iteration": iteration,
        }
        write_result(path, result | {"trial_key": tags["trial_key"], "metrics": last})
    write_json(path / MLFLOW, {"run_id": run_id})


def _seal_again(path: Path) -> None:
    """A sound result stands for the rows as MLflow gives them; any other one stays as it is."""
    with suppress(RunDirError):
        result = read_result_alone(path)
        if result is not None and SEAL in result:
            write_result(path, result)


MLFLOW_TEST = (TEST.replace("@", "/"), TEST)
"""The end of a metric's name of images that were not trained on, in MLflow and in records."""


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
    """A parameter's text as a value: JSON but for plain text, or as the command line takes it."""
    try:
        return json.loads(text)
    except ValueError:
        return text if name in REMOVED else parse_value(full_name(name), text)


def _artifact(client: Any, run_id: str, name: str) -> bytes | None:
    """A file of a run; None where MLflow has none, or where its artifacts are gone."""
    import tempfile

    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, name, folder)).read_bytes()
        except (MlflowException, OSError):
            return None
