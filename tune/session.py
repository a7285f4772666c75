"""One start of Ray, and the rounds of trials that run in it.

The main thread watches: the display, signals, Ray's health; Tune has a thread of its own.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mpcc import run_dir
from tune import cluster, grid, images, ledger, tracking
from tune.drivers import LOOK_SECONDS, Driver
from tune.groups import grouped
from tune.ledger import Plan, Status, Trial
from tune.machines import Machines
from tune.mirror import OutFolder
from tune.progress import Board, Display
from tune.settings import Settings, trial_spec
from tune.signals import Signals, tell

VISIBLE_SECONDS = 15.0
"""How long the result of a trial that has reported its end may take to be seen on a shared disk, or
to be fetched from a storage."""
NEWS_SECONDS = 5.0
"""Between two looks for what MLflow lacks of other drivers' trials."""
SILENT_SECONDS = 4 * 3600.0
"""Without a word from any trial Ray is taken for hung. They speak every second, but for the time of
an evaluation: the 50,000 images of IS, FID and KID take an hour or more on a slow CPU."""


class Supply(Protocol):
    """Where a sweep gets trials from while it runs."""

    @property
    def n_trials(self) -> int:
        """How many trials there will be in all."""

    def more(self) -> tuple[Plan, list[Trial]]:
        """The plan as it is now, and the trials in it that can start and have not been given yet.

        Called often. None while others run means to wait, none while nothing runs the end.
        """

    @property
    def waits(self) -> bool:
        """Whether `more` has found trials that other drivers run: there may be more after them."""

    def give_back(self, key: str) -> None:
        """A trial that was given could not be run here: another driver has it."""

    def write(self, plan: Plan) -> None:
        """Write the plan, with what other drivers have found."""

    def all_trials(self) -> list[Trial]:
        """Every trial that is known so far."""

    def spec(self, trial: Trial) -> dict[str, Any]:
        """What a worker must know of this trial beyond `trial_spec`."""


def statuses(out: Path, trials: Sequence[Trial], live: Collection[str] = ()) -> dict[str, Status]:
    """What has become of each trial, by key."""
    return {trial.key: ledger.status(out, trial, live) for trial in trials}


