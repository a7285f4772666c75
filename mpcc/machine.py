"""Cores, GPUs, free memory and process limit, read from /proc and /sys without torch."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file that lists the control groups of this process, and the folder of all groups."""


def usable_cores() -> int:
    """Number of cores that this process may use, by its CPU affinity and control-group limits."""
    cores = len(os.sched_getaffinity(0))
    for group in _control_groups("cpu"):
        limit = _numbers(group, "cpu.max")
        limit = limit or _numbers(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if limit and limit[0] > 0:
            cores = min(cores, math.ceil(limit[0] / limit[1]))
    return max(1, cores)


def gpus_here() -> int:
    """Number of NVIDIA GPUs in this machine, counted without CUDA."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def processor_name() -> str | None:
    """The CPU's name, such as `AMD EPYC 7763 64-Core Processor`; None if Linux does not have it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, text = line.partition(":")
            if name.strip() == "model name":
                return text.strip()
    return None


def free_memory() -> int | None:
    """Bytes of memory that new processes can have here; None without /proc/meminfo."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free = found.get("MemAvailable")
    for group in _control_groups("memory"):
        limit = _numbers(group, "memory.max", "memory.current")
        limit = limit or _numbers(group, "memory.limit_in_bytes", "memory.usage_in_bytes")
        if limit and free is not None:
            free = min(free, max(0, limit[0] - limit[1] + _cached(group)))
    return free


def _control_groups(controller: str) -> Iterator[Path]:
    """Cgroup folders (v1 and v2) of this process and their parents."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            top = GROUPS / controller if names else GROUPS
            own = top / path.lstrip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _numbers(group: Path, *names: str) -> list[int]:
    """The integers in these files of a control group; empty if one is missing or holds "max"."""
    try:
        return [int(word) for name in names for word in (group / name).read_text().split()]
    except (OSError, ValueError):
        return []


def _cached(group: Path) -> int:
    """Bytes of file cache that the kernel can free."""
    try:
        found = re.findall(r"inactive_file (\d+)", (group / "memory.stat").read_text())
    except OSError:
        return 0
    return max(map(int, found), default=0)


def processes_left() -> float:
    """Number of processes and threads that this user may still start; infinite without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return math.inf
    used = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == os.getuid():
                used += len(os.listdir(process / "task"))
    return limit - used
