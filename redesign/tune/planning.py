"""The plan that the options of `tune/ablation.py` ask for, and the trials of one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpcc import config as configs
from mpcc.code_version import code_fingerprints
from mpcc.config import Config
from tune import options as common
from tune.command import UsageError, named, whole
from tune.options import DEFAULT_PRESET
from tune.plan import confirm, grid, leave_out, paper
from tune.plan.cells import Cell, Trial, chosen
from tune.plan.extend import extend
from tune.plan.plan import Plan, PlanError, new_plan
from tune.store.folder import Store

if TYPE_CHECKING:
    from tune.ablation import AblationOptions

DEFAULT_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Request:
    """What the command line asks for, and the plan that holds it."""

    plan: Plan
    cells: Sequence[Cell]
    seeds: tuple[int, ...] | None
    """None: all that the plan has for these cells."""


def planned(options: AblationOptions, store: Store, old: Plan | None) -> tuple[Plan, list[Trial]]:
    """The plan with what is asked for, and the trials of this command; `old` is the folder's."""
    preset = options.preset or (old.preset if old else None)
    preset = preset or (paper.BASE_PRESET if options.table else DEFAULT_PRESET)
    asks = options.grid or options.table or options.ablate is not None
    if options.confirm is not None and (old is None or asks):
        raise UsageError(
            "--confirm takes a folder whose grid has been run, without --grid, --table or --ablate"
        )
    start = paper.base(options.paper_scale) if options.table else configs.preset(preset)
    base = start.override(**common.changes(options))
    if options.continue_training:
        old = _extended(options, old)
    if old is not None:
        given = (options.grid, options.table, options.preset, options.variant, options.changes)
        longer = options.iterations is not None and not options.continue_training
        base = common.begun_base(options, store, old, base if any(given) or longer else None)
    request = _request(options, store, preset, base, old)
    if options.confirm is not None:
        return _confirmed(options, store, request.plan)
    plan = request.plan
    if options.accept_changed_code and old is not None:
        plan = replace(plan, code_files=code_fingerprints())
    wanted = {cell.key for cell in _chosen(options, plan, request.cells)}
    trials = [
        trial
        for trial in plan.trials()
        if trial.cell.key in wanted and (request.seeds is None or trial.seed in request.seeds)
    ]
    grid.check_count(len(trials))
    return plan, trials


def _extended(options: AblationOptions, old: Plan | None) -> Plan:
    """The folder's plan at more iterations."""
    if options.iterations is None or old is None:
        raise UsageError(
            "--continue-training takes a folder whose trials have run, and --iterations N"
        )
    return extend(old, configs.parse_value("iterations", options.iterations))


# -- what is asked for ---------------------------------------------------------------------------


def _request(
    options: AblationOptions, store: Store, preset: str, base: Config, old: Plan | None
) -> Request:
    """The cells and seeds by --grid, --table or --ablate; without these what is planned."""
    plan, seeds = old or new_plan(preset, base), None
    if options.seeds is not None and options.confirm is None:  # --confirm reads them itself.
        seeds = grid.parse_seeds(options.seeds)
    if options.table is not None:
        cells = _table_cells(options)
        seeds = seeds or tuple(range(paper.N_SEEDS[options.table]))
        return Request(plan.grow(cells, seeds, paper.grid_name(options.table)), cells, seeds)
    if options.ablate is not None:
        return _without_parts(options, store, plan, seeds or DEFAULT_SEEDS)
    if options.grid is not None:
        asked = grid.parse_grid(options.grid, preset)
        if seeds and asked.seeds:
            raise UsageError("the seeds are given by both --seeds and --grid seed=...")
        _check_not_set(options, asked)
        cells = grid.cells(base, asked)
        seeds = seeds or asked.seeds or DEFAULT_SEEDS
        grid.check_count(len(cells) * len(seeds))  # before a million keys are computed
        return Request(plan.grow(cells, seeds, asked.text), cells, seeds)
    if old is None:
        raise UsageError(
            f"nothing is planned in {store.out} yet: say what to vary, --grid esteps,eta_p"
        )
    for known in old.cells if seeds else ():
        plan = plan.grow([known.cell], seeds or (), known.grids[-1])
    return Request(plan, [known.cell for known in old.cells], seeds)


def _table_cells(options: AblationOptions) -> list[Cell]:
    """The table's cells, with what --set and --variant change in all of them."""
    changes = common.changes(options)
    return [
        Cell(
            cell.config.override(**changes),
            {name: value for name, value in cell.changes.items() if name not in changes},
        )
        for cell in paper.cells(str(options.table), options.paper_scale)
    ]


