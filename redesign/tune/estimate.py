"""How long a sweep will take, by the pace of trials with the same settings.

A trial's time is so many iterations and so many evaluations, each at its pace: by records of this
machine, or measured by `python -m mpcc.pace` in processes of their own. The sweep's time follows:
its trials start in order of length, so many at a time.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcc.machine import gpus_here
from mpcc.pace import Pace, Shape, median, of_record, shape

from mpcc import run_dir
from mpcc.config import Config
from tune.display import log
from tune.engine.settings import Settings
from tune.engine.states import clock
from tune.plan.cells import Trial
from tune.plan.cost import cost
from tune.plan.plan import TRIALS

START_SECONDS = 7.0
"""From the command to the first iteration: Ray, torch and the data."""
TRIAL_SECONDS = 1.2
"""Around a trial's training and evaluations: Ray, its pictures, its files."""
MAX_RECORDS = 300
MAX_SHAPES = 8
"""The most frequent shapes are measured; the others follow by their ratio of work."""
LIMIT_SECONDS = 180.0
"""In all; what has been measured by then has to do."""


class MeasureError(ValueError):
    """Nothing could be measured; the message is one line."""


@dataclass(frozen=True)
class Estimate:
    """What these trials will take."""

    seconds: float | None
    """From the command to its end; None where it is not known how many run at a time."""
    device_hours: float
    """The trials' own hours, summed, times the share of a device that each takes."""
    device: str
    source: str

    @property
    def text(self) -> str:
        """`about 6:10, 0.2 core-hours (from earlier trials on this machine)`."""
        kind = "GPU-hours" if self.device.startswith("cuda") else "core-hours"
        took = f"about {clock(self.seconds)}, " if self.seconds is not None else ""
        return f"{took}{self.device_hours:.2g} {kind} (from {self.source})"


def from_records(folders: Iterable[Path], device: str = "cpu") -> dict[Shape, Pace]:
    """The pace of every shape that has finished trials in these sweeps, by the newest of them.

    Only trials of this machine and of this kind of device, `cpu` or `cuda`, count.
    """
    found: dict[Shape, list[Pace]] = {}
    files = [f for folder in folders for f in folder.glob(f"{TRIALS}/*/{run_dir.RESULT}")]
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True)[:MAX_RECORDS]:
        try:
            record = of_record(file.parent, device)
        except (ValueError, OSError):
            continue
        if record is not None:
            found.setdefault(record[0], []).append(record[1])
    return {key: median(paces) for key, paces in found.items()}


def estimate(
    trials: Sequence[Trial],
    reached: Mapping[str, int],
    paces: Mapping[Shape, Pace],
    n_at_once: int | None,
    share: float,
    source: str,
) -> Estimate:
    """What these trials take from the iterations that they have `reached`."""
    seconds, device = [], "cpu"
    for trial in trials:
        pace, scale = _pace(trial.config, paces)
        left = trial.config.iterations - reached.get(trial.key, 0)
        evaluations = math.ceil(left / trial.config.eval_every)
        own = left * pace.iteration * scale + evaluations * pace.evaluation + pace.scores
        seconds.append(own + TRIAL_SECONDS)
        device = pace.device
    whole = START_SECONDS + makespan(seconds, n_at_once) if n_at_once else None
    return Estimate(whole, sum(seconds) * share / 3600, device, source)


def makespan(seconds: Iterable[float], n_at_once: int) -> float:
    """When the last of these ends that start in order of length, so many at a time."""
    ends = [0.0] * n_at_once
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _pace(config: Config, paces: Mapping[Shape, Pace]) -> tuple[Pace, float]:
    """The pace of this configuration, or that of the most similar one and the ratio of work."""
    key = shape(config)
    if key in paces:
        return paces[key], 1.0
    nearest = max(paces, key=lambda other: sum(a == b for a, b in zip(other, key, strict=True)))
    like = config.override(**dict(nearest))
    return paces[nearest], _work(config) / _work(like)


def _work(config: Config) -> float:
    """Of one iteration."""
    return cost(config) / config.iterations


# -- measured paces -------------------------------------------------------------------------------


def measure(trials: Sequence[Trial], settings: Settings) -> dict[Shape, Pace]:
    """The pace of each shape of these trials, as many side by side as will run.

    Logs what is measured. MeasureError where a process fails, or none ends in time, and
    for trials that run elsewhere or whose data are not here.
    """
    if not settings.local or isinstance(settings.data_dir, str):
        raise MeasureError("only trials and data of this machine can be measured")
    shapes: dict[Shape, list[Trial]] = {}
    for trial in trials:
        shapes.setdefault(shape(trial.config), []).append(trial)
    largest = sorted(shapes, key=lambda key: -len(shapes[key]))[:MAX_SHAPES]
    n_at_once = settings.n_at_once(trials) or 1
    deadline, paces = time.monotonic() + LIMIT_SECONDS, {}
    for number, key in enumerate(largest, 1):
        trial = shapes[key][0]
        log(f"measuring {number} of {len(largest)}: {trial.cell.text}")
        try:
            paces[key] = _measured(trial.config, n_at_once, settings, deadline)
        except subprocess.TimeoutExpired:
            if not paces:
                raise MeasureError(f"nothing measured within {LIMIT_SECONDS:.0f} s") from None
            break
    return paces


def _measured(config: Config, n_at_once: int, settings: Settings, deadline: float) -> Pace:
    """The median of so many processes at once; of one, where trials share a process on a GPU."""
    together = settings.trials_per_gpu or 1
    device = "cpu" if settings.gpus == 0 else "auto"
    words = [sys.executable, "-m", "mpcc.pace", json.dumps(config.to_dict()), device]
    words += [str(together), str(settings.data_dir or "")]
    threads, n_gpus = str(config.cpu_threads), gpus_here()
    variables = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    spread = n_gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(1 if together != 1 and n_gpus else n_at_once):
            if spread:
                variables["CUDA_VISIBLE_DEVICES"] = str(number % n_gpus)
            process = subprocess.Popen(
                words,
                cwd=Path(__file__).resolve().parents[1],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        return median([_answer(process, deadline) for process in processes])


def _answer(process: subprocess.Popen[str], deadline: float) -> Pace:
    """What a process has measured; MeasureError with its last line where it fails."""
    out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    if process.returncode != 0:
        last = (err.strip().splitlines() or ["no reason given"])[-1]
        raise MeasureError(f"measuring failed: {last}")
    return Pace(**json.loads(out.splitlines()[-1]))
