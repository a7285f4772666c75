"""`python tune/ablation.py`: plan an ablation, run it, go on with it, show how far it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `command.answer` does better: loading the rest takes a moment.

from mpcc import config as configs  # noqa: E402
from mpcc.code_version import code_fingerprints  # noqa: E402
from mpcc.config import Config  # noqa: E402
from tune import command, continuation, grid, leave_out, ledger, paper  # noqa: E402
from tune.command import UsageError  # noqa: E402
from tune.grid import Cell  # noqa: E402
from tune.ledger import Plan, Trial  # noqa: E402

DEFAULT_PRESET = "digits"
DEFAULT_SEEDS = (0, 1, 2)

EXAMPLES = """\
examples:
  python tune/ablation.py --grid esteps,eta_p              Table 1's five rows, three seeds each
  python tune/ablation.py --grid esteps=1,2,4 eta_p=1e-3,1e-2 --seeds 5
  python tune/ablation.py --grid lambda_p --set n_encoder_steps=2 --out runs/lambda
  python tune/ablation.py --ablate --out runs/parts         the model without one part at a time
  python tune/ablation.py --ablate no-floor,not-shared --ablate-from best --out runs/search-digits
  python tune/ablation.py --table 2 --scale laptop --data-dir DIR
  python tune/ablation.py --table 4 --only dataset=mnist --data-dir DIR
  python tune/ablation.py --grid esteps,eta_p --dry-run    what would run, and how large it gets
  python tune/ablation.py --grid esteps,eta_p --pilot      and how long it would take
  python tune/ablation.py                                  go on with what is planned
  python tune/ablation.py --status                         how far it is
  python tune/ablation.py --confirm                        the best cell and its ties, fresh seeds
  python tune/ablation.py --retry failed,diverged          run these again
  python tune/ablation.py --iterations 3000 --continue-training     all of them go on to more

Running a command again runs only what is missing; a larger grid or more seeds run only what is new.
Exit codes: 0 every trial is done, or every chosen one with --only, --skip or --seeds; 2 a usage
error; 3 not every trial is done; 129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM (with
checkpoints: the same command goes on).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    return command.answer("ablation.py", _parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="ablation.py",
        description="Run a grid of trials, each cell with several seeds, on all cores or GPUs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to run").add_argument
    add(
        "--grid",
        nargs="+",
        metavar="AXIS",
        help="axes to vary: esteps,eta_p is Table 1; lambda_p, batch_size and seed have levels of "
        "their own; any other field as name=a,b,c. Without --grid: what the folder has planned",
    )
    add(
        "--preset",
        "--dataset",
        dest="preset",
        metavar="NAME",
        help=f"settings to start from: {', '.join(configs.PRESETS)} (default {DEFAULT_PRESET})",
    )
    add(
        "--table",
        metavar="N",
        help=f"all cells and seeds of a table of the paper instead: {', '.join(paper.TABLES)}",
    )
    add(
        "--scale",
        metavar="NAME",
        help="of --table: " + "; ".join(f"{n}, {s.meaning}" for n, s in paper.SCALES.items()),
    )
    add(
        "--variant",
        metavar="NAME",
        help=f"change the base settings by name: {', '.join(configs.VARIANTS)}",
    )
    add(
        "--ablate",
        nargs="?",
        const="",
        metavar="NAMES",
        help="instead of a grid: the full model, and without one thing at a time: "
        + ", ".join(leave_out.LEFT_OUT)
        + " (default: all that apply); any --variant can be named",
    )
    add(
        "--ablate-from",
        metavar="CELL",
        help="the full model is this cell of the folder, or its best one: best (chosen by the "
        "search's objective, else without labels)",
    )
    add("--seeds", metavar="N|A,B,C", help="number of seeds, or the seeds themselves (default 3)")
    add(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="FIELD=VALUE",
        help="change one base setting; may be repeated",
    )
    add("--iterations", metavar="N", help="iterations of every trial (default: the preset's)")
    add(
        "--continue-training",
        action="store_true",
        help="with a larger --iterations: go on from the last checkpoints of a folder's trials",
    )
    add("--only", action="append", default=[], metavar="CELL", help="only cells like esteps=4")
    add("--skip", action="append", default=[], metavar="CELL", help="all cells but these")
    add(
        "--confirm",
        nargs="?",
        const="",
        metavar="METRIC",
        help="run the best cell and its ties again on as many fresh seeds, or --seeds N of them "
        "(default: by acc_majority); of a search the best point and the base settings (by its "
        "objectives)",
    )
    add("--retry", metavar="STATES", help="run again what is failed, diverged or failed,diverged")
    add(
        "--accept-changed-code",
        action="store_true",
        help="go on in a folder that was written by other code",
    )

    command.add_common(parser, out="default runs/PRESET, or runs/paper-SCALE")
    return parser


