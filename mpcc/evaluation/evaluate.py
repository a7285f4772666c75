"""Scores of the current model, and the arrays that pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpcc.data.image_set import to_uint8
from mpcc.evaluation import failures, metrics
from mpcc.evaluation.inception import InceptionMissing
from mpcc.model.networks import Generator
from mpcc.training.state import TrainState, as_input, on_device, seeded

CHUNK_BATCHES = 10
"""Largest number of batches that an evaluation passes through a network at once."""
CHUNK_BYTES = 2**25
"""Memory for one layer of the images taken at once, or for their distances to all components."""
SAMPLES_PER_CLUSTER = 20
MIN_SAMPLES = 200
"""Smallest total number of samples for the failure checks."""
N_POWER_ITERATIONS_OF_AVERAGE = 15

INCEPTION_SCORES = ("inception_score", "fid", "kid")


class NotFinite(ArithmeticError):
    """Weights, encodings or images are not finite: the model has diverged. The message says which,
    as the cause of the trial's end."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and the arrays that pictures are made of."""

    metrics: dict[str, Any]
    unavailable: dict[str, str] = field(kw_only=True)
    """Metric that this model or its data do not have -> why."""
    clusters: Tensor | None
    """Cluster of every image, (N,)."""
    z_means: Tensor
    """Mean of q(z|x) of every image, (N, J)."""
    samples: Tensor
    """Generated images, uint8 (M, C, H, W), sorted by cluster."""
    sample_clusters: Tensor
    """Cluster of each sample, (M,); all 0 without clusters."""
    generator: Generator
    """The averaged generator with standing statistics."""


@torch.no_grad()
def evaluate(state: TrainState) -> Evaluation:
    """Scores of the current model. Neither reads nor advances the training's random stream.
    Raises NotFinite for a model that has diverged."""
    config, image_set = state.config, state.image_set
    check_weights(state)
    rng = evaluation_rng(state)
    generator = averaged_generator(state, rng)
    z_means = encode(state, state.images)
    row: dict[str, Any] = {}
    clusters = None
    if state.prior.has_clusters:
        clusters, row["cluster_information"] = assign(state, z_means)
        if config.n_clusters > 1:
            share = row["cluster_information"] / math.log(config.n_clusters)
            row["cluster_information_share"] = share
        row["n_clusters_used"] = metrics.n_clusters_used(clusters.cpu())
        row["silhouette"] = metrics.silhouette(z_means.cpu(), clusters.cpu())
        row["prior/std"] = float(state.prior.marginal_std.mean())
        if state.labels is not None:
            row |= metrics.clustering(state.labels.cpu(), clusters.cpu(), config.n_clusters)
    moments = reconstruct(state, generator, state.images, z_means, clusters)
    row |= metrics.reconstruction(moments.cpu(), config.batch_size)
    row |= held_out_scores(state, generator, clusters)
    samples, of_cluster = sample_clusters_evenly(state, generator, rng)
    row["saturation_excess"] = failures.saturation_excess(samples.cpu(), image_set.images)
    if clusters is not None:
        row |= failures.degeneration(
            samples.cpu(),
            of_cluster.cpu(),
            image_set.images,
            clusters.cpu(),
            config.n_clusters,
            config.min_diversity,
        )
    why = reasons(state)
    row, undefined = finite(row)
    why = {name: text for name, text in (undefined | why).items() if name not in row}
    return Evaluation(row, clusters, z_means, samples, of_cluster, generator, unavailable=why)


