"""A small classifier of a labelled data set, whose features replace Inception's.

Inception was trained on photographs; for grey images, and for any at 8×8, features of a network
trained on the data set itself say more. Their distance, `fid_cnn`, is not comparable with FID.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpcc.data.cache import cached_arrays
from mpcc.data.image_set import ImageSet, to_float
from mpcc.evaluation.generation import FeatureNetwork
from mpcc.training.device import cpu_threads
from mpcc.training.state import seeded

N_FEATURES = 128
_VERSION = 1
"""Increase with every change to the network or its training: features are not comparable then."""
_STEPS, _BATCH, _LEARNING_RATE = 500, 128, 1e-3


class Classifier(nn.Module):
    """Convolutions of stride 2 down to 4x4, one layer of features, one of classes."""

    def __init__(self, n_channels: int, image_size: int, n_labels: int) -> None:
        super().__init__()
        n_down = int(math.log2(image_size // 4))
        widths = [n_channels, *(max(16, 64 >> (n_down - 1 - i)) for i in range(n_down))]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(widths[-1] * 16, N_FEATURES), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classes = nn.Linear(N_FEATURES, n_labels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, C, H, W) -> features (B, 128) and log-probabilities of labels (B, L)."""
        features = self.features(to_float(images))
        return features, self.classes(features).log_softmax(1)


def load_classifier(image_set: ImageSet, seed: int = 0) -> FeatureNetwork:
    """The classifier trained on this data set, on one thread of the CPU, from the cache or anew.
    Raises ValueError for data without labels."""
    labels = image_set.labels
    if labels is None:
        raise ValueError("fid_cnn needs labels, and this data set has none")
    n_labels = int(labels.max()) + 1
    _, channels, size, _ = image_set.images.shape
    name = f"cnn-{_VERSION}-{seed}-{image_set.fingerprint}"
    with seeded(seed):
        classifier = Classifier(channels, size, n_labels)

    def make() -> dict[str, NDArray[Any]]:
        _train(classifier, image_set.images, labels, seed)
        return {name: value.numpy() for name, value in classifier.state_dict().items()}

    weights = cached_arrays(f"classifiers/{name}", make)
    classifier.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    classifier.eval().requires_grad_(False)
    return FeatureNetwork(name, lambda images: classifier(images.cpu()))


def _train(classifier: Classifier, images: Tensor, labels: Tensor, seed: int) -> None:
    """Train on one thread, so that the same data always gives the same network."""
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=_LEARNING_RATE)
    with cpu_threads(1), torch.enable_grad():
        for _ in range(_STEPS):
            chosen = torch.randint(len(images), (_BATCH,), generator=rng)
            _, log_probs = classifier(images[chosen])
            loss = nn.functional.nll_loss(log_probs, labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
