"""What is looked at before the first trial."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpcc import machine
from mpcc.config import PRESETS
from mpcc.machine import free_memory
from mpcc.runs import run_dir
from tests.stand_ins import planned
from tune import preflight
from tune.engine.spec import Settings
from tune.plan.cells import Trial
from tune.plan.cost import checkpoint_bytes, memory_need
from tune.store.folder import Store
from tune.store.remote import Remote


def trials(**changes: Any) -> list[Trial]:
    return planned("esteps=1,2", **changes).trials()


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    preflight.check_folder(trials(), Store(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_too_small_a_disk_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="1.0 MB are free; make room"):
        preflight.check_folder(trials(), Store(tmp_path))


def test_room_is_asked_for_three_checkpoints_of_what_runs_and_one_of_the_rest(
    tmp_path: Path,
) -> None:
    todo = trials()
    sizes = [checkpoint_bytes(trial.config) for trial in todo]
    assert len(set(sizes)) == 1
    ends = 4 * (sizes[0] + preflight.OTHER_BYTES)
    assert preflight.disk_need(todo, Store(tmp_path), 2) == ends + 2 * 2 * sizes[0]
    assert preflight.disk_need(todo, Store(tmp_path)) == ends + 4 * 2 * sizes[0]
    # What a stopped trial has on the disk is not needed once more.
    path = Store(tmp_path).trial_dir(todo[0].key)
    path.mkdir(parents=True)
    (path / "checkpoint.pt").touch()
    need = preflight.disk_need(todo, Store(tmp_path), 2)
    assert need == ends - preflight.OTHER_BYTES + 3 * sizes[0]


def test_a_damaged_checkpoint_of_a_trial_does_not_refuse_its_sweep(tmp_path: Path) -> None:
    trial = trials()[0]
    path = Store(tmp_path).trial_dir(trial.key)
    path.mkdir(parents=True)
    (path / "checkpoint.pt").write_bytes(bytes(100))
    with pytest.raises(run_dir.RunDirError, match="not a checkpoint of this program"):
        preflight.check_folder(trials(), Store(tmp_path))  # None of ours was here.
    run_dir.write_json(path / run_dir.CONFIG, trial.config.to_dict())
    preflight.check_folder(trials(), Store(tmp_path))
    assert "checkpoint.pt damaged, runs again" in str(Store(tmp_path).repair(trial))
    assert {p.name for p in path.iterdir()} == {"config.json", "checkpoint.pt.damaged"}


def test_too_little_memory_is_refused_with_the_number_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = memory_need(PRESETS["tiny"])
    monkeypatch.setattr(preflight, "free_memory", lambda: int(2.5 * need))
    preflight.check_memory(trials(), 2)
    with pytest.raises(ValueError, match="--max-concurrent 2$"):
        preflight.check_memory(trials(), 4)
    monkeypatch.setattr(preflight, "free_memory", lambda: need // 2)
    with pytest.raises(ValueError, match="free some"):
        preflight.check_memory(trials(), 1)


def test_the_free_memory_is_some_of_this_machines() -> None:
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/job", {"job/cpu.max": "50000 100000", "job/memory.max": "3000000",
                     "job/memory.current": "2500000", "job/memory.stat": "inactive_file 400000",
                     "cpu.max": "max 100000", "memory.max": "max"}),
        ("0::/job/step", {"job/cpu.max": "50000 100000", "job/memory.max": "1500000",
                          "job/memory.current": "600000", "job/step/memory.max": "max"}),
        ("3:memory:/job\n4:cpu,cpuacct:/job\n0::/",
         {"cpu/job/cpu.cfs_quota_us": "90000", "cpu/job/cpu.cfs_period_us": "100000",
          "memory/job/memory.limit_in_bytes": "1000000", "memory/job/memory.stat": "",
          "memory/job/memory.usage_in_bytes": "100000", "cpu/cpu.cfs_quota_us": "-1"}),
    ],
)  # fmt: skip
def test_the_limits_of_a_container_and_of_a_batch_job_count(
    own: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    assert machine.usable_cores() == 1 and free_memory() == 900_000


def test_data_that_are_not_here_are_missed_only_where_the_trials_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)
    todo = trials(dataset="mnist")[:1]
    here = Settings(tmp_path, "", data_dir=tmp_path / "none")
    with pytest.raises(ValueError, match="none is no folder"):
        preflight.check(todo, here, Store(tmp_path))
    with pytest.raises(ValueError, match="mnist"):
        preflight.check(todo, Settings(tmp_path, "", data_dir=tmp_path), Store(tmp_path))
    there = Settings(tmp_path, "", data_dir=tmp_path / "none", address="head:6379")
    preflight.check(todo, there, Store(tmp_path))


def test_checkpoints_of_a_remote_take_no_room_on_the_folders_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = trials()
    room = len(todo) * preflight.OTHER_BYTES
    usage = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    preflight.check_folder(todo, Store(tmp_path, Remote(str(tmp_path / "remote"), 0)))
    with pytest.raises(ValueError, match="make room"):
        preflight.check_folder(todo, Store(tmp_path))


def test_a_full_disk_under_ray_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=preflight.RAY_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    preflight.check_local_ray(1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(ValueError, match="0 bytes free, too little for Ray's"):
        preflight.check_local_ray(1)


def test_tf32_on_a_cpu_is_refused(tmp_path: Path) -> None:
    todo = trials(precision="tf32")
    with pytest.raises(ValueError, match="precision=tf32 needs a GPU"):
        preflight.check(todo, Settings(tmp_path, "", gpus=0), Store(tmp_path))


def test_a_limit_of_processes_below_what_ray_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "processes_left", lambda: 399.0)
    with pytest.raises(ValueError, match=r"may start 399 more \(ulimit -u\): raise"):
        preflight.check_local_ray(2)
    monkeypatch.setattr(preflight, "processes_left", lambda: 400.0)
    preflight.check_local_ray(2)


def test_the_processes_that_a_user_may_still_start_are_counted() -> None:
    program = (
        "import os, resource; from mpcc.machine import processes_left\n"
        "before = processes_left()\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000)); os.setuid(65534)\n"
        "print(before, processes_left())"
    )
    if os.geteuid() != 0:
        pytest.skip("another user's limit is looked at, which takes root")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    assert before == math.inf and 0 < after < 1000, done.stderr


def test_python_without_docstrings_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = Path(preflight.__file__).parents[1]
    words = [sys.executable, "-OO", root / "tune" / "ablation.py", "--preset", "tiny"]
    done = subprocess.run(
        [*words, "--grid", "esteps=1", "--out", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists(), done.stderr
    assert done.stderr.startswith("ablation.py: python -OO") and done.stderr.count("\n") == 1


def test_a_machine_that_does_not_reach_itself_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    root, wrapper = Path(preflight.__file__).parents[1], ["unshare", "--net"]
    wrapper += [] if os.geteuid() == 0 else ["--map-root-user"]
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode != 0:
        pytest.skip("no `unshare --net` here: the network is always there")
    command = [sys.executable, str(root / "tune" / "ablation.py"), "--preset", "tiny"]
    command += ["--grid", "esteps=1", "--out", str(tmp_path / "out")]
    done = subprocess.run([*wrapper, *command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "127.0.0.1 (Network is unreachable): bring its loopback device up" in done.stderr
    assert not (tmp_path / "out").exists()
