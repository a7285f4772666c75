"""What tests run in a process of its own, under a Ray of its own; see `stand_ins.printed_by`.

Ray reads its variables when it is imported, so nothing here may do that before the engine does.
"""

import json
import os
import queue
import shutil
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.fault_tools import TRIAL, descendants, kill, processes
from mpcc.runs import run_dir
from tests.stand_ins import events_until_end, planned, spec_of
from tune.engine.engine import Engine
from tune.engine.environment import worker_variables
from tune.engine.head import LocalHead
from tune.engine.spec import Settings
from tune.plan.plan import Plan
from tune.plan.state import Event, EventKind
from tune.store.folder import Store


def doomed_and_others() -> tuple[Plan, Plan]:
    """A plan of trials of which one is to die, and one of long trials."""
    return (
        planned("esteps=1,2", iterations=40, eval_every=10),
        planned("esteps=3", iterations=200, eval_every=100),
    )


def faults_of_a_sweep(out: Path) -> None:
    """A trial whose process dies at each start; then one whose evaluation cannot be written once.

    Prints the events and what was seen of Ray's processes.
    """
    plan, long_ones = doomed_and_others()
    doomed, *others = plan.trials()
    unlucky = long_ones.trials()[0]
    said: list[tuple[str, str, str | None]] = []
    killed, disturbed = 0, False
    file = Store(out).trial_dir(unlucky.key) / run_dir.METRICS
    with Engine(Settings(out, ""), plan.trials(), print) as engine:
        engine.submit(spec_of(out, doomed))
        for event in events_until_end(engine.next_event, 1):
            said.append((event.key, event.kind, event.cause))
            if event.kind == EventKind.STARTED:
                while not (found := processes(os.getpid(), *TRIAL)):
                    time.sleep(0.05)
                killed += kill(found)
        for trial in (unlucky, *others):
            engine.submit(spec_of(out, trial))
        for event in events_until_end(engine.next_event, 1 + len(others)):
            said.append((event.key, event.kind, event.cause))
            if (event.key, event.kind) == (unlucky.key, EventKind.PROGRESS) and not disturbed:
                disturbed = True  # No evaluation can be written from now on.
                file.unlink(missing_ok=True)
                file.mkdir()
        words = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(os.getpid())]
        ending = time.monotonic()
    end = time.monotonic() - ending
    left = len(descendants(os.getpid()))
    print(json.dumps({"said": said, "killed": killed, "words": words, "end": end, "left": left}))


def groups_of_three(out: Path) -> None:
    """Two groups of three under a Ray of two cores, one of which loses its process; prints events.

    Made of the engine's parts: by itself it makes groups for GPUs alone.
    """
    head = LocalHead(worker_variables(Settings(out, ""), 1))
    head.start(2)
    from tune.engine.tune_run import EventCallback, StopRequest, TrialQueue, grouped, tuner_of

    plan = planned("esteps=1,2,3", iterations=60, eval_every=20)
    specs = [spec_of(out, trial) for trial in plan.trials()]
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    trials = TrialQueue(lambda found: grouped(found, 3, 1))
    trials.put(specs)
    trials.close()
    results = Path(tempfile.mkdtemp())
    try:
        head.connect()
        tuner = tuner_of(
            trials, EventCallback(events.put), StopRequest(), (1.0, 0.0), None, results
        )
        thread = threading.Thread(target=tuner.fit, daemon=True)
        thread.start()
        said, killed = [], 0
        for event in events_until_end(lambda seconds: events.get(timeout=seconds), len(specs)):
            said.append((event.key, event.kind, event.state))
            if event.row is not None and not killed:
                killed = kill(processes(os.getpid(), *TRIAL)[:1])
        thread.join(60)
    finally:
        head.stop()
        shutil.rmtree(results)
    print(json.dumps({"events": said, "killed": killed, "whole": not thread.is_alive()}))
