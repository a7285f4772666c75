"""The faults of `benchmarks/faults.py`, a few of each once; the benchmark tries them all, often."""

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
        "second SIGINT",
        "full disk at a result",
        "MLflow data base locked",
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
