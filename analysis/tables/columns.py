"""How each metric is shown: scale and decimals here; label, direction and protocol from METRICS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mpcc.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from analysis.tables.groups import Group


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

    @property
    def label(self) -> str:
        """The heading without its unit."""
        return self.heading.partition(", ")[0]

    def amount(self, value: float) -> str:
        """A recorded value with its unit, as a sentence says it: `0.340×10⁻³`, `3.1 %`."""
        unit = self.heading.partition(", ")[2]
        return self.shown(value) + (f" {unit}" if unit == "%" else unit)

    def difference(self, value: float) -> str:
        """A difference of two values with its unit: one of percentages is in points."""
        return self.amount(value).replace(" %", " points").replace("-", "−")

    def shown(self, value: float) -> str:
        """A recorded value as the tables print it."""
        return f"{value * self.scale:,.{self.decimals}f}"


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

TABLE1 = ("acc_majority", "inception_score", "fid", "mse_published", "mse")
TABLE2 = TABLE1
TABLE3 = ("inception_score", "fid")
GRID = ("acc_majority", "acc_hungarian", "inception_score", "fid", "mse")


def recorded(metrics: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """These metrics, each beside or, where no cell has it, behind what earlier versions measured
    in its place: the two never share a column."""
    shown = []
    for metric in metrics:
        had = [n for n, m in METRICS.items() if m.replaced_by == metric]
        had = [name for name in had if any(group.summary(name).n for group in groups)]
        if not had or any(group.summary(metric).n for group in groups):
            shown.append(metric)
        shown += had
    return shown


def metric_name(text: str) -> str:
    """The metric that a name or a printed label means; the text itself where neither is known."""
    return next((name for name, metric in METRICS.items() if metric.label == text), text)


@cache
def column(metric: str) -> Column:
    """How to show this metric; an unknown one is shown plainly and has no better direction."""
    known = METRICS.get(metric)
    if known is None:
        return Column(metric, metric, "neither", decimals=4)
    unit, scale, decimals, depends_on = _SHOWN.get(metric, ("", 1.0, 3, ()))
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


def protocol_name(metric: str, settings: Mapping[str, Any]) -> str:
    """A metric's name with what the number rests on: `fid@50k-train`; others have it in the name.

    The count is that of generated images, the split that of the images they are compared with.
    """
    n = settings["n_generated"]
    if "n_generated" not in column(metric).depends_on or n is None:
        return metric
    return f"{metric}@{f'{n // 1000}k' if n % 1000 == 0 else n}-{settings['split']}"
