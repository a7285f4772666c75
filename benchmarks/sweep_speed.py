"""What a sweep costs beside its trials, and how soon the commands answer.

A real sweep of digits (Table 1's five rows, two seeds, fewer iterations), after a pilot of it:
wall time against the trials' own time, and against the pilot's word. Then the price of logging and
of checkpoints at the default intervals, and the answers that need no training.

    python benchmarks/sweep_speed.py [--iterations 300]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]

from benchmarks.tables_speed import make_trial  # noqa: E402
from mpcc.config import Config, preset  # noqa: E402
from tune import ledger  # noqa: E402
from tune.grid import cells, parse_grid  # noqa: E402

PROGRAM = str(ROOT / "tune" / "ablation.py")
CHECKPOINT_SECONDS = 60.0
"""The default interval."""


def say(figure: str, measured: str, aim: str) -> None:
    """One line of the table."""
    print(f"{figure:<58}{measured:>22}   {aim}", flush=True)


def answer(*words: str, expected: int = 0) -> float:
    """Seconds until the command has answered, the best of three: the first fills caches."""
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        code = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True).returncode
        assert code == expected, f"{words}: exit code {code}"
        best = min(best, time.perf_counter() - begun)
    return best


def answers(folder: Path) -> None:
    """Commands that train nothing."""
    grid = ("--grid", "esteps,eta_p", "--out", str(folder / "none"))
    say("--help", f"{answer('--help'):.2f} s", "<= 0.5 s")
    say("--dry-run", f"{answer(*grid, '--dry-run'):.2f} s", "<= 0.5 s")
    say("a usage error", f"{answer('--grid', 'estep', expected=2):.2f} s", "<= 0.5 s")
    base, out = preset("digits"), folder / "many"
    axes = ["esteps=" + ",".join(map(str, range(1, 19)))]
    axes.append("eta_p=" + ",".join(f"{i}e-4" for i in range(1, 20)))
    plan = ledger.new_plan("digits", base)
    plan = plan.grow(cells(base, parse_grid(axes, "digits")), (0, 1, 2), "many")
    ledger.write_plan(out, plan)
    rng = np.random.default_rng(0)
    trials = plan.trials()
    for trial in trials:
        make_trial(out, trial.config, 0.7, rng)
    seconds = answer("--status", "--out", str(out))
    say(f"--status, {len(trials):,} trials", f"{seconds:.2f} s", "<= 0.5 s for 1,000")


def sweep(folder: Path, iterations: int) -> None:
    """A pilot, then the sweep that it was asked about."""
    out = folder / "digits"
    words = ["--grid", "esteps,eta_p", "--seeds", "2", "--out", str(out)]
    words += ["--iterations", str(iterations)]
    pilot = subprocess.run(
        [sys.executable, PROGRAM, *words, "--pilot"], capture_output=True, text=True, check=True
    )
    expected = _seconds(pilot.stdout)
    begun = time.perf_counter()
    subprocess.run([sys.executable, PROGRAM, *words], check=True, capture_output=True)
    wall = time.perf_counter() - begun
    own = 0.0
    for file in out.glob("trials/*/result.json"):
        own += sum(json.loads(file.read_text())["seconds"].values())
    workers = len(os.sched_getaffinity(0))
    allowed = 1.05 * own / workers + 10
    n = len(list(out.glob("trials/*/result.json")))
    say(f"sweep of {n} trials, {own / workers:.0f} s of their own", f"{wall:.0f} s",
        f"<= {allowed:.0f} s: 1.05 x own + 10")  # fmt: skip
    say("the pilot's word for it", f"{expected:.0f} s, {expected / wall - 1:+.0%}", "within 20 %")


def _seconds(text: str) -> float:
    found = re.search(r"time: about (?:(\d+):)?(\d+):(\d+)", text)
    assert found, text
    hours, minutes, seconds = (int(group or 0) for group in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def share_of_records(folder: Path, config: Config, iteration: float) -> None:
    """What writing a row, sending it to MLflow and writing a checkpoint take of training time."""
    from mpcc import run_dir, trainer
    from mpcc.data import load
    from mpcc.state import build_state
    from tune import tracking

    out = folder / "records"
    cell = cells(config, parse_grid(["esteps=4"], "digits"))
    plan = ledger.new_plan("digits", config).grow(cell, (0,), "records")
    ledger.write_plan(out, plan)
    trial = plan.trials()[0]
    path = run_dir.open_run(ledger.trial_dir(out, trial.key), trial.config)
    delivery = tracking.Delivery(out, tracking.default_uri(out))
    row = {f"metric_{i}": 0.5 + i for i in range(20)}
    delivery.deliver(plan, [trial.key])
    lines, sent = [], []
    for i in range(1, 21):
        begun = time.perf_counter()
        run_dir.append_metrics(path, {"iteration": i} | row)
        lines.append(time.perf_counter() - begun)
        begun = time.process_time()
        delivery.deliver(plan, [trial.key])
        sent.append(time.process_time() - begun)
    between = iteration * config.eval_every
    cost = (statistics.median(lines) + statistics.median(sent)) / between
    say("logging: a row on disk and MLflow's copy, of training", f"{cost:.2%}", "<= 1 %")
    state = build_state(config, load(config))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        trainer.write_checkpoint(path, state)
        seconds.append(time.perf_counter() - begun)
    cost = statistics.median(seconds) / CHECKPOINT_SECONDS
    say("checkpoints every minute, of training", f"{cost:.2%}", "<= 2 %")


def training_seconds(config: Config) -> float:
    """Seconds of one iteration."""
    from mpcc.algorithm import train_step
    from mpcc.data import load
    from mpcc.state import build_state

    state = build_state(config, load(config))
    for _ in range(3):
        train_step(state)
    begun = time.perf_counter()
    for _ in range(20):
        train_step(state)
    return (time.perf_counter() - begun) / 20


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per figure, with its aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args(argv)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    say("figure", "measured", "aim")
    with tempfile.TemporaryDirectory(prefix="mpcc-bench-") as name:
        folder = Path(name)
        answers(folder)
        sweep(folder, options.iterations)
        import torch

        config = preset("digits")
        torch.set_num_threads(config.cpu_threads)
        share_of_records(folder, config, training_seconds(config))


if __name__ == "__main__":
    main()
