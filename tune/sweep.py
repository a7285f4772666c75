"""Missing trials -> Ray Tune -> run directories: one sweep from its first trial to its last.

The plan is made afresh from the run directories each time (`tune.ledger`); Ray only runs what is
missing. The main thread watches: the display, signals, Ray's health; Tune has a thread of its own.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mpcc import run_dir
from mpcc.config import Config
from tune import cluster, grid, ledger, node_data, preflight, tracking
from tune.grid import cost
from tune.ledger import Plan, Status, Trial
from tune.lock import Lock
from tune.mirror import STOP, OutFolder
from tune.progress import Board, Display
from tune.signals import QUICK_SECONDS, SIGNALS, Signals, tell

ROOT = Path(__file__).resolve().parents[1]
DELIVERY_SECONDS = 60.0
SILENT_SECONDS = 4 * 3600.0
"""Without a word from any trial Ray is taken for hung. They speak every second, but for the time of
an evaluation: the 50,000 images of IS, FID and KID take an hour or more on a slow CPU."""
DEFAULT_GPU_SHARE = 0.25
"""Of a GPU, for one trial."""


@dataclass(frozen=True)
class Settings:
    """Where and how trials run: none of it can change a number."""

    out: Path
    uri: str
    data_dir: Path | str | None = None
    """A folder, on each machine; or the address of a storage, see `tune.node_data`."""
    address: str = "local"
    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_iterations: int | None = None
    storage: str | None = None
    """Where the trials' files lie if not in `out`, see `tune.storage`."""


class Supply(Protocol):
    """Where a sweep gets trials from while it runs."""

    @property
    def n_trials(self) -> int:
        """How many trials there will be in all."""

    def more(self) -> tuple[Plan, list[Trial]]:
        """The plan as it is now, and the trials in it that can start and have not been given yet.

        Called often. None while others run means to wait, none while nothing runs the end.
        """

    def spec(self, trial: Trial) -> dict[str, Any]:
        """What a worker must know of this trial beyond `trial_spec`."""


def statuses(out: Path, trials: Sequence[Trial], live: Collection[str] = ()) -> dict[str, Status]:
    """What has become of each trial, by key."""
    return {trial.key: ledger.status(out, trial, live) for trial in trials}


def missing(trials: Sequence[Trial], now: Mapping[str, Status]) -> list[Trial]:
    """The trials without a result, the longest first, so that none is alone at the end.

    Among equals every cell has its first seed before any has its second.
    """
    open_ = [trial for trial in trials if now[trial.key].state not in run_dir.ENDED]
    return sorted(open_, key=lambda trial: (-cost(trial.config), trial.seed))


def run(
    plan: Plan,
    trials: Sequence[Trial],
    settings: Settings,
    lock: Lock,
    files: OutFolder,
    supply: Supply | None = None,
) -> int:
    """Run what is missing of these trials, and what `supply` has; deliver it; the exit code.

    `files` has begun. 0: every one of them is done. 3: not every one. 129, 130, 143: ended by
    SIGHUP, SIGINT, SIGTERM.
    """
    signals = SIGNALS
    signals.remember()
    for trial in trials:
        files.take_over(plan, trial)
        mended = ledger.mend(settings.out, trial)
        if mended:
            tell(mended)
    board = Board(trials, statuses(settings.out, trials))
    board.expected = 0 if supply is None else supply.n_trials
    tracker = tracking.Background(settings.out, settings.uri, plan, board.running)
    files.attend(board.running, tracker.poke)
    todo = missing(trials, statuses(settings.out, trials))
    session = _Session(plan, settings, lock, signals, board, tracker, files, supply)
    try:
        whole = session.train(todo) if todo else True
    except BaseException:
        tracker.finish(_state_of(settings.out, plan), signals.within(QUICK_SECONDS))
        raise
    patience = DELIVERY_SECONDS if whole else QUICK_SECONDS
    hindrance = files.settle(signals.within(patience))
    if hindrance:
        tell(f"{hindrance}; the same command fetches what is missing here")
    trials = board.trials()
    plan = _with_data(session.plan, settings.out, trials)
    try:
        if not (files.lost or lock.lost):
            files.write_plan(plan)
    except OSError as error:  # The plan without the data's fingerprint is a plan as well.
        tell(tracking.one_line(error))
    problem = tracker.finish(_state_of(settings.out, plan), signals.within(patience))
    if tracker.note:
        tell(tracker.note)
    if problem:
        tell(
            f"MLflow lacks some results ({problem}); nothing is lost: run the same command with "
            "--sync when it is back"
        )
    code = exit_code(settings.out, trials, signals.number)
    if not whole or signals.number is not None:
        # Tune's thread may wait for ever for a Ray that is gone.
        try:
            summary(settings, trials)
            files.release()
            lock.release()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            signals.leave(code)
    return code


