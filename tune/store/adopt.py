"""Reuse of existing records: of trials with fewer iterations, and of another sweep's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpcc.config import Config
from mpcc.runs import run_dir
from tune.plan.cells import Trial
from tune.plan.plan import TRIALS, Plan, PlanError
from tune.plan.state import ENDED, State
from tune.store.folder import Store
from tune.store.plan_file import read_plan

EARLIER = "earlier"


def extends_from(store: Store, plan: Plan, trial: Trial) -> int | None:
    """The iterations of the run directory that this trial starts from, if there is one."""
    shorter = [n for n in plan.earlier_iterations if n < trial.config.iterations]
    existing = (n for n in sorted(shorter, reverse=True) if _earlier(store, trial, n).is_dir())
    return next(existing, None)


def extend(store: Store, plan: Plan, trial: Trial) -> None:
    """Start this trial's run directory from that of fewer iterations, if there is one.

    The earlier directory moves to `earlier/`, without its checkpoints. If the process is killed at
    any moment, the next call repeats all steps, or only the move.
    """
    n = extends_from(store, plan, trial)
    if n is None:
        return
    path, earlier = store.trial_dir(trial.key), _earlier(store, trial, n)
    if not path.exists():
        _start_from(earlier, path, trial.config, n)
    if store.remote is not None:
        store.upload(trial.key)
        checkpoint = store.remote.read(f"{TRIALS}/{earlier.name}/{run_dir.CHECKPOINT}")
        if checkpoint is not None:
            store.remote.write(f"{TRIALS}/{trial.key}/{run_dir.CHECKPOINT}", checkpoint)
        for name in store.remote.list(f"{TRIALS}/{earlier.name}"):
            store.remote.delete(name)
    kept = store.out / EARLIER / f"{n}-iterations" / earlier.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(earlier, kept)
    for name in run_dir.CHECKPOINTS:
        (kept / name).unlink(missing_ok=True)


def sweep_elsewhere(other: Path) -> Plan:
    """The plan of the sweep whose trials are adopted; PlanError if the folder has none."""
    plan = read_plan(other)[0] if other.is_dir() else None
    if plan is None:
        raise PlanError(f"--adopt {other} is no folder of a sweep")
    return plan


def adopt(store: Store, other: Path, trials: Iterable[Trial]) -> int:
    """Copy the records of trials that are done in the other folder and have not ended here.

    Returns how many. An unfinished trial here is replaced by a finished record there. A record that
    cannot be read, or that belongs to another trial, is left out.
    """
    there, n = Store(other), 0
    for trial in trials:
        source, path = there.trial_dir(trial.key), store.trial_dir(trial.key)
        if store.status(trial).state in ENDED or there.status(trial).state != State.DONE:
            continue
        with _staged(path) as new:
            shutil.copytree(source, new)
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        store.upload(trial.key)
        n += 1
    return n


def take_over_ends(store: Store, old: Plan | None, plan: Plan) -> None:
    """After a change of evaluation settings, copy the result of each diverged, failed or pruned
    trial to its new key, without the metrics, so that it is not trained again."""
    if old is None or old.base == plan.base:
        return
    for trial in plan.trials():
        path, ends = store.trial_dir(trial.key), store.models.ends(trial)
        if path.exists() or not ends or store.models.done(trial):
            continue
        key, end = next(iter(ends.items()))
        with _staged(path) as new:
            new.mkdir(parents=True)
            run_dir.write_json(new / run_dir.CONFIG, trial.config.to_dict())
            run_dir.write_provenance(new, run_dir.read_provenance(store.trial_dir(key)))
            run_dir.write_result(new, {**end, "trial_key": trial.key, "metrics": {}}, ())
        store.upload(trial.key)


def _earlier(store: Store, trial: Trial, n: int) -> Path:
    """The run directory of the same trial with n iterations."""
    return store.trial_dir(trial.config.override(iterations=n).trial_key)


def _start_from(earlier: Path, path: Path, config: Config, n: int) -> None:
    """Make a run directory with the checkpoint and the evaluations of n iterations."""
    with _staged(path) as new:
        new.mkdir(parents=True)
        for name in (*run_dir.CHECKPOINTS, run_dir.METRICS, run_dir.PROVENANCE):
            if (earlier / name).exists():
                shutil.copyfile(earlier / name, new / name)
        iterations = sorted({*run_dir.earlier_iterations(earlier), n})
        run_dir.write_json(new / run_dir.CONTINUES, {"iterations": iterations})
        run_dir.write_json(new / run_dir.CONFIG, config.to_dict())


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A free path beside a run directory; what is made there replaces the directory at the end."""
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    yield new
    os.replace(new, path)
