"""The trials of a search, as they become ready: a `tune.plan.source.TrialSource`.

The loop reports the end of a trial as it is recorded, and evaluations are read from the record. So
points and pruning rules do not depend on the order of reports, or on reports that were lost with a
worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from itertools import takewhile

from mpcc.config import trial_key
from mpcc.evaluation.metrics import METRICS
from tune.plan import pruning
from tune.plan.cells import Trial, trials
from tune.plan.plan import Plan
from tune.plan.pruning import PruneRule
from tune.plan.state import ENDED, Status
from tune.store.folder import Store
from tune.suggest.points import Point, next_cell, read_points
from tune.suggest.search import search_of
from tune.suggest.study import write_study


class SearchSource:
    """The trials of a plan's search; it draws points, and writes nothing but the study."""

    def __init__(self, store: Store, plan: Plan, writer: Executor | None = None) -> None:
        """Read the records, and draw every point that can be drawn from them.

        writer: if given, it writes study.db after each change.
        """
        self._store, self._writer = store, writer
        self.plan, self.search = plan, search_of(plan)
        """Both hold all points so far; the loop writes the plan before it starts their trials."""
        self.points: list[Point] = []
        self.finished = False
        self._trials = self.search.trials()
        self._submitted: set[str] = set()
        self._records = store.statuses(self._trials)
        """Statuses from before the trials were returned; the loop knows later ones."""
        self._draw({})

    @property
    def n_trials(self) -> int:
        """The number of trials of all `n_points` points."""
        return self.search.n_points * len(self.search.seeds)

    def trials(self) -> list[Trial]:
        """The trials of every point so far, by number."""
        return list(self._trials)

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """The trials of open points that have not ended and were not returned before.

        With pruning, a trial waits until all trials that decide its bounds have ended: after a
        repair or `--retry` some may be running again.
        """
        before = self.ended()
        known = self._draw(states)
        if self._writer is not None and self.ended() != before:
            self._writer.submit(write_study, self._store, self.search, self.ended())
        missing = [
            n
            for n, trial in enumerate(self._trials)
            if trial.key not in self._submitted and known[trial.key].state not in ENDED
        ]
        new = missing
        if self.search.prune is not None:
            new = [n for n in missing if self._basis_has_ended(n // len(self.search.seeds))]
        self._submitted |= {self._trials[n].key for n in new}
        self.finished = len(self.points) >= self.search.n_points and new == missing
        return [self._trials[n] for n in new]

    def ended(self) -> list[Point]:
        """The points that have ended, up to the first that has not."""
        return list(takewhile(lambda point: point.state in ENDED, self.points))

    def complete(self) -> bool:
        """Whether all `n_points` points have ended, by the records as they are now."""
        self.points = read_points(self.search, self._store.statuses(self._trials))
        return len(self.ended()) >= self.search.n_points

    def prune_rule(self, trial: Trial) -> PruneRule | None:
        """Bounds from the same seed's trials of the points that decided this one's settings."""
        search = self.search
        if search.prune is None:
            return None
        metric, keys = search.objectives[0], [cell.key for cell in search.points]
        before = keys[: search.rests_on(keys.index(trial.cell.key))]
        rows = [self._store.rows(trial_key(key, trial.seed)) for key in before]
        higher_is_better = METRICS[metric].higher_is_better
        return pruning.prune_rule(search.prune, metric, higher_is_better, trial.config, rows)

    def _basis_has_ended(self, number: int) -> bool:
        """Whether all points that decide this one have ended (`Search.rests_on`)."""
        return self.search.rests_on(number) <= len(self.ended())

    def _draw(self, states: Mapping[str, Status]) -> Mapping[str, Status]:
        """Read the points, and draw every further one that can be drawn; returns all statuses."""
        while True:
            known = {**self._records, **states}
            self.points = read_points(self.search, known)
            n = len(self.points)
            if n >= self.search.n_points or not self._basis_has_ended(n):
                return known
            cell = next_cell(self.search, self.plan.base, self.points)
            if cell is None:  # The space has no more points: the search ends with these.
                self.search = replace(self.search, n_points=n)
            else:
                self.search = replace(self.search, points=(*self.search.points, cell))
                self.plan = self.plan.grow([cell], self.search.seeds, f"search {self.search.space}")
                drawn = trials(cell, self.search.seeds)
                self._trials += drawn
                self._records |= self._store.statuses(drawn)
            self.plan = replace(self.plan, search=self.search.to_dict())
