"""SIGINT, SIGTERM, SIGHUP: the first asks the driver to stop cleanly, the second ends it at once.

Standard library only: `tune/ablation.py` imports it before it loads anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT_SECONDS = 19.0
"""Time from the first signal to the end, even if something does not answer: 20 s are promised."""
STOP_SECONDS = 12.0
"""The part of that time in which trials write checkpoints and send them to a remote."""
QUICK_SECONDS = 4.0
"""Limit for a single step after a signal."""

Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(BaseException):
    """A signal came while no trial ran: everything can be dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: no trial was running")
        self.number = number


class Signals:
    """Handles the signals while it is entered: the first raises Interrupted in the main thread.

    Within `remember` the first one is only noted, and the code there must check `number`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal."""
        self.kill: Callable[[], object] | None = None
        """Callback that ends Ray when this process exits immediately."""
        self._since = 0.0
        self._remembers = False
        self._before: dict[int, Handler] = {}
        self._over = threading.Event()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _handled()}
            self.install()
            threading.Thread(target=self._limit, name="signals", daemon=True).start()
        return self

    def install(self) -> None:
        """Install the handlers again, in case other code replaced them (Ray does, below Python)."""
        for number in self._before:
            signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def remember(self) -> Iterator[None]:
        """Only note the first signal while in this context, since trials may be running."""
        self._remembers = True
        try:
            yield
        finally:
            self._remembers = False

    @property
    def stop_deadline(self) -> float:
        """Deadline (time.monotonic) for trials to write their checkpoints after a signal."""
        return self._since + STOP_SECONDS

    def deadline(self, seconds: float) -> float:
        """Deadline (time.monotonic) for a step of `seconds`; earlier after a signal."""
        now = time.monotonic()
        if self.number is None:
            return now + seconds
        return min(now + min(seconds, QUICK_SECONDS), self._since + LIMIT_SECONDS - 1.0)

    def leave(self, code: int) -> NoReturn:
        """End this process at once, and the engine with it."""
        try:
            if self.kill is not None:
                self.kill()
        finally:
            os._exit(code)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            self.leave(128 + number)
        self.number, self._since = number, time.monotonic()
        if not self._remembers:
            raise Interrupted(number)

    def _limit(self) -> None:
        """End the process when its time is over, whatever the main thread waits for."""
        while not self._over.wait(0.25):
            if self.number is not None and time.monotonic() > self._since + LIMIT_SECONDS:
                with contextlib.suppress(OSError):
                    os.write(2, b"out of time; the same command resumes\n")
                self.leave(128 + self.number)


def end_at_once() -> None:
    """Let a signal end the process without a traceback, as long as there is nothing to clean up."""
    for number in _handled():
        signal.signal(number, lambda number, frame: os._exit(128 + number))


def _handled() -> list[int]:
    """The signals to handle: SIGHUP unless it is ignored (nohup), the others in any case."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in NUMBERS if number != signal.SIGHUP or not ignored]
