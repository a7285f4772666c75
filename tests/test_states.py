"""The states of a running sweep: what events make of them, and what is shown of them."""

import io
import sys
import time

import pytest

from mpcc.config import PRESETS
from tests.stand_ins import planned
from tune.display import Display, log
from tune.plan import cells as plan_cells
from tune.plan import state as module
from tune.plan.cells import Trial
from tune.plan.grid import cells, parse_grid
from tune.plan.state import Event, EventKind, State, States, Status, clock

BASE = PRESETS["tiny"].override(iterations=100)


def trials() -> list[Trial]:
    return planned("esteps=1,2", iterations=100).trials()


def test_every_kind_of_event_has_its_state() -> None:
    first, *rest = trials()
    states = States([first, *rest], {})
    assert states[first.key] == Status(State.PLANNED) and len(states) == 4
    states.apply(Event(first.key, EventKind.STARTED))
    assert states.running() == {first.key}
    row = {"iteration": 50, "acc_majority": 0.5}
    states.apply(Event(first.key, EventKind.PROGRESS, iteration=50, row=row))
    assert states[first.key] == Status(State.RUNNING, None, 50, row)
    states.apply(Event(first.key, EventKind.PROGRESS, iteration=60))
    assert states[first.key].iteration == 60 and states[first.key].accuracy == 0.5
    states.apply(Event(first.key, EventKind.STOPPED, State.STOPPED, cause="its machine is gone"))
    assert states[first.key] == Status(State.STOPPED, "its machine is gone", 60, row)
    states.apply(Event(first.key, EventKind.STARTED))
    assert states[first.key].cause is None
    states.apply(Event(first.key, EventKind.EXCLUSIVE, State.PLANNED, cause="out of memory: 2 GB"))
    assert states[first.key].state == State.PLANNED and not states.running()
    end = Event(first.key, EventKind.ENDED, State.DIVERGED, 70, cause="loss is not finite")
    states.apply(end)
    assert states[first.key] == Status(State.DIVERGED, "loss is not finite", 70, row)
    states.apply(end)
    assert states.ended == [first]


def test_trials_that_run_are_stopped_where_no_event_will_come() -> None:
    some = trials()
    states = States(some, {some[0].key: Status(State.DONE, iteration=100)})
    states.apply(Event(some[1].key, EventKind.STARTED))
    states.stop_running()
    assert states[some[1].key].state == State.STOPPED and states[some[0].key].state == State.DONE
    assert [trial.key for trial in states.trials()] == [trial.key for trial in some]


def test_progress_counts_the_trials_that_are_still_to_be_suggested() -> None:
    some = trials()
    done = {trial.key: Status(State.DONE, iteration=100) for trial in some[:2]}
    assert States(some, done).line().startswith("2 of 4 done, ")
    states = States(some[:3], done, n_trials=12)
    assert states.line().startswith("2 of 12 done") and states.part() < 0.25
    states.add(some[3:], {some[3].key: Status(State.RUNNING, iteration=50)})
    assert states.n_trials == 12 and states.running() == {some[3].key}
    assert states.part_of(some[3].key) == 0.5


def test_the_time_left_follows_the_pace_since_the_first_trials_were_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    trial = trials()[0]
    states = States([trial], {trial.key: Status(State.STOPPED, iteration=50)})
    assert states.seconds_left() is None
    states.apply(Event(trial.key, EventKind.STARTED))
    now += 30.0  # Its process starts.
    states.apply(Event(trial.key, EventKind.PROGRESS, iteration=60))
    now += 10.0
    assert states.seconds_left() is None  # Nothing is new yet.
    states.apply(Event(trial.key, EventKind.PROGRESS, iteration=80))
    assert states.seconds_left() == pytest.approx(10.0)
    assert states.line() == "0 of 1 done, 1 running, 80 %, about 0:10 left"
    assert [clock(s) for s in (42.9, 370, 3723)] == ["0:42", "6:10", "1:02:03"]


def test_the_first_estimate_is_within_a_fifth_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers that start at 8 s and at 14 s, and a second between two trials of one."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    some = [t for c in cells(BASE, parse_grid(["esteps=1,2,4"], "tiny"))
            for t in plan_cells.trials(c, range(5))]  # fmt: skip
    some.sort(key=lambda trial: -module.cost(trial.config))
    states, queue, first = States(some, {}), list(some), None
    for trial in some[:2]:
        states.apply(Event(trial.key, EventKind.STARTED))
    free = {0: 8.0, 1: 14.0}  # When each worker makes the next of its trial's steps.
    has: dict[int, tuple[Trial, int]] = {}
    while free:
        worker = min(free, key=lambda w: free[w])
        now = free[worker]
        trial, at = has.get(worker) or (queue.pop(0), 0)
        kind = EventKind.PROGRESS if at < 100 else EventKind.ENDED
        states.apply(Event(trial.key, kind, State.RUNNING if at < 100 else State.DONE, at))
        has[worker] = (trial, at + 5)
        free[worker] = now + 5e-4 * module.cost(trial.config) / 100
        if at == 100:
            del has[worker]
            free[worker] = now + 1.0
            if not queue:
                del free[worker]
        left = states.seconds_left()
        first = now + left if first is None and left is not None else first
    assert first == pytest.approx(now, rel=0.2)


def test_the_live_table_fits_80_columns() -> None:
    from rich.console import Console

    made = cells(PRESETS["digits"], parse_grid(["esteps,eta_p", "lambda_p", "C=2,4"], "digits"))
    some = [trial for cell in made for trial in plan_cells.trials(cell, range(4))]
    known = list(State)
    states = States(some, {t.key: Status(known[i % len(known)]) for i, t in enumerate(some)})
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with Display(states) as display:
        console.print(display._table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80 and lines[0].split() == [
        "cell", "seeds", "iteration", "Acc,", "%",
    ]  # fmt: skip
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_every_end_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    some = trials()
    states = States(some, {some[0].key: Status(State.DONE)})
    with Display(states) as display:
        log("starting")
        row = {"iteration": 100, "acc_majority": 0.75}
        states.apply(Event(some[1].key, EventKind.ENDED, State.DONE, 100, row))
        display.show()
        states.apply(Event(some[2].key, EventKind.ENDED, State.FAILED, 7, cause="code: KeyError"))
    assert capsys.readouterr().err.splitlines() == [
        "starting",
        "[0:00] done at 100: esteps=1, seed=1  Acc 75.0 %",
        "[0:00] failed at 7: esteps=2, seed=0",
    ]


def test_lines_of_progress_grow_rare_as_hours_pass(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Display(States(trials(), {})) as display:
        while now < 8 * 3600:
            now += 1.0
            display.show()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[0:20] ") and 90 < len(lines) < 110  # 1,440, were they regular


class Terminal(io.StringIO):
    """A stderr that is a terminal; `full` makes it fail as a full disk or a lost line does."""

    encoding = "utf-8"
    full = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_the_terminal_of_a_notebooks_cell_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell keeps each table that a terminal would draw over."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with Display(States(trials(), {})) as display:
        log("starting")
        display.show(last=True)
    assert terminal.getvalue() == "starting\n"


def test_a_terminal_has_a_table_and_may_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    some = trials()
    states = States(some, {some[0].key: Status(State.DONE, iteration=100)})
    with Display(states) as display:
        log("starting [Ray]")
        states.apply(Event(some[1].key, EventKind.STARTED))
        display.show(last=True)
        text = terminal.getvalue()
        assert "starting [Ray]" in text and "1 done, 1 running" in text
        assert "1 of 4 done, 1 running" in text
        terminal.full = True
        log("lost")
        display.show(last=True)
