"""One trial from its first iteration, or its last checkpoint, to its result."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from mpcc.config import Config
from mpcc.data.image_set import ImageSet, held_out, load
from mpcc.data.own_images import image_files
from mpcc.data.places import DataError
from mpcc.evaluation import baseline
from mpcc.evaluation.evaluate import NotFinite, error_text, evaluate, generation_scores
from mpcc.evaluation.failures import failures
from mpcc.evaluation.trial_pictures import write_pictures
from mpcc.machine import processor_name
from mpcc.model.networks import n_parameters
from mpcc.runs import run_dir
from mpcc.runs.code_version import code_fingerprints, code_version
from mpcc.training.algorithm import train_step
from mpcc.training.checks import check_images
from mpcc.training.device import check_precision, prepare_process, resolve_device
from mpcc.training.resume import load_trained, restore, write_checkpoint
from mpcc.training.state import TrainState, build_state
from mpcc.use.trained import for_use

PROGRESS_SECONDS = 1.0
MAX_CHECKPOINT_SHARE = 0.02
"""Largest share of the time that time-based checkpoints may take; checkpoint_seconds=0 is exempt:
it writes one at every check of the losses."""
FLUSH_EVERY_ON_GPU = 50
"""Iterations between checks of the losses on a GPU: each check waits for the device."""


@dataclass(frozen=True)
class Progress:
    """What `train` reports about a trial from time to time."""

    iteration: int
    iterations: int
    seconds: float
    """Seconds of training and evaluation so far, over all attempts."""
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
    fingerprint: str | None = None,
    trained: Path | None = None,
) -> Generator[Progress]:
    """Train one trial in its run directory, from its last checkpoint on, until it has a result.

    A checkpoint is due after checkpoint_seconds or, if given, checkpoint_iterations, whichever is
    first; on a GPU, within 50 iterations. Yields about every second and at every evaluation.
    Closing the iterator early writes a checkpoint. A done or diverged trial yields its end at once.
    fingerprint: required fingerprint of the images; DataError for another.
    trained: run directory of a trial that is done and trains the same model: that model is
      evaluated, and nothing is trained.
    Raises DataError and RunDirError, and ValueError for a device or precision that is not available
    (one line, for the user to fix); other errors come from the infrastructure or are bugs.
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
    check_precision(config, where)
    prepare_process(config, where)
    # Before anything is written: images that are refused leave nothing behind.
    files = None
    if image_set is None:
        image_set = load(config, data_dir)
        files = image_files(config, data_dir, len(image_set.images))
    labels = image_set.labels
    n_labels = None if labels is None else int(labels.max()) + 1
    check_images(config, image_set.images.shape, n_labels)
    check_same_images(trained or path, config, image_set, fingerprint)
    others = held_out(config, image_set, data_dir) if config.eval_split == "test" else None
    run_dir.open_run(path, config)
    state = build_state(config, image_set, where)
    state.held_out = others
    losses: dict[str, float] = {}
    if trained is None:
        restore(state, path)
    else:
        losses = load_trained(state, trained)
    run_dir.write_metrics(path, state.rows)
    if state.updates is not None and trained is None:
        state.updates.check(state)
    write_provenance(path, state, trained)
    run = _Run(state, path, checkpoint_seconds, checkpoint_iterations, files)
    if trained is None:
        yield from run.iterate()
    else:
        yield run.evaluate(losses, last=True)


