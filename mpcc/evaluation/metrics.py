"""Metrics of a model, computed from plain arrays, and the description of each metric.

METRICS and HOW are the only place that holds each metric's label, ideal, unit and protocol. scipy
is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

END_TOLERANCE = 2
"""Pixel levels from 0 and from 255 that count as the end of the range (0.016 of [-1, 1])."""


@dataclass(frozen=True)
class Metric:
    """The description of a metric, and how its values are printed everywhere.

    Files and MLflow hold the recorded value: an accuracy of 58.2 % is 0.582 there.
    """

    metric: str
    """Its name in files and in MLflow."""
    label: str
    ideal: Literal["high", "low"] | float | None
    """`high`, `low`, a target value, or None (no best value). Only `high` and `low` rank models or
    can be searched for."""
    unit: str = ""
    """What follows the label in a heading: `%`, `×10⁻³`."""
    scale: float = 1.0
    """Shown value = recorded value × scale."""
    decimals: int = 3
    depends_on: tuple[str, ...] = ()
    """Settings of the evaluation, beyond data and training, that this number depends on."""
    replaced_by: str | None = None
    """The metric that is measured instead; only records of earlier versions hold this one."""

    @property
    def has_better_end(self) -> bool:
        """Whether higher or lower values are better; False for a target value or None."""
        return self.ideal in ("high", "low")

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values are better."""
        return self.ideal == "high"

    @property
    def better(self) -> str:
        """`higher`, `lower`, or `neither`: then a target value is best, or none."""
        return f"{self.ideal}er" if self.has_better_end else "neither"

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def protocol(self) -> str:
        """Label and definition, for a footnote; empty for a metric that is not in HOW."""
        how = HOW.get(self.metric, "").rstrip(".")
        if how and not how.startswith("Fréchet"):  # A name keeps its capital.
            how = how[0].lower() + how[1:]
        return f"{self.label}: {how}" if how else ""

    def shown(self, value: float) -> str:
        """A recorded value as the tables print it."""
        return f"{value * self.scale:,.{self.decimals}f}"

    def amount(self, value: float, std: float | None = None) -> str:
        """A recorded value with its unit, as a sentence says it: `0.340×10⁻³`, `3.1 ± 0.2 %`."""
        text = self.shown(value) + ("" if std is None else f" ± {self.shown(std)}")
        return text + (f" {self.unit}" if self.unit in ("%", "s") else self.unit)

    def reading(self, value: float, std: float | None = None) -> str:
        """A recorded value by its name: `Acc 58.2 %`."""
        return f"{self.label} {self.amount(value, std)}"

    def difference(self, value: float) -> str:
        """A difference of two values with its unit: one of percentages is in points."""
        return self.amount(value).replace(" %", " points").replace("-", "−")

    def signed(self, value: float, *, unit: bool = False) -> str:
        """A difference with its sign, as tables print it; with `unit`, as sentences print it."""
        size = self.difference(abs(value)) if unit else self.shown(abs(value))
        return ("−" if value < 0 else "+") + size


