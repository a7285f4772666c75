"""`python tune/ablation.py`: plan an ablation, run it, go on with it, show how far it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mpcc import config as configs  # noqa: E402
from mpcc import inception  # noqa: E402
from mpcc.code_version import code_fingerprints  # noqa: E402
from mpcc.config import Config  # noqa: E402
from tune import grid, ledger, lock, paper  # noqa: E402
from tune.grid import Cell, checkpoint_bytes  # noqa: E402
from tune.ledger import Plan, Trial  # noqa: E402

DEFAULT_PRESET = "digits"
DEFAULT_SEEDS = (0, 1, 2)
RETRIED = (ledger.FAILED, ledger.DIVERGED)

EXAMPLES = """\
examples:
  python tune/ablation.py --grid esteps,eta_p              Table 1's five rows, three seeds each
  python tune/ablation.py --grid esteps=1,2,4 eta_p=1e-3,1e-2 --seeds 5
  python tune/ablation.py --grid lambda_p --set n_encoder_steps=2 --out runs/lambda
  python tune/ablation.py --table 2 --scale laptop --data-dir DIR
  python tune/ablation.py --table 4 --only dataset=mnist --data-dir DIR
  python tune/ablation.py --grid esteps,eta_p --dry-run    what would run, and how large it gets
  python tune/ablation.py                                  go on with what is planned
  python tune/ablation.py --status                         how far it is
  python tune/ablation.py --confirm                        the best cell and its ties, fresh seeds
  python tune/ablation.py --retry failed,diverged          run these again

Running a command again runs only what is missing; a larger grid or more seeds run only what is new.
Exit codes: 0 every trial is done; 2 a usage error; 3 not every trial is done; 130, 143 stopped by
SIGINT, SIGTERM (with checkpoints: the same command goes on).
"""


class UsageError(ValueError):
    """What was asked for makes no sense; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(_parser().parse_args(words))
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"ablation.py: {text}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
    add("--only", action="append", default=[], metavar="CELL", help="only cells like esteps=4")
    add("--skip", action="append", default=[], metavar="CELL", help="all cells but these")
    add(
        "--confirm",
        nargs="?",
        const="acc_majority",
        metavar="METRIC",
        help="run the best cell and its ties again on fresh seeds (default: by acc_majority)",
    )
    add("--retry", metavar="STATES", help="run again what is failed, diverged or failed,diverged")
    add(
        "--accept-changed-code",
        action="store_true",
        help="go on in a folder that was written by other code",
    )

    add = parser.add_argument_group("where").add_argument
    add("--out", type=Path, metavar="DIR", help="default runs/PRESET, or runs/paper-SCALE")
    add("--data-dir", type=Path, metavar="DIR", help="the data sets' files ($MPCC_DATA_DIR)")
    add("--download", action="store_true", help="get the data sets that are missing")
    add(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="weights of pytorch-fid's Inception, for IS, FID and KID ($MPCC_INCEPTION_WEIGHTS)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow (default: a SQLite file in the out folder)")
    add("--address", default="local", metavar="HOST:PORT", help="a Ray cluster, or auto")
    add("--cpus-per-trial", metavar="X", help="cores of a trial (default: its cpu_threads)")
    add(
        "--gpus-per-trial", metavar="X", help="GPU share of a trial (default 0.25 if there are any)"
    )
    add("--max-concurrent", metavar="N", help="at most so many trials at a time")
    add("--checkpoint-seconds", metavar="S", default="60", help="between checkpoints (default 60)")

    add = parser.add_argument_group("instead of running").add_argument
    add("--dry-run", action="store_true", help="print the cells, trials, keys and sizes, and stop")
    add("--status", action="store_true", help="print the state of every cell, and stop")
    add("--sync", action="store_true", help="deliver to MLflow what it lacks, and stop")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.dry_run + args.status + args.sync > 1:
        raise UsageError("--dry-run, --status and --sync exclude each other")
    preset, out, old = _folder(args)
    plan, trials = _planned(args, preset, out, old)
    if args.status:
        return _print_status(out, trials)
    if args.dry_run:
        return _print_dry_run(out, plan, trials)

    from tune import sweep, tracking

    settings = _settings(args, out, tracking)
    if args.sync:
        return _sync(settings, plan, tracking)
    if args.inception_weights is not None:
        inception.find_weights(args.inception_weights)
        os.environ[inception.WEIGHTS_VARIABLE] = str(args.inception_weights.resolve())
    retried = _retried(args, out, trials)
    now = sweep.statuses(out, trials)
    todo = [t for t in trials if t.key in retried or now[t.key].state not in ledger.run_dir.ENDED]
    if not todo and plan == old and tracking.in_step(out, plan, settings.uri):
        sweep.summary(settings, trials)
        return sweep.exit_code(out, trials)
    if args.download:
        from mpcc.data_download import download

        for dataset in sorted({trial.config.dataset for trial in todo}):
            download(dataset, settings.data_dir)
    sweep.preflight(todo, settings)
    held = lock.Lock(out)
    try:
        ledger.write_plan(out, plan)
        for trial in trials:
            if trial.key in retried:
                ledger.forget(out, trial, retried[trial.key])
        code = sweep.run(plan, trials, settings, held)
    finally:
        held.release()
    sweep.summary(settings, trials)
    return code