def _run(args: argparse.Namespace) -> int:
    preset, out, old = _folder(args)
    plan, trials = _planned(args, preset, out, old)
    if args.status:
        return command.print_status(out, trials)
    if args.dry_run:
        return command.print_dry_run(args, out, plan, trials)
    return command.run(args, out, old, plan, trials)


def _folder(args: argparse.Namespace) -> tuple[str, Path, Plan | None]:
    """The preset, the output folder and what it has planned so far."""
    if args.ablate is not None and (args.grid or args.table):
        raise UsageError("--ablate is a plan of its own: leave out --grid and --table")
    if args.ablate_from is not None and args.ablate is None:
        raise UsageError("--ablate-from is of --ablate")
    if args.table is not None:
        _check_table(args)
    elif args.scale is not None:
        raise UsageError("--scale is of --table; name one: " + ", ".join(paper.TABLES))
    preset = args.preset or (paper.BASE_PRESET if args.table else DEFAULT_PRESET)
    if preset not in configs.PRESETS:
        raise UsageError(configs.unknown("preset", preset, configs.PRESETS))
    name = f"paper-{args.scale}" if args.table else preset
    out, old = command.folder(args.out or ROOT / "runs" / name, args.storage)
    if old is not None and args.preset is None:
        preset = old.preset
    return preset, out, old


def _planned(
    args: argparse.Namespace, preset: str, out: Path, old: Plan | None
) -> tuple[Plan, list[Trial]]:
    """The plan with what is asked for, and the trials of this command."""
    if args.confirm is not None and (
        old is None or args.grid or args.table or args.ablate is not None
    ):
        raise UsageError(
            "--confirm takes a folder whose grid has been run, without --grid, --table or --ablate"
        )
    base = _base(args, preset)
    if args.continue_training:
        old = _lengthened(args, out, old)
    if old is not None:
        if not (args.grid or args.table or args.preset or args.variant or args.changes) and (
            args.iterations is None or args.continue_training
        ):
            base = old.base
        ledger.check_same_base(out, old, base)
        if not args.accept_changed_code and not args.status:
            ledger.check_same_code(out, old)
    given = args.seeds is not None and args.confirm is None  # --confirm reads them itself.
    seeds = grid.parse_seeds(args.seeds) if given else None
    plan = old or ledger.new_plan(preset, base)
    if args.table is not None:
        cells = _table_cells(args)
        seeds = seeds or tuple(range(paper.N_SEEDS[args.table]))
        plan = plan.grow(cells, seeds, paper.grid_name(args.table))
    elif args.ablate is not None:
        named = _left_out(args, plan, out)
        seeds = seeds or DEFAULT_SEEDS
        plan = leave_out.grow(plan, named, seeds, chosen=args.ablate_from == "best")
        cells = [cell for _, cell in named]
    elif args.grid is not None:
        asked = grid.parse_grid(args.grid, preset)
        if seeds and asked.seeds:
            raise UsageError("the seeds are given by both --seeds and --grid seed=...")
        _check_not_set(args, asked)
        cells = grid.cells(base, asked)
        seeds = seeds or asked.seeds or DEFAULT_SEEDS
        grid.check_count(len(cells) * len(seeds))  # before a million keys are computed
        plan = plan.grow(cells, seeds, asked.text)
    elif old is None:
        raise UsageError(f"nothing is planned in {out} yet: say what to vary, --grid esteps,eta_p")
    else:
        cells = [planned.cell for planned in old.cells]
        for planned in old.cells if seeds else ():
            plan = plan.grow([planned.cell], seeds or (), planned.grids[-1])
    if args.confirm is not None:
        return _confirmed(args, out, plan)
    if args.accept_changed_code and old is not None:
        plan = replace(plan, code_files=code_fingerprints())
    chosen = _chosen(args, plan, cells)
    wanted = {cell.key for cell in chosen}
    trials = [
        trial
        for trial in plan.trials()
        if trial.cell.key in wanted and (seeds is None or trial.seed in seeds)
    ]
    grid.check_count(len(trials))
    return plan, trials