METRICS = {
    metric.metric: metric
    for metric in (
        Metric("acc_majority", "Acc", "high", "%", 100, 1),
        Metric("acc_hungarian", "Acc 1:1", "high", "%", 100, 1),
        Metric("nmi", "NMI", "high"),
        Metric("ari", "ARI", "high"),
        Metric("n_clusters_used", "Clusters used", None, decimals=1),
        Metric("cluster_information", "I(x; y)", "high"),
        Metric("cluster_information_share", "I(x; y) / log K", "high"),
        Metric("seed_agreement", "Agreement of seeds", None),
        Metric("silhouette", "Silhouette", "high"),
        Metric("mse", "MSE", "low", decimals=4),
        Metric("mse_published", "MSE as published", "low", "×10⁻³", 1e3, 3, ("batch_size",)),
        Metric(
            "mse_squared_mean",
            "MSE as published (file order)",
            "low",
            "×10⁻³",
            1e3,
            3,
            ("batch_size",),
            replaced_by="mse_published",
        ),
        Metric("inception_score", "IS", "high", "", 1, 2, ("n_generated", "n_is_splits")),
        Metric("fid", "FID", "low", "", 1, 2, ("n_generated",)),
        Metric("kid", "KID", "low", "×10⁻³", 1e3, 2, ("n_generated",)),
        Metric("fid_cnn", "FID-CNN", "low", "", 1, 2, ("n_generated",)),
        Metric("saturation_excess", "Saturation", 0.0),
        Metric("saturation", "Saturation (difference)", 0.0, replaced_by="saturation_excess"),
        Metric("diversity_min", "Least diversity", 1.0),
        Metric("n_clusters_collapsed", "Collapsed clusters", "low", decimals=1),
        Metric("loss/discriminator", "Loss of D", None),
        Metric("loss/generator", "Loss of G", None),
        Metric("loss/encoder", "Loss of E (eq. 7)", None),
        Metric("loss/membership", "Loss of membership (eq. 8)", None),
        Metric("loss/entropy", "Loss III (eq. 10)", None),
        Metric("prior/std", "Std of p(z|y)", None),
        Metric("prior/std_mean", "Mean std of p(z|y)", None, replaced_by="prior/std"),
    )
}

COSTS = {
    "seconds_train": Metric("seconds_train", "Training", None, "s", decimals=1),
    "seconds_evaluate": Metric("seconds_evaluate", "Evaluation", None, "s", decimals=1),
    "n_parameters": Metric("n_parameters", "Parameters", None, decimals=0),
}
"""What a trial cost, by the names in its record: columns that do not measure a model."""

HOW = {
    "acc_majority": "Every cluster takes its most frequent label (eq. 11, also called purity).",
    "acc_hungarian": "Clusters and labels are matched one to one so that most images agree "
    "(Hungarian).",
    "nmi": "Mutual information of clusters and labels over the mean of their entropies.",
    "ari": "Adjusted Rand index.",
    "n_clusters_used": "Clusters that at least one image is assigned to.",
    "cluster_information": "Entropy of the mean membership less the mean entropy of an image's "
    "membership: how surely and how evenly images are assigned, log K at best; needs no labels.",
    "cluster_information_share": "I(x; y) over the most that K clusters can have: comparable where "
    "K differs; needs no labels.",
    "seed_agreement": "Adjusted Rand index of the clusters that two seeds of a cell find, mean "
    "over the other seeds; of images without labels.",
    "silhouette": "Of the encoded images by cluster, over 1,000 of them, evenly spread; needs no "
    "labels.",
    "mse": "Mean over all images and values of the squared difference to the reconstruction.",
    "mse_published": "Square of the mean difference of each batch, averaged over the full batches "
    "of a fixed random order: what the published code computes.",
    "mse_squared_mean": "Square of the mean difference of each batch in the order of the files, "
    "averaged, as earlier versions did: far too large where that order is by label.",
    "inception_score": "Mean over splits of shuffled samples, with the Inception network of 2015.",
    "fid": "Fréchet distance to the images that the model was trained on (`split`), in the "
    "features of the Inception network of 2015.",
    "kid": "Unbiased squared MMD with a cubic kernel to the images that the model was trained on, "
    "in the features of the Inception network of 2015.",
    "fid_cnn": "Fréchet distance in the features of a small classifier trained on this data set; "
    "not comparable with FID.",
    "saturation_excess": f"Share of sampled pixel values within {END_TOLERANCE} levels of 0 or 255 "
    "beyond that of the data, over the share that the data leave: 0 as in the data, 1 where all "
    "are there.",
    "saturation": f"Share of sampled pixel values within {END_TOLERANCE} levels of 0 or 255, less "
    "the data's own share, of 20 samples a cluster, as earlier versions had it.",
    "diversity_min": "Spread of a cluster's samples over that of the images assigned to it; the "
    "least cluster.",
    "n_clusters_collapsed": "Clusters whose diversity is below min_diversity or that no image is "
    "assigned to.",
    "prior/std": "Mean over clusters and dimensions, shared directions included.",
    "prior/std_mean": "Mean over clusters and dimensions, without the directions that low-rank "
    "components share, as earlier versions had it.",
    "seconds_train": "Seconds a trial.",
    "seconds_evaluate": "Seconds a trial, all evaluations together.",
    "n_parameters": "Trained values of generator and encoder, which a trained model keeps.",
} | dict.fromkeys((name for name in METRICS if name.startswith("loss/")), "Last iteration.")
"""How each number is obtained, in one sentence."""

