"""Which settings have an effect in a configuration: one rule per setting that may have none.

A setting without effect is called dead: it changes no result of a trial, so two configurations that
differ only in dead settings train the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mpcc.config.fields import DEFAULTS, Config, trial_key


def _has_clusters(config: Config) -> bool:
    return config.prior != "normal"


def _decay_matters(config: Config) -> bool:
    # With ema_decay=0, ema_start takes its default: ema_decay is alive if averaging would then
    # start before the last iteration.
    start = config.ema_start if config.ema_decay > 0 else DEFAULTS["ema_start"]
    return start < config.iterations


def _start_matters(config: Config) -> bool:
    # Dead if ema_decay=0, or if ema_start and its default are both at or after the last iteration.
    return config.ema_decay > 0 and min(config.ema_start, DEFAULTS["ema_start"]) < config.iterations


ALIVE: dict[str, Callable[[Config], bool]] = {
    "skip_damaged": lambda c: c.dataset == "folder",
    "n_clusters": _has_clusters,
    "prior_init_log_var": _has_clusters,
    "prior_min_std": _has_clusters,
    "prior_floor": _has_clusters,
    "prior_entropy": lambda c: _has_clusters(c) and c.prior_entropy_weight > 0,
    "prior_entropy_weight": _has_clusters,
    "prior_rank": lambda c: c.prior == "low_rank_mixture",
    "given_cluster_weights": _has_clusters,
    "prior_lr": _has_clusters,
    "prior_adversarial_lr": _has_clusters,
    "prior_learns_from_encoder_loss": _has_clusters,
    "ema_decay": _decay_matters,
    "ema_start": _start_matters,
    "n_is_splits": lambda c: c.scored_by_inception,
    "min_diversity": _has_clusters,
}
"""Field -> whether it has an effect in this configuration; fields without a rule always have one.

`image_ground` has no rule: every model uses it as the background of transparent images.
"""


def dead(config: Config) -> tuple[str, ...]:
    """The fields without effect in this configuration, in the order of `Config`."""
    return tuple(name for name in DEFAULTS if name in ALIVE and not ALIVE[name](config))


def without_dead(config: Config) -> Config:
    """The configuration with each dead field at its default and the largest given cluster weight
    scaled to 1: equal for configurations that train the same model."""
    # One override for all fields: n_clusters alone may not fit the given weights.
    usual = {name: DEFAULTS[name] for name in dead(config)}
    if config.given_cluster_weights is not None:
        usual = {"given_cluster_weights": scaled(config.given_cluster_weights)} | usual
    return config.override(**usual) if usual else config


def scaled(weights: Sequence[float]) -> tuple[float, ...]:
    """Cluster weights scaled to a maximum of 1, to 12 digits: only their ratios have an effect."""
    largest = max(weights)
    return tuple(float(f"{weight / largest:.12g}") for weight in weights)


def idle_options(
    configs: Iterable[Config], data_dir: object, download: bool, weights: object
) -> list[str]:
    """One line per option that has no effect on these configurations.

    data_dir, download, weights: --data-dir, --download, --inception-weights; False or None if not
      given.
    """
    lines = []
    configs = list(configs)
    given = ["--data-dir"] * bool(data_dir) + ["--download"] * bool(download)
    if given and configs and all(config.dataset == "digits" for config in configs):
        lines.append(
            f"{' and '.join(given)}: without effect, the digits come with scikit-learn; other "
            "images by --preset NAME, your own by --set dataset=folder"
        )
    if weights and configs and all(config.n_generated is None for config in configs):
        lines.append(
            "--inception-weights: without effect, no images are generated; add "
            "--set n_generated=50000"
        )
    return lines


EVALUATION = (
    "eval_every",
    "eval_split",
    "n_standing_passes",
    "n_generated",
    "n_is_splits",
    "max_saturation",
    "min_diversity",
)
"""The fields that say how a trained model is evaluated; they do not affect training."""


def training_cell_key(config: Config) -> str:
    """Twelve hexadecimal digits that identify what is trained, except for the seed.

    Equal for configurations that differ only in evaluation fields (`EVALUATION`), in dead fields or
    in the scale of given cluster weights.
    """
    return without_dead(config.override(**{n: DEFAULTS[n] for n in EVALUATION})).cell_key


def training_key(config: Config) -> str:
    """`training_cell_key` with the seed."""
    return trial_key(training_cell_key(config), config.seed)


def cautions(config: Config) -> list[str]:
    """One line per setting that is allowed and probably a mistake."""
    updates = config.iterations - config.ema_start
    if updates <= 0 or config.ema_decay**updates <= 0.5:
        return []
    share = config.ema_decay**updates
    better = 1 - float(f"{5 / max(updates, 10):.2g}")  # exp(-5) is below 1 %
    return [
        f"{share:.0%} of the averaged generator, which is evaluated, will still be the generator "
        f"of iteration {config.ema_start:,}: ema_decay={config.ema_decay:g} is slow for "
        f"{updates:,} updates; --set ema_decay={better:g} would leave 1 %"
    ]
