"""`python tune/search.py`: look for good settings with Optuna, on the same trials as a grid."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `command.answer` does better: loading the rest takes a moment.

from mpcc import config as configs  # noqa: E402
from mpcc.code_version import code_fingerprints  # noqa: E402
from mpcc.config import Config  # noqa: E402
from mpcc.inception import WEIGHTS_VARIABLE  # noqa: E402
from mpcc.metrics import METRICS  # noqa: E402
from tune import command, grid, ledger, lock, measurable, points, pruning  # noqa: E402
from tune.command import UsageError  # noqa: E402
from tune.ledger import Plan  # noqa: E402
from tune.node_data import is_address  # noqa: E402
from tune.points import Point, Points, Search  # noqa: E402
from tune.space import parse_space  # noqa: E402
from tune.supply import Supply, check_same  # noqa: E402

NAME = "search.py"
DEFAULT_PRESET = "digits"

EXAMPLES = """\
examples:
  python tune/search.py --space eta_p=1e-3..2e-2:log esteps=1..6 --points 20 --seeds 2
  python tune/search.py --space tune/space.toml --iterations 300     a space from a file
  python tune/search.py --space lambda_p=0,0.01,0.1 eta_p=1e-3..1e-2 --dry-run
  python tune/search.py                                    go on with what is planned
  python tune/search.py --points 40                        the same search, longer
  python tune/search.py --status                           its points, how far it is, its drivers
  python tune/search.py --objective mse,saturation ...     two objectives: a Pareto front
  python tune/search.py --objective acc_majority ...       by labels, which every table then says
  python tune/ablation.py --out runs/search-digits --confirm --seeds 5   the best, on fresh seeds

Several drivers: the same command again, in another terminal or on another machine that shares the
folder, works on the same search; a trial runs once, and what a dead driver had is taken over. With
--storage there is one driver, whose trials run on all of a cluster.

A space: NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step=N, NAME=A,B,C, or a TOML file of
these (tune/space.toml explains it). The points are the same on any number of cores, and after a
kill. Exit codes: 0 every trial is done or pruned; 2 a usage error; 3 not every one; 129, 130, 143
stopped by SIGHUP, SIGINT, SIGTERM (the same command goes on).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    return command.answer(NAME, _parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog=NAME,
        description="Search settings with Optuna; a point is a cell of a sweep with several seeds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to look for").add_argument
    add("--space", nargs="+", metavar="AXIS|FILE", help="the settings to vary; see below")
    add(
        "--objective",
        metavar="NAMES",
        help=f"metrics to make good, several by commas (default {points.DEFAULT_OBJECTIVE}, which "
        "needs no labels)",
    )
    add("--points", metavar="N", help="how many points in all (default 20)")
    add("--seeds", metavar="N|A,B,C", help="seeds of each point; their mean counts (default 3)")
    add("--sampler", metavar="NAME", help="tpe or random (default tpe)")
    add("--sampler-seed", metavar="N", help="another one is another search (default 0)")
    add("--startup", metavar="N", help="points by chance before the sampler starts (default 10)")
    add(
        "--ahead",
        metavar="N",
        help="points at a time: each is drawn from all that came N or more before it (default 4)",
    )
    add(
        "--prune",
        metavar="NAME",
        help="give up what is worse than the median of earlier points, or than their best third at "
        "a third, a ninth ... of the iterations (halving); biased against slow starters "
        "(default: nothing is given up)",
    )
    add = parser.add_argument_group("base settings").add_argument
    add(
        "--preset",
        "--dataset",
        dest="preset",
        metavar="NAME",
        help=f"settings to start from: {', '.join(configs.PRESETS)} (default {DEFAULT_PRESET})",
    )
    add("--variant", metavar="NAME", help="change them by name: " + ", ".join(configs.VARIANTS))
    add(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="FIELD=VALUE",
        help="change one of them; may be repeated",
    )
    add("--iterations", metavar="N", help="iterations of every trial (default: the preset's)")
    add("--retry", metavar="STATES", help="run again what is failed, diverged or failed,diverged")
    add(
        "--accept-changed-code",
        action="store_true",
        help="go on in a folder that was written by other code",
    )
    command.add_common(parser, out="default runs/search-PRESET")
    return parser


