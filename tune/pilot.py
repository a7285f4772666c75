"""Measure one configuration: `python -m tune.pilot CONFIG_JSON DEVICE [DATA_DIR]`.

A few iterations and an evaluation, printed as one line of JSON; nothing is written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from mpcc.config import from_dict
from mpcc.cuda_graph import N_PLAIN_ITERATIONS, stepper
from mpcc.data import load
from mpcc.device import prepare_process, resolve_device
from mpcc.evaluation import evaluate
from mpcc.state import build_state

WARM_UP = N_PLAIN_ITERATIONS + 1
SECONDS = 4.0
"""How long iterations are measured, at least."""


def main() -> None:
    """Print `{"iteration": s, "evaluation": s, "device": name}`."""
    config = from_dict(json.loads(sys.argv[1]))
    device = resolve_device(sys.argv[2])
    prepare_process(config, device)
    state = build_state(
        config, load(config, Path(sys.argv[3]) if len(sys.argv) > 3 else None), device
    )
    step = stepper(state)
    for _ in range(WARM_UP):
        step()
    n, begun = 0, _now(device)
    while n < 2 or _now(device) - begun < SECONDS:
        step()
        n += 1
    iteration = (_now(device) - begun) / n
    begun = _now(device)
    evaluate(state)
    evaluation = _now(device) - begun
    print(json.dumps({"iteration": iteration, "evaluation": evaluation, "device": str(device)}))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
