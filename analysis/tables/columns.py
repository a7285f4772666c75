"""Which metrics the tables have; how each is shown says `mpcc.evaluation.metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpcc.evaluation.metrics import METRICS, TEST, column, metric_name
from mpcc.evaluation.metrics import Metric as Column

if TYPE_CHECKING:
    from analysis.tables.groups import Group

__all__ = ["Column", "column", "metric_name"]

TABLE1 = ("acc_majority", "inception_score", "fid", "mse_published", "mse")
"""Of Table 2 too."""
TABLE3 = ("inception_score", "fid")
GRID = ("acc_majority", "acc_hungarian", "inception_score", "fid", "mse")
UNLABELLED = (
    *("cluster_information_share", "silhouette", "n_clusters_used", "seed_agreement"),
    *("inception_score", "fid", "mse"),
)
"""In place of GRID where no trial has a metric that needs labels."""


def recorded(metrics: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """These metrics, each beside or, where no cell has it, behind what earlier versions measured
    in its place: the two never share a column. Where a cell has them, `fid_cnn` stands behind FID,
    and what was measured on images that were not trained on behind its metric."""

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
    """1 where a higher value is better, else -1."""
    return 1 if METRICS[metric].higher_is_better else -1


def protocol_name(metric: str, settings: Mapping[str, Any]) -> str:
    """A metric's name with what the number rests on: `fid@50k-train`; others have it in the name.

    The count is that of generated images, the split that of the images they are compared with.
    """
    n = settings["n_generated"]
    if "n_generated" not in column(metric).depends_on or n is None:
        return metric
    return f"{metric}@{f'{n // 1000}k' if n % 1000 == 0 else n}-{settings['split']}"
