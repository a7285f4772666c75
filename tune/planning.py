"""The plan that the options of `tune/ablation.py` ask for, and the trials of one command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpcc import config as configs
from mpcc.runs.run_dir import CHECKPOINT
from tune import options as common
from tune.options import DEFAULT_PRESET
from tune.plan import confirm, grid, leave_out, paper
from tune.plan.cells import Cell, Trial, chosen, trials
from tune.plan.drop import dropped
from tune.plan.plan import Plan, PlanError, check_same_base, check_same_code, new_plan
from tune.plan.state import ENDED, State, Status
from tune.store.adopt import sweep_elsewhere
from tune.store.folder import Store

if TYPE_CHECKING:
    from tune.ablation import AblationOptions

DEFAULT_SEEDS = (0, 1, 2)


def planned(options: AblationOptions, store: Store, old: Plan | None) -> tuple[Plan, list[Trial]]:
    """The plan that the options ask for, and the trials of this command; `old`: the folder's plan.

    PlanError if the code has changed since the folder was begun and one of the trials must be
    trained or evaluated.
    """
    plan, wanted = _planned(options, store, old)

    def trains() -> bool:
        return options.evaluate or any(store.status(t).state not in ENDED for t in wanted)

    common.check_code(options, store, plan, trains)
    return plan, wanted


def _planned(options: AblationOptions, store: Store, old: Plan | None) -> tuple[Plan, list[Trial]]:
    asks = options.grid or options.table or options.ablate is not None
    if options.confirm is not None and (old is None or asks):
        raise ValueError(
            "--confirm takes a folder whose grid has been run, without --grid, --table or --ablate"
        )
    if options.continue_training:
        if options.iterations is None or old is None:
            raise ValueError(
                "--continue-training takes a folder whose trials have run, and --iterations N"
            )
        old = old.extend(configs.parse_value("iterations", options.iterations))
    if options.evaluate and old is None:
        raise ValueError("--evaluate takes a folder whose trials have run")
    if old is not None:
        old = _evaluated(options, store, old)
    if options.adopt is not None:
        old = _with_adopted(options, store, old)
    if options.drop:
        if old is None:
            raise ValueError(f"--drop: nothing is planned in {store.out} yet")
        old = dropped(old, options.drop)
    plan = _begun(options, store, old)
    if options.confirm is not None:
        return _confirmed(options, store, plan)
    typed = None if options.seeds is None else grid.parse_seeds(options.seeds)
    cells, default_seeds, name = _asked(options, store, plan)
    seeds = frozenset(typed or default_seeds)
    plan = plan.grow(cells, seeds, name, best=options.ablate_from == "best")
    keys = _chosen_keys(options, plan, {cell.key for cell in cells})
    wanted = (trial for trial in plan.trials() if trial.cell.key in keys)
    return plan, [trial for trial in wanted if not seeds or trial.seed in seeds]


def runnable(options: AblationOptions, store: Store, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of this command that can run; with --evaluate those that need no training.

    Prints which ones are left out, and why. ValueError if a finished trial would be trained again
    only to evaluate it differently, because its checkpoint is gone.
    """
    kept = []
    for trial in trials:
        if store.trial_dir(trial.key).exists() and (
            not options.evaluate or store.status(trial).state in ENDED
        ):
            kept.append(trial)
            continue
        ends = store.models.ends(trial)
        done = [key for key, end in ends.items() if end["state"] == State.DONE]
        # They all failed, diverged or were pruned: this trial gets the same result untrained.
        same_end = ends and not done
        if any(map(store.has_checkpoint, done)) or same_end or not (done or options.evaluate):
            kept.append(trial)
        elif not done:
            print(f"left out: {trial.text}: it is not trained yet, and --evaluate trains nothing")
        else:
            text = f"{trial.text}: {store.trial_dir(done[0])} keeps no {CHECKPOINT} to evaluate"
            if not options.evaluate:
                raise ValueError(
                    f"{text}; --evaluate evaluates the others, and another --out trains it again"
                )
            print(f"left out: {text}; another --out trains it again")
    if not kept:
        raise ValueError(f"--evaluate: no trial of {store.out} can be evaluated")
    return kept


def _evaluated(options: AblationOptions, store: Store, old: Plan) -> Plan:
    """The folder's plan with the evaluation settings of --set.

    ValueError if a trial has begun and not ended: with other settings it would begin anew.
    """
    given = {n: v for n, v in common.changes(options).items() if n in configs.EVALUATION}
    plan = old.evaluated(given)
    if plan != old:
        states = [status.state for status in store.statuses(old.trials()).values()]
        n = len([state for state in states if state in (State.RUNNING, State.STOPPED)])
        if n:
            raise ValueError(
                f"{n} trials of {store.out} have begun and not ended: finish them first, by the "
                f"same command without --set {' or '.join(given)}"
            )
    return plan


