"""MLflow, a view of the run directories: one parent run per sweep, one child per trial.

The driver is the only writer. It reads what the trials have left on disk and sends what MLflow does
not have yet, so a server that is down or slow costs a delay and no training. Each run directory
remembers in mlflow.json what was delivered; a run is found again by its tags where that is lost.
Everything may be sent twice: rows carry their iteration as time stamp, and MLflow keeps one of two
equal rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from datetime import datetime
from pathlib import Path
from typing import Any

from mpcc import run_dir
from mpcc.options import usable
from tune import ledger, tracking_file
from tune.ledger import Plan, Status, Trial
from tune.signals import joined, tell

RECORD = "mlflow.json"
DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"

MLFLOW_STATUS = {
    ledger.RUNNING: "RUNNING",
    ledger.DONE: "FINISHED",
    ledger.DIVERGED: "FAILED",
    ledger.FAILED: "FAILED",
    ledger.PRUNED: "KILLED",
    ledger.STOPPED: "KILLED",
}
RETRY_SECONDS = 30.0
"""At most so long after a fault it is tried again."""
_BATCH = 900
"""Metrics per request; MLflow allows 1000."""


class TrackingError(ValueError):
    """A tracking URI that cannot be used; the message is one line."""


def default_uri(out: Path) -> str:
    """A SQLite data base under the output folder, by its absolute path."""
    return f"sqlite:///{Path(out).resolve() / DATABASE}"


def checked_uri(uri: str) -> str:
    """The URI as it is used, a SQLite path made absolute. TrackingError for other kinds."""
    if uri.startswith("sqlite:///"):
        try:
            path = usable(uri.removeprefix("sqlite:///") or ".")
        except ValueError as error:
            raise TrackingError(f"--tracking-uri {uri}: {error}") from None
        if path.is_dir() or not path.name:
            raise TrackingError(f"--tracking-uri {uri} names a folder, not a data base file")
        there = next(place for place in path.resolve().parents if place.exists())
        if not there.is_dir():
            raise TrackingError(f"--tracking-uri {uri}: {there} is a file; name another place")
        return f"sqlite:///{path.resolve()}"
    if re.match(r"(https?|postgresql(\+\w+)?|mysql(\+\w+)?)://[^/\s]+", uri):
        return uri
    raise TrackingError(
        f"--tracking-uri must start with sqlite:///, http://, https://, postgresql:// or mysql://, "
        f"got '{uri}'"
    )


def ui_hint(uri: str, out: Path, program: str = "mlflow") -> list[str]:
    """How to look at a sweep's runs in a browser: the server with what makes it start fast, where
    there is none yet, and their page, which MLflow's own start is far from."""
    experiment = str(_record(out, uri).get("experiment", ""))
    known = experiment.isdigit()
    page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if known else ""
    if uri.startswith("http"):
        return [f"open {uri.rstrip('/')}{page}"]
    return [
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.quote(program)} server "
        f"--backend-store-uri {shlex.quote(uri)} --workers 1 --port 5000",
        f"then open http://localhost:5000{page}",
    ]


def waiting(out: Path, plan: Plan, uri: str, live: Collection[str] = ()) -> list[Trial]:
    """The trials of which MLflow lacks something, known from what is on disk alone."""
    file = tracking_file.file_of(uri)
    lost = file is not None and not file.exists()
    late = []
    for trial in plan.trials():
        path = ledger.trial_dir(out, trial.key)
        if (path / run_dir.CONFIG).exists():
            status = ledger.status(out, trial, live)
            record = _record(path, uri)
            if lost or record.get("delivered") != _digest(status, path):
                late.append(trial)
    return late


def in_step(out: Path, plan: Plan, uri: str) -> bool:
    """Whether MLflow lacks nothing of this sweep, while no driver works on it."""
    states = [ledger.status(out, trial).state for trial in plan.trials()]
    parent = _parent_digest(plan, sweep_state(set(states)), states)
    return _record(out, uri).get("delivered") == parent and not waiting(out, plan, uri)


