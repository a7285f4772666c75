"""Missing trials -> Ray Tune -> run directories: one sweep from its first trial to its last.

The plan is made afresh from the run directories each time (`tune.ledger`); Ray only runs what is
missing (`tune.session`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpcc import run_dir
from tune import images, ledger, tracking
from tune.drivers import Driver
from tune.grid import cost
from tune.ledger import Plan, Status, Trial
from tune.mirror import OutFolder
from tune.progress import Board
from tune.session import Session, Supply, statuses
from tune.settings import Settings
from tune.shell import program, script, shown
from tune.signals import QUICK_SECONDS, SIGNALS, tell

DELIVERY_SECONDS = 60.0


def missing(trials: Sequence[Trial], now: Mapping[str, Status]) -> list[Trial]:
    """The trials without a result, the longest first, so that none is alone at the end.

    Among equals every cell has its first seed before any has its second.
    """
    open_ = [trial for trial in trials if now[trial.key].state not in run_dir.ENDED]
    return sorted(open_, key=lambda trial: (-cost(trial.config), trial.seed))


def run(
    plan: Plan,
    trials: Sequence[Trial],
    settings: Settings,
    driver: Driver,
    files: OutFolder,
    supply: Supply | None = None,
) -> int:
    """Run what is missing of these trials, and what `supply` has; deliver it; the exit code.

    `files` has begun. 0: every one of them is done. 3: not every one. 129, 130, 143: ended by
    SIGHUP, SIGINT, SIGTERM.
    """
    signals = SIGNALS
    signals.remember()
    for trial in trials:
        if driver.is_elsewhere(trial.key):
            continue
        files.take_over(plan, trial)
        mended = ledger.mend(settings.out, trial, images.expected(plan, trial.config))
        if mended:
            tell(mended)
    board = Board(trials, statuses(settings.out, trials))
    board.expected = 0 if supply is None else supply.n_trials
    tracker = tracking.Background(
        *(settings.out, settings.uri, plan, board.running),
        leads=lambda: driver.leads,
        elsewhere=driver.running_elsewhere,
    )
    files.attend(board.running, tracker.poke)
    todo = missing(trials, statuses(settings.out, trials))
    session = Session(plan, settings, driver, signals, board, tracker, files, supply)
    try:
        whole = session.train(todo) if todo else True
    except BaseException:
        tracker.finish(_state_of(settings.out, plan, driver), signals.within(QUICK_SECONDS))
        raise
    patience = DELIVERY_SECONDS if whole else QUICK_SECONDS
    hindrance = files.settle(signals.within(patience))
    if hindrance:
        tell(f"{hindrance}; the same command fetches what is missing here")
    trials = board.trials() if supply is None else supply.all_trials()
    plan = images.learnt(session.plan, settings.out, trials)
    try:
        if not (files.lost or driver.lost):
            (files.write_plan if supply is None else supply.write)(plan)
    except OSError as error:  # The plan without the data's fingerprint is a plan as well.
        tell(tracking.one_line(error))
    problem = tracker.finish(_state_of(settings.out, plan, driver), signals.within(patience))
    if tracker.note:
        tell(tracker.note)
    if problem:
        tell(
            f"MLflow lacks some results ({problem}); nothing is lost: run the same command with "
            "--sync when it is back"
        )
    code = exit_code(settings.out, trials, signals.number)
    if not whole or signals.number is not None:
        # Tune's thread may wait for ever for a Ray that is gone.
        try:
            summary(settings, trials)
            if driver.others():
                print("The other drivers go on with this search.")
            files.release()
            driver.release()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            signals.leave(code)
    return code


def _state_of(out: Path, plan: Plan, driver: Driver) -> str:
    """The state of the whole sweep, when nothing of this driver's runs any more."""
    states = {ledger.status(out, trial).state for trial in plan.trials()}
    if not states <= set(run_dir.ENDED) and driver.running_elsewhere():
        return ledger.RUNNING
    return tracking.sweep_state(states)


def exit_code(out: Path, trials: Sequence[Trial], signal_number: int | None = None) -> int:
    """0 only if every trial is done, or pruned by its search."""
    if all(ledger.status(out, trial).state in ledger.FULFILLED for trial in trials):
        return 0
    return 3 if signal_number is None else 128 + signal_number


def summary(settings: Settings, trials: Sequence[Trial]) -> None:
    """The last lines: what is not done and why, where the results are, what to do next."""
    now = statuses(settings.out, trials)
    open_ = [trial for trial in trials if now[trial.key].state != ledger.DONE]
    for trial in open_:
        status = now[trial.key]
        cause = f" ({status.cause})" if status.cause else ""
        print(f"{status.state}: {trial.text}{cause}")
    print(f"{len(trials) - len(open_)} of {len(trials)} trials done: {settings.out}")
    ended = sorted({now[t.key].state for t in open_} & {ledger.FAILED, ledger.DIVERGED})
    if any(now[trial.key].state not in run_dir.ENDED for trial in open_):
        print("Go on:   the same command again")
    if ended:
        print(f"Retry:   the same command with --retry {','.join(ended)}")
    print(
        f"Tables:  {script('analysis', 'make_tables.py')} --runs {shlex.quote(shown(settings.out))}"
    )
    hint = tracking.ui_hint(settings.uri, settings.out, program("mlflow"))
    print("MLflow:  " + "\n         ".join(hint))