def _with_adopted(options: AblationOptions, store: Store, old: Plan | None) -> Plan:
    """The folder's plan, with the cells and seeds of the sweep that `--adopt` names.

    PlanError if that was run under other settings, by other code or on other images.
    """
    assert options.adopt is not None
    other = sweep_elsewhere(options.adopt)
    plan = old or new_plan(other.preset, other.base)
    check_same_base(store.out, plan, other.base)
    if not options.accept_changed_code:
        check_same_code(options.adopt, other)
    for planned in other.cells:
        seeds = (*planned.seeds, *planned.confirm_seeds)
        plan = plan.grow([planned.cell], seeds, f"adopted from {other.id}")
    for name, data in (other.data or {}).items():
        known = (plan.data or {}).get(name)
        if known is not None and known["fingerprint"] != data["fingerprint"]:
            raise PlanError(f"{options.adopt} was run on other images of {name} than {store.out}")
        plan = plan.with_data(name, data)
    return plan


# -- the cells that the options name -------------------------------------------------------------


def _begun(options: AblationOptions, store: Store, old: Plan | None) -> Plan:
    """The folder's plan, or a new one."""
    preset = options.preset or (old.preset if old else None)
    preset = preset or (paper.BASE_PRESET if options.table else DEFAULT_PRESET)
    start = paper.base(options.scale or paper.FULL) if options.table else configs.preset(preset)
    base = start.override(**common.changes(options))
    named = common.changes(replace(options, variant=None, iterations=None))
    trained = set(named).difference(configs.EVALUATION)
    asked = (options.table, options.preset, options.variant, trained)
    longer = options.iterations is not None and not options.continue_training
    given = any(asked) or longer
    if options.grid and old and not given:
        common.print_kept_settings(store, old, preset, base)
    return common.begun(options, store, old, preset, base, given=given)


def _asked(
    options: AblationOptions, store: Store, plan: Plan
) -> tuple[Sequence[Cell], Sequence[int], str | None]:
    """The cells that the options name, their default seeds, and their grid's name.

    Without --grid, --table and --ablate: all planned cells, and no default seeds.
    """
    if options.table is not None:
        scale, given = options.scale or paper.FULL, common.changes(options)
        start, now = paper.base(scale).to_dict(), plan.base.to_dict()
        given |= {name: now[name] for name in configs.EVALUATION if now[name] != start[name]}
        cells = paper.cells(options.table, scale, given)
        return cells, range(paper.TABLES[options.table]), f"table {options.table}"
    if options.ablate is not None:
        return _without_parts(options, store, plan), DEFAULT_SEEDS, leave_out.NAME
    if options.grid is None:
        if not plan.cells:
            raise ValueError(
                f"nothing is planned in {store.out} yet: say what to vary, --grid esteps,eta_p"
            )
        return [known.cell for known in plan.cells], (), None
    asked = grid.parse_grid(options.grid, plan.preset)
    if options.seeds is not None and asked.seeds:
        raise ValueError("the seeds are given by both --seeds and --grid seed=...")
    given = common.changes(replace(options, variant=None))
    both = [field for levels in asked.axes for field in levels[0] if field in given]
    if both:
        name = configs.SHORT.get(both[0], both[0])
        raise ValueError(f"{name} is both set and varied; give its values as --grid {name}=A,B")
    # Default levels depend on the preset, which may have changed since this grid was planned.
    cells = [known.cell for known in plan.cells if asked.text in known.grids]
    if not cells or plan.dropped:  # What was dropped is planned again.
        cells = grid.cells(plan.base, asked, {known.cell.key for known in plan.cells})
    note = grid.merged_cells_note(asked, cells)
    if note:
        print(note)
    return cells, asked.seeds or DEFAULT_SEEDS, asked.text


def _without_parts(options: AblationOptions, store: Store, plan: Plan) -> list[Cell]:
    """The full model and the variants that --ablate names; prints the full model."""
    best = options.ablate_from == "best"
    start = _best_cell(store, plan) if best else leave_out.starting_cell(plan, options.ablate_from)
    names = [name.strip() for name in str(options.ablate).split(",") if name.strip()]
    cells = leave_out.cells(plan.base, start.changes, names)
    print(f"full model: {start.text}")
    rest = [n for n in leave_out.LEFT_OUT if n not in {cell.variant for cell in cells}]
    if rest and not names:
        print(f"not a part of it: {', '.join(rest)}")
    return cells