def _lengthened(args: argparse.Namespace, out: Path, old: Plan | None) -> Plan:
    """The folder's plan at more iterations."""
    if args.iterations is None or old is None:
        raise UsageError(
            "--continue-training takes a folder whose trials have run, and --iterations N"
        )
    return continuation.lengthen(old, configs.parse_value("iterations", args.iterations))


def _left_out(args: argparse.Namespace, plan: Plan, out: Path) -> list[tuple[str, Cell]]:
    """The variants that --ablate names, with the full model first."""
    start = leave_out.starting_cell(args.ablate_from, plan, out)
    names = [name.strip() for name in args.ablate.split(",") if name.strip()]
    made = leave_out.cells(names, plan.base, start.changes)
    rest = [n for n in leave_out.LEFT_OUT if n not in {name for name, _ in made}]
    print(f"full model: {start.text}")
    if rest and not names:
        print(f"not a part of it: {', '.join(rest)}")
    return made


def _confirmed(args: argparse.Namespace, out: Path, plan: Plan) -> tuple[Plan, list[Trial]]:
    """The plan with fresh seeds for the best cell and its ties, and those trials."""
    from tune.confirm import confirm

    count = command.whole("--seeds", args.seeds, 2, 10_000)
    plan, cells, by = confirm(plan, out, args.confirm or None, count)
    for planned in cells:
        seeds = ", ".join(map(str, planned.confirm_seeds))
        print(f"{by}: {planned.cell.text}; fresh seeds {seeds}")
    fresh = {planned.cell.key: planned.confirm_seeds for planned in cells}
    return plan, [t for t in plan.trials() if t.seed in fresh.get(t.cell.key, ())]


def _base(args: argparse.Namespace, preset: str) -> Config:
    """The preset, or a table's base, with what --variant, --set and --iterations change."""
    start = paper.base(args.scale) if args.table else configs.preset(preset)
    return start.override(**command.changes(args))


def _check_table(args: argparse.Namespace) -> None:
    """--table says what to vary and from where; ValueError names what else was given."""
    if args.table not in paper.TABLES:
        raise UsageError(configs.unknown("table", args.table, paper.TABLES))
    for option in ("grid", "preset"):
        if getattr(args, option) is not None:
            raise UsageError(f"--table and --{option} exclude each other")
    args.scale = args.scale or "full"
    if args.scale not in paper.SCALES:
        raise UsageError(configs.unknown("scale", args.scale, paper.SCALES))


def _table_cells(args: argparse.Namespace) -> list[Cell]:
    """The table's cells, with what --set and --variant change in all of them."""
    changes = command.changes(args)
    return [
        Cell(
            cell.config.override(**changes),
            {name: value for name, value in cell.changes.items() if name not in changes},
        )
        for cell in paper.cells(args.table, args.scale)
    ]


def _check_not_set(args: argparse.Namespace, asked: grid.Grid) -> None:
    """A field cannot be both a base setting that is given and an axis."""
    given = {configs.parse_assignment(text)[0] for text in args.changes}
    if args.iterations is not None:
        given.add("iterations")
    for axis in asked.axes:
        for field in axis.fields:
            if field in given:
                name = configs.SHORT.get(field, field)
                raise UsageError(
                    f"{name} is both set and varied; give its values as --grid {name}=A,B"
                )


def _chosen(args: argparse.Namespace, plan: Plan, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of this command, as --only and --skip leave them."""
    keys = {cell.key for cell in cells}
    merged = [planned.cell for planned in plan.cells if planned.cell.key in keys]
    for choice in (*args.only, *args.skip):
        if not any(grid.chosen(cell, choice) for cell in merged):
            some = "; ".join(cell.text for cell in merged[:6])
            raise UsageError(f"no cell is '{choice}'; there are: {some}")
    if args.only:
        merged = [c for c in merged if any(grid.chosen(c, choice) for choice in args.only)]
    merged = [c for c in merged if not any(grid.chosen(c, choice) for choice in args.skip)]
    if not merged:
        raise UsageError("--only and --skip leave no cell")
    return merged


if __name__ == "__main__":
    command.end(main())
