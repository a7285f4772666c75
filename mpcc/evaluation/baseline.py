"""The k-means baseline on the same pixels, which tables print; computed once per data set."""

from __future__ import annotations

import logging
import warnings

import numpy as np
from numpy.typing import ArrayLike

from mpcc.data.cache import cached_arrays
from mpcc.data.image_set import ImageSet
from mpcc.evaluation import metrics

log = logging.getLogger(__name__)


def kmeans_acc_majority(image_set: ImageSet, n_clusters: int, seed: int = 0) -> float:
    """`best_of_ten_starts` on a labelled data set, kept in the cache folder. Raises ValueError for
    data without labels."""
    labels = image_set.labels
    if labels is None:
        raise ValueError("the accuracy of k-means needs labels, and this data set has none")

    def make() -> dict[str, np.ndarray]:
        log.info(
            "k-means on the same %s images, %s clusters: once for this data set, then kept",
            *(f"{n:,}" for n in (len(image_set), n_clusters)),
        )
        value = best_of_ten_starts(image_set.images, labels, n_clusters, seed)
        return {"acc_majority": np.array(value)}

    name = f"kmeans/{image_set.fingerprint}-{n_clusters}-{seed}"
    return float(cached_arrays(name, make)["acc_majority"])


def best_of_ten_starts(images: ArrayLike, labels: ArrayLike, n_clusters: int, seed: int) -> float:
    """Majority accuracy of k-means on raw pixels, the best of ten starts: the baseline."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    images = np.asarray(images)
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    model = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        # Fewer different images than clusters leave clusters empty, which the score allows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return metrics.clustering(labels, model.fit_predict(pixels), n_clusters)["acc_majority"]
