"""A sweep's folder: its plan, and a run directory for each trial.

    sweep.json           the plan (`tune.plan.plan`)
    trials/TRIAL_KEY/    the run directory of a trial (`mpcc.runs.run_dir`): the truth about it
    earlier/             run directories that trials of more iterations were extended from
    storage.json         the address of the sweep's remote, where it has one
    driver.*             see `tune.store.lock`

The state of a trial is read from its run directory each time, so no second record can differ from
it. With a remote the files of trials are the remote's, and the folder holds a copy of all but the
checkpoints: what changes is written to the remote first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from mpcc.config import Config
from mpcc.runs import run_dir
from mpcc.runs.files import dumps, read_bytes, remove_scraps, set_aside
from mpcc.runs.repair import repair
from tune.plan.cells import Trial
from tune.plan.plan import PLAN, TRIALS, Plan, PlanError, images_name
from tune.plan.state import Row, State, Status
from tune.store.lock import CLAIM, LOCK, sweep_owner
from tune.store.remote import Remote, checked_address
from tune.store.transfer import copy, trial_files

REMEMBERED, EARLIER = "storage.json", "earlier"
OURS = (LOCK, CLAIM, REMEMBERED, "drivers", "claims")
"""What a folder without a plan may hold; earlier code wrote the last two."""
FIRST_SECONDS = 8.0
"""How long a remote may keep a command waiting."""


class Store:
    """The folder of a sweep, and its remote where it has one."""

    def __init__(self, out: Path, remote: Remote | None = None) -> None:
        self.out, self.remote = Path(out), remote

    # -- the plan ----------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """The plan of the folder, None where there is none. PlanError where it is damaged."""
        path = self.out / PLAN
        return _plan(read_bytes(path), str(path), "--out")

    def refresh(self) -> Plan | None:
        """The plan as it is now; that of the remote, if it has one, replaces the folder's.

        A driver calls it again once it has the lock. PlanError where the two are of different
        sweeps, or the remote's is damaged; nothing of the folder is changed then.
        """
        mine = self.read_plan()
        if self.remote is None:
            return mine
        where = self.remote.address
        theirs = _plan(self.remote.read(PLAN), f"{where}/{PLAN}", "--storage")
        if theirs is None:
            return mine
        if mine is not None and mine.id != theirs.id:
            raise PlanError(
                f"{self.out} and {where} hold different sweeps; choose another --out or --storage"
            )
        self._write(theirs.to_dict())
        return theirs

    def write_plan(self, plan: Plan) -> None:
        """Write the plan, whole or not at all; nothing where it says the same already.

        Fingerprints of images that are already in the file are kept.
        """
        before, values = run_dir.read_json(self.out / PLAN) or {}, plan.to_dict()
        if before.get("id") == plan.id and before.get("data"):
            values["data"] = {**before["data"], **(plan.data or {})}
        if self.remote is not None:
            self.remote.write(PLAN, (dumps(values, indent=1) + "\n").encode())
        self._write(values)

    def with_recorded_images(self, plan: Plan) -> Plan:
        """The plan with what its trials have recorded of their images (`Plan.with_data`)."""
        for trial in plan.trials():
            if plan.fingerprint_for(trial.config) is None:
                with suppress(run_dir.RunDirError, OSError):
                    data = run_dir.read_provenance(self.trial_dir(trial.key)).get("data") or {}
                    plan = plan.with_data(images_name(trial.config), data)
        return plan

    def _write(self, values: Mapping[str, object]) -> None:
        """Write the plan here; before it the remote's address, so that no command misses that."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self.remote is not None and not (self.out / REMEMBERED).exists():
            run_dir.write_json(self.out / REMEMBERED, {"storage": self.remote.address})
        if run_dir.read_json(self.out / PLAN) != json.loads(json.dumps(values)):
            run_dir.write_json(self.out / PLAN, values)

    # -- trials ------------------------------------------------------------------------------------

    def trial_dir(self, key: str) -> Path:
        """The run directory of a trial."""
        return self.out / TRIALS / key

    def status(self, trial: Trial, running: Collection[str] = ()) -> Status:
        """What has become of a trial; `running` are the keys of the trials that run now.

        A result or evaluations that cannot be read count as `stopped`: the trial runs again.
        """
        path, runs = self.trial_dir(trial.key), trial.key in running
        if not path.is_dir():
            return Status(State.RUNNING if runs else State.PLANNED)
        begun = State.RUNNING if runs else State.STOPPED
        try:
            result, last = run_dir.read_end(path)
            reached = int(last.get("iteration", 0))
            if result and result["state"] == State.DONE and result.get("iteration") != reached:
                raise run_dir.RunDirError(f"{path / run_dir.METRICS} misses the last evaluation")
        except (run_dir.RunDirError, OSError) as error:
            return Status(begun, str(error))
        if result is None:
            return Status(begun, None, reached, last)
        iteration, metrics = int(result.get("iteration") or 0), result.get("metrics") or last
        return Status(State(result["state"]), result.get("cause"), iteration, metrics)

    def statuses(self, trials: Iterable[Trial], running: Collection[str] = ()) -> dict[str, Status]:
        """What has become of each trial, by key."""
        return {trial.key: self.status(trial, running) for trial in trials}

    def rows(self, key: str) -> list[Row]:
        """A trial's evaluations, by rising iteration; empty where they cannot be read."""
        try:
            return list(run_dir.read_metrics(self.trial_dir(key)))
        except (run_dir.RunDirError, OSError):
            return []

    def repair(self, trial: Trial, fingerprint: str | None = None) -> str | None:
        """Repair a run directory so that the trial can resume; returns what was damaged, if any.

        `fingerprint` is that of the images where it is known, see `mpcc.runs.repair`. With a remote
        nothing is done: the checkpoints are there, and the worker repairs what it downloads.
        """
        path = self.trial_dir(trial.key)
        if self.remote is not None or not os.path.lexists(path):
            return None
        if not path.is_dir():
            set_aside(path)
            return f"{path} was no folder; quarantined, runs again"
        damaged = repair(path, trial.config, fingerprint)
        end = "repaired" if (path / run_dir.RESULT).exists() else "runs again"
        return f"{path}: {', '.join(damaged)} damaged, {end}" if damaged else None

    def reset(self, trial: Trial, state: State) -> None:
        """Make an ended trial run again: a diverged one afresh, others from their checkpoint."""
        names = [run_dir.RESULT]
        if state == State.DIVERGED:  # In this order: a kill leaves it diverged, or planned.
            names = [*run_dir.CHECKPOINTS, run_dir.RESULT, run_dir.METRICS]
        for name in names:
            if self.remote is not None:
                self.remote.delete(f"{TRIALS}/{trial.key}/{name}")
            (self.trial_dir(trial.key) / name).unlink(missing_ok=True)

    def record_end(self, trial: Trial, state: State, cause: str) -> None:
        """Write the result of a trial that its worker could not end, see `record_end`."""
        self.download(trial.key)  # The worker may have sent evaluations.
        record_end(self.trial_dir(trial.key), trial.config, state, cause)
        self.upload(trial.key)

    # -- a remote ----------------------------------------------------------------------------------

    def download(self, key: str = "") -> None:
        """Get the records of a trial, or of all, that differ from those here.

        A result that the remote has no longer goes here too: another machine runs its trial again.
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
        """Copy a run directory to the remote; nothing without one."""
        if self.remote is not None:
            here = Remote(str(self.out), 0.0)
            copy(here, self.remote, trial_files(here, key), {})

    def upload_missing(self, trials: Iterable[Trial]) -> None:
        """Upload the trials that were trained in the folder before it had a remote; once."""
        if self.remote is None or self._is_uploaded():
            return
        here, there = trial_files(Remote(str(self.out), 0.0)), trial_files(self.remote)
        for key in (trial.key for trial in trials):
            result, checkpoint = (
                f"{TRIALS}/{key}/{name}" for name in (run_dir.RESULT, run_dir.CHECKPOINT)
            )
            if result not in there and here.keys() & {result, checkpoint} - there.keys():
                self.upload(key)
        written = {"storage": self.remote.address, "uploaded": True}
        run_dir.write_json(self.out / REMEMBERED, written)

    def _is_uploaded(self) -> bool:
        return (run_dir.read_json(self.out / REMEMBERED) or {}).get("uploaded") is True

    # -- more iterations ---------------------------------------------------------------------------

    def extends_from(self, plan: Plan, trial: Trial) -> int | None:
        """The iterations of the run directory that this trial starts from, if there is one."""
        shorter = [n for n in plan.earlier_iterations if n < trial.config.iterations]
        existing = (n for n in sorted(shorter, reverse=True) if self._earlier(trial, n).is_dir())
        return next(existing, None)

    def extend(self, plan: Plan, trial: Trial) -> None:
        """Start this trial's run directory from that of fewer iterations, where there is one.

        The earlier one moves to `earlier/`, without its checkpoints. After a kill at any moment the
        next call repeats all of it, or only the move.
        """
        n = self.extends_from(plan, trial)
        if n is None:
            return
        path, earlier = self.trial_dir(trial.key), self._earlier(trial, n)
        if not path.exists():
            _start_from(earlier, path, trial.config, n)
        if self.remote is not None:
            self.upload(trial.key)
            checkpoint = self.remote.read(f"{TRIALS}/{earlier.name}/{run_dir.CHECKPOINT}")
            if checkpoint is not None:
                self.remote.write(f"{TRIALS}/{trial.key}/{run_dir.CHECKPOINT}", checkpoint)
            for name in self.remote.list(f"{TRIALS}/{earlier.name}"):
                self.remote.delete(name)
        kept = self.out / EARLIER / f"{n}-iterations" / earlier.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(earlier, kept)
        for name in run_dir.CHECKPOINTS:
            (kept / name).unlink(missing_ok=True)

    def _earlier(self, trial: Trial, n: int) -> Path:
        """The run directory of the same trial with n iterations."""
        return self.trial_dir(trial.config.override(iterations=n).trial_key)


def open_store(given: Path, storage: str | None = None) -> Store:
    """The store of an output folder; ValueError, one line, where it is a file or not ours.

    storage: `--storage` as given; without it the folder's own remote is used, where it has one.
    From a remote the plan and the records are downloaded, unless a driver works here: its records
    are newer.
    """
    out = given.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose another --out")
    plan = Store(out).read_plan()
    remove_scraps(out)
    if plan is None and out.is_dir() and any(file.name not in OURS for file in out.iterdir()):
        raise ValueError(f"--out {out} holds other files and no {PLAN}; choose another --out")
    known = (run_dir.read_json(out / REMEMBERED) or {}).get("storage")
    address = known if storage is None else checked_address(storage)
    if known not in (None, address):
        raise ValueError(f"{out} belongs to --storage {known}, now {address}; choose another --out")
    if address is None:
        return Store(out)
    remote = Remote(str(address), FIRST_SECONDS)
    store = Store(out, remote)
    to_be_made = known is None and remote.missing
    if not to_be_made and sweep_owner(out) is None and store.refresh() is not None:
        store.download()
    return store


def record_end(path: Path, config: Config, state: State, cause: str) -> None:
    """Write the result of a trial that ended before its last iteration, where it has none yet."""
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


def _start_from(earlier: Path, path: Path, config: Config, n: int) -> None:
    """Make a run directory that begins with the state and the evaluations of n iterations."""
    staged = path.with_name(f".{path.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in (*run_dir.CHECKPOINTS, run_dir.METRICS, run_dir.PROVENANCE):
        if (earlier / name).exists():
            shutil.copyfile(earlier / name, staged / name)
    iterations = sorted({*run_dir.earlier_iterations(earlier), n})
    run_dir.write_json(staged / run_dir.CONTINUES, {"iterations": iterations})
    run_dir.write_json(staged / run_dir.CONFIG, config.to_dict())
    os.replace(staged, path)


def _plan(data: bytes | None, where: str, option: str) -> Plan | None:
    """Parse a plan, or return None for no data. `where`, `option` go into PlanError's message."""
    try:
        return None if data is None else Plan.from_dict(json.loads(data))
    except (ValueError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, PlanError) else "is damaged (no JSON object)"
        raise PlanError(f"{where} {reason}; choose another {option}") from None
