"""Estimates a sweep's time by the pace of trials with the same settings.

A trial's time is that of its iterations and evaluations at the pace of its shape
(`mpcc.training.pace`), from the newest record of this machine or from a measurement in processes of
its own. The sweep's time follows: its trials start longest first, `n_at_once` side by side.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpcc.config import Config
from mpcc.machine import gpus_here
from mpcc.runs import run_dir
from mpcc.training.pace import Pace, Shape, of_record, shape
from tune.display import log
from tune.engine.spec import Settings
from tune.plan.cells import Trial
from tune.plan.plan import TRIALS
from tune.plan.state import clock
from tune.store.folder import Store

START_SECONDS = 7.0
"""Time from the command to the first iteration: Ray, torch and the data."""
TRIAL_SECONDS = 1.2
"""Time of a trial beside its training and evaluations: Ray, its pictures, its files."""
MAX_RECORDS = 300
LIMIT_SECONDS = 180.0
"""Limit for the whole measurement."""


def estimate(
    settings: Settings, store: Store, trials: Sequence[Trial], reached: Mapping[str, int]
) -> str:
    """The time that these trials will take from the iterations that they have `reached`:

    `about 6:10, 0.2 core-hours (from earlier trials on this machine), 2 at a time`.
    ValueError if no record tells their pace and it cannot be measured.
    """
    on_gpu = settings.gpus != 0 and gpus_here() > 0
    paces = from_records(store.out.parent, "cuda" if on_gpu else "cpu")
    shapes = [shape(trial.config) for trial in trials]
    unknown = [t for t, known in zip(trials, shapes, strict=True) if known not in paces]
    if unknown:
        paces |= measure(unknown, settings)
    n_at_once = settings.n_at_once(trials, max(paces[known].together for known in shapes))
    seconds = [
        trial_seconds(trial.config, reached.get(trial.key, 0), paces[known])
        for trial, known in zip(trials, shapes, strict=True)
    ]
    hours = sum(seconds) * settings.device_share(trials, n_at_once) / 3600
    source = "a measurement" if unknown else "earlier trials on this machine"
    text = f"{hours:.2g} {'GPU' if on_gpu else 'core'}-hours (from {source})"
    if n_at_once is None:
        return text
    whole = START_SECONDS + makespan(seconds, n_at_once)
    return f"about {clock(whole)}, {text}, {n_at_once} at a time"


def trial_seconds(config: Config, reached: int, pace: Pace) -> float:
    """The seconds of a trial from the iterations that it has `reached` to its end."""
    left = config.iterations - reached
    evaluations = max(1, math.ceil(left / config.eval_every))
    return left * pace.iteration + evaluations * pace.evaluation + pace.scores + TRIAL_SECONDS


def makespan(seconds: Iterable[float], n_at_once: int) -> float:
    """The time to run all of these, longest first, `n_at_once` side by side."""
    ends = [0.0] * n_at_once
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def from_records(sweeps: Path, device: str) -> dict[Shape, Pace]:
    """The pace of every shape that has finished trials in these sweeps, by the newest of them.

    Only trials of this machine and of this kind of device, `cpu` or `cuda`, count.
    """
    paces: dict[Shape, Pace] = {}
    files = sweeps.glob(f"*/{TRIALS}/*/{run_dir.RESULT}")
    for file in sorted(files, key=lambda f: f.stat().st_mtime)[-MAX_RECORDS:]:
        with contextlib.suppress(ValueError, OSError):  # A damaged record is skipped.
            record = of_record(file.parent, device)
            if record is not None:
                paces[record[0]] = record[1]
    return paces


def measure(trials: Sequence[Trial], settings: Settings) -> dict[Shape, Pace]:
    """The pace of each shape of these trials, with as many processes side by side as will run.

    ValueError if a process fails or takes too long, and for trials that run elsewhere or whose
    data are not on this machine.
    """
    if not settings.local or isinstance(settings.data_dir, str):
        raise ValueError("only trials and data of this machine can be measured")
    n_gpus = 0 if settings.gpus == 0 else gpus_here()
    n_at_once = settings.n_at_once(trials) or 1
    if n_gpus:  # One of them is measured; trials that share a process are one process.
        n_at_once = 1 if settings.trials_per_gpu else math.ceil(n_at_once / n_gpus)
    configs = {shape(trial.config): trial.config for trial in trials}
    log(f"measuring (settings: {len(configs)}, at a time: {n_at_once}) …")
    full = n_at_once * math.ceil(len(configs) / n_at_once)
    keys = list(itertools.islice(itertools.cycle(configs), full))
    deadline = time.monotonic() + LIMIT_SECONDS
    with ThreadPoolExecutor(n_at_once) as pool:
        paces = pool.map(lambda key: _measured(configs[key], settings, deadline), keys)
        return dict(zip(keys, paces, strict=True))


def _measured(config: Config, settings: Settings, deadline: float) -> Pace:
    """The pace that another process measures; ValueError with its last line if it fails."""
    device = "cpu" if settings.gpus == 0 else "auto"
    words = [json.dumps(config.to_dict()), device, str(settings.trials_per_gpu or 1)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mpcc.training.pace", *words, str(settings.data_dir or "")],
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"OMP_NUM_THREADS": str(config.cpu_threads)},
            capture_output=True,
            text=True,
            timeout=max(0.0, deadline - time.monotonic()),
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"measuring took more than {LIMIT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"measuring failed: {last}")
    return Pace(**json.loads(done.stdout.splitlines()[-1]))