def _folder(args: argparse.Namespace) -> tuple[str, Path, Plan | None]:
    """The preset, the output folder and what it has planned so far."""
    if args.table is not None:
        _check_table(args)
    elif args.scale is not None:
        raise UsageError("--scale is of --table; name one: " + ", ".join(paper.TABLES))
    preset = args.preset or (paper.BASE_PRESET if args.table else DEFAULT_PRESET)
    if preset not in configs.PRESETS:
        raise UsageError(configs.unknown("preset", preset, configs.PRESETS))
    name = f"paper-{args.scale}" if args.table else preset
    out = (args.out or ROOT / "runs" / name).expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose another --out")
    old = ledger.read_plan(out)
    if old is None and out.is_dir() and any(p.name != lock.LOCK for p in out.iterdir()):
        raise UsageError(
            f"--out {out} holds other files and no {ledger.PLAN}; choose another --out"
        )
    if old is not None and args.preset is None:
        preset = old.preset
    return preset, out, old


def _planned(
    args: argparse.Namespace, preset: str, out: Path, old: Plan | None
) -> tuple[Plan, list[Trial]]:
    """The plan with what is asked for, and the trials of this command."""
    base = _base(args, preset)
    if old is not None:
        if not (args.grid or args.table or args.preset or args.variant or args.changes) and (
            args.iterations is None
        ):
            base = old.base
        ledger.check_same_base(out, old, base)
        if not args.accept_changed_code and not args.status:
            ledger.check_same_code(out, old)
    seeds = grid.parse_seeds(args.seeds) if args.seeds is not None else None
    plan = old or ledger.new_plan(preset, base)
    if args.table is not None:
        cells = _table_cells(args)
        seeds = seeds or tuple(range(paper.N_SEEDS[args.table]))
        plan = plan.grow(cells, seeds, paper.grid_name(args.table))
    elif args.grid is not None:
        asked = grid.parse_grid(args.grid, preset)
        if seeds and asked.seeds:
            raise UsageError("the seeds are given by both --seeds and --grid seed=...")
        _check_not_set(args, asked)
        cells = grid.cells(base, asked)
        seeds = seeds or asked.seeds or DEFAULT_SEEDS
        plan = plan.grow(cells, seeds, asked.text)
    elif old is None:
        raise UsageError(f"nothing is planned in {out} yet: say what to vary, --grid esteps,eta_p")
    else:
        cells = [planned.cell for planned in old.cells]
        for planned in old.cells if seeds else ():
            plan = plan.grow([planned.cell], seeds or (), planned.grids[-1])
    if args.confirm is not None:
        return _confirmed(args, out, plan, old)
    if args.accept_changed_code and old is not None:
        plan = replace(plan, code_files=code_fingerprints())
    chosen = _chosen(args, plan, cells)
    wanted = {cell.key for cell in chosen}
    trials = [
        trial
        for trial in plan.trials()
        if trial.cell.key in wanted and (seeds is None or trial.seed in seeds)
    ]
    if len(trials) > grid.MAX_TRIALS:
        raise UsageError(f"{len(trials):,} trials; at most {grid.MAX_TRIALS:,} are allowed")
    return plan, trials


def _confirmed(
    args: argparse.Namespace, out: Path, plan: Plan, old: Plan | None
) -> tuple[Plan, list[Trial]]:
    """The plan with fresh seeds for the best cell and its ties, and those trials."""
    from tune.confirm import confirm

    if old is None or args.grid or args.table or args.seeds:
        raise UsageError(
            "--confirm takes a folder whose grid has been run, without --grid, --table or --seeds"
        )
    plan, cells = confirm(plan, out, args.confirm)
    for planned in cells:
        seeds = ", ".join(map(str, planned.confirm_seeds))
        print(f"best or tied by {args.confirm}: {planned.cell.text}; fresh seeds {seeds}")
    fresh = {planned.cell.key: planned.confirm_seeds for planned in cells}
    return plan, [t for t in plan.trials() if t.seed in fresh.get(t.cell.key, ())]


def _base(args: argparse.Namespace, preset: str) -> Config:
    """The preset, or a table's base, with what --variant, --set and --iterations change."""
    start = paper.base(args.scale) if args.table else configs.preset(preset)
    return start.override(**_changes(args))


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in args.changes:
        name, value = configs.parse_assignment(text)
        if name in changes:
            raise UsageError(f"--set {name} is given twice")
        changes[name] = value
    if args.iterations is not None:
        if "iterations" in changes:
            raise UsageError("the iterations are given by both --iterations and --set")
        changes["iterations"] = configs.parse_value("iterations", args.iterations)
    if "seed" in changes:
        raise UsageError(f"--set seed: give the seeds as --seeds {changes['seed']},")
    return (configs.variant(args.variant) if args.variant else {}) | changes


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
    changes = _changes(args)
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


