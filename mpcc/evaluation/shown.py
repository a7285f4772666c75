"""How people read a metric: its heading, scale and decimals, the same wherever it is printed.

Files and MLflow hold the recorded value: an accuracy of 58.2 % is 0.582 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mpcc.evaluation.metrics import METRICS, TEST


@dataclass(frozen=True)
class Column:
    """One metric as it is shown."""

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

    @property
    def label(self) -> str:
        """The heading without its unit."""
        return self.heading.partition(", ")[0]

    def amount(self, value: float, std: float | None = None) -> str:
        """A recorded value with its unit, as a sentence says it: `0.340×10⁻³`, `3.1 ± 0.2 %`."""
        unit = self.heading.partition(", ")[2]
        text = self.shown(value) + ("" if std is None else f" ± {self.shown(std)}")
        return text + (f" {unit}" if unit in ("%", "s") else unit)

    def reading(self, value: float, std: float | None = None) -> str:
        """A recorded value by its name: `Acc 58.2 %`."""
        return f"{self.label} {self.amount(value, std)}"

    def difference(self, value: float) -> str:
        """A difference of two values with its unit: one of percentages is in points."""
        return self.amount(value).replace(" %", " points").replace("-", "−")

    def shown(self, value: float) -> str:
        """A recorded value as the tables print it."""
        return f"{value * self.scale:,.{self.decimals}f}"


COSTS = {
    "seconds_train": Column(
        "seconds_train", "Training, s", "neither", decimals=1, protocol="Training: seconds a trial"
    ),
    "seconds_evaluate": Column(
        "seconds_evaluate",
        "Evaluation, s",
        "neither",
        decimals=1,
        protocol="Evaluation: seconds a trial, all evaluations together",
    ),
    "n_parameters": Column(
        "n_parameters",
        "Parameters",
        "neither",
        decimals=0,
        protocol="Parameters: trained values of generator and encoder, which a trained model keeps",
    ),
}
"""What a trial cost, by the names of its record: columns that are no measurement of a model."""

_GENERATED = ("n_generated",)

_SHOWN: dict[str, tuple[str, float, int, tuple[str, ...]]] = {
    "acc_majority": (", %", 100, 1, ()),
    "acc_hungarian": (", %", 100, 1, ()),
    "n_clusters_used": ("", 1, 1, ()),
    "mse": ("", 1, 4, ()),
    "mse_published": (", ×10⁻³", 1e3, 3, ("batch_size",)),
    "mse_squared_mean": (", ×10⁻³", 1e3, 3, ("batch_size",)),
    "inception_score": ("", 1, 2, (*_GENERATED, "n_is_splits")),
    "fid": ("", 1, 2, _GENERATED),
    "kid": (", ×10⁻³", 1e3, 2, _GENERATED),
    "fid_cnn": ("", 1, 2, _GENERATED),
    "n_clusters_collapsed": ("", 1, 1, ()),
}
"""Metric -> unit after the label, scale, decimals, what it depends on."""

_PROPER = ("Fréchet",)
"""First words of a protocol that keep their capital within a sentence."""


def metric_name(text: str) -> str:
    """The metric that a name or a printed label means; the text itself where neither is known."""
    known = {column(name).label: name for name in (*METRICS, *COSTS)}
    return known.get(text.partition(", ")[0], text)


@cache
def column(metric: str) -> Column:
    """How to show this metric; an unknown one is shown plainly and has no better direction."""
    known = METRICS.get(metric)
    if metric in COSTS:
        return COSTS[metric]
    if known is None:
        return Column(metric, metric, "neither", decimals=4)
    unit, scale, decimals, depends_on = _SHOWN.get(metric.removesuffix(TEST), ("", 1.0, 3, ()))
    better = "higher" if known.higher_is_better else "lower"
    return Column(
        metric,
        known.label + unit,
        better if known.has_better_end else "neither",
        scale,
        decimals,
        f"{known.label}: {_within_sentence(known.protocol).rstrip('.')}",
        depends_on,
    )


def _within_sentence(text: str) -> str:
    return text if text.startswith(_PROPER) else text[0].lower() + text[1:]
