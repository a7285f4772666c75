"""Failures of a model that did not diverge (Appendix D): saturation and collapsed clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpcc.evaluation.metrics import END_TOLERANCE

_BLOCK, _PIXELS = 4096, 64
"""Numbers of images, and of pixel positions of all images, that are processed at once."""


def end_share(images: ArrayLike, tolerance: int = END_TOLERANCE) -> float:
    """Share of pixel values 0..255 within `tolerance` of either end; ValueError if not uint8."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    n = 0
    for start in range(0, len(images), _BLOCK):  # All at once would need three copies.
        block = images[start : start + _BLOCK]
        n += int(((block <= tolerance) | (block >= 255 - tolerance)).sum())
    return n / images.size


def saturation_excess(samples: ArrayLike, images: ArrayLike) -> float:
    """(share in samples − share in data) / (1 − share in data) of values at the ends of the range;
    both uint8.

    0 for samples like the data, whose black background is no failure; 1 if the generator's tanh is
    saturated everywhere (Appendix D); below 0 for samples with fewer values at the ends than the
    data. nan if all values of the data are at the ends.
    """
    of_data = end_share(images)
    return (end_share(samples) - of_data) / (1 - of_data) if of_data < 1 else float("nan")


def diversity(
    samples: ArrayLike,
    sample_clusters: ArrayLike,
    images: ArrayLike,
    image_clusters: ArrayLike,
    n_clusters: int,
) -> NDArray[np.float64]:
    """Spread of each cluster's samples relative to that of the images assigned to it, (K,).

    samples and images: uint8 (M, C, H, W) and (N, C, H, W), their clusters (M,) and (N,). Spread is
    the root of the mean variance of a pixel. Clusters with fewer than two images are measured
    against the mean spread of the others, or of all images if no cluster has two.
    """
    ours = _spreads(samples, sample_clusters, n_clusters)
    theirs = _spreads(images, image_clusters, n_clusters)
    if np.isnan(theirs).all():
        theirs[:] = _spreads(images, np.zeros(len(np.asarray(images)), np.int64), 1)
    reference = np.where(np.isnan(theirs), np.nanmean(theirs), theirs)
    reference = np.maximum(reference, 0.5)  # half a grey level: identical images would give 0
    return ours / reference


def degeneration(
    samples: ArrayLike,
    sample_clusters: ArrayLike,
    images: ArrayLike,
    image_clusters: ArrayLike,
    n_clusters: int,
    min_diversity: float,
) -> dict[str, float]:
    """The collapse of Appendix D: `diversity_min` and `n_clusters_collapsed`, of arrays as
    `diversity` takes them; every cluster needs two samples."""
    by_cluster = diversity(samples, sample_clusters, images, image_clusters, n_clusters)
    empty = np.bincount(np.asarray(image_clusters, np.int64), minlength=n_clusters) == 0
    return {
        "diversity_min": float(by_cluster.min()),
        "n_clusters_collapsed": int(((by_cluster < min_diversity) | empty).sum()),
    }


def failures(metrics: Mapping[str, Any], max_saturation: float) -> tuple[str, ...]:
    """Names of what is wrong with a model that did not diverge: `saturated`, `collapsed`."""
    names = []
    if metrics.get("saturation_excess", 0) > max_saturation:
        names.append("saturated")
    if metrics.get("n_clusters_collapsed", 0) > 0:
        names.append("collapsed")
    return tuple(names)


def _spreads(images: ArrayLike, clusters: ArrayLike, n_clusters: int) -> NDArray[np.float64]:
    """Root of the pixels' mean variance by cluster, (K,); nan for fewer than two images."""
    images, clusters = np.asarray(images), np.asarray(clusters)
    spreads = np.full(n_clusters, np.nan)
    for k in range(n_clusters):
        chosen = images[clusters == k]
        if len(chosen) > 1:
            pixels = chosen.reshape(len(chosen), -1)
            # A few pixel positions at a time: a whole data set in float32 would not fit.
            some = range(0, pixels.shape[1], _PIXELS)
            var = [pixels[:, i : i + _PIXELS].astype(np.float32).var(0) for i in some]
            spreads[k] = np.sqrt(np.concatenate(var).mean())
    return spreads
