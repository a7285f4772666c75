"""The faults of `benchmarks/faults.py`, a few of each once; the benchmark tries them all, often."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import faults
from benchmarks.fault_tools import Stand
from benchmarks.faults import Lab, Unsupported

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """An undisturbed sweep of six trials, to hold the disturbed ones against."""
    yield Lab(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "name",
    [
        "SIGKILL of a trial",
        "SIGKILL of the raylet",
        "SIGTERM",
        "full disk at a result",
        "MLflow delivered by hand",
        "MLflow data base being made",
        "flipped bits",
        "NaN, exception, out of memory",
    ],
)
def test_nothing_is_lost_nothing_runs_twice_and_the_table_is_the_same(lab: Lab, name: str) -> None:
    try:
        outcome = faults.attempt(lab, name, 1)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert outcome.sound, outcome


def test_what_fails_on_the_way_is_a_finding_and_its_folders_are_kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(lab: Lab, outcome: faults.Outcome) -> None:
        lab.sweep().out.mkdir()
        raise KeyError("a")

    monkeypatch.setitem(faults.FAULTS, "broken", (broken, 1))
    outcome = faults.attempt(lab, "broken", 1)
    assert not outcome.sound and outcome.tried == 1
    assert "KeyError('a')" in outcome.notes[0]
    assert "kept for a look" in outcome.notes[1] and f"sweep-{lab.count}" in outcome.notes[1]


def test_a_fault_that_is_none_is_a_usage_error() -> None:
    words = [sys.executable, str(faults.ROOT / "benchmarks" / "faults.py"), "--only", "nosuch"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "no fault begins with 'nosuch'" in done.stderr


@pytest.mark.parametrize(
    ("later", "again"),
    [
        (Stand(None, (0,), 80), False),
        (Stand(None, (0, 40), 80), False),
        (Stand(None, (0, 60), 80), False),
        (Stand(None, (0, 0), 80), True),
        (Stand(None, (0, 39), 80), True),
        (Stand(None, (0, 60, 50), 80), True),
    ],
)
def test_a_start_before_the_checkpoint_that_was_there_is_seen(later: Stand, again: bool) -> None:
    assert Stand(None, (0,), 40).trained_again(later) == again
    done = Stand((1, {"state": "done"}), (0,), 120)
    assert not done.trained_again(done)
    assert done.trained_again(Stand((2, {"state": "done"}), (0,), 120))
    assert done.trained_again(Stand(None, (0,), 120))
