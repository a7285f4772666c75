"""What a sweep costs beside its trials, and how soon the commands answer.

A real sweep of digits (Table 1's five rows, three seeds, fewer iterations), after a dry run that
measures: wall time against the best schedule of its trials' own seconds, and against the time that
was expected. Then the
price of logging and of checkpoints at the default intervals, and the answers that need no training.

    python benchmarks/sweep_speed.py [--iterations 300]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]

from benchmarks.rows import Row, head, show  # noqa: E402
from benchmarks.tables_speed import make_trial  # noqa: E402
from benchmarks.training_step import noise  # noqa: E402
from mpcc.config import Config, preset  # noqa: E402
from tune.estimate import makespan  # noqa: E402
from tune.plan.grid import cells, parse_grid  # noqa: E402
from tune.plan.plan import new_plan  # noqa: E402
from tune.store.folder import Store  # noqa: E402

PROGRAM = str(ROOT / "tune" / "ablation.py")
CHECKPOINT_SECONDS = 60.0
"""The default interval."""


def answer(*words: str, expected: int = 0) -> float:
    """Seconds until the command has answered, the best of three: the first fills caches."""
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        code = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True).returncode
        assert code == expected, f"{words}: exit code {code}"
        best = min(best, time.perf_counter() - begun)
    return best


def plan_shown(*words: str) -> float:
    """Seconds until a dry run has shown its plan, the best of three; then it measures."""
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, PROGRAM, *words, "--dry-run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout
            assert any("on the disk" in line for line in process.stdout)
            best = min(best, time.perf_counter() - begun)
            process.terminate()
    return best


def quick(figure: str, seconds: float) -> Row:
    """An answer that must come at once."""
    return Row(figure, f"{seconds:.2f} s", "<= 0.5 s", holds=seconds <= 0.5)


def answers(folder: Path) -> Iterator[Row]:
    """Commands that train nothing."""
    grid = ("--grid", "esteps,eta_p", "--out", str(folder / "none"))
    yield quick("--help", answer("--help"))
    yield quick("the plan of --dry-run", plan_shown(*grid))
    yield quick("a usage error", answer("--grid", "estep", expected=2))
    base, out = preset("digits"), folder / "many"
    axes = ["esteps=" + ",".join(map(str, range(1, 19)))]
    axes.append("eta_p=" + ",".join(f"{i}e-4" for i in range(1, 20)))
    plan = new_plan("digits", base)
    plan = plan.grow(cells(base, parse_grid(axes, "digits")), (0, 1, 2), "many")
    Store(out).write_plan(plan)
    rng = np.random.default_rng(0)
    trials = plan.trials()
    for trial in trials:
        make_trial(out, trial.config, 0.7, rng)
    yield quick(f"--status, {len(trials):,} trials", answer("--status", "--out", str(out)))
    yield quick(f"the plan of --dry-run beside {len(trials):,} trials", plan_shown(*grid))


def sweep(folder: Path, iterations: int) -> Iterator[Row]:
    """A dry run, then the sweep that it was of; then what its records say of more seeds."""
    out = folder / "digits"
    words = ["--grid", "esteps,eta_p", "--out", str(out), "--iterations", str(iterations)]
    expected = told(*words, "--seeds", "3", "--dry-run")
    wall, own = run(out, *words, "--seeds", "3")
    workers = len(os.sched_getaffinity(0))
    best = makespan(own, workers)
    allowed = 1.05 * best + 8
    yield Row(
        f"sweep of {len(own)} trials, at best {best:.0f} s on {workers} cores",
        f"{wall:.0f} s",
        f"<= {allowed:.0f} s: 1.05 x best + 8",
        holds=wall <= allowed,
    )
    yield word("the time that was measured for it", expected, wall)
    expected = told(*words, "--seeds", "4", "--dry-run")
    wall, _ = run(out, *words, "--seeds", "4")
    yield word("the time that its records give for five trials more", expected, wall)


def shortest(folder: Path) -> Row:
    """A sweep that trains next to nothing: what there is around training."""
    out, begun = folder / "shortest", time.time()
    words = ["--grid", "esteps=1", "--out", str(out), "--iterations", "2", "--seeds", "2"]
    wall, own = run(out, *words)
    # Written right before the first iteration.
    files = [file.stat().st_mtime for file in out.glob("trials/*/provenance.json")]
    first = min(files) - begun
    figure = f"sweep of {len(own)} trials of two iterations"
    return Row(figure, f"{wall:.1f} s, {first:.1f} s to the first iteration")


def word(figure: str, expected: float, wall: float) -> Row:
    """What was said of a sweep's time, and what it was."""
    off = expected / wall - 1
    measured = f"{expected:.0f} s for {wall:.0f} s, {off:+.0%}"
    return Row(figure, measured, "within 20 %", holds=abs(off) <= 0.2)


