"""The loop of a sweep: one thread that takes events from the engine and submits ready trials.

While trials run, it never waits for Ray, MLflow or a remote: each has a thread of its own.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue

from tune.display import Display, log
from tune.engine.engine import Engine
from tune.engine.head import EngineError
from tune.engine.spec import Settings, TrialSpec, spec_of
from tune.plan.cells import Trial
from tune.plan.source import TrialSource
from tune.plan.state import ENDED, Event, EventKind, State, States
from tune.signals import QUICK_SECONDS, Signals
from tune.store.folder import Store
from tune.store.lock import Claims, trained_elsewhere
from tune.store.transfer import Downloads
from tune.tracking.tracker import Tracker

DOWNLOAD_SECONDS = 60.0
"""How long the end of a sweep waits for records from the remote, or from a slow shared disk."""
ELSEWHERE_SECONDS = 2.0
"""Seconds between two checks of a trial that another process trains."""
EVENT_SECONDS, RECORD_SECONDS = 0.2, 0.05
"""How long the loop waits for an event before it handles signals, the display and the lock; and
before it looks again for the record of a trial that has just ended."""


@dataclass
class Loop:
    """Runs the trials of a source, and reports them to the other services."""

    source: TrialSource
    settings: Settings
    states: States
    store: Store
    lock: Claims
    tracker: Tracker
    display: Display
    signals: Signals

    _engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self._in_flight: set[str] = set()
        self._exclusive: deque[str] = deque()
        """Trials that must run with nothing beside them and wait for that."""
        self._submitted_exclusive: set[str] = set()
        """Exclusive trials that were submitted."""
        self._elsewhere: dict[str, float] = {}
        """Key of a trial that another process trains -> time of the last check."""
        self._logged_elsewhere: set[str] = set()
        self._awaited: dict[str, float] = {}
        """Key of an ended trial without its record -> since when; inf: it is shown as stopped."""
        self._arrived: SimpleQueue[Event] = SimpleQueue()
        """Events of the download thread: ENDED as recorded; HANDED_BACK if no process trains it."""
        self._plan = self.source.plan
        self._downloads = Downloads(self.store.download)
        self._warned = False

    def run(self) -> bool:
        """Run the trials until there are no more, a signal comes, or Ray fails.

        Returns whether every trial that could run has ended. Raises EngineError, one line, if Ray
        or a node cannot run these trials at all.
        """
        ready = self._ready()
        if not ready:
            return True
        n_trials = self.states.n_trials
        log(f"{len(ready)} of {n_trials} trials to run; starting Ray …")
        # Trials that wait for others of the same model count too: they may need more of a node.
        first = {trial.key for trial in ready}
        waiting = (t for t in self.states.trials() if self.states[t.key].state not in ENDED)
        later = [trial for trial in waiting if trial.key not in first]
        self._engine = engine = Engine(self.settings, [*ready, *later], log, n_trials)
        self.signals.kill = engine.kill
        with engine:
            self._submit(ready)
            whole = self._loop()
            if not whole:
                engine.kill()
        self.signals.kill = None
        self._apply_rest()
        if isinstance(engine.error, EngineError) and self.signals.number is None:
            raise engine.error
        return whole

    def _loop(self) -> bool:
        while self._in_flight or self._exclusive or self._elsewhere or not self.source.finished:
            just_ended = any(since < math.inf for since in self._awaited.values())
            self._receive_all(RECORD_SECONDS if just_ended else EVENT_SECONDS)
            self._report()
            problem = self._problem()
            if problem is not None:
                if not isinstance(self._engine.error, EngineError):  # Its message says what to do.
                    log(f"{problem}; run the same command again")
                return False
            if self.signals.number is not None:
                return self._stop()
            self._submit_ready()
            self._follow_elsewhere()
            if not self._in_flight and not self._elsewhere:
                break  # The remaining trials depend on trials that were stopped.
        return True

    def _stop(self) -> bool:
        """Wait until every trial has written a checkpoint, or the time for that is over."""
        assert self.signals.number is not None
        name = signal.Signals(self.signals.number).name
        log(f"{name}: writing checkpoints …")
        waits = self._engine.stop()
        while waits and not self._engine.finished:
            self._receive_all(EVENT_SECONDS)
            self._report()
            if time.monotonic() > self.signals.stop_deadline or self._engine.problem() is not None:
                break
        return False

    def _problem(self) -> str | None:
        if self.lock.lost:
            return "another driver has taken over this sweep"
        if self._engine.finished and self._engine.error is None and self._in_flight:
            return "Ray Tune has ended early"
        return self._engine.problem()

    def _submit_ready(self) -> None:
        """Submit the trials that are ready; if nothing is in flight, one exclusive trial."""
        ready = self._ready()
        if ready:
            self._write_plan()
            self._submit(ready)
        if not self._in_flight and self._exclusive:
            key = self._exclusive.popleft()
            self._submitted_exclusive.add(key)
            self._submit([self.states.trial(key)])

    def _write_plan(self) -> None:
        """Queue the plan for writing, with the suggested trials and the images' records.

        If that fails, it is written at the end of the sweep.
        """
        plan = self.store.with_recorded_images(self.source.plan)
        if plan != self._plan:
            self._plan = plan
            self._downloads.submit("plan", partial(self.store.write_plan, plan))
            self.tracker.extend(plan)

    def _ready(self) -> list[Trial]:
        """The trials that can start now; a search has suggested some of them just now."""
        ready = self.source.ready(self.states)
        self.states.add([trial for trial in ready if trial.key not in self.states], {})
        return ready

    def _submit(self, trials: Sequence[Trial]) -> None:
        self._in_flight.update(trial.key for trial in trials)
        self._engine.submit(*map(self._spec, trials))

    def _spec(self, trial: Trial) -> TrialSpec:
        spec = spec_of(trial, self.settings, self._plan)
        exclusive = trial.key in self._submitted_exclusive
        prune, same_model = self.source.prune_rule(trial), self.store.models.others(trial)
        return replace(spec, prune=prune, same_model=same_model, exclusive=exclusive)

    def _follow_elsewhere(self) -> None:
        """Check the trials that other processes train, every few seconds."""
        now = time.monotonic()
        for key, looked in self._elsewhere.items():
            if now - looked > ELSEWHERE_SECONDS:
                self._elsewhere[key] = now
                look = partial(self._fetch, Event(key, EventKind.ELSEWHERE))
                self._downloads.submit(f"elsewhere {key}", look)
        if self._elsewhere and not self._in_flight:
            self._engine.reset_silence()

    def _receive_all(self, seconds: float) -> None:
        """Handle all queued events; wait at most `seconds` for the first."""
        event = self._engine.next_event(seconds)
        while event is not None:
            self._receive(event)
            event = self._engine.next_event(0)

    def _receive(self, event: Event) -> None:
        """Apply an event; an ENDED event is applied only after the trial's record has arrived."""
        if event.state in ENDED:
            self._awaited[event.key] = time.monotonic()
            self._downloads.submit(event.key, partial(self._fetch, event))
        else:
            self._apply(event)

    def _fetch(self, event: Event) -> None:
        """Fetch the record of a trial that has ended, or that another process may have finished.

        If the trial's worker died, write its record here.
        """
        trial = self.states.trial(event.key)
        if event.failed_by_engine:
            self.store.record_end(trial, State.FAILED, event.cause or "killed")
        else:
            self.store.download(trial.key)
        found = self.store.status(trial)
        if found.state in ENDED:
            end = replace(event, kind=EventKind.ENDED, state=found.state, cause=found.cause)
            end = replace(end, iteration=found.iteration, row=found.metrics or None)
            self._arrived.put(end)
        elif event.kind == EventKind.ENDED:
            raise FileNotFoundError(f"{self.store.trial_dir(trial.key)} has no result yet")
        elif trained_elsewhere(self.store.out, self.settings.remote, trial.key) is None:
            self._arrived.put(Event(trial.key, EventKind.HANDED_BACK, State.PLANNED))

    def _apply(self, event: Event) -> None:
        """Apply an event to the states and MLflow; submit a trial that was handed back."""
        trial = self.states.trial(event.key)
        if event.kind == EventKind.EXCLUSIVE:
            self._exclusive.append(event.key)
            log(f"{trial.text} could not run beside others; it runs again alone")
        if event.kind == EventKind.ELSEWHERE:
            self._elsewhere[event.key] = time.monotonic()
            if event.key not in self._logged_elsewhere:
                log(f"{trial.text} is trained by {event.cause}; waiting for it")
            self._logged_elsewhere.add(event.key)
        if event.ends:
            self._in_flight.discard(event.key)
        if event.kind == EventKind.HANDED_BACK:
            self._submit([trial])
        if event.kind == EventKind.STOPPED and event.cause:
            log(f"stopped: {trial.text} ({event.cause})")
        self.states.apply(event)
        self.tracker.log(event)

    def _report(self) -> None:
        """Update the display and the lock, apply ends, and log a failure of MLflow."""
        self.signals.install()  # Ray replaces the handler of SIGTERM below Python.
        self.display.show()
        self.lock.renew(self.states.running())
        self._apply_ends(DOWNLOAD_SECONDS)
        if self.tracker.problem and not self._warned:
            self._warned = True
            log(f"MLflow does not answer ({self.tracker.problem}); training goes on")

    def _apply_ends(self, seconds: float) -> None:
        """Apply the ends of trials whose records have arrived.

        After `seconds` without its record, a trial is shown as stopped.
        """
        while not self._arrived.empty():
            event = self._arrived.get()
            known = self._awaited.pop(event.key, None), self._elsewhere.pop(event.key, None)
            if any(known):  # Otherwise its end was applied before.
                self._apply(event)
        for key, since in self._awaited.items():
            if time.monotonic() - since >= seconds:
                self._awaited[key] = math.inf
                problem = self._downloads.problem
                self._apply(Event(key, EventKind.STOPPED, State.STOPPED, cause=problem))

    def _apply_rest(self) -> None:
        """Apply queued events and late records; mark the trials still running as stopped."""
        self._receive_all(0)
        if not self.lock.lost:
            timed_out = math.inf in self._awaited.values()
            seconds = QUICK_SECONDS if timed_out else DOWNLOAD_SECONDS
            problem = self._downloads.flush(self.signals.deadline(seconds))
            if problem:
                log(f"{problem}; nothing is lost: the same command does the rest")
        self._apply_ends(0.0)
        self.states.stop_running()
