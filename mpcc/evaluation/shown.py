"""Columns of tables by the name, or the printed label, of what they show."""

from __future__ import annotations

from mpcc.evaluation.metrics import METRICS, Metric

COSTS = {
    "seconds_train": Metric("seconds_train", "Training", None, "s", decimals=1),
    "seconds_evaluate": Metric("seconds_evaluate", "Evaluation", None, "s", decimals=1),
    "n_parameters": Metric("n_parameters", "Parameters", None, decimals=0),
}
"""What a trial cost, by the names of its record: columns that are no measurement of a model."""


def metric_name(text: str) -> str:
    """The metric that a name or a printed label means; the text itself where neither is known."""
    known = {metric.label: name for name, metric in (METRICS | COSTS).items()}
    return known.get(text.partition(", ")[0], text)


def column(metric: str) -> Metric:
    """How to show this metric; an unknown one is shown plainly and has no better direction."""
    return (METRICS | COSTS).get(metric) or Metric(metric, metric, None, decimals=4)
