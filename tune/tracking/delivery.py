"""Brings MLflow up to date with a sweep: asks MLflow for its runs, and sends what they lack.

A run's tags describe all that was sent (evaluations by their number and a digest) and are set last,
so a run with the right tags is complete and is left alone. Models follow after all runs, each with
a tag of its own.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.runs import run_dir
from mpcc.runs.files import MODEL, SEAL, RunDirError, read_bytes
from mpcc.use.load import best_cell
from tune.plan.cells import Trial
from tune.plan.plan import MLFLOW, PLAN, TRIALS, Plan
from tune.plan.state import ENDED, Row, State, Status
from tune.store.folder import Store
from tune.store.plan_file import readable
from tune.tracking.connection import DamagedDatabase, open_experiment
from tune.tracking.model import LogModels, log_model
from tune.tracking.uri import file_of, read_record, recorded_uri
from tune.tracking.wanted import NOTE, Wanted, of_sweep, of_trial, table_files

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

STATUS = {"running": "RUNNING", "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
"""MLflow's word for a state; KILLED for the others."""
Trials = Sequence[tuple[Trial, Status]]
SWEEP = ""
"""The key of the sweep's own run; the other runs have the key of their trial."""


def sync(store: Store, uri: str, plan: Plan, log_models: LogModels = "best") -> int:
    """Deliver what MLflow lacks; returns the number of trials sent. Raises what MLflow raises."""
    with suppress(DamagedDatabase):
        return Delivery(store, uri, plan, log_models).deliver()
    return Delivery(store, uri, plan, log_models).deliver()


def in_step(store: Store, uri: str, log_models: LogModels = "best") -> bool:
    """Whether the SQLite database at `uri` already holds this sweep, according to mlflow.json.

    False for a server, which would have to be asked. MLflow is not imported.
    """
    if file_of(uri) is None:
        return False
    return read_record(store.out, uri).get("delivered") == _fingerprint(store, uri, log_models)


def _fingerprint(store: Store, uri: str, log_models: LogModels) -> str:
    """A hash of the folder's path, plan, results and tables, of `log_models`, and of the head of
    MLflow's file, which counts the file's changes."""
    results = sorted((store.out / TRIALS).glob(f"*/{run_dir.RESULT}"))
    content = [str(store.out).encode(), log_models.encode()]
    files = (store.out / PLAN, *results, *table_files(store.out))
    content += [read_bytes(file) or b"" for file in files]
    file = file_of(uri)
    if file is not None and file.is_file():
        with file.open("rb") as head:
            content.append(head.read(100))
    return hashlib.sha256(b"".join(content)).hexdigest()