class Delivery:
    """Sends what is waiting, in one thread, as often as it is asked to."""

    def __init__(self, out: Path, uri: str) -> None:
        self.out, self.uri = Path(out), uri
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] | None = None
        self.note: str | None = None
        """What has happened to the data base that its owner should know."""

    def deliver(self, plan: Plan, live: Collection[str] = (), state: str = ledger.RUNNING) -> int:
        """Bring MLflow up to the run directories and return how many trials were sent.

        `live` are the trials in hand, `state` the sweep's own. Raises whatever MLflow raises.
        """
        try:
            self._open(plan)
            late = waiting(self.out, plan, self.uri, live)
            self._send_parent(plan, state)
            for trial in late:
                self._send(plan, trial, ledger.status(self.out, trial, live))
            return len(late)
        except Exception:
            self._runs = None  # A request that timed out may have made its run: look again.
            raise

    def _open(self, plan: Plan) -> None:
        """Connect, make data base and experiment where missing, and list the sweep's runs."""
        if self._client is None:
            file = tracking_file.file_of(self.uri)
            if file is not None and not file.exists():
                self._make(file, plan)
            try:
                self._connect(plan)
            except Exception:
                ours = file is not None and self.uri == default_uri(self.out)
                if file is None or not ours or not tracking_file.is_damaged(file, _fill):
                    raise
                aside = tracking_file.set_aside(file)
                self.note = f"{file} cannot be opened; set aside as {aside.name}, filled again"
                self._make(file, plan)
                self._connect(plan)
        if self._runs is None:
            self._runs = self._find_runs(plan)

    def _connect(self, plan: Plan) -> None:
        client = _client(self.uri)
        self._experiment = _open_experiment(client, self.uri, self.out, plan.preset)
        self._client = client

    def _make(self, file: Path, plan: Plan) -> None:
        """A new data base; what another one was sent counts no more, and is sent again."""
        for path in (self.out, *(ledger.trial_dir(self.out, t.key) for t in plan.trials())):
            if _record(path, self.uri):
                (path / RECORD).unlink()
        tracking_file.make(file, _fill)

    def _find_runs(self, plan: Plan) -> dict[str, str]:
        """Trial key -> run, the parent under ''. Of two runs with one key the older one stays."""
        found: dict[str, str] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.sweep = '{plan.id}'",
                order_by=["attributes.start_time ASC"],
                max_results=1000,
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get("trial_key", "")
                if key in found:
                    self._client.delete_run(run.info.run_id)
                found.setdefault(key, run.info.run_id)
            token = page.token
            if not token:
                return found

    def _send_parent(self, plan: Plan, state: str) -> None:
        """The sweep's own run: its plan, how far it is."""
        assert self._runs is not None
        path = self.out / RECORD
        record = _record(self.out, self.uri)
        states = [ledger.status(self.out, trial).state for trial in plan.trials()]
        digest = _parent_digest(plan, state, states)
        if record.get("delivered") == digest and record.get("run_id") == self._runs.get(""):
            return
        run_id = self._runs.get("")
        if run_id is None:
            tags = {"sweep": plan.id, "preset": plan.preset, "code": plan.code, "kind": "sweep"}
            run = self._client.create_run(
                self._experiment, tags=tags, run_name=self.out.resolve().name
            )
            run_id = run.info.run_id
            self._runs[""] = run_id
            self._log_params(run_id, plan.to_dict()["base"])
        cells = "; ".join(planned.cell.text for planned in plan.cells)
        for key, value in {"state": state, "done": digest[1], "cells": cells[:4000]}.items():
            self._client.set_tag(run_id, key, value)
        if (self.out / ledger.PLAN).exists():
            self._client.log_artifact(run_id, str(self.out / ledger.PLAN))
        self._set_status(run_id, MLFLOW_STATUS[state], None)
        record = {"tracking_uri": self.uri, "experiment": self._experiment, "run_id": run_id}
        run_dir.write_json(path, record | {"delivered": digest})

    def _send(self, plan: Plan, trial: Trial, status: Status) -> None:
        """One trial: its run, its parameters, the rows that are new, its end."""
        assert self._runs is not None
        path = ledger.trial_dir(self.out, trial.key)
        record = _record(path, self.uri)
        run_id = self._runs.get(trial.key)
        if run_id is None or record.get("run_id") != run_id:
            record = {"tracking_uri": self.uri, "run_id": run_id, "rows_delivered": 0}
        if run_id is None:
            run_id = self._create(plan, trial, path)
            self._runs[trial.key] = run_id
            record["run_id"] = run_id
        if "start" not in record:
            self._log_params(run_id, trial.config.to_dict())
            run = self._client.get_run(run_id)
            record |= {"start": run.info.start_time, "cause": "cause" in run.data.tags}
            run_dir.write_json(path / RECORD, record)
        rows = _fresh(_rows(path), record)
        if rows:
            self._log_rows(run_id, rows, int(record["start"]))
            record |= {"rows_delivered": rows[-1]["iteration"], "last_row": _row_digest(rows[-1])}
            run_dir.write_json(path / RECORD, record)
        self._client.set_tag(run_id, "state", status.state)
        self._tell_cause(run_id, record, status.cause)
        if status.state != ledger.RUNNING:
            self._send_end(run_id, path, status)
        elif record.get("delivered", ["running"])[0] != ledger.RUNNING:
            self._set_status(run_id, "RUNNING", None)
        run_dir.write_json(path / RECORD, record | {"delivered": _digest(status, path)})

    def _create(self, plan: Plan, trial: Trial, path: Path) -> str:
        provenance = _read(path / run_dir.PROVENANCE)
        tags = {
            "mlflow.parentRunId": self._runs[""] if self._runs else "",
            "sweep": plan.id,
            "trial_key": trial.key,
            "cell_key": trial.cell.key,
            "cell": trial.cell.text,
            "seed": str(trial.seed),
            "code": str(provenance.get("code", plan.code)),
        }
        name = f"{trial.cell.text.replace(', ', ' ')} seed={trial.seed}"
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(provenance.get("started")),
            tags=tags,
            run_name=name,
        )
        return str(run.info.run_id)

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, _param_text(value)) for name, value in values.items()]
        self._client.log_batch(run_id, params=params)

    def _log_rows(self, run_id: str, rows: Iterable[Mapping[str, Any]], start: int) -> None:
        """Evaluations as metrics over the iteration. `seconds` stays out: a repeat would differ."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, number, start + int(row["iteration"]), int(row["iteration"]))
            for row in rows
            for name, number in _numbers(row).items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH])

    def _send_end(self, run_id: str, path: Path, status: Status) -> None:
        """What there is of a trial that no longer runs: files, cause, MLflow's status."""
        names = (run_dir.CONFIG, run_dir.PROVENANCE, run_dir.RESULT)
        for file in [*(path / name for name in names), *sorted(path.glob("*.png"))]:
            if file.exists():
                self._client.log_artifact(run_id, str(file))
        result = path / run_dir.RESULT
        end = int(result.stat().st_mtime * 1000) if result.exists() else None
        self._set_status(run_id, MLFLOW_STATUS[status.state], end)

    def _tell_cause(self, run_id: str, record: dict[str, Any], cause: str | None) -> None:
        """The cause as a tag; a trial that has recovered has none any more."""
        if cause:
            self._client.set_tag(run_id, "cause", cause[:4000])
        elif record.get("cause"):
            self._client.delete_tag(run_id, "cause")
        record["cause"] = bool(cause)

    def _set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        if status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_time)