def _state_of(out: Path, plan: Plan) -> str:
    """The state of the whole sweep, when nothing runs any more."""
    return tracking.sweep_state({ledger.status(out, trial).state for trial in plan.trials()})


def exit_code(out: Path, trials: Sequence[Trial], signal_number: int | None = None) -> int:
    """0 only if every trial is done, or pruned by its search."""
    if all(ledger.status(out, trial).state in ledger.FULFILLED for trial in trials):
        return 0
    return 3 if signal_number is None else 128 + signal_number


def summary(settings: Settings, trials: Sequence[Trial]) -> None:
    """The last lines: what is not done and why, where the results are, what to do next."""
    now = statuses(settings.out, trials)
    open_ = [trial for trial in trials if now[trial.key].state != ledger.DONE]
    for trial in open_:
        status = now[trial.key]
        cause = f" ({status.cause})" if status.cause else ""
        print(f"{status.state}: {trial.text}{cause}")
    print(f"{len(trials) - len(open_)} of {len(trials)} trials done: {settings.out}")
    ended = sorted({now[t.key].state for t in open_} & {ledger.FAILED, ledger.DIVERGED})
    if any(now[trial.key].state not in run_dir.ENDED for trial in open_):
        print("Go on:   the same command again")
    if ended:
        print(f"Retry:   the same command with --retry {','.join(ended)}")
    tables = shlex.join([program("python"), shown(ROOT / "analysis" / "make_tables.py")])
    print(f"Tables:  {tables} --runs {shlex.quote(shown(settings.out))}")
    print(f"MLflow:  {tracking.ui_command(settings.uri, program('mlflow'))}")


def program(name: str) -> str:
    """What to type for a program of this environment: its name where the shell finds that one."""
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).resolve() == ours.resolve() or not ours.exists():
        return name
    return shown(ours)


def trial_spec(trial: Trial, plan: Plan, settings: Settings, session: str) -> dict[str, Any]:
    """What a Ray worker needs to know of a trial, as plain data."""
    known = (plan.data or {}).get(images_of(trial.config))
    expected = known["fingerprint"] if known else None
    return {
        "key": trial.key,
        "config": trial.config.to_dict(),
        "run_dir": str(ledger.trial_dir(settings.out, trial.key)),
        "data_dir": str(settings.data_dir) if settings.data_dir else None,
        "device": "auto",
        "checkpoint_seconds": settings.checkpoint_seconds,
        "checkpoint_iterations": settings.checkpoint_iterations,
        "stop_file": str(settings.out / STOP),
        "fingerprint": expected,
        "storage": settings.storage,
        "session": session,
        "driver": [socket.gethostname(), os.getpid()],
        "alone": False,
    }


