"""The settings of one trial: a frozen object, checked once.

Every setting that can change a trial's results is a field; where it runs (device, folders) is not.
Values from the command line, Ray and files all enter through `from_dict`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mpcc.config.checks import check_weights, fits, kind_text, range_text, short, unknown

Dataset = Literal["digits", "mnist", "fmnist", "omniglot", "cifar10", "cifar20", "folder"]

N_CHANNELS = {"digits": 1, "mnist": 1, "fmnist": 1, "omniglot": 1}
N_CHANNELS |= {"cifar10": 3, "cifar20": 3, "folder": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of one trial. The defaults are the paper's MNIST row (Appendix C)."""

    # -- data ------------------------------------------------------------------------------------
    dataset: Dataset = "mnist"
    split: Literal["all", "train"] = "all"
    """`all`: training and test images together (clustering, Table 4); `train`: Tables 1-3."""
    image_size: int = 32
    """Height and width in pixels: 8, 16, 32 or 64. Images of another size are resized."""
    image_ground: Literal["white", "grey", "black"] = "white"
    """Background colour under transparent pixels of your own images; grey is 128."""
    skip_damaged: bool = False
    """dataset=folder: leave damaged files out and count them; False: refuse the folder."""

    # -- networks (Appendix C, Tables 5-7) -------------------------------------------------------
    width: int = 12
    """C. Every hidden layer has 4C channels."""
    latent_mode: Literal["plain", "split", "copy"] = "plain"
    """How z reaches the generator: at its entry only, in equal chunks, or whole at every block."""
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    """Text: bilinear; published code: nearest."""
    encoder_shares_discriminator: bool = True
    """False: the encoder has blocks of its own throughout, "NS" in Table 2."""
    conditional: bool = False
    """D adds Embed(y)·h, y the label of a real image and the cluster of a generated one (Table 3b);
    needs one label per cluster."""

    # -- prior (section 3.3) ---------------------------------------------------------------------
    prior: Literal["gaussian_mixture", "laplace_mixture", "low_rank_mixture", "normal"] = (
        "gaussian_mixture"
    )
    """Family of p(z|y). `normal` is the AIM baseline of Table 2: one standard normal, no y."""
    n_clusters: int = 10
    """K."""
    latent_size: int = 24
    """J, the dimension of z."""
    prior_init_log_var: float = 1.0
    """Log-variance of every component at the start, before the floor."""
    prior_min_std: float = 0.5
    """Floor of the components' standard deviation (section 5.3). 0 removes it."""
    prior_floor: Literal["variance", "published"] = "variance"
    """`variance`: var = exp(lv) + min_std² everywhere. `published`: sampling uses
    std = exp(lv/2) + min_std, memberships the former: two formulas, as the published code has."""
    prior_entropy: Literal["sampled", "published"] = "sampled"
    """Entropy in Loss III: of the distribution that is sampled, or of lv alone, without floor."""
    prior_entropy_weight: float = 0.01
    """λ_p, the weight of Loss III, eq. 10. 0 removes the term."""
    prior_rank: int = 2
    """Rank of the shared part of a `low_rank_mixture` component's covariance."""
    given_cluster_weights: tuple[float, ...] | None = None
    """φ, the probabilities of the clusters, as K positive numbers (scaled to sum to 1); None: 1/K,
    as in the paper."""

    # -- optimisation (Algorithm 1) --------------------------------------------------------------
    iterations: int = 125_000
    """Generator updates."""
    batch_size: int = 50
    """n: images per update, real and generated alike."""
    n_discriminator_steps: int = 4
    """D_steps: discriminator updates per generator update."""
    n_encoder_steps: int = 4
    """E_steps: encoder updates per generator update."""
    network_lr: float = 2e-4
    """η: Adam's step size for generator, discriminator and encoder."""
    prior_lr: float = 1.6e-3
    """η_p: Adam's step size for the prior's parameters."""
    prior_adversarial_lr: Literal["prior", "network"] = "prior"
    """Step size of the prior in G's update: η_p (published code, Table 1) or η (text)."""
    prior_learns_from_encoder_loss: bool = False
    """True, as in the published code: eq. 7's gradient also reaches the prior through z."""
    ema_decay: float = 0.9999
    """Decay of the generator's moving average. 0 keeps the plain weights."""
    ema_start: int = 1000
    """The last iteration after which the moving average is still a copy."""

    # -- evaluation ------------------------------------------------------------------------------
    eval_every: int = 5_000
    """Iterations between evaluations; the last iteration is always evaluated."""
    eval_split: Literal["trained", "test"] = "trained"
    """`test`: also score the images that split=train leaves out, as `NAME@test`."""
    n_standing_passes: int = 16
    """Forward passes whose batch statistics the evaluated generator uses (Appendix C)."""
    n_generated: int | None = None
    """Generated images for IS, FID and KID (50,000 in the paper). None: not computed."""
    n_is_splits: int = 10
    """Splits of the inception score."""
    max_saturation: float = 0.15
    """A model counts as saturated (Appendix D) above this (share in samples − share in data) /
    (1 − share in data) of pixel values at the ends of the range."""
    min_diversity: float = 0.25
    """Spread of one cluster's samples, relative to that of the images assigned to it, below which
    the cluster counts as collapsed (Appendix D)."""

    # -- run -------------------------------------------------------------------------------------
    seed: int = 0
    """Random seed for weights, batches and latents; evaluation has its own stream from it."""
    cpu_threads: int = 1
    """Threads of a trial on a CPU: a setting, since another order of sums changes the last bit."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of matrix products and convolutions: tf32 (GPU only) has a 10-bit mantissa, bfloat16 a 7-bit
    one; weights, batch statistics and losses stay float32."""
    fast: bool = True
    """False: torch's own layers, norms and optimisers, one batch at a time: slower, and what tests
    compare the fast path with."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                meant = range_text(low, high, value)
                raise ValueError(f"{name} must be {meant}, got {short(value)}")
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"image_size must be one of {', '.join(map(str, IMAGE_SIZES))}, "
                f"got {self.image_size}"
            )
        if self.latent_mode == "split" and self.latent_size % self.n_latent_places:
            raise ValueError(
                f"latent_size must be a multiple of {self.n_latent_places} in latent_mode 'split' "
                f"at image_size {self.image_size}, got {self.latent_size}"
            )
        if self.given_cluster_weights is not None:
            check_weights(self.given_cluster_weights, self.n_clusters)
            # Integers become floats, so that equal configurations have equal keys.
            as_floats = tuple(map(float, self.given_cluster_weights))
            object.__setattr__(self, "given_cluster_weights", as_floats)
        n_generated = self.n_generated or 0
        if self.scored_by_inception and n_generated < self.n_is_splits:
            raise ValueError(
                f"n_generated must be at least n_is_splits, {self.n_is_splits}, got {n_generated}"
            )
        if self.eval_split == "test" and self.split != "train":
            raise ValueError(
                f"eval_split=test needs split=train: with split={self.split} the model is trained "
                "on all images"
            )
        if self.conditional and self.prior == "normal":
            raise ValueError("conditional needs a prior with clusters, got prior 'normal'")

    @property
    def n_channels(self) -> int:
        """Channels of an image of this data set."""
        return N_CHANNELS[self.dataset]

    @property
    def process_settings(self) -> tuple[int, bool, str]:
        """Process-wide settings (threads, TF32): trials share a process only if these are equal.

        A TF32 trial that scores generated images runs alone, because scoring switches TF32 off.
        """
        tf32 = self.precision == "tf32"
        return self.cpu_threads, tf32, self.trial_key if tf32 and self.n_generated else ""

    @property
    def n_values(self) -> int:
        """Values of an image, channels × height × width: the divisor of eq. 7."""
        return self.n_channels * self.image_size**2

    @property
    def scored_by_inception(self) -> bool:
        """Whether generated images get IS, FID and KID: Inception is not used at 8×8 pixels."""
        return self.n_generated is not None and self.image_size > 8

    @property
    def n_generator_blocks(self) -> int:
        """Number of G's blocks: one per doubling from 4×4 pixels to image_size."""
        return (self.image_size // 4).bit_length() - 1

    @property
    def n_latent_places(self) -> int:
        """How many layers of G get z: the first and, unless latent_mode is `plain`, every block."""
        return 1 if self.latent_mode == "plain" else 1 + self.n_generator_blocks

    def to_dict(self) -> dict[str, Any]:
        """All fields by their full names, as JSON holds them."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def override(self, **changes: Any) -> Config:
        """A copy with some fields changed; checked, and raises ValueError, as `from_dict`."""
        return from_dict(self.to_dict() | changes)

    @property
    def cell_key(self) -> str:
        """Twelve hexadecimal digits that identify this configuration, except for its seed.

        Only fields that differ from their defaults enter the hash, so that a field added later does
        not change the keys of earlier trials; if a default has changed, its first value counts
        (`FIRST_DEFAULTS`).
        """
        usual = DEFAULTS | FIRST_DEFAULTS
        return _key({k: v for k, v in self.to_dict().items() if k != "seed" and v != usual[k]})

    @property
    def trial_key(self) -> str:
        """Twelve hexadecimal digits that identify this configuration with its seed."""
        return trial_key(self.cell_key, self.seed)


IMAGE_SIZES = (8, 16, 32, 64)

RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 1024),
    "n_clusters": (1, 10_000),
    "latent_size": (1, 4096),
    "prior_init_log_var": (-20, 20),
    "prior_min_std": (0, 100),
    "prior_entropy_weight": (0, 1e6),
    "prior_rank": (1, 4096),
    "iterations": (1, 10**9),
    "batch_size": (2, 1_000_000),
    "n_discriminator_steps": (1, 1000),
    "n_encoder_steps": (1, 1000),
    "network_lr": (0, 10),
    "prior_lr": (0, 10),
    "ema_decay": (0, 0.999999999),
    "ema_start": (0, 10**9),
    "eval_every": (1, 10**9),
    "n_standing_passes": (1, 10_000),
    "n_generated": (2, 10_000_000),
    "n_is_splits": (1, 1000),
    "max_saturation": (0, 1),
    "min_diversity": (0, 1),
    "seed": (0, 2**31 - 1),
    "cpu_threads": (1, 1024),
}
"""Field -> its smallest and largest allowed value, both inclusive."""

ALIASES = {
    "esteps": "n_encoder_steps",
    "dsteps": "n_discriminator_steps",
    "eta": "network_lr",
    "eta_p": "prior_lr",
    "lambda_p": "prior_entropy_weight",
    "sigma_min": "prior_min_std",
    "K": "n_clusters",
    "J": "latent_size",
    "C": "width",
}
"""Short names, for input and headings; files hold the full ones."""

SHORT = {full: short for short, full in ALIASES.items()}

SPELLINGS = {
    "E_steps": "esteps",
    "D_steps": "dsteps",
    "η": "eta",
    "η_p": "eta_p",
    "λ_p": "lambda_p",
    "σ_min": "sigma_min",
}
"""The paper's symbols, accepted as input."""

HINTS = typing.get_type_hints(Config)
DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Config)}
FIRST_DEFAULTS: dict[str, Any] = {}
"""Field whose default has changed -> its first default, which is used for keys and for records that
lack the field: so configurations that train differently never share a key."""

