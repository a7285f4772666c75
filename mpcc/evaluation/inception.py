"""The Inception network of 2015, as pytorch-fid ports it: where its weights are, and its features.

IS, FID and KID are computed only with exactly these weights: another network's values would look
similar but not be comparable.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcc.options import usable

if TYPE_CHECKING:
    import torch

    from mpcc.evaluation.generation import FeatureNetwork

WEIGHTS_VARIABLE = "MPCC_INCEPTION_WEIGHTS"
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_NAME}"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

N_CLASSES = 1008


class InceptionMissing(ValueError):
    """The network's weights are missing or wrong; the message is one line with what to do."""


def find_weights(given: Path | str | None = None) -> Path:
    """Path of the weights (hash checked): given, from MPCC_INCEPTION_WEIGHTS or torch's hub cache.

    Raises InceptionMissing; its message is printed as the reason for a missing score. Imports no
    torch.
    """
    named = given or os.environ.get(WEIGHTS_VARIABLE)
    try:
        path = usable(named) if named else _hub_cache() / WEIGHTS_NAME
    except ValueError as error:
        raise InceptionMissing(f"{WEIGHTS_VARIABLE}: {error}") from None
    if not path.is_file():
        if named:
            raise InceptionMissing(f"Inception weights {path} do not exist; get {WEIGHTS_URL}")
        raise InceptionMissing(
            f"Inception weights missing: give --inception-weights FILE ({WEIGHTS_URL})"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise InceptionMissing(
            f"Inception weights {path} are damaged or of another network: SHA-256 "
            f"{digest[:12]}..., expected {WEIGHTS_SHA256[:12]}...; get {WEIGHTS_URL}"
        )
    return path


def load_inception(weights: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network with the weights that `find_weights` gave."""
    import torch

    state = torch.load(weights, map_location="cpu", weights_only=True)
    return network_from_state(state, WEIGHTS_SHA256[:8], device)


def network_from_state(
    state: dict[str, Any] | None, name: str, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The network with these weights, or with torch's random ones for None (for tests)."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from mpcc.evaluation.generation import FeatureNetwork

    network = _architecture()
    if state is not None:
        network.load_state_dict(state)
    classifier = network.fc.weight.detach().to(device)
    network.fc = torch.nn.Identity()  # the network now returns the 2,048 pooled features
    network.eval().requires_grad_(False).to(device)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.to(device, torch.float32) / 255
        x = x.expand(-1, 3, -1, -1)  # grey images have the same value in every colour
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        features = network(2 * x - 1)
        # the inception score has always been computed without the last layer's bias
        return features, (features @ classifier.T).log_softmax(1)

    return FeatureNetwork(f"inception-{name}", run)


def _architecture() -> Any:
    """torchvision's Inception-v3 with the blocks in which the network of 2015 differs."""
    import torchvision
    from pytorch_fid import inception as ported

    network = torchvision.models.inception_v3(
        weights=None, num_classes=N_CLASSES, aux_logits=False, init_weights=False
    )
    network.Mixed_5b = ported.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = ported.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = ported.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = ported.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = ported.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = ported.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = ported.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = ported.FIDInceptionE_1(1280)
    network.Mixed_7c = ported.FIDInceptionE_2(2048)
    return network


def _hub_cache() -> Path:
    """Where torch, and so pytorch-fid, keeps downloaded weights; found without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("TORCH_HOME") or Path(cache) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"
