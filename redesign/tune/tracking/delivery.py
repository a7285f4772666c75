"""Brings MLflow up to the records of a sweep: MLflow is asked what it holds, and sent the rest.

Each run carries a tag `record`, which is set last: how many rows it holds, and a digest of them and
of the state. A run whose tag fits its trial's record is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from mpcc import run_dir
from tune.plan.cells import Trial
from tune.plan.plan import PLAN, Plan
from tune.plan.state import ENDED, FULFILLED, Row, State, Status
from tune.store.folder import Store
from tune.tracking import database
from tune.tracking.client import Evaluation, HeldRun, SweepRuns
from tune.tracking.uri import RECORD, default_uri, file_of, read_record

STATUS = {
    State.RUNNING: "RUNNING",
    State.DONE: "FINISHED",
    State.DIVERGED: "FAILED",
    State.FAILED: "FAILED",
    State.PRUNED: "KILLED",
    State.STOPPED: "KILLED",
}
"""MLflow's word for a state."""
SWEEP = ""
"""Stands for the sweep's own run where the others go by their trial's key."""


class Delivery:
    """What MLflow holds of one sweep, and how the rest gets there. Raises what MLflow raises."""

    def __init__(self, store: Store, uri: str, plan: Plan) -> None:
        self._store, self._uri, self._file = store, uri, file_of(uri)
        self._runs: SweepRuns | None = None
        """None until MLflow has been asked, and after an error, which may hide what it has done."""
        self._held: dict[str, HeldRun] = {}
        self._states: dict[str, State] = {}
        self._rows: dict[str, dict[float, Evaluation]] = {}
        """Of trials under way: the folder may not have their evaluations yet."""
        self.note: str | None = None
        """What has happened to the database that its owner should know."""
        self.extend(plan)

    def extend(self, plan: Plan) -> None:
        """Use this plan from now on."""
        self._plan = plan
        self._trials = {trial.key: trial for trial in plan.trials()}

    def add_row(self, key: str, row: Row) -> None:
        """Take note of an evaluation of a trial under way; `deliver` sends it."""
        rows = [row] if key in self._rows else [*self._store.rows(key), row]
        numbers = map(_numbers, rows)
        self._rows.setdefault(key, {}).update({row["iteration"]: row for row in numbers})

    def deliver(
        self,
        running: Collection[str],
        state: State | None = None,
        keys: Collection[str] | None = None,
    ) -> int:
        """Bring these trials' runs and the sweep's up to the records; the number of trials sent.

        `running` are the trials under way; `state` is the sweep's, None to read it from its trials.
        Without `keys` MLflow is asked what it holds, and all trials are compared; so they are where
        sending some has failed.
        """
        try:
            return self._deliver(running, state, keys)
        except Exception:
            if not self._quarantined() and keys is None:
                raise
        return self._deliver(running, state, None)

    def is_complete(self) -> bool:
        """Whether MLflow lacks nothing while no trial is under way."""
        self._open()
        statuses = self._read_states(self._trials, ())
        held = self._held.get(SWEEP)
        late = held is None or held.tags.get("record") != self._sweep_tags(None)["record"]
        return not late and next(self._late(statuses), None) is None

    def _deliver(
        self, running: Collection[str], state: State | None, keys: Collection[str] | None
    ) -> int:
        runs, self._runs = self._runs, None
        if keys is None or runs is None or (self._file is not None and not self._file.exists()):
            runs, keys = self._open(), None
        statuses = self._read_states(self._trials if keys is None else keys, running)
        self._send_sweep(runs, state)
        sent = 0
        for key, record, rows in self._late(statuses):
            self._send(runs, self._trials[key], statuses[key], rows, record)
            sent += 1
        if keys is None:
            self._write_record(runs)
        self._runs = runs
        return sent

    def _open(self) -> SweepRuns:
        """Connect, make database and experiment where missing, and list what MLflow holds."""
        if self._file is not None and not self._file.exists():
            database.make(self._file, exclusive=self._uri == default_uri(self._store.out))
        runs = SweepRuns(self._uri, self._store.out, self._plan.preset, self._plan.id)
        self._held = {}
        for run in runs.find():
            key = run.tags.get("trial_key", SWEEP)
            if key in self._held:  # Made by a request that was given up.
                runs.client.delete_run(run.id)
            else:
                self._held[key] = run
        return runs

    def _quarantined(self) -> bool:
        """Whether the database was damaged, ours, and is now out of the way."""
        file, ours = self._file, self._uri == default_uri(self._store.out)
        if file is None or not ours or not file.exists() or not database.is_damaged(file):
            return False
        damaged = database.quarantine(file)
        self.note = f"{file} cannot be opened; quarantined as {damaged.name}, filled again"
        return True

    # -- what MLflow should hold -------------------------------------------------------------------

    def _read_states(self, keys: Iterable[str], running: Collection[str]) -> dict[str, Status]:
        """What has become of these trials, those of the plan that have begun."""
        statuses = {}
        for key in [key for key in keys if key in self._trials]:
            status = Status(State.RUNNING)
            if key not in running:
                status = self._store.status(self._trials[key])
            if status.state == State.PLANNED and (key in self._held or key in self._rows):
                status = Status(State.STOPPED)  # Its folder is on another machine, or was deleted.
            if status.state != State.PLANNED:
                statuses[key] = status
        self._states |= {key: status.state for key, status in statuses.items()}
        return statuses

    def _late(self, statuses: Mapping[str, Status]) -> Iterator[tuple[str, str, list[Evaluation]]]:
        """Key, `record` and evaluations of the trials of which MLflow lacks something."""
        for key, status in statuses.items():
            if status.state in ENDED:
                self._rows.pop(key, None)  # From now on the folder has all of them.
            known = self._rows.get(key)
            if known is None:
                rows = list(map(_numbers, self._store.rows(key)))
            else:
                rows = [known[iteration] for iteration in sorted(known)]
            record = f"{len(rows)} {_digest(rows)} {status.state} {_digest(status.cause)}"
            if key not in self._held or self._held[key].tags.get("record") != record:
                yield key, record, rows

    def _sweep_tags(self, state: State | None) -> dict[str, str]:
        """What the sweep's own run must show."""
        states = [self._states.get(key, State.PLANNED) for key in self._trials]
        state = state or sweep_state(states)
        done = f"{states.count(State.DONE)} of {len(states)}"
        plan = hashlib.sha256(run_dir.read_bytes(self._store.out / PLAN) or b"").hexdigest()
        cells = "; ".join(planned.cell.text for planned in self._plan.cells)
        return {"state": state, "done": done, "cells": cells, "record": f"{plan} {state} {done}"}

    # -- what it lacks -----------------------------------------------------------------------------

    def _send_sweep(self, runs: SweepRuns, state: State | None) -> None:
        """The sweep's own run: its plan, how far it is."""
        plan, tags = self._plan, self._sweep_tags(state)
        if SWEEP not in self._held:
            known = {"preset": plan.preset, "code": plan.code, "kind": "sweep"}
            self._held[SWEEP] = runs.create(self._store.out.resolve().name, known)
        run = self._held[SWEEP]
        if run.tags.get("record") == tags["record"]:
            return
        params = plan.base.to_dict()
        del params["seed"]
        runs.log(run, params)
        if (self._store.out / PLAN).exists():
            runs.client.log_artifact(run.id, str(self._store.out / PLAN))
        runs.set_state(run, STATUS[State(tags["state"])], tags)

    def _send(
        self, runs: SweepRuns, trial: Trial, status: Status, rows: list[Evaluation], record: str
    ) -> None:
        """One trial: its run, its parameters, the rows that are new, its end."""
        path, end = self._store.trial_dir(trial.key), None
        provenance = _read(path / run_dir.PROVENANCE)
        if trial.key not in self._held:
            self._held[trial.key] = self._create(runs, trial, provenance)
        run = self._held[trial.key]
        runs.log(run, trial.config.to_dict(), _unsent(rows, run.tags.get("record", "")))
        if status.state != State.RUNNING:
            names = (run_dir.CONFIG, run_dir.PROVENANCE, run_dir.RESULT)
            for file in [*(path / name for name in names), *sorted(path.glob("*.png"))]:
                if file.exists():
                    runs.client.log_artifact(run.id, str(file))
            result = path / run_dir.RESULT
            end = int(result.stat().st_mtime * 1000) if result.exists() else None
        code = str(provenance.get("code", self._plan.code))
        tags = {"state": status.state, "cause": status.cause or None, "code": code}
        runs.set_state(run, STATUS[status.state], {**tags, "record": record}, end)

    def _create(self, runs: SweepRuns, trial: Trial, provenance: Mapping[str, object]) -> HeldRun:
        tags = {
            "mlflow.parentRunId": self._held[SWEEP].id,
            "trial_key": trial.key,
            "cell_key": trial.cell.key,
            "cell": trial.cell.text,
            "seed": str(trial.seed),
        }
        start = None
        with contextlib.suppress(ValueError):
            started = datetime.fromisoformat(str(provenance.get("started")))
            start = int(started.timestamp() * 1000)
        return runs.create(f"{trial.cell.text.replace(', ', ' ')} seed={trial.seed}", tags, start)

    def _write_record(self, runs: SweepRuns) -> None:
        """Write down where the runs are, for people and tables: nothing here reads it."""
        ids = {key: run.id for key, run in self._held.items()}
        where = {"tracking_uri": self._uri, "experiment": runs.experiment}
        values = {**where, "run_id": ids.pop(SWEEP), "runs": ids}
        with contextlib.suppress(OSError):
            if read_record(self._store.out, self._uri) != values:
                run_dir.write_json(self._store.out / RECORD, values)