TEST = "@test"
"""Suffix of a metric that is measured on images that were not trained on."""
_HELD_OUT = {
    "acc_majority": "Every cluster takes its most frequent label among the training images",
    "acc_hungarian": "Clusters and labels are matched one to one on the training images",
    "nmi": "As NMI",
    "ari": "As ARI",
    "mse": "As MSE",
}
for _name, _how in _HELD_OUT.items():
    _metric = METRICS[_name]
    _test = replace(_metric, metric=_name + TEST, label=f"{_metric.label} (test)")
    METRICS[_test.metric] = _test
    HOW[_test.metric] = f"{_how}; measured on the images that were not trained on."

_OF_LABELS = ("acc_majority", "acc_hungarian", "nmi", "ari")
NEED_LABELS = (*_OF_LABELS, *(f"{name}{TEST}" for name in _OF_LABELS), "fid_cnn")
"""Metrics that use labels: a model selected by one of them is selected by labels."""

NEED_CLUSTERS = (
    *(*_OF_LABELS, *(f"{name}{TEST}" for name in _OF_LABELS)),
    *("n_clusters_used", "cluster_information"),
    *("cluster_information_share", "seed_agreement", "silhouette", "diversity_min"),
    *("n_clusters_collapsed", "prior/std"),
    *("loss/membership", "loss/entropy"),
)
"""Metrics that a model without clusters does not have."""


def metric_name(text: str) -> str:
    """The metric with this name or printed label; the text itself if it is neither."""
    known = {metric.label: name for name, metric in (METRICS | COSTS).items()}
    return known.get(text.partition(", ")[0], text)


def column(metric: str) -> Metric:
    """The description of this metric; an unknown one gets a plain one without better direction."""
    return (METRICS | COSTS).get(metric) or Metric(metric, metric, None, decimals=4)