class _Session:
    """One start of Ray, and the rounds of trials that run in it."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        lock: Lock,
        signals: Signals,
        board: Board,
        tracker: tracking.Background,
        files: OutFolder,
        supply: Supply | None,
    ) -> None:
        self._files = files
        self.plan, self._settings, self._lock = plan, settings, lock
        self._signals, self._board, self._tracker = signals, board, tracker
        self._supply = supply
        self._in_hand: set[str] = set()
        self._id = secrets.token_hex(4)
        self._stopping = False
        self._alone: list[str] = []
        self._told_tracking = False
        self._error: BaseException | None = None
        self._heard = time.monotonic()
        self._temp_dir = Path(os.devnull)
        """Ray's own files, once there are any."""

    def train(self, todo: list[Trial]) -> bool:
        """Run these trials. False where Ray was left behind: stopped by a signal, or dead."""
        self._given = list(todo)
        self._files.clear_stop()
        with Display(self._board) as display:
            display.say(f"{len(todo)} of {self._board.total} trials to run; starting Ray …")
            whole = False
            try:
                engine = self._start(todo, display)
                if engine is not None:
                    self._check_nodes(engine, todo, display)
                    whole = self._rounds(engine, self._temp_dir, todo, display)
                if whole and engine is not None:
                    engine.shutdown()
                    self._signals.engine = None
                elif self._signals.engine is not None:
                    self._signals.engine.kill()
            finally:
                self._files.clear_stop()
                shutil.rmtree(self._temp_dir, ignore_errors=True)
        if self._error is not None:
            tell(f"Ray: {tracking.one_line(self._error)}")
        return whole

    def _start(self, todo: Sequence[Trial], display: Display) -> ModuleType | None:
        """Start Ray: `tune.engine`, or None where that raised or a signal came first.

        In a thread of its own, where Ray leaves our signal handlers alone. The thread then sleeps:
        Linux ends Ray's processes with the thread that has started them.
        """
        threads = max(trial.config.cpu_threads for trial in todo)
        self._cpus = self._settings.cpus or threads
        address = self._settings.address
        stored = bool(self._settings.storage) or node_data.is_address(self._settings.data_dir)
        environment = cluster.environment(address, threads, storage=stored)
        count = len(todo) if self._supply is None else grid.MAX_TRIALS
        room = min(count, self._settings.max_concurrent or count)
        tried = threading.Event()

        def start() -> None:
            try:
                from tune import engine

                self._signals.engine = engine
                self._temp_dir = engine.make_temp_dir()
                engine.start(address, room, self._cpus, self._temp_dir, environment)
            except BaseException as error:  # told by the main thread
                self._error = error
            tried.set()
            threading.Event().wait()

        threading.Thread(target=start, name="ray", daemon=True).start()
        while not tried.wait(0.2):
            display.update()
            self._lock.renew(())
            if self._signals.number is not None:
                return None
        if isinstance(self._error, preflight.PreflightError):
            raise self._error
        self._signals.install()
        engine = self._signals.engine
        if self._error is not None or engine is None:
            return None
        self._gpus = self._settings.gpus
        if self._gpus is None:
            self._gpus = DEFAULT_GPU_SHARE if engine.n_gpus() else 0.0
        return engine

    def _check_nodes(self, engine: ModuleType, todo: Sequence[Trial], display: Display) -> None:
        """PreflightError that names each machine of a cluster that lacks something.

        A machine of its own has the size that it has; to a cluster a larger one may come.
        """
        where = self._settings
        if where.address == cluster.LOCAL:
            if not engine.room_for(self._cpus, self._gpus or 0.0):
                n_gpus = engine.n_gpus()
                engine.shutdown()
                raise preflight.PreflightError(
                    f"--gpus-per-trial {self._gpus:g}: this machine has {n_gpus:g} GPUs for us, so "
                    "that no trial could ever start; give fewer, or a cluster by --address"
                )
            return
        needed = cluster.needs(todo, where.out, where.storage, where.data_dir)
        problems = engine.on_every_node(cluster.missing_here, needed)
        if problems:
            engine.shutdown()
            text = "; ".join(f"{node} {problem}" for node, problem in problems.items())
            raise preflight.PreflightError(f"not every machine is ready: {text}")
        if not engine.room_for(self._cpus, self._gpus or 0.0):
            size = f"{self._cpus:g} cores and {self._gpus or 0:g} GPUs"
            display.say(f"no machine has {size} for a trial yet; waiting for one to join")

    def _rounds(
        self, engine: ModuleType, temp_dir: Path, todo: list[Trial], display: Display
    ) -> bool:
        """All trials; then, one at a time, those that found too little memory beside others."""
        while todo:
            specs = [self._spec(trial) for trial in todo]
            if not self._round(engine, temp_dir, specs, self._gpus or 0.0, display):
                return False
            alone = [self._spec(t) | {"alone": True} for t in self._given if t.key in self._alone]
            self._alone = []
            if alone:
                display.say(f"{len(alone)} trials ran out of memory; each once more, alone …")
                whole_gpu = 1.0 if self._gpus else 0.0
                if not self._round(engine, temp_dir, alone, whole_gpu, display, alone=True):
                    return False
            todo = self._more()  # A search may have waited for those.
        return True

    def _spec(self, trial: Trial) -> dict[str, Any]:
        spec = trial_spec(trial, self.plan, self._settings, self._id)
        if not self._gpus:
            spec["device"] = "cpu"
        return spec if self._supply is None else spec | self._supply.spec(trial)

    def _more(self) -> list[Trial]:
        """Trials that a search has found meanwhile; they are on the board from now on."""
        if self._supply is None or self._signals.number is not None or self._error is not None:
            return []
        try:
            self.plan, trials = self._supply.more()
        except (OSError, ValueError) as error:  # told at the end; what runs, runs on
            self._error = error
            return []
        if trials:
            self._given += trials
            self._board.add(trials, statuses(self._settings.out, trials))
            self._tracker.grow(self.plan)
        return trials

    def _refill(self, feed: Any) -> None:
        """Hand the trials on that can start; no more, once nothing runs and there is none."""
        idle = not self._in_hand  # Before the run directories are read: then nothing is missed.
        trials = self._more()
        for trial in trials:
            self._in_hand.add(trial.key)
            feed.put(self._spec(trial))
        if (idle and not trials) or self._stopping:
            feed.close()

    def _round(
        self,
        engine: ModuleType,
        temp_dir: Path,
        specs: list[dict[str, Any]],
        gpus: float,
        display: Display,
        *,
        alone: bool = False,
    ) -> bool:
        storage = temp_dir / "results"
        storage.mkdir(exist_ok=True)
        reporter = engine.Reporter(self._started, self._retried, self._reported, self._failed)
        resources = {"cpu": self._cpus} | ({"gpu": gpus} if gpus else {})
        limit = 1 if alone else self._settings.max_concurrent
        feed = None
        self._in_hand = {spec["key"] for spec in specs}
        if self._supply is not None and not alone:
            feed = engine.Feed()
            for spec in specs:
                feed.put(spec)

        def fit() -> None:
            try:
                engine.fit(feed or specs, resources, limit, storage, reporter)
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
            if feed is not None:
                self._refill(feed)
            self._lock.renew(self._board.running())
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
            dead = engine.dead_processes()
            if dead and thread.is_alive():
                display.say(f"Ray has died ({', '.join(dead)} ended); run the same command again")
                self._forget_running()
                return False
            if self._files.lost or self._lock.lost:
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
        return self._signals.number is None

    def _silent(self) -> bool:
        """Whether Ray hangs. A cluster without running trials may wait for a machine to join."""
        waits = self._settings.address != cluster.LOCAL and not self._board.running()
        if waits:
            self._heard = time.monotonic()
        return time.monotonic() - self._heard > SILENT_SECONDS

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
        if state not in ledger.STATES:  # out of memory: not over yet
            self._alone.append(key)
            state = ledger.PLANNED
        self._board.set(key, state, report["iteration"], report["accuracy"])
        if report["done"]:
            self._in_hand.discard(key)
        if report["evaluated"] or report["done"]:
            self._files.news(key)

    def _failed(self, key: str, cause: str | None, text: str) -> None:
        """Ray gave a trial up: failed where the cause is its own, else stopped, to run again."""
        row = next(trial for trial in self._given if trial.key == key)
        self._in_hand.discard(key)
        if cause is None:
            self._board.set(key, ledger.STOPPED)
            tell(f"stopped: {row.text} ({text})")
            return
        try:
            ledger.record_failed(ledger.trial_dir(self._settings.out, key), row.config, cause)
            self._files.send_failed(key)
            self._board.set(key, ledger.FAILED)
        except (OSError, run_dir.RunDirError):
            self._board.set(key, ledger.STOPPED)
        self._tracker.poke()


def images_of(config: Config) -> str:
    """The name of the images that trials of this data set, split and size share."""
    return f"{config.dataset}, {config.split}, {config.image_size} pixels"


def _with_data(plan: Plan, out: Path, trials: Sequence[Trial]) -> Plan:
    """The plan with what is known of each set of images, once a trial has read them."""
    known = dict(plan.data or {})
    for trial in trials:
        name = images_of(trial.config)
        if name in known:
            continue
        try:
            provenance = run_dir.read_json(ledger.trial_dir(out, trial.key) / run_dir.PROVENANCE)
        except run_dir.RunDirError:
            continue
        data = (provenance or {}).get("data")
        if isinstance(data, dict) and "fingerprint" in data:
            known[name] = data
    return dataclasses.replace(plan, data=known) if known else plan


def shown(path: Path) -> str:
    """A path relative to the current directory where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
