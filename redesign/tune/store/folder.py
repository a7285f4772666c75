"""A sweep's folder: its plan, and a run directory for each trial.

    sweep.json           the plan (`tune.plan.plan`)
    trials/TRIAL_KEY/    the run directory of a trial (`mpcc.run_dir`): the truth about it
    earlier/             run directories that trials of more iterations were extended from
    storage.json         the address of the sweep's remote, where it has one
    driver.lock, drivers/   see `tune.store.lock`

The state of a trial is read from its run directory each time, so no second record can differ from
it. With a remote the files of trials are the remote's, and the folder holds a copy of all but the
checkpoints: what changes is written to the remote first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mpcc import run_dir
from mpcc.config import Config
from mpcc.files import dumps, set_aside
from mpcc.repair import repair
from tune.plan.cells import Trial
from tune.plan.plan import PLAN, TRIALS, Plan, PlanError, images_name
from tune.plan.state import Row, State, Status
from tune.store.remote import Remote
from tune.store.transfer import upload_trial

REMEMBERED = "storage.json"
EARLIER = "earlier"


class Store:
    """The folder of a sweep, and its remote where it has one."""

    def __init__(self, out: Path, remote: Remote | None = None) -> None:
        self.out, self.remote = Path(out), remote

    # -- the plan ----------------------------------------------------------------------------------

    def read_plan(self) -> Plan | None:
        """The plan of the folder, None where there is none. PlanError where it is damaged."""
        path = self.out / PLAN
        try:
            values = run_dir.read_json(path)
        except (run_dir.RunDirError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlanError(f"{path} cannot be read ({reason}); choose another --out") from None
        try:
            return None if values is None else Plan.from_dict(values)
        except PlanError as error:
            raise PlanError(f"{path} {error}; choose another --out") from None

    def write_plan(self, plan: Plan) -> None:
        """Write the plan, whole or not at all; nothing where it says the same already.

        What the written plan knows of the images stays known.
        """
        before = run_dir.read_json(self.out / PLAN)
        values = plan.to_dict()
        if before and before.get("id") == plan.id and before.get("data"):
            values["data"] = {**before["data"], **(plan.data or {})}
        if self.remote is not None:
            text = (dumps(values, indent=1) + "\n").encode()
            if self.remote.read(PLAN) != text:
                self.remote.write(PLAN, text)
            self.remember_remote()
        if before != json.loads(json.dumps(values)):
            self.out.mkdir(parents=True, exist_ok=True)
            run_dir.write_json(self.out / PLAN, values)

    def remember_remote(self) -> None:
        """Write down the remote's address, so that later commands need no `--storage`."""
        if self.remote is not None and not (self.out / REMEMBERED).exists():
            self.out.mkdir(parents=True, exist_ok=True)
            run_dir.write_json(self.out / REMEMBERED, {"storage": self.remote.address})

    def with_recorded_images(self, plan: Plan) -> Plan:
        """The plan with what its trials have recorded of their images (`Plan.with_data`)."""
        for trial in plan.trials():
            name = images_name(trial.config)
            if name not in (plan.data or {}):
                try:
                    provenance = run_dir.read_provenance(self.trial_dir(trial.key))
                except (run_dir.RunDirError, OSError):
                    continue
                plan = plan.with_data(name, provenance.get("data") or {})
        return plan

    # -- trials ------------------------------------------------------------------------------------

    def trial_dir(self, key: str) -> Path:
        """The run directory of a trial."""
        return self.out / TRIALS / key

    def status(self, trial: Trial, running: Collection[str] = ()) -> Status:
        """What has become of a trial; `running` are the keys of the trials that run now.

        A result or evaluations that cannot be read count as `stopped`: the trial runs again.
        """
        path = self.trial_dir(trial.key)
        runs = trial.key in running
        if not path.is_dir():
            return Status(State.RUNNING if runs else State.PLANNED)
        try:
            result, last = run_dir.read_end(path)
            reached = int(last.get("iteration", 0))
            if result and result["state"] == State.DONE and result.get("iteration") != reached:
                raise run_dir.RunDirError(f"{path / run_dir.METRICS} misses the last evaluation")
        except (run_dir.RunDirError, OSError) as error:
            return Status(State.RUNNING if runs else State.STOPPED, str(error))
        if result is None:
            return Status(State.RUNNING if runs else State.STOPPED, None, reached, last)
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

        `fingerprint` is that of the images where it is known, see `mpcc.repair`. With a remote
        nothing is done: the checkpoints are there, and the worker repairs what it downloads.
        """
        path = self.trial_dir(trial.key)
        if self.remote is not None:
            return None
        if not path.is_dir():
            if not os.path.lexists(path):
                return None
            set_aside(path)
            return f"{path} was no folder; quarantined, runs again"
        damaged = repair(path, trial.config, fingerprint)
        if not damaged:
            return None
        ended = (path / run_dir.RESULT).exists()
        return f"{path}: {', '.join(damaged)} damaged, {'repaired' if ended else 'runs again'}"

    def reset(self, trial: Trial, state: State) -> None:
        """Make an ended trial run again: a diverged one afresh, others from their checkpoint."""
        names = [run_dir.RESULT]
        if state == State.DIVERGED:
            names += [*run_dir.CHECKPOINTS, run_dir.METRICS]
        for name in names:
            if self.remote is not None:
                self.remote.delete(f"{TRIALS}/{trial.key}/{name}")
            (self.trial_dir(trial.key) / name).unlink(missing_ok=True)

    def record_end(self, trial: Trial, state: State, cause: str) -> None:
        """Write the result of a trial that its worker could not end, see `record_end`."""
        record_end(self.trial_dir(trial.key), trial.config, state, cause)
        if self.remote is not None:
            upload_trial(self.remote, self.trial_dir(trial.key), trial.key)

    # -- more iterations ---------------------------------------------------------------------------

    def extends_from(self, plan: Plan, trial: Trial) -> int | None:
        """The iterations of the run directory that this trial starts from, if there is one."""
        shorter = [n for n in plan.earlier_iterations if n < trial.config.iterations]
        existing = (n for n in sorted(shorter, reverse=True) if self._earlier(trial, n).is_dir())
        return next(existing, None)

    def extend(self, plan: Plan, trial: Trial) -> None:
        """Start this trial's run directory from that of fewer iterations, where there is one.

        The earlier one moves to `earlier/`, without its checkpoints. A kill at any moment leaves
        all of it to be done, or the move alone.
        """
        n = self.extends_from(plan, trial)
        if n is None:
            return
        path, earlier = self.trial_dir(trial.key), self._earlier(trial, n)
        if not path.exists():
            if self.remote is not None:
                checkpoint = self.remote.read(f"{TRIALS}/{earlier.name}/{run_dir.CHECKPOINT}")
                if checkpoint is not None:
                    run_dir.write_bytes(earlier / run_dir.CHECKPOINT, checkpoint)
            _start_from(earlier, path, trial.config, n)
        if self.remote is not None:
            # Again after a kill: there it may lack the checkpoint, which is here until it is sent.
            if (path / run_dir.CHECKPOINT).exists():
                upload_trial(self.remote, path, trial.key)
                (path / run_dir.CHECKPOINT).unlink()
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
