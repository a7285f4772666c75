"""Every figure of speed in one table: the step, several trials on a GPU, the sweep, the use.

    python benchmarks/speed.py [--rounds 5] [--iterations 300]

Some minutes, on an idle machine. What an aim is missed by, or cannot be measured here, is said in
its row.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)]

from benchmarks import sweep_speed, training_step  # noqa: E402
from benchmarks.rows import Row, head, show  # noqa: E402
from mpcc.config import preset  # noqa: E402

USES = (
    ("1,797 digits", preset("digits"), "sklearn.datasets.load_digits().images / 16", 4),
    (
        "70,000 images at 16x16",
        preset("mnist").override(image_size=16),
        "numpy.random.default_rng(0).integers(0, 256, (70_000, 28, 28), 'uint8')",
        40,
    ),
)
"""What is clustered, the settings of the model, the images in Python, and seconds allowed."""
ON_ONE_CORE = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


def uses() -> Iterator[Row]:
    """A process of its own that loads a model and clusters, imports included; the best of three.

    The aims are for wall seconds of a quiet machine, which on one core are those of its processor.
    """
    from mpcc.training.trainer import train

    for name, config, images, allowed in USES:
        config, seconds = config.override(iterations=2, n_generated=None), []
        with tempfile.TemporaryDirectory(prefix="mpcc-bench-") as folder:
            for _ in train(config, folder, device="cpu", image_set=training_step.noise(config)):
                pass
            use = f"mpcc.load({folder!r}, device='cpu').predict({images}, inverted=False)"
            program = f"{ON_ONE_CORE}; import mpcc, numpy, sklearn.datasets; {use}"
            for _ in range(3):
                before = os.times()
                subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
                after = os.times()
                wall, user, system = (after[i] - before[i] for i in (4, 2, 3))
                seconds.append((user + system, wall))
        cpu, wall = min(seconds)
        measured = f"{wall:.1f} s, {cpu:.1f} of CPU"
        figure = f"load a model, cluster {name}, one core"
        yield Row(figure, measured, f"<= {allowed} s", holds=cpu <= allowed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the step, fast and plain in turn")
    parser.add_argument("--iterations", type=int, default=300, help="of the trials of the sweep")
    options = parser.parse_args()
    head()
    figures = itertools.chain(
        training_step.rows(options.rounds), sweep_speed.rows(options.iterations), uses()
    )
    for row in figures:
        show(row)


if __name__ == "__main__":
    main()