class Background:
    """Delivery beside training: its faults are kept, waited out and told, never raised."""

    def __init__(
        self,
        out: Path,
        uri: str,
        plan: Plan,
        live: Callable[[], Collection[str]],
        leads: Callable[[], bool] = lambda: True,
        elsewhere: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """`live` are the trials in hand, `elsewhere` those of other drivers; one that does not
        `lead` leaves it to the one that does."""
        self._delivery, self._plan, self._live = Delivery(out, uri), plan, live
        self._leads, self._elsewhere = leads, elsewhere
        self._wake, self._end = threading.Event(), threading.Event()
        self._state = ledger.RUNNING
        self.problem: str | None = None
        self.note: str | None = None
        """As `Delivery.note`; whoever tells it takes it away."""
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def grow(self, plan: Plan) -> None:
        """The plan has more trials now."""
        self._plan = plan
        self.poke()

    def poke(self) -> None:
        """Something new lies on disk."""
        self._wake.set()

    def finish(self, state: str, left: Callable[[], float]) -> str | None:
        """Deliver the rest while there is time `left`; what hinders it as one line, or None."""
        seconds = left()
        self._state = state
        self._end.set()
        self._wake.set()
        if not joined(self._thread, left):
            return self.problem or f"no answer within {seconds:.0f} s"
        return self.problem

    def _run(self) -> None:
        """After a fault it tries again by itself: a server may come back while nothing is new."""
        pause = 1.0
        while True:
            last = self._end.is_set()
            self._wake.clear()
            live = {*self._elsewhere(), *(() if last else self._live())}
            try:
                if self._leads():
                    self._delivery.deliver(self._plan, live, self._state)
                self.problem, pause = None, 1.0
                self.note, self._delivery.note = self._delivery.note or self.note, None
            except Exception as error:  # whatever a data base or a server can raise
                self.problem = one_line(error)
                pause = min(2 * pause, RETRY_SECONDS)
            if last:
                return
            self._end.wait(pause)
            if not self._end.is_set() and self.problem is None:
                self._wake.wait()


def sync(out: Path, uri: str, plan: Plan, live: Collection[str] = ()) -> int:
    """Deliver by hand what is waiting; raises what MLflow raises."""
    states = {ledger.status(out, trial, live).state for trial in plan.trials()}
    delivery = Delivery(out, uri)
    sent = delivery.deliver(plan, live, ledger.RUNNING if live else sweep_state(states))
    if delivery.note:
        tell(delivery.note)
    return sent


def sweep_state(states: Set[str]) -> str:
    """The state of the whole sweep by those of its trials, when no driver works on it."""
    if states <= {ledger.DONE, ledger.PRUNED}:
        return ledger.DONE
    if states & {ledger.PLANNED, ledger.RUNNING, ledger.STOPPED}:
        return ledger.STOPPED
    return ledger.FAILED


def one_line(error: BaseException) -> str:
    """The first line of an error that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def write_probe(uri: str, out: Path, preset: str) -> None:
    """Write to MLflow what the sweep writes first, its experiment; raises what MLflow raises."""
    client = _client(uri)
    experiment = _open_experiment(client, uri, out, preset)
    for name, value in EXPERIMENT_TAGS.items():
        client.set_experiment_tag(experiment, name, value)


def _open_experiment(client: Any, uri: str, out: Path, preset: str) -> str:
    """The id of the preset's experiment, made where it is missing."""
    name = f"mpcc-{preset}"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if not uri.startswith("http"):
            location = (out.resolve() / ARTIFACTS / name).as_uri()
        return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in MLflow's pages for trained models, not those for language models."""


def _client(uri: str) -> Any:
    """An MLflow client that gives up early and says nothing: its errors come as exceptions."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if tracking_file.file_of(uri) is not None:
        # No connection outlives its use: one to a file that was set aside would write there.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def _fill(uri: str) -> None:
    """Make MLflow's tables in a new data base."""
    _client(uri).search_experiments(max_results=1)


def _record(path: Path, uri: str) -> dict[str, Any]:
    """What mlflow.json says was delivered to this URI."""
    record = _read(path / RECORD)
    return record if record.get("tracking_uri") == uri else {}


def _digest(status: Status, path: Path) -> list[Any]:
    """What must have been delivered for this state of a trial."""
    rows = _rows(path)
    return [status.state, status.cause, rows[-1]["iteration"] if rows else 0]


def _parent_digest(plan: Plan, state: str, states: list[str]) -> list[Any]:
    """What the sweep's own run must show."""
    return [state, f"{states.count(ledger.DONE)} of {len(states)}", len(plan.cells)]


def _fresh(rows: list[dict[str, Any]], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that MLflow lacks: all, where those that it has were made again since."""
    last = int(record["rows_delivered"])
    if "last_row" in record:
        kept = next((_row_digest(row) for row in rows if row["iteration"] == last), None)
        if kept != record["last_row"]:
            return rows
    return [row for row in rows if int(row["iteration"]) > last]


def _row_digest(row: Mapping[str, Any]) -> str:
    """Of what MLflow is sent of a row."""
    text = json.dumps(_numbers(row), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return run_dir.read_metrics(path)
    except (run_dir.RunDirError, OSError):
        return []


def _read(file: Path) -> dict[str, Any]:
    try:
        return run_dir.read_json(file) or {}
    except (run_dir.RunDirError, OSError):
        return {}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row as floats; MLflow would store infinity as 1.8e308, so it becomes NaN."""
    numbers = {}
    for name, value in row.items():
        if name in ("iteration", "seconds"):
            continue
        if isinstance(value, (int, float)) and math.isfinite(value):
            numbers[name] = float(value)
        elif value in ("inf", "-inf", "nan"):
            numbers[name] = math.nan
    return numbers


def _param_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _milliseconds(started: Any) -> int:
    try:
        return int(datetime.fromisoformat(str(started)).timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
