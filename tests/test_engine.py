"""What a local Ray starts for a sweep."""

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks.fault_tools import TRIAL, processes
from tests.test_groups import local_ray, planned, said_by, specs_of
from tune.processes import descendants


def loaded(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


def under_ray(out: Path) -> None:
    """Two trials under a Ray of their own, once its processes are ready; prints what there was."""
    from tune import engine

    plan, trials = planned("esteps=1")
    ran: set[int] = set()
    reporter = engine.Reporter(
        lambda key: None,
        lambda key: None,
        lambda report: ran.update(processes(os.getpid(), *TRIAL)),
        lambda *fault: print(fault),
    )
    groups = [[spec] for spec in specs_of(out, plan, trials)]
    ahead: list[int] = []
    with local_ray() as results:
        until = time.monotonic() + 60
        while len(ahead) < 2 and time.monotonic() < until:
            time.sleep(0.1)
            ahead = [pid for pid in processes(os.getpid(), "ray::IDLE") if loaded(pid, "libtorch")]
        words = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(os.getpid())]
        engine.fit(groups, {"cpu": 1.0}, None, results, reporter)
        begun = time.monotonic()
    took = time.monotonic() - begun
    print(json.dumps({"ahead": ahead, "ran": sorted(ran), "words": words, "end": took}))


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_trials_run_in_the_processes_that_ray_starts_ahead_with_torch(tmp_path: Path) -> None:
    said = said_by(under_ray, tmp_path)
    assert len(said["ahead"]) == 2 and said["ran"]
    assert set(said["ran"]) <= set(said["ahead"])
    for part in ("raylet", "gcs_server"):
        assert any(part in words for words in said["words"])
    for part in ("monitor.py", "log_monitor.py", "dashboard.py"):
        assert not any(part in words for words in said["words"])
    assert said["end"] < 10
