"""Time of one iteration of Algorithm 1: the fast path beside the plain one, taken in turn.

    python benchmarks/training_step.py [--rounds 5] [--only digits] [--profile mnist cifar10]

The plain path (`--set fast=false`) is torch's own spectral norm arithmetic, Adam and pooling, layer
by layer; tests hold both to the same losses. Figures are wall time of the fastest round, which
other work on the machine disturbs least; the ratio is the median over the pairs of rounds. Two
threads wait for each other, so their figures need an idle machine. Milliseconds are one machine's:
beside them stands the share of what its cores reach in a product of large matrices. What cannot be
measured here is said in its row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.rows import Row, head, show  # noqa: E402

MIXED_PRECISION = ("tf32", "bfloat16")


@dataclass(frozen=True)
class Size:
    """A configuration to be timed."""

    name: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    """Iterations of a round."""
    aim_ms: float | None = None
    device: str = "cpu"


SIXTEEN = {"image_size": 16, "width": 8, "latent_size": 16, "cpu_threads": 2}
CPU_SIZES = (
    Size("digits preset, one core", "digits", n=20),
    Size("8x8, C=4, D=E=4, one core", "digits", {"n_discriminator_steps": 4}, 15, 60),
    Size("16x16, C=8, D=E=4, two cores", "mnist", SIXTEEN, 4, 200),
    Size("MNIST preset, two cores", "mnist", {"cpu_threads": 2}, 1, 1300),
)
GPU_SIZES = tuple(
    Size(f"{name} preset, GPU, {precision}", preset, {"precision": precision}, 20, aim, "cuda")
    for name, preset, aim in (("MNIST", "mnist", 2), ("CIFAR-10", "cifar10", 45))
    for precision in ("float32", *MIXED_PRECISION)
)
"""The aims are those of an H200."""


def main() -> None:
    """Print one row per figure."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="", help="figures whose name holds this")
    options.add_argument(
        "--profile",
        nargs="+",
        default=[],
        metavar="PRESET",
        help="what takes a GPU's time, as well",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="a GPU's figures on the CPU with tiny networks"
    )
    given = options.parse_args()
    head()
    for row in rows(given.rounds, given.only, given.dry_run):
        show(row)
    for preset in given.profile:
        profile(preset, given.dry_run)


def rows(rounds: int = 5, only: str = "", dry: bool = False) -> Iterator[Row]:
    """One row per figure."""
    import torch

    peak: dict[int, float] = {}
    for size in (*CPU_SIZES, *GPU_SIZES):
        if only not in size.name:
            continue
        aim = f"<= {size.aim_ms:g} ms" if size.aim_ms else ""
        if size.device == "cuda" and dry:
            size = replace(size, preset="tiny", changes={}, n=1, device="cpu")
        if size.device == "cuda" and not torch.cuda.is_available():
            yield Row(size.name, "no CUDA device here", aim)
            continue
        fast, plain, flop = seconds(size, rounds)
        best = min(fast)
        speed = f", {flop / best / 1e9:.0f} GFLOP/s"
        if size in CPU_SIZES:
            threads = int(size.changes.get("cpu_threads", 1))
            peak.setdefault(threads, peak_flops(threads))
            speed = f", {flop / best / peak[threads]:.0%} of peak"
        ratio = statistics.median(p / f for p, f in zip(plain, fast, strict=True))
        yield Row(
            size.name,
            f"{1e3 * best:.1f} ms{speed}",
            aim,
            f"{1e3 * min(plain):.1f} ms",
            f"{ratio:.2f}",
            None if dry or size.aim_ms is None else 1e3 * best <= size.aim_ms,
        )
    for threads, found in peak.items():
        yield Row(f"peak: product of matrices, {threads} threads", f"{found / 1e9:.0f} GFLOP/s")
    yield from together(only, dry)


