"""The connection to MLflow, and the runs of one sweep there. Raises what MLflow raises."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tune.tracking.uri import ARTIFACTS, file_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

Evaluation = Mapping[str, float]
"""What MLflow is sent of a row: `iteration` and its metrics as floats."""
BATCH = 900
"""Metrics per request; MLflow allows 1000."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass
class HeldRun:
    """A run as MLflow holds it."""

    id: str
    start: int
    """In milliseconds: the time stamp of iteration 0."""
    tags: dict[str, str]
    params: set[str]

    @classmethod
    def of(cls, run: Run) -> HeldRun:
        """The run that MLflow has answered with."""
        return cls(run.info.run_id, run.info.start_time, dict(run.data.tags), set(run.data.params))


class SweepRuns:
    """The runs of one sweep, in the experiment of its preset, which is made where it is missing."""

    def __init__(self, uri: str, out: Path, preset: str, sweep: str) -> None:
        self.client, self._sweep = connect(uri), sweep
        self.experiment = open_experiment(self.client, uri, out, preset)

    def find(self) -> list[HeldRun]:
        """The runs that MLflow holds, the oldest first."""
        found: list[HeldRun] = []
        token = None
        while token != "":
            page = self.client.search_runs(
                [self.experiment],
                filter_string=f"tags.sweep = '{self._sweep}'",
                order_by=["attributes.start_time ASC"],
                max_results=1000,
                page_token=token,
            )
            found += map(HeldRun.of, page)
            token = page.token or ""
        return found

    def create(self, name: str, tags: Mapping[str, str], start: int | None = None) -> HeldRun:
        """A new run; `start` in milliseconds, None for now."""
        tags = {"sweep": self._sweep, **tags}
        return HeldRun.of(self.client.create_run(self.experiment, start, tags, name))

    def log(
        self, run: HeldRun, params: Mapping[str, object], rows: Sequence[Evaluation] = ()
    ) -> None:
        """Send parameters, where the run lacks them, and evaluations."""
        from mlflow.entities import Metric, Param

        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in params.items()}
        lacking = [Param(name, text) for name, text in texts.items() if name not in run.params]
        if lacking:
            self.client.log_batch(run.id, params=lacking)
            run.params |= set(texts)
        metrics = [
            Metric(name, value, run.start + int(row["iteration"]), int(row["iteration"]))
            for row in rows
            for name, value in row.items()
            if name != "iteration"
        ]
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(run.id, metrics=metrics[first : first + BATCH])

    def set_state(
        self, run: HeldRun, status: str, tags: Mapping[str, str | None], end: int | None = None
    ) -> None:
        """Set MLflow's own status, and then these tags: with None the run has none of that name.

        `end` is that of a run that has ended, in milliseconds; None for now.
        """
        from mlflow.entities import RunTag

        if status != "RUNNING":
            self.client.set_terminated(run.id, status, end)
        elif run.tags.get("state") != tags["state"]:
            self.client.update_run(run.id, status)
        for name in [name for name, text in tags.items() if text is None and name in run.tags]:
            self.client.delete_tag(run.id, name)
            del run.tags[name]
        texts = {name: text[:4000] for name, text in tags.items() if text is not None}
        self.client.log_batch(run.id, tags=[RunTag(name, text) for name, text in texts.items()])
        run.tags |= texts


def connect(uri: str) -> MlflowClient:
    """A client whose errors come as exceptions, soon, and nowhere else."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if file_of(uri) is not None:
        # No connection outlives its use: one to a file that was moved away would write there.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    loggers = ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration")
    for name in loggers[::2]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow.tracking import MlflowClient

    for name in loggers:  # Once more: the import sets levels of its own.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def open_experiment(client: MlflowClient, uri: str, out: Path, preset: str) -> str:
    """The id of the preset's experiment, made where it is missing. Writes in any case."""
    name = f"mpcc-{preset}"
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if experiment is not None:
        known = str(experiment.experiment_id)
    else:
        # A server keeps artifacts where it is told to; a database alone has no place for them.
        local = not uri.startswith("http")
        location = (out.resolve() / ARTIFACTS / name).as_uri() if local else None
        known = client.create_experiment(name, artifact_location=location)
    # Opens the experiment in MLflow's pages for trained models, not those for language models.
    client.set_experiment_tag(known, "mlflow.experimentKind", "custom_model_development")
    return known
