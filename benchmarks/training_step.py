"""Time of one iteration of Algorithm 1: the fast path beside the plain one, taken in turn.

    python benchmarks/training_step.py [--rounds 5] [--only "digits"]

Prints milliseconds of the median round for each size, and the ratio of the two within one run.
The plain path (`--set fast=false`) is torch's own spectral norm arithmetic, Adam and pooling, layer
by layer; tests hold both to the same losses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {
    # name: (preset, changes, iterations of a round, aim in ms on two cores or one, or None)
    "digits, one core": ("digits", {}, 20, None),
    "8x8, C=4, D=E=4, one core": ("digits", {"n_discriminator_steps": 4}, 15, 60),
    "16x16, C=8, D=E=4, two cores": (
        "mnist",
        {"image_size": 16, "width": 8, "latent_size": 16, "cpu_threads": 2},
        4,
        200,
    ),
    "MNIST preset, two cores": ("mnist", {"cpu_threads": 2}, 1, 1300),
}


def main() -> None:
    """Print one row per size."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="", help="sizes whose name holds this")
    given = options.parse_args()

    import torch

    print(f"torch {torch.__version__}, {cpu_name()}, medians of {given.rounds} interleaved rounds")
    print(f"{'one iteration':<32}{'fast ms':>9}{'plain ms':>10}{'ratio':>7}{'aim ms':>8}")
    for name, (preset, changes, n, aim) in SIZES.items():
        if given.only in name:
            fast, plain = seconds(preset, changes, n, given.rounds)
            ratio = statistics.median(p / f for p, f in zip(plain, fast, strict=True))
            f, p = (1e3 * statistics.median(times) for times in (fast, plain))
            print(f"{name:<32}{f:>9.1f}{p:>10.1f}{ratio:>7.2f}{aim or '':>8}", flush=True)


def seconds(preset: str, changes: dict, n: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of an iteration in each round, fast and plain, measured in turn."""
    import torch

    from mpcc.algorithm import train_step
    from mpcc.config import PRESETS
    from mpcc.data import ImageSet
    from mpcc.state import build_state

    config = PRESETS[preset].override(**changes)
    torch.set_num_threads(config.cpu_threads)
    shape = (256, config.n_channels, config.image_size, config.image_size)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    images = ImageSet(pixels, None, (), "0" * 12)
    states = [build_state(config.override(fast=fast), images) for fast in (True, False)]
    for state in states:
        train_step(state)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for state, found in zip(states, times, strict=True):
            start = time.perf_counter()
            for _ in range(n):
                train_step(state)
            found.append((time.perf_counter() - start) / n)
    return times


def cpu_name() -> str:
    """The processor as the system names it, and how many cores there are."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        name = platform.processor() or "unknown processor"
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
