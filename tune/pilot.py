"""Measure one configuration: `python -m tune.pilot CONFIG_JSON DEVICE TOGETHER DATA_DIR`.

A few iterations and an evaluation, printed as one line of JSON; nothing is written. TOGETHER: how
many such trials would share the process on a GPU, or auto. DATA_DIR may be empty.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from mpcc.config import from_dict
from mpcc.cuda_graph import N_PLAIN_ITERATIONS, stepper
from mpcc.data import load
from mpcc.device import prepare_process, resolve_device
from mpcc.evaluation import Evaluation, evaluate, generation_scores
from mpcc.state import TrainState, build_state
from mpcc.together import iterations_per_second, n_trials_for
from tune.estimate import Pace

WARM_UP = N_PLAIN_ITERATIONS + 1
SECONDS = 4.0
"""How long iterations are measured, at least."""
N_SCORED = 500
"""Generated images that are scored to see how long all of them take."""


def main() -> None:
    """Print the fields of `tune.estimate.Pace`."""
    config, device = from_dict(json.loads(sys.argv[1])), resolve_device(sys.argv[2])
    images = load(config, Path(sys.argv[4]) if sys.argv[4] else None)
    prepare_process(config, device)
    state = build_state(config, images, device)
    step = stepper(state)
    for _ in range(WARM_UP):
        step()
    n, begun = 0, _now(device)
    while n < 2 or _now(device) - begun < SECONDS:
        step()
        n += 1
    iteration = (_now(device) - begun) / n
    begun = _now(device)
    found = evaluate(state)
    evaluation, scores, together = _now(device) - begun, seconds_of_scores(state, found), 1
    if device.type == "cuda" and sys.argv[3] != "1":
        auto = sys.argv[3] == "auto"
        together = n_trials_for(config, images, device) if auto else int(sys.argv[3])
        rate = iterations_per_second(config, images, device, together)
        if not rate:
            sys.exit(f"{together} such trials do not run beside each other on this GPU")
        iteration = together / rate
        evaluation *= together  # The host's part of it, one after the other.
    print(json.dumps(asdict(Pace(iteration, evaluation, str(device), scores, together))))


def seconds_of_scores(state: TrainState, evaluation: Evaluation) -> float:
    """What scores of generated images will take, by some of them; what is kept of the data set,
    such as its features, is made here, once for all trials."""
    n = state.config.n_generated
    if n is None:
        return 0.0
    state.config = state.config.override(n_generated=min(n, N_SCORED))
    generation_scores(state, evaluation)
    begun = _now(state.device)
    generation_scores(state, evaluation)
    return (_now(state.device) - begun) * n / min(n, N_SCORED)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
