"""Delivery beside training, in a thread of its own: nothing it does may hold up its caller."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Protocol

from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.plan.state import Row, State
from tune.store.folder import Store
from tune.tracking.delivery import Delivery
from tune.tracking.uri import one_line

RETRY_SECONDS = 30.0
"""At most so long after a fault it is tried again."""


class TrialEvent(Protocol):
    """What is read of a `tune.engine.events.Event`; the engine imports this package."""

    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def row(self) -> Row | None: ...


class Tracker:
    """Keeps MLflow up to a sweep. Its faults are kept in `problem` and waited out, never raised."""

    def __init__(self, store: Store, uri: str, plan: Plan) -> None:
        self.problem: str | None = None
        """What hinders the delivery now, in one line."""
        self.note: str | None = None
        """As `Delivery.note`; whoever prints it sets it to None."""
        self._delivery = Delivery(store, uri, plan)
        self._messages: SimpleQueue[TrialEvent | Plan | Trial | State] = SimpleQueue()
        self._running: set[str] = set()
        self._late: set[str] = set()
        """Trials of which MLflow may lack something."""
        self._compare = True
        """Whether MLflow may lack anything."""
        self._state, self._last = State.RUNNING, False
        self._closing, self._delivered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def log(self, event: TrialEvent) -> None:
        """Something has happened to a trial."""
        self._messages.put(event)

    def log_record(self, trial: Trial) -> None:
        """A trial has ended, and its files are in the folder."""
        self._messages.put(trial)

    def extend(self, plan: Plan) -> None:
        """The plan has more trials now."""
        self._messages.put(plan)

    def close(self, state: State, deadline: float) -> str | None:
        """Deliver the rest until `deadline` (of the monotonic clock); what hinders, or None.

        `state` is the sweep's, of which this driver runs no trial any more.
        """
        seconds = max(0.0, deadline - time.monotonic())
        self._messages.put(state)
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._delivered.is_set():
            return self.problem or f"no answer within {seconds:.0f} s"
        return self.problem

    def _run(self) -> None:
        """After a fault it tries again by itself: a server may come back while nothing is new."""
        pause = 1.0
        while not self._last:
            try:
                self._receive()
                self._deliver()
                self.problem, pause = None, 1.0
            except Exception as error:  # whatever a database or a server can raise
                self.problem, self._compare = one_line(error), True
                self._closing.wait(pause)
                pause = min(2 * pause, RETRY_SECONDS)
            self.note, self._delivery.note = self._delivery.note or self.note, None

    def _receive(self) -> None:
        """Wait for a message, unless there is something to do, and take all that are there."""
        if not self._compare:
            self._apply(self._messages.get())
        while not self._messages.empty():
            self._apply(self._messages.get_nowait())

    def _deliver(self) -> None:
        """Deliver what is late; at the start, after a fault and at the end compare all trials."""
        if not self._compare:
            self._delivery.deliver(self._running, self._state, self._late)
            if self._last:  # So the last look at all of them may be cut short.
                self._delivered.set()
        if self._compare or self._last:
            self._delivery.deliver(self._running, self._state)
        self._compare, self._late = False, set()

    def _apply(self, message: TrialEvent | Plan | Trial | State) -> None:
        if isinstance(message, State):
            self._state, self._last = message, True
            self._late |= self._running
            self._running = set()
        elif isinstance(message, Plan):
            self._delivery.extend(message)
        elif isinstance(message, Trial):
            self._running.discard(message.key)
            self._late.add(message.key)
        else:
            self._apply_event(message)

    def _apply_event(self, event: TrialEvent) -> None:
        """An ended trial counts as running until its files are there, see `log_record`."""
        if event.kind in ("started", "progress"):
            self._running.add(event.key)
        elif event.kind != "ended":
            self._running.discard(event.key)
        if event.row is not None:
            self._delivery.add_row(event.key, event.row)
        if event.row is not None or event.kind != "progress":
            self._late.add(event.key)
