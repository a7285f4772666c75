"""Distinguishes a trial's own errors, which are recorded, from errors of the infrastructure.

An infrastructure error is transient: Ray runs the trial again from its checkpoint. A full disk and
a broken connection are such errors. MLflow is never a cause, since workers do not log to it.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

from mpcc.runs import run_dir
from mpcc.shell import message_of

OUT_OF_MEMORY = "out of memory"


def trial_cause(error: BaseException) -> str | None:
    """Return why a trial failed, in one line that starts with the kind of fault.

    None for an infrastructure error.
    """
    text = message_of(error, 500)
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {text}"
    if type(error).__name__ == "DataError" or isinstance(error, run_dir.RunDirError):
        return f"data: {text}"
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, None):
        return None
    return f"code: {type(error).__name__}: {text}{_location(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or a GPU ran out of memory; works without importing torch."""
    text = str(error).lower()
    phrases = (
        *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate"),
        "cublas_status_alloc_failed",
    )
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, (RuntimeError, OSError)) and any(p in text for p in phrases))
    )


def is_device_fault(error: BaseException) -> bool:
    """Return whether the GPU's context is lost, so that every trial of this process fails."""
    return not is_out_of_memory(error) and (
        type(error).__name__ == "AcceleratorError"
        or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    )


def free_gpu_memory() -> None:
    """Return the memory that torch caches to the GPU, for the processes beside this one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _location(error: BaseException) -> str:
    """Return ` (file.py:12)`, where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
