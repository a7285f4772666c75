"""The trials of a search, as they come to be known: drawn here, run by this driver or another."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpcc.run_dir import ENDED
from tune import ledger, points, pruning
from tune.drivers import Crew
from tune.ledger import LedgerError, Plan, Trial
from tune.mirror import OutFolder
from tune.points import Point, Points, Search
from tune.storage import StorageError

STUDY_SECONDS = 10.0
"""Until study.db is tried again, where it could not be written."""

FIXED = ("space", "objectives", "seeds", "sampler", "sampler_seed", "startup", "ahead", "prune")
"""What cannot change once a search has begun: its later points would be those of another one."""


def check_same(out: Path, was: Search, now: Search) -> None:
    """LedgerError that names what of a begun search is asked to be other."""
    for name in FIXED:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            texts = [getattr(value, "text", None) or str(value) for value in (before, after)]
            raise LedgerError(
                f"{out} holds a search with {name} {texts[0]}, now {texts[1]}: "
                "leave it as it is, or choose another --out"
            )
    if now.n_points < len(was.points):
        raise LedgerError(f"{out} has {len(was.points)} points already; --points cannot be fewer")


class Supply:
    """What a sweep runs of a search: `tune.session.Supply`."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self._out, self.plan = out, plan
        self._crew: Crew | None = None
        self._files = OutFolder(out)
        self._written: tuple[int, ...] | None = None
        self._points = Points(out)
        self._trials: dict[str, list[Trial]] = {}
        self._given: set[str] = set()
        self._seen: list[str] = []
        self._study_not_before = 0.0
        self._exhausted = False
        self.found: list[Point] = []
        self.waits = False
        self.problem: str | None = None
        self._draw()
        self._given |= {trial.key for trial in self.all_trials()}

    @property
    def search(self) -> Search:
        """The search with the points that it has so far."""
        search = points.search_of(self.plan)
        assert search is not None
        return search

    @property
    def n_trials(self) -> int:
        """Trials of all points that were asked for."""
        return self.search.n_points * len(self.search.seeds)

    def begin(self, crew: Crew, files: OutFolder) -> tuple[Plan, list[Trial]]:
        """Take the search in hand, beside the drivers that have it: the plan, and all its trials.

        LedgerError where another driver has just begun another one.
        """
        crew.renew(())
        self._crew, self._files = crew, files
        with crew.planning():
            there = ledger.read_plan(self._out)
            if there is not None and there.id != self.plan.id:
                ledger.check_same_base(self._out, there, self.plan.base)
                ledger.check_same_code(self._out, there)
                check_same(self._out, points.search_of(there) or self.search, self.search)
                self.plan = replace(self.plan, id=there.id, code=there.code)
            code_files = self.plan.code_files  # --accept-changed-code
            self._take_up(there)
            self.plan = replace(self.plan, code_files=code_files)
            files.begin(self.plan, self.all_trials())
            for trial in self.all_trials():
                files.take_over(self.plan, trial)
            self._written = self._mark()
        self._given |= {trial.key for trial in self.all_trials()}
        return self.plan, self.all_trials()

    def more(self) -> tuple[Plan, list[Trial]]:
        """The plan, and trials that can start and have not been given yet."""
        before = self.plan
        if self._crew is not None and self._mark() != self._written:
            self._written = self._mark()
            self._take_up(ledger.read_plan(self._out))
        self._draw()
        if self.plan is not before:
            try:
                self.write(self.plan)
            except StorageError:  # Nothing starts that is not written down: asked for again.
                self.plan, self.waits = before, True
                self.found = self._points.read(before, self.search)
                return before, []
        if self._crew is None or self._crew.leads:
            self.write_study()
        new, self.waits = [], False
        for trial in self._open_trials():
            if self._crew is not None and self._crew.is_elsewhere(trial.key):
                self.waits = True
                self.give_back(trial.key)
            elif trial.key not in self._given:
                new.append(trial)
        self._given |= {trial.key for trial in new}
        return self.plan, new

    def give_back(self, key: str) -> None:
        """A trial that was given runs elsewhere; once it does not it can be given again."""
        self._given.discard(key)

    def write(self, plan: Plan) -> None:
        """Write the plan, with what other drivers have written meanwhile."""
        self.plan = plan
        if self._crew is None:
            self._files.write_plan(plan)
            return
        with self._crew.planning():
            self._take_up(ledger.read_plan(self._out))
            self._files.write_plan(self.plan)
            self._written = self._mark()

    def forget(self) -> None:
        """Trials run again: what their points had come to is no longer so."""
        self._points = Points(self._out)
        self._draw()

    def spec(self, trial: Trial) -> dict[str, Any]:
        """The bounds at which a trial is given up, where the search prunes."""
        number = self.search.points.index(trial.cell.key)
        bounds = pruning.limit(self._out, self.search, self.found, number, trial)
        return {"limit": bounds} if bounds else {}

    def all_trials(self) -> list[Trial]:
        """The trials of every point, by number."""
        return [trial for point in self.found for trial in self._trials_of(point)]

    def complete(self) -> bool:
        """Whether every point that was asked for has ended; study.db then says so too."""
        self._draw()
        if self._crew is None or self._crew.leads:
            self._study_not_before = 0.0
            self.write_study()
        ended = sum(point.state != points.OPEN for point in self.found)
        return ended >= self.search.n_points

    def write_study(self) -> None:
        """study.db, where a point is new or has ended since."""
        states = [point.state for point in self.found]
        if states != self._seen and time.monotonic() >= self._study_not_before:
            from tune.study_file import write_study

            try:
                write_study(self._out, self._out.name, self.search, self.found)
                self.problem, self._seen = None, states
            except OSError as error:  # A view of the records: the search goes on without it.
                self.problem = str(error)
                self._study_not_before = time.monotonic() + STUDY_SECONDS

    def _open_trials(self) -> list[Trial]:
        """The trials without a result, by the number of their points."""
        return [
            trial
            for point in self.found
            if point.state == points.OPEN
            for trial in self._trials_of(point)
            if ledger.status(self._out, trial).state not in ENDED
        ]

    def _trials_of(self, point: Point) -> list[Trial]:
        """A point's trials; kept, since they are asked for several times a second."""
        key = point.cell.key
        if key not in self._trials:
            self._trials[key] = ledger.trials(point.cell, self.search.seeds)
        return self._trials[key]

    def _take_up(self, there: Plan | None) -> None:
        """Unite the plan with the one on disk, which other drivers write too."""
        if there is None or there.id != self.plan.id:
            return
        theirs, crowd = points.search_of(there), bool(self._crew and self._crew.others())
        plan = replace(ledger.united(self.plan, there), code_files=there.code_files)
        search = points.search_of(plan)
        if search is None or theirs is None:
            return
        asked = [self.search.n_points] + ([theirs.n_points] if crowd else [])
        n_points = len(search.points) if self._exhausted else max(*asked, len(search.points))
        search = replace(search, n_points=n_points)
        self.plan = replace(plan, search=search.to_dict())
        self.found = self._points.read(self.plan, search)

    def _draw(self) -> None:
        """Every point that can be drawn now."""
        search = self.search
        self.found = self._points.read(self.plan, search)
        while points.due(search, self.found):
            cell = points.next_cell(search, self.plan.base, self.found)
            if cell is None:  # The space has no more: that is the whole search.
                self._exhausted = True
                search = replace(search, n_points=len(self.found))
                self.plan = replace(self.plan, search=search.to_dict())
                return
            search = replace(search, points=(*search.points, cell.key))
            grown = self.plan.grow([cell], search.seeds, search.name)
            self.plan = replace(grown, search=search.to_dict())
            self.found = self._points.read(self.plan, search)

    def _mark(self) -> tuple[int, ...] | None:
        """Changes whenever sweep.json is written, by any driver."""
        try:
            about = (self._out / ledger.PLAN).stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino
