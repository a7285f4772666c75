"""Measure one configuration: `python -m tune.pilot CONFIG_JSON DEVICE [DATA_DIR]`.

A few iterations and an evaluation, printed as one line of JSON; nothing is written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from mpcc.algorithm import train_step
from mpcc.config import from_dict
from mpcc.data import load
from mpcc.evaluation import evaluate
from mpcc.state import build_state
from mpcc.trainer import resolve_device

WARM_UP = 3
SECONDS = 4.0
"""How long iterations are measured, at least."""


def main() -> None:
    """Print `{"iteration": s, "evaluation": s, "device": name}`."""
    config = from_dict(json.loads(sys.argv[1]))
    device = resolve_device(sys.argv[2])
    torch.set_num_threads(config.cpu_threads)
    state = build_state(
        config, load(config, Path(sys.argv[3]) if len(sys.argv) > 3 else None), device
    )
    for _ in range(WARM_UP):
        train_step(state)
    n, begun = 0, _now(device)
    while n < 2 or _now(device) - begun < SECONDS:
        train_step(state)
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
