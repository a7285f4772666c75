"""Several trials at once in one process on one device, each exactly as it would run alone.

A small model leaves most of a GPU idle. Here every trial has a thread, a CUDA stream, random
streams and a recorded iteration of its own; they share nothing but the images on the device. What
is global to a process must be the same for all (`Config.process_settings`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeVar

import torch

from mpcc.config import Config
from mpcc.data.image_set import ImageSet
from mpcc.training.algorithm import train_step
from mpcc.training.device import prepare_process, resolve_device
from mpcc.training.state import TrainState, build_state

Report = TypeVar("Report")

MAX_TRIALS = 16
MIN_GAIN = 1.1
"""Doubling the trials must raise iterations/s by this factor."""
MEMORY_SHARE = 0.8
"""Share of the device's free memory that `auto` may use."""


def side_by_side(
    runs: Mapping[str, Generator[Report]], device: str
) -> Generator[tuple[str, Report | Exception]]:
    """Run each generator in its own thread and, on a GPU, CUDA stream; yield (key, what it yields).

    A run that raises yields its exception last. Closing the iterator early closes every run, in its
    thread, and waits for that.
    """
    reports: queue.Queue[tuple[str, Report | Exception | None]] = queue.Queue()
    stop = threading.Event()

    def work(key: str, run: Generator[Report]) -> None:
        try:
            with own_stream(device), contextlib.closing(run):
                for now in run:
                    reports.put((key, now))
                    if stop.is_set():
                        break
        except Exception as error:  # the boundary of a trial: its error goes to the caller
            reports.put((key, error))
        finally:
            reports.put((key, None))

    threads = [threading.Thread(target=work, args=run, name=run[0]) for run in runs.items()]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            key, now = reports.get()
            if now is None:
                running -= 1
            else:
                yield key, now
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def own_stream(device: torch.device | str) -> Iterator[None]:
    """Inside the block, a GPU uses a new CUDA stream for this thread; no effect on a CPU."""
    where = resolve_device(device)
    if where.type != "cuda":
        yield
        return
    with torch.cuda.device(where), torch.cuda.stream(torch.cuda.Stream()):
        yield


def n_trials_for(config: Config, image_set: ImageSet, device: torch.device) -> int:
    """The number of trials like this one, run together, that uses the device best: `auto`.

    It is doubled from 1 as long as they fit the free memory and make more iterations per second.
    """
    state = trial_of(config, image_set, device)
    most = MAX_TRIALS
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        iterate(state, 2)
        kept = [t for part in state.parts.values() for t in part.state().values()]
        n_bytes = sum(t.numel() * t.element_size() for t in kept)
        needed = torch.cuda.max_memory_allocated(device) - before + n_bytes
        free, _ = torch.cuda.mem_get_info(device)
        most = n_that_fit(free, needed)
    return n_worth_it(lambda n: iterations_per_second(config, image_set, device, n), most)


def n_that_fit(free_bytes: float, trial_bytes: float, most: int = MAX_TRIALS) -> int:
    """Trials that fit the memory, at least one and no more than `most`."""
    return max(1, min(most, int(MEMORY_SHARE * free_bytes / max(1.0, trial_bytes))))


def n_worth_it(rate: Callable[[int], float], most: int) -> int:
    """The number of trials: 1, doubled as long as their joint rate grows by MIN_GAIN."""
    n, best = 1, rate(1)
    while 2 * n <= most:
        found = rate(2 * n)
        if found < MIN_GAIN * best:
            break
        n, best = 2 * n, found
    return n


def trial_of(config: Config, image_set: ImageSet, device: torch.device) -> TrainState:
    """A trial without a directory, to be timed."""
    prepare_process(config, device)
    return build_state(config, image_set, device)


def iterate(state: TrainState, n: int) -> None:
    """Run n iterations and wait for the device."""
    for _ in range(n):
        train_step(state)
    if state.device.type == "cuda":
        torch.cuda.current_stream(state.device).synchronize()


def iterations_per_second(
    config: Config, image_set: ImageSet, device: torch.device, n: int, n_iterations: int = 20
) -> float:
    """Iterations per second of n such trials together, summed over them; 0 if one fails."""
    start, done = threading.Barrier(n + 1), threading.Barrier(n + 1)

    def work() -> None:
        try:
            with own_stream(device):
                state = trial_of(config, image_set, device)
                iterate(state, 2)
                start.wait()
                iterate(state, n_iterations)
                done.wait()
        except RuntimeError:  # such as memory running out: the others need not wait for this one
            start.abort()
            done.abort()

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    try:
        start.wait()
        began = time.perf_counter()
        done.wait()
        return n * n_iterations / (time.perf_counter() - began)
    except threading.BrokenBarrierError:
        return 0.0
    finally:
        for thread in threads:
            thread.join()
