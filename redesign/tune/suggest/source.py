"""The trials of a search, as they become ready: a `tune.plan.source.TrialSource`.

What the loop knows of a trial only says when to look: a trial has ended once its record is in the
folder, and its values and evaluations are read from there. A report that was lost with a worker,
or the order in which reports come, therefore changes neither a point nor a pruning rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mpcc.config import trial_key
from mpcc.metrics import METRICS
from tune.plan import pruning
from tune.plan.cells import Trial, trials
from tune.plan.plan import Plan, PlanError
from tune.plan.pruning import PruneRule
from tune.plan.state import ENDED, Row, Status
from tune.store.folder import Store
from tune.suggest import points
from tune.suggest.points import Point, PointState
from tune.suggest.search import search_of
from tune.suggest.study import StudyWriter


class SearchSource:
    """The trials of a plan's search; it draws points, and writes nothing but the study."""

    def __init__(self, store: Store, plan: Plan, study: StudyWriter | None = None) -> None:
        """Read the records, and draw every point that can be drawn by them."""
        search = search_of(plan)
        if search is None:
            raise PlanError(f"{store.out} holds no search")
        self._store, self._study = store, study
        self.plan = plan
        """The plan with all points so far; the loop writes it before it starts their trials."""
        self.search = search
        self.points: list[Point] = []
        self.finished = False
        self._submitted: set[str] = set()
        cells = {planned.cell.key: planned.cell for planned in plan.cells}
        self._trials = {key: trials(cells[key], search.seeds) for key in search.points}
        self._ended = self._ends_of(self.trials())
        self._draw()

    @property
    def n_trials(self) -> int:
        """Trials of all points that were asked for."""
        return self.search.n_points * len(self.search.seeds)

    def trials(self) -> list[Trial]:
        """The trials of every point so far, by number."""
        return [trial for key in self.search.points for trial in self._trials[key]]

    def ready(self, states: Mapping[str, Status]) -> list[Trial]:
        """The trials of open points that have not ended and were not returned before.

        With pruning a trial waits until all trials that its rule rests on have ended, which it
        need not do otherwise: after a repair or `--retry` some of them may run again.
        """
        self._follow(states)
        opened = [point for point in self.points if point.state == PointState.OPEN]
        open_trials = [
            (point.number, trial)
            for point in opened
            for trial in self._trials[point.cell.key]
            if trial.key not in self._submitted
            and trial.key not in self._ended
            and (trial.key not in states or states[trial.key].state not in ENDED)
        ]
        new = [
            trial
            for number, trial in open_trials
            if self.search.prune is None or self.search.rests_on(number) <= opened[0].number
        ]
        self._submitted |= {trial.key for trial in new}
        self.finished = len(self.points) >= self.search.n_points and len(new) == len(open_trials)
        return new

    def complete(self) -> bool:
        """Whether every point that was asked for has ended, by the records as they are now."""
        self._follow(self._store.statuses(self.trials()))
        ended = [point for point in self.points if point.state != PointState.OPEN]
        return len(ended) >= self.search.n_points

    def evaluated(self, key: str, row: Row) -> None:
        """Nothing: bounds rest on the records of trials that have ended."""

    def prune_rule(self, trial: Trial) -> PruneRule | None:
        """Bounds by the same seed's trials of the points that this one's settings rest on."""
        search = self.search
        if search.prune is None:
            return None
        metric, number = search.objectives[0], search.points.index(trial.cell.key)
        before = [trial_key(key, trial.seed) for key in search.points[: search.rests_on(number)]]
        return pruning.prune_rule(
            search.prune,
            metric,
            METRICS[metric].higher_is_better,
            trial.config,
            [self._store.rows(key) for key in before],
        )

    def _follow(self, states: Mapping[str, Status]) -> None:
        """Look at the records of trials that have ended or run again by these states."""
        known = [trial for trial in self.trials() if trial.key in states]
        again = {t.key for t in known if states[t.key].state not in ENDED} & self._ended.keys()
        ended = [t for t in known if states[t.key].state in ENDED and t.key not in self._ended]
        new = self._ends_of(ended)
        self._ended = {k: end for k, end in self._ended.items() if k not in again} | new
        if again or new:
            self._draw()
        if self._study is not None:
            self._study.write(self.search, self.points)

    def _ends_of(self, trials: Sequence[Trial]) -> dict[str, Status]:
        """Those of the trials that have ended by their records."""
        statuses = self._store.statuses(trials)
        return {key: status for key, status in statuses.items() if status.state in ENDED}

    def _draw(self) -> None:
        """Read the points, and draw every further one that can be drawn."""
        while True:
            self.points = points.read_points(self.plan, self.search, self._ended)
            if not points.ready(self.search, self.points):
                return
            cell = points.next_cell(self.search, self.plan.base, self.points)
            if cell is None:  # The space has no more points: the search ends with these.
                self.search = replace(self.search, n_points=len(self.points))
                self.plan = replace(self.plan, search=self.search.to_dict())
                return
            self.search = replace(self.search, points=(*self.search.points, cell.key))
            plan = self.plan.grow([cell], self.search.seeds, f"search {self.search.space.text}")
            self.plan = replace(plan, search=self.search.to_dict())
            self._trials[cell.key] = trials(cell, self.search.seeds)
            self._ended |= self._ends_of(self._trials[cell.key])
