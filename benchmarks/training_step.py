"""Time of one iteration of Algorithm 1: the fast path beside the plain one, taken in turn.

    python benchmarks/training_step.py [--rounds 5] [--only "digits"] [--trials 1,2,4]

Prints one table: figure, aim, measured, ratio to the plain path, and the machine. The plain path
(`--set fast=false`) is torch's own spectral norm arithmetic, Adam and pooling, layer by layer;
tests hold both to the same losses. Figures are wall time of the fastest round, which other work on
the machine disturbs least; the ratio is the median over the pairs of rounds. Two threads wait for
each other, so their figures need an idle machine. What cannot be measured here is said in its row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Size = tuple[str, dict[str, Any], int, int | None]
"""Preset, its changes, iterations of a round, aim in ms (None: no aim)."""

CPU_SIZES: dict[str, Size] = {
    "digits preset, one core": ("digits", {}, 20, None),
    "8x8, C=4, D=E=4, one core": ("digits", {"n_discriminator_steps": 4}, 15, 60),
    "16x16, C=8, D=E=4, two cores": (
        "mnist",
        {"image_size": 16, "width": 8, "latent_size": 16, "cpu_threads": 2},
        4,
        200,
    ),
    "MNIST preset, two cores": ("mnist", {"cpu_threads": 2}, 1, 1300),
}
GPU_SIZES: dict[str, Size] = {
    f"{name} preset, GPU, {precision}": (name, {"precision": precision}, 50, None)
    for name in ("digits", "mnist", "cifar10")
    for precision in ("float32", "tf32", "bfloat16")
}


def main() -> None:
    """Print one row per figure."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="", help="figures whose name holds this")
    options.add_argument("--trials", default="1,2,4,8", help="trials at once on a GPU")
    given = options.parse_args()

    import torch

    print(f"torch {torch.__version__}, {machine()}, best of {given.rounds} interleaved rounds")
    print(f"{'one iteration, ms':<36}{'aim':>7}{'measured':>10}{'plain':>9}{'ratio':>7}")
    for device, sizes in (("cpu", CPU_SIZES), ("cuda", GPU_SIZES)):
        for name, (preset, changes, n, aim) in sizes.items():
            if given.only not in name:
                continue
            if device == "cuda" and not torch.cuda.is_available():
                print(f"{name:<36}{'':>7}  not measured: no CUDA device here")
                continue
            fast, plain = seconds(preset, changes, n, given.rounds, device)
            ratio = statistics.median(p / f for p, f in zip(plain, fast, strict=True))
            f, p = (1e3 * min(times) for times in (fast, plain))
            print(f"{name:<36}{aim or '':>7}{f:>10.1f}{p:>9.1f}{ratio:>7.2f}", flush=True)
    for n in map(int, given.trials.split(",")):
        name = f"{n} digits trials on one GPU"
        if given.only in name:
            print(f"{name:<36}{'':>7}  {rate_together(n)}", flush=True)


def seconds(
    preset: str, changes: dict[str, Any], n: int, rounds: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of an iteration in each round, fast and plain, measured in turn."""
    import torch

    from mpcc.config import PRESETS
    from mpcc.cuda_graph import N_PLAIN_ITERATIONS, stepper
    from mpcc.device import prepare_process
    from mpcc.state import build_state

    config = PRESETS[preset].override(**changes)
    where = torch.device(device)
    prepare_process(config, where)
    images = noise(config)
    steps = [
        stepper(build_state(config.override(fast=fast), images, where)) for fast in (True, False)
    ]
    for step in steps:
        for _ in range(1 if device == "cpu" else N_PLAIN_ITERATIONS + 2):
            step()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            start = clock(device)
            for _ in range(n):
                step()
            found.append((clock(device) - start) / n)
    return times


def clock(device: str) -> float:
    """Seconds by the wall clock, once the device has nothing left to do."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def rate_together(n: int) -> str:
    """Iterations a second of n trials in this process, or why they were not measured."""
    import torch

    if not torch.cuda.is_available():
        return "not measured: no CUDA device here"
    from mpcc.config import PRESETS
    from mpcc.together import iterations_per_second

    config = PRESETS["digits"]
    rate = iterations_per_second(config, noise(config), torch.device("cuda"), n, 200)
    return f"{rate:.0f} iterations a second, all trials added"


def noise(config: Any) -> Any:
    """256 random images of the configuration's size."""
    import torch

    from mpcc.data import ImageSet

    shape = (256, config.n_channels, config.image_size, config.image_size)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, None, (), "0" * 12)


def machine() -> str:
    """The processor as the system names it, its cores, what torch uses of it, and any GPU."""
    import os
    import platform

    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown processor"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    used = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {used}, {gpu}"


if __name__ == "__main__":
    main()
