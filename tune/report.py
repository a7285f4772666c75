"""Prints a sweep: its status, its summary, and the trials that `--dry-run` lists."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rich.filesize import decimal

from mpcc.shell import message_of, program, script, shown
from tune import estimate, preflight
from tune import options as common
from tune.display import score_text
from tune.engine.spec import Settings
from tune.options import Options
from tune.plan.cells import Trial, by_cell
from tune.plan.cost import checkpoint_bytes
from tune.plan.plan import PLAN, Plan
from tune.plan.state import ENDED, FULFILLED, RETRIABLE, State, Status
from tune.store.adopt import extends_from
from tune.store.folder import Store
from tune.store.lock import Owner, claimed, release_lock, sweep_owner
from tune.tracking.uri import damage_of, ui_hint


def print_status(store: Store, trials: Sequence[Trial], uri: str) -> int:
    """Print the state of every seed, cell by cell; return the exit code of a run in this state.

    uri: MLflow's; only a local file is checked.
    """
    owner, statuses = current(store, trials)
    _print_cells(trials, statuses)
    states = [status.state for status in statuses.values()]
    counts = [f"{states.count(state)} {state}" for state in State if state in states]
    print(f"{len(states)} trials: {', '.join(counts)}{driver_text(owner)}")
    print_damage(uri)
    return exit_code(statuses.values())


def print_damage(uri: str) -> None:
    """Print a line if MLflow's database file is damaged; nothing for a server."""
    damage = damage_of(uri)
    if damage is not None:
        print(f"MLflow:  {damage}")


def print_growth(store: Store, old: Plan | None, plan: Plan) -> None:
    """Print how many trials were planned, which are new, and how many --drop took out."""
    if plan.dropped:
        print(
            f"trials out of the plan by --drop: {len(plan.dropped)}; their records stay on the "
            "disk and count nowhere; --grid plans them again"
        )
    before = [] if old is None else old.trials()
    known = {trial.key for trial in before}
    new = [trial for trial in plan.trials() if trial.key not in known]
    if not (before and new):
        return
    cells = [trials[0].cell for trials in by_cell(new)]
    some = "; ".join(cell.text for cell in cells[:6]) + ("; …" if len(cells) > 6 else "")
    print(
        f"{store.out} holds {len(by_cell(before))} cells, {len(before)} trials; {len(new)} trials "
        f"are new: {some}, seeds {', '.join(map(str, sorted({trial.seed for trial in new})))}"
    )


def _print_cells(trials: Sequence[Trial], statuses: Mapping[str, Status]) -> None:
    for seeds in by_cell(trials):
        print(f"cell {seeds[0].cell.key}  {seeds[0].cell.text}")
        for trial in seeds:
            status = statuses[trial.key]
            at = f"{status.iteration:>7} of {trial.config.iterations}"
            score = score_text(status, trial.config)
            cause = f"  {status.cause}" if status.cause else ""
            print(f"  trial {trial.key}  seed {trial.seed:<3} {status.state:<8}{at}{score}{cause}")


def current(store: Store, trials: Sequence[Trial]) -> tuple[Owner | None, dict[str, Status]]:
    """The driver of the folder, if one runs, and the status of each trial."""
    begun = (store.out / PLAN).exists()  # Before that, its remote may not exist.
    owner = sweep_owner(store.out, store.remote if begun else None)
    running = claimed(store) if begun else set()
    return owner, store.statuses(trials, running.union(owner.running if owner else ()))


def driver_text(owner: Owner | None) -> str:
    """`; driver: process 12 on a since …`, empty without a driver."""
    return "" if owner is None else f"; driver: {owner.text}"


def exit_code(
    statuses: Iterable[Status], signal_number: int | None = None, *, complete: bool = True
) -> int:
    """0 if every trial is done or pruned and no point is missing; else 3, or 128 + the signal."""
    if complete and all(status.state in FULFILLED for status in statuses):
        return 0
    return 3 if signal_number is None else 128 + signal_number


def print_summary(
    settings: Settings, trials: Sequence[Trial], statuses: Mapping[str, Status]
) -> None:
    """Print which trials are not done and why, where the results are, and what to do next."""
    missing = [trial for trial in trials if statuses[trial.key].state != State.DONE]
    for trial in missing:
        status = statuses[trial.key]
        cause = f" ({status.cause})" if status.cause else ""
        print(f"{status.state}: {trial.text}{cause}")
    print(f"{len(trials) - len(missing)} of {len(trials)} trials done: {settings.out}")
    states = {statuses[trial.key].state for trial in missing}
    if states - ENDED:
        print("Go on:   the same command again")
    again = sorted(states & set(RETRIABLE))
    if again:
        print(f"Retry:   the same command with --retry {','.join(again)}")
    print(
        f"Tables:  {script('analysis', 'make_tables.py')} --runs {shlex.quote(shown(settings.out))}"
    )
    hint = ui_hint(settings.uri, settings.out, program("mlflow"))
    print("MLflow:  " + "\n         ".join(hint))


def release(store: Store) -> int:
    """Release the lock of the driver that holds the folder, and print which one that was."""
    owner = release_lock(store)
    if owner is None:
        print(f"no driver holds {store.out}")
    else:
        print(f"{store.out} is free; it was held by {owner.text}")
    return 0


def print_dry_run(options: Options, store: Store, plan: Plan, trials: Sequence[Trial]) -> int:
    """Print every cell, trial and key, the trials to run, their size and their time."""
    settings = common.settings(options, store)
    preflight.check_fit(trials, settings)
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {store.out}")
    _, statuses = current(store, trials)
    for trial in trials:
        shorter = extends_from(store, plan, trial)
        if shorter:
            statuses[trial.key] = replace(statuses[trial.key], iteration=shorter)
        elif statuses[trial.key].state == State.PLANNED and store.models.done(trial):
            last = trial.config.iterations
            statuses[trial.key] = replace(statuses[trial.key], iteration=last)
    _print_cells(trials, statuses)
    final = ENDED.difference((options.retry or "").split(","))
    todo = [trial for trial in trials if statuses[trial.key].state not in final]
    new = (trial for trial in todo if statuses[trial.key].state == State.PLANNED)
    trained = len([t for t in new if statuses[t.key].iteration == t.config.iterations])
    more = f", {trained} of them only to evaluate" if trained else ""
    print(f"{len(by_cell(trials))} cells, {len(trials)} trials, {len(todo)} to run{more}")
    if todo:
        reached = {trial.key: statuses[trial.key].iteration for trial in todo}
        print_needs(options, settings, store, todo, reached)
    return 0


def print_needs(
    options: Options,
    settings: Settings,
    store: Store,
    todo: Sequence[Trial],
    reached: Mapping[str, int],
) -> None:
    """Print the size of these trials, and their time from the iterations they have `reached`."""
    for text in preflight.cautions(todo, options):
        print(f"note: {text}")
    largest = max(checkpoint_bytes(trial.config) for trial in todo)
    need = preflight.disk_need(todo, store, settings.n_at_once(todo))
    print(f"about {decimal(largest)} per checkpoint, {decimal(need)} on the disk", flush=True)
    try:
        common.use_inception_weights(options)
        preflight.check(todo, settings, store)
        print(f"time: {estimate.estimate(settings, store, todo, reached)}")
    except (ValueError, OSError) as error:  # It could not be measured; the rest is known.
        print(f"time: not known ({message_of(error)})")