class _Run:
    """A running trial: its state, its directory, the times of its last checkpoint and report."""

    def __init__(
        self,
        state: TrainState,
        path: Path,
        seconds: float,
        iterations: int | None,
        files: Sequence[str] | None = None,
    ) -> None:
        self.state, self.path, self.files = state, path, files
        self.checkpoint_seconds, self.checkpoint_iterations = seconds, iterations or math.inf
        self.between_checkpoints = seconds
        self.saved_iteration = state.iteration
        self.baseline = kmeans_baseline(state)
        self.saved = self.reported = self.clock = time.monotonic()

    def iterate(self) -> Generator[Progress]:
        """Train to the end; see `train`."""
        state, config = self.state, self.state.config
        waiting: list[dict[str, Tensor]] = []
        flush_every = 1 if state.device.type == "cpu" else FLUSH_EVERY_ON_GPU
        try:
            while state.iteration < config.iterations:
                waiting.append(train_step(state))
                last = state.iteration == config.iterations
                evaluating = last or state.iteration % config.eval_every == 0
                if not evaluating and len(waiting) < flush_every:
                    continue
                cause = first_not_finite(waiting, state.iteration)
                self._count("train")
                if cause is not None:
                    yield self._diverged(cause)
                    return
                if evaluating:
                    progress = self.evaluate(waiting[-1], last)
                    yield progress
                    if progress.state == run_dir.DIVERGED:
                        return
                waiting = []
                if not last and self._checkpoint_due():
                    self._save()
                if not last and time.monotonic() - self.reported > PROGRESS_SECONDS:
                    self.reported = time.monotonic()
                    yield self._progress()
                self.clock = time.monotonic()
        except GeneratorExit:
            if state.iteration > self.saved_iteration:
                self._save()
            raise

    def evaluate(self, terms: Mapping[str, Tensor | float], last: bool) -> Progress:
        """Evaluate the model; record its scores, or that it diverged, and if `last` the result.
        terms: the losses of the last iteration."""
        try:
            row = self._scores(terms, last)
        except NotFinite as error:
            self._count("evaluate")
            return self._diverged(f"{error} at iteration {self.state.iteration}")
        return self._progress(state="done" if last else "running", metrics=row)

    def _scores(self, terms: Mapping[str, Tensor | float], last: bool) -> dict[str, Any]:
        state = self.state
        evaluation = evaluate(state)
        values = {name: float(value) for name, value in terms.items()}
        row = {"iteration": state.iteration} | evaluation.metrics | values
        unavailable = evaluation.unavailable
        if last:
            generated, missing = generation_scores(state, evaluation)
            row |= generated
            unavailable |= missing
        self._count("evaluate")
        row["seconds"] = round(state.seconds["train"], 3)
        run_dir.append_metrics(self.path, row)
        state.rows.append(row)
        if last:
            unavailable |= write_pictures(self.path, state, evaluation)
            # The result is written first, so that a final checkpoint always has its result.
            files = for_use(state, evaluation, self.files)
            self._save(self._end(run_dir.DONE, None, row, unavailable, files))
        return row

    def _diverged(self, cause: str) -> Progress:
        """Record that the trial diverged, with the cause."""
        self._end(run_dir.DIVERGED, cause)
        self.saved_iteration = self.state.iteration
        return self._progress(state="diverged", cause=cause)

    def _end(
        self,
        outcome: str,
        cause: str | None,
        row: Mapping[str, Any] = MappingProxyType({}),
        unavailable: Mapping[str, str] = MappingProxyType({}),
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Record how the trial ended, with the files that belong to it; returns the record.

        `unavailable`: metric or picture -> why it is missing.
        """
        state, reasons = self.state, {n: v for n, v in self.baseline.items() if isinstance(v, str)}
        last = {k: v for k, v in row.items() if k not in ("iteration", "seconds")}
        networks = {n: getattr(state, n) for n in ("generator", "discriminator", "encoder")}
        record = {
            "state": outcome,
            "cause": cause,
            "iteration": state.iteration,
            "trial_key": state.config.trial_key,
            "metrics": last,
            "failures": list(failures(last, state.config.max_saturation)),
            "unavailable": {**unavailable, **reasons},
            "baseline": {n: v for n, v in self.baseline.items() if n not in reasons},
            "weights_sha256": weights_hash(state),
            "n_parameters": {name: n_parameters(network) for name, network in networks.items()},
            "seconds": {name: round(value, 3) for name, value in state.seconds.items()},
        }
        return run_dir.write_result(self.path, record, state.rows, files)

    def _count(self, what: str) -> None:
        """Add the seconds since self.clock was set to those of `what`, `train` or `evaluate`."""
        now = time.monotonic()
        self.state.seconds[what] += now - self.clock
        self.clock = now

    def _checkpoint_due(self) -> bool:
        iterations = self.state.iteration - self.saved_iteration
        seconds = time.monotonic() - self.saved
        return iterations >= self.checkpoint_iterations or seconds > self.between_checkpoints

    def _save(self, result: dict[str, Any] | None = None) -> None:
        begun = time.monotonic()
        write_checkpoint(self.path, self.state, result)
        self.saved_iteration, self.saved = self.state.iteration, time.monotonic()
        if self.checkpoint_seconds:
            # Slow checkpoints are written less often, to stay below MAX_CHECKPOINT_SHARE.
            least = (self.saved - begun) / MAX_CHECKPOINT_SHARE
            self.between_checkpoints = max(self.checkpoint_seconds, least)

    def _progress(self, **more: Any) -> Progress:
        seconds = sum(self.state.seconds.values())
        given = {"state": "running"} | more
        return Progress(self.state.iteration, self.state.config.iterations, seconds, **given)


def first_not_finite(waiting: list[dict[str, Tensor]], iteration: int) -> str | None:
    """The first loss of these iterations that is not finite, in words; None if all are finite."""
    values = torch.stack([torch.stack(list(terms.values())).double() for terms in waiting])
    finite = values.isfinite()
    if bool(finite.all()):
        return None
    row, column = (~finite).nonzero()[0].tolist()
    term = list(waiting[row])[column]
    return f"{term} is not finite at iteration {iteration - len(waiting) + 1 + row}"


def weights_hash(state: TrainState) -> str:
    """SHA-256 of all tensors of a trial's parts: weights, singular vectors and Adam's state."""
    digest = hashlib.sha256()
    for part in state.parts.values():
        for name, tensor in part.state().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_same_images(
    path: Path, config: Config, image_set: ImageSet, fingerprint: str | None = None
) -> None:
    """RunDirError if the trial started on other images; DataError if the sweep uses others."""
    before = (run_dir.read_provenance(path).get("data") or {}).get("fingerprint")
    if before not in (None, image_set.fingerprint):
        raise run_dir.RunDirError(
            f"{path} was begun on {config.dataset} data {before}, now {image_set.fingerprint}: "
            "use the same data files or choose another --out"
        )
    if fingerprint not in (None, image_set.fingerprint):
        raise DataError(
            f"the images of {config.dataset} have fingerprint {image_set.fingerprint}, the sweep's "
            f"other trials {fingerprint}: use the same data files"
        )


def write_provenance(path: Path, state: TrainState, trained: Path | None = None) -> None:
    """Record what a reader needs to judge and repeat the trial, and where training resumes.

    trained: run directory of the trial whose model is only evaluated here; the record keeps the
      code version that trained the model.
    """
    before = run_dir.read_provenance(trained or path)
    config, image_set, device = state.config, state.image_set, state.device
    starts = before.get("starts")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor()
    device_name = device.type + (f":{name}" if name else "")
    if trained is not None:
        files = dict(before.get("code_files") or {})
        files |= {n: h for n, h in code_fingerprints().items() if n.startswith("mpcc/evaluation/")}
        anew = {"model_of": trained.name, "code": code_version(), "device": device_name}
        anew["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        run_dir.write_provenance(path, {**before, "code_files": files, "evaluated_anew": anew})
        return
    run_dir.write_provenance(
        path,
        {
            "code": code_version(),
            "code_files": code_fingerprints(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.node(),
            "device": device_name,
            "processor": name if on_gpu else processor_name(),
            "cpu_threads": torch.get_num_threads(),
            "data": {
                "dataset": config.dataset,
                "fingerprint": image_set.fingerprint,
                "n_images": len(image_set),
                "notes": list(image_set.notes),
            },
            "started": before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "starts": [*(starts if isinstance(starts, list) else []), state.iteration],
        }
        | ({"recorded_iteration": state.updates.outcome} if state.updates else {}),
    )


def kmeans_baseline(state: TrainState) -> dict[str, float | str]:
    """Majority accuracy of k-means on the same pixels, or why there is none; empty without labels
    or clusters."""
    if state.labels is None or not state.prior.has_clusters:
        return {}
    name = "kmeans_acc_majority"
    try:
        return {name: baseline.kmeans_acc_majority(state.image_set, state.config.n_clusters)}
    except Exception as error:
        return {name: error_text(error)}
