"""The device that a trial runs on, and the settings of torch that the whole process shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mpcc.config import Config
from mpcc.config.checks import TF32_NEEDS_GPU
from mpcc.options import checked_device


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here; ValueError if not available."""
    device = checked_device(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not available here; use cpu")
    index = int(device.partition(":")[2] or 0)  # torch takes cuda:256 for cuda:0.
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not here: there are {torch.cuda.device_count()} GPUs")
    return torch.device(device)


def check_precision(config: Config, device: torch.device) -> None:
    """ValueError for a precision that the device does not have."""
    if config.precision == "tf32" and device.type == "cpu":
        raise ValueError(TF32_NEEDS_GPU)


def prepare_process(config: Config, device: torch.device) -> None:
    """Set torch's process-wide settings as this trial needs them (`Config.process_settings`)."""
    if device.type == "cpu":
        torch.set_num_threads(config.cpu_threads)
        return
    # Deterministic sums make a trial reproducible; cuDNN uses TF32 unless it is turned off.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    for products in _float32_products():
        products.fp32_precision = "tf32" if config.precision == "tf32" else "ieee"


@contextlib.contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Inside the block, torch uses n CPU threads; afterwards the former number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Inside the block, a GPU multiplies float32 values in TF32 (`tf32`) or in full (otherwise). A
    setting that is already right is not touched: other trials of the process may be computing."""
    wanted = "tf32" if precision == "tf32" else "ieee"
    before = [(each, each.fp32_precision) for each in _float32_products()]
    changed = [(each, was) for each, was in before if (was == "tf32") != (wanted == "tf32")]
    for products, _ in changed:
        products.fp32_precision = wanted
    try:
        yield
    finally:
        for products, was in changed:
            products.fp32_precision = was


def _float32_products() -> tuple[Any, Any]:
    """torch's precision settings for float32 matrix products and convolutions on a GPU."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