def told(*words: str) -> float:
    """Seconds that a dry run says."""
    command = [sys.executable, PROGRAM, *words]
    return _seconds(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(out: Path, *words: str) -> tuple[float, list[float]]:
    """Run a sweep: its wall time, and each trial's own seconds, of all in the folder."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, PROGRAM, *words], check=True, capture_output=True)
    wall = time.perf_counter() - begun
    results = [json.loads(file.read_text()) for file in out.glob("trials/*/result.json")]
    return wall, [sum(result["seconds"].values()) for result in results]


def _seconds(text: str) -> float:
    found = re.search(r"time: about (?:(\d+):)?(\d+):(\d+)", text)
    assert found, text
    hours, minutes, seconds = (int(group or 0) for group in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def share_of_records(folder: Path, config: Config, iteration: float) -> Iterator[Row]:
    """What writing a row and sending it to MLflow take of training time."""
    from mpcc.runs import run_dir
    from tune.tracking.delivery import Delivery
    from tune.tracking.uri import default_uri

    out = folder / "records"
    cell = cells(config, parse_grid(["esteps=4"], "digits"))
    plan = new_plan("digits", config).grow(cell, (0,), "records")
    store = Store(out)
    store.write_plan(plan)
    trial = plan.trials()[0]
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    delivery = Delivery(store, default_uri(out), plan, running={trial.key})
    row = {f"metric_{i}": 0.5 + i for i in range(20)}
    delivery.deliver()
    lines, sent = [], []
    for i in range(1, 21):
        begun = time.perf_counter()
        run_dir.append_metrics(path, {"iteration": i} | row)
        lines.append(time.perf_counter() - begun)
        begun = time.process_time()
        delivery.deliver()
        sent.append(time.process_time() - begun)
    between = iteration * config.eval_every
    cost = (statistics.median(lines) + statistics.median(sent)) / between
    figure = "logging of digits: a row on disk and MLflow's copy, of training"
    yield Row(figure, f"{cost:.2%}", "<= 1 %", holds=cost <= 0.01)


def share_of_checkpoints(folder: Path, name: str) -> Row:
    """What a checkpoint takes of the time until the next, at the default interval."""
    import torch

    from mpcc.runs import run_dir
    from mpcc.training import trainer
    from mpcc.training.state import build_state

    config = preset(name)
    torch.set_num_threads(config.cpu_threads)
    path = run_dir.open_run(folder / f"checkpoint-{name}", config)
    state, seconds = build_state(config, noise(config)), []
    for _ in range(3):
        begun = time.perf_counter()
        trainer.write_checkpoint(path, state)
        seconds.append(time.perf_counter() - begun)
    cost = statistics.median(seconds)
    share = cost / max(CHECKPOINT_SECONDS, cost / trainer.MAX_CHECKPOINT_SHARE)
    size = (path / run_dir.CHECKPOINT).stat().st_size / 1e6
    figure = f"checkpoints of {name}, {size:.0f} MB, {cost:.2f} s each, of training"
    return Row(figure, f"{share:.2%}", "<= 2 %", holds=share <= 0.02)


def training_seconds(config: Config) -> float:
    """Seconds of one iteration."""
    from mpcc.data.image_set import load
    from mpcc.training.algorithm import train_step
    from mpcc.training.state import build_state

    state = build_state(config, load(config))
    for _ in range(3):
        train_step(state)
    begun = time.perf_counter()
    for _ in range(20):
        train_step(state)
    return (time.perf_counter() - begun) / 20


def rows(iterations: int = 300) -> Iterator[Row]:
    """One row per figure."""
    with tempfile.TemporaryDirectory(prefix="mpcc-bench-") as name:
        folder = Path(name)
        yield from answers(folder)
        yield shortest(folder)
        yield from sweep(folder, iterations)
        import torch

        config = preset("digits")
        torch.set_num_threads(config.cpu_threads)
        yield from share_of_records(folder, config, training_seconds(config))
        for name in ("digits", "mnist", "cifar10"):
            yield share_of_checkpoints(folder, name)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per figure, with its aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args(argv)
    head()
    for row in rows(options.iterations):
        show(row)


if __name__ == "__main__":
    main()
