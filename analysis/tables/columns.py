"""Which metrics the tables have; `mpcc.evaluation.metrics` says how each is formatted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpcc.evaluation.metrics import METRICS, TEST, column, metric_name
from mpcc.evaluation.metrics import Metric as Column

if TYPE_CHECKING:
    from analysis.tables.groups import Group

__all__ = ["Column", "column", "metric_name"]

TABLE1 = ("acc_majority", "inception_score", "fid", "mse_published", "mse")
"""Metrics of Table 1 and of Table 2."""
TABLE3 = ("inception_score", "fid")
GRID = ("acc_majority", "acc_hungarian", "inception_score", "fid", "mse")
UNLABELLED = (
    *("cluster_information_share", "silhouette", "n_clusters_used", "seed_agreement"),
    *("inception_score", "fid", "mse"),
)
"""Replaces GRID if trials have clusters but no metric that needs labels."""


def recorded(metrics: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """The metrics to show: each of `metrics`, then what earlier versions measured in its place (or
    only that, if no cell has the new metric). If any cell has them, the same metric on images that
    were not trained on comes next, and `fid_cnn` after FID."""

    def measured(name: str) -> bool:
        return any(group.summary(name).n for group in groups)

    shown = []
    for metric in metrics:
        had = [n for n, m in METRICS.items() if m.replaced_by == metric and measured(n)]
        if not had or measured(metric):
            shown.append(metric)
        shown += had
        shown += [name for name in (f"{metric}{TEST}",) if measured(name)]
        if metric == "fid" and measured("fid_cnn"):
            shown.append("fid_cnn")
    return shown


def sign(metric: str) -> int:
    """1 if a higher value is better, else -1."""
    return 1 if METRICS[metric].higher_is_better else -1


def protocol_name(metric: str, settings: Mapping[str, Any]) -> str:
    """The metric's name, with count and split if it uses generated images: `fid@50k-train`.

    The count is that of generated images, the split that of the images they are compared with.
    """
    n = settings["n_generated"]
    if "n_generated" not in column(metric).depends_on or n is None:
        return metric
    return f"{metric}@{f'{n // 1000}k' if n % 1000 == 0 else n}-{settings['split']}"
