"""Train one model in a run directory; `cluster`, `sample`, `reconstruct` use a trained model."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcc.config import (
    PRESETS,
    VARIANTS,
    Config,
    cautions,
    idle_options,
    parse_assignment,
    preset,
    variant,
)
from mpcc.data.files import check_available
from mpcc.data.places import DataError, resolve_data_dir
from mpcc.data.prepared import description
from mpcc.evaluation.inception import WEIGHTS_VARIABLE, InceptionMissing, find_weights
from mpcc.options import OneLineParser, checked_device, path
from mpcc.runs.checkpoints import PREVIOUS_CHECKPOINT
from mpcc.runs.files import RunDirError, exclusive, remove_scraps
from mpcc.runs.run_dir import check_run, read_metrics, read_result
from mpcc.shell import guard_output, one_line, own_name
from mpcc.training.checks import check_data
from mpcc.use import commands

if TYPE_CHECKING:
    from mpcc.training.trainer import Progress

MAX_SECONDS = 1e6

EXAMPLES = """examples:
  python -m mpcc --preset digits --set seed=1 --out runs/one
  python -m mpcc --preset mnist --data-dir DIR --set image_size=16 width=8 --out runs/mnist16
  python -m mpcc --preset cifar10 --dry-run

Run the same command again to resume a run. Progress goes to stderr, the result to stdout.

