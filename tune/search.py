"""`python tune/search.py`: search for good settings with Optuna; its trials run as a grid's do."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path[0:1] = [str(ROOT)]  # In place of this folder.

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `command.answer` handles them: the imports take a moment.

from mpcc.config import preset  # noqa: E402
from mpcc.evaluation.metrics import METRICS, column, metric_name  # noqa: E402
from mpcc.options import path  # noqa: E402
from mpcc.shell import guard_output, script, shown  # noqa: E402
from tune import command, preflight, report, run  # noqa: E402
from tune import options as common  # noqa: E402
from tune.command import number, option  # noqa: E402
from tune.display import log  # noqa: E402
from tune.options import DEFAULT_PRESET, Options  # noqa: E402
from tune.plan import grid, pruning  # noqa: E402
from tune.plan.plan import STUDY, Plan  # noqa: E402
from tune.plan.state import ENDED  # noqa: E402
from tune.store.folder import Store, open_store  # noqa: E402
from tune.store.remote import is_address  # noqa: E402
from tune.suggest import search as searches  # noqa: E402
from tune.suggest.points import Point, best, read_points  # noqa: E402
from tune.suggest.search import Search, search_of  # noqa: E402
from tune.suggest.space import parse_space  # noqa: E402

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
  python tune/search.py --objective mse,silhouette ...     two objectives: a Pareto front
  python tune/search.py --objective acc_majority ...       uses labels; every table says so
  python tune/ablation.py --out runs/search-digits --confirm --seeds 5   the best, on fresh seeds

One driver works on a search; more machines come through Ray (--address), also while it runs.

A space: NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step=N, NAME=A,B,C, or a TOML file of
these (tune/space.toml explains it). The points are the same on any number of cores, and after a
kill. Exit codes: 0 every trial is done or pruned; 2 a usage error; 3 not every one; 129, 130, 143
stopped by SIGHUP, SIGINT, SIGTERM (the same command resumes).
"""


_what = partial(option, "what to look for")


@dataclass(frozen=True)
class SearchOptions(Options):
    """The options of this command; those of a search have the names of `Search`'s fields."""

    space: list[str] | None = _what("the settings to vary; see below", "AXIS|FILE", nargs="+")
    objectives: str | None = _what(
        f"metrics to optimise, comma-separated (default {searches.DEFAULT_OBJECTIVE}, which "
        "needs no labels)",
        "NAMES",
        names=("--objective",),
    )
    n_points: int | None = _what(
        "total number of points (default 20)",
        "N",
        names=("--points",),
        type=number(int, 1, 10_000),
    )
    seeds: str | None = _what("seeds of each point; their mean counts (default 3)", "N|A,B,C")
    sampler: str | None = _what("tpe or random (default tpe)", "NAME", choices=searches.SAMPLERS)
    sampler_seed: int | None = _what(
        "random seed of the sampler (default 0)", "N", type=number(int, 0, 2**31 - 1)
    )
    startup: int | None = _what(
        "random points before TPE starts (default 10)", "N", type=number(int, 1, 10_000)
    )
    ahead: int | None = _what(
        "draw N points at a time; a point uses only results of points at least N before it "
        "(default 4)",
        "N",
        type=number(int, 1, 1_000),
    )
    prune: str | None = _what(
        "prune a trial that is worse than the median of earlier points (median), or than their "
        "best third at a third, a ninth ... of the iterations (halving); tends to prune slow "
        "starters (default: no pruning)",
        "NAME",
        choices=pruning.PRUNERS,
    )
    out: Path | None = option("where", "default runs/search-PRESET", "DIR", type=path)


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
    if store.restored:
        log(store.restored)
    old = store.read_plan()
    plan, search = _planned(options, store, old)
    if options.status:
        return _print_status(store, search, common.settings(options, store).uri)
    if options.sync:
        return run.deliver(common.settings(options, store), store, plan)
    from tune.suggest.source import SearchSource
    from tune.suggest.study import write_study

    if options.dry_run:
        return _print_dry_run(options, store, SearchSource(store, plan))
    more = len(search.points) < search.n_points
    plan = common.with_equal_code(options, store, plan, search.trials(), more=more)
    writer = ThreadPoolExecutor(max_workers=1)
    source = SearchSource(store, store.with_recorded_images(plan), writer)
    settings = common.settings(options, store)
    here = settings.local and not is_address(settings.data_dir)
    if here and any(p.state not in ENDED for p in source.points):
        common.use_inception_weights(options)
        searches.check_here(source.search, plan.base, settings.data_dir)
    code = run.run(options, received, run.Work(store, old, source, source.trials()))
    complete = source.complete()
    writer.shutdown(cancel_futures=True)
    print_points(source.search, source.points)
    try:
        write_study(store, source.search, source.ended())
    except OSError as error:
        print(f"{error}; nothing is lost: the same command writes it again")
    study = shlex.quote(f"sqlite:///{store.out / STUDY}")
    print(f"Study:   optuna-dashboard {study}   (pip install optuna-dashboard)")
    if not complete:
        print("Next:    the same command again goes on")
        return code or report.exit_code((), received.number, complete=False)
    out = shlex.quote(shown(store.out))
    confirm = f"{script('tune', 'ablation.py')} --out {out} --confirm --seeds 5"
    print(f"Next:    {confirm}")
    return code


# -- what is asked for ---------------------------------------------------------------------------