class Session:
    """A start of Ray for one sweep."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        driver: Driver,
        signals: Signals,
        board: Board,
        tracker: tracking.Background,
        files: OutFolder,
        supply: Supply | None,
    ) -> None:
        self._files = files
        self.plan, self._settings, self._driver = plan, settings, driver
        self._signals, self._board, self._tracker = signals, board, tracker
        self._supply = supply
        self._machines = Machines(settings, signals)
        self._given: list[Trial] = []
        self._in_hand: set[str] = set()
        self._ending: dict[str, float] = {}
        self._refused: deque[str] = deque()
        self._next_look = self._next_news = 0.0
        self._told_waiting = self._led = False
        self._reporting: set[str] = set()
        self._id = secrets.token_hex(4)
        self._stopping = False
        self._alone: list[str] = []
        self._told_tracking = False
        self._error: BaseException | None = None
        self._heard = time.monotonic()

    def train(self, todo: list[Trial]) -> bool:
        """Run these trials. False where Ray was left behind: stopped by a signal, or dead."""
        self._given = list(todo)
        self._files.clear_stop()
        with Display(self._board) as display:
            display.say(f"{len(todo)} of {self._board.total} trials to run; starting Ray …")
            whole, machines = False, self._machines
            count = len(todo) if self._supply is None else grid.MAX_TRIALS
            room = min(count, self._settings.max_concurrent or count)
            try:
                ready = machines.start(todo, room, display, self._driver)
                self._error = machines.error
                if ready:
                    machines.check(todo, display)
                    machines.choose_group_size(lambda: self._spec(todo[0]))
                    whole = self._rounds(todo, display)
                if whole:
                    machines.engine.shutdown()
                    self._signals.engine = None
                elif self._signals.engine is not None:
                    self._signals.engine.kill()
            finally:
                self._files.clear_stop()
                shutil.rmtree(machines.temp_dir, ignore_errors=True)
        if self._error is not None:
            tell(f"Ray: {tracking.one_line(self._error)}")
        return whole

    def _rounds(self, todo: list[Trial], display: Display) -> bool:
        """All trials; then, one at a time, those that found too little memory beside others."""
        machines = self._machines
        while True:
            specs = [self._spec(trial) for trial in todo]
            n_gpus = max(1, int(machines.engine.n_gpus()))
            groups = grouped(specs, machines.group_size, n_gpus)
            if not self._round(groups, machines.gpus, display):
                return False
            alone = [self._spec(t) | {"alone": True} for t in self._given if t.key in self._alone]
            self._alone = []
            if alone:
                display.say(f"{len(alone)} trials {self._why_alone()}; each once more, alone …")
                whole_gpu = 1.0 if machines.gpus else 0.0
                groups = [[spec] for spec in alone]
                if not self._round(groups, whole_gpu, display, alone=True):
                    return False
            todo = self._more()  # A search may have waited for those.
            if not todo and not self._waits():
                return True

    def _why_alone(self) -> str:
        return (
            "ran out of memory" if self._machines.group_size == 1 else "could not run beside others"
        )

    def _spec(self, trial: Trial) -> dict[str, Any]:
        spec = trial_spec(trial, self.plan, self._settings, self._id)
        spec["needed"] = self._machines.needed
        spec["stop_file"] = str(self._files.stop_file)
        spec["taken_file"] = self._driver.taken_file(trial.key)
        if not self._machines.gpus:
            spec["device"] = "cpu"
        return spec if self._supply is None else spec | self._supply.spec(trial)

    def _more(self) -> list[Trial]:
        """Trials that a search has found meanwhile; they are on the board from now on."""
        if self._supply is None or self._signals.number is not None or self._error is not None:
            return []
        before = self.plan
        try:
            plan, trials = self._supply.more()
            self.plan = images.knowing(plan, self.plan.data)
        except (OSError, ValueError) as error:  # told at the end; what runs, runs on
            self._error = error
            return []
        trials = [trial for trial in trials if trial.key not in self._in_hand]
        if trials:
            self._given += trials
            self._show(trials)
        if trials or self.plan is not before:  # Other drivers draw points too.
            self._tracker.grow(self.plan)
        return trials

    def _show(self, trials: Sequence[Trial]) -> None:
        """Put trials on the board that are not there."""
        known = {trial.key for trial in self._board.trials()}
        new = [trial for trial in trials if trial.key not in known]
        if new:
            self._board.add(new, statuses(self._settings.out, new))

    def _waits(self) -> bool:
        """Whether there may be more trials once other drivers have ended theirs."""
        if self._supply is None or self._signals.number is not None or self._error is not None:
            return False
        return self._supply.waits

    def _refill(self, feed: Any, display: Display) -> None:
        """Hand the trials on that can start; no more, once nothing runs and there is none."""
        assert self._supply is not None
        while self._refused:
            key = self._refused.popleft()
            self._in_hand.discard(key)
            self._supply.give_back(key)
        # Before the run directories are read: then nothing is missed.
        idle = not self._in_hand and not self._files.arriving
        trials = self._more()
        for trial in trials:
            self._in_hand.add(trial.key)
            feed.put(self._spec(trial))
        waits = self._waits()
        if (idle and not trials and not waits) or self._stopping:
            feed.close()
        elif idle and not trials and self._driver.others() and not self._told_waiting:
            self._told_waiting = True
            display.say("other drivers run all trials that can start now; waiting for more")
        self._look_around()

    def _look_around(self) -> None:
        """Show what has become of other drivers' trials, and have it delivered."""
        now = time.monotonic()
        if now < self._next_look or self._supply is None:
            return
        self._next_look = now + LOOK_SECONDS
        self._show(self._supply.all_trials())
        for trial in self._board.trials():
            if self._board.row(trial.key)[0] not in run_dir.ENDED + (ledger.RUNNING,):
                status = ledger.status(self._settings.out, trial)
                if status.state in run_dir.ENDED:
                    accuracy = status.metrics.get("acc_majority")
                    self._board.set(trial.key, status.state, status.iteration, accuracy)
        led, self._led = self._led, self._driver.leads
        if led != self._led or (now >= self._next_news and self._driver.others()):
            self._next_news = now + NEWS_SECONDS
            self._tracker.poke()

    def _claim(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """The trial as it is to run; None where another driver has it, or it has ended meanwhile.

        Called by Tune when it has room for the trial: so no driver claims what it cannot run.
        """
        key, out = str(spec["key"]), self._settings.out
        trial = next(trial for trial in self._given if trial.key == key)
        if self._driver.take(key):
            if ledger.status(out, trial).state not in run_dir.ENDED:
                if self._settings.storage is None:
                    ledger.mend(out, trial)  # A driver that was killed may have left it torn.
                return spec | {"taken_file": self._driver.taken_file(key)}
            self._driver.release_trial(key)
        self._refused.append(key)
        return None

    def _round(
        self,
        groups: list[list[dict[str, Any]]],
        gpus: float,
        display: Display,
        *,
        alone: bool = False,
    ) -> bool:
        machines = self._machines
        engine, storage = machines.engine, machines.temp_dir / "results"
        storage.mkdir(exist_ok=True)
        reporter = engine.Reporter(self._started, self._retried, self._reported, self._failed)
        resources = {"cpu": machines.cpus} | ({"gpu": gpus} if gpus else {})
        limit = 1 if alone else machines.limit
        feed = None
        specs = [spec for group in groups for spec in group]
        self._in_hand = {spec["key"] for spec in specs}
        if self._supply is not None and not alone:
            feed = engine.Feed(machines.group_size, self._claim)
            for spec in specs:
                feed.put(spec)

        def fit() -> None:
            try:
                engine.fit(feed or groups, resources, limit, storage, reporter)
            except BaseException as error:  # told by the main thread
                self._error = error

        self._heard = time.monotonic()
        thread = threading.Thread(target=fit, name="tune", daemon=True)
        thread.start()
        return self._watch(engine, thread, display, feed)

    def _watch(
        self, engine: ModuleType, thread: threading.Thread, display: Display, feed: Any
    ) -> bool:
        """Wait for the end, a signal, or Ray's death; only the first leaves Ray whole."""
        while thread.is_alive():
            thread.join(0.2)
            display.update()
            self._see_ends()
            if feed is not None:
                self._refill(feed, display)
            self._learn_images()
            self._driver.renew(self._board.running())
            if self._tracker.problem and not self._told_tracking:
                self._told_tracking = True
                display.say(f"MLflow does not answer ({self._tracker.problem}); training goes on")
            if self._tracker.note:
                display.say(self._tracker.note)
                self._tracker.note = None
            if self._signals.number is not None and not self._stopping:
                self._stopping = True
                name = signal.Signals(self._signals.number).name
                display.say(f"{name}: writing checkpoints …")
                self._files.ask_stop()
            death = engine.death()
            if death and thread.is_alive():
                display.say(f"{death}; run the same command again")
                self._forget_running()
                return False
            if self._files.lost or self._driver.lost:
                what = "storage" if self._files.lost else "folder"
                display.say(f"another driver has taken this {what} over; leaving it to that one")
                self._forget_running()
                return False
            if self._silent():
                hours = f"{SILENT_SECONDS / 3600:g} hours"
                display.say(f"no trial has said a word for {hours}; run the same command again")
                self._forget_running()
                return False
            if self._stopping and (not self._board.running() or self._signals.stop_left() < 0):
                self._forget_running()
                return False
        while self._ending:
            self._see_ends()
            time.sleep(0.05)
        return self._signals.number is None

    def _see_ends(self) -> None:
        """Have those trials no more in hand whose reported end can be read here."""
        for key, until in list(self._ending.items()):
            if self._files.has_ended(key) or time.monotonic() > until:
                del self._ending[key]
                self._let_go(key)
                self._in_hand.discard(key)

    def _silent(self) -> bool:
        """Whether Ray hangs. A cluster without running trials may wait for a machine to join."""
        waits = self._settings.address != cluster.LOCAL and not self._board.running()
        if waits:
            self._heard = time.monotonic()
        return time.monotonic() - self._heard > SILENT_SECONDS

    def _learn_images(self) -> None:
        """Write down which images the sweep sees as soon as a trial has read them."""
        reported, self._reporting = self._reporting, set()
        trials = [trial for trial in self._given if trial.key in reported]
        plan = images.learnt(self.plan, self._settings.out, trials)
        if plan.data == self.plan.data:
            return
        self.plan = plan
        if self._supply is None:  # A search's plan is its supply's to write.
            with contextlib.suppress(OSError, run_dir.RunDirError):  # The end writes it as well.
                ledger.write_plan(self._settings.out, plan)

    def _forget_running(self) -> None:
        for key in self._board.running():
            self._board.set(key, ledger.STOPPED)

    def _started(self, key: str) -> None:
        self._heard = time.monotonic()
        if not self._stopping:
            self._board.set(key, ledger.RUNNING)

    def _retried(self, key: str) -> None:
        self._heard = time.monotonic()
        self._board.set(key, ledger.PLANNED)

    def _reported(self, report: Mapping[str, Any]) -> None:
        self._heard = time.monotonic()
        key, state = str(report["trial_key"]), str(report["state"])
        if state not in ledger.STATES:  # Something beside other trials: not over yet.
            self._alone.append(key)
            state = ledger.PLANNED
        self._board.set(key, state, report["iteration"], report["accuracy"])
        if report["done"] and state in run_dir.ENDED:
            self._ending[key] = time.monotonic() + VISIBLE_SECONDS
        elif report["done"]:
            if key not in self._alone:
                self._let_go(key)
            self._in_hand.discard(key)
        if report["evaluated"] or report["done"]:
            self._reporting.add(key)
            self._files.news(key)

    def _failed(self, key: str, cause: str | None, text: str) -> None:
        """Ray gave a trial up: failed where the cause is its own, else stopped, to run again."""
        row = next(trial for trial in self._given if trial.key == key)
        if cause is None or self._driver.was_taken(key):
            self._board.set(key, ledger.STOPPED)
            self._let_go(key)
            self._in_hand.discard(key)
            tell(f"stopped: {row.text} ({text})")
            return
        try:
            ledger.record_failed(ledger.trial_dir(self._settings.out, key), row.config, cause)
            self._files.send_failed(key)
            self._board.set(key, ledger.FAILED)
        except (OSError, run_dir.RunDirError):
            self._board.set(key, ledger.STOPPED)
        self._let_go(key)
        self._in_hand.discard(key)
        self._tracker.poke()

    def _let_go(self, key: str) -> None:
        """A trial is no longer in hand: other drivers may have it, if they do not already."""
        if self._driver.was_taken(key):
            self._refused.append(key)
        self._driver.release_trial(key)
