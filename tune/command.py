"""What `tune/ablation.py` and `tune/search.py` share: options, settings, and what they print."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mpcc import config as configs
from mpcc import inception
from mpcc.options import explained, path, usable
from tune import continuation, drivers, ledger, lock, mirror, node_data, signals
from tune.claims import CLAIMS
from tune.grid import checkpoint_bytes
from tune.groups import gpus_here
from tune.ledger import Plan, Trial
from tune.signals import SIGNALS, Interrupted

PLANNINGS = 5
"""How often a command plans anew where others change the plan before it has the lock."""
RETRIED = (ledger.FAILED, ledger.DIVERGED)


class UsageError(ValueError):
    """What was asked for makes no sense; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(explained(message, self))


def add_common(parser: argparse.ArgumentParser, out: str) -> None:
    """Where trials run and write, and what to do instead."""
    add = parser.add_argument_group("where").add_argument
    add("--out", type=path, metavar="DIR", help=out)
    add(
        "--data-dir",
        type=lambda text: text if node_data.is_address(text) else path(text),
        metavar="DIR|URI",
        help="the data sets' files ($MPCC_DATA_DIR): a folder, on a cluster one of every machine, "
        "or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX",
    )
    add("--download", action="store_true", help="get the data sets that are missing")
    add(
        "--inception-weights",
        type=path,
        metavar="FILE",
        help="weights of pytorch-fid's Inception, for IS, FID and KID ($MPCC_INCEPTION_WEIGHTS)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow (default: a SQLite file in the out folder)")
    add("--address", default="local", metavar="HOST:PORT", help="a Ray cluster, or auto")
    add(
        "--storage",
        metavar="DIR|URI",
        help="where trials keep their files on a cluster without a shared disk: a folder, "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX (default: in the out folder)",
    )
    add("--cpus-per-trial", metavar="X", help="cores of a trial (default: its cpu_threads)")
    add(
        "--gpus-per-trial", metavar="X", help="GPU share of a trial (default 0.25 if there are any)"
    )
    add(
        "--trials-per-gpu",
        metavar="N",
        help="so many trials in one process on each GPU, or auto: as many as make it fastest; "
        "results are those of each alone. Without a GPU: so many processes, a core each",
    )
    add("--max-concurrent", metavar="N", help="at most so many trials at a time")
    add("--checkpoint-seconds", metavar="S", default="60", help="between checkpoints (default 60)")
    add("--checkpoint-iterations", metavar="N", help="or so many iterations, if that comes first")

    add = parser.add_argument_group("instead of running").add_argument
    add("--dry-run", action="store_true", help="print the cells, trials, keys and sizes, and stop")
    add(
        "--pilot",
        action="store_true",
        help="a dry run that measures a few iterations, to say how long the sweep will take",
    )
    add("--status", action="store_true", help="print the state of every cell, and stop")
    add("--sync", action="store_true", help="deliver to MLflow what it lacks, and stop")


