"""What this machine has for trials, as Linux says it, without torch."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))  # "max" is no number.
    return max(1, cores)


def gpus_here() -> int:
    """NVIDIA GPUs of this machine, without asking CUDA."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def processor_name() -> str | None:
    """The CPU's name, such as `AMD EPYC 7763 64-Core Processor`; None where it is not said."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, text = line.partition(":")
            if name.strip() == "model name":
                return text.strip()
    return None


def free_memory() -> int | None:
    """Bytes of memory that new processes can have here; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free = found.get("MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    if free is None or limit == "max":
        return free
    return min(free, max(0, int(limit) - used))


def processes_left() -> float:
    """Processes and threads that this user may still start; infinite where nothing limits them."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return math.inf
    used = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == os.getuid():
                used += len(os.listdir(process / "task"))
    return limit - used
