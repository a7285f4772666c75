"""The loop of a sweep: one thread that takes events from the engine and submits ready trials.

It calls nothing that can wait: the engine, MLflow and a remote each have a thread of their own.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from tune.display import Display
from tune.engine.engine import Engine
from tune.engine.head import EngineError
from tune.engine.spec import Settings, TrialSpec, spec_of
from tune.plan.cells import Trial
from tune.plan.plan import Plan, images_name
from tune.plan.source import TrialSource
from tune.plan.state import ENDED, Event, EventKind, State, States, Status
from tune.signals import Signals
from tune.store.folder import Store
from tune.store.lock import SweepLock, trained_elsewhere
from tune.store.transfer import Downloads
from tune.tracking.tracker import Tracker

DOWNLOAD_SECONDS = 60.0
"""How long the end of a sweep waits for records from the remote, or from a slow shared disk."""
ELSEWHERE_SECONDS = 2.0
"""Between two looks at a trial that another process trains."""
EVENT_SECONDS = 0.2
"""How long the loop waits for an event before it looks at signals, the display and the lock."""


@dataclass(frozen=True)
class Services:
    """What a sweep reports to while it runs."""

    store: Store
    lock: SweepLock
    tracker: Tracker
    display: Display
    signals: Signals


def run_sweep(source: TrialSource, settings: Settings, states: States, services: Services) -> bool:
    """Run the trials of a source until it has no more, a signal comes, or Ray fails.

    Returns whether every trial that could run has ended. Raises EngineError, one line, where Ray or
    a node cannot run these trials at all.
    """
    return _Loop(source, settings, states, services).run()


class _Loop:
    def __init__(
        self, source: TrialSource, settings: Settings, states: States, services: Services
    ) -> None:
        self._source, self._settings, self._states = source, settings, states
        self._store, self._lock = services.store, services.lock
        self._tracker, self._display = services.tracker, services.display
        self._signals = services.signals
        self._in_flight: set[str] = set()
        self._exclusive: deque[str] = deque()
        self._elsewhere: dict[str, float] = {}
        """Key of a trial that another process trains -> when that was last looked at."""
        self._looked: SimpleQueue[tuple[str, Status | None]] = SimpleQueue()
        """What became of such trials; None where no process has them any more."""
        self._told: set[str] = set()
        self._awaited: dict[str, tuple[Event, float]] = {}
        """Key of a trial whose record is not here yet -> the event of its end, and when it came."""
        self._arrived: SimpleQueue[str] = SimpleQueue()
        """Trials whose records have come."""
        self._plan = source.plan
        self._downloads = Downloads(self._store.download)
        self._warned = False

    def run(self) -> bool:
        """Start the engine for the trials that are ready, and loop until the end."""
        ready = self._ready()
        if not ready:
            return True
        n_trials = self._states.n_trials
        self._display.log(f"{len(ready)} of {n_trials} trials to run; starting Ray …")
        engine = Engine(self._settings, ready, self._display.log, n_trials)
        self._signals.kill = engine.kill
        with engine:
            self._submit(engine, ready)
            whole = self._loop(engine)
            if not whole:
                engine.kill()
        self._signals.kill = None
        self._apply_rest(engine)
        if isinstance(engine.error, EngineError) and self._signals.number is None:
            raise engine.error
        return whole

    def _loop(self, engine: Engine) -> bool:
        while self._in_flight or self._exclusive or self._elsewhere or not self._source.finished:
            self._receive_all(engine, EVENT_SECONDS)
            self._report()
            problem = self._problem(engine)
            if problem is not None:
                if not isinstance(engine.error, EngineError):  # Which tells the user what to do.
                    self._display.log(f"{problem}; run the same command again")
                return False
            if self._signals.number is not None:
                return self._stop(engine)
            self._submit_ready(engine)
            self._follow_elsewhere(engine)
            if not self._in_flight and not self._elsewhere:
                break  # The search needs results of trials that were stopped.
        return True

    def _stop(self, engine: Engine) -> bool:
        """Wait until every trial has written a checkpoint, or the time for that is over."""
        assert self._signals.number is not None
        name = signal.Signals(self._signals.number).name
        self._display.log(f"{name}: writing checkpoints …")
        waits = engine.stop()
        while waits and not engine.finished:
            self._receive_all(engine, EVENT_SECONDS)
            self._report()
            if time.monotonic() > self._signals.stop_deadline or engine.problem() is not None:
                break
        return False

    def _problem(self, engine: Engine) -> str | None:
        if self._lock.lost:
            return "another driver has taken over this sweep"
        if engine.finished and engine.error is None and self._in_flight:
            return "Ray Tune has ended early"
        return engine.problem()

    def _submit_ready(self, engine: Engine) -> None:
        """Submit what the source has ready; with nothing in flight, one exclusive trial."""
        ready = self._ready()
        self._write_plan()
        self._submit(engine, ready)
        if not self._in_flight and self._exclusive:
            trial = self._states.trial(self._exclusive.popleft())
            self._submit(engine, [trial], exclusive=True)

    def _ready(self) -> list[Trial]:
        """The trials that can start now; a search has suggested some of them just now."""
        ready = self._source.ready(self._states)
        self._states.add([trial for trial in ready if trial.key not in self._states], {})
        return ready

    def _submit(self, engine: Engine, trials: Sequence[Trial], *, exclusive: bool = False) -> None:
        self._in_flight.update(trial.key for trial in trials)
        engine.submit(*(self._spec(trial, exclusive) for trial in trials))

    def _spec(self, trial: Trial, exclusive: bool) -> TrialSpec:
        spec = spec_of(trial, self._settings, self._plan)
        prune, same_model = self._source.prune_rule(trial), self._store.models.others(trial)
        return replace(spec, prune=prune, same_model=same_model, exclusive=exclusive)

    def _follow_elsewhere(self, engine: Engine) -> None:
        """Look at the trials that other processes train; run those that these have left."""
        while not self._looked.empty():
            key, status = self._looked.get()
            if self._elsewhere.pop(key, None) is None:
                continue
            if status is None:
                self._submit(engine, [self._states.trial(key)])
            else:
                end = Event(key, EventKind.ENDED, status.state, status.iteration, status.metrics)
                self._apply(replace(end, cause=status.cause))
        now = time.monotonic()
        for key, looked in self._elsewhere.items():
            if now - looked > ELSEWHERE_SECONDS:
                self._elsewhere[key] = now
                self._downloads.submit(f"elsewhere {key}", partial(self._look, key))
        if self._elsewhere and not self._in_flight:
            engine.wait()

    def _look(self, key: str) -> None:
        self._store.download(key)
        status = self._store.status(self._states.trial(key))
        if status.state in ENDED:
            self._looked.put((key, status))
        elif trained_elsewhere(self._store.out, self._settings.remote, key) is None:
            self._looked.put((key, None))

    def _receive_all(self, engine: Engine, seconds: float) -> None:
        """Take all events that are there; wait so long for the first of them."""
        event = engine.next_event(seconds)
        while event is not None:
            self._receive(event)
            event = engine.next_event(0)

    def _receive(self, event: Event) -> None:
        """Apply an event, but for an end: that is applied when the trial's record is seen here.

        The record of a trial whose worker died is written by us.
        """
        if event.state not in ENDED:
            self._apply(event)
            return
        trial = self._states.trial(event.key)
        self._awaited[event.key] = event, time.monotonic()

        def fetch() -> None:
            if trial.key not in self._awaited:
                return  # It was waited for too long.
            if event.failed_by_engine:
                self._store.record_end(trial, State.FAILED, event.cause or "killed")
            else:
                self._store.download(trial.key)
            if self._store.status(trial).state not in ENDED:
                raise FileNotFoundError(f"{self._store.trial_dir(trial.key)} has no result yet")
            self._arrived.put(trial.key)

        self._downloads.submit(trial.key, fetch)

    def _apply(self, event: Event) -> None:
        """Take an event into the states, the plan and MLflow."""
        trial = self._states.trial(event.key)
        if event.kind == EventKind.EXCLUSIVE:
            self._exclusive.append(event.key)
            self._display.log(f"{trial.text} could not run beside others; it runs again alone")
        if event.kind == EventKind.ELSEWHERE:
            self._elsewhere[event.key] = time.monotonic()
            if event.key not in self._told:
                self._display.log(f"{trial.text} is trained by {event.cause}; waiting for it")
            self._told.add(event.key)
        if event.ends and event.kind != EventKind.HANDED_BACK:
            self._in_flight.discard(event.key)
        if event.kind == EventKind.STOPPED and event.cause:
            self._display.log(f"stopped: {trial.text} ({event.cause})")
        self._states.apply(event)
        if event.data is not None and self._plan.fingerprint_for(trial.config) is None:
            self._plan = self._plan.with_data(images_name(trial.config), event.data)
            self._write(self._plan)
        self._tracker.log(event)

    def _report(self) -> None:
        """Update the display and the lock, and pass on what MLflow and the remote have to say."""
        self._signals.install()  # Ray puts a handler of SIGTERM in place beneath Python.
        self._display.show()
        self._lock.renew(self._states.running())
        self._apply_ends(DOWNLOAD_SECONDS)
        if self._tracker.problem and not self._warned:
            self._warned = True
            self._display.log(f"MLflow does not answer ({self._tracker.problem}); training goes on")

    def _apply_ends(self, seconds: float) -> None:
        """Apply the ends of trials whose records have come, or were waited for so long."""
        while not self._arrived.empty():
            event, _ = self._awaited.pop(self._arrived.get(), (None, 0.0))
            if event is not None:
                self._apply(event)
        oldest = time.monotonic() - seconds
        for key in [key for key, (_, since) in self._awaited.items() if since <= oldest]:
            event, _ = self._awaited.pop(key)
            if event.failed_by_engine:  # Nobody has recorded it, so the trial runs again.
                problem = self._downloads.problem
                event = Event(key, EventKind.STOPPED, State.STOPPED, cause=problem)
            self._apply(event)

    def _write_plan(self) -> None:
        """Write the plan where the source has suggested more trials."""
        plan = self._source.plan
        if plan.cells != self._plan.cells or plan.search != self._plan.search:
            for name, data in (self._plan.data or {}).items():
                plan = plan.with_data(name, data)
            self._plan = plan
            self._write(plan)
            self._tracker.extend(plan)

    def _write(self, plan: Plan) -> None:
        """Queue the plan for writing; if that fails, it is written at the end of the sweep."""
        self._downloads.submit("plan", lambda: self._store.write_plan(plan))

    def _apply_rest(self, engine: Engine) -> None:
        """Apply the queued events and the records still on their way.

        Trials that still count as running are stopped then.
        """
        self._receive_all(engine, 0)
        if not self._lock.lost:
            problem = self._downloads.settle(self._signals.deadline(DOWNLOAD_SECONDS))
            if problem:
                self._display.log(f"{problem}; nothing is lost: the same command does the rest")
        self._apply_ends(0.0)
        self._states.stop_running()