def _without_parts(
    options: AblationOptions, store: Store, plan: Plan, seeds: tuple[int, ...]
) -> Request:
    """The variants that --ablate names, with the full model first; prints what that is."""
    start = leave_out.starting_cell(options.ablate_from, plan, lambda: _best_cell(store, plan))
    names = [name.strip() for name in str(options.ablate).split(",") if name.strip()]
    made = leave_out.cells(names, plan.base, start.changes)
    rest = [n for n in leave_out.LEFT_OUT if n not in {name for name, _ in made}]
    print(f"full model: {start.text}")
    if rest and not names:
        print(f"not a part of it: {', '.join(rest)}")
    plan = leave_out.grow(plan, made, seeds, chosen=options.ablate_from == "best")
    return Request(plan, [cell for _, cell in made], seeds)


def _check_not_set(options: AblationOptions, asked: grid.Grid) -> None:
    """A field cannot be both a base setting that is given and an axis."""
    given = {configs.parse_assignment(text)[0] for text in options.changes}
    if options.iterations is not None:
        given.add("iterations")
    for axis in asked.axes:
        for field in axis.fields:
            if field in given:
                name = configs.SHORT.get(field, field)
                raise UsageError(
                    f"{name} is both set and varied; give its values as --grid {name}=A,B"
                )


def _chosen(options: AblationOptions, plan: Plan, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of this command, as --only and --skip leave them."""
    keys = {cell.key for cell in cells}
    found = [known.cell for known in plan.cells if known.cell.key in keys]
    for choice in (*options.only, *options.skip):
        if not any(chosen(cell, choice) for cell in found):
            some = "; ".join(cell.text for cell in found[:6])
            raise UsageError(f"no cell is '{choice}'; there are: {some}")
    if options.only:
        found = [c for c in found if any(chosen(c, choice) for choice in options.only)]
    found = [c for c in found if not any(chosen(c, choice) for choice in options.skip)]
    if not found:
        raise UsageError("--only and --skip leave no cell")
    return found


# -- what is chosen by its results ---------------------------------------------------------------


def _best_cell(store: Store, plan: Plan) -> Cell:
    """The best point of the folder's search, or the best cell of its grid."""
    from tune.suggest.points import best, read_points  # numpy: only where a choice is made
    from tune.suggest.search import search_of

    search, statuses = search_of(plan), store.statuses(plan.trials())
    if search is None:
        return leave_out.best_cell(plan, statuses)
    front = best(search, read_points(plan, search, statuses))
    if not front:
        raise PlanError("--ablate-from best: no point of the search is complete yet")
    return front[0].cell


def _confirmed(options: AblationOptions, store: Store, plan: Plan) -> tuple[Plan, list[Trial]]:
    """The plan with fresh seeds for the best cell and its ties, and those trials; prints which."""
    count = None
    if options.seeds is not None:
        count = named("--seeds", whole(2, 10_000))(options.seeds)
    if options.confirm:
        confirm.check_metric(options.confirm)
    if not confirm.confirmed(plan):
        keys, by = _best_and_ties(store, plan, options.confirm or None)
        plan = confirm.confirm(plan, keys, by, lambda k: store.trial_dir(k).exists(), count)
    for chosen_cell in confirm.confirmed(plan):
        seeds = ", ".join(map(str, chosen_cell.confirm_seeds))
        print(f"{confirm.choice_text(plan)}: {chosen_cell.cell.text}; fresh seeds {seeds}")
    fresh = {planned.cell.key: planned.confirm_seeds for planned in plan.cells}
    return plan, [t for t in plan.trials() if t.seed in fresh[t.cell.key]]


def _best_and_ties(
    store: Store, plan: Plan, metric: str | None
) -> tuple[set[str], tuple[str, ...]]:
    """Keys of a search's best points, or of a grid's best cell and its ties, and the metrics.

    Cells tie by the test of the tables.
    """
    from tune.suggest.points import best, read_points
    from tune.suggest.search import search_of

    statuses, search = store.statuses(plan.trials()), search_of(plan)
    confirm.check_ended(plan, statuses)
    if search is not None:
        goals = replace(search, objectives=(metric,)) if metric else search
        front = best(goals, read_points(plan, goals, statuses))
        return {point.cell.key for point in front}, goals.objectives
    from analysis.cells import groups
    from analysis.columns import column
    from analysis.load import load
    from analysis.ranking import rank

    metric = metric or confirm.DEFAULT_METRIC
    found = groups(load([store.out]))
    ranking = rank(found, metric, column(metric).better, "welch")
    tied = ranking.best | ranking.tied if ranking.best else set()
    return {found[i].cell_key for i in tied}, (metric,)
