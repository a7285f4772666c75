"""Delivery to MLflow during training, in a thread of its own, which never delays its caller."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from tune.plan.plan import Plan
from tune.plan.state import Event, EventKind
from tune.store.folder import Store
from tune.tracking.delivery import Delivery
from tune.tracking.model import LogModels
from tune.tracking.uri import first_line

PACE = 30.0
"""Seconds of pause per second of processor time of the last delivery."""


class Tracker:
    """Keeps MLflow up to date with a sweep. Errors are kept in `problem`, retried, not raised."""

    def __init__(self, store: Store, uri: str, plan: Plan, log_models: LogModels = "best") -> None:
        self.problem: str | None = None
        """Why the delivery fails now, in one line."""
        self._delivery = Delivery(store, uri, plan, log_models, running=set())
        self._messages: SimpleQueue[Event | Plan | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()
        self.extend(plan)

    def log(self, event: Event) -> None:
        """Queue an event. If the trial has ended, its record must already be in the folder."""
        if event.row is not None or event.kind != EventKind.PROGRESS:
            self._messages.put(event)

    def extend(self, plan: Plan) -> None:
        """Use the plan, which has more trials now."""
        self._messages.put(plan)

    def close(self, deadline: float) -> str | None:
        """Make one last delivery, and wait for it until `deadline` (time.monotonic).

        No trial runs any more. Returns why the delivery fails, None if it is complete.
        """
        seconds = max(0.0, deadline - time.monotonic())
        self._messages.put(None)
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            return self.problem or f"no answer within {seconds:.0f} s"
        return self.problem

    def _run(self) -> None:
        """Deliver after new events, and after an error in any case: MLflow may come back."""
        while self._delivery.running is not None:
            if self.problem is None:
                self._apply(self._messages.get())
            while not self._messages.empty():
                self._apply(self._messages.get())
            begun = time.thread_time()
            try:
                self._delivery.deliver()
                self.problem = None
            except Exception as error:  # whatever a database or a server can raise
                self.problem = first_line(error)
            self._closing.wait(1.0 + PACE * (time.thread_time() - begun))

    def _apply(self, message: Event | Plan | None) -> None:
        delivery = self._delivery
        if message is None:
            delivery.running = None
        elif isinstance(message, Plan):
            delivery.plan = message
        elif delivery.running is not None:
            if message.ends:
                delivery.running.discard(message.key)
            else:
                delivery.running.add(message.key)
            if message.row is not None:
                delivery.rows.setdefault(message.key, []).append(message.row)
