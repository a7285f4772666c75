"""Every figure of speed in one table: the step, several trials on a GPU, the sweep, the start.

    python benchmarks/speed.py [--rounds 5] [--iterations 300]

Some minutes, on an idle machine. What an aim is missed by, or cannot be measured here, is said in
its row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

from benchmarks import sweep_speed, training_step  # noqa: E402
from benchmarks.rows import head, show  # noqa: E402


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the step, fast and plain in turn")
    parser.add_argument("--iterations", type=int, default=300, help="of the trials of the sweep")
    options = parser.parse_args()
    head()
    figures = itertools.chain(
        training_step.rows(options.rounds), sweep_speed.rows(options.iterations)
    )
    for row in figures:
        show(row)


if __name__ == "__main__":
    main()
