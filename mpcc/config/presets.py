"""Presets, which are named configurations, and variants, which are named changes of a preset."""

from __future__ import annotations

from typing import Any

from mpcc.config.checks import unknown
from mpcc.config.fields import Config

_CIFAR: dict[str, Any] = dict(
    width=96, latent_size=128, latent_mode="split", prior_lr=6e-4, iterations=75_000
)
_DIGITS: dict[str, Any] = dict(dataset="digits", image_size=8, ema_decay=0.99, ema_start=100)

PRESETS: dict[str, Config] = {
    # The paper's rows, Appendix C, on all images as in Table 4.
    "mnist": Config(),
    "omniglot": Config(dataset="omniglot", width=16, n_clusters=100),
    "fmnist": Config(
        dataset="fmnist", width=24, latent_size=16, latent_mode="copy", iterations=75_000
    ),
    "cifar10": Config(dataset="cifar10", **_CIFAR),
    "cifar20": Config(dataset="cifar20", n_clusters=20, **_CIFAR),
    # Ours: small enough for one core, on images that need no download. D's and E's blocks after the
    # first work on 4×4 pixels. How the values of `digits` were chosen: results/README.md.
    "digits": Config(
        **_DIGITS,
        width=4,
        latent_size=16,
        prior_init_log_var=0.0,
        prior_min_std=1.0,
        iterations=700,
        network_lr=1e-3,
        prior_lr=1.5e-2,
        eval_every=100,
        n_generated=2000,
    ),
    "tiny": Config(
        **_DIGITS,
        width=1,
        latent_size=4,
        iterations=4,
        batch_size=8,
        n_discriminator_steps=2,
        network_lr=8e-4,
        prior_lr=8e-3,
        eval_every=2,
        n_standing_passes=2,
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "published-code": {
        "upsampling": "nearest",
        "prior_floor": "published",
        "prior_entropy": "published",
        "prior_learns_from_encoder_loss": True,
        "prior_adversarial_lr": "prior",
    },
    "published-text": {
        "upsampling": "bilinear",
        "prior_floor": "variance",
        "prior_entropy": "sampled",
        "prior_learns_from_encoder_loss": False,
        "prior_adversarial_lr": "network",
    },
    "normal-prior": {"prior": "normal"},
    "not-shared": {"encoder_shares_discriminator": False},
    "one-encoder-step": {"n_encoder_steps": 1},
    "no-prior-entropy": {"prior_entropy_weight": 0.0},
    "no-floor": {"prior_min_std": 0.0},
    "no-average": {"ema_decay": 0.0},
    "plain-latent": {"latent_mode": "plain"},
}
"""Named changes of a preset: all deviations of the published code from the paper's text, the text
followed exactly, and single changes for an ablation."""


def preset(name: str) -> Config:
    """The preset of that name; ValueError lists what exists."""
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[name]


def variant(name: str) -> dict[str, Any]:
    """What the variant of that name changes; ValueError lists what exists."""
    if name not in VARIANTS:
        raise ValueError(unknown("variant", name, VARIANTS))
    return VARIANTS[name]
