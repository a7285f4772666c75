"""The simulation behind the statistics: short here, 10,000 repetitions in `make benchmark`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """The benchmark in a process of its own, since it puts itself on the path."""
    command = [sys.executable, "-W", "error", "-c", f"import sys\n{code}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_claim_holds_in_a_short_run() -> None:
    done = run(
        "from benchmarks import statistics_simulation as s\n"
        "sys.exit(s.main(['--repetitions', '300']))"
    )
    assert done.returncode == 0, done.stderr
    assert "A shortened run" in done.stdout and done.stdout.count("[") > 75


def test_a_broken_claim_fails_the_run_and_is_named() -> None:
    """Intervals of 80 % in place of 95 %."""
    done = run(
        "from benchmarks import statistics_simulation as s\n"
        "s.STUDIES = (lambda n, r, rng: [s.about('coverage', 0.8, 0.95, 0.01)],)\n"
        "sys.exit(s.main(['--repetitions', '10000']))"
    )
    assert done.returncode == 1
    assert "BROKEN: coverage: 0.8000, not in [0.9400, 0.9600]" in done.stderr