def _settings(args: argparse.Namespace, out: Path, tracking: Any) -> Any:
    from tune.sweep import Settings

    uri = args.tracking_uri
    data_dir = args.data_dir or os.environ.get("MPCC_DATA_DIR") or None
    return Settings(
        out=out,
        uri=tracking.checked_uri(uri) if uri else tracking.default_uri(out),
        data_dir=Path(data_dir).expanduser().resolve() if data_dir else None,
        address=args.address,
        cpus=_number("--cpus-per-trial", args.cpus_per_trial, 0.01, 1024),
        gpus=_number("--gpus-per-trial", args.gpus_per_trial, 0, 64),
        max_concurrent=_whole("--max-concurrent", args.max_concurrent, 1, 100_000),
        checkpoint_seconds=_number("--checkpoint-seconds", args.checkpoint_seconds, 0, 1e6) or 0.0,
    )


def _retried(args: argparse.Namespace, out: Path, trials: Sequence[Trial]) -> dict[str, str]:
    """Key -> state of the trials that --retry names."""
    if args.retry is None:
        return {}
    states = [state.strip() for state in args.retry.split(",")]
    for state in states:
        if state not in RETRIED:
            raise UsageError(f"--retry must be failed, diverged or both, got '{args.retry}'")
    found = {trial.key: ledger.status(out, trial).state for trial in trials}
    return {key: state for key, state in found.items() if state in states}


def _sync(settings: Any, plan: Plan, tracking: Any) -> int:
    live = lock.running_keys(settings.out)
    if lock.lock_owner(settings.out) is not None:
        raise UsageError(f"{settings.out} is in use: its driver delivers by itself")
    held = lock.Lock(settings.out)
    try:
        sent = tracking.sync(settings.out, settings.uri, plan, live)
    except Exception as error:
        print(f"ablation.py: MLflow at {settings.uri}: {tracking.one_line(error)}", file=sys.stderr)
        return 3
    finally:
        held.release()
    print(f"{sent} trials delivered to {settings.uri}")
    return 0


def _print_status(out: Path, trials: Sequence[Trial]) -> int:
    """Cell by cell: the state of every seed. Exit code 0 only if all are done."""
    live = lock.running_keys(out)
    states = []
    for cell in dict.fromkeys(trial.cell.text for trial in trials):
        print(cell)
        for trial in (t for t in trials if t.cell.text == cell):
            status = ledger.status(out, trial, live)
            states.append(status.state)
            accuracy = status.metrics.get("acc_majority")
            score = f"  accuracy {accuracy:.3f}" if isinstance(accuracy, float) else ""
            at = f"{status.iteration:>7} of {trial.config.iterations}"
            cause = f"  {status.cause}" if status.cause else ""
            print(f"  seed {trial.seed:<3} {trial.key}  {status.state:<8}{at}{score}{cause}")
    counts = [f"{states.count(state)} {state}" for state in ledger.STATES if state in states]
    owner = lock.lock_owner(out)
    driver = f"; driver: process {owner['pid']} on {owner['host']}" if owner else ""
    print(f"{len(states)} trials: {', '.join(counts)}{driver}")
    return 0 if set(states) <= {ledger.DONE} else 3


def _print_dry_run(out: Path, plan: Plan, trials: Sequence[Trial]) -> int:
    from tune.sweep import disk_need, size_text

    live = lock.running_keys(out)
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {out}")
    todo = []
    for key in dict.fromkeys(trial.cell.key for trial in trials):
        seeds = [trial for trial in trials if trial.cell.key == key]
        print(f"cell {key}  {seeds[0].cell.text}")
        for trial in seeds:
            state = ledger.status(out, trial, live).state
            if state not in ledger.run_dir.ENDED:
                todo.append(trial)
            print(f"  trial {trial.key}  seed {trial.seed}  {state}")
    n_cells = len({trial.cell.key for trial in trials})
    print(f"{n_cells} cells, {len(trials)} trials, {len(todo)} to run")
    if todo:
        largest = max(checkpoint_bytes(trial.config) for trial in todo)
        print(
            f"about {size_text(largest)} per checkpoint, {size_text(disk_need(todo))} on the disk"
        )
    return 0


def _number(option: str, text: str | None, low: float, high: float) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{option} must be between {low:g} and {high:g}, got '{text}'")
    return value


def _whole(option: str, text: str | None, low: int, high: int) -> int | None:
    value = _number(option, text, low, high)
    if value is not None and value != int(value):
        raise UsageError(f"{option} must be a whole number, got '{text}'")
    return None if value is None else int(value)


if __name__ == "__main__":
    sys.exit(main())
