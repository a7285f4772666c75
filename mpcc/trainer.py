"""Training of one trial: Algorithm 1 as code, its evaluation, and the loop around both."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpcc import losses, metrics, pictures, run_dir
from mpcc.config import Config
from mpcc.data import ImageSet, load, to_float, to_uint8
from mpcc.networks import (
    Discriminator,
    Encoder,
    Generator,
    Spectral,
    build_networks,
    n_parameters,
)
from mpcc.prior import Prior
from mpcc.weights import FlatPart, ModulePart, Part, Pool, minimise, only_trainable

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
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


@dataclass
class TrainState:
    """Everything that an iteration reads or changes."""

    config: Config
    images: Tensor
    """uint8 (N, C, H, W), on the device."""
    labels: Tensor | None
    generator: Generator
    discriminator: Discriminator
    encoder: Encoder
    prior: Prior
    generator_part: Part
    discriminator_part: Part
    encoder_part: Part
    prior_part: Part | None
    rng: torch.Generator
    average: list[Tensor]
    """Moving average of G's raw parameters, in the order of `raw_parameters`."""
    iteration: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})

    @property
    def device(self) -> torch.device:
        """Where the trial runs."""
        return self.images.device

    def parts(self) -> dict[str, Part]:
        """All parts by name."""
        parts = {
            "generator": self.generator_part,
            "discriminator": self.discriminator_part,
            "encoder": self.encoder_part,
        }
        return parts | ({"prior": self.prior_part} if self.prior_part else {})


# -- Algorithm 1 ----------------------------------------------------------------------------------


@torch.no_grad()
def train_step(state: TrainState) -> dict[str, Tensor]:
    """One iteration of Algorithm 1. Returns losses, 0-d on the device; the caller decides when to
    look at them."""
    terms: dict[str, Tensor] = {}
    for _ in range(state.config.n_discriminator_steps):
        terms["loss/discriminator"] = update_discriminator(state)
    terms["loss/generator"] = update_generator_and_prior(state)
    for i in range(state.config.n_encoder_steps):
        terms |= update_encoder(state, with_prior=i == 0)
    state.iteration += 1
    update_average(state)
    return terms


def update_discriminator(state: TrainState) -> Tensor:
    """Lines 8-12: D learns to tell real images from generated ones. Nothing else moves."""
    x, y_real = draw_batch(state)
    z, y = state.prior.sample(state.config.batch_size, state.rng)
    x_fake = state.generator(z, y)
    labels = torch.cat((y_real, y)) if state.config.conditional else None
    with only_trainable(state.discriminator_part):
        scores = state.discriminator(torch.cat((x, x_fake)), labels)
        real, fake = scores.split(len(x))
        loss = losses.discriminator_hinge_loss(real, fake)
        minimise(loss, state.discriminator_part)
    return loss.detach()


def update_generator_and_prior(state: TrainState) -> Tensor:
    """Lines 14-17: G and the prior, z = μ_y + σ_y ε, learn to raise D's score."""
    config = state.config
    parts = [state.generator_part] + ([state.prior_part] if state.prior_part else [])
    if state.prior_part:
        own = config.prior_adversarial_lr == "prior"
        state.prior_part.lr = config.prior_lr if own else config.network_lr
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        scores = state.discriminator(state.generator(z, y), y if config.conditional else None)
        loss = losses.generator_hinge_loss(scores)
        minimise(loss, *parts)
    return loss.detach()


