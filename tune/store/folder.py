"""A sweep's folder: its plan, and a run directory for each trial.

    sweep.json           the plan (`tune.plan.plan`), and its copy (`tune.store.plan_file`)
    trials/TRIAL_KEY/    the run directory of a trial (`mpcc.runs.run_dir`): the truth about it
    earlier/             run directories that trials of more iterations were extended from
    storage.json         the address of the sweep's remote, if it has one
    driver.*             see `tune.store.lock`

The state of a trial is read from its run directory each time, so no second record can differ from
it. With a remote the files of trials are the remote's, and the folder holds a copy of all but the
checkpoints: what changes is written to the remote first.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from mpcc.config import Config
from mpcc.runs import run_dir
from mpcc.runs.files import dumps, quarantine, remove_scraps
from mpcc.runs.repair import repair
from tune.plan.cells import Trial
from tune.plan.plan import PLAN, TRIALS, Plan, PlanError, images_name
from tune.plan.state import Row, State, Status
from tune.store.lock import CLAIM, CLAIMS, LOCK, sweep_owner
from tune.store.models import Models
from tune.store.plan_file import COPY, parse_plan, read_plan, readable, write_plan
from tune.store.remote import Remote, checked_address
from tune.store.transfer import copy, trial_files

REMEMBERED = "storage.json"
OURS = (LOCK, CLAIM, CLAIMS, REMEMBERED, COPY, "drivers")
"""The names that a folder without a plan may hold; only `drivers` is from earlier code."""
FOLDER = "folder"
"""The key in storage.json of the inode of the folder that wrote it; a copy has another inode."""
FIRST_SECONDS = 8.0
"""How long a command retries its remote at the start."""


class Store:
    """The folder of a sweep, and its remote if it has one."""

    def __init__(self, out: Path, remote: Remote | None = None) -> None:
        self.out, self.remote = Path(out), remote
        self.models = Models(self.out / TRIALS)
        self.restored: str | None = None
        """The damage found in sweep.json, in one line; a driver restores the file."""

    def files(self, retry_seconds: float) -> Remote:
        """The place of the trials' files: the remote, or the folder itself."""
        return Remote(str(self.out) if self.remote is None else self.remote.address, retry_seconds)

    # -- the plan ----------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """The plan of the folder, restored in memory if its file is damaged; None without a plan.

        PlanError if it cannot be restored. Nothing is written.
        """
        plan, problem = read_plan(self.out)
        self.restored = self.restored or problem
        return plan

    def refresh(self) -> Plan | None:
        """The plan as it is now; that of the remote, if it has one, replaces the folder's.

        A driver calls it again once it has the lock. PlanError if the two belong to different
        sweeps or the remote's is damaged; the folder is not changed then.
        """
        mine = self.read_plan()
        if self.remote is None:
            return mine
        where = self.remote.address
        theirs = parse_plan(self.remote.read(PLAN), f"{where}/{PLAN}", "--storage")
        if theirs is None:
            return mine
        if mine is not None and mine.id != theirs.id:
            raise PlanError(
                f"{self.out} and {where} hold different sweeps; choose another --out or --storage"
            )
        self._write(theirs.to_dict())
        return theirs

    def write_plan(self, plan: Plan) -> None:
        """Write the plan, whole or not at all, unless the file already holds it.

        Fingerprints of images that are already in the file are kept.
        """
        before, values = readable(self.out / PLAN), plan.to_dict()
        data = before.get("data")
        if before.get("id") == plan.id and isinstance(data, dict):
            values["data"] = {**data, **(plan.data or {})}
        if self.remote is not None:
            self.remote.write(PLAN, (dumps(values, indent=1) + "\n").encode())
        self._write(values)

    def with_recorded_images(self, plan: Plan) -> Plan:
        """The plan with its trials' records of their images (`Plan.with_data`)."""
        for trial in plan.trials():
            if plan.fingerprint_for(trial.config) is None:
                with suppress(run_dir.RunDirError, OSError):
                    data = run_dir.read_provenance(self.trial_dir(trial.key)).get("data") or {}
                    plan = plan.with_data(images_name(trial.config), data)
        return plan

    def _write(self, values: Mapping[str, object]) -> None:
        """Write the remote's address, so that every command finds it, and then the plan."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._remember()
        write_plan(self.out, values)

    # -- trials ------------------------------------------------------------------------------------

    def trial_dir(self, key: str) -> Path:
        """The run directory of a trial."""
        return self.out / TRIALS / key

    def status(self, trial: Trial, running: Collection[str] = ()) -> Status:
        """The status of a trial; `running` are the keys of the trials that run now.

        A result or evaluations that cannot be read count as `stopped`: the trial runs again.
        """
        path, runs = self.trial_dir(trial.key), trial.key in running
        if not path.is_dir():
            return Status(State.RUNNING if runs else State.PLANNED)
        begun = State.RUNNING if runs else State.STOPPED
        try:
            result, last = run_dir.read_end(path)
            reached = int(last.get("iteration", 0))
            other = self._other_trial(trial, result)
            if other is not None:
                return Status(begun, f"{path} holds the record of trial {other}")
            if result and result["state"] == State.DONE and result.get("iteration") != reached:
                raise run_dir.RunDirError(f"{path / run_dir.METRICS} misses the last evaluation")
        except (run_dir.RunDirError, OSError) as error:
            return Status(begun, str(error))
        if result is None:
            return Status(begun, None, reached, last)
        iteration, metrics = int(result.get("iteration") or 0), result.get("metrics") or last
        return Status(State(result["state"]), result.get("cause"), iteration, metrics)

    def _other_trial(self, trial: Trial, result: Row | None) -> object:
        """The key of another trial whose record lies in this one's folder; None if none does."""
        key = (result or {}).get("trial_key")
        if key is None:
            config = run_dir.read_config(self.trial_dir(trial.key))
            key = None if config is None else config.trial_key
        return key if key not in (None, trial.key) else None

    def has_checkpoint(self, key: str) -> bool:
        """Whether a trial's last checkpoint is kept, here or in the remote."""
        if self.remote is None:
            return (self.trial_dir(key) / run_dir.CHECKPOINT).exists()
        name = f"{TRIALS}/{key}/{run_dir.CHECKPOINT}"
        return name in self.remote.list(f"{TRIALS}/{key}")

    def check_places(self, trials: Iterable[Trial]) -> None:
        """PlanError if a trial's folder holds the record of another trial."""
        for trial in trials:
            with suppress(run_dir.RunDirError, OSError):
                other = self._other_trial(trial, None)
                if other is not None:
                    raise PlanError(
                        f"{self.trial_dir(trial.key)} holds the record of trial {other}: "
                        "rename the folder to that key, or remove it"
                    )

    def statuses(self, trials: Iterable[Trial], running: Collection[str] = ()) -> dict[str, Status]:
        """The status of each trial, by key."""
        return {trial.key: self.status(trial, running) for trial in trials}

    def rows(self, key: str) -> list[Row]:
        """A trial's evaluations, by rising iteration; empty if they cannot be read."""
        try:
            return list(run_dir.read_metrics(self.trial_dir(key)))
        except (run_dir.RunDirError, OSError):
            return []

    def repair(self, trial: Trial, fingerprint: str | None = None) -> str | None:
        """Repair a run directory so that the trial can resume; returns what was damaged, if any.

        fingerprint: of the images, if it is known (`mpcc.runs.repair`). With a remote nothing is
        done: the checkpoints are there, and the worker repairs what it downloads.
        """
        path = self.trial_dir(trial.key)
        if self.remote is not None or not os.path.lexists(path):
            return None
        if not path.is_dir():
            quarantine(path)
            return f"{path} was no folder; quarantined, runs again"
        damaged = repair(path, trial.config, fingerprint)
        end = "repaired" if (path / run_dir.RESULT).exists() else "runs again"
        return f"{path}: {', '.join(damaged)} damaged, {end}" if damaged else None

    def reset(self, trial: Trial, state: State) -> None:
        """Make an ended trial run again: a diverged one afresh, others from their checkpoint."""
        names = [run_dir.RESULT]
        if state == State.DIVERGED:  # In this order: a kill leaves it diverged, or it starts anew.
            names = [*run_dir.CHECKPOINTS, run_dir.RESULT, run_dir.METRICS]
        for name in names:
            if self.remote is not None:
                self.remote.delete(f"{TRIALS}/{trial.key}/{name}")
            (self.trial_dir(trial.key) / name).unlink(missing_ok=True)

    def record_end(self, trial: Trial, state: State, cause: str) -> None:
        """Write the result of a trial whose worker has died, see `record_end`."""
        self.download(trial.key)  # The worker may have sent evaluations.
        record_end(self.trial_dir(trial.key), trial.config, state, cause)
        self.upload(trial.key)

    # -- a remote ----------------------------------------------------------------------------------

    def download(self, key: str = "") -> None:
        """Get the records of a trial, or of all, that differ from those here.

        A result that the remote no longer has is deleted: another machine runs that trial again.
        """
        if self.remote is None:
            return
        files, here = trial_files(self.remote, key), Remote(str(self.out), 0.0)
        records = {name: files[name] for name in files if "/checkpoint" not in name}
        here.prepare()
        known = trial_files(here, key)
        if self._is_uploaded():
            results = {f"{name.rpartition('/')[0]}/{run_dir.RESULT}" for name in files}
            for name in results & known.keys() - files.keys():
                here.delete(name)
        copy(self.remote, here, records, known)

    def upload(self, key: str) -> None:
        """Copy a run directory to the remote, if there is one."""
        if self.remote is not None:
            here = Remote(str(self.out), 0.0)
            copy(here, self.remote, trial_files(here, key), {})

    def not_uploaded(self, trials: Iterable[Trial]) -> list[str]:
        """The keys of the trials that were trained in the folder before it had a remote."""
        if self.remote is None or self._is_uploaded():
            return []
        here, there = trial_files(Remote(str(self.out), 0.0)), trial_files(self.remote)
        missing = here.keys() - there.keys()
        keys = []
        for folder in (f"{TRIALS}/{trial.key}" for trial in trials):
            result, checkpoint = f"{folder}/{run_dir.RESULT}", f"{folder}/{run_dir.CHECKPOINT}"
            if result in missing or (result not in there and checkpoint in missing):
                keys.append(Path(folder).name)
        return keys

    def upload_missing(self, trials: Iterable[Trial]) -> None:
        """Upload the trials that were trained in the folder before it had a remote; once."""
        for key in self.not_uploaded(trials):
            self.upload(key)
        self._remember(uploaded=True)

    def _remember(self, **more: object) -> None:
        """Write the remote's address and this folder's inode to storage.json."""
        if self.remote is not None:
            before = run_dir.read_json(self.out / REMEMBERED) or {}
            known = {"storage": self.remote.address, FOLDER: self.out.stat().st_ino}
            if before | known | more != before:
                run_dir.write_json(self.out / REMEMBERED, before | known | more)

    def _is_uploaded(self) -> bool:
        return (run_dir.read_json(self.out / REMEMBERED) or {}).get("uploaded") is True


