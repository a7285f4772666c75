"""What the driver's main thread looks at while trials run: hung Ray, no room, no terminal."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tune
from benchmarks.fault_tools import Sweep
from mpcc.config import PRESETS
from tune import ledger, sweep
from tune import session as sessions
from tune.drivers import Alone
from tune.grid import cells, parse_grid
from tune.machines import Machines
from tune.mirror import OutFolder
from tune.preflight import PreflightError
from tune.progress import Board, Display
from tune.signals import Signals

TINY = PRESETS["tiny"]
ARGV = ("--preset", "tiny", "--grid", "esteps=1", "--seeds", "1")


def session(out: Path, address: str = "local") -> Any:
    """A session without Ray, with one trial."""
    grid = parse_grid(["esteps=1"], "tiny")
    plan = ledger.new_plan("tiny", TINY).grow(cells(TINY, grid), (0,), grid.text)
    board = Board(plan.trials(), sweep.statuses(out, plan.trials()))
    settings = sweep.Settings(out=out, uri="", address=address)
    tracker: Any = SimpleNamespace(problem=None, note=None)
    return sessions.Session(
        plan, settings, Alone(out), Signals(), board, tracker, OutFolder(out), None
    )


def watched(made: Any, seconds: float) -> bool:
    """Whether Ray counts as whole after a round that never says a word and lasts so long."""
    engine: Any = SimpleNamespace(death=lambda: None)
    thread = threading.Thread(target=threading.Event().wait, args=(seconds,), daemon=True)
    thread.start()
    with Display(made._board) as display:
        return bool(made._watch(engine, thread, display, None))


def test_a_ray_that_says_nothing_any_more_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "SILENT_SECONDS", 0.5)
    assert not watched(session(tmp_path / "a"), 30)
    assert "no trial has said a word" in capsys.readouterr().err
    running = session(tmp_path / "b", "head:6379")
    running._started(running.plan.trials()[0].key)
    assert not watched(running, 30)


def test_a_cluster_may_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SILENT_SECONDS", 0.5)
    assert watched(session(tmp_path, "head:6379"), 2)


def begun(made: Any, start: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What comes of a session whose Ray starts like this."""
    temp_dir = made._settings.out / "ray"
    engine: Any = SimpleNamespace(start=start, make_temp_dir=lambda: temp_dir, kill=lambda: None)
    monkeypatch.setitem(sys.modules, "tune.engine", engine)
    monkeypatch.setattr(tune, "engine", engine, raising=False)
    return bool(made.train(made.plan.trials()))


def test_a_ray_that_cannot_start_is_one_line_and_no_trial_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: Any) -> None:
        raise RuntimeError("no port is free\nand more")

    made = session(tmp_path)
    assert not begun(made, start, monkeypatch)
    assert capsys.readouterr().err.splitlines()[-1] == "Ray: no port is free"
    assert sweep.exit_code(tmp_path, made.plan.trials()) == 3


def test_a_signal_does_not_wait_for_ray_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = session(tmp_path)
    made._signals.number = 15
    before = time.monotonic()
    assert not begun(made, lambda *_: time.sleep(60), monkeypatch)
    assert time.monotonic() - before < 5


def test_a_gpu_that_cannot_be_measured_is_told_in_one_line(tmp_path: Path) -> None:
    def on_one_gpu(*_: Any) -> int:
        raise RuntimeError("the worker died\nand more")

    ended: list[bool] = []
    machines = Machines(sweep.Settings(out=tmp_path, uri="", trials_per_gpu="auto"), Signals())
    machines.gpus = 1.0
    engine: Any = SimpleNamespace(on_one_gpu=on_one_gpu, shutdown=lambda: ended.append(True))
    machines.engine = engine
    with pytest.raises(PreflightError) as caught:
        machines.choose_group_size(dict)
    assert "auto could not be measured (the worker died); give a number" in str(caught.value)
    assert "\n" not in str(caught.value) and ended == [True]


def test_more_cores_than_there_are_is_told_before_anything_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        Sweep(tmp_path / "out", ARGV).command("--cpus-per-trial", "1000"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no trial could ever start" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a GPU")
def test_more_gpus_than_there_are_is_told_once_ray_has_looked(tmp_path: Path) -> None:
    done = subprocess.run(
        Sweep(tmp_path / "out", ARGV).command("--gpus-per-trial", "1"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "this machine has 0 GPUs for us" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_sweep_whose_words_find_no_room_ends_as_ever(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "out", ARGV)
    with open("/dev/full", "w") as full:
        done = subprocess.run(made.command(), stdout=subprocess.PIPE, stderr=full, timeout=400)
    assert done.returncode == 0, done.stdout
    assert {result["state"] for _, result in made.results().values()} == {"done"}


def test_words_that_find_no_room_are_dropped() -> None:
    program = "from tune import signals\nsignals.tell('x')\nsignals.tell('y')\nsignals.let_go()\n"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stderr=full, cwd=Path(__file__).parents[1]
        )
    assert done.returncode == 0
