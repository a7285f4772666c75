"""How long tables and report take for large sweeps, from records on disk to files; exit 1 if long.

Makes a sweep of hand-made records in a temporary folder (a full grid of two axes, three seeds, six
evaluations each) and times the command as a user runs it, process start included. The limits are
for wall seconds of a quiet machine; where other work fills its cores, CPU seconds are held to them.

    python benchmarks/tables_speed.py [--trials 1000 20000]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]

from mpcc.config import preset  # noqa: E402
from mpcc.runs.files import sealed  # noqa: E402
from mpcc.runs.run_dir import METRICS, PROVENANCE, RESULT, metrics_text  # noqa: E402

SEEDS = (0, 1, 2)
FORMATS = "md,csv,tex,html"
MAX_SECONDS = ((1100, 5.0), (21_000, 60.0))
"""Up to so many trials, all tables in all formats within so many seconds."""
MAX_PAGE = ((1100, 3.0),)
"""Up to so many trials, the page without pictures within so many megabytes."""
SCRIPT = ROOT / "analysis" / "make_tables.py"


def make_sweep(folder: Path, n_trials: int) -> int:
    """Records of a full grid with at least so many trials; returns how many there are."""
    n_cells = -(-n_trials // len(SEEDS))
    n_steps = max(1, round(n_cells**0.5))
    n_rates = -(-n_cells // n_steps)
    base = preset("digits")
    rng = np.random.default_rng(0)
    cells = []
    for i in range(n_steps):
        for j in range(n_rates):
            changes = {"n_encoder_steps": i + 1, "prior_lr": round(1e-4 * (j + 1), 6)}
            config = base.override(**changes)
            cells.append({"key": config.cell_key, "changes": changes, "variant": None})
            cells[-1] |= {"grids": ["speed"], "seeds": list(SEEDS)}
            for seed in SEEDS:
                make_trial(folder, config.override(seed=seed), 0.6 + 0.002 * j, rng)
    settings = {k: v for k, v in base.to_dict().items() if k != "seed"}
    plan = {"schema": 1, "id": "speed", "preset": "digits", "base": settings, "cells": cells}
    (folder / "sweep.json").write_text(json.dumps(plan))
    return n_steps * n_rates * len(SEEDS)


def make_trial(folder: Path, config, centre: float, rng: np.random.Generator) -> None:
    """Records of one finished trial."""
    path = folder / "trials" / config.trial_key
    path.mkdir(parents=True)
    final = {"acc_majority": centre + 0.02 * rng.standard_normal(), "mse": 0.1 + rng.random() / 50}
    final |= {"acc_hungarian": final["acc_majority"] - 0.03, "nmi": 0.6, "ari": 0.5}
    final |= {"mse_published": 3e-4 + 1e-5 * rng.random(), "saturation_excess": 0.01}
    steps = np.linspace(250, config.iterations, 6).astype(int)
    rows = [{"iteration": int(i), **final} for i in steps]
    result = {"state": "done", "cause": None, "iteration": config.iterations, "metrics": final}
    result |= {"trial_key": config.trial_key, "baseline": {"kmeans_acc_majority": 0.79}}
    data = {"dataset": "digits", "fingerprint": "f00d", "n_images": 1797}
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    # Sealed as a trial's own, and written without waiting for the disk.
    text = metrics_text(rows)
    (path / METRICS).write_bytes(text)
    (path / RESULT).write_text(json.dumps(sealed(result, **{METRICS: text})))
    (path / PROVENANCE).write_text(json.dumps(sealed({"code": "c0de", "data": data})))


def timed(folder: Path, *arguments: str) -> tuple[float, float]:
    """Wall and CPU seconds of one run of the command."""
    command = [sys.executable, str(SCRIPT), "--runs", str(folder), *arguments]
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def limit(limits: tuple[tuple[int, float], ...], n_trials: int) -> float:
    """What is allowed for so many trials; infinite beyond the largest sweep with a limit."""
    return next((value for most, value in limits if n_trials <= most), math.inf)


def measure(wanted: int) -> list[str]:
    """Print one line for a sweep of this size; what is over its limit, a phrase each."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        n_trials = make_sweep(folder, wanted)
        wall, cpu = timed(folder, "--table", "all", "--format", FORMATS, "--no-pictures")
        size = (folder / "tables" / "report.html").stat().st_size / 1e6
    judged, seconds = ("CPU", cpu) if busy else ("wall", wall)
    print(
        f"{n_trials:,} trials, all tables as {FORMATS}: {wall:.1f} s (CPU {cpu:.1f} s), page "
        f"{size:.2f} MB; judged by {judged} seconds",
        flush=True,
    )
    over = []
    if seconds > limit(MAX_SECONDS, n_trials):
        most = limit(MAX_SECONDS, n_trials)
        over.append(f"{n_trials:,} trials took {seconds:.1f} {judged} seconds, allowed {most:g}")
    if size > limit(MAX_PAGE, n_trials):
        most = limit(MAX_PAGE, n_trials)
        over.append(f"the page of {n_trials:,} trials has {size:.2f} MB, allowed {most:g}")
    return over


def main() -> int:
    """Print a line per sweep; 1 where one is over its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 20_000])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    over = [line for wanted in options.trials for line in measure(wanted)]
    for line in over:
        print(f"TOO MUCH: {line}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
