"""Scores and pictures of a model as it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpcc.data.image_set import to_uint8
from mpcc.evaluation import metrics, pictures, plots
from mpcc.model.networks import Generator
from mpcc.runs import run_dir
from mpcc.training.state import TrainState, as_input, seeded

CHUNK_BATCHES = 10
"""Batches that one pass of an evaluation takes at once."""
SAMPLES_PER_CLUSTER = 20
MANY_CLUSTERS = 10
"""More clusters than these have a row each, as in figures 11 and 12, not two columns."""
N_POWER_ITERATIONS_OF_AVERAGE = 15

_drawing = threading.Lock()
"""Matplotlib draws for one thread at a time."""


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
    rng = evaluation_rng(state)
    generator = averaged_generator(state, rng)
    z_means, clusters = encode(state)
    row: dict[str, Any] = {}
    if clusters is not None:
        row["n_clusters_used"] = metrics.n_clusters_used(clusters.cpu())
        row["cluster_information"] = metrics.cluster_information(
            state.prior.log_memberships(z_means).cpu()
        )
        row["silhouette"] = metrics.silhouette(z_means.cpu(), clusters.cpu())
        if state.labels is not None:
            row |= metrics.clustering(state.labels.cpu(), clusters.cpu(), config.n_clusters)
    row |= metrics.reconstruction(reconstruct(state, generator, z_means, clusters).cpu())
    samples, sample_clusters = sample_clusters_evenly(state, generator, rng)
    images = state.image_set.images
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


def evaluation_rng(state: TrainState) -> torch.Generator:
    """The random stream of an evaluation, by seed and iteration."""
    rng = torch.Generator(state.device)
    rng.manual_seed(state.config.seed * 1_000_003 + state.iteration)
    return rng


def averaged_generator(state: TrainState, rng: torch.Generator) -> Generator:
    """G with its averaged weights, and batch statistics averaged over passes of its own."""
    config = state.config
    with seeded(config.seed):  # only so that the global random stream stays where it is
        generator = Generator(config).to(state.device, state.average[0].dtype)
    state.generator_part.give(generator, state.average, N_POWER_ITERATIONS_OF_AVERAGE)
    for statistics in generator.statistics():
        statistics.state = "collecting"
    for _ in range(config.n_standing_passes):
        generator(*state.prior.sample(config.batch_size, rng), n_batches=1)
    for statistics in generator.statistics():
        statistics.state = "standing"
    return generator


def encode(state: TrainState) -> tuple[Tensor, Tensor | None]:
    """Mean of q(z|x) of every image, (N, J), and the cluster it most likely belongs to, (N,)."""
    size = state.config.batch_size * CHUNK_BATCHES
    means = [state.encoder(as_input(state, chunk))[0] for chunk in state.images.split(size)]
    z_means = torch.cat(means)
    if not state.prior.has_clusters:
        return z_means, None
    memberships = [state.prior.log_memberships(z) for z in z_means.split(size)]
    return z_means, torch.cat(memberships).argmax(1)


def reconstruct(
    state: TrainState, generator: Generator, z_means: Tensor, clusters: Tensor | None
) -> Tensor:
    """Of x - G(μ̃, most likely cluster), x in [-1, 1], for each batch of `batch_size`: how many
    values, their mean and their mean square, (batches, 3) in float64, on the device."""
    n = state.config.batch_size
    moments = []
    for start in range(0, len(state.images), n * CHUNK_BATCHES):
        chunk = slice(start, start + n * CHUNK_BATCHES)
        x = as_input(state, state.images[chunk])
        x_hat = generator(z_means[chunk], None if clusters is None else clusters[chunk], 1)
        for difference in (x.double() - x_hat.double()).split(n):
            size = torch.full_like(difference[0, 0, 0, 0], difference.numel())
            moments.append(torch.stack((size, difference.mean(), difference.square().mean())))
    return torch.stack(moments)


def sample_clusters_evenly(
    state: TrainState, generator: Generator, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """SAMPLES_PER_CLUSTER images of each cluster, uint8, and their clusters (one without y)."""
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    every = torch.arange(n_clusters, device=state.device).repeat_interleave(SAMPLES_PER_CLUSTER)
    samples = []
    for y in every.split(state.config.batch_size * CHUNK_BATCHES):
        given = y if state.prior.has_clusters else None
        samples.append(to_uint8(generator(state.prior.sample_z(given, len(y), rng), given, 1)))
    return torch.cat(samples), every


@torch.no_grad()
def generation_scores(
    state: TrainState, evaluation: Evaluation
) -> tuple[dict[str, float], dict[str, str]]:
    """IS, FID and KID of `n_generated` images, and why any of them is not to be had.

    Grey images with labels also get `fid_cnn`, by a small classifier of the same data.
    """
    config, n_samples = state.config, state.config.n_generated
    names = ("inception_score", "fid", "kid")
    if n_samples is None:
        return {}, dict.fromkeys(names, "n_generated is none: no images were drawn for it")
    from mpcc.evaluation import classifier, inception
    from mpcc.evaluation import generation as generation_metrics

    row: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    try:
        weights = inception.find_weights()
        network = inception.load_inception(weights, state.device)
        samples = generated_batches(state, evaluation.generator, n_samples)
        row |= generation_metrics.scores(
            network, samples, state.image_set, n_is_splits=config.n_is_splits, seed=config.seed
        )
    except inception.InceptionMissing as error:
        unavailable = dict.fromkeys(names, str(error))
    if config.n_channels == 1 and state.labels is not None:
        network = classifier.load_classifier(state.image_set)
        samples = generated_batches(state, evaluation.generator, n_samples)
        row["fid_cnn"] = generation_metrics.feature_fid(network, samples, state.image_set)
    return row, unavailable


def generated_batches(state: TrainState, generator: Generator, n: int) -> Iterator[Tensor]:
    """n images drawn from the prior, uint8, in batches; the same at every call."""
    rng = torch.Generator(state.device)
    rng.manual_seed(state.config.seed * 1_000_003 + state.iteration + 500_009)
    size = state.config.batch_size * CHUNK_BATCHES
    for start in range(0, n, size):
        z, y = state.prior.sample(min(size, n - start), rng)
        yield to_uint8(generator(z, y, 1))


@torch.no_grad()
def write_pictures(path: Path, state: TrainState, evaluation: Evaluation) -> None:
    """Samples by cluster, reconstructions by label, the latent space and the curves, as PNG."""
    with _drawing:
        _write_pictures(path, state, evaluation)


def _write_pictures(path: Path, state: TrainState, evaluation: Evaluation) -> None:
    clusters, names = evaluation.clusters, list(state.image_set.label_names)
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    samples, of_cluster = evaluation.samples.cpu(), evaluation.sample_clusters.cpu()
    if n_clusters > MANY_CLUSTERS:
        pictures.row_sheet(samples, of_cluster, path / "samples.png")
    else:
        pictures.sample_sheet(samples, of_cluster, n_clusters, path / "samples.png")
    labels = None if state.labels is None else state.labels.cpu()
    chosen = torch.arange(min(100, len(state.images)))
    if labels is not None:
        each = max(1, 100 // max(1, int(labels.max()) + 1))
        chosen = torch.as_tensor(pictures.choose_by_label(labels, each))
    chosen = chosen.to(state.device)
    given = None if clusters is None else clusters[chosen]
    x_hat = to_uint8(evaluation.generator(evaluation.z_means[chosen], given, 1))
    pictures.reconstruction_sheet(
        state.images[chosen].cpu(),
        x_hat.cpu(),
        path / "reconstructions.png",
        labels=None if labels is None else labels[chosen.cpu()],
        label_names=names or None,
    )
    prior = state.prior
    plots.latent_picture(
        evaluation.z_means.cpu(),
        torch.zeros(len(state.images), dtype=torch.long) if clusters is None else clusters.cpu(),
        path / "latent.png",
        prior_means=prior.mean.cpu() if prior.has_clusters else None,
        prior_covariances=prior.sampling_std.square().cpu() if prior.has_clusters else None,
        title="Encodings by cluster, and the prior's components (two standard deviations)",
    )
    plots.curve_picture(run_dir.read_metrics(path), path / "curves.png")