def open_store(given: Path, storage: str | None = None) -> Store:
    """The store of an output folder; ValueError, one line, if it is a file or not ours.

    storage: `--storage` as given; without it the folder's own remote is used, if it has one.
    From a remote the plan and the records are downloaded, unless a driver works here: its records
    are newer.
    """
    out = given.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose another --out")
    store = Store(out)
    plan = store.read_plan()
    remove_scraps(out)
    if plan is None and out.is_dir() and any(file.name not in OURS for file in out.iterdir()):
        raise ValueError(f"--out {out} holds other files and no {PLAN}; choose another --out")
    remembered = run_dir.read_json(out / REMEMBERED) or {}
    known = remembered.get("storage")
    address = known if storage is None else checked_address(storage)
    if known not in (None, address):
        raise ValueError(f"{out} belongs to --storage {known}, now {address}; choose another --out")
    if address is None:
        return store
    if storage is None and remembered.get(FOLDER) not in (None, out.stat().st_ino):
        raise ValueError(
            f"{out} is a copy of the folder whose trials are in {known}, or was moved to another "
            f"disk: give --storage {known} to go on here with the same trials"
        )
    store.remote = remote = Remote(str(address), FIRST_SECONDS)
    to_be_made = known is None and remote.missing
    if not to_be_made and sweep_owner(out) is None and store.refresh() is not None:
        store.download()
    return store


def record_end(path: Path, config: Config, state: State, cause: str) -> None:
    """Write the result of a trial that ended before its last iteration, unless it has one."""
    path.mkdir(parents=True, exist_ok=True)
    if run_dir.read_result(path) is not None:
        return
    if not (path / run_dir.CONFIG).exists():
        run_dir.write_json(path / run_dir.CONFIG, config.to_dict())
    rows = run_dir.read_metrics(path)
    result: Mapping[str, object] = {
        "state": str(state),
        "cause": cause,
        "iteration": int(rows[-1]["iteration"]) if rows else 0,
        "trial_key": config.trial_key,
        "metrics": rows[-1] if rows else {},
        "weights_sha256": None,
    }
    run_dir.write_result(path, result)