To use what was trained: python -m mpcc cluster, sample or reconstruct, each with --help.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    p = OneLineParser(
        prog=own_name(),
        description="Train MPCC once: cluster images without labels and draw new ones.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--preset", default="digits", help=f"one of {', '.join(sorted(PRESETS))}")
    p.add_argument("--variant", help=f"a named change of the preset: {', '.join(VARIANTS)}")
    p.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        dest="assignments",
        help="change any field of the configuration (--dry-run prints them all)",
    )
    p.add_argument("--out", type=path, help="run directory (default: runs/PRESET-seedN)")
    p.add_argument("--data-dir", type=path, help="where the data sets lie (or MPCC_DATA_DIR)")
    p.add_argument("--download", action="store_true", help="get the data set where it is missing")
    p.add_argument(
        "--inception-weights",
        type=path,
        metavar="FILE",
        help="weights of pytorch-fid's Inception, for IS, FID and KID (or MPCC_INCEPTION_WEIGHTS)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    p.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="time between checkpoints (default: 60)",
    )
    p.add_argument(
        "--checkpoint-iterations",
        type=int,
        metavar="N",
        help="also write a checkpoint every N iterations; the earlier of the two limits counts",
    )
    p.add_argument("--dry-run", action="store_true", help="print the configuration and stop")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 diverged, 2 for bad input and for files
    that cannot be read or written, 130 or 143 if stopped by a signal."""
    if argv is None:  # Started as a program, not called from Python.
        guard_output()
        argv = sys.argv[1:]
    if argv and argv[0] in commands.COMMANDS:
        return commands.main(argv)
    options = parser().parse_args(argv)
    try:
        changes = assigned(options.assignments)
        named = variant(options.variant) if options.variant else {}
        config = preset(options.preset).override(**named | changes)
        if not 0 <= options.checkpoint_seconds <= MAX_SECONDS:
            raise ValueError(
                f"--checkpoint-seconds must be between 0 and {MAX_SECONDS:g}, "
                f"got {options.checkpoint_seconds:g}"
            )
        if options.checkpoint_iterations is not None and options.checkpoint_iterations < 1:
            raise ValueError(
                f"--checkpoint-iterations must be at least 1, got {options.checkpoint_iterations}"
            )
        checked_device(options.device)
        out = options.out or Path("runs") / f"{options.preset}-seed{config.seed}"
        if options.dry_run:
            return dry_run(config, options)
    except ValueError as error:
        return refuse(error)
    try:
        return run(config, out.resolve(), options)
    except (DataError, InceptionMissing, RunDirError, OSError) as error:
        return refuse(error)


def assigned(texts: list[str]) -> dict[str, Any]:
    """The fields that --set changes; ValueError for one that is given twice."""
    changes: dict[str, Any] = {}
    for text in texts:
        name, value = parse_assignment(text)
        if name in changes:
            raise ValueError(f"--set {name} is given twice")
        changes[name] = value
    return changes


def dry_run(config: Config, options: argparse.Namespace) -> int:
    """Print the configuration and, for dataset=folder, a summary of the images. ValueError if the
    configuration cannot be trained."""
    check_data(config, options.data_dir)
    if config.dataset == "folder" and resolve_data_dir(options.data_dir) is not None:
        print(description(config, options.data_dir), file=sys.stderr, flush=True)
    print(json.dumps(config.to_dict(), indent=1))
    caution(config, options)
    return 0


def run(config: Config, out: Path, options: argparse.Namespace) -> int:
    """Check that the run can be trained, then train it; returns the exit status. Raises DataError,
    InceptionMissing, RunDirError, OSError."""
    refuse_other_run(config, out)
    # OpenMP reads this variable when torch is first imported, which the checks below may do.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.cpu_threads))
    if options.inception_weights is not None:
        find_weights(options.inception_weights)
        os.environ[WEIGHTS_VARIABLE] = str(options.inception_weights.resolve())
    if options.download:
        from mpcc.data.download import download

        download(config.dataset, options.data_dir)
    check_available(config.dataset, options.data_dir)
    check_data(config, options.data_dir)
    caution(config, options)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # It logs its font search at INFO.
    from mpcc.training.device import check_precision, resolve_device

    try:
        check_precision(config, resolve_device(options.device))
    except ValueError as error:
        return refuse(error)
    if config.dataset == "folder":
        print(description(config, options.data_dir), file=sys.stderr, flush=True)
    with exclusive(out, patience=1.0):
        remove_scraps(out)
        status = train_here(config, out, options)
        if status < 128:  # The run has ended: nothing resumes from the previous checkpoint.
            (out / PREVIOUS_CHECKPOINT).unlink(missing_ok=True)
        return status


@contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """In the block, the first SIGINT or SIGTERM calls act(number); a second kills the process."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        seen.append(number)
        act(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_here(config: Config, out: Path, options: argparse.Namespace) -> int:
    """Train until the end or a signal; print the result and return the exit status.

    A signal before the first progress report (while data are read or k-means runs, or in the first
    second of training) ends the process at once, without a checkpoint.
    """
    from mpcc.training.trainer import train

    again = f"run the same command again to resume. Run directory: {out}"
    begun: Progress | None = None
    start, stopped = 0.0, list[int]()

    def stop(number: int) -> None:
        if begun is None:
            print(f"stopped before the first progress report; {again}", file=sys.stderr)
            raise SystemExit(128 + number)
        stopped.append(number)

    progress = train(
        config,
        out,
        data_dir=options.data_dir,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        checkpoint_iterations=options.checkpoint_iterations,
    )
    with on_signals(stop):
        for now in progress:
            if begun is None:
                begun, start = now, time.monotonic()
            if now.metrics is not None or now.state != "running":
                print_progress(
                    now.iteration, now.iterations, now.metrics, remaining(now, begun, start)
                )
            if stopped and now.state == "running":
                progress.close()
                print(f"stopped; {again}", file=sys.stderr)
                return 128 + stopped[0]
    result = read_result(out)
    assert result is not None
    if result["state"] == "diverged":
        print(f"diverged: {result['cause']}. Run directory: {out}", file=sys.stderr)
        return 1
    print(json.dumps({"out": str(out)} | result["metrics"]))
    took = {"train": 0.0, "evaluate": 0.0} | result.get("seconds", {})
    print(
        f"done in {took['train']:.0f} s of training and {took['evaluate']:.0f} s of evaluation; "
        f"pictures and records: {out}",
        file=sys.stderr,
    )
    return 0


def refuse_other_run(config: Config, out: Path) -> None:
    """RunDirError, before torch is imported, if `out` has another run, other files or bad rows."""
    is_new = check_run(out, config)
    if not is_new and read_result(out) is None:
        read_metrics(out)


def remaining(now: Progress, begun: Progress, start: float) -> str:
    """Time left at the rate since the first progress report; empty while there is no rate."""
    done, left = now.iteration - begun.iteration, now.iterations - now.iteration
    if done <= 0 or left <= 0:
        return ""
    seconds = (time.monotonic() - start) / done * left
    return f"  {seconds / 60:.0f} min left" if seconds > 90 else f"  {seconds:.0f} s left"


def print_progress(iteration: int, iterations: int, row: dict | None, left: str) -> None:
    """Print one line of progress on stderr."""
    from mpcc.evaluation.metrics import column

    shown = ("acc_majority", "acc_hungarian", "mse", "loss/discriminator", "loss/encoder")
    values = "  ".join(column(n).reading(row[n]) for n in shown if row and n in row)
    print(f"{iteration:>7}/{iterations}  {values}{left}", file=sys.stderr, flush=True)


def caution(config: Config, options: argparse.Namespace) -> None:
    """Print a note for each allowed setting or option that is probably a mistake."""
    asked = options.data_dir, options.download, options.inception_weights
    for text in [*idle_options([config], *asked), *cautions(config)]:
        print(f"note: {text}", file=sys.stderr)


def refuse(error: Exception) -> int:
    """Print the error as one line on stderr; returns exit status 2."""
    print(f"{own_name()}: {one_line(error)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
