"""SIGINT, SIGTERM, SIGHUP: the first asks the driver to end in order, the second ends it at once.

Standard library only: `tune/ablation.py` asks for it before it loads anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT_SECONDS = 19.0
"""From the first signal to the end, whatever is still waited for: 20 s are promised."""
STOP_SECONDS = 12.0
"""Of these, how long trials have to write their checkpoints and to send them to a storage."""
QUICK_SECONDS = 4.0
"""How long one thing is waited for after a signal."""


class Interrupted(BaseException):
    """A signal came while no trial was in hand: everything can be dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: nothing was running")
        self.number = number


class Signals:
    """Handles the signals while it is entered; with `remember` the first one is only noted."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal."""
        self.engine: ModuleType | None = None
        """What is to be killed with this process."""
        self._since = 0.0
        self._remembers = False
        self._before: dict[int, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> Signals:
        self.__init__()  # type: ignore[misc]
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _handled()}
            self.install()
            threading.Thread(target=self._limit, name="signals", daemon=True).start()
        return self

    def install(self) -> None:
        """Once more where another has put handlers in place since: Ray does so beneath Python."""
        for number in self._before:
            signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def remember(self) -> None:
        """From now on the first signal raises nothing: whoever works looks at `number`."""
        self._remembers = True

    def stop_left(self) -> float:
        """Seconds that trials still have after the first signal."""
        return self._since + STOP_SECONDS - time.monotonic()

    def within(self, seconds: float) -> Callable[[], float]:
        """Seconds left of this span, to be asked again and again; a signal cuts it short."""
        begun = time.monotonic()

        def left() -> float:
            end = begun + seconds
            if self.number is not None:
                end = min(end, max(begun, self._since) + QUICK_SECONDS)
                end = min(end, self._since + LIMIT_SECONDS - 1.0)
            return end - time.monotonic()

        return left

    def leave(self, code: int) -> NoReturn:
        """End this process at once, and Ray with it."""
        try:
            if self.engine is not None:
                self.engine.kill()
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
                    os.write(2, b"out of time; the same command goes on\n")
                self.leave(128 + self.number)


SIGNALS = Signals()
"""Of this process."""


def joined(thread: threading.Thread, left: Callable[[], float]) -> bool:
    """Wait for a thread as long as there is time left; whether it has ended."""
    while thread.is_alive() and (seconds := left()) > 0:
        thread.join(min(0.2, seconds))
    return not thread.is_alive()


def end_at_once() -> None:
    """End without a traceback, while there is nothing to put in order yet."""
    for number in _handled():
        signal.signal(number, lambda number, frame: os._exit(128 + number))


def _handled() -> list[int]:
    """nohup has SIGHUP ignored, and so it stays; a shell's background jobs still take SIGINT."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in NUMBERS if number != signal.SIGHUP or not ignored]


def tell(text: str) -> None:
    """A line on stderr, lost where that is full or gone: words must not end a sweep."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def let_go() -> None:
    """Flush stderr, and forget it where it cannot be: Python would end with another exit code."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")