def update_encoder(state: TrainState, *, with_prior: bool) -> dict[str, Tensor]:
    """Lines 19-27: E learns q(z|x) on generated images; with_prior, the prior its own losses.

    G never moves here, and eq. 7 does not move the prior unless the configuration says so.
    """
    config = state.config
    prior_part = state.prior_part if with_prior else None
    parts = [state.encoder_part] + ([prior_part] if prior_part else [])
    with only_trainable(*parts):
        z, y = state.prior.sample(config.batch_size, state.rng)
        with torch.no_grad():
            x_fake = state.generator(z, y)
        z_mean, z_log_var = state.encoder(x_fake)
        target = z if config.prior_learns_from_encoder_loss else z.detach()
        nll = losses.gaussian_nll(target, z_mean, z_log_var).mean() / config.n_values
        terms = {"loss/encoder": nll.detach()}
        loss = nll
        if prior_part:
            prior_part.lr = config.prior_lr
            membership = losses.membership_loss(state.prior.log_memberships(z), y)
            entropy = losses.prior_entropy_loss(
                state.prior.log_weights, state.prior.entropies(), config.latent_size
            )
            loss = nll + membership + config.prior_entropy_weight * entropy
            terms |= {"loss/membership": membership.detach(), "loss/entropy": entropy.detach()}
        minimise(loss, *parts)
    return terms


def update_average(state: TrainState) -> None:
    """Moving average of G's parameters; a copy up to `ema_start`."""
    early = state.iteration <= state.config.ema_start
    decay = 0.0 if early else state.config.ema_decay
    torch._foreach_lerp_(state.average, raw_parameters(state.generator_part), 1 - decay)


