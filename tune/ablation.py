"""`python tune/ablation.py`: plan an ablation, run or resume it, show its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path[0:1] = [str(ROOT)]  # In place of this folder.

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `command.answer` handles them: the imports take a moment.

from mpcc.options import path  # noqa: E402
from mpcc.shell import guard_output  # noqa: E402
from tune import command, report, run  # noqa: E402
from tune import options as common  # noqa: E402
from tune.command import option  # noqa: E402
from tune.display import log  # noqa: E402
from tune.options import DEFAULT_PRESET, Options  # noqa: E402
from tune.plan import leave_out, paper  # noqa: E402
from tune.plan.cells import Trial  # noqa: E402
from tune.plan.plan import Plan  # noqa: E402
from tune.plan.source import GridSource  # noqa: E402
from tune.planning import planned, runnable  # noqa: E402
from tune.store.folder import Store, open_store  # noqa: E402

EXAMPLES = """\
examples:
  python tune/ablation.py --grid esteps,eta_p              Table 1's five rows, three seeds each
  python tune/ablation.py --grid esteps=1,2,4 eta_p=1e-3,1e-2 --seeds 5
  python tune/ablation.py --grid lambda_p --set n_encoder_steps=2 --out runs/lambda
  python tune/ablation.py --ablate --out runs/parts         the model without one part at a time
  python tune/ablation.py --ablate no-floor,not-shared --ablate-from best --out runs/search-digits
  python tune/ablation.py --table 2 --scale laptop --data-dir DIR
  python tune/ablation.py --table 4 --only dataset=mnist --data-dir DIR
  python tune/ablation.py --grid esteps,eta_p --dry-run    what would run, how large, how long
  python tune/ablation.py                                  go on with what is planned
  python tune/ablation.py --status                         how far it is
  python tune/ablation.py --confirm                        the best cell and its ties, fresh seeds
  python tune/ablation.py --drop esteps=3 --drop seed=4    take these out of the plan again
  python tune/ablation.py --evaluate --set n_generated=10000   trained models again, FID and KID too
  python tune/ablation.py --retry failed,diverged          run these again
  python tune/ablation.py --out runs/x --next              train one trial (for a queue's job)
  python tune/ablation.py --out runs/x --adopt DIR         join a sweep that was run elsewhere
  python tune/ablation.py --iterations 3000 --continue-training     extend every trial to 3,000

Running a command again runs only what is missing; a larger grid or more seeds run only what is new.
Exit codes: 0 every trial is done, or every chosen one with --only, --skip or --seeds; 2 a usage
error; 3 not every trial is done; 4 --next found nothing left to do; 129, 130, 143 stopped by
SIGHUP, SIGINT, SIGTERM (with checkpoints: the same command resumes).
"""


PLAN_SECONDS = 30
"""How long `--next` waits for a plan that another process is about to write."""
_what = partial(option, "what to run")


@dataclass(frozen=True)
class AblationOptions(Options):
    """The options of `tune/ablation.py`."""

    EXCLUDED: ClassVar = Options.EXCLUDED | {
        "ablate": ("is a plan of its own", "grid table"),
        "confirm": ("chooses the cells itself", "only skip"),
        "drop": (
            "takes trials out of what is planned",
            "grid table ablate seeds confirm adopt continue_training",
        ),
        "evaluate": ("trains nothing", "continue_training confirm"),
        "table": ("has a grid and settings of its own", "grid preset"),
        "next": (
            "trains one trial here, and stops",
            "dry_run status sync release retry address cpus_per_trial gpus_per_trial "
            "trials_per_gpu max_concurrent",
        ),
    }
    grid: list[str] | None = _what(
        "axes to vary. Default values: esteps, eta_p (both: Table 1), lambda_p, batch_size, seed. "
        "Any other setting: NAME=A,B,C. Without --grid: all that the folder has planned",
        "AXIS",
        nargs="+",
    )
    table: str | None = _what(
        f"run all cells and seeds of a table of the paper, not a grid: {', '.join(paper.TABLES)}",
        "N",
    )
    scale: str | None = _what(
        "size of the --table runs: "
        + "; ".join(f"{n}, {s.meaning}" for n, s in paper.SCALES.items()),
        "NAME",
    )
    ablate: str | None = _what(
        "in place of --grid: the full model, and the model without one part at a time: "
        + ", ".join(leave_out.LEFT_OUT)
        + " (default: all that apply); any --variant can be named",
        "NAMES",
        nargs="?",
        const="",
    )
    ablate_from: str | None = _what(
        "cell of the folder that is the full model; best: the best cell, by the search's "
        "objectives, or by I(x; y) for a grid",
        "CELL",
    )
    seeds: str | None = _what("number of seeds, or the seeds themselves (default 3)", "N|A,B,C")
    only: Sequence[str] = _what("only cells like esteps=4", "CELL", action="append", default=())
    skip: Sequence[str] = _what("all cells but these", "CELL", action="append", default=())
    drop: Sequence[str] = _what(
        "take these trials out of the folder's plan: esteps=3, seed=4, or both by a comma; their "
        "records stay and count nowhere, and --grid can plan them again",
        "TRIALS",
        action="append",
        default=(),
    )
    confirm: str | None = _what(
        "rerun the best cell and the cells tied with it (of a search the best point and the base "
        "settings) on fresh seeds, as many as before or --seeds N. METRIC chooses (default: "
        "acc_majority; of a search its objectives)",
        "METRIC",
        nargs="?",
        const="",
    )
    continue_training: bool = _what(
        "with a larger --iterations: extend the folder's trials from their last checkpoints"
    )
    adopt: Path | None = _what(
        "copy the trials that are done in another sweep's folder; its cells and seeds are planned "
        "here too",
        "DIR",
        type=path,
    )
    evaluate: bool = _what(
        "evaluate the trained models of a folder as --set says, such as --set n_generated=10000, "
        "and train nothing; earlier values are kept"
    )
    next: bool = option(
        "instead of running",
        "train one unfinished trial that no other process is training, in this process without "
        "Ray, then stop; run as many at once as you like, also beside a driver: for queues like "
        "Slurm's arrays",
    )
    out: Path | None = option("where", "default runs/PRESET, or runs/paper-SCALE", "DIR", type=path)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ablate_from is not None and self.ablate is None:
            raise ValueError("--ablate-from is of --ablate")
        if self.scale is not None and self.table is None:
            raise ValueError("--scale is of --table; name one: " + ", ".join(paper.TABLES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run this command line and return the exit code."""
    return command.answer("ablation.py", lambda received: _run(parse(argv), received))


def parse(argv: Sequence[str] | None = None) -> AblationOptions:
    """The options on this command line; ValueError for options that exclude each other."""
    about = "Run a grid of trials, each cell with several seeds, on all cores or GPUs."
    return command.parse(argv, AblationOptions, "ablation.py", about, EXAMPLES)


def _run(options: AblationOptions, received: signals.Signals) -> int:
    scale, preset = options.scale or paper.FULL, options.preset or DEFAULT_PRESET
    name = f"paper-{scale}" if options.table else preset
    store = open_store(options.out or ROOT / "runs" / name, options.storage)
    if options.release:
        return report.release(store)
    if store.restored:
        log(store.restored)
    old, plan, trials, ready = _plan(options, store)
    report.print_growth(store, old, plan)
    if options.status:
        return report.print_status(store, trials, common.settings(options, store).uri)
    if options.dry_run:
        return report.print_dry_run(options, store, plan, trials)
    if not options.next:
        plan = common.with_equal_code(options, store, plan, ready)
    source = GridSource(store.with_recorded_images(plan), ready)
    work = run.Work(store, old, source, trials, options.adopt)
    return (run.run_next if options.next else run.run)(options, received, work)


def _plan(
    options: AblationOptions, store: Store
) -> tuple[Plan | None, Plan, list[Trial], list[Trial]]:
    """The folder's plan as it is, the one that is asked for, the trials of this command, and those
    of them that can run.

    If several `--next` processes start at once, the first writes the plan and the others read it
    again. ValueError if the plan lacks what is asked for and a running driver holds it.
    """
    for attempt in range(PLAN_SECONDS):
        time.sleep(min(attempt, 1.0))
        old = store.read_plan()
        plan, trials = planned(options, store, old)
        ready = trials if options.status else runnable(options, store, trials)
        if not options.next or run.write_for_next(store, old, plan, trials, options.adopt):
            return old, plan, trials, ready
    raise ValueError(
        f"the plan of {store.out} lacks what this --next asks for, and a running driver holds it: "
        "wait until that driver ends"
    )


if __name__ == "__main__":
    guard_output()
    command.end(main())
