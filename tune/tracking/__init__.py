"""MLflow, a view of the run directories: one parent run for a sweep, one child for each trial.

The only package that knows MLflow, and the only writer of a sweep's runs. What it sends may be sent
twice: a run is found again by its tags, and rows carry their iteration as time stamp, so MLflow
keeps one of two equal rows.
"""

from tune.tracking.connection import check_reachable
from tune.tracking.delivery import in_step, sync
from tune.tracking.tracker import Tracker
from tune.tracking.uri import one_line

__all__ = ["Tracker", "check_reachable", "in_step", "one_line", "sync"]
