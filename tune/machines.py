"""Ray, started for one sweep: what it offers a trial, and whether every machine is ready."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tune import cluster, node_data, preflight, tracking
from tune.drivers import Driver
from tune.ledger import Trial
from tune.progress import Display
from tune.settings import Settings
from tune.signals import Signals, tell

PROBE_SECONDS = 60.0
"""How long a cluster's machines have to say what they lack."""
FETCH_SECONDS = 3600.0
"""And to fetch their data."""
DEFAULT_GPU_SHARE = 0.25
"""Of a GPU, for one trial."""


class Machines:
    """The machines that Ray has for one sweep, from `start` on."""

    engine: ModuleType
    """`tune.engine`, once Ray has started."""

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self._settings, self._signals = settings, signals
        self.temp_dir = Path(os.devnull)
        """Ray's own files, once there are any."""
        self.error: BaseException | None = None
        """What Ray's start raised."""
        self.cpus, self.gpus = settings.cpus or 1.0, settings.gpus or 0.0
        """For each trial, or group of trials that share a GPU."""
        self.limit, self.group_size = settings.max_concurrent, 1
        self.needed: dict[str, Any] | None = None
        """What a machine that joins later must have, `tune.cluster.needs`."""

    def start(self, todo: Sequence[Trial], room: int, display: Display, driver: Driver) -> bool:
        """Start Ray for at most `room` trials at once; False if that raised or a signal came first.

        In a thread of its own, where Ray leaves our signal handlers alone. The thread then sleeps:
        Linux ends Ray's processes with the thread that has started them.
        """
        threads = max(trial.config.cpu_threads for trial in todo)
        self.cpus = self._settings.cpus or threads
        address = self._settings.address
        stored = bool(self._settings.storage) or node_data.is_address(self._settings.data_dir)
        environment = cluster.environment(address, threads, storage=stored)
        tried = threading.Event()

        def start() -> None:
            try:
                from tune import engine

                self._signals.engine = engine
                self.temp_dir = engine.make_temp_dir()
                engine.start(address, room, self.cpus, self.temp_dir, environment)
            except BaseException as error:  # told by the main thread
                self.error = error
            tried.set()
            threading.Event().wait()

        threading.Thread(target=start, name="ray", daemon=True).start()
        while not tried.wait(0.2):
            display.update()
            driver.renew(())
            if self._signals.number is not None:
                return False
        if isinstance(self.error, preflight.PreflightError):
            raise self.error
        self._signals.install()
        if self.error is not None or self._signals.engine is None:
            return False
        self.engine = self._signals.engine
        self._share_out()
        return True

    def _share_out(self) -> None:
        """What of a GPU each trial gets."""
        given, together = self._settings.gpus, self._settings.trials_per_gpu
        self.gpus = given or 0.0
        if given is None and self.engine.n_gpus():
            self.gpus = DEFAULT_GPU_SHARE
        if together and self.gpus:
            self.gpus = 1.0
        elif isinstance(together, int):
            self.limit = min(together, self.limit or together)

    def check(self, todo: Sequence[Trial], display: Display) -> None:
        """PreflightError that names each machine of a cluster that lacks something.

        A machine of its own has the size that it has; to a cluster a larger one may come.
        """
        where = self._settings
        if where.address == cluster.LOCAL:
            if not self.engine.room_for(self.cpus, self.gpus):
                n_gpus = self.engine.n_gpus()
                self._refuse(
                    f"--gpus-per-trial {self.gpus:g}: this machine has {n_gpus:g} GPUs for us, so "
                    "that no trial could ever start; give fewer, or a cluster by --address"
                )
            return
        self.needed = cluster.needs(todo, where.out, where.storage, where.data_dir)
        ask = self.engine.on_every_node
        problems = ask(cluster.missing_here, self.needed, PROBE_SECONDS)
        if not problems:
            if node_data.is_address(where.data_dir):
                display.say("every machine fetches the data that it lacks …")
            problems = ask(cluster.data_missing_here, self.needed, FETCH_SECONDS)
        if problems:
            text = "; ".join(f"{node} {problem}" for node, problem in problems.items())
            self._refuse(f"not every machine is ready: {text}")
        if not self.engine.room_for(self.cpus, self.gpus):
            size = f"{self.cpus:g} cores and {self.gpus:g} GPUs"
            display.say(f"no machine has {size} for a trial yet; waiting for one to join")

    def choose_group_size(self, spec: Callable[[], dict[str, Any]]) -> None:
        """How many trials share a GPU: as given, or by the GPU's memory and speed for such a trial.

        After `check`, since it runs on one of the machines; PreflightError where that fails.
        """
        together = self._settings.trials_per_gpu
        if not together or not self.gpus:
            return
        if isinstance(together, int):
            self.group_size = together
            return
        from tune.groups import measured

        try:
            self.group_size = int(self.engine.on_one_gpu(measured, spec()))
        except Exception as error:
            self._refuse(
                f"--trials-per-gpu auto could not be measured ({tracking.one_line(error)}); "
                "give a number"
            )
        tell(f"{self.group_size} trials at a time on a GPU, by its memory and speed")

    def _refuse(self, why: str) -> None:
        self.engine.shutdown()
        raise preflight.PreflightError(why)
