"""Write and restore training checkpoints."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from mpcc.config import training_key
from mpcc.runs import run_dir
from mpcc.runs.checkpoints import Checkpoint, quarantine_damaged
from mpcc.shell import message_of
from mpcc.training.state import TrainState

log = logging.getLogger(__name__)


def write_checkpoint(path: Path, state: TrainState, result: dict[str, Any] | None = None) -> None:
    """Write everything that a bit-identical resume needs; at a trial's end also its result."""
    content = {
        "trial_key": state.config.trial_key,
        "iteration": state.iteration,
        "parts": {name: part.state() for name, part in state.parts.items()},
        "average": state.average,
        "rng": state.rng.get_state(),
        "seconds": state.seconds,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    run_dir.write_checkpoint(
        path, buffer.getvalue(), iteration=state.iteration, rows=state.rows, result=result
    )


def restore(state: TrainState, path: Path) -> None:
    """Restore the newest intact checkpoint, else start at iteration 0; log unusable checkpoints.
    For an ended run, restore its final model; RunDirError if that is impossible."""
    found, damaged = quarantine_damaged(path)
    problems = list(damaged.values())
    result = run_dir.read_result(path)
    ended = result is not None and result["state"] in (run_dir.DONE, run_dir.DIVERGED)
    for checkpoint, content in fitting(found, state, path, problems):
        iteration = content["iteration"]
        if not 0 <= iteration < state.config.iterations + ended:
            # A final checkpoint without its result is skipped: training resumes from the one before
            # and repeats the last evaluation.
            why = f"is of iteration {iteration}, and the result is missing"
            problems.append(f"a checkpoint in {path} {why}")
            continue
        rows = rows_until(checkpoint, iteration, state, path)
        if rows is None:
            problems.append(f"a checkpoint in {path} has lost its evaluations")
            continue
        load_model(state, content)
        state.rng.set_state(content["rng"].cpu())
        state.seconds = content["seconds"]
        state.rows = rows
        break
    else:
        if ended:
            why = "; ".join(problems) or f"{path} holds no checkpoint"
            raise run_dir.RunDirError(f"{path} has ended, and its model cannot be loaded: {why}")
    if problems:
        start = f"going on at iteration {state.iteration}" if state.iteration else "starting over"
        log.warning("%s; %s", "; ".join(problems), start)


def fitting(
    found: Sequence[Checkpoint], state: TrainState, path: Path, problems: list[str]
) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
    """Each checkpoint of this trial, or of the same trial before it was extended, with its content.

    Appends to `problems` why each of the others does not fit, one line each.
    """
    shorter = [state.config.override(iterations=n) for n in run_dir.earlier_iterations(path)]
    keys = {config.trial_key for config in (state.config, *shorter)}
    for checkpoint in found:
        try:
            file = io.BytesIO(checkpoint.payload)
            content = torch.load(file, map_location=state.device, weights_only=True)
            foreign = content["trial_key"] not in keys
            problem = "belongs to another trial" if foreign else misfit(content, state)
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
            problem = f"cannot be read: {message_of(error, 200)}"
        if problem:
            problems.append(f"a checkpoint in {path} {problem}")
        else:
            yield checkpoint, content


def load_trained(state: TrainState, trained: Path) -> dict[str, float]:
    """Load the model of a trial that is done from its checkpoint, without its evaluations.

    Returns the losses of its last iteration. RunDirError if it is another model or unavailable.
    """
    config, saved = state.config, run_dir.read_config(trained)
    if saved is None or training_key(saved) != training_key(config):
        raise run_dir.RunDirError(f"{trained} holds another model than this trial's")
    state.config = saved
    restore(state, trained)
    last = state.rows[-1] if state.rows else {}
    if state.iteration != config.iterations or last.get("iteration") != state.iteration:
        raise run_dir.RunDirError(f"the checkpoint in {trained} is not of its last iteration")
    state.config, state.rows, state.seconds["evaluate"] = config, [], 0.0
    return {name: float(value) for name, value in last.items() if name.startswith("loss/")}


def load_model(state: TrainState, content: dict[str, Any]) -> None:
    """Load weights, their average and the iteration from the content of a checkpoint."""
    for name, part in state.parts.items():
        part.load_state(content["parts"][name])
    for average, saved in zip(state.average, content["average"], strict=True):
        average.copy_(saved)
    state.iteration = content["iteration"]


def rows_until(
    checkpoint: Checkpoint, iteration: int, state: TrainState, path: Path
) -> list[dict[str, Any]] | None:
    """The evaluations up to a checkpoint; None if it has version 1 and metrics.jsonl lacks some."""
    if checkpoint.rows is not None:
        return list(checkpoint.rows)
    try:
        rows = [row for row in run_dir.read_metrics(path) if row["iteration"] <= iteration]
    except run_dir.RunDirError:
        return None
    every = state.config.eval_every
    wanted = set(range(every, iteration + 1, every))
    return rows if wanted <= {row["iteration"] for row in rows} else None


def misfit(content: dict[str, Any], state: TrainState) -> str | None:
    """Why a checkpoint does not fit the state, such as one of another version's networks.

    Checks everything before loading: a partial load would mix two models.
    """
    pairs = list(zip_longest(state.average, content["average"]))
    for name, part in state.parts.items():
        saved = content["parts"].get(name, {})
        pairs += [(tensor, saved.get(key)) for key, tensor in part.state().items()]
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return "is of other networks; another version wrote it"
    return None
