"""`python tune/search.py`: look for good settings with Optuna, on the same trials as a grid."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `command.answer` does better: loading the rest takes a moment.

from mpcc.shell import script, shown  # noqa: E402

from mpcc import config as configs  # noqa: E402
from mpcc.code_version import code_fingerprints  # noqa: E402
from mpcc.config import Config  # noqa: E402
from mpcc.metrics import METRICS  # noqa: E402
from mpcc.options import path  # noqa: E402
from tune import command, report, run  # noqa: E402
from tune import options as common  # noqa: E402
from tune.command import UsageError, option, whole  # noqa: E402
from tune.engine.settings import LOCAL  # noqa: E402
from tune.options import DEFAULT_PRESET, Options  # noqa: E402
from tune.plan import grid, pruning  # noqa: E402
from tune.plan.cells import trials  # noqa: E402
from tune.plan.plan import Plan, new_plan  # noqa: E402
from tune.plan.state import Status  # noqa: E402
from tune.store.folder import Store  # noqa: E402
from tune.store.opening import open_store  # noqa: E402
from tune.store.remote import is_address  # noqa: E402
from tune.suggest import search as searches  # noqa: E402
from tune.suggest.points import Point, PointState, best, half_width, read_points  # noqa: E402
from tune.suggest.search import Search, search_of  # noqa: E402
from tune.suggest.space import parse_space, short  # noqa: E402

if TYPE_CHECKING:
    from tune.suggest.source import SearchSource

EXAMPLES = """\
examples:
  python tune/search.py --space eta_p=1e-3..2e-2:log esteps=1..6 --points 20 --seeds 2
  python tune/search.py --space tune/space.toml --iterations 300     a space from a file
  python tune/search.py --space lambda_p=0,0.01,0.1 eta_p=1e-3..1e-2 --dry-run
  python tune/search.py                                    go on with what is planned
  python tune/search.py --points 40                        the same search, longer
  python tune/search.py --status                           its points, how far it is, its driver
  python tune/search.py --objective mse,saturation ...     two objectives: a Pareto front
  python tune/search.py --objective acc_majority ...       by labels, which every table then says
  python tune/ablation.py --out runs/search-digits --confirm --seeds 5   the best, on fresh seeds

One driver works on a search; more machines come through Ray (--address), also while it runs.

A space: NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step=N, NAME=A,B,C, or a TOML file of
these (tune/space.toml explains it). The points are the same on any number of cores, and after a
kill. Exit codes: 0 every trial is done or pruned; 2 a usage error; 3 not every one; 129, 130, 143
stopped by SIGHUP, SIGINT, SIGTERM (the same command goes on).
"""


_what = partial(option, "what to look for")


@dataclass(frozen=True)
class SearchOptions(Options):
    """The options of this command."""

    space: list[str] | None = _what("the settings to vary; see below", "AXIS|FILE", nargs="+")
    objective: str | None = _what(
        f"metrics to make good, several by commas (default {searches.DEFAULT_OBJECTIVE}, which "
        "needs no labels)",
        "NAMES",
    )
    points: int | None = _what("how many points in all (default 20)", "N", read=whole(1, 10_000))
    seeds: str | None = _what("seeds of each point; their mean counts (default 3)", "N|A,B,C")
    sampler: str | None = _what("tpe or random (default tpe)", "NAME")
    sampler_seed: int | None = _what(
        "another one is another search (default 0)", "N", read=whole(0, 2**31 - 1)
    )
    startup: int | None = _what(
        "points by chance before the sampler starts (default 10)", "N", read=whole(1, 10_000)
    )
    ahead: int | None = _what(
        "points at a time: each is drawn from all that came N or more before it (default 4)",
        "N",
        read=whole(1, 1_000),
    )
    prune: str | None = _what(
        "give up what is worse than the median of earlier points, or than their best third at "
        "a third, a ninth ... of the iterations (halving); biased against slow starters "
        "(default: nothing is given up)",
        "NAME",
    )
    out: Path | None = option("where", "default runs/search-PRESET", "DIR", read=path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this command line and return the exit code."""
    return command.answer("search.py", lambda received: _run(parse(argv), received))


