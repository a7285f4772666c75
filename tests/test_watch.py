"""A sweep and its Ray: one that hangs or never starts, no room, no GPU, two sweeps at once."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import Sweep
from tests.stand_ins import StandInHead, StandInTuner, looped, planned, ray_with, spec_of
from tune.engine import cluster
from tune.engine import engine as module
from tune.engine.engine import Engine
from tune.engine.head import EngineError
from tune.engine.spec import LOCAL, Settings
from tune.plan.state import State

ARGV = ("--preset", "tiny", "--grid", "esteps=1", "--seeds", "1")


def problem_within(engine: Engine, seconds: float) -> str | None:
    """What the engine finds wrong within this time."""
    end = time.monotonic() + seconds
    while engine.problem() is None and time.monotonic() < end:
        engine.next_event(0.05)
    return engine.problem()


@pytest.mark.parametrize(
    ("address", "begin", "hangs"),
    [
        (LOCAL, None, True),
        (LOCAL, StandInTuner.begin_next, True),
        ("head:6379", StandInTuner.begin_next, True),
        ("head:6379", None, False),  # A machine may still join.
    ],
)
def test_a_ray_that_says_nothing_any_more_is_left_but_a_machine_may_be_waited_for(
    address: str,
    begin: Callable[[StandInTuner], Any] | None,
    hangs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "check_nodes", lambda *_: None)
    tuner = StandInTuner(begin)
    ray_with(monkeypatch, tuner=tuner)
    trial = planned("esteps=1").trials()[0]
    with Engine(Settings(tmp_path, "", address=address), [trial], print) as engine:
        engine.submit(spec_of(tmp_path, trial))
        problem = problem_within(engine, 4.0)
        assert ("no trial has reported" in str(problem)) == hangs
        tuner.over.set()


def test_trials_that_report_keep_their_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)

    def begin(tuner: StandInTuner) -> None:
        for _ in range(10):
            tuner.callback.on_trial_start(0, [], trial)
            time.sleep(0.1)

    tuner = StandInTuner(lambda tuner: (tuner.begin_next(), begin(tuner)))
    ray_with(monkeypatch, tuner=tuner)
    trial_of_ours = planned("esteps=1").trials()[0]
    spec = spec_of(tmp_path, trial_of_ours)
    trial = type("Trial", (), {"config": {"sweep": [spec]}, "trial_id": "a"})()
    with Engine(Settings(tmp_path, ""), [trial_of_ours], print) as engine:
        engine.submit(spec)
        assert problem_within(engine, 0.9) is None
        tuner.over.set()


@pytest.mark.parametrize(
    "error", [EngineError("no port is free"), RuntimeError("no port is free\nand more")]
)
def test_a_ray_that_cannot_start_is_one_line_and_no_trial_is_touched(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Refusing(StandInHead):
        def connect(self) -> None:
            raise error

    ray_with(monkeypatch, head=Refusing)
    sweep = looped(tmp_path, planned("esteps=1"))
    if isinstance(error, EngineError):  # The command prints it.
        with pytest.raises(EngineError, match="^no port is free$"):
            sweep.run(None, monkeypatch)
    else:
        assert not sweep.run(None, monkeypatch)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "no port is free and more; run the same command again"
    assert sweep.states.count(State.PLANNED) == 2 and not (tmp_path / "trials").exists()


def test_a_signal_does_not_wait_for_ray_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    class Slow(StandInHead):
        def connect(self) -> None:
            over.wait(60)
            raise EngineError("ended while it started")  # As the head does once it is killed.

    ray_with(monkeypatch, head=Slow)
    sweep = looped(tmp_path, planned("esteps=1"))
    sweep.signals.number = 15
    begun = time.monotonic()
    assert not sweep.run(None, monkeypatch)
    assert time.monotonic() - begun < 5
    over.set()


def test_a_gpu_that_cannot_be_measured_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tune.engine import tune_run

    def measured(*_: object) -> int:
        raise RuntimeError("the worker died\nand more")

    ray_with(monkeypatch, gpus=1.0)
    monkeypatch.setattr(tune_run, "measured_group_size", measured)
    sweep = looped(tmp_path, planned("esteps=1"))
    with pytest.raises(EngineError) as caught:
        sweep.run(None, monkeypatch, trials_per_gpu="auto")
    said = "auto could not be measured (the worker died and more); give a number"
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "trials").exists()


def test_more_gpus_than_there_are_is_told_once_ray_has_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_with(monkeypatch)
    with pytest.raises(EngineError, match="only 0 GPUs are available here"):
        looped(tmp_path, planned("esteps=1")).run(None, monkeypatch, gpus=1.0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_two_sweeps_started_in_the_same_second_both_end_even_if_their_words_find_no_room(
    tmp_path: Path,
) -> None:
    first, second = Sweep(tmp_path / "first", ARGV), Sweep(tmp_path / "second", ARGV)
    with open("/dev/full", "w") as full:
        one = subprocess.Popen(first.command(), stdout=subprocess.PIPE, stderr=full, text=True)
        other = second.start()
        text, _ = one.communicate(timeout=400)
    _, noise = other.communicate(timeout=400)
    assert (one.returncode, other.returncode) == (0, 0), text + noise
    assert first.stored() == second.stored() != {}
    assert {result["state"] for result in first.stored().values()} == {"done"}


def test_words_that_find_no_room_are_dropped() -> None:
    program = "from tune.display import log\nlog('x')\nlog('y')\n"
    program = f"from tune import command\n{program}command.answer('x', lambda signals: 0)\n"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stderr=full, cwd=Path(__file__).parents[1]
        )
    assert done.returncode == 0