def contingency(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> NDArray[np.int64]:
    """Counts (n_clusters, n_labels) of images by cluster and label, both (N,). ValueError for empty
    or unequal vectors, negative labels or clusters beyond 0..n_clusters-1."""
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


def nmi(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Mutual information of clusters and labels over the mean of their entropies, 0..1 (1 if both
    have a single value, as in scikit-learn)."""
    joint = contingency(labels, clusters, n_clusters).astype(np.float64)
    joint /= joint.sum()
    h_joint, h_clusters, h_labels = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    if h_clusters + h_labels == 0:
        return 1.0
    return float(max(0.0, h_clusters + h_labels - h_joint) / ((h_clusters + h_labels) / 2))


def ari(labels: ArrayLike, clusters: ArrayLike, n_clusters: int) -> float:
    """Adjusted Rand index: agreement over pairs of images, -0.5..1, 0 by chance."""
    counts = contingency(labels, clusters, n_clusters)
    both, same_cluster, same_label, pairs = (
        float((c * (c - 1) / 2).sum())
        for c in (counts, counts.sum(1), counts.sum(0), counts.sum(keepdims=True))
    )
    if pairs == 0 or same_cluster == same_label == both:
        return 1.0
    by_chance = same_cluster * same_label / pairs
    return (both - by_chance) / ((same_cluster + same_label) / 2 - by_chance)


def clustering(
    labels: ArrayLike,
    clusters: ArrayLike,
    n_clusters: int,
    *,
    trained: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[str, float]:
    """All scores of an assignment of images to clusters 0..n_clusters-1 against their labels: the
    accuracies and `nmi` 0..1, `ari` -0.5..1.

    trained: labels and clusters of the images that determine the label of each cluster; None: the
      same images. A cluster that gets no label, as it has none of these images or no match, counts
      as wrong for every image.
    """
    from scipy.optimize import linear_sum_assignment

    counts = contingency(*(trained or (labels, clusters)), n_clusters)
    majority = np.where(counts.any(1), counts.argmax(1), -1)
    matched = np.full(n_clusters, -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched[rows] = columns
    theirs, of = np.asarray(labels, np.int64), np.asarray(clusters, np.int64)
    return {
        "acc_majority": float((majority[of] == theirs).mean()),
        "acc_hungarian": float((matched[of] == theirs).mean()),
        "nmi": nmi(theirs, of, n_clusters),
        "ari": ari(theirs, of, n_clusters),
    }


def n_clusters_used(clusters: ArrayLike) -> int:
    """Clusters that at least one image is assigned to; needs no labels."""
    return len(np.unique(np.asarray(clusters)))


def cluster_information(log_memberships: Iterable[ArrayLike]) -> float:
    """Mutual information of images and clusters in nats, 0..log K, from log q(y|x) in blocks
    (B, K) or rows (K,); nan if any value is nan.

    The entropy of the mean membership minus the mean entropy, as in regularised information
    maximisation (Gomes, Krause and Perona 2010): high if each image clearly belongs to one cluster
    and the clusters are evenly used.
    """
    n, of_images, mean = 0, 0.0, np.zeros(1)
    for block in log_memberships:
        log_q = np.atleast_2d(np.asarray(block, np.float64))
        q = np.exp(log_q)
        of_images -= float(np.where(q == 0, 0.0, q * log_q).sum())
        mean = mean + q.sum(0)
        n += len(q)
    return _entropy(mean / n) - of_images / n


def silhouette(points: ArrayLike, clusters: ArrayLike, n_chosen: int = 1000) -> float:
    """Mean silhouette of (N, J) points by cluster, over at most n_chosen of them, evenly spread.

    -1..1, as in scikit-learn; nan if the chosen points are in fewer than two clusters.
    """
    from threadpoolctl import threadpool_limits

    points, clusters = np.asarray(points, np.float64), np.asarray(clusters, np.int64)
    chosen = np.linspace(0, len(points) - 1, min(len(points), n_chosen)).astype(np.int64)
    x, (names, of) = points[chosen], np.unique(clusters[chosen], return_inverse=True)
    if len(names) < 2:
        return float("nan")
    squares, members = np.square(x).sum(1), np.eye(len(names))[of]
    with threadpool_limits(limits=1, user_api="blas"):  # Their number changes the last bit.
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))
        np.fill_diagonal(distances, 0.0)
        sums, sizes, rows = distances @ members, members.sum(0), np.arange(len(x))
    own = sums[rows, of] / np.maximum(sizes[of] - 1, 1)
    others = sums / sizes
    others[rows, of] = np.inf
    nearest = others.min(1)
    widest = np.maximum(np.maximum(own, nearest), 1e-300)
    values = np.where(sizes[of] > 1, nearest - own, 0.0)
    return float((values / widest).mean())


def reconstruction(moments: ArrayLike, batch_size: int) -> dict[str, float]:
    """`mse` and `mse_published` from moments (N, 2): for each image the mean and the mean square of
    its difference to the reconstruction; pixel values are in [-1, 1].

    `mse_published` squares a batch's mean difference, in which opposite signs cancel: it is far
    below `mse`, but less so if the images of a batch are similar. The published loader shuffles and
    drops an incomplete last batch; here one fixed order is used for all models.
    """
    mean, square = np.asarray(moments, dtype=np.float64).T
    order = np.random.default_rng(0).permutation(len(mean))
    batches = mean[order[: len(mean) // batch_size * batch_size]].reshape(-1, batch_size)
    row = {"mse": float(square.mean())}
    if len(batches):
        row["mse_published"] = float(np.square(batches.mean(1)).mean())
    return row


def _entropy(p: NDArray[np.float64]) -> float:
    """Entropy of probabilities p in nats; p = 0 contributes 0."""
    p = p[p != 0]
    return float(-(p * np.log(p)).sum())