def _run(args: argparse.Namespace) -> int:
    preset = args.preset or DEFAULT_PRESET
    if preset not in configs.PRESETS:
        raise UsageError(configs.unknown("preset", preset, configs.PRESETS))
    out, old = command.folder(args.out or ROOT / "runs" / f"search-{preset}", args.storage)
    plan, search = _planned(args, old.preset if old and not args.preset else preset, out, old)
    if args.status:
        return _print_status(out, plan, search)
    supply = Supply(out, plan)
    if args.dry_run:
        return _print_dry_run(args, out, supply)
    _check_here(args, supply)
    code = command.run(args, out, old, supply.plan, supply.all_trials(), supply)
    whole = supply.complete()
    for line in headline(supply.search, supply.found):
        print(line)
    print(_next_steps(out, supply, whole))
    return code if code or whole else 3


def _check_here(args: argparse.Namespace, supply: Supply) -> None:
    """ValueError, in one line, where this machine lacks what the objectives are measured with."""
    data_dir = args.data_dir or os.environ.get("MPCC_DATA_DIR") or None
    if args.address != "local" or args.sync or supply.complete() or is_address(data_dir):
        return
    if args.inception_weights is not None:
        os.environ[WEIGHTS_VARIABLE] = str(args.inception_weights.resolve())
    measurable.check_here(supply.search, supply.plan.base, data_dir)


def _planned(
    args: argparse.Namespace, preset: str, out: Path, old: Plan | None
) -> tuple[Plan, Search]:
    """The plan with what is asked for; no point is drawn yet."""
    base = configs.preset(preset).override(**command.changes(args))
    if old is not None:
        if not (args.preset or args.variant or args.changes or args.iterations):
            base = old.base
        ledger.check_same_base(out, old, base)
        if not args.accept_changed_code and not args.status:
            ledger.check_same_code(out, old)
    was = points.search_of(old) if old else None
    search = _asked(args, base, was, out)
    plan = old or ledger.new_plan(preset, base)
    if args.accept_changed_code:
        plan = replace(plan, code_files=code_fingerprints())
    return replace(plan, search=search.to_dict()), search


def _asked(args: argparse.Namespace, base: Config, was: Search | None, out: Path) -> Search:
    """The search that the command line asks for, or goes on with."""
    given: dict[str, Any] = {}
    if args.space:
        given["space"] = parse_space(args.space, base)
        _check_not_set(args, given["space"])
    elif was is None:
        raise UsageError(
            f"no search is planned in {out} yet: say what to vary, "
            "--space eta_p=1e-3..2e-2:log esteps=1..6"
        )
    if args.objective is not None:
        names = [name.strip() for name in args.objective.split(",") if name.strip()]
        given["objectives"] = points.check_objectives(names)
    if args.seeds is not None:
        given["seeds"] = grid.parse_seeds(args.seeds)
    for option, name, low, high in (
        ("--points", "n_points", 1, 10_000),
        ("--sampler-seed", "sampler_seed", 0, 2**31 - 1),
        ("--startup", "startup", 1, 10_000),
        ("--ahead", "ahead", 1, 1_000),
    ):
        text = getattr(args, option[2:].replace("-", "_"))
        if text is not None:
            given[name] = command.whole(option, text, low, high)
    if args.sampler is not None and args.sampler not in points.SAMPLERS:
        raise UsageError(configs.unknown("sampler", args.sampler, points.SAMPLERS))
    given |= {name: getattr(args, name) for name in ("sampler", "prune") if getattr(args, name)}
    search = replace(was, **given) if was else Search(**given)
    pruning.check(search)
    if was is None:
        measurable.check(search, base)
    else:
        check_same(out, was, search)
    return search


def _check_not_set(args: argparse.Namespace, space: Any) -> None:
    given = command.changes(args)
    for axis in space.axes:
        if axis.field in given:
            name = configs.SHORT.get(axis.field, axis.field)
            raise UsageError(f"{name} is both set and searched; leave it out of --set or --space")