def draw_batch(state: TrainState) -> tuple[Tensor, Tensor | None]:
    """n images from the data, with replacement (line 8), in [-1, 1] with their labels."""
    n = state.config.batch_size
    index = torch.randint(len(state.images), (n,), generator=state.rng, device=state.device)
    x = to_float(state.images[index]).to(state.prior.weight_logits.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return x, state.labels[index] if state.config.conditional and state.labels is not None else None


def raw_parameters(part: Part) -> list[Tensor]:
    """The tensors that hold a part's raw parameters."""
    return [part.raw] if isinstance(part, FlatPart) else part.leaves


# -- building -------------------------------------------------------------------------------------


def build_state(
    config: Config,
    image_set: ImageSet,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """A trial before its first iteration. Weights depend on the seed alone, not on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prior = build_prior(config).to(device, dtype)
        networks = [n.to(device, dtype) for n in build_networks(config)]
    generator, discriminator, encoder = networks
    parts = (build_parts if config.fast else build_plain_parts)(config, *networks)
    has_prior_parameters = any(True for _ in prior.parameters())
    rng = torch.Generator(device)
    rng.manual_seed(config.seed)
    return TrainState(
        config=config,
        images=image_set.images.to(device),
        labels=None if image_set.labels is None else image_set.labels.to(device),
        generator=generator,
        discriminator=discriminator,
        encoder=encoder,
        prior=prior,
        generator_part=parts[0],
        discriminator_part=parts[1],
        encoder_part=parts[2],
        prior_part=Pool([[prior]]).part(0, 0, config.prior_lr) if has_prior_parameters else None,
        rng=rng,
        average=[t.detach().clone() for t in raw_parameters(parts[0])],
    )


def build_prior(config: Config) -> Prior:
    """The prior of a configuration."""
    return Prior(
        config.n_clusters,
        config.latent_size,
        family=config.prior,
        init_log_var=config.prior_init_log_var,
        min_std=config.prior_min_std,
        published_floor=config.prior_floor == "published",
        published_entropy=config.prior_entropy == "published",
        rank=config.prior_rank,
        weights=config.given_cluster_weights,
        learn_weights=config.cluster_weights == "learnt",
    )


def build_parts(
    config: Config, generator: Generator, discriminator: Discriminator, encoder: Encoder
) -> tuple[Part, Part, Part]:
    """Parts of G, D and E. D and E share the trunk's weights, each with its own Adam state."""
    own_d = [m for name, m in discriminator.named_children() if name != "trunk"]
    own_e = [m for name, m in encoder.named_children() if name != "trunk"]
    lr = config.network_lr
    generator_part = Pool([[generator]]).part(0, 0, lr)
    if encoder.trunk is discriminator.trunk:
        pool = Pool([own_d, [discriminator.trunk], own_e])
        return generator_part, pool.part(0, 1, lr), pool.part(1, 2, lr)
    d_part = Pool([own_d, [discriminator.trunk]]).part(0, 1, lr)
    return generator_part, d_part, Pool([[encoder.trunk], own_e]).part(0, 1, lr)


def build_plain_parts(
    config: Config, generator: Generator, discriminator: Discriminator, encoder: Encoder
) -> tuple[Part, Part, Part]:
    """The same by torch's own means (`fast` false)."""
    lr = config.network_lr
    return (
        ModulePart([generator], lr),
        ModulePart([discriminator], lr),
        ModulePart([encoder], lr),
    )


# -- evaluation -----------------------------------------------------------------------------------

CHUNK_BATCHES = 10
"""Batches that one pass of an evaluation takes at once."""
SAMPLES_PER_CLUSTER = 20
N_POWER_ITERATIONS_OF_AVERAGE = 15


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and the arrays that pictures are made of."""

    metrics: dict[str, Any]
    clusters: Tensor | None
    """Cluster of every image, (N,)."""
    z_means: Tensor
    """Mean of q(z|x) of every image, (N, J)."""
    samples: Tensor
    """uint8 generated images, by cluster, SAMPLES_PER_CLUSTER each."""
    sample_clusters: Tensor
    generator: Generator
    """The averaged generator with standing statistics."""


@torch.no_grad()
def evaluate(state: TrainState) -> Evaluation:
    """Scores of the model as it stands. Neither reads nor moves the training's random stream."""
    config = state.config
    rng = torch.Generator(state.device)
    rng.manual_seed(config.seed * 1_000_003 + state.iteration)
    generator = averaged_generator(state, rng)
    z_means, clusters = encode(state)
    row: dict[str, Any] = {}
    if clusters is not None:
        row["n_clusters_used"] = metrics.n_clusters_used(clusters.cpu())
        if state.labels is not None:
            row |= metrics.clustering(state.labels.cpu(), clusters.cpu(), config.n_clusters)
    row |= metrics.reconstruction(reconstruct(state, generator, z_means, clusters))
    samples, sample_clusters = sample_clusters_evenly(state, generator, rng)
    images = state.images.cpu()
    row["saturation"] = metrics.saturation(samples.cpu(), images)
    if clusters is not None:
        row |= metrics.degeneration(
            samples.cpu(),
            sample_clusters.cpu(),
            images,
            clusters.cpu(),
            config.n_clusters,
            config.min_diversity,
        )
    if state.prior.has_clusters:
        row["prior/std_mean"] = float(state.prior.sampling_std.mean())
    return Evaluation(row, clusters, z_means, samples, sample_clusters, generator)


def averaged_generator(state: TrainState, rng: torch.Generator) -> Generator:
    """G with its averaged weights, and batch statistics averaged over passes of its own."""
    config = state.config
    with torch.random.fork_rng(devices=[]):
        generator = Generator(config).to(state.device, state.average[0].dtype)
    live = state.generator_part
    if isinstance(live, FlatPart):
        part = Pool([[generator]]).part(0, 0, 0.0)
        part.load_weights(state.average[0], live.vectors(), N_POWER_ITERATIONS_OF_AVERAGE)
    else:
        generator.load_state_dict(state.generator.state_dict())
        for parameter, average in zip(generator.parameters(), state.average, strict=True):
            parameter.copy_(average)
        for module in generator.modules():
            if isinstance(module, Spectral):
                module.power_iterate(N_POWER_ITERATIONS_OF_AVERAGE)
    for statistics in generator.statistics():
        statistics.state = "collecting"
    for _ in range(config.n_standing_passes):
        generator(*state.prior.sample(config.batch_size, rng))
    for statistics in generator.statistics():
        statistics.state = "standing"
    return generator


def encode(state: TrainState) -> tuple[Tensor, Tensor | None]:
    """Mean of q(z|x) of every image, (N, J), and the cluster that it most likely belongs to, (N,)."""
    size = state.config.batch_size * CHUNK_BATCHES
    means = [state.encoder(as_input(state, chunk))[0] for chunk in state.images.split(size)]
    z_means = torch.cat(means)
    if not state.prior.has_clusters:
        return z_means, None
    memberships = [state.prior.log_memberships(z) for z in z_means.split(size)]
    return z_means, torch.cat(memberships).argmax(1)


def reconstruct(
    state: TrainState, generator: Generator, z_means: Tensor, clusters: Tensor | None
) -> Iterator[tuple[Any, Any]]:
    """(x, G(μ̃, most likely cluster)) batch by batch of `batch_size`, as arrays in [-1, 1]."""
    n = state.config.batch_size
    for start in range(0, len(state.images), n * CHUNK_BATCHES):
        chunk = slice(start, start + n * CHUNK_BATCHES)
        x = as_input(state, state.images[chunk])
        x_hat = generator(z_means[chunk], None if clusters is None else clusters[chunk])
        yield from zip(
            (b.numpy() for b in x.cpu().split(n)),
            (b.numpy() for b in x_hat.cpu().split(n)),
            strict=True,
        )


def sample_clusters_evenly(
    state: TrainState, generator: Generator, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """SAMPLES_PER_CLUSTER images of each cluster, uint8, and their clusters (one without y)."""
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    every = torch.arange(n_clusters, device=state.device).repeat_interleave(SAMPLES_PER_CLUSTER)
    samples = []
    for y in every.split(state.config.batch_size * CHUNK_BATCHES):
        given = y if state.prior.has_clusters else None
        samples.append(to_uint8(generator(state.prior.sample_z(given, len(y), rng), given)))
    return torch.cat(samples), every


def as_input(state: TrainState, images: Tensor) -> Tensor:
    """uint8 images as the networks take them."""
    x = to_float(images).to(state.prior.weight_logits.dtype)
    return x.contiguous(memory_format=torch.channels_last)


# -- one run --------------------------------------------------------------------------------------


def train(
    config: Config,
    path: Path,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    image_set: ImageSet | None = None,
) -> Iterator[Progress]:
    """Train one trial in its run directory, on from its last checkpoint, until it has a result.

    Yields about every second and at every evaluation. Closing the iterator early writes a
    checkpoint. A trial that has ended yields its end at once. Raises DataError and RunDirError
    (one line, the user's to mend); other errors are faults of the machine or the code.
    """
    path = run_dir.open_run(path, config)
    ended = run_dir.read_result(path)
    if ended is not None and ended["state"] != run_dir.FAILED:
        seconds = sum(ended["seconds"].values())
        yield Progress(
            ended["iteration"], config.iterations, seconds, ended["state"], None, ended["cause"]
        )
        return
    where = resolve_device(device)
    if where.type == "cpu":
        torch.set_num_threads(config.cpu_threads)
    image_set = load(config, data_dir) if image_set is None else image_set
    write_provenance(path, config, image_set, where)
    state = build_state(config, image_set, where)
    restore(state, path)
    run_dir.drop_metrics_after(path, state.iteration)
    yield from _loop(state, path, image_set, checkpoint_seconds)


def _loop(
    state: TrainState, path: Path, image_set: ImageSet, checkpoint_seconds: float
) -> Iterator[Progress]:
    config = state.config
    checkpointed = state.iteration
    last_checkpoint = last_progress = clock = time.monotonic()
    waiting: list[dict[str, Tensor]] = []
    flush_every = 1 if state.device.type == "cpu" else FLUSH_EVERY_ON_GPU

    def progress(**more: Any) -> Progress:
        seconds = sum(state.seconds.values())
        given = {"state": "running"} | more
        return Progress(state.iteration, config.iterations, seconds, **given)

    try:
        while state.iteration < config.iterations:
            waiting.append(train_step(state))
            last = state.iteration == config.iterations
            evaluating = last or state.iteration % config.eval_every == 0
            if not evaluating and len(waiting) < flush_every:
                continue
            cause = first_not_finite(waiting, state.iteration)
            now = time.monotonic()
            state.seconds["train"] += now - clock
            clock = now
            if cause is not None:
                write_result(path, state, run_dir.DIVERGED, cause, {})
                checkpointed = state.iteration
                yield progress(state="diverged", cause=cause)
                return
            terms, waiting = waiting[-1], []
            if evaluating:
                evaluation = evaluate(state)
                values = {name: float(value) for name, value in terms.items()}
                row = {"iteration": state.iteration} | evaluation.metrics | values
                state.seconds["evaluate"] += time.monotonic() - clock
                row["seconds"] = round(state.seconds["train"], 3)
                run_dir.append_metrics(path, row)
                if last:
                    write_pictures(path, state, evaluation)
                    baseline = kmeans_baseline(state, image_set)
                    write_checkpoint(path, state)
                    write_result(path, state, run_dir.DONE, None, row, baseline)
                    checkpointed = state.iteration
                    yield progress(state="done", metrics=row)
                    return
                yield progress(metrics=row)
            if time.monotonic() - last_checkpoint > checkpoint_seconds:
                write_checkpoint(path, state)
                checkpointed = state.iteration
                last_checkpoint = time.monotonic()
            if time.monotonic() - last_progress > PROGRESS_SECONDS:
                last_progress = time.monotonic()
                yield progress()
            clock = time.monotonic()
    except GeneratorExit:
        if state.iteration > checkpointed:
            write_checkpoint(path, state)
        raise


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
    for payload in payloads:
        try:
            content = torch.load(io.BytesIO(payload), map_location=state.device, weights_only=True)
            if content["trial_key"] != state.config.trial_key:
                problems.append(f"a checkpoint in {path} belongs to another trial")
                continue
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
            problems.append(f"a checkpoint in {path} cannot be read: {str(error).splitlines()[0]}")
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


def write_result(
    path: Path,
    state: TrainState,
    outcome: str,
    cause: str | None,
    row: dict[str, Any],
    baseline: dict[str, float] | None = None,
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
            "baseline": baseline or {},
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
    before = run_dir.read_json(file) or {}
    was = before.get("data", {}).get("fingerprint", image_set.fingerprint)
    if was != image_set.fingerprint:
        raise run_dir.RunDirError(
            f"{path} was begun on {config.dataset} data {was}, now {image_set.fingerprint}: "
            "bring the same data or choose another --out"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    run_dir.write_json(
        file,
        {
            "code": run_dir.code_version(),
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


def write_pictures(path: Path, state: TrainState, evaluation: Evaluation) -> None:
    """The sample sheet and the reconstructions of figures 2 and 3."""
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    pictures.sample_sheet(
        evaluation.samples.cpu(), evaluation.sample_clusters.cpu(), n_clusters, path / "samples.png"
    )
    chosen = picture_images(state)
    clusters = None if evaluation.clusters is None else evaluation.clusters[chosen]
    with torch.no_grad():
        x_hat = to_uint8(evaluation.generator(evaluation.z_means[chosen], clusters))
    labels = None if state.labels is None else state.labels[chosen].cpu()
    pictures.reconstruction_sheet(
        state.images[chosen].cpu(), x_hat.cpu(), path / "reconstructions.png", labels=labels
    )


def picture_images(state: TrainState, n: int = 100) -> Tensor:
    """Indices of images for the reconstructions: evenly many of each label, the first of the set."""
    if state.labels is None:
        return torch.arange(min(n, len(state.images)), device=state.device)
    n_labels = int(state.labels.max()) + 1
    each = max(1, n // n_labels)
    found = [(state.labels == label).nonzero()[:each, 0] for label in range(n_labels)]
    return torch.cat(found)[:n]


def kmeans_baseline(state: TrainState, image_set: ImageSet) -> dict[str, float]:
    """Majority accuracy of k-means on the same pixels; empty without labels or clusters."""
    if image_set.labels is None or not state.prior.has_clusters:
        return {}
    accuracy = metrics.kmeans_acc_majority(
        image_set.images, image_set.labels, state.config.n_clusters, seed=0
    )
    return {"kmeans_acc_majority": accuracy}


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here; ValueError where it is not to be had."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not available here; use --device cpu")
    return torch.device(device)
