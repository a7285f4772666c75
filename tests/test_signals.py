"""Signals at any moment of a driver's life: no traceback, the right exit code, an end in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.fault_tools import (
    ROOT,
    Sweep,
    descendants,
    injected,
    processes,
    wait_for,
)
from tune.signals import Interrupted, Signals
from tune.store.lock import process_lives

ARGV = ("--preset", "tiny", "--iterations", "60", "--grid", "esteps=1,2", "--seeds", "1")
SECONDS = 20.0


def child(program: str, **options: object) -> "subprocess.Popen[str]":
    """A process that runs this program, once it has said that it is ready."""
    words = [sys.executable, "-c", f"import sys, time; from tune import signals\n{program}"]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: "subprocess.Popen[str]") -> str:
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return err


WAITING = "with signals.Signals() as s{0}:\n  print('ready', flush=True)\n  time.sleep(60)"
REMEMBERING = ", s.remember()"


def test_a_process_that_does_not_end_in_time_is_ended() -> None:
    program = "signals.LIMIT_SECONDS = 0.5\n" + WAITING.format(REMEMBERING)
    process = child(program)
    process.send_signal(signal.SIGTERM)
    assert "out of time" in end(process)
    assert process.returncode == 143


def test_the_second_signal_ends_at_once() -> None:
    process = child(WAITING.format(REMEMBERING))
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.3)
    end(process)
    assert process.returncode == 130


def test_nohup_is_respected_and_sighup_otherwise_an_end() -> None:
    deaf = child(
        WAITING.format(REMEMBERING),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        deaf.send_signal(number)
        time.sleep(0.1)
    end(deaf)
    assert deaf.returncode == 143
    program = WAITING.format("").replace("with", "try:\n with", 1)
    program = program.replace("\n  ", "\n   ") + "\nexcept signals.Interrupted as stop:\n"
    process = child(  # These tests may run under nohup themselves.
        program + " sys.exit(128 + stop.number)",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    process.send_signal(signal.SIGHUP)
    end(process)
    assert process.returncode == 129


def test_what_is_to_end_with_the_process_is_killed_with_it() -> None:
    kill = "lambda: print('killed', file=sys.stderr, flush=True)"
    program = WAITING.format(REMEMBERING).replace("print(", f"s.kill = {kill}\n  print(", 1)
    process = child(program)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert end(process) == "killed\n"
    assert process.returncode == 143


def test_a_signal_is_only_noted_while_trials_may_run_and_leaves_little_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:

        def left(seconds: float) -> float:
            return signals.deadline(seconds) - time.monotonic()

        assert 59 < left(60.0) <= 60
        with signals.remember():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.number == signal.SIGTERM
        assert 3 < left(60.0) <= 4 and 0 < left(1.0) <= 1
        assert 11 < signals.stop_deadline - time.monotonic() <= 12
        monkeypatch.setattr(signals, "_since", time.monotonic() - 17)
        assert 0 < left(60.0) <= 1  # Of the time in all little is left.
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_no_trial_runs_ends_what_waits() -> None:
    begun = time.monotonic()
    with Signals() as signals:
        with signals.remember():
            pass
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    assert caught.value.number == signal.SIGINT and time.monotonic() - begun < 5


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mpcc.config", "tune.preflight"])
def test_sigint_while_the_program_loads_is_no_traceback(tmp_path: Path, module: str) -> None:
    """The first third of a second, by the module that is being loaded, not by the clock."""
    order = {"kind": "signal", "number": signal.SIGINT, "import": module}
    process = Sweep(tmp_path / "out", ARGV).start(injected([order]))
    end(process)
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sigterm_while_ray_starts_has_its_exit_code_and_its_summary(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "out", ARGV)
    process = sweep.start()
    assert wait_for(process, lambda: processes(process.pid, "gcs_server"))
    begun, below = time.monotonic(), descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < SECONDS
    assert process.returncode == 143 and "Traceback" not in err, err
    assert "0 of 2 trials done" in out
    end = time.monotonic() + SECONDS
    while any(map(process_lives, below)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(process_lives, below))
