"""Generator, discriminator and encoder (Appendix C, Tables 5-7, figures 4 and 5).

Every convolution and linear layer is spectrally normalised (`mpcc.model.layers`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpcc.config import Config
from mpcc.model.layers import (
    ConditionalBatchNorm,
    Conv,
    Embedding,
    Linear,
    SpectralEmbedding,
    double,
    in_its_precision,
)


class GeneratorBlock(nn.Module):
    """Residual block that doubles height and width (figure 4a). x (B, C, H, W) -> (B, C, 2H, 2W);
    condition: as `ConditionalBatchNorm` takes it."""

    def __init__(self, n_channels: int, upsampling: str, **condition: int | None) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.norm1 = ConditionalBatchNorm(n_channels, **condition)
        self.conv1 = Conv(n_channels, n_channels, 3)
        self.norm2 = ConditionalBatchNorm(n_channels, **condition)
        self.conv2 = Conv(n_channels, n_channels, 3)
        self.shortcut = Conv(n_channels, n_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.norm1(x, condition).relu_()
        h = self.conv1.on_doubled(h, self.upsampling)
        h = self.conv2(self.norm2(h, condition).relu_())
        # A 1×1 convolution and an up-sampling whose weights sum to 1 commute; this order is 4×
        # cheaper than figure 4's, and equal up to rounding.
        return h + double(self.shortcut(x), self.upsampling)


class Generator(nn.Module):
    """z (B, J) and y (B,) or None -> images (B, C, H, W) in [-1, 1] (Table 5)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_channels = 4 * config.width
        self.in_bfloat16 = config.precision == "bfloat16"
        self.latent_mode = config.latent_mode
        self.n_places = config.n_latent_places
        chunk = config.latent_size
        if config.latent_mode == "split":
            chunk //= self.n_places
        has_y = config.prior != "normal"
        condition: dict[str, int | None] = {}
        self.embed: nn.Embedding | None = None
        if config.latent_mode != "plain":
            condition["n_condition"] = chunk + (config.latent_size if has_y else 0)
            self.embed = Embedding(config.n_clusters, config.latent_size) if has_y else None
        elif has_y:
            condition["n_clusters"] = config.n_clusters
        self.first = Linear(chunk, 16 * n_channels)
        self.blocks = nn.ModuleList(
            GeneratorBlock(n_channels, config.upsampling, **condition)
            for _ in range(config.n_generator_blocks)
        )
        self.norm = ConditionalBatchNorm(n_channels)
        self.last = Conv(n_channels, config.n_channels, 3)

    @in_its_precision
    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        entry, conditions = self._deliver(z, y)
        # The linear layer's outputs are in channels-last order: (4, 4, n_channels).
        h = self.first(entry).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for block, condition in zip(self.blocks, conditions, strict=True):
            h = block(h, condition)
        return torch.tanh(self.last(self.norm(h).relu_()))

    def batches(self, z: Tensor, y: Tensor | None, batch_size: int) -> Tensor:
        """Images of one or more batches of z and y, each batch normalised by its own statistics.

        The fast generator supports no gradients here, and len(z) must be divisible by batch_size.
        """
        parts = z.split(batch_size)
        labels = [None] * len(parts) if y is None else y.split(batch_size)
        return torch.cat([self(*part) for part in zip(parts, labels, strict=True)])

    def _deliver(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """The inputs that the first layer and each block get from z and y (`latent_mode`)."""
        if self.latent_mode == "plain":
            return z, [y] * len(self.blocks)
        parts = z.chunk(self.n_places, 1) if self.latent_mode == "split" else [z] * self.n_places
        if self.embed is None:
            return parts[0], list(parts[1:])
        shared = self.embed(y)
        return parts[0], [torch.cat((shared, part), 1) for part in parts[1:]]

    def norms(self) -> list[ConditionalBatchNorm]:
        """Every batch norm."""
        found: list[Any] = [self.norm]
        for block in self.blocks:
            found += [block.norm1, block.norm2]
        return found


class DiscriminatorBlock(nn.Module):
    """Residual block of discriminator and encoder, x (B, n_in, H, W) -> (B, n_out, H, W)
    (figure 4b).

    down: halve height and width. The shortcut has a 1×1 convolution if `down` or n_in != n_out.
    first: the block on the image itself, without the first ReLU.
    """

    def __init__(self, n_in: int, n_out: int, *, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = Conv(n_in, n_out, 3)
        self.conv2 = Conv(n_out, n_out, 3)
        self.shortcut = Conv(n_in, n_out, 1) if down or n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x)).relu_()
        h = self.conv2.then_pool(h) if self.down else self.conv2(h)
        # Pooling and a 1×1 convolution commute: the first block's order (figure 4b) serves all.
        skip = F.avg_pool2d(x, 2) if self.down else x
        return h + (skip if self.shortcut is None else self.shortcut(skip))


