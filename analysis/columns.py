"""How each metric is shown: scale and decimals here; label, direction and protocol from METRICS."""

from __future__ import annotations

from dataclasses import dataclass

from mpcc.metrics import METRICS


@dataclass(frozen=True)
class Column:
    """One metric in a table."""

    metric: str
    heading: str
    better: str
    """`higher`, `lower`, or `neither`: then no value is best."""
    scale: float = 1.0
    """Shown value = recorded value × scale."""
    decimals: int = 3
    protocol: str = ""
    """What the number is, for a footnote."""
    depends_on: tuple[str, ...] = ()
    """Settings of the evaluation, beyond data and training, that this number depends on."""

    def shown(self, value: float) -> str:
        """A recorded value as the tables print it."""
        return f"{value * self.scale:,.{self.decimals}f}"


_GENERATED = ("n_generated",)

_SHOWN: dict[str, tuple[str, float, int, tuple[str, ...]]] = {
    "acc_majority": (", %", 100, 1, ()),
    "acc_hungarian": (", %", 100, 1, ()),
    "n_clusters_used": ("", 1, 1, ()),
    "mse": ("", 1, 4, ()),
    "mse_squared_mean": (", ×10⁻³", 1e3, 3, ("batch_size",)),
    "inception_score": ("", 1, 2, (*_GENERATED, "n_is_splits")),
    "fid": ("", 1, 2, _GENERATED),
    "kid": (", ×10⁻³", 1e3, 2, _GENERATED),
    "fid_cnn": ("", 1, 2, _GENERATED),
    "n_clusters_collapsed": ("", 1, 1, ()),
}
"""Metric -> unit after the label, scale, decimals, what it depends on."""

_NEITHER = ("n_clusters_used", "prior/std_mean")

TABLE1 = ("acc_majority", "inception_score", "fid", "mse_squared_mean", "mse")
TABLE2 = ("acc_majority", "inception_score", "fid", "mse_squared_mean", "mse")
TABLE3 = ("inception_score", "fid")
TABLE4 = ("acc_majority", "acc_hungarian", "nmi", "ari")
GRID = ("acc_majority", "acc_hungarian", "inception_score", "fid", "mse")


def column(metric: str) -> Column:
    """How to show this metric; an unknown one is shown plainly and has no better direction."""
    known = METRICS.get(metric)
    if known is None:
        return Column(metric, metric, "neither", decimals=4)
    unit, scale, decimals, depends_on = _SHOWN.get(metric, ("", 1.0, 3, ()))
    better = "higher" if known.higher_is_better else "lower"
    if metric in _NEITHER or metric.startswith("loss/"):
        better = "neither"
    return Column(
        metric,
        known.label + unit,
        better,
        scale,
        decimals,
        f"{known.label}: {known.protocol[0].lower()}{known.protocol[1:].rstrip('.')}",
        depends_on,
    )
