"""Inception score, Fréchet and kernel distance of generated images, from any network's features.

The scores are pure functions of features; `scores` computes them from images. The mean, covariance
and some features of a data set are computed once and kept in the cache folder, by network and the
data's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpcc.data.cache import cached_arrays
from mpcc.data.image_set import ImageSet, to_uint8
from mpcc.training.device import float32_products

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""KID is the mean over this many subsets of this size, drawn with a fixed seed (Binkowski 2018)."""
N_REFERENCE_FEATURES = 10_000
"""Features of the data that are kept for KID."""
_BATCH = 64


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that maps images to features and class probabilities."""

    name: str
    """Names architecture and weights: features of equal names are comparable."""
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    """uint8 images (B, C, H, W) -> features (B, D) and log-probabilities of classes (B, L)."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, the latter as a root: covariance = rootᵀ root."""

    mean: Tensor
    """float64 (D,)."""
    root: Tensor
    """float64 (R, D), R the smaller of the number of samples and D."""


def scores(
    network: FeatureNetwork,
    samples: Iterable[Tensor],
    image_set: ImageSet,
    *,
    n_is_splits: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """`inception_score`, `fid` and `kid` of samples, given in batches, against a data set.

    Samples are uint8, or floats in [-1, 1] that are rounded to uint8 first.
    """
    known, some = reference(network, image_set)
    features, log_probs = extract(network, samples)
    return {
        "inception_score": inception_score(log_probs, n_is_splits, seed),
        "fid": frechet_distance(statistics(features), known),
        "kid": kernel_distance(features, some, seed=seed),
    }


def feature_fid(network: FeatureNetwork, samples: Iterable[Tensor], image_set: ImageSet) -> float:
    """The Fréchet distance alone, for networks that are not Inception (`fid_cnn`)."""
    known, _ = reference(network, image_set)
    return frechet_distance(statistics(extract(network, samples)[0]), known)


@torch.no_grad()
def extract(network: FeatureNetwork, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and log-probabilities (N, L) of all images, on the network's device."""
    features, log_probs = [], []
    # TensorFloat rounding on a GPU would show in the third digit of a small distance
    with float32_products("float32"):
        for batch in batches:
            images = batch if batch.dtype == torch.uint8 else to_uint8(batch)
            for part in images.split(_BATCH):
                f, p = network.run(part)
                features.append(f.float())
                log_probs.append(p.float())
    return torch.cat(features), torch.cat(log_probs)


def reference(network: FeatureNetwork, image_set: ImageSet) -> tuple[Statistics, Tensor]:
    """Statistics of all features of the data set, and at most N_REFERENCE_FEATURES of the features,
    float32 (N, D), drawn with a fixed seed; from the cache, or computed and cached."""

    def make() -> dict[str, NDArray[Any]]:
        features, _ = extract(network, image_set.images.split(1024))
        chosen = np.random.default_rng(0).permutation(len(features))[:N_REFERENCE_FEATURES]
        known = statistics(features)
        return {
            "mean": known.mean.cpu().numpy(),
            "root": known.root.cpu().numpy(),
            "features": features.cpu().numpy()[chosen],
        }

    kept = cached_arrays(f"reference/{network.name}-{image_set.fingerprint}", make)
    mean, root, features = (torch.from_numpy(kept[name]) for name in ("mean", "root", "features"))
    return Statistics(mean, root), features


def statistics(features: Tensor) -> Statistics:
    """Mean and root of the covariance (divisor N - 1) of features (N, D); ValueError for N < 2."""
    n, d = features.shape
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {n}")
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / (n - 1) ** 0.5
    if n <= d:
        return Statistics(mean, centred)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return Statistics(mean, values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), at least 0.

    With Σ = RᵀR the trace of the last term is the nuclear norm of R_a R_bᵀ: no matrix square root,
    and exact if there are fewer samples than dimensions.
    """
    b_mean, b_root = b.mean.to(a.mean.device), b.root.to(a.root.device)
    shift = (a.mean - b_mean).square().sum()
    spread = a.root.square().sum() + b_root.square().sum()
    overlap = torch.linalg.svdvals(a.root @ b_root.T).sum()
    return float((shift + spread - 2 * overlap).clamp(min=0))  # clamp keeps nan


def kernel_distance(
    x: Tensor,
    y: Tensor,
    *,
    n_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) with the kernel (x·y/D + 1)³.

    The mean over subsets drawn without replacement; for equal distributions it is 0 on average, so
    it can be negative. Sets of at most subset_size are used whole; ValueError for fewer than 2.
    """
    y = y.to(x.device)
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError(f"KID needs at least 2 samples, got {size}")
    if len(x) <= subset_size and len(y) <= subset_size:
        return _squared_mmd(x.double(), y.double())
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(n_subsets):
        i = torch.from_numpy(rng.choice(len(x), size, replace=False)).to(x.device)
        j = torch.from_numpy(rng.choice(len(y), size, replace=False)).to(x.device)
        total += _squared_mmd(x[i].double(), y[j].double())
    return total / n_subsets


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_others(k: Tensor) -> Tensor:
        n = len(k)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return float(
        mean_of_others(kernel(x, x)) + mean_of_others(kernel(y, y)) - 2 * kernel(x, y).mean()
    )


def inception_score(log_probs: Tensor, n_splits: int = 10, seed: int = 0) -> float:
    """Mean over splits of exp(mean KL(p(y|x) || p(y))), 1..L, of log-probabilities (N, L).

    Samples are shuffled first, since they may come cluster by cluster. ValueError for N < n_splits.
    """
    if len(log_probs) < n_splits:
        raise ValueError(f"{len(log_probs)} samples are too few for {n_splits} splits")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(log_probs)))
    order = order.to(log_probs.device)
    split_scores = []
    for part in log_probs[order].double().tensor_split(n_splits):
        p = part.exp()
        marginal = p.mean(0).clamp(min=torch.finfo(torch.float64).tiny).log()
        split_scores.append(float((p * (part - marginal)).sum(1).mean().exp()))
    return float(np.mean(split_scores))