def _planned(options: SearchOptions, store: Store, old: Plan | None) -> tuple[Plan, Search]:
    """The plan that the options ask for, and its search; no new point is drawn yet."""
    name = options.preset or (old.preset if old else DEFAULT_PRESET)
    base = preset(name).override(**common.changes(options))
    given = any((options.preset, options.variant, options.changes, options.iterations))
    plan = common.begun(options, store, old, name, base, given=given)
    search = _search(options, store, plan)

    def trains() -> bool:
        more = len(search.points) < search.n_points
        return more or any(store.status(t).state not in ENDED for t in search.trials())

    common.check_code(options, store, plan, trains)
    return replace(plan, search=search.to_dict()), search


def _search(options: SearchOptions, store: Store, plan: Plan) -> Search:
    """The search that the command line asks for or resumes."""
    was = search_of(plan) if plan.search else None
    given: dict[str, Any] = {f.name: vars(options).get(f.name) for f in fields(Search)}
    if options.space is not None:
        given["space"] = parse_space(options.space, plan.base)
        for axis in given["space"].axes:
            if axis.field in common.changes(options):
                raise ValueError(
                    f"{axis.name} is both set and searched; leave it out of --set or --space"
                )
    elif was is None:
        raise ValueError(
            f"no search is planned in {store.out} yet: say what to vary, "
            "--space eta_p=1e-3..2e-2:log esteps=1..6"
        )
    if options.objectives is not None:
        texts = [text.strip() for text in options.objectives.split(",") if text.strip()]
        names = [metric_name(text) for text in texts]
        given["objectives"] = searches.check_objectives(names)
    if options.seeds is not None:
        given["seeds"] = grid.parse_seeds(options.seeds)
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("sampler") == "random" and options.startup is not None:
        raise ValueError("--startup is of --sampler tpe: random draws every point by chance")
    if was is None:
        search = Search(**given)
        searches.check(search, plan.base)
    else:
        search = replace(was, **given)
        if search.n_points > was.n_points:
            print(f"{store.out} holds a search of {was.n_points} points; now {search.n_points}")
        searches.check_same(store.out, was, search)
    return search


# -- what is printed -----------------------------------------------------------------------------


def print_points(search: Search, points: Sequence[Point]) -> None:
    """Print each point's objectives or why it has none, whether labels are used, and the best."""
    front = best(search, points)
    for point in points:
        mark = "*" if point in front else " "
        outcome = objective_text(search, point) or point.reason
        outcome += ", collapsed" if point.collapsed else ""
        print(f"point {point.number:>3} {mark} {point.cell.key}  {outcome}  {point.cell.text}")
    goals = " and ".join(
        f"{'high' if METRICS[name].higher_is_better else 'low'} {name}"
        for name in search.objectives
    )
    judged = f"labels chose ({', '.join(search.by_labels)})" if search.by_labels else "no labels"
    print(f"Search for {goals} over {len(search.seeds)} seeds, {search.sampler}; {judged}")
    if search.prune:
        print(f"Pruning by {search.prune}: {pruning.BIAS[search.prune]}")
    for warning in searches.warnings(search):
        print(warning)
    word = "Best" if len(search.objectives) == 1 else "On the Pareto front"
    for point in front:
        print(f"{word}: {point.cell.text}: {objective_text(search, point)}")


def objective_text(search: Search, point: Point) -> str:
    """`MSE 0.0972 ± 0.0031`: mean and standard deviation over the seeds (ddof 1)."""
    parts = []
    for name, value, seeds in zip(search.objectives, point.values, point.seeds, strict=False):
        std = statistics.stdev(seeds) if len(seeds) > 1 else None
        parts.append(column(name).reading(value, std))
    return ", ".join(parts)


def _print_status(store: Store, search: Search, uri: str) -> int:
    """Print every point, and how many have ended; return the exit code of a run in this state."""
    owner, statuses = report.current(store, search.trials())
    points = read_points(search, statuses)
    print_points(search, points)
    n_ended = sum(point.state in ENDED for point in points)
    print(f"{n_ended} of {search.n_points} points have ended{report.driver_text(owner)}")
    report.print_damage(uri)
    return 3 if n_ended < search.n_points else report.exit_code(statuses.values())


def _print_dry_run(options: SearchOptions, store: Store, source: SearchSource) -> int:
    """Print the space and the known points, and the size and the time of what is left to run."""
    search, plan = source.search, source.plan
    settings = common.settings(options, store)
    preflight.check_fit(source.trials(), settings)
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {store.out}")
    print(f"space {search.space}")
    print_points(search, source.points)
    rest = search.n_points - len(source.points)
    if rest:
        print(f"{rest} more points, drawn from what these give, {search.ahead} at a time")
    n = search.n_points * len(search.seeds)
    print(f"{search.n_points} points of {len(search.seeds)} seeds, {n} trials")
    statuses = store.statuses(source.trials())
    todo = [trial for trial in source.trials() if statuses[trial.key].state not in ENDED]
    # A rough guess: the settings of further points are unknown. No trial has this seed yet.
    like = replace(source.trials()[0], seed=max(search.seeds) + 1)
    reached = {trial.key: statuses[trial.key].iteration for trial in todo}
    todo += [like] * rest * len(search.seeds)
    if todo:
        report.print_needs(options, settings, store, todo, reached)
    return 0


if __name__ == "__main__":
    guard_output()
    command.end(main())
