"""A sweep from its checks to its summary: what is done around `tune.engine.loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tune import options as common
from tune import preflight, report
from tune.command import UsageError
from tune.display import Display, log
from tune.engine.spec import Settings
from tune.options import Options
from tune.plan.cells import Trial
from tune.plan.plan import Plan, check_same_data
from tune.plan.source import TrialSource
from tune.plan.state import ENDED, State
from tune.plan.states import States
from tune.signals import QUICK_SECONDS, Interrupted, Signals
from tune.store.folder import Store
from tune.store.lock import SweepLock

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

    store, plan, trials = work.store, work.source.plan, work.trials
    settings = common.settings(options, store)
    if options.sync:
        return _sync(settings, store, plan)
    common.use_inception_weights(options)
    statuses = store.statuses(trials)
    retried = (options.retry or "").split(",")
    again = {key: status.state for key, status in statuses.items() if status.state in retried}
    todo = [t for t in trials if t.key in again or statuses[t.key].state not in ENDED]
    nothing_new = not todo and len(trials) >= work.source.n_trials and plan == work.old
    if not (nothing_new and tracking.in_step(store, settings.uri)):
        _check(options, settings, work, todo)
        with SweepLock(store, log) as lock:
            if store.refresh() != work.old:
                raise UsageError(
                    f"another command has just changed the plan of {store.out}; try again"
                )
            _prepare(work, again)
            trials = _train(settings, signals, work, lock)
        statuses = store.statuses(trials)
    report.print_summary(settings, trials, statuses)
    return report.exit_code(statuses.values(), signals.number)


def _check(options: Options, settings: Settings, work: Work, todo: Sequence[Trial]) -> None:
    """ValueError, in one line, for what would stop these trials; nothing is written yet."""
    from tune import tracking
    from tune.engine.cluster import check_cluster

    if not settings.local and (todo or len(work.trials) < work.source.n_trials):
        check_cluster(settings.address)
    preflight.check(todo, settings, work.store, download=options.download)
    for text in preflight.cautions(todo):
        log(f"note: {text}")
    plan, data_dir = work.source.plan, settings.data_dir
    if settings.local and not isinstance(data_dir, str):
        check_same_data(settings.out, plan, todo, data_dir)
    begun = work.old is not None
    problem = tracking.check_reachable(settings.uri, settings.out, plan.preset, begun=begun)
    if problem:
        log(f"MLflow does not answer ({problem}); training goes on")


def _prepare(work: Work, again: Mapping[str, State]) -> None:
    """Write the plan and put the folders of its trials in order, under the lock."""
    store, plan = work.store, work.source.plan
    store.write_plan(plan)
    store.upload_missing(work.trials)
    store.download()
    for trial in work.trials:
        # Another driver may have run it since its state was read.
        if trial.key in again and store.status(trial).state == again[trial.key]:
            store.reset(trial, again[trial.key])
        store.extend(plan, trial)
        damaged = store.repair(trial, plan.fingerprint_for(trial.config))
        if damaged:
            log(damaged)


def _train(settings: Settings, signals: Signals, work: Work, lock: SweepLock) -> list[Trial]:
    """Run the trials and deliver them; all trials, with those that a search has suggested."""
    from tune.engine.loop import Services, run_sweep
    from tune.tracking import Tracker

    store, source = work.store, work.source
    states = States(work.trials, store.statuses(work.trials), source.n_trials)
    tracker, patience = Tracker(store, settings.uri, source.plan), QUICK_SECONDS
    try:
        with signals.remember(), Display(states) as display:
            services = Services(store, lock, tracker, display, signals)
            if run_sweep(source, settings, states, services):
                patience = DELIVERY_SECONDS
        if not lock.lost:
            with suppress(OSError):  # The plan without the data's fingerprint is a plan as well.
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


def _sync(settings: Settings, store: Store, plan: Plan) -> int:
    """Deliver to MLflow what it lacks (`--sync`); the exit code."""
    from tune import tracking

    with SweepLock(store, log):
        try:
            sent = tracking.sync(store, settings.uri, plan)
        except Exception as error:  # whatever a database or a server can raise
            log(f"MLflow at {settings.uri}: {tracking.one_line(error)}")
            return 3
    print(f"{sent} trials delivered to {settings.uri}")
    return 0
