"""What tests of the engine share: plans, specifications, and stand-ins for the engine and Ray."""

import contextlib
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.fault_tools import ROOT
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tune.display import Display
from tune.engine import engine as engine_module
from tune.engine import loop
from tune.engine.loop import Loop
from tune.engine.spec import Settings, TrialSpec
from tune.plan.cells import Trial
from tune.plan.grid import cells, parse_grid
from tune.plan.plan import Plan, new_plan
from tune.plan.source import GridSource, TrialSource
from tune.plan.state import ENDED, Event, EventKind, State, States
from tune.signals import Signals
from tune.store.folder import Store
from tune.store.lock import sweep_lock

SECONDS = 60.0
"""How long a test waits for what should come at once."""


def planned(*grid: str, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> Plan:
    """A plan of these axes, of trials that take about a second."""
    base = PRESETS["tiny"].override(**({"iterations": 12, "eval_every": 6} | changes))
    parsed = parse_grid(list(grid), "tiny")
    return new_plan("tiny", base).grow(cells(base, parsed), seeds, parsed.text)


def spec_of(out: Path, trial: Trial, **changes: Any) -> TrialSpec:
    """What a worker of this folder's sweep is told of a trial."""
    given = {
        "key": trial.key,
        "config": trial.config,
        "run_dir": str(Store(out).trial_dir(trial.key)),
        "remote": None,
        "data_dir": None,
        "device": "cpu",
        "checkpoint_seconds": 0.0,
        "checkpoint_iterations": None,
        "fingerprint": None,
    }
    return TrialSpec(**(given | changes))


def started(key: str) -> Event:
    return Event(key, EventKind.STARTED)


def ended(key: str, state: State = State.DONE, **more: Any) -> Event:
    return Event(key, EventKind.ENDED, state, **more)


def end_record(out: Path, trial: Trial, state: State = State.DONE, **metrics: Any) -> None:
    """Write the record of a trial that has ended."""
    path = run_dir.open_run(Store(out).trial_dir(trial.key), trial.config)
    row = {"iteration": trial.config.iterations, "acc_majority": 0.5, "mse": 0.5} | metrics
    run_dir.append_metrics(path, row)
    result = {"state": state, "cause": None, "iteration": row["iteration"], "metrics": row}
    run_dir.write_result(path, result)


# -- the loop without an engine ------------------------------------------------------------------


class StandInEngine:
    """Answers each trial that is submitted with the events that `answer` gives."""

    def __init__(self, answer: Callable[[TrialSpec], Iterable[Event]]) -> None:
        self._answer = answer
        self._events: deque[Event] = deque()
        self._idle = 0
        self.submitted: list[TrialSpec] = []
        self.found: str | None = None
        """What `problem` says."""
        self.finished = self.killed = self.closed = False
        self.error: BaseException | None = None
        self.most_idle = 100
        """Looks in a row that find no event: more of them, and the loop waits for nothing."""

    def __call__(self, *_: object) -> "StandInEngine":
        """In the place of the class."""
        return self

    def __enter__(self) -> "StandInEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def submit(self, *specs: TrialSpec) -> None:
        for spec in specs:
            self.submitted.append(spec)
            self._events += self._answer(spec)

    def next_event(self, timeout: float) -> Event | None:
        if self._events:
            self._idle = 0
            return self._events.popleft()
        if timeout:
            self._idle += 1
            assert self._idle < self.most_idle, "the loop waits for events that cannot come"
            threading.Event().wait(0.02)
        return None

    def stop(self) -> bool:
        return False

    def problem(self) -> str | None:
        return self.found

    def reset_silence(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True


@dataclass
class Looped:
    """What a sweep needs besides its engine, and what it has said to MLflow."""

    out: Path
    store: Store
    source: TrialSource
    lock: Any = None
    signals: Signals = field(default_factory=Signals)
    events: list[Event] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    states: States = field(init=False)
    tracker: Any = field(init=False)

    def __post_init__(self) -> None:
        trials = self.source.plan.trials()
        self.states = States(trials, self.store.statuses(trials), self.source.n_trials)
        self.tracker = SimpleNamespace(
            problem=None,
            log=self.events.append,
            extend=self.plans.append,
        )

    @property
    def ended(self) -> list[str]:
        """The trials that MLflow was told have ended."""
        return [event.key for event in self.events if event.kind == EventKind.ENDED]

    def run(
        self, engine: StandInEngine | None, monkeypatch: pytest.MonkeyPatch, **settings: Any
    ) -> bool:
        """Run the sweep's loop on this engine, or on the one that there is."""
        if engine is not None:
            monkeypatch.setattr(loop, "Engine", engine)
        remote = None if self.store.remote is None else self.store.remote.address
        where = Settings(self.out, "", remote=remote, **settings)
        self.store.write_plan(self.source.plan)
        with contextlib.ExitStack() as stack:
            lock = self.lock or stack.enter_context(sweep_lock(self.store))
            display = stack.enter_context(Display(self.states))
            services = self.store, lock, self.tracker, display, self.signals
            return Loop(self.source, where, self.states, *services).run()


def looped(out: Path, plan: Plan, **more: Any) -> Looped:
    """A grid of which nothing has run."""
    return Looped(out, Store(out), GridSource(plan, plan.trials()), **more)


def done_at_once(out: Path, plan: Plan) -> Callable[[TrialSpec], list[Event]]:
    """Every trial ends as soon as it is submitted, with its record."""
    trials = {trial.key: trial for trial in plan.trials()}

    def answer(spec: TrialSpec) -> list[Event]:
        end_record(out, trials[spec.key])
        return [started(spec.key), ended(spec.key)]

    return answer


# -- the engine without Ray ----------------------------------------------------------------------


class StandInHead:
    """A Ray that is always there and does nothing."""

    def __init__(self, *_: object) -> None:
        self.found: str | None = None
        self.killed = self.stopped = False

    def start(self, *_: object) -> None:
        pass

    def connect(self) -> None:
        pass

    def problem(self) -> str | None:
        return self.found

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


class StandInTuner:
    """Tune's run: does what `begin` does, and then waits for its end."""

    def __init__(self, begin: Callable[[Any], object] | None = None) -> None:
        self._begin = begin
        self.over = threading.Event()

    def __call__(self, trial_queue: Any, callback: Any, *_: object) -> "StandInTuner":
        """In the place of `tune_run.tuner_of`."""
        self.trial_queue, self.callback = trial_queue, callback
        return self

    def begin_next(self) -> Any:
        """Take the next group that was submitted up, as Tune does with room for it."""
        while (config := self.trial_queue.suggest("a")) is None:
            threading.Event().wait(0.01)
        trial = SimpleNamespace(config=config, trial_id="a")
        self.callback.on_trial_start(0, [], trial)
        return trial

    def fit(self) -> None:
        if self._begin is not None:
            self._begin(self)
        self.over.wait(SECONDS)


def ray_with(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpus: float = 0.0,
    cpus: float = 2.0,
    head: type = StandInHead,
    tuner: StandInTuner | None = None,
) -> None:
    """Have engines use stand-ins for Ray and Tune, on one node of this size."""
    import ray

    from tune.engine import tune_run

    size = {"CPU": cpus, "GPU": gpus}
    monkeypatch.setattr(ray, "cluster_resources", lambda: size)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": size}])
    monkeypatch.setattr(engine_module, "LocalHead", head)
    monkeypatch.setattr(engine_module.cluster, "ClusterConnection", type("Joined", (head,), {}))
    if tuner is not None:
        monkeypatch.setattr(tune_run, "tuner_of", tuner)


def events_until_end(next_event: Callable[[float], Event | None], n: int) -> Iterator[Event]:
    """The events that come until so many trials have ended for good."""
    while n:
        event = next_event(SECONDS)
        assert event is not None, f"{n} trials have not ended"
        n -= event.state in ENDED
        yield event


# -- a worker without Ray ------------------------------------------------------------------------


def in_process(specs: Iterable[TrialSpec]) -> Any:
    """What Tune drives, with these trials."""
    from tune.engine.trainable import MPCCTrainable

    made = MPCCTrainable.__new__(MPCCTrainable)
    made.setup({"sweep": list(specs)})
    return made


def to_the_end(made: Any) -> list[Event]:
    """The events of the steps until Tune is told that it is over."""
    results = [made.step()]
    while not results[-1]["done"]:
        results.append(made.step())
    return [result["event"] for result in results]


def equals_alone(out: Path, trial: Trial, folder: Path) -> bool:
    """Whether the trial is to the bit what it is alone."""
    from mpcc.training.trainer import train
    from tests.test_trainer import files

    alone = folder / "alone" / trial.key
    list(train(trial.config, alone, device="cpu"))
    return bool(files(Store(out).trial_dir(trial.key)) == files(alone))


def printed_by(function: Callable[[Path], None], out: Path, *more: str) -> Any:
    """What the function, called with this folder in a process of its own, prints as JSON."""
    name, module = function.__name__, function.__module__.removeprefix("tests.")
    program = f"from tests.{module} import {name}, Path; {name}(Path({str(out)!r}))"
    ran = subprocess.run(
        [sys.executable, "-c", program, *more], cwd=ROOT, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
