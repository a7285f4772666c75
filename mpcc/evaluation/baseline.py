"""k-means on the same pixels: what a table prints under ours, computed once per data set."""

from __future__ import annotations

import logging

import numpy as np

from mpcc.data.cache import cached_arrays
from mpcc.data.image_set import ImageSet
from mpcc.evaluation import metrics

log = logging.getLogger(__name__)


def kmeans_acc_majority(image_set: ImageSet, n_clusters: int, seed: int = 0) -> float:
    """`metrics.kmeans_acc_majority` of a labelled data set, kept in the cache folder.

    Raises ValueError for data without labels.
    """
    labels = image_set.labels
    if labels is None:
        raise ValueError("the accuracy of k-means needs labels, and this data set has none")

    def make() -> dict[str, np.ndarray]:
        log.info(
            "k-means on the same %s images, %s clusters: once for this data set, then kept",
            *(f"{n:,}" for n in (len(image_set), n_clusters)),
        )
        value = metrics.kmeans_acc_majority(image_set.images, labels, n_clusters, seed)
        return {"acc_majority": np.array(value)}

    name = f"kmeans/{image_set.fingerprint}-{n_clusters}-{seed}"
    return float(cached_arrays(name, make)["acc_majority"])