def _print_status(out: Path, plan: Plan, search: Search) -> int:
    """Point by point: its objectives, or the states of its seeds; the exit code as after a run."""
    found = Points(out).read(plan, search)
    front = {point.number for point in points.best(search, found)}
    live = lock.running_keys(out)
    for point in found:
        mark = "*" if point.number in front else " "
        print(f"{mark}{point.number:>4}  {_outcome(out, search, point, live)}  {point.cell.text}")
    ended = [point for point in found if point.state != points.OPEN]
    for line in headline(search, found):
        print(line)
    print(f"{len(ended)} of {search.n_points} points have ended{_drivers_text(out)}")
    trials = [trial for p in found for trial in ledger.trials(p.cell, search.seeds)]
    states = {ledger.status(out, trial, live).state for trial in trials}
    whole = len(ended) >= search.n_points and states <= set(ledger.FULFILLED)
    return 0 if whole else 3


def _drivers_text(out: Path) -> str:
    """`; drivers: process 12 on a, process 14 on b`, empty where nobody works on it."""
    owners = [o for o in (*lock.drivers(out).values(), lock.lock_owner(out)) if o]
    names = dict.fromkeys(f"process {owner['pid']} on {owner['host']}" for owner in owners)
    return f"; driver{'s' if len(names) > 1 else ''}: {', '.join(names)}" if names else ""


def _next_steps(out: Path, supply: Supply, whole: bool) -> str:
    """What to type next."""
    from tune.shell import script, shown
    from tune.study_file import FILE

    if supply.problem:
        print(f"{supply.problem}; nothing is lost: the same command writes it again")
    folder = shown(out)
    print(f"Study:   optuna-dashboard sqlite:///{out / FILE}   (pip install optuna-dashboard)")
    if not whole:
        return "Next:    the same command again goes on"
    return f"Next:    {script('tune', 'ablation.py')} --out {folder} --confirm --seeds 5"


def _outcome(out: Path, search: Search, point: Point, live: Any) -> str:
    if point.state == points.COMPLETE:
        return objective_text(search, point)
    if point.state != points.OPEN:
        return point.reason
    trials = ledger.trials(point.cell, search.seeds)
    states = [ledger.status(out, trial, live) for trial in trials]
    return " ".join(f"seed {t.seed} {s.state}" for t, s in zip(trials, states, strict=True))


def objective_text(search: Search, point: Point) -> str:
    """`mse 0.0972 ± 0.0031`: the mean over seeds and half the width of its 95 % interval."""
    from tune.study_file import half_width

    parts = []
    for name, value, seeds in zip(search.objectives, point.values, point.seeds, strict=True):
        width = half_width(seeds)
        more = f" ± {width:.2g}" if len(seeds) > 1 else ""
        parts.append(f"{name} {value:.4g}{more}")
    return ", ".join(parts)


def headline(search: Search, found: Sequence[Point]) -> list[str]:
    """What was looked for, by whom it was judged, and the best so far."""
    goals = " and ".join(
        f"{'high' if METRICS[name].higher_is_better else 'low'} {name}"
        for name in search.objectives
    )
    judged = f"labels chose ({', '.join(search.by_labels)})" if search.by_labels else "no labels"
    lines = [f"Search for {goals} over {len(search.seeds)} seeds, {search.sampler}; {judged}"]
    if search.prune:
        lines.append(f"Pruning by {search.prune}: {pruning.BIAS[search.prune]}")
    lines += measurable.warnings(search)
    front = points.best(search, found)
    word = "Best" if len(search.objectives) == 1 else "On the Pareto front"
    lines += [f"{word}: {p.cell.text}: {objective_text(search, p)}" for p in front]
    return lines


def _print_dry_run(args: argparse.Namespace, out: Path, supply: Supply) -> int:
    """The space, the points that are known, and how large it gets."""
    search = supply.search
    plan = supply.plan
    command.check_dry_run(args, out, supply.all_trials()[:1])
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {out}")
    print(f"space {search.space.text}")
    for line in headline(search, supply.found):
        print(line)
    for point in supply.found:
        print(f"point {point.number:>3}  {point.cell.key}  {point.state:<8}  {point.cell.text}")
    rest = search.n_points - len(supply.found)
    if rest:
        print(f"{rest} more points, drawn from what these give, {search.ahead} at a time")
    n = search.n_points * len(search.seeds)
    like = supply.all_trials()[:1]  # The others differ in what they vary: a rough guess.
    print(f"{search.n_points} points of {len(search.seeds)} seeds, {n} trials")
    print(command.size_of(args, out, like * n))
    print(command.time_text(args, out, like * n, {}))
    return 0


if __name__ == "__main__":
    command.end(main())