def finite(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers that are finite, and a reason for each of the others."""
    kept = {name: value for name, value in row.items() if math.isfinite(value)}
    return kept, {name: f"it came out as {row[name]}" for name in row if name not in kept}


def reasons(state: TrainState) -> dict[str, str]:
    """Why a model may lack each metric that not every model has."""
    n = state.config.batch_size
    why = {
        "cluster_information_share": "with one cluster log K is 0",
        "silhouette": "all of the images that it looks at are in one cluster",
        "saturation_excess": "all values of the data are at the ends of their range",
        "mse_published": f"the {len(state.images)} images are fewer than one batch of {n}",
    }
    if state.labels is None:
        names = set(metrics.NEED_LABELS) & set(metrics.NEED_CLUSTERS)
        why |= dict.fromkeys(sorted(names), "the images have no labels")
    if not state.prior.has_clusters:
        why |= dict.fromkeys(metrics.NEED_CLUSTERS, "the prior is normal, without clusters")
    if state.held_out is None:
        return {name: text for name, text in why.items() if not name.endswith(metrics.TEST)}
    return why


def check_weights(state: TrainState) -> None:
    """Raise NotFinite if a weight of a network, the prior or the averaged generator is not finite:
    the losses may stay finite for one more step."""
    for name, part in state.parts.items():
        _check_finite(f"a weight of the {name}", *part.raw)
    _check_finite("a weight of the averaged generator", *state.average)


def _check_finite(what: str, *values: Tensor) -> None:
    if not all(bool(value.isfinite().all()) for value in values):
        raise NotFinite(f"{what} is not finite")


def evaluation_rng(state: TrainState, offset: int = 0) -> torch.Generator:
    """The random stream of an evaluation, by seed and iteration."""
    return torch.Generator(state.device).manual_seed(
        state.config.seed * 1_000_003 + state.iteration + offset
    )


def averaged_generator(state: TrainState, rng: torch.Generator) -> Generator:
    """G with averaged weights, and batch statistics averaged over n_standing_passes batches."""
    config = state.config
    with seeded(config.seed):  # only to restore the global random stream
        generator = Generator(config).to(state.device, state.average[0].dtype)
    state.parts["generator"].copy_to(generator, state.average, N_POWER_ITERATIONS_OF_AVERAGE)
    norms = generator.norms()
    for norm in norms:
        norm.state = "collecting"
    for _ in range(config.n_standing_passes):
        generator(*state.prior.sample(config.batch_size, rng))
    for norm in norms:
        norm.state = "standing"
    return generator


def held_out_scores(
    state: TrainState, generator: Generator, clusters: Tensor | None
) -> dict[str, float]:
    """Scores of the images that were not trained on, if state.held_out has any, as `NAME@test`.
    clusters: of the training images, which determine the label of each cluster."""
    if state.held_out is None:
        return {}
    data = on_device(state.held_out, state.device)
    z_means, assigned = encode(state, data.images), None
    row: dict[str, float] = {}
    if clusters is not None:
        assigned, _ = assign(state, z_means)
        if state.labels is not None and data.labels is not None:
            trained, tested = (state.labels.cpu(), clusters.cpu()), data.labels.cpu()
            k = state.config.n_clusters
            row = metrics.clustering(tested, assigned.cpu(), k, trained=trained)
    moments = reconstruct(state, generator, data.images, z_means, assigned)
    row["mse"] = float(moments[:, 1].mean())
    return {f"{name}{metrics.TEST}": value for name, value in row.items()}


def encode(state: TrainState, images: Tensor) -> Tensor:
    """Mean of q(z|x) of uint8 images (N, C, H, W), (N, J). Raises NotFinite."""
    chunks = images.split(images_at_once(state))
    z_means = torch.cat([state.encoder(as_input(state, chunk))[0] for chunk in chunks])
    _check_finite("the encoding of an image", z_means)
    return z_means


def assign(state: TrainState, z_means: Tensor) -> tuple[Tensor, float]:
    """The cluster that each image most likely belongs to, (N,), and the `cluster_information`."""
    n_distances = state.config.n_clusters * state.config.latent_size
    most = max(1, CHUNK_BYTES // (n_distances * z_means.element_size()))
    clusters = []

    def memberships() -> Iterator[Tensor]:
        for z in z_means.split(min(most, state.config.batch_size * CHUNK_BATCHES)):
            log_q = state.prior.log_memberships(z)
            clusters.append(log_q.argmax(1))
            yield log_q.cpu()

    information = metrics.cluster_information(memberships())
    return torch.cat(clusters), information


def reconstruct(
    state: TrainState,
    generator: Generator,
    images: Tensor,
    z_means: Tensor,
    clusters: Tensor | None,
) -> Tensor:
    """Mean and mean square of x - G(μ̃, most likely cluster) of each image, x in [-1, 1]; (N, 2) in
    float64, on the device. Raises NotFinite."""
    moments = []
    for chunk, x_hat in drawn(state, generator, z_means, clusters):
        x = as_input(state, images[chunk])
        difference = (x.double() - x_hat.double()).flatten(1)
        moments.append(torch.stack((difference.mean(1), difference.square().mean(1)), 1))
    found = torch.cat(moments)
    _check_finite("the reconstruction of an image", found)
    return found


def images_at_once(state: TrainState) -> int:
    """Number of images that an evaluation passes through the networks at once."""
    config = state.config
    of_one = 4 * config.width * config.image_size**2 * state.average[0].element_size()
    return max(1, min(config.batch_size * CHUNK_BATCHES, CHUNK_BYTES // of_one))


def draw(state: TrainState, generator: Generator, z: Tensor, y: Tensor | None) -> Tensor:
    """The images of z (B, J) and y (B,) or None, uint8. Raises NotFinite."""
    found = []
    for _, images in drawn(state, generator, z, y):
        _check_finite("a generated image", images)
        found.append(to_uint8(images))
    return torch.cat(found)


def drawn(
    state: TrainState, generator: Generator, z: Tensor, y: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of rows, their images in [-1, 1]) for chunks of z (B, J) and y (B,) or None."""
    size = images_at_once(state)
    for start in range(0, len(z), size):
        chunk = slice(start, start + size)
        yield chunk, generator(z[chunk], None if y is None else y[chunk])


def sample_clusters_evenly(
    state: TrainState, generator: Generator, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """SAMPLES_PER_CLUSTER images of each cluster, or MIN_SAMPLES in all if that is more, uint8, and
    their clusters (all 0 without clusters)."""
    n_clusters = state.config.n_clusters if state.prior.has_clusters else 1
    n_of_each = max(SAMPLES_PER_CLUSTER, -(-MIN_SAMPLES // n_clusters))
    every = torch.arange(n_clusters, device=state.device).repeat_interleave(n_of_each)
    samples = []
    for y in every.split(state.config.batch_size * CHUNK_BATCHES):
        given = y if state.prior.has_clusters else None
        z = state.prior.sample_z(given, len(y), rng)
        samples.append(draw(state, generator, z, given))
    return torch.cat(samples), every


@torch.no_grad()
def generation_scores(
    state: TrainState, evaluation: Evaluation
) -> tuple[dict[str, float], dict[str, str]]:
    """IS, FID and KID of `n_generated` images, and the reason why any of them is missing.

    Labelled images that are grey, or too small for Inception, also get `fid_cnn`, from a small
    classifier of the data. An error other than NotFinite makes a score missing: no trial fails.
    """
    row: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    if state.config.n_generated is None:
        why = "n_generated is none: no images were drawn for it"
        return row, dict.fromkeys((*INCEPTION_SCORES, "fid_cnn"), why)
    for names, scores in ((INCEPTION_SCORES, _inception_scores), (("fid_cnn",), _classifier_fid)):
        try:
            found, undefined = finite(scores(state, evaluation.generator))
            row |= found
            unavailable |= undefined
        except NotFinite:
            raise
        except (Unavailable, InceptionMissing) as reason:
            unavailable |= dict.fromkeys(names, str(reason))
        except Exception as error:
            unavailable |= dict.fromkeys(names, error_text(error))
    return row, unavailable


class Unavailable(ValueError):
    """Raised with the reason why a score is missing."""


def error_text(error: Exception) -> str:
    """An error in one line, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def _inception_scores(state: TrainState, generator: Generator) -> dict[str, float]:
    from mpcc.evaluation import generation, inception

    samples, config = generated_batches(state, generator), state.config
    if not config.scored_by_inception:
        raise Unavailable("their network is not made for 8×8 pixels; FID-CNN replaces them")
    network = inception.load_inception(inception.find_weights(), state.device)
    splits = config.n_is_splits
    return generation.scores(
        network, samples, state.image_set, n_is_splits=splits, seed=config.seed
    )


def _classifier_fid(state: TrainState, generator: Generator) -> dict[str, float]:
    from mpcc.evaluation import classifier, generation

    samples = generated_batches(state, generator)
    if state.config.n_channels != 1 and state.config.scored_by_inception:
        raise Unavailable("fid_cnn is of grey or small images: of these FID says more")
    if state.labels is None:
        raise Unavailable("the images have no labels")
    network = classifier.load_classifier(state.image_set)
    return {"fid_cnn": generation.feature_fid(network, samples, state.image_set)}


def generated_batches(state: TrainState, generator: Generator) -> Iterator[Tensor]:
    """`n_generated` images drawn from the prior, uint8, in batches; the same at every call."""
    n = state.config.n_generated or 0
    rng = evaluation_rng(state, 500_009)
    size = state.config.batch_size * CHUNK_BATCHES
    for start in range(0, n, size):
        yield draw(state, generator, *state.prior.sample(min(size, n - start), rng))
