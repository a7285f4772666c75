"""How long a sweep will take: from records of the same settings, or from a pilot (`tune.pilot`).

A trial's time is so many iterations and so many evaluations, each at its pace; the sweep's follows
by dealing the trials out, the longest first, to as many places as run at a time.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc import run_dir
from mpcc.config import Config
from tune import ledger
from tune.grid import cost
from tune.groups import gpus_here
from tune.ledger import Trial
from tune.progress import clock

if TYPE_CHECKING:
    from tune.settings import Settings

TIMELESS = frozenset(
    "seed iterations eval_every network_lr prior_lr prior_adversarial_lr prior_entropy_weight "
    "prior_entropy prior_floor prior_init_log_var prior_min_std given_cluster_weights ema_decay "
    "ema_start max_saturation min_diversity".split()
)
"""Fields that do not change how long an iteration or an evaluation takes."""
START_SECONDS = 7.0
"""From the command to the first iteration: Ray, torch and the data."""
TRIAL_SECONDS = 1.2
"""Around a trial's training and evaluations: Ray, its pictures, its files."""
MAX_PILOTS = 8
MAX_RECORDS = 300

Shape = tuple[tuple[str, object], ...]


class EstimateError(ValueError):
    """The pilot could not run; the message is one line."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one iteration and of one evaluation of trials of one shape, side by side with
    as many others as a sweep would run."""

    iteration: float
    evaluation: float
    device: str
    scores: float = 0.0
    """Of generated images, once at the end; in records a part of the evaluations."""
    together: int = 1
    """Trials of one process that were measured at once."""


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
        kind = "GPU-hours" if self.device.startswith("cuda") else "core-hours"
        hours = f"{self.device_hours:.2g} {kind}"
        took = f"about {clock(self.seconds)}, " if self.seconds is not None else ""
        return f"{took}{hours} (from {self.source})"


def shape(config: Config) -> Shape:
    """What decides how long an iteration of this configuration takes."""
    return tuple((n, v) for n, v in config.to_dict().items() if n not in TIMELESS)


def from_records(folders: Iterable[Path], device: str = "cpu") -> dict[Shape, Pace]:
    """The pace of every shape that has ended trials in these sweeps, made on this machine and on
    this kind of device, `cpu` or `cuda`."""
    found: dict[Shape, list[Pace]] = {}
    files = [f for folder in folders for f in folder.glob(f"{ledger.TRIALS}/*/{run_dir.RESULT}")]
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True)[:MAX_RECORDS]:
        try:
            result, config = run_dir.read_result(file.parent), run_dir.read_config(file.parent)
            provenance = run_dir.read_json(file.parent / run_dir.PROVENANCE) or {}
            rows = len(run_dir.read_metrics(file.parent))
        except (ValueError, OSError):
            continue
        if not result or not config or result["state"] != run_dir.DONE or not rows:
            continue
        ran_on = str(provenance.get("device", "cpu"))
        if provenance.get("machine") == platform.node() and ran_on.startswith(device):
            seconds = result["seconds"]
            train, evaluate = seconds["train"] / result["iteration"], seconds["evaluate"] / rows
            pace = Pace(train, evaluate, ran_on)
            found.setdefault(shape(config), []).append(pace)
    return {key: _median(paces) for key, paces in found.items()}


def by_pilot(trials: Sequence[Trial], n_at_once: int, where: Settings) -> dict[Shape, Pace]:
    """Measure a few iterations and an evaluation of each shape, as many side by side as will run.

    where: the sweep's settings; trials that would share a GPU are measured in one process.

    EstimateError where a pilot fails, with its last line.
    """
    shapes: dict[Shape, list[Trial]] = {}
    for trial in trials:
        shapes.setdefault(shape(trial.config), []).append(trial)
    largest = sorted(shapes, key=lambda key: -len(shapes[key]))[:MAX_PILOTS]
    paces = {}
    for number, key in enumerate(largest, 1):
        trial = shapes[key][0]
        print(f"pilot {number} of {len(largest)}: {trial.cell.text}", file=sys.stderr, flush=True)
        paces[key] = _pilot(trial.config, n_at_once, where)
    return paces


def estimate(
    trials: Sequence[Trial],
    reached: Mapping[str, int],
    paces: Mapping[Shape, Pace],
    n_at_once: int | None,
    share: float,
    source: str,
) -> Estimate | None:
    """What these trials take from the iterations that they have `reached`; None without a pace."""
    if not paces or not trials:
        return None
    seconds, device = [], "cpu"
    for trial in trials:
        pace, scale = _pace(trial.config, paces)
        left = trial.config.iterations - reached.get(trial.key, 0)
        evaluations = math.ceil(left / trial.config.eval_every)
        own = left * pace.iteration * scale + evaluations * pace.evaluation + pace.scores
        seconds.append(own)
        device = pace.device
    each = [one + TRIAL_SECONDS for one in seconds]
    whole = START_SECONDS + makespan(each, n_at_once) if n_at_once else None
    return Estimate(whole, sum(each) * share / 3600, device, source)


def makespan(seconds: Iterable[float], n_at_once: int) -> float:
    """When the last of these ends that start in order of length, so many at a time."""
    places = [0.0] * n_at_once
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(places, places[0] + one)
    return max(places)


def _pace(config: Config, paces: Mapping[Shape, Pace]) -> tuple[Pace, float]:
    """The pace of this configuration, or that of the most similar one and the ratio of work."""
    key = shape(config)
    if key in paces:
        return paces[key], 1.0
    nearest = max(paces, key=lambda other: sum(a == b for a, b in zip(other, key, strict=True)))
    like = config.override(**dict(nearest))
    return paces[nearest], _work(config) / _work(like)


def _work(config: Config) -> float:
    return cost(config) / config.iterations


def _median(paces: Sequence[Pace]) -> Pace:
    return Pace(
        statistics.median(pace.iteration for pace in paces),
        statistics.median(pace.evaluation for pace in paces),
        paces[0].device,
        statistics.median(pace.scores for pace in paces),
        paces[0].together,
    )


def gpu_for(number: int) -> dict[str, str]:
    """The environment of one of several processes, so that they are spread over the GPUs."""
    n_gpus = gpus_here()
    spread = n_gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ
    return {"CUDA_VISIBLE_DEVICES": str(number % n_gpus)} if spread else {}


def _pilot(config: Config, n_at_once: int, where: Settings) -> Pace:
    """Run the pilot program so many times at once; once, where trials share a process."""
    threads = str(config.cpu_threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    device = "cpu" if where.gpus == 0 else "auto"
    together = where.trials_per_gpu or 1
    words = [sys.executable, "-m", "tune.pilot", json.dumps(config.to_dict()), device]
    words += [str(together), str(where.data_dir or "")]
    running = [
        subprocess.Popen(
            words,
            cwd=Path(__file__).resolve().parents[1],
            env=environment | gpu_for(number),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(1 if together != 1 and gpus_here() else n_at_once)
    ]
    paces = []
    for process in running:
        out, err = process.communicate()
        if process.returncode != 0:
            last = (err.strip().splitlines() or ["no reason given"])[-1]
            raise EstimateError(f"the pilot failed: {last}")
        paces.append(Pace(**json.loads(out.splitlines()[-1])))
    return _median(paces)