def _chosen_keys(options: AblationOptions, plan: Plan, asked: set[str]) -> set[str]:
    """The keys of the cells in `asked` that --only and --skip leave."""
    cells = [known.cell for known in plan.cells if known.cell.key in asked]
    for choice in (*options.only, *options.skip):
        if not any(chosen(cell, choice) for cell in cells):
            some = "; ".join(cell.text for cell in cells[:6])
            raise ValueError(f"no cell is '{choice}'; there are: {some}")
    if options.only:
        cells = [c for c in cells if any(chosen(c, choice) for choice in options.only)]
    cells = [c for c in cells if not any(chosen(c, choice) for choice in options.skip)]
    if not cells:
        raise ValueError("--only and --skip leave no cell")
    return {cell.key for cell in cells}


# -- cells that are chosen by their results ------------------------------------------------------


def _front(
    plan: Plan, statuses: Mapping[str, Status], metric: str | None = None
) -> tuple[list[Cell], tuple[str, ...]]:
    """The best points of the plan's search by its objectives or `metric`, and these metrics."""
    from tune.suggest.points import best, read_points
    from tune.suggest.search import search_of

    search = search_of(plan)
    goals = replace(search, objectives=(metric,)) if metric else search
    return [p.cell for p in best(goals, read_points(goals, statuses))], goals.objectives


def _best_cell(store: Store, plan: Plan) -> Cell:
    """The best point of the folder's search, or the best cell of its grid."""
    if plan.search is None:
        from mpcc.use.load import best_cell  # torch: only when a choice is made

        cells = {known.cell.key: known.cell for known in plan.cells if not known.cell.variant}
        if not cells:
            raise PlanError(f"--ablate-from best: no grid is planned in {store.out} yet")
        return cells[best_cell(store.out, cells)]
    front, _ = _front(plan, store.statuses(plan.trials()))
    if not front:
        raise PlanError("--ablate-from best: no point of the search is complete yet")
    return front[0]


def _confirmed(options: AblationOptions, store: Store, plan: Plan) -> tuple[Plan, list[Trial]]:
    """The plan with fresh seeds for the best cell and its ties, and their trials; prints them."""
    count = None
    if options.seeds is not None:
        count = len(grid.parse_seeds(options.seeds))
        if count < 2 or "," in options.seeds:
            raise ValueError(
                f"--confirm takes --seeds N, 2 or more fresh ones, got {options.seeds}"
            )
    from mpcc.evaluation.metrics import METRICS, metric_name  # numpy: only when a choice is made

    metric = metric_name(options.confirm or "")
    if metric and metric not in METRICS:
        raise ValueError(configs.unknown("metric", metric, METRICS))
    if metric and not METRICS[metric].has_better_end:
        raise ValueError(f"--confirm {options.confirm}: neither more nor less of it is better")
    if not confirm.confirmed(plan):
        keys, by = _best_and_ties(store, plan, metric or None)
        plan = confirm.confirm(plan, keys, by, lambda k: store.trial_dir(k).exists(), count)
    fresh, judged = [], " and ".join(plan.confirm_by) or "a metric that the plan does not name"
    choice = f"best or tied by {judged}"
    if plan.search is not None:
        choice = f"best by {judged}, or the base settings"
    for best in confirm.confirmed(plan):
        seeds = ", ".join(map(str, best.confirm_seeds))
        print(f"{choice}: {best.cell.text}; fresh seeds {seeds}")
        fresh += trials(best.cell, best.confirm_seeds)
    return plan, fresh


def _best_and_ties(
    store: Store, plan: Plan, metric: str | None
) -> tuple[set[str], tuple[str, ...]]:
    """Keys of a search's best points, or of a grid's best cell and its ties by the test of the
    tables, and the metrics that ranked them."""
    statuses = store.statuses(plan.trials())
    confirm.check_ended(statuses.values())
    if plan.search is not None:
        front, objectives = _front(plan, statuses, metric)
        return {cell.key for cell in front}, objectives
    from analysis.records.load import load
    from analysis.tables.groups import groups
    from analysis.tables.ranking import rank

    metric = metric or confirm.DEFAULT_METRIC
    found = groups(load([store.out]))
    ranking = rank(found, metric, "welch")
    tied = ranking.best | ranking.tied if ranking.best else set()
    return {found[i].cell_key for i in tied}, (metric,)