def parse(argv: Sequence[str] | None = None) -> SearchOptions:
    """The options on this command line."""
    about = "Search settings with Optuna; a point is a cell of a sweep with several seeds."
    return command.parse(argv, SearchOptions, "search.py", about, EXAMPLES)


def _run(options: SearchOptions, received: signals.Signals) -> int:
    name = f"search-{options.preset or DEFAULT_PRESET}"
    store = open_store(options.out or ROOT / "runs" / name, options.storage)
    if options.release:
        return report.release(store)
    old = store.read_plan()
    plan, search = _planned(options, store, old)
    if options.status:
        return _print_status(store, plan, search)
    from tune.suggest.source import SearchSource
    from tune.suggest.study import FILE, StudyWriter

    if options.dry_run:
        return _print_dry_run(options, store, SearchSource(store, plan))
    study = StudyWriter(store)
    source = SearchSource(store, store.with_recorded_images(plan), study)
    _check_here(options, source)
    code = run.run(options, received, run.Work(store, old, source, source.trials()))
    complete = source.complete()
    problem = study.close()
    for line in headline(source.search, source.points):
        print(line)
    if problem:
        print(f"{problem}; nothing is lost: the same command writes it again")
    print(
        f"Study:   optuna-dashboard sqlite:///{store.out / FILE}   (pip install optuna-dashboard)"
    )
    if not complete:
        print("Next:    the same command again goes on")
        return code or 3
    confirm = f"{script('tune', 'ablation.py')} --out {shown(store.out)} --confirm --seeds 5"
    print(f"Next:    {confirm}")
    return code


# -- what is asked for ---------------------------------------------------------------------------


def _planned(options: SearchOptions, store: Store, old: Plan | None) -> tuple[Plan, Search]:
    """The plan with what is asked for; no point is drawn yet."""
    preset = options.preset or (old.preset if old else DEFAULT_PRESET)
    base = configs.preset(preset).override(**common.changes(options))
    if old is not None:
        given = options.preset or options.variant or options.changes or options.iterations
        base = common.begun_base(options, store, old, base if given else None)
    was = search_of(old) if old else None
    search = _search(options, base, was, store)
    plan = old or new_plan(preset, base)
    if options.accept_changed_code:
        plan = replace(plan, code_files=code_fingerprints())
    return replace(plan, search=search.to_dict()), search


def _search(options: SearchOptions, base: Config, was: Search | None, store: Store) -> Search:
    """The search that the command line asks for, or goes on with."""
    given: dict[str, Any] = {
        "n_points": options.points,
        "sampler": options.sampler,
        "sampler_seed": options.sampler_seed,
        "startup": options.startup,
        "ahead": options.ahead,
        "prune": options.prune,
    }
    if options.space:
        space = given["space"] = parse_space(options.space, base)
        for axis in space.axes:
            if axis.field in common.changes(options):
                name = short(axis.field)
                raise UsageError(
                    f"{name} is both set and searched; leave it out of --set or --space"
                )
    elif was is None:
        raise UsageError(
            f"no search is planned in {store.out} yet: say what to vary, "
            "--space eta_p=1e-3..2e-2:log esteps=1..6"
        )
    if options.objective is not None:
        names = [name.strip() for name in options.objective.split(",") if name.strip()]
        given["objectives"] = searches.check_objectives(names)
    if options.seeds is not None:
        given["seeds"] = grid.parse_seeds(options.seeds)
    if options.sampler is not None and options.sampler not in searches.SAMPLERS:
        raise UsageError(configs.unknown("sampler", options.sampler, searches.SAMPLERS))
    given = {name: value for name, value in given.items() if value is not None}
    search = replace(was, **given) if was else Search(**given)
    if was is None:
        searches.check(search, base)
    else:
        searches.check_same(store.out, was, search)
    return search


