"""One table for all figures of speed: what was measured, its aim, the plain path beside it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

WIDTHS = (58, 26, 22, 12, 7)


@dataclass(frozen=True)
class Row:
    """A figure; `holds` is None where it has no aim, or could not be measured here."""

    figure: str
    measured: str
    aim: str = ""
    plain: str = ""
    """The same by the plain path of our own code (`--set fast=false`), where there is one."""
    ratio: str = ""
    """Plain to fast."""
    holds: bool | None = None


def head() -> None:
    """The machine, and what the columns are."""
    print(f"{machine()}\n")
    _line("figure", "aim", "measured", "plain path", "ratio", "")
    print("─" * (sum(WIDTHS) + 8), flush=True)


def show(row: Row) -> None:
    """One line."""
    verdict = {None: "", True: "holds", False: "misses"}[row.holds]
    _line(row.figure, row.aim, row.measured, row.plain, row.ratio, verdict)


def machine() -> str:
    """The processor as the system names it, its cores, what torch uses of it, and any GPU."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown processor"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    used = torch.backends.cpu.get_cpu_capability()
    load = f"load {os.getloadavg()[0]:.1f} before"
    return f"{name}, {os.cpu_count()} cores, {used}, {gpu}, torch {torch.__version__}, {load}"


def _line(*texts: str) -> None:
    cells = [f"{text:<{width}}" for text, width in zip(texts, WIDTHS, strict=False)]
    print("  ".join([*cells, texts[-1]]).rstrip(), flush=True)
