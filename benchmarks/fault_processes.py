"""Kills and signals, for `benchmarks/faults.py`."""

from __future__ import annotations

import os
import signal
import time

from benchmarks import fault_tracking
from benchmarks.fault_lab import Lab, Outcome
from benchmarks.fault_tools import SUPERVISOR, TRIAL, finish, kill, processes, wait_for

SIGNAL_SECONDS = 20.0
SECOND_SIGNAL_SECONDS = 3.0
RAY_DIED_SECONDS = 60.0


def driver_killed(lab: Lab, outcome: Outcome) -> None:
    """SIGKILL at any moment; the same command starts while the dead driver's Ray still ends."""
    sweep, process, before = lab.at_random_moment(in_training=False)
    process.kill()
    process.communicate()
    lab.resume(sweep, outcome, before=before)


def processes_of_a_killed_driver(
    lab: Lab,
    outcome: Outcome,
    *,
    seconds: float,
    stop_worker: bool = False,
    kill_supervisor: bool = False,
) -> None:
    """SIGKILL of the driver, and its processes counted after so many seconds.

    Before it a worker is stopped, which ends on nothing but SIGKILL; or with it goes the supervisor
    that would end the others.
    """
    sweep, process, before = lab.at_random_moment()
    workers = processes(process.pid, *TRIAL)
    supervisor = processes(process.pid, SUPERVISOR)[:1]
    if not workers or not supervisor:
        outcome.notes.append(f"workers {workers}, supervisor {supervisor}")
    if stop_worker and workers:
        os.kill(workers[0], signal.SIGSTOP)
    sessions = lab.sessions.known()
    kill([process.pid, *(supervisor if kill_supervisor else ())])
    process.communicate()
    lab.count_left(sessions, outcome, seconds)
    lab.resume(sweep, outcome, before=before)


def trial_killed(lab: Lab, outcome: Outcome) -> None:
    """SIGKILL of a worker. The sweep repairs that by itself; the second run has nothing to do."""
    sweep, process, before = lab.at_random_moment()
    if not kill(processes(process.pid, *TRIAL)[:1]) and len(sweep.results()) < len(lab.keys):
        outcome.notes.append("no trial process was found")
    finish(process)
    lab.resume(sweep, outcome, before=before)


def killed_at_an_end(lab: Lab, outcome: Outcome) -> None:
    """SIGKILL of the workers 5 to 20 ms after one of them has written a result.

    One is then about to take up its next trial, which has not failed.
    """
    sweep = lab.sweep()
    process, n_results = sweep.start(), lab.random.randrange(1, len(lab.keys))
    if wait_for(process, lambda: sweep.has_results(n_results)):
        time.sleep(lab.random.uniform(0.005, 0.02))
        kill(processes(process.pid, *TRIAL))
    finish(process)
    lab.resume(sweep, outcome)


def raylet_killed(lab: Lab, outcome: Outcome) -> None:
    """SIGKILL of Ray itself: the driver says so and soon ends, unless all trials are done."""
    sweep, process, before = lab.at_random_moment()
    if not kill(processes(process.pid, "raylet")):
        outcome.notes.append("no raylet was found")
    begun = time.monotonic()
    printed = finish(process, None)
    seconds = time.monotonic() - begun
    if process.returncode not in (0, 3):
        outcome.notes.append(f"exit code {process.returncode}")
    if process.returncode == 3 and "Ray has died" not in printed:
        outcome.notes.append("Ray's death was not told")
    if seconds > RAY_DIED_SECONDS:
        outcome.notes.append(f"the driver needed {seconds:.0f} s to end")
    lab.resume(sweep, outcome, before=before)


def signalled(
    lab: Lab,
    outcome: Outcome,
    number: signal.Signals,
    *,
    in_training: bool = True,
    twice: bool = False,
) -> None:
    """A signal to the driver: checkpoints, its exit code, MLflow's states, all in time.

    `twice`: a second one, which ends the driver at once.
    """
    sweep, process, before = lab.at_random_moment(in_training=in_training)
    process.send_signal(number)
    if twice:
        time.sleep(0.1)
        process.send_signal(number)
    begun = time.monotonic()
    printed = finish(process, None)
    seconds = time.monotonic() - begun
    # A signal may come when the last trial has just ended.
    # Before Python has read its first line a signal ends it by itself.
    codes = (128 + number,) if sweep.out.exists() else (128 + number, -number)
    if process.returncode not in codes and len(sweep.results()) < len(lab.keys):
        outcome.notes.append(f"exit code {process.returncode}: {printed[-300:]}")
    if seconds > (SECOND_SIGNAL_SECONDS if twice else SIGNAL_SECONDS):
        outcome.notes.append(f"{seconds:.1f} s to the end")
    states = dict.fromkeys(lab.keys, "KILLED") | dict.fromkeys(sweep.results(), "FINISHED")
    if "KILLED" in states.values() and not twice:
        fault_tracking.check_states(sweep, printed, states, outcome)
    lab.resume(sweep, outcome, before=before)