def sync(store: Store, uri: str, plan: Plan, running: Collection[str] = ()) -> int:
    """Deliver by hand what MLflow lacks; the number of trials sent. Raises what MLflow raises."""
    delivery = Delivery(store, uri, plan)
    sent = delivery.deliver(running)
    if delivery.note:
        print(delivery.note, file=sys.stderr)
    return sent


def in_step(store: Store, uri: str, plan: Plan) -> bool:
    """Whether MLflow answers and lacks nothing of this sweep, while no driver works on it."""
    file = file_of(uri)
    if file is not None and not file.exists():
        return False
    try:
        return Delivery(store, uri, plan).is_complete()
    except Exception:  # whatever a database or a server can raise: the delivery will report it
        return False


def sweep_state(states: Iterable[State]) -> State:
    """The state of the whole sweep by those of its trials."""
    states = set(states)
    if State.RUNNING in states:
        return State.RUNNING
    if states <= FULFILLED:
        return State.DONE
    if states & {State.PLANNED, State.STOPPED}:
        return State.STOPPED
    return State.FAILED


def _numbers(row: Row) -> Evaluation:
    """What MLflow is sent of a row. `seconds` stays out: a repeated row would differ.

    MLflow would store infinity as 1.8e308, so it becomes NaN.
    """
    numbers = {}
    for name, value in row.items():
        if isinstance(value, (int, float)) and name != "seconds":
            numbers[name] = float(value) if math.isfinite(value) else math.nan
        elif value in ("inf", "-inf", "nan"):  # As files of JSON hold them.
            numbers[name] = math.nan
    return numbers


def _unsent(rows: Sequence[Evaluation], record: str) -> Sequence[Evaluation]:
    """The rows that a run lacks by its `record`: all, where those that it has were made again."""
    count, digest = [*record.split(" "), ""][:2]
    n = int(count) if count.isdecimal() else 0
    return rows[n:] if digest == _digest(rows[:n]) else rows


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path) -> Mapping[str, object]:
    try:
        return run_dir.read_json(file) or {}
    except (run_dir.RunDirError, OSError):
        return {}
