"""MLflow, a view of the run directories: one parent run for a sweep, one child for each trial.

The only package that knows MLflow, and the only writer of a sweep's runs. What it sends may be sent
twice: a run is found again by its tags, and rows carry their iteration as time stamp, so MLflow
keeps one of two equal rows.
"""
