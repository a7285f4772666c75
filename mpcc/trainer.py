"""One trial from its first iteration, or its last checkpoint, to its result."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
import platform
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpcc import baseline, metrics, run_dir
from mpcc.code_version import code_fingerprints, code_version
from mpcc.config import Config
from mpcc.cuda_graph import stepper
from mpcc.data import DataError, ImageSet, load
from mpcc.device import prepare_process, resolve_device
from mpcc.evaluation import evaluate, generation_scores, write_pictures
from mpcc.networks import n_parameters
from mpcc.state import TrainState, build_state

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
MAX_CHECKPOINT_SHARE = 0.02
"""Of the time, for checkpoints by time; 0 seconds between them means after every iteration."""
FLUSH_EVERY_ON_GPU = 50
"""Iterations between looks at the losses on a GPU, where each look waits for the device."""


@dataclass(frozen=True)
class Progress:
    """What `train` says about a trial from time to time."""

    iteration: int
    iterations: int
    seconds: float
    """Training and evaluation so far, over all attempts."""
    state: Literal["running", "done", "diverged"]
    metrics: dict[str, Any] | None = None
    """The row of an evaluation that has just been made."""
    cause: str | None = None


def train(
    config: Config,
    path: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    checkpoint_iterations: int | None = None,
    image_set: ImageSet | None = None,
) -> Generator[Progress]:
    """Train one trial in its run directory, on from its last checkpoint, until it has a result.

    A checkpoint is written after so many seconds, or after so many iterations where they are given,
    whichever comes first. Yields about every second and at every evaluation. Closing the iterator
    early writes a checkpoint. A trial that has ended yields its end at once. Raises DataError and
    RunDirError (one line, the user's to mend); other errors are faults of the machine or the code.
    """
    path = Path(path)
    run_dir.check_run(path, config)
    ended = run_dir.read_result(path)
    if ended is not None and ended["state"] in (run_dir.DONE, run_dir.DIVERGED):
        seconds = sum(ended.get("seconds", {}).values())
        cause = ended.get("cause")
        yield Progress(ended["iteration"], config.iterations, seconds, ended["state"], None, cause)
        return
    where = resolve_device(device)
    prepare_process(config, where)
    # Before anything is written: images that are refused leave no directory behind.
    image_set = load(config, data_dir) if image_set is None else image_set
    if config.conditional and image_set.labels is None:
        raise DataError(
            f"conditional=true needs labels, and the images of {config.dataset} have none: "
            "set conditional=false or choose a data set with labels"
        )
    run_dir.open_run(path, config)
    write_provenance(path, config, image_set, where)
    state = build_state(config, image_set, where)
    restore(state, path)
    run_dir.drop_metrics_after(path, state.iteration)
    yield from _Run(state, path, checkpoint_seconds, checkpoint_iterations).iterate()


class _Run:
    """A trial under way: its state, its directory, and when it last wrote and spoke."""

    def __init__(
        self, state: TrainState, path: Path, seconds: float, iterations: int | None
    ) -> None:
        self.state, self.path = state, path
        self.checkpoint_seconds, self.checkpoint_iterations = seconds, iterations or math.inf
        self.between_checkpoints = seconds
        self.saved_iteration = state.iteration
        self.saved = self.spoke = self.clock = time.monotonic()

    def iterate(self) -> Generator[Progress]:
        """Train to the end; see `train`."""
        state, config = self.state, self.state.config
        step = stepper(state)
        waiting: list[dict[str, Tensor]] = []
        flush_every = 1 if state.device.type == "cpu" else FLUSH_EVERY_ON_GPU
        try:
            while state.iteration < config.iterations:
                waiting.append(step())
                last = state.iteration == config.iterations
                evaluating = last or state.iteration % config.eval_every == 0
                if not evaluating and len(waiting) < flush_every:
                    continue
                cause = first_not_finite(waiting, state.iteration)
                self._count("train")
                if cause is not None:
                    write_result(self.path, state, run_dir.DIVERGED, cause, {})
                    self.saved_iteration = state.iteration
                    yield self._progress(state="diverged", cause=cause)
                    return
                if evaluating:
                    row = self._evaluate(waiting[-1], last)
                    yield self._progress(state="done" if last else "running", metrics=row)
                waiting = []
                if not last and self._checkpoint_due():
                    self._save()
                if not last and time.monotonic() - self.spoke > PROGRESS_SECONDS:
                    self.spoke = time.monotonic()
                    yield self._progress()
                self.clock = time.monotonic()
        except GeneratorExit:
            if state.iteration > self.saved_iteration:
                self._save()
            raise

    def _evaluate(self, terms: dict[str, Tensor], last: bool) -> dict[str, Any]:
        """Record the model's scores; the last time, its end as well."""
        state = self.state
        evaluation = evaluate(state)
        values = {name: float(value) for name, value in terms.items()}
        row = {"iteration": state.iteration} | evaluation.metrics | values
        unavailable: dict[str, str] = {}
        if last:
            generated, unavailable = generation_scores(state, evaluation)
            row |= generated
        self._count("evaluate")
        row["seconds"] = round(state.seconds["train"], 3)
        run_dir.append_metrics(self.path, row)
        if last:
            write_pictures(self.path, state, evaluation)
            # In this order: a checkpoint at the end always has its result beside it.
            write_result(self.path, state, run_dir.DONE, None, row, unavailable)
            self._save()
        return row

    def _count(self, what: str) -> None:
        """Add the time since the last look to that of training or evaluation."""
        now = time.monotonic()
        self.state.seconds[what] += now - self.clock
        self.clock = now

    def _checkpoint_due(self) -> bool:
        iterations = self.state.iteration - self.saved_iteration
        seconds = time.monotonic() - self.saved
        return iterations >= self.checkpoint_iterations or seconds > self.between_checkpoints

    def _save(self) -> None:
        begun = time.monotonic()
        write_checkpoint(self.path, self.state)
        self.saved_iteration, self.saved = self.state.iteration, time.monotonic()
        if self.checkpoint_seconds:
            # Those of a large model, or to a slow disk, come less often: they cost a share of time.
            least = (self.saved - begun) / MAX_CHECKPOINT_SHARE
            self.between_checkpoints = max(self.checkpoint_seconds, least)

    def _progress(self, **more: Any) -> Progress:
        seconds = sum(self.state.seconds.values())
        given = {"state": "running"} | more
        return Progress(self.state.iteration, self.state.config.iterations, seconds, **given)


def first_not_finite(waiting: list[dict[str, Tensor]], iteration: int) -> str | None:
    """The first loss of the last iterations that is not finite, in words; None where all are."""
    values = torch.stack([torch.stack(list(terms.values())).double() for terms in waiting])
    finite = values.isfinite()
    if bool(finite.all()):
        return None
    row, column = (~finite).nonzero()[0].tolist()
    term = list(waiting[row])[column]
    return f"{term} is not finite at iteration {iteration - len(waiting) + 1 + row}"


def write_checkpoint(path: Path, state: TrainState) -> None:
    """Everything that training goes on from, to the bit."""
    content = {
        "trial_key": state.config.trial_key,
        "iteration": state.iteration,
        "parts": {name: part.state() for name, part in state.parts().items()},
        "average": state.average,
        "rng": state.rng.get_state(),
        "seconds": state.seconds,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    run_dir.write_checkpoint(path, buffer.getvalue())


def restore(state: TrainState, path: Path) -> None:
    """Go on from the newest intact checkpoint; from the start, loudly, where none is intact."""
    payloads, problems = run_dir.read_checkpoints(path)
    shorter = [state.config.override(iterations=n) for n in run_dir.earlier_iterations(path)]
    keys = {config.trial_key for config in (state.config, *shorter)}
    for payload in payloads:
        try:
            content = torch.load(io.BytesIO(payload), map_location=state.device, weights_only=True)
            problem = unfit(content, state, keys)
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
            problem = f"cannot be read: {(str(error).splitlines() or ['no reason given'])[0]}"
        if problem:
            problems.append(f"a checkpoint in {path} {problem}")
            continue
        for name, part in state.parts().items():
            part.load_state(content["parts"][name])
        for average, saved in zip(state.average, content["average"], strict=True):
            average.copy_(saved)
        state.rng.set_state(content["rng"].cpu())
        state.iteration = content["iteration"]
        state.seconds = content["seconds"]
        break
    if problems:
        start = f"going on at iteration {state.iteration}" if state.iteration else "starting over"
        log.warning("%s; %s", "; ".join(problems), start)


def unfit(content: dict[str, Any], state: TrainState, keys: Collection[str]) -> str | None:
    """Why training cannot go on from a checkpoint, such as one of another version's networks.

    `keys` are those of this trial and of its shorter self.
    Looked at as a whole before anything is taken over: half a checkpoint would be a third model.
    """
    if content["trial_key"] not in keys:
        return "belongs to another trial"
    if not 0 <= content["iteration"] < state.config.iterations:
        # A checkpoint of the end has its result beside it, unless that was damaged or deleted: the
        # last evaluation is then made again, from the checkpoint before.
        return f"is of iteration {content['iteration']}, and the result is missing"
    pairs = list(zip(state.average, content["average"], strict=False))
    complete = len(state.average) == len(content["average"])
    for name, part in state.parts().items():
        saved = content["parts"].get(name, {})
        for key, tensor in part.state().items():
            complete &= key in saved
            pairs += [(tensor, saved[key])] if key in saved else []
    if not complete or any(ours.shape != theirs.shape for ours, theirs in pairs):
        return "is of other networks; another version wrote it"
    return None


def write_result(
    path: Path,
    state: TrainState,
    outcome: str,
    cause: str | None,
    row: dict[str, Any],
    unavailable: dict[str, str] | None = None,
) -> None:
    """Record how the trial ended."""
    last = {k: v for k, v in row.items() if k not in ("iteration", "seconds")}
    digest = hashlib.sha256()
    for part in state.parts().values():
        for name, tensor in part.state().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    run_dir.write_json(
        path / run_dir.RESULT,
        {
            "state": outcome,
            "cause": cause,
            "iteration": state.iteration,
            "trial_key": state.config.trial_key,
            "metrics": last,
            "failures": list(metrics.failures(last, state.config.max_saturation)),
            "unavailable": unavailable or {},
            "baseline": kmeans_baseline(state),
            "weights_sha256": digest.hexdigest(),
            "n_parameters": {
                "generator": n_parameters(state.generator),
                "discriminator": n_parameters(state.discriminator),
                "encoder": n_parameters(state.encoder),
            },
            "seconds": {name: round(value, 3) for name, value in state.seconds.items()},
        },
    )


def write_provenance(path: Path, config: Config, image_set: ImageSet, device: torch.device) -> None:
    """Record what a reader needs to judge and repeat the trial; refuse other data than before."""
    file = path / run_dir.PROVENANCE
    before = run_dir.read_provenance(path)
    was = (before.get("data") or {}).get("fingerprint", image_set.fingerprint)
    if was != image_set.fingerprint:
        raise run_dir.RunDirError(
            f"{path} was begun on {config.dataset} data {was}, now {image_set.fingerprint}: "
            "bring the same data or choose another --out"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    run_dir.write_json(
        file,
        {
            "code": code_version(),
            "code_files": code_fingerprints(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.node(),
            "device": device.type + (f":{name}" if name else ""),
            "cpu_threads": torch.get_num_threads(),
            "data": {
                "dataset": config.dataset,
                "fingerprint": image_set.fingerprint,
                "n_images": len(image_set),
                "notes": list(image_set.notes),
            },
            "started": before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def kmeans_baseline(state: TrainState) -> dict[str, float]:
    """Majority accuracy of k-means on the same pixels; empty without labels or clusters."""
    if state.labels is None or not state.prior.has_clusters:
        return {}
    accuracy = baseline.kmeans_acc_majority(state.image_set, state.config.n_clusters)
    return {"kmeans_acc_majority": accuracy}
