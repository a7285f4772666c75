"""Numbers that say how good a model is, from plain arrays, and what each of them means.

METRICS is the one place that knows each number's label, direction and protocol. Importing this
module is quick: scipy and scikit-learn are imported where they are used, and scikit-learn, slow to
import, by the baseline alone, so that no trial waits for it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

END_TOLERANCE = 2
"""Pixel levels from 0 and from 255 that count as the end of the range (0.016 of [-1, 1])."""


@dataclass(frozen=True)
class Metric:
    """What a number is, for headings and footnotes."""

    label: str
    higher_is_better: bool
    unit: str
    """Scale or unit: `fraction`, `nats`, ... ."""
    protocol: str
    """How the number is obtained, in one sentence."""


METRICS: dict[str, Metric] = {
    "acc_majority": Metric(
        "Acc",
        True,
        "fraction",
        "Every cluster takes its most frequent label (eq. 11, also called purity).",
    ),
    "acc_hungarian": Metric(
        "Acc 1:1",
        True,
        "fraction",
        "Clusters and labels are matched one to one so that most images agree (Hungarian).",
    ),
    "nmi": Metric(
        "NMI",
        True,
        "fraction",
        "Mutual information of clusters and labels over the mean of their entropies.",
    ),
    "ari": Metric("ARI", True, "1 at best, about 0 by chance", "Adjusted Rand index."),
    "n_clusters_used": Metric(
        "Clusters used", True, "count", "Clusters that at least one image is assigned to."
    ),
    "cluster_information": Metric(
        "I(x; y)",
        True,
        "nats",
        "Entropy of the mean membership less the mean entropy of an image's membership: how surely "
        "and how evenly images are assigned, log K at best; needs no labels.",
    ),
    "silhouette": Metric(
        "Silhouette",
        True,
        "1 at best, -1 at worst",
        "Of the encoded images by cluster, over 1,000 of them, evenly spread; needs no labels.",
    ),
    "mse": Metric(
        "MSE",
        False,
        "of values in [-1, 1]",
        "Mean over all images and values of the squared difference to the reconstruction.",
    ),
    "mse_squared_mean": Metric(
        "MSE as published",
        False,
        "of values in [-1, 1]",
        "Square of the mean difference of each batch, averaged over the batches: what the "
        "published code computes.",
    ),
    "inception_score": Metric(
        "IS",
        True,
        "1 at worst",
        "Mean over splits of shuffled samples, with the Inception network of 2015.",
    ),
    "fid": Metric(
        "FID",
        False,
        "squared feature distance",
        "Fréchet distance to the training images in the features of the Inception network of 2015.",
    ),
    "kid": Metric(
        "KID",
        False,
        "squared feature distance",
        "Unbiased squared MMD with a cubic kernel, in the features of the Inception network of "
        "2015.",
    ),
    "fid_cnn": Metric(
        "FID-CNN",
        False,
        "squared feature distance",
        "Fréchet distance in the features of a small classifier trained on this data set; not "
        "comparable with FID.",
    ),
    "saturation": Metric(
        "Saturation",
        False,
        "share of values",
        f"Share of sampled pixel values within {END_TOLERANCE} levels of 0 or 255, less the data's "
        "own share.",
    ),
    "diversity_min": Metric(
        "Least diversity",
        True,
        "relative spread",
        "Spread of a cluster's samples over that of the images assigned to it; the least cluster.",
    ),
    "n_clusters_collapsed": Metric(
        "Collapsed clusters",
        False,
        "count",
        "Clusters whose diversity is below min_diversity or that no image is assigned to.",
    ),
    "loss/discriminator": Metric("Loss of D", False, "hinge", "Last iteration."),
    "loss/generator": Metric("Loss of G", False, "hinge", "Last iteration."),
    "loss/encoder": Metric("Loss of E (eq. 7)", False, "nats per value", "Last iteration."),
    "loss/membership": Metric("Loss of membership (eq. 8)", False, "nats", "Last iteration."),
    "loss/entropy": Metric("Loss III (eq. 10)", False, "nats", "Last iteration."),
    "prior/std_mean": Metric(
        "Mean std of p(z|y)", True, "of z", "Mean over clusters and dimensions."
    ),
}


NEED_LABELS = ("acc_majority", "acc_hungarian", "nmi", "ari", "fid_cnn")
"""Metrics that look at labels: what is chosen by them is chosen by labels."""


def contingency(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> NDArray[np.int64]:
    """Counts (n_clusters, n_labels) of images by cluster and label."""
    labels, clusters = np.asarray(labels, np.int64), np.asarray(clusters, np.int64)
    if labels.shape != clusters.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels and clusters must be two vectors of one length, got {labels.shape} "
            f"and {clusters.shape}"
        )
    if clusters.min() < 0 or clusters.max() >= n_clusters or labels.min() < 0:
        raise ValueError(f"clusters must lie in 0..{n_clusters - 1} and labels from 0")
    n_labels = int(labels.max()) + 1
    counts = np.bincount(clusters * n_labels + labels, minlength=n_clusters * n_labels)
    return counts.reshape(n_clusters, n_labels)


def acc_majority(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Share of images whose label is their cluster's most frequent one, eq. 11."""
    counts = contingency(labels, clusters, n_clusters)
    return float(counts.max(1).sum() / counts.sum())


