"""The source of a sweep's trials: a grid and a search implement one interface."""

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
        """The total number of trials, with those that a search will still suggest."""

    @property
    def finished(self) -> bool:
        """Whether `ready` will return no further trial."""

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """The trials that can start now and have not been returned before, in starting order.

        states: trial key -> status; a trial without a status is planned.
        """

    def prune_rule(self, trial: Trial) -> PruneRule | None:
        """The bounds at which the trial is pruned; None if it is never pruned."""


class GridSource:
    """The trials of a plan that is complete from the start."""

    def __init__(self, plan: Plan, trials: list[Trial]) -> None:
        self.plan, self._trials = plan, trials
        self.n_trials = len(trials)
        self.finished = False
        self._returned: set[str] = set()

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """The unfinished trials, longest first, then by seed.

        So no long trial runs alone at the end, and among trials of equal length each cell gets its
        first seed before any gets its second. Trials that train the same model are returned one
        after another, each when the one before has ended, so that it can reuse that one's model.
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
        """Return None: a grid prunes nothing."""
        return None
