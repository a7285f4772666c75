"""A sweep from its checks to its summary: what is done around `tune.engine.loop`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune import options as common
from tune import preflight, report
from tune.command import UsageError
from tune.display import Display, log
from tune.engine.settings import Settings
from tune.options import Options
from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.plan.source import TrialSource
from tune.plan.state import ENDED, RETRIABLE, State, Status
from tune.signals import QUICK_SECONDS, Interrupted, Signals
from tune.store.folder import Store
from tune.store.lock import SweepLock
from tune.store.opening import refresh
from tune.store.remote import is_address
from tune.store.transfer import upload_missing

if TYPE_CHECKING:
    from tune.engine.loop import LoopResult
    from tune.tracking import Tracker

DELIVERY_SECONDS = 60.0
"""How long MLflow is waited for at the end."""


@dataclass(frozen=True)
class Work:
    """What a command runs."""

    store: Store
    old: Plan | None
    """The plan of the folder as it was read; `source.plan` is the one that is asked for."""
    source: TrialSource
    trials: Sequence[Trial]
    """Those that are known before the start; a search suggests more."""


def run(options: Options, signals: Signals, work: Work) -> int:
    """Run what is missing of these trials, or deliver it to MLflow (--sync); the exit code.

    0: every one of them is done. 3: not every one. 129, 130, 143: ended by SIGHUP, SIGINT, SIGTERM.
    """
    from tune import tracking

    store, plan = work.store, work.source.plan
    settings = common.settings(options, store)
    if options.sync:
        return _sync(settings, store, plan)
    common.use_inception_weights(options)
    statuses = store.statuses(work.trials)
    again = _retried(options, statuses)
    todo = [t for t in work.trials if t.key in again or statuses[t.key].state not in ENDED]
    if not todo and len(work.trials) >= work.source.n_trials and plan == work.old:
        if tracking.in_step(store, settings.uri, plan):
            report.print_summary(settings, work.trials, statuses)
            return report.exit_code(statuses.values())
    if options.download:
        _download(todo, settings)
    preflight.check(todo, settings, store)
    preflight.check_images(plan, todo, settings)
    begun = any(status.state != State.PLANNED for status in statuses.values())
    problem = tracking.check_reachable(settings.uri, store.out, plan.preset, begun=begun)
    if problem:
        log(f"MLflow does not answer ({problem}); training goes on")
    with SweepLock(store, log) as lock:
        if refresh(store) != work.old:
            raise UsageError(f"another command has just changed the plan of {store.out}; try again")
        _prepare(work, {key: statuses[key].state for key in again})
        trials, whole = _train(settings, signals, work, lock)
    statuses = store.statuses(trials)
    report.print_summary(settings, trials, statuses)
    code = report.exit_code(statuses.values(), signals.number)
    if not whole or signals.number is not None:
        sys.stdout.flush()
        signals.leave(code)  # Threads of a Ray that is gone may wait for ever.
    return code


def _retried(options: Options, statuses: Mapping[str, Status]) -> set[str]:
    """The keys of the trials that --retry names."""
    if options.retry is None:
        return set()
    states = [state.strip() for state in options.retry.split(",")]
    if not set(states) <= set(RETRIABLE):
        raise UsageError(f"--retry must be failed, diverged or both, got '{options.retry}'")
    return {key for key, status in statuses.items() if status.state in states}


def _download(todo: Sequence[Trial], settings: Settings) -> None:
    """Get the data sets that are missing."""
    if is_address(settings.data_dir):
        raise UsageError("--download fills a folder: give one as --data-dir, and copy it")
    from mpcc.data_download import download

    for dataset in sorted({trial.config.dataset for trial in todo}):
        download(dataset, settings.data_dir)


def _prepare(work: Work, again: Mapping[str, State]) -> None:
    """Write the plan and put the folders of its trials in order, under the lock."""
    store, plan = work.store, work.source.plan
    store.write_plan(plan)
    if store.remote is not None:
        upload_missing(store, work.trials)
    for trial in work.trials:
        if trial.key in again:
            store.reset(trial, again[trial.key])
        store.extend(plan, trial)
        damaged = store.repair(trial, plan.fingerprint_for(trial.config))
        if damaged:
            log(damaged)


def _train(
    settings: Settings, signals: Signals, work: Work, lock: SweepLock
) -> tuple[list[Trial], bool]:
    """Run the trials and have them delivered; all trials, and whether the end was in order."""
    from tune.engine.loop import Services, run_sweep
    from tune.engine.states import States
    from tune.tracking import Tracker, one_line

    store, source = work.store, work.source
    states = States(work.trials, store.statuses(work.trials), source.n_trials)
    tracker = Tracker(store, settings.uri, source.plan)
    try:
        with signals.remember(), Display(states) as display:
            services = Services(store, lock, tracker, display, signals)
            result = run_sweep(source, settings, states, services)
    except BaseException:
        tracker.close(State.STOPPED, signals.deadline(QUICK_SECONDS))
        raise
    try:
        if not lock.lost:
            store.write_plan(store.with_recorded_images(source.plan))
    except OSError as error:  # The plan without the data's fingerprint is a plan as well.
        log(one_line(error))
    _deliver(tracker, signals, result, store.statuses(source.plan.trials()))
    return states.trials(), result.whole


def _deliver(
    tracker: Tracker, signals: Signals, result: LoopResult, statuses: Mapping[str, Status]
) -> None:
    """Have MLflow take what it lacks, as long as there is time; log why it did not."""
    from tune.tracking import sweep_state

    patience = DELIVERY_SECONDS if result.whole else QUICK_SECONDS
    problem: str | None = "interrupted"
    with contextlib.suppress(Interrupted):
        state = sweep_state({status.state for status in statuses.values()})
        problem = tracker.close(state, signals.deadline(patience))
    if tracker.note:
        log(tracker.note)
    if problem:
        log(
            f"MLflow lacks some results ({problem}); nothing is lost: run the same command with "
            "--sync when it is back"
        )


def _sync(settings: Settings, store: Store, plan: Plan) -> int:
    """Deliver to MLflow what it lacks (`--sync`); the exit code."""
    from tune import tracking

    with SweepLock(store, log):
        try:
            sent = tracking.sync(store, settings.uri, plan, frozenset())
        except Exception as error:  # whatever a database or a server can raise
            log(f"MLflow at {settings.uri}: {tracking.one_line(error)}")
            return 3
    print(f"{sent} trials delivered to {settings.uri}")
    return 0
