"""Trials that train the same model: a trial that is done lends its model to another evaluation.

Two trials whose configurations differ only in fields of an evaluation (`mpcc.config.EVALUATION`)
have records of their own, in run directories of their own, and one training.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path

from mpcc.config import training_key
from mpcc.runs import run_dir
from tune.plan.cells import Trial
from tune.plan.state import Row
from tune.store.plan_file import recorded_configs


class Models:
    """Which trials of a folder train the same model."""

    def __init__(self, folder: Path) -> None:
        """folder: holds the run directories of trials, planned or not."""
        self._folder = folder

    @cached_property
    def _trials(self) -> dict[str, list[str]]:
        """`training_key` -> keys of the trials, read from the folder once."""
        found: dict[str, list[str]] = {}
        for config in recorded_configs(self._folder):
            found.setdefault(training_key(config), []).append(config.trial_key)
        return found

    def others(self, trial: Trial) -> tuple[str, ...]:
        """Keys of the other trials with the same model: those in the folder, and those that were
        passed to earlier calls."""
        keys = self._trials.setdefault(trial.training_key, [])
        if trial.key not in keys:
            keys.append(trial.key)
        return tuple(key for key in keys if key != trial.key)

    def ends(self, trial: Trial) -> dict[str, Row]:
        """Key -> result of those of the `others` that have ended."""
        found: dict[str, Row] = {}
        for key in self.others(trial):
            with suppress(run_dir.RunDirError, OSError):
                result = run_dir.read_result(self._folder / key)
                if result is not None:
                    found[key] = result
        return found

    def done(self, trial: Trial) -> list[str]:
        """Keys of those of the `others` that are done."""
        return [key for key, end in self.ends(trial).items() if end["state"] == run_dir.DONE]
