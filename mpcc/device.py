"""The device that a trial runs on, and the settings of torch that the whole process shares."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch

from mpcc.config import Config

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers for what mallopt sets."""


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here; ValueError where it is not to
    be had."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not available here; use --device cpu")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not here: there are {torch.cuda.device_count()} GPUs")
    return found


def prepare_process(config: Config, device: torch.device) -> None:
    """Set what the process has only once, as this trial needs it; see `may_share_process`."""
    if device.type == "cpu":
        torch.set_num_threads(config.cpu_threads)
        keep_freed_memory()
        return
    # Sums in a fixed order, so that a trial repeats itself; cuDNN takes TF32 unless told not to.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    precision = "tf32" if config.precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


def may_share_process(a: Config, b: Config) -> bool:
    """Whether two trials want the same of `prepare_process`."""
    return (a.cpu_threads, a.precision) == (b.cpu_threads, b.precision)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next iteration, instead of giving it back.

    At 32×32 pixels the layers of an iteration are megabytes each; fetching their pages anew every
    time took up to a twentieth of it. Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 2**30)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