def trunk(config: Config) -> nn.Sequential:
    """The blocks that D and E share: all of D's but its last (Table 6; at 32×32 three of four)."""
    n_channels = 4 * config.width
    n_down = {8: 1, 16: 2, 32: 2, 64: 3}[config.image_size]
    first = DiscriminatorBlock(config.n_channels, n_channels, down=True, first=True)
    more = [DiscriminatorBlock(n_channels, n_channels, down=True) for _ in range(n_down - 1)]
    return nn.Sequential(first, *more, DiscriminatorBlock(n_channels, n_channels, down=False))


class Discriminator(nn.Module):
    """images (B, C, H, W) and, if conditional, labels (B,) -> scores (B,) (Table 6)."""

    def __init__(self, config: Config, trunk: nn.Sequential) -> None:
        super().__init__()
        n_channels = 4 * config.width
        self.in_bfloat16 = config.precision == "bfloat16"
        self.trunk = trunk
        self.block = DiscriminatorBlock(n_channels, n_channels, down=False)
        self.score = Linear(n_channels, 1)
        self.embed = (
            SpectralEmbedding(config.n_clusters, n_channels) if config.conditional else None
        )

    @in_its_precision
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = F.relu(self.block(self.trunk(x))).sum((2, 3))
        score = self.score(h).squeeze(1)
        return score if self.embed is None else score + (self.embed(y) * h).sum(1)


class Encoder(nn.Module):
    """images (B, C, H, W) -> mean and log-variance of q(z|x), (B, J) each (Table 7)."""

    def __init__(self, config: Config, trunk: nn.Sequential) -> None:
        super().__init__()
        n_channels = 4 * config.width
        self.in_bfloat16 = config.precision == "bfloat16"
        self.trunk = trunk
        size = config.image_size // 2 ** sum(bool(block.down) for block in trunk)
        blocks = [DiscriminatorBlock(n_channels, n_channels, down=False)]
        while size > 2:
            blocks.append(DiscriminatorBlock(n_channels, n_channels, down=True))
            size //= 2
        self.blocks = nn.Sequential(*blocks)
        n_features = size * size * n_channels
        self.mean, self.log_var = (
            nn.Sequential(
                Linear(n_features, n_features // 2),
                nn.ReLU(),
                Linear(n_features // 2, config.latent_size),
            )
            for _ in range(2)
        )

    @in_its_precision
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Flattened pixel by pixel, which is the order in memory.
        h = self.blocks(self.trunk(x)).permute(0, 2, 3, 1).flatten(1)
        return self.mean(h), self.log_var(h)


def build_networks(config: Config) -> tuple[Generator, Discriminator, Encoder]:
    """The three networks on the CPU in float32, E on D's trunk if the configuration shares it.

    The weights come from torch's global random state: seed it first.
    """
    generator = Generator(config)
    shared = trunk(config)
    discriminator = Discriminator(config, shared)
    own = shared if config.encoder_shares_discriminator else trunk(config)
    return generator, discriminator, Encoder(config, own)


def n_parameters(module: nn.Module) -> int:
    """Number of trainable values in a network."""
    return sum(p.numel() for p in module.parameters())