def _check_here(options: SearchOptions, source: SearchSource) -> None:
    """ValueError, in one line, where this machine lacks what the objectives are measured with."""
    data_dir = options.data_dir or os.environ.get("MPCC_DATA_DIR") or None
    here = options.address == LOCAL and not is_address(data_dir)
    runs = any(point.state == PointState.OPEN for point in source.points)
    if here and runs and not options.sync:
        common.use_inception_weights(options)
        searches.check_here(source.search, source.plan.base, data_dir)


# -- what is printed -----------------------------------------------------------------------------


def headline(search: Search, points: Sequence[Point]) -> list[str]:
    """What was looked for, by whom it was judged, and the best so far."""
    goals = " and ".join(
        f"{'high' if METRICS[name].higher_is_better else 'low'} {name}"
        for name in search.objectives
    )
    judged = f"labels chose ({', '.join(search.by_labels)})" if search.by_labels else "no labels"
    lines = [f"Search for {goals} over {len(search.seeds)} seeds, {search.sampler}; {judged}"]
    if search.prune:
        lines.append(f"Pruning by {search.prune}: {pruning.BIAS[search.prune]}")
    lines += searches.warnings(search)
    word = "Best" if len(search.objectives) == 1 else "On the Pareto front"
    front = best(search, points)
    return lines + [f"{word}: {p.cell.text}: {objective_text(search, p)}" for p in front]


def objective_text(search: Search, point: Point) -> str:
    """`mse 0.0972 ± 0.0031`: the mean over seeds and half the width of its 95 % interval."""
    parts = []
    for name, value, seeds in zip(search.objectives, point.values, point.seeds, strict=True):
        width = f" ± {half_width(seeds):.2g}" if len(seeds) > 1 else ""
        parts.append(f"{name} {value:.4g}{width}")
    return ", ".join(parts)


def _print_status(store: Store, plan: Plan, search: Search) -> int:
    """Point by point: its objectives, or the states of its seeds; the exit code as after a run."""
    cells = {planned.cell.key: planned.cell for planned in plan.cells}
    every = [trial for key in search.points for trial in trials(cells[key], search.seeds)]
    owner, statuses = report.current(store, every)
    points = read_points(plan, search, statuses)
    front = {point.number for point in best(search, points)}
    for point in points:
        mark = "*" if point.number in front else " "
        print(f"{mark}{point.number:>4}  {_outcome(search, point, statuses)}  {point.cell.text}")
    n_ended = sum(point.state != PointState.OPEN for point in points)
    for line in headline(search, points):
        print(line)
    print(f"{n_ended} of {search.n_points} points have ended{report.driver_text(owner)}")
    return 3 if n_ended < search.n_points else report.exit_code(statuses.values())


def _outcome(search: Search, point: Point, statuses: Mapping[str, Status]) -> str:
    if point.state == PointState.COMPLETE:
        return objective_text(search, point)
    if point.state != PointState.OPEN:
        return point.reason
    seeds = trials(point.cell, search.seeds)
    return " ".join(f"seed {trial.seed} {statuses[trial.key].state}" for trial in seeds)


def _print_dry_run(options: SearchOptions, store: Store, source: SearchSource) -> int:
    """The space, the points that are known, how large it gets and how long it takes."""
    search, plan = source.search, source.plan
    settings = common.settings(options, store)
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {store.out}")
    print(f"space {search.space.text}")
    for line in headline(search, source.points):
        print(line)
    for point in source.points:
        print(f"point {point.number:>3}  {point.cell.key}  {point.state:<8}  {point.cell.text}")
    rest = search.n_points - len(source.points)
    if rest:
        print(f"{rest} more points, drawn from what these give, {search.ahead} at a time")
    n = search.n_points * len(search.seeds)
    print(f"{search.n_points} points of {len(search.seeds)} seeds, {n} trials")
    like = source.trials()[:1]  # The others differ in what they vary: a rough guess.
    report.print_needs(options, settings, store, like * n, {})
    return 0


if __name__ == "__main__":
    command.end(main())
