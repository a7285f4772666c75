"""A sweep from its checks to its summary: the steps before and after `tune.engine.loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mpcc.shell import message_of, without_password
from tune import options as common
from tune import preflight, report
from tune.display import Display, log
from tune.engine.spec import Settings
from tune.options import Options
from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.plan.source import TrialSource
from tune.plan.state import ENDED, EventKind, State, States, Status
from tune.signals import QUICK_SECONDS, Interrupted, Signals
from tune.store.adopt import adopt, extend, take_over_ends
from tune.store.folder import Store
from tune.store.lock import Claims, LockError, sweep_lock, trial_lock
from tune.tracking.connection import check_reachable
from tune.tracking.delivery import in_step, sync
from tune.tracking.tracker import Tracker
from tune.tracking.uri import first_line

NOTHING_LEFT = 4
"""The exit code of `--next` if no trial is left for it."""
DELIVERY_SECONDS = 60.0
"""How long the end of a sweep waits for MLflow."""


@dataclass(frozen=True)
class Work:
    """The store, the plan and the trials of one command."""

    store: Store
    old: Plan | None
    """The plan of the folder as it was read; `source.plan` is the one that is asked for."""
    source: TrialSource
    trials: Sequence[Trial]
    """The trials that are known before the start; a search suggests more."""
    adopt: Path | None = None
    """The folder of another sweep; its finished trials are copied before the start."""


def run(options: Options, signals: Signals, work: Work) -> int:
    """Run the trials that have not ended, or deliver all to MLflow (--sync); returns the exit code.

    0: every trial is done. 3: some are not. 129, 130, 143: ended by SIGHUP, SIGINT, SIGTERM.
    """
    store, plan, trials = work.store, work.source.plan, work.trials
    settings = common.settings(options, store)
    if options.sync:
        return deliver(settings, store, plan)
    common.use_inception_weights(options)
    statuses = store.statuses(trials)
    retried = (options.retry or "").split(",")
    again = {key: status.state for key, status in statuses.items() if status.state in retried}
    todo = [t for t in trials if t.key in again or statuses[t.key].state not in ENDED]
    nothing_new = plan == work.old and not (todo or work.adopt or store.restored)
    nothing_new = nothing_new and len(trials) >= work.source.n_trials
    if not (nothing_new and in_step(store, settings.uri, settings.log_models)):
        preflight.check_docstrings()
        _check(options, settings, work, todo)
        n_at_once = settings.n_at_once(todo) if todo and settings.local else None
        if n_at_once:
            preflight.check_local_ray(n_at_once)
        with sweep_lock(store, log) as lock:
            if store.refresh() != work.old:
                raise ValueError(
                    f"another command has just changed the plan of {store.out}; try again"
                )
            _prepare(work, again)
            trials = _train(settings, signals, work, lock)
        statuses = store.statuses(trials)
    report.print_summary(settings, trials, statuses)
    return report.exit_code(statuses.values(), signals.number)


def _check(options: Options, settings: Settings, work: Work, todo: Sequence[Trial]) -> None:
    """ValueError, in one line, if these trials could not run here; nothing is written yet."""
    from tune.engine.cluster import check_cluster

    work.store.check_places(work.trials)
    if not settings.local and (todo or len(work.trials) < work.source.n_trials):
        check_cluster(settings.address)
    preflight.check(todo, settings, work.store, download=options.download)
    for text in preflight.cautions(todo, options):
        log(f"note: {text}")
    plan, data_dir = work.source.plan, settings.data_dir
    if settings.local and not isinstance(data_dir, str):
        preflight.check_same_data(settings.out, plan, todo, data_dir)
    begun = work.old is not None
    problem = check_reachable(settings.uri, settings.out, plan.preset, begun=begun)
    if problem:
        log(f"MLflow does not answer ({problem}); training goes on")


def _prepare(work: Work, again: Mapping[str, State]) -> None:
    """Write the plan and put the folders of its trials in order, under the lock."""
    store, plan = work.store, work.source.plan
    _write(store, work.old, plan, work.trials, work.adopt)
    for trial in work.trials:
        # Another driver may have run it since its state was read.
        if trial.key in again and store.status(trial).state == again[trial.key]:
            store.reset(trial, again[trial.key])
        extend(store, plan, trial)
        damaged = store.repair(trial, plan.fingerprint_for(trial.config))
        if damaged:
            log(damaged)


def _train(settings: Settings, signals: Signals, work: Work, lock: Claims) -> list[Trial]:
    """Run and deliver the trials; returns all of them, with those that a search has suggested."""
    from tune.engine.loop import Loop

    store, source = work.store, work.source
    states = States(work.trials, store.statuses(work.trials), source.n_trials)
    tracker = Tracker(store, settings.uri, source.plan, settings.log_models)
    patience = QUICK_SECONDS
    try:
        with signals.remember(), Display(states) as display:
            loop = Loop(source, settings, states, store, lock, tracker, display, signals)
            if loop.run():
                patience = DELIVERY_SECONDS
        if not lock.lost:
            with suppress(OSError):  # The plan then only lacks the fingerprint of the images.
                store.write_plan(store.with_recorded_images(source.plan))
    finally:
        problem: str | None = "interrupted"
        with suppress(Interrupted):
            problem = tracker.close(signals.deadline(patience))
        if problem:
            log(
                f"MLflow lacks some results ({problem}); nothing is lost: run the same command "
                "with --sync when it is back"
            )
    return states.trials()


def _write(
    store: Store, old: Plan | None, plan: Plan, trials: Sequence[Trial], adopted: Path | None
) -> None:
    """Write the plan, and the records of its trials that other folders and earlier plans have."""
    take_over_ends(store, old, plan)
    store.write_plan(plan)
    store.upload_missing(trials)
    store.download()
    if adopted is not None:
        print(f"{adopt(store, adopted, trials)} trials adopted from {adopted}")


def write_for_next(
    store: Store, old: Plan | None, plan: Plan, trials: Sequence[Trial], adopted: Path | None
) -> bool:
    """Write a plan for `--next`, unless another process has written one since `old` was read.

    If several start at once, one of them writes the plan and the others read it again.
    """
    if plan == old and adopted is None and not store.not_uploaded(trials):
        return True
    try:
        with sweep_lock(store, log):
            if store.refresh() != old:
                return False
            _write(store, old, plan, trials, adopted)
            return True
    except LockError:
        return False


def run_next(options: Options, signals: Signals, work: Work) -> int:
    """Train one unfinished trial that no other process trains, in this process (`--next`).

    Returns the exit code: 0 if it is done, 3 if not, 4 if every trial has ended or is trained
    elsewhere, 128 + n if signal n stopped it, with a checkpoint.
    """
    from mpcc.runs.files import BusyError

    store, settings = work.store, replace(common.settings(options, work.store), max_concurrent=1)
    common.use_inception_weights(options)
    missing = work.source.ready(store.statuses(work.trials))
    _check(options, settings, work, missing)
    for trial in missing:
        with suppress(BusyError), trial_lock(store, trial.key) as claim:
            store.download(trial.key)
            if store.status(trial).state in ENDED:
                continue
            extend(store, work.source.plan, trial)
            status = _train_here(settings, signals, work, trial, claim)
            if status is not None:
                print(f"{status.state}: {trial.text}: {store.trial_dir(trial.key)}")
                return report.exit_code([status], signals.number)
    print(f"nothing is left to do in {store.out}: every trial has ended or is trained now")
    return NOTHING_LEFT


def _train_here(
    settings: Settings, signals: Signals, work: Work, trial: Trial, claim: Claims
) -> Status | None:
    """Train a trial to its end, or until a signal; None if another process trains it."""
    from tune.engine.spec import spec_of
    from tune.engine.worker import TrialWorker

    states = States([trial], work.store.statuses([trial]), 1)
    spec = spec_of(trial, settings, work.source.plan)
    others = work.store.models.others(trial)
    # exclusive: this process trains no other trial, so running out of memory is a failure.
    worker = TrialWorker(replace(spec, same_model=others, exclusive=True))
    log(f"training {trial.text}")
    try:
        with signals.remember(), Display(states) as display:
            while signals.number is None and not claim.lost:
                event = worker.step()
                if event.kind == EventKind.ELSEWHERE:
                    return None
                states.apply(event)
                display.show()
                if event.ends:
                    break
    except Exception as error:  # a disk, a GPU: the trial resumes from its last checkpoint
        text = message_of(error, 300)
        raise OSError(f"{trial.text}: {text}; run the same command again to resume") from error
    finally:
        worker.release()
    work.store.download(trial.key)
    return work.store.status(trial)


def deliver(settings: Settings, store: Store, plan: Plan) -> int:
    """Send MLflow what it lacks of the sweep (`--sync`); returns the exit code."""
    uri = without_password(settings.uri)
    with sweep_lock(store, log):
        try:
            sent = sync(store, settings.uri, plan, settings.log_models)
        except Exception as error:  # whatever a database or a server can raise
            log(f"MLflow at {uri}: {first_line(error)}")
            return 3
    print(f"{sent} trials delivered to {uri}")
    return 0