@dataclass
class Delivery:
    """Sends MLflow what it lacks of a sweep; `deliver` may be called repeatedly."""

    store: Store
    uri: str
    plan: Plan
    log_models: LogModels = "best"
    running: set[str] | None = None
    """Keys of the running trials, None if no driver works."""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Trial key -> evaluations that the folder may not have yet."""
    runs: dict[str, Run] = field(default_factory=dict)
    """Trial key -> run, as MLflow has last returned it."""
    complete: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Trial key -> tags, of delivered trials that have ended: their records no longer change."""

    def deliver(self) -> int:
        """Send what MLflow lacks; returns the number of trials sent. Raises what MLflow raises."""
        client, experiment = open_experiment(self.uri, self.store.out, self.plan.preset)
        self.runs, sent = self._held(client, experiment), 0
        trials = [(trial, self._status(trial)) for trial in self.plan.trials()]
        best = self._best_cell(trials)
        for key, wanted in self._wanted(trials, best):
            run = self.runs.get(key)
            if run is None or not wanted.tags.items() <= run.data.tags.items():
                self._send(client, experiment, key, wanted)
                sent += key != SWEEP
            if wanted.tags["state"] in ENDED and key != SWEEP:
                self.complete[key] = wanted.tags
        for trial, status in trials:
            if status.state == State.DONE and self.log_models != "never":
                if self.log_models == "always" or trial.cell.key == best:
                    self._log_model(client, trial)
        ids = {key: run.info.run_id for key, run in self.runs.items()}
        known: dict[str, object] = {
            "tracking_uri": recorded_uri(self.uri, self.store.out),
            "experiment": experiment,
            "sweep": self.plan.id,
        }
        known |= {"run_id": ids.pop(SWEEP), "runs": ids}
        if self.running is None:
            known["delivered"] = _fingerprint(self.store, self.uri, self.log_models)
        with suppress(OSError):
            if readable(self.store.out / MLFLOW) != known:
                run_dir.write_json(self.store.out / MLFLOW, known)
        return sent

    # -- the runs that MLflow should hold ----------------------------------------------------------

    def _wanted(self, trials: Trials, best: str | None) -> Iterator[tuple[str, Wanted]]:
        """The sweep's own run, then the runs of the trials that have begun, each with its key."""
        states = [status.state for _, status in trials]
        first = next((trial for trial, _ in trials if trial.cell.key == best), None)
        running = self.running is not None
        yield SWEEP, of_sweep(self.store, self.plan, states, first, running=running)
        for trial, status in trials:
            key = trial.key
            if status.state != State.PLANNED and not self._is_complete(key):
                if status.state in ENDED:
                    self.rows.pop(key, None)  # The folder has all of them.
                rows = [*self.store.rows(key), *self.rows.get(key, ())]
                yield key, of_trial(self.store, self.plan, trial, status, rows)

    def _best_cell(self, trials: Trials) -> str | None:
        """The key of the best cell once every trial has ended; None if there is none."""
        if self.running is None and ENDED.issuperset(status.state for _, status in trials):
            with suppress(RunDirError):  # Several data sets, or no finished trial.
                return best_cell(self.store.out)
        return None

    def _status(self, trial: Trial) -> Status:
        if trial.key in (self.running or ()):
            return Status(State.RUNNING)
        if self._is_complete(trial.key):
            return Status(State(self.complete[trial.key]["state"]))
        status = self.store.status(trial)
        if status.state == State.PLANNED and (trial.key in self.runs or trial.key in self.rows):
            return Status(State.STOPPED)  # Its folder is on another machine, or was deleted.
        return status

    def _is_complete(self, key: str) -> bool:
        """Whether MLflow still holds all of a trial that has ended."""
        tags = self.complete.get(key)
        return (
            tags is not None
            and key in self.runs
            and tags.items() <= self.runs[key].data.tags.items()
        )

    # -- sending what it lacks ---------------------------------------------------------------------

    def _log_model(self, client: MlflowClient, trial: Trial) -> None:
        """Log a trial's model, unless the run's `model` tag is the digest sealed in the result.

        Trials of earlier code have no digest. A model without clusters has nothing to predict.
        """
        run, folder = self.runs[trial.key], self.store.trial_dir(trial.key)
        if trial.config.prior == "normal":
            client.set_tag(run.info.run_id, "model", "none: prior=normal has no clusters")
            return
        seal = readable(folder / run_dir.RESULT).get(SEAL)
        digest = str(seal.get(MODEL, ""))[:12] if isinstance(seal, dict) else ""
        if digest and run.data.tags.get("model") != digest:
            log_model(client, run, folder)
            client.set_tag(run.info.run_id, "model", digest)

    def _held(self, client: MlflowClient, experiment: str) -> dict[str, Run]:
        """The runs of the sweep that MLflow has, by trial key."""
        runs: dict[str, Run] = {}
        token: str | None = None
        while token != "":
            page = client.search_runs(
                [experiment],
                filter_string=f"tags.sweep = '{self.plan.id}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get("trial_key", SWEEP)
                if key in runs:  # Made by a request that seemed to fail.
                    client.delete_run(run.info.run_id)
                else:
                    runs[key] = run
            token = page.token or ""
        return runs

    def _send(self, client: MlflowClient, experiment: str, key: str, wanted: Wanted) -> None:
        """Make a run if it is missing, and log what it lacks; its tags are set last."""
        from mlflow.entities import Metric, Param, RunTag

        folder = wanted.folder
        if key not in self.runs:
            tags = {"sweep": self.plan.id}
            with suppress(OSError, KeyError):  # A user without a name, as in a container.
                tags["mlflow.user"] = getpass.getuser()
            if key != SWEEP:
                tags |= {"trial_key": key, "mlflow.parentRunId": self.runs[SWEEP].info.run_id}
            else:
                tags["mlflow.note.content"] = NOTE
            start = _milliseconds(folder / run_dir.CONFIG)
            self.runs[key] = client.create_run(experiment, start, tags, wanted.name)
        run = self.runs[key]
        run_id, start, held = run.info.run_id, run.info.start_time, run.data
        status, sent = STATUS.get(wanted.tags["state"], "KILLED"), 0
        if status == "RUNNING":  # At the end all rows are sent: some may have been recomputed.
            sent = int(held.tags.get("rows", "0").partition(" ")[0])
        params = [
            Param(name, value if isinstance(value, str) else json.dumps(value))
            for name, value in wanted.config.to_dict().items()
            if name not in held.params
        ]
        metrics = [
            Metric(name, value, start + int(row["iteration"]), int(row["iteration"]))
            for row in wanted.rows[sent:]
            for name, value in row.items()
            if name != "iteration"
        ]
        client.log_batch(run_id, metrics, params)
        if wanted.data:
            client.log_inputs(run_id, [_dataset(wanted.data)])
        found = [file for pattern in wanted.artifacts for file in folder.glob(pattern)]
        for file in filter(Path.is_file, found):
            place = file.relative_to(folder).parent.as_posix()
            client.log_artifact(run_id, str(file), None if place == "." else place)
        if status != "RUNNING":
            client.set_terminated(run_id, status, _milliseconds(folder / run_dir.RESULT))
        elif run.info.status != status:
            client.update_run(run_id, status)
        client.log_batch(run_id, tags=[RunTag(*tag) for tag in wanted.tags.items()])


def _dataset(data: Mapping[str, object]) -> DatasetInput:
    """A trial's images as an MLflow dataset: name, fingerprint, number."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = str(data.get("dataset")), str(data["fingerprint"])
    profile = json.dumps({"num_rows": data.get("n_images")})
    images = Dataset(name, digest, "local", json.dumps({"uri": name}), profile=profile)
    return DatasetInput(images, [InputTag("mlflow.data.context", "training")])


def _milliseconds(file: Path) -> int | None:
    """Time of writing of a file, in milliseconds since 1970; None if there is no file."""
    return int(file.stat().st_mtime * 1000) if file.exists() else None