def seconds(size: Size, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds of an iteration in each round, fast and plain, measured in turn; and its FLOP."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mpcc.config import PRESETS
    from mpcc.training.algorithm import update_all

    config = PRESETS[size.preset].override(**size.changes)
    images = noise(config)
    steps = [step_of(config.override(fast=fast), images, size.device) for fast in (True, False)]
    for step in steps:
        step()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        update_all(steps[0].args[0])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            start = clock(size.device)
            for _ in range(size.n):
                step()
            found.append((clock(size.device) - start) / size.n)
    return *times, float(counter.get_total_flops())


def step_of(config: Any, images: Any, device: str) -> partial[Any]:
    """What makes one iteration of a trial, in a process that is prepared as a trial's."""
    import torch

    from mpcc.training.algorithm import train_step
    from mpcc.training.device import prepare_process
    from mpcc.training.state import build_state

    where = torch.device(device)
    prepare_process(config, where)
    return partial(train_step, build_state(config, images, where))


def peak_flops(threads: int, size: int = 1536) -> float:
    """FLOP a second of a product of large matrices in float32, the best of five."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size).unbind()
    best = float("inf")
    for _ in range(6):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def clock(device: str) -> float:
    """Seconds by the wall clock, once the device has nothing left to do."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def together(only: str, dry: bool) -> Iterator[Row]:
    """Several MNIST trials in this process on one GPU, against one."""
    import torch

    from mpcc.config import PRESETS

    one = None
    for n in (1, 2, 4, 8):
        figure = f"an iteration of each of {n} MNIST trials on one GPU"
        aim = "<= 2 x one" if n == 8 else ""
        if only not in figure:
            continue
        if not dry and not torch.cuda.is_available():
            yield Row(figure, "no CUDA device here", aim)
            continue
        from mpcc.fast.together import iterations_per_second

        config, device = (PRESETS["tiny"], "cpu") if dry else (PRESETS["mnist"], "cuda")
        n_each = 1 if dry else 50
        rate = iterations_per_second(config, noise(config), torch.device(device), n, n_each)
        each = n / rate if rate else float("inf")
        one = one or each
        holds = each <= 2 * one if n == 8 and not dry else None
        yield Row(figure, f"{1e3 * each:.2f} ms, {each / one:.2f} x one", aim, holds=holds)


def profile(preset: str, dry: bool, n: int = 20, n_rows: int = 15) -> None:
    """Print the kernels that take the time of an iteration, and how long the GPU is busy."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from mpcc.config import PRESETS

    if not dry and not torch.cuda.is_available():
        print("no CUDA device here")
        return
    config, device, n = (PRESETS["tiny"], "cpu", 1) if dry else (PRESETS[preset], "cuda", n)
    step = step_of(config, noise(config), device)
    for _ in range(2):
        step()
    begun = clock(device)
    with profiler(activities=[ProfilerActivity.CPU if dry else ProfilerActivity.CUDA]) as found:
        for _ in range(n):
            step()
        wall_ms = 1e3 * (clock(device) - begun) / n
    where = DeviceType.CPU if dry else DeviceType.CUDA
    measure = "self_cpu_time_total" if dry else "self_device_time_total"
    took = {
        e: getattr(e, measure) / 1e3 / n for e in found.key_averages() if e.device_type == where
    }
    busy_ms, launches = sum(took.values()), sum(e.count for e in took) / n
    print(f"\n{preset}: {wall_ms:.2f} ms an iteration under the profiler, ", end="")
    print(f"kernels busy for {busy_ms:.2f} ms, {launches:.0f} of them")
    print(f"{'ms':>8}  {'share':>6}  {'number':>7}  kernel")
    for e in sorted(took, key=took.__getitem__, reverse=True)[:n_rows]:
        print(f"{took[e]:8.3f}  {took[e] / busy_ms:6.1%}  {e.count / n:7.1f}  {e.key[:90]}")


def noise(config: Any) -> Any:
    """256 random images of the configuration's size."""
    import torch

    from mpcc.data.image_set import ImageSet

    shape = (256, config.n_channels, config.image_size, config.image_size)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, None, (), "0" * 12)


if __name__ == "__main__":
    main()