def acc_hungarian(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Share of images that agree under the best one-to-one match of clusters and labels."""
    from scipy.optimize import linear_sum_assignment

    counts = contingency(labels, clusters, n_clusters)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def nmi(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Mutual information of clusters and labels over the mean of their entropies, 0..1.

    1 where both are a single group, as scikit-learn has it.
    """
    joint = contingency(labels, clusters, n_clusters).astype(np.float64)
    joint /= joint.sum()
    h_joint, h_clusters, h_labels = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    if h_clusters + h_labels == 0:
        return 1.0
    return float(max(0.0, h_clusters + h_labels - h_joint) / ((h_clusters + h_labels) / 2))


def ari(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Adjusted Rand index: agreement over pairs of images, 0 by chance, 1 at best."""
    counts = contingency(labels, clusters, n_clusters)
    both, same_cluster, same_label, pairs = (
        float((c * (c - 1) / 2).sum())
        for c in (counts, counts.sum(1), counts.sum(0), counts.sum(keepdims=True))
    )
    if pairs == 0 or same_cluster == same_label == both:
        return 1.0
    by_chance = same_cluster * same_label / pairs
    return (both - by_chance) / ((same_cluster + same_label) / 2 - by_chance)


def clustering(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> dict[str, float]:
    """All scores of an assignment of images to clusters 0..n_clusters-1 against their labels."""
    return {
        "acc_majority": acc_majority(labels, clusters, n_clusters),
        "acc_hungarian": acc_hungarian(labels, clusters, n_clusters),
        "nmi": nmi(labels, clusters, n_clusters),
        "ari": ari(labels, clusters, n_clusters),
        "n_clusters_used": n_clusters_used(clusters),
    }


def n_clusters_used(clusters: ArrayLike) -> int:
    """Clusters that at least one image is assigned to; needs no labels."""
    return len(np.unique(np.asarray(clusters)))


def cluster_information(log_memberships: ArrayLike) -> float:
    """Mutual information of images and clusters in nats, from log q(y|x) as (N, K); 0..log K.

    The entropy of the mean membership less the mean entropy, as in regularised information
    maximisation (Gomes, Krause and Perona 2010): high where each image belongs to one cluster for
    sure and no cluster is left empty.
    """
    log_q = np.asarray(log_memberships, np.float64)
    q = np.exp(log_q)
    of_images = -np.where(q > 0, q * log_q, 0.0).sum(1).mean()
    return _entropy(q.mean(0)) - float(of_images)


def silhouette(points: ArrayLike, clusters: ArrayLike, n_chosen: int = 1000) -> float:
    """Mean silhouette of (N, J) points by cluster, over at most n_chosen of them, evenly spread.

    -1..1 as scikit-learn has it; nan where fewer than two clusters are among the chosen.
    """
    points, clusters = np.asarray(points, np.float64), np.asarray(clusters, np.int64)
    chosen = np.linspace(0, len(points) - 1, min(len(points), n_chosen)).astype(np.int64)
    x, (names, of) = points[chosen], np.unique(clusters[chosen], return_inverse=True)
    if len(names) < 2:
        return float("nan")
    squares = np.square(x).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))
    np.fill_diagonal(distances, 0.0)
    members = np.eye(len(names))[of]
    sums, sizes, rows = distances @ members, members.sum(0), np.arange(len(x))
    own = sums[rows, of] / np.maximum(sizes[of] - 1, 1)
    others = sums / sizes
    others[rows, of] = np.inf
    nearest = others.min(1)
    widest = np.maximum(np.maximum(own, nearest), 1e-300)
    values = np.where(sizes[of] > 1, nearest - own, 0.0)
    return float((values / widest).mean())


def kmeans_acc_majority(images: ArrayLike, labels: ArrayLike, n_clusters: int, seed: int) -> float:
    """Majority accuracy of k-means on raw pixels, the best of ten starts: the baseline."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    images = np.asarray(images)
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    model = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        # Fewer different images than clusters leave clusters empty, which the score allows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return acc_majority(labels, model.fit_predict(pixels), n_clusters)


def mse(images: ArrayLike, reconstructions: ArrayLike) -> float:
    """Mean of the squared differences of values in [-1, 1]."""
    return float(np.mean(np.square(_differences(images, reconstructions))))


def mse_squared_mean(images: ArrayLike, reconstructions: ArrayLike, batch_size: int) -> float:
    """Square of the mean difference of each batch of images, averaged over the batches.

    The published code computes this as its MSE. Differences of opposite sign cancel, so it is far
    below `mse` and depends on the batches; a last batch that is not full counts like the others.
    """
    differences = _differences(images, reconstructions)
    starts = range(0, len(differences), batch_size)
    return float(np.mean([np.mean(differences[i : i + batch_size]) ** 2 for i in starts]))


def reconstruction(moments: ArrayLike) -> dict[str, float]:
    """`mse` and `mse_squared_mean` of images given batch by batch: of each batch's differences
    their number, their mean and their mean square, (batches, 3)."""
    n, mean, square = np.asarray(moments, dtype=np.float64).T
    mse = float(np.average(square, weights=n))
    return {"mse": mse, "mse_squared_mean": float(np.square(mean).mean())}


def end_share(images: ArrayLike, tolerance: int = END_TOLERANCE) -> float:
    """Share of pixel values 0..255 within `tolerance` levels of either end."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    return float(np.mean((images <= tolerance) | (images >= 255 - tolerance)))


def saturation(samples: ArrayLike, images: ArrayLike) -> float:
    """Share of samples' values at the ends of the range, less that of the data's own; both uint8.

    0 for samples like the data, whose black background is no fault; towards 1 where a generator's
    tanh is driven to its ends (Appendix D).
    """
    return end_share(samples) - end_share(images)


def diversity(
    samples: ArrayLike,
    sample_clusters: ArrayLike,
    images: ArrayLike,
    image_clusters: ArrayLike,
    n_clusters: int,
) -> NDArray[np.float64]:
    """Spread of each cluster's samples relative to that of the images assigned to it, (K,).

    Spread is the root of the mean variance of a pixel. Clusters with fewer than two images are
    measured against the mean spread of the others, or of all images where no cluster has two.
    """
    ours = _spreads(samples, sample_clusters, n_clusters)
    theirs = _spreads(images, image_clusters, n_clusters)
    if np.isnan(theirs).all():
        theirs[:] = _spreads(images, np.zeros(len(np.asarray(images)), np.int64), 1)
    reference = np.where(np.isnan(theirs), np.nanmean(theirs), theirs)
    reference = np.maximum(reference, 0.5)  # half a level: images all alike are no reference
    return np.nan_to_num(ours / reference, nan=0.0)


def degeneration(
    samples: ArrayLike,
    sample_clusters: ArrayLike,
    images: ArrayLike,
    image_clusters: ArrayLike,
    n_clusters: int,
    min_diversity: float,
) -> dict[str, float]:
    """The failures of Appendix D: `saturation`, `diversity_min`, `n_clusters_collapsed`."""
    by_cluster = diversity(samples, sample_clusters, images, image_clusters, n_clusters)
    empty = np.bincount(np.asarray(image_clusters, np.int64), minlength=n_clusters) == 0
    return {
        "saturation": saturation(samples, images),
        "diversity_min": float(by_cluster.min()),
        "n_clusters_collapsed": int(((by_cluster < min_diversity) | empty).sum()),
    }


def failures(metrics: dict[str, Any], max_saturation: float) -> tuple[str, ...]:
    """Names of what is wrong with a model that did not diverge: `saturated`, `collapsed`."""
    names = []
    if metrics.get("saturation", 0) > max_saturation:
        names.append("saturated")
    if metrics.get("n_clusters_collapsed", 0) > 0:
        names.append("collapsed")
    return tuple(names)


def _entropy(p: NDArray[np.float64]) -> float:
    """In nats."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _differences(images: ArrayLike, reconstructions: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(images, np.float64) - np.asarray(reconstructions, np.float64)


def _spreads(images: ArrayLike, clusters: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    """Root of a pixel's mean variance by cluster; nan where there are fewer than two images."""
    images, clusters = np.asarray(images), np.asarray(clusters)
    spreads = np.full(n_clusters, np.nan)
    for k in range(n_clusters):
        chosen = images[clusters == k]
        if len(chosen) > 1:
            spreads[k] = np.sqrt(chosen.reshape(len(chosen), -1).astype(np.float32).var(0).mean())
    return spreads