def answer(
    name: str,
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Do what the words of a command line say; the exit code, 2 with one line for a usage error."""
    try:
        args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        args.dry_run = args.dry_run or args.pilot
        if args.dry_run + args.status + args.sync > 1:
            raise UsageError("--dry-run or --pilot, --status and --sync exclude each other")
        with SIGNALS:
            for _ in range(PLANNINGS):
                try:
                    return run(args)
                except ledger.PlanChanged:
                    continue  # With the other command's cells in it, and all checks made anew.
        raise UsageError("other commands keep changing the plan; wait for them")
    except Interrupted as stop:
        signals.tell(f"{name}: {stop}; the same command goes on")
        return 128 + stop.number
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        signals.tell(f"{name}: {text}")
        return 2
    finally:
        signals.let_go()


def end(status: int) -> NoReturn:
    """End the program; Python would look through all that Ray and MLflow leave, for a second."""
    gc.freeze()
    sys.exit(status)


def folder(given: Path, storage: str | None = None) -> tuple[Path, Plan | None]:
    """The output folder and what it has planned; UsageError where it is a file or not ours.

    With a storage, given or remembered by the folder, its plan and records are fetched first.
    """
    out = given.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose another --out")
    old = ledger.read_plan(out)
    ours = (lock.LOCK, lock.DRIVERS, CLAIMS, mirror.REMEMBERED)
    foreign = old is None and out.is_dir() and any(p.name not in ours for p in out.iterdir())
    if foreign and not lock.drivers(out):  # A driver of a search that has just begun: ours.
        raise UsageError(
            f"--out {out} holds other files and no {ledger.PLAN}; choose another --out"
        )
    address = mirror.storage_of(out, storage)
    if address and lock.lock_owner(out) is None:
        mirror.bring(out, address)
        old = ledger.read_plan(out)
    return out, old


def run(
    args: argparse.Namespace,
    out: Path,
    old: Plan | None,
    plan: Plan,
    trials: Sequence[Trial],
    supply: Any = None,
) -> int:
    """Run what is missing of these trials, or deliver it (--sync); the exit code.

    `supply`, of a search, has more trials as they end (`tune.session.Supply`).
    """
    from tune import cluster, images, preflight, sweep, tracking

    where = settings(args, out, tracking)
    if args.sync:
        return sync(where, plan, tracking)
    if args.inception_weights is not None:
        inception.find_weights(args.inception_weights)
        os.environ[inception.WEIGHTS_VARIABLE] = str(args.inception_weights.resolve())
    again = retried(args, out, trials)
    now = sweep.statuses(out, trials)
    todo = [t for t in trials if t.key in again or now[t.key].state not in ledger.run_dir.ENDED]
    if not todo and plan == old and tracking.in_step(out, plan, where.uri):
        sweep.summary(where, trials)
        return sweep.exit_code(out, trials)
    if args.download:
        if node_data.is_address(where.data_dir):
            raise UsageError("--download fills a folder: give one as --data-dir, and copy it")
        from mpcc.data_download import download

        for dataset in sorted({trial.config.dataset for trial in todo}):
            download(dataset, where.data_dir)
    preflight.check_data(todo, where.data_dir, here=where.address == "local")
    plan = images.learnt(plan, out, plan.trials())
    if where.address == "local" and not node_data.is_address(where.data_dir):
        images.check(plan, out, todo, where.data_dir)
    n_at_once = trials_at_once(todo, where) if todo else None
    preflight.check(todo, out, stored=where.storage is not None, n_at_once=n_at_once)
    cluster.check_address(where.address)
    if where.address == cluster.LOCAL:
        preflight.check_cores(where.cpus)
    if n_at_once and where.address == cluster.LOCAL and not gpus_here():
        preflight.check_memory(todo, n_at_once)
    begun = any(status.state != ledger.PLANNED for status in now.values()) or (
        supply is not None and bool(lock.drivers(out))
    )
    problem = preflight.check_tracking(where.uri, out, plan.preset, begun=begun)
    if problem:
        signals.tell(f"MLflow does not answer ({problem}); training goes on")
    held = drivers.Alone(out) if supply is None else drivers.Crew(out)
    files = mirror.opened(out, where.storage)
    if where.storage is None:  # A storage has one driver, and a place of its own for this.
        files.stop_file = held.stop_file or files.stop_file
    try:
        if supply is not None:
            plan, trials = supply.begin(held, files)
        else:
            if ledger.read_plan(out) != old:
                raise ledger.PlanChanged
            files.begin(plan, trials)
        for trial in trials:
            if trial.key not in again or not held.take(trial.key):
                continue
            if ledger.status(out, trial).state == again[trial.key]:
                files.forget(trial, again[trial.key])
        if supply is not None and again:
            supply.forget()
        code = sweep.run(plan, trials, where, held, files, supply)
        if supply is not None:
            supply.complete()  # study.db is written by whoever leads.
    finally:
        files.release()
        held.release()
    sweep.summary(where, trials if supply is None else supply.all_trials())
    return code


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """What --variant, --set and --iterations change, by full field names."""
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


def settings(args: argparse.Namespace, out: Path, tracking: ModuleType) -> Any:
    """Where and how trials run, `tune.settings.Settings`."""
    from tune.settings import Settings

    uri = args.tracking_uri
    together = trials_per_gpu(args)
    data_dir: Path | str | None = args.data_dir or os.environ.get("MPCC_DATA_DIR") or None
    if data_dir and not node_data.is_address(data_dir):
        try:
            data_dir = usable(data_dir).resolve()
        except ValueError as error:
            raise UsageError(f"MPCC_DATA_DIR: {error}") from None
    return Settings(
        out=out,
        uri=tracking.default_uri(out) if uri is None else tracking.checked_uri(uri),
        data_dir=data_dir,
        address=address(args.address),
        storage=mirror.storage_of(out, args.storage),
        cpus=number("--cpus-per-trial", args.cpus_per_trial, 0.01, 1024),
        gpus=_gpus(args.gpus_per_trial),
        max_concurrent=whole("--max-concurrent", args.max_concurrent, 1, 100_000),
        trials_per_gpu=together,
        checkpoint_seconds=number("--checkpoint-seconds", args.checkpoint_seconds, 0, 1e6) or 0.0,
        checkpoint_iterations=whole(
            "--checkpoint-iterations", args.checkpoint_iterations, 1, 10**9
        ),
    )


def trials_per_gpu(args: argparse.Namespace) -> Any:
    """--trials-per-gpu for `tune.settings.Settings`; UsageError where other options forbid it."""
    text = args.trials_per_gpu
    if text is not None and args.gpus_per_trial is not None:
        raise UsageError("--trials-per-gpu and --gpus-per-trial exclude each other")
    return text if text in (None, "auto") else whole("--trials-per-gpu", text, 1, 64)


def _gpus(text: str | None) -> float | None:
    value = number("--gpus-per-trial", text, 0, 64)
    if value is not None and value > 1 and value != int(value):
        raise UsageError(f"--gpus-per-trial above 1 must be a whole number, got '{text}'")
    return value


def address(text: str) -> str:
    """Where Ray is, as given; UsageError for what can be no address."""
    host, _, port = text.rpartition(":")
    known = host and "/" not in host and port.isdecimal() and 0 < int(port) < 65536
    if text in ("local", "auto") or known:
        return text
    raise UsageError(f"--address must be local, auto or HOST:PORT, got '{text}'")


def retried(args: argparse.Namespace, out: Path, trials: Sequence[Trial]) -> dict[str, str]:
    """Key -> state of the trials that --retry names."""
    if args.retry is None:
        return {}
    states = [state.strip() for state in args.retry.split(",")]
    for state in states:
        if state not in RETRIED:
            raise UsageError(f"--retry must be failed, diverged or both, got '{args.retry}'")
    found = {trial.key: ledger.status(out, trial).state for trial in trials}
    return {key: state for key, state in found.items() if state in states}


def sync(settings: Any, plan: Plan, tracking: ModuleType) -> int:
    """Deliver to MLflow by hand; the exit code."""
    live = lock.running_keys(settings.out)
    if lock.lock_owner(settings.out) is not None:
        raise UsageError(f"{settings.out} is in use: its driver delivers by itself")
    held = lock.Lock(settings.out)
    files = mirror.opened(settings.out, settings.storage)
    try:
        files.claim()
        sent = tracking.sync(settings.out, settings.uri, plan, live)
    except lock.LockError:
        raise
    except Exception as error:
        signals.tell(f"MLflow at {settings.uri}: {tracking.one_line(error)}")
        return 3
    finally:
        files.release()
        held.release()
    print(f"{sent} trials delivered to {settings.uri}")
    return 0


def print_status(out: Path, trials: Sequence[Trial]) -> int:
    """Cell by cell: the state of every seed. The exit code is that of a run that ends like this."""
    owner = lock.lock_owner(out) or mirror.owner_of(out)
    live = {*(owner["running"] if owner else ()), *lock.running_keys(out)}
    states = []
    for seeds in ledger.by_cell(trials):
        print(seeds[0].cell.text)
        for trial in seeds:
            status = ledger.status(out, trial, live)
            states.append(status.state)
            accuracy = status.metrics.get("acc_majority")
            score = f"  accuracy {accuracy:.3f}" if isinstance(accuracy, float) else ""
            at = f"{status.iteration:>7} of {trial.config.iterations}"
            cause = f"  {status.cause}" if status.cause else ""
            print(f"  seed {trial.seed:<3} {trial.key}  {status.state:<8}{at}{score}{cause}")
    counts = [f"{states.count(state)} {state}" for state in ledger.STATES if state in states]
    driver = f"; driver: process {owner['pid']} on {owner['host']}" if owner else ""
    print(f"{len(states)} trials: {', '.join(counts)}{driver}")
    return 0 if set(states) <= set(ledger.FULFILLED) else 3


def print_dry_run(args: argparse.Namespace, out: Path, plan: Plan, trials: Sequence[Trial]) -> int:
    """Every cell, trial and key, what is to run, how large it gets and how long it takes."""
    live = lock.running_keys(out)
    states = {trial.key: ledger.status(out, trial, live) for trial in trials}
    open_ = [t for t in trials if states[t.key].state not in ledger.run_dir.ENDED]
    check_dry_run(args, out, open_)
    print(f"preset {plan.preset}, {plan.base.iterations} iterations; output folder {out}")
    todo, reached = [], {}
    cells = ledger.by_cell(trials)
    for seeds in cells:
        print(f"cell {seeds[0].cell.key}  {seeds[0].cell.text}")
        for trial in seeds:
            status = states[trial.key]
            shorter = continuation.goes_on_from(out, plan, trial)
            if status.state not in ledger.run_dir.ENDED:
                todo.append(trial)
                reached[trial.key] = shorter or status.iteration
            before = f", goes on from {shorter} iterations" if shorter else ""
            print(f"  trial {trial.key}  seed {trial.seed}  {status.state}{before}")
    print(f"{len(cells)} cells, {len(trials)} trials, {len(todo)} to run")
    if todo:
        print(size_of(args, out, todo))
        print(time_text(args, out, todo, reached))
    return 0


def check_dry_run(args: argparse.Namespace, out: Path, todo: Sequence[Trial]) -> None:
    """What a dry run, or a pilot of these trials, refuses: looked at before anything is printed."""
    from tune import preflight, tracking

    where = settings(args, out, tracking)
    if args.pilot and todo:
        if node_data.is_address(where.data_dir):
            raise UsageError("--pilot measures on this machine: give a folder as --data-dir")
        preflight.check_data(todo, where.data_dir, here=True)
        n_at_once = trials_at_once(todo, where)
        preflight.check(todo, out, stored=where.storage is not None, n_at_once=n_at_once)


def time_text(
    args: argparse.Namespace, out: Path, todo: Sequence[Trial], reached: dict[str, int]
) -> str:
    """How long these trials will take, from a pilot or from records; or how to find out."""
    from tune import estimate, tracking

    where = settings(args, out, tracking)
    n_at_once = trials_at_once(todo, where)
    if args.pilot:
        paces = estimate.by_pilot(todo, n_at_once or 1, where)
        n_at_once = trials_at_once(todo, where, max(p.together for p in paces.values()))
        source = "a pilot"
    else:
        folders = [out, *sorted(p.parent for p in out.parent.glob(f"*/{ledger.PLAN}"))]
        kind = "cuda" if where.gpus != 0 and gpus_here() else "cpu"
        paces = estimate.from_records(dict.fromkeys(folders), kind)
        source = "earlier trials on this machine"
    share = device_share(todo, where, n_at_once)
    found = estimate.estimate(todo, reached, paces, n_at_once, share, source)
    if found is None:
        return "time: not known without records of such trials on this machine; --pilot measures it"
    beside = f", {n_at_once} at a time" if n_at_once else ""
    return f"time: {found.text}{beside}"


def trials_at_once(todo: Sequence[Trial], where: Any, per_gpu: int = 1) -> int | None:
    """How many of these trials run side by side; None where only a cluster knows.

    per_gpu: what `--trials-per-gpu auto` comes to.
    """
    from tune.machines import DEFAULT_GPU_SHARE

    if where.address != "local":
        return int(where.max_concurrent) if where.max_concurrent else None
    together = where.trials_per_gpu
    n_gpus = 0 if where.gpus == 0 else gpus_here()
    cores = where.cpus or max(trial.config.cpu_threads for trial in todo)
    room = int(len(os.sched_getaffinity(0)) / cores)
    if n_gpus and together:
        room = n_gpus * (per_gpu if together == "auto" else together)
    elif n_gpus:
        room = min(room, int(n_gpus / (where.gpus or DEFAULT_GPU_SHARE)))
    elif together not in (None, "auto"):
        room = min(room, together)
    return max(1, min(room, len(todo), where.max_concurrent or room))


def device_share(todo: Sequence[Trial], where: Any, n_at_once: int | None) -> float:
    """The share of a GPU, or the cores, that a trial takes while it runs."""
    from tune.machines import DEFAULT_GPU_SHARE

    if where.gpus == 0 or not gpus_here():
        return float(where.cpus or todo[0].config.cpu_threads)
    if where.trials_per_gpu and n_at_once:
        return gpus_here() / n_at_once
    return float(where.gpus or DEFAULT_GPU_SHARE)


def size_of(args: argparse.Namespace, out: Path, trials: Sequence[Trial]) -> str:
    """How large these trials get, beyond what they have on the disk already."""
    from tune import tracking
    from tune.preflight import disk_need, size_text

    largest = max(checkpoint_bytes(trial.config) for trial in trials)
    need = disk_need(trials, out, trials_at_once(trials, settings(args, out, tracking)))
    return f"about {size_text(largest)} per checkpoint, {size_text(need)} on the disk"


def number(option: str, text: str | None, low: float, high: float) -> float | None:
    """The number given for an option, None where it was not given; UsageError out of range."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{option} must be between {low:g} and {high:g}, got '{text}'")
    return value


def whole(option: str, text: str | None, low: int, high: int) -> int | None:
    """The same, for a whole number."""
    value = number(option, text, low, high)
    if value is not None and value != int(value):
        raise UsageError(f"{option} must be a whole number, got '{text}'")
    return None if value is None else int(value)
