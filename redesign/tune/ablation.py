"""`python tune/ablation.py`: plan an ablation, run it, go on with it, show how far it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tune import signals  # noqa: E402

if __name__ == "__main__":
    signals.end_at_once()  # Until `options.answer` does better: loading the rest takes a moment.

from tune import command, report, run  # noqa: E402
from tune.options import DEFAULT_PRESET  # noqa: E402
from tune.plan import paper  # noqa: E402
from tune.plan.source import GridSource  # noqa: E402
from tune.planning import AblationOptions, planned  # noqa: E402
from tune.store.opening import open_store  # noqa: E402

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
  python tune/ablation.py --retry failed,diverged          run these again
  python tune/ablation.py --iterations 3000 --continue-training     all of them go on to more

Running a command again runs only what is missing; a larger grid or more seeds run only what is new.
Exit codes: 0 every trial is done, or every chosen one with --only, --skip or --seeds; 2 a usage
error; 3 not every trial is done; 129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM (with
checkpoints: the same command goes on).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    return command.answer("ablation.py", lambda received: _run(parse(argv), received))


def parse(argv: Sequence[str] | None = None) -> AblationOptions:
    """The options on this command line; UsageError for what cannot be together."""
    about = "Run a grid of trials, each cell with several seeds, on all cores or GPUs."
    return command.parse(argv, AblationOptions, "ablation.py", about, EXAMPLES)


def _run(options: AblationOptions, received: signals.Signals) -> int:
    preset = options.preset or (paper.BASE_PRESET if options.table else DEFAULT_PRESET)
    name = f"paper-{options.scale or 'full'}" if options.table else preset
    store = open_store(options.out or ROOT / "runs" / name, options.storage)
    if options.release:
        return report.release(store)
    old = store.read_plan()
    plan, trials = planned(options, store, old)
    if options.status:
        return report.print_status(store, trials)
    if options.dry_run:
        return report.print_dry_run(options, store, plan, trials)
    source = GridSource(store.with_recorded_images(plan), trials)
    return run.run(options, received, run.Work(store, old, source, trials))


if __name__ == "__main__":
    command.end(main())
