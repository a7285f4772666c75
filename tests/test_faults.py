"""The faults of `benchmarks/faults.py`, one of them once; the benchmark tries them all, often."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.fault_lab import ARGV, SETTINGS, Lab, Outcome, Sessions
from benchmarks.fault_tools import Progress

pytestmark = pytest.mark.slow


class EmptyLab(Lab):
    """One without an undisturbed sweep, for rows that run none."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed, self.random = folder, seed, random.Random(seed)
        self.argv = ARGV
        self.sessions = Sessions()
        self.keys, self.seconds, self.count = [], 0.0, 0


def test_nothing_is_lost_nothing_runs_twice_and_the_table_is_the_same(tmp_path: Path) -> None:
    """Of all rows the one that kills a part of Ray; an undisturbed sweep is held against it."""
    lab = Lab(tmp_path, argv=(*SETTINGS, "--grid", "esteps=1", "--checkpoint-seconds", "0"))
    outcome = faults.attempt(lab, "raylet-killed", 1)
    lab.sessions.end()
    assert outcome.sound, outcome


def test_what_fails_on_the_way_is_a_finding_and_its_folders_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(lab: Lab, outcome: Outcome) -> None:
        lab.sweep().out.mkdir()
        raise KeyError("a")

    lab = EmptyLab(tmp_path)
    monkeypatch.setitem(faults.ROWS, "broken", (broken, 1))
    outcome = faults.attempt(lab, "broken", 1)
    lab.sessions.end()
    assert not outcome.sound and outcome.tried == 1
    assert "KeyError('a')" in outcome.notes[0]
    assert "kept for a look" in outcome.notes[1] and f"sweep-{lab.count}" in outcome.notes[1]


def test_an_orphan_in_a_session_of_its_own_is_counted_named_and_killed(tmp_path: Path) -> None:
    lab, outcome = EmptyLab(tmp_path), Outcome()
    driver = subprocess.Popen(
        ["sh", "-c", "setsid sleep 97 & sleep 98 & wait"], start_new_session=True
    )
    end = time.monotonic() + 20
    while len(sessions := lab.sessions.known()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    lab.count_left(sessions, outcome, seconds=0.5)
    assert outcome.left == 2 and "sleep 97, sleep 98" in outcome.notes[0]
    assert lab.sessions.members_after(sessions, 20) == []
    lab.sessions.end()


def test_a_row_that_has_passed_at_this_commit_is_not_run_again_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def good(lab: Lab, outcome: Outcome) -> None:
        runs.append("good")

    def bad(lab: Lab, outcome: Outcome) -> None:
        runs.append("bad")
        outcome.lost += 1

    def made(*options: str, at: str = "abc") -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["faults.py", "--results", str(file), *options])
        monkeypatch.setattr(faults, "commit", lambda: at)
        runs.clear()
        return faults.main(), list(runs), capsys.readouterr().out

    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(faults, "Lab", EmptyLab)
    monkeypatch.setattr(faults, "ROWS", {"good": (good, 2), "bad": (bad, 1), "other": (good, 1)})
    code, ran, _ = made("--rows", "good", "--times", "1")
    assert (code, ran) == (0, ["good"])
    code, ran, printed = made("--rows", "good,bad")
    assert (code, ran) == (1, ["good", "good", "bad"])  # Once was less than is stated.
    table = printed.partition("at abc")[2].splitlines()
    assert [line.split()[0] for line in table[2:]] == ["good", "bad", "kept", "other"]
    assert "FAILED" in table[3] and "not run" in table[5]
    assert made("--rows", "good,bad")[:2] == (1, ["bad"])
    assert made("--rows", "good")[:2] == (0, [])
    assert made("--rows", "good", "--again")[:2] == (0, ["good", "good"])
    assert made("--rows", "good", at="def")[:2] == (0, ["good", "good"])
    for _ in range(2):  # Nobody knows which changes these are.
        assert made("--rows", "good", at="def+changes")[:2] == (0, ["good", "good"])


def test_a_row_that_is_none_is_a_usage_error() -> None:
    argv = [sys.executable, str(faults.ROOT / "benchmarks" / "faults.py"), "--rows", "sigin"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown row 'sigin'; did you mean 'sigint'?" in done.stderr


@pytest.mark.parametrize(
    ("later", "again"),
    [
        (Progress(None, (0,), 80), False),
        (Progress(None, (0, 40), 80), False),
        (Progress(None, (0, 60), 80), False),
        (Progress(None, (0, 0), 80), True),
        (Progress(None, (0, 39), 80), True),
        (Progress(None, (0, 60, 50), 80), True),
    ],
)
def test_a_start_before_the_checkpoint_that_was_there_is_seen(later: Progress, again: bool) -> None:
    assert Progress(None, (0,), 40).trained_again(later) == again
    done = Progress((1, {"state": "done"}), (0,), 120)
    assert not done.trained_again(done)
    assert done.trained_again(Progress((2, {"state": "done"}), (0,), 120))
    assert done.trained_again(Progress(None, (0,), 120))
