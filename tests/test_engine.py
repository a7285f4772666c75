"""What a local Ray starts for a sweep."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.fault_tools import ROOT, TRIAL, processes
from tests.test_groups import planned, specs_of
from tune.processes import descendants


def loaded(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


def under_ray(out: Path) -> None:
    """Two trials under a Ray of their own, once its processes are ready; prints what there was."""
    from tune import cluster, engine

    plan, trials = planned("esteps=1")
    ran: set[int] = set()
    reporter = engine.Reporter(
        lambda key: None,
        lambda key: None,
        lambda report: ran.update(processes(os.getpid(), *TRIAL)),
        lambda *fault: print(fault),
    )
    temp_dir = engine.make_temp_dir()
    environment = cluster.environment(cluster.LOCAL, 1, storage=False)
    engine.start(cluster.LOCAL, 2, 1.0, temp_dir, environment)
    ahead: list[int] = []
    until = time.monotonic() + 60
    while len(ahead) < 2 and time.monotonic() < until:
        time.sleep(0.1)
        ahead = [pid for pid in processes(os.getpid(), "ray::IDLE") if loaded(pid, "libtorch")]
    words = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(os.getpid())]
    (temp_dir / "results").mkdir()
    found = [[spec] for spec in specs_of(out, plan, trials)]
    engine.fit(found, {"cpu": 1.0}, None, temp_dir / "results", reporter)
    begun = time.monotonic()
    engine.shutdown()
    took = time.monotonic() - begun
    shutil.rmtree(temp_dir)
    print(json.dumps({"ahead": ahead, "ran": sorted(ran), "words": words, "end": took}))


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_trials_run_in_the_processes_that_ray_starts_ahead_with_torch(tmp_path: Path) -> None:
    program = f"from tests.test_engine import *; under_ray(Path({str(tmp_path)!r}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert len(said["ahead"]) == 2 and said["ran"]
    assert set(said["ran"]) <= set(said["ahead"])
    for part in ("raylet", "gcs_server"):
        assert any(part in words for words in said["words"])
    for part in ("monitor.py", "log_monitor.py", "dashboard.py"):
        assert not any(part in words for words in said["words"])
    assert said["end"] < 10
