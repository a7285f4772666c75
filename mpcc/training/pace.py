"""How fast this machine trains: from the record of a trial, or measured in this process.

`python -m mpcc.training.pace CONFIG_JSON DEVICE TOGETHER DATA_DIR` measures a few iterations and an
evaluation, prints one line of JSON and writes nothing. TOGETHER: how many such trials would share
the process on a GPU, or auto. DATA_DIR may be empty.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.config import Config, from_dict
from mpcc.runs import run_dir

if TYPE_CHECKING:
    import torch

    from mpcc.evaluation.evaluate import Evaluation
    from mpcc.training.state import TrainState

TIMELESS = frozenset(
    "seed iterations eval_every network_lr prior_lr prior_adversarial_lr prior_entropy_weight "
    "prior_entropy prior_floor prior_init_log_var prior_min_std given_cluster_weights ema_decay "
    "ema_start eval_split max_saturation min_diversity".split()
)
"""Fields that do not change how long an iteration or an evaluation takes."""
SECONDS = 4.0
"""Minimum time for which iterations are measured."""
N_SCORED = 500
"""Number of generated images that are scored to estimate the time for all of them."""

Shape = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Pace:
    """Seconds per iteration and per evaluation of a trial with these settings, measured with as
    many trials in parallel as a sweep would run."""

    iteration: float
    evaluation: float
    device: str
    scores: float = 0.0
    """Seconds to score generated images (once, at the end); 0 when read from a record, where
    `evaluation` includes it."""
    together: int = 1
    """Number of trials that were measured together in one process."""


def shape(config: Config) -> Shape:
    """The settings that decide how long an iteration or an evaluation takes."""
    return tuple((n, v) for n, v in config.to_dict().items() if n not in TIMELESS)


def of_record(path: Path, device: str) -> tuple[Shape, Pace] | None:
    """The pace of a trial that finished on this machine and kind of device, else None.
    device: `cpu` or `cuda`. Raises what `run_dir` raises for a damaged record."""
    result, config = run_dir.read_result(path), run_dir.read_config(path)
    provenance = run_dir.read_json(path / run_dir.PROVENANCE) or {}
    n_rows = len(run_dir.read_metrics(path))
    if not result or not config or result["state"] != run_dir.DONE or not n_rows:
        return None
    ran_on = str(provenance.get("device", "cpu"))
    if provenance.get("machine") != platform.node() or not ran_on.startswith(device):
        return None
    seconds = result["seconds"]
    train, evaluate = seconds["train"] / result["iteration"], seconds["evaluate"] / n_rows
    return shape(config), Pace(train, evaluate, ran_on)


def main() -> None:
    """Measure a trial's pace and print the fields of `Pace` as JSON."""
    from mpcc.data.image_set import load
    from mpcc.evaluation.evaluate import evaluate
    from mpcc.fast.together import iterations_per_second, n_trials_for
    from mpcc.training.algorithm import train_step
    from mpcc.training.device import prepare_process, resolve_device
    from mpcc.training.state import build_state

    config, device = from_dict(json.loads(sys.argv[1])), resolve_device(sys.argv[2])
    images = load(config, Path(sys.argv[4]) if sys.argv[4] else None)
    prepare_process(config, device)
    state = build_state(config, images, device)
    for _ in range(2):
        train_step(state)
    n, begun = 0, _now(device)
    while n < 2 or _now(device) - begun < SECONDS:
        train_step(state)
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
        evaluation *= together  # On the host, evaluations run one after another.
    print(json.dumps(asdict(Pace(iteration, evaluation, str(device), scores, together))))


def seconds_of_scores(state: TrainState, evaluation: Evaluation) -> float:
    """Estimated seconds to score all generated images, from scoring some of them. A first scoring,
    which is not timed, fills the data set's cache."""
    from mpcc.evaluation.evaluate import generation_scores

    n = state.config.n_generated
    if n is None:
        return 0.0
    n_scored = min(n, max(N_SCORED, state.config.n_is_splits))
    state.config = state.config.override(n_generated=n_scored)
    generation_scores(state, evaluation)
    begun = _now(state.device)
    generation_scores(state, evaluation)
    return (_now(state.device) - begun) * n / n_scored


def _now(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
