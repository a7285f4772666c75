"""Where a sweep gets its trials from: a grid and a search are two sources of one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tune.plan.cells import Trial
from tune.plan.cost import cost
from tune.plan.plan import Plan
from tune.plan.pruning import PruneRule
from tune.plan.state import ENDED, Status


class TrialSource(Protocol):
    """Hands out trials as they become ready."""

    @property
    def plan(self) -> Plan:
        """The plan with every trial handed out so far."""

    @property
    def n_trials(self) -> int:
        """Trials in all, with those that a search has still to suggest."""

    @property
    def finished(self) -> bool:
        """Whether `ready` will return no trial any more, once those in flight have ended."""

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """The trials that can start now and have not been returned before, in starting order.

        `states` maps trial keys to what is known of them; a key that is missing is planned.
        """

    def prune_rule(self, trial: Trial) -> PruneRule | None:
        """When the trial is to be pruned; None for never."""


class GridSource:
    """The trials of a plan that is complete from the start."""

    def __init__(self, plan: Plan, trials: list[Trial]) -> None:
        self.plan, self._trials = plan, trials
        self.n_trials = len(trials)
        self.finished = False
        self._returned: set[str] = set()

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """All that have not ended, at the first call: the longest first, seed by seed.

        So no long trial is left alone at the end, and among equals each cell has its first seed
        before any has its second. Of trials that train the same model each waits for the one
        before it, whose model it can take.
        """
        if self.finished:
            return []
        missing = [
            trial
            for trial in self._trials
            if trial.key not in states or states[trial.key].state not in ENDED
        ]
        first = {trial.training_key: trial for trial in reversed(missing)}.values()
        ready = [trial for trial in first if trial.key not in self._returned]
        self._returned |= {trial.key for trial in ready}
        self.finished = len(first) == len(missing)
        return sorted(ready, key=lambda trial: (-cost(trial.config), trial.seed))

    def prune_rule(self, trial: Trial) -> PruneRule | None:
        """None: a grid prunes nothing."""
        return None
