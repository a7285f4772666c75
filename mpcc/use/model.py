"""A trained model as a user has it: images in, clusters and images out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpcc.config import Config
from mpcc.data.image_set import to_float, to_uint8
from mpcc.data.pictures import progress
from mpcc.model.networks import Encoder, Generator
from mpcc.model.prior import Prior
from mpcc.training.device import cpu_threads, float32_products
from mpcc.use.images import Images, one_image, prepare
from mpcc.use.levels import Levels

BATCH = 64
"""Fixed batch size of the networks: another size changes the last bits."""

FITTED = "a fitted MPCC"
"""`Model.about` of the estimator's models, whose `dataset` is only a number of channels."""

Floats = NDArray[np.float32]
Clusters = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Model:
    """Encoder, averaged generator with its standing statistics, and prior of one trial.

    The methods take images as `mpcc.use.images.prepare` does and prepare them as training did:
    uint8 or float arrays and tensors (N, H, W), (N, H, W, C) or (N, C, H, W), a torch Dataset, a
    list of files, or a folder. `**how`: floats are within `value_range`, [0, 1] by default;
    `inverted` True inverts the images, None refuses images that seem to be inverted. On one kind
    of processor, an image's results are bit-identical whatever other images it comes with.
    DataError, one line, for invalid images; ValueError for clusters of a model that has none.
    """

    config: Config
    iteration: int
    """Iterations of training."""
    generator: Generator
    encoder: Encoder
    prior: Prior
    label_names: tuple[str, ...] = ()
    """Of the data set that it was trained on; empty if that has no labels."""
    levels: Levels | None = None
    """How bright that data set's images are; None for a trial of earlier code."""
    about: str = "a model"
    """Where it comes from, for messages."""

    @property
    def n_clusters(self) -> int:
        """K; 0 for a model without clusters (AIM)."""
        return self.config.n_clusters if self.prior.has_clusters else 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it generates."""
        return self.config.n_channels, self.config.image_size, self.config.image_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.prior.weight_logits.device

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model as its file; unpickling puts it on the best device of that machine."""
        from mpcc.use.trained import bytes_of, unpickled

        return unpickled, (bytes_of(self), self.about)

    def __repr__(self) -> str:
        images = "" if self.about == FITTED else f"{self.config.dataset}, "
        return (
            f"Model({self.about}: {images}{self.n_clusters} clusters, "
            f"{'x'.join(map(str, self.image_shape))} images, {self.iteration:,} iterations)"
        )

    def predict(self, images: Images, **how: Any) -> Clusters:
        """The most likely cluster of each image, (N,)."""
        return self._log_memberships(images, how).argmax(1).numpy()

    def predict_proba(self, images: Images, **how: Any) -> Floats:
        """q(y|x) of each image, (N, K); rows sum to 1."""
        return self._log_memberships(images, how).exp().numpy()

    @overload
    def encode(self, images: Images, log_var: Literal[False] = False, **how: Any) -> Floats: ...
    @overload
    def encode(
        self, images: Images, log_var: Literal[True], **how: Any
    ) -> tuple[Floats, Floats]: ...
    def encode(
        self, images: Images, log_var: bool = False, **how: Any
    ) -> Floats | tuple[Floats, Floats]:
        """Mean of q(z|x) of each image, (N, J); with `log_var` a pair, its log-variance second."""
        means, log_vars = self._in_batches(self._encoded, self.prepare(images, **how))
        return (means.numpy(), log_vars.numpy()) if log_var else means.numpy()

    def sample(self, n: int, cluster: int | None = None, seed: int = 0) -> Pixels:
        """n images, uint8 (n, C, H, W), from this cluster, or from p(y) if none is given."""
        if (n := index(n)) < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if cluster is not None:
            self._check_clusters(f"cluster {cluster} cannot be drawn from")
            if not 0 <= (cluster := index(cluster)) < self.n_clusters:
                raise ValueError(f"cluster must be 0 to {self.n_clusters - 1}, got {cluster}")
        rng = torch.Generator(self.device).manual_seed(index(seed))
        with torch.no_grad():
            if cluster is None:
                y = self.prior.sample_y(n, rng)
            else:
                y = torch.full((n,), cluster, device=self.device)
            z = self.prior.sample_z(y, n, rng)
        return self._draw(z, y)

    def reconstruct(self, images: Images, **how: Any) -> Pixels:
        """Each image reconstructed from its mean of q(z|x) and its cluster, uint8 (N, C, H, W)."""
        return self._draw(*self._latent(self.prepare(images, **how)))

    def interpolate(self, a: Images, b: Images, n: int = 8, **how: Any) -> Pixels:
        """n images, uint8 (n, C, H, W), on the line in latent space from image a to image b.

        The ends are the reconstructions of a and b; each point gets its own most likely cluster.
        """
        if (n := index(n)) < 2:
            raise ValueError(f"n must be at least 2, got {n}")
        ends = [self.prepare(one_image(image), **how) for image in (a, b)]
        if any(len(end) != 1 for end in ends):
            raise ValueError("interpolate takes one image as a and one as b")
        (start, end), _ = self._latent(torch.cat(ends))
        z = torch.lerp(start, end, torch.linspace(0, 1, n, device=self.device)[:, None])
        return self._draw(z, self._likeliest(z))

    def prepare(
        self,
        images: Images,
        *,
        value_range: tuple[float, float] | None = None,
        inverted: bool | None = None,
    ) -> Tensor:
        """The images as the networks take them before scaling: uint8 (N, C, H, W)."""
        return prepare(
            images,
            self.config.n_channels,
            self.config.image_size,
            value_range=value_range,
            inverted=inverted,
            levels=self.levels,
            ground=self.config.image_ground,
        )

    # -- the networks ------------------------------------------------------------------------------

    def _log_memberships(self, images: Images, how: dict[str, Any]) -> Tensor:
        self._check_clusters("it cannot cluster")
        pixels = self.prepare(images, **how)
        return self._in_batches(
            lambda x: (self.prior.log_memberships(self._encoded(x)[0]),), pixels
        )[0]

    def _check_clusters(self, what: str) -> None:
        if not self.prior.has_clusters:
            raise ValueError(
                f"{self.about} was trained with prior=normal and has no clusters: {what}; encode, "
                "sample and reconstruct work, or load a trial with another prior"
            )

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = to_float(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)
        return self.encoder(x)

    def _latent(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        z = self._in_batches(self._encoded, pixels)[0].to(self.device)
        return z, self._likeliest(z)

    def _likeliest(self, z: Tensor) -> Tensor | None:
        if not self.prior.has_clusters:
            return None
        log_memberships = self._in_batches(lambda z: (self.prior.log_memberships(z),), z)[0]
        return log_memberships.argmax(1).to(z.device)

    def _draw(self, z: Tensor, y: Tensor | None) -> Pixels:
        given = (z,) if y is None else (z, y)

        def draw(z: Tensor, y: Tensor | None = None) -> tuple[Tensor]:
            return (to_uint8(self.generator(z, y)),)

        return self._in_batches(draw, *given)[0].numpy()

    def _in_batches(
        self, run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs of `run` on batches of BATCH rows, the last one padded, joined on the CPU."""
        n, found = len(inputs[0]), []
        whole = torch.autocast(self.device.type, enabled=False)
        with torch.no_grad(), whole, as_trained(self.config, self.device):
            for start in progress(range(0, n, BATCH), n):
                parts = [rows[start : start + BATCH] for rows in inputs]
                m = len(parts[0])
                padding = (BATCH - m, *(-1,) * 3)
                parts = [torch.cat((p, p[-1:].expand(padding[: p.dim()]))) for p in parts]
                found.append([out[:m].cpu() for out in run(*parts)])
        return tuple(torch.cat(outs) for outs in zip(*found, strict=True))


@contextlib.contextmanager
def as_trained(config: Config, device: torch.device) -> Iterator[None]:
    """Inside the block, torch computes as in the trial, to the last bit; afterwards as before."""
    if device.type == "cpu":
        with cpu_threads(config.cpu_threads):
            yield
    else:
        # Not torch.backends.cudnn.flags: it also turns cuDNN off and TF32 on.
        cudnn = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.benchmark
        with float32_products(config.precision):
            cudnn.deterministic, cudnn.benchmark = True, False
            try:
                yield
            finally:
                cudnn.deterministic, cudnn.benchmark = before