REMOVED = {"cluster_weights": "uniform"}
"""Removed field -> the only value with which old records can still be read."""


def from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration with these fields, full or short names; the rest at their defaults.

    Raises ValueError for an unknown name (with the nearest), a wrong type, a value out of range.
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        full = name if name in DEFAULTS else full_name(name)
        if full in named:
            raise ValueError(f"{full} is given twice")
        named[full] = tuple(value) if isinstance(value, list) else value
    return Config(**named)


def from_record(values: Mapping[str, Any]) -> Config:
    """Like `from_dict`, for a record of any version; a missing field takes its first default."""
    known = {name: value for name, value in values.items() if REMOVED.get(name) != value}
    return from_dict(FIRST_DEFAULTS | known)


def full_name(name: str) -> str:
    """The field with this full or short name; ValueError names the nearest if it is unknown."""
    short_name = SPELLINGS.get(name, name)
    full = ALIASES.get(short_name, short_name)
    if full not in DEFAULTS:
        raise ValueError(unknown("field", name, [*DEFAULTS, *ALIASES]))
    return full


def trial_key(cell_key: str, seed: int) -> str:
    """`Config.trial_key` of a cell's trial with this seed."""
    return _key({"cell": cell_key, "seed": seed})


def _check_types(config: Config) -> None:
    for name, hint in HINTS.items():
        value = getattr(config, name)
        if isinstance(value, int) and not isinstance(value, bool) and hint is float:
            if abs(value) > 1e300:  # float() of an even larger int raises
                raise ValueError(f"{name} must be {kind_text(hint)}, got {short(value)}")
            object.__setattr__(config, name, float(value))
            continue
        if not fits(value, hint):
            if typing.get_origin(hint) is Literal and isinstance(value, str):
                raise ValueError(unknown(name, value, typing.get_args(hint)))
            raise ValueError(f"{name} must be {kind_text(hint)}, got {short(value)}")


def _key(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
