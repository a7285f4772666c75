"""The sweep's own folder and the world around it, for `benchmarks/faults.py`."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from benchmarks.fault_files import small_disk, stopped_half_way
from benchmarks.fault_lab import SETTINGS, Lab, Outcome
from benchmarks.fault_tools import (
    ROOT,
    exchange,
    finish,
    must_come,
    wait_for,
)

N_NEXT = 10
NEXT = ("--next",)
END_SECONDS = 60.0
"""How long a driver may take to end where its folder cannot be written."""


def two_on_one_trial(lab: Lab, outcome: Outcome) -> None:
    """`python -m mpcc` in the folder of a trial that a sweep trains is refused in one line."""
    sweep, process, before = lab.at_random_moment()
    if wait_for(process, sweep.checkpointed):
        path = sweep.checkpointed()[0]
        words = [sys.executable, "-m", "mpcc", *SETTINGS, "--out", str(path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 2 or done.stderr.count("\n") != 1:
            outcome.notes.append(f"the second: {done.returncode}, {done.stderr[-300:]}")
    finish(process)
    lab.resume(sweep, outcome, before=before)


def next_beside_a_driver(lab: Lab, outcome: Outcome) -> None:
    """Ten processes with `--next` beside a driver, as a queue starts them; one is killed."""
    sweep = lab.sweep()
    ones = replace(sweep, argv=(*sweep.argv, *NEXT))
    processes = [ones.start() for _ in range(N_NEXT)]
    must_come(processes[0], lambda: any(sweep.out.glob("claims/*.json")))  # It is planned then.
    driver = sweep.start()
    must_come(driver, sweep.checkpointed)
    killed = lab.random.choice(processes)
    killed.kill()
    for process in processes:
        finish(process, None)
        if process is not killed and process.returncode not in (0, 4):
            outcome.notes.append(f"--next ended with {process.returncode}")
    before = sweep.progress()
    finish(driver)
    lab.count_repeats(sweep, before, outcome)
    lab.resume(sweep, outcome)


def filled(disk: Path) -> Path:
    """Leave no room on a disk; returns the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        except OSError:
            return ballast


def ended_in_time(outcome: Outcome, process: subprocess.Popen[str], since: float) -> None:
    """A driver that cannot write ends soon, says why and does not end with 0."""
    printed = finish(process, None)
    seconds = time.monotonic() - since
    if process.returncode == 0:
        outcome.notes.append("exit code 0")
    if not any(word in printed for word in ("no room", "No space", "Read-only", "need about")):
        outcome.notes.append(f"the reason was not told: {printed[-300:]}")
    if seconds > END_SECONDS:
        outcome.notes.append(f"the driver needed {seconds:.0f} s to end")


def full_at_the_start(lab: Lab, outcome: Outcome) -> None:
    """The disk of the sweep's folder is full before the driver starts."""
    with small_disk(lab, outcome) as disk:
        if disk is not None:
            sweep, ballast = lab.sweep(parent=disk), filled(disk)
            ended_in_time(outcome, sweep.start(), time.monotonic())
            ballast.unlink()
            lab.resume(sweep, outcome)


def full_in_the_middle(lab: Lab, outcome: Outcome) -> None:
    """The disk of the sweep's folder is full from some moment on, for all that is written."""
    with small_disk(lab, outcome) as disk:
        if disk is not None:
            sweep = lab.sweep(parent=disk)
            process = sweep.start()
            must_come(process, lambda: sweep.has_come_to(1))
            ballast, since = filled(disk), time.monotonic()
            ended_in_time(outcome, process, since)
            ballast.unlink()
            lab.resume(sweep, outcome)


def read_only_in_the_middle(lab: Lab, outcome: Outcome) -> None:
    """The file system of the sweep's folder meets an error and turns read-only under open files."""
    lab.count += 1
    image, disk = lab.folder / f"image-{lab.count}", lab.folder / f"disk-{lab.count}"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(128 * 2**20)
    mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(disk)]
    for words in (["mkfs.ext4", "-q", str(image)], mount):
        if not shutil.which(words[0]) or subprocess.run(words, capture_output=True).returncode:
            outcome.not_tried = "a file system that turns read-only needs root and ext4"
            return
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", str(disk)], capture_output=True, text=True, check=True
    )
    try:
        sweep = lab.sweep(parent=disk)
        process = sweep.start()
        must_come(process, lambda: sweep.has_come_to(1))
        name = Path(device.stdout.strip()).name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("x")
        ended_in_time(outcome, process, time.monotonic())
        subprocess.run(["umount", str(disk)], check=True)
        subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True)
        subprocess.run(mount, check=True)
        lab.resume(sweep, outcome)
    finally:
        subprocess.run(["umount", "-l", str(disk)])


def node_full_for_a_while(lab: Lab, outcome: Outcome) -> None:
    """The disk on which a node trains is full: tried three times, then left to the next start."""
    with small_disk(lab, outcome) as disk:
        if disk is not None:
            remote = lab.folder / f"remote-{lab.count}"
            sweep = lab.sweep("--storage", str(remote))
            ballast = filled(disk)
            scratch = {"MPCC_SCRATCH_DIR": str(disk)}
            printed = sweep.run(3, scratch)
            if "no room" not in printed and "No space" not in printed:
                outcome.notes.append(f"the reason was not told: {printed[-300:]}")
            ballast.unlink()
            lab.resume(sweep, outcome)


def plan_damaged(
    lab: Lab, outcome: Outcome, damage: Callable[[bytes, Random], bytes] | None
) -> None:
    """sweep.json is damaged, or deleted (None): that is said, and its copy restores it."""
    sweep = stopped_half_way(lab)
    file = sweep.out / "sweep.json"
    whole = file.read_bytes()
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(whole, lab.random))
    printed = sweep.told("--status", expected=3)
    if "sweep-copy.json" not in printed:
        outcome.notes.append(f"it was not said: {printed[-300:]}")
    lab.resume(sweep, outcome)
    if file.read_bytes() != whole:
        outcome.notes.append("sweep.json is not what it was")


def plan_and_copy_deleted(lab: Lab, outcome: Outcome) -> None:
    """Neither sweep.json nor its copy is there: the grid is planned again from its trials."""
    sweep = stopped_half_way(lab)
    for name in ("sweep.json", "sweep-copy.json"):
        (sweep.out / name).unlink()
    lab.resume(sweep, outcome)


def database_damaged(lab: Lab, outcome: Outcome, content: bytes) -> None:
    """mlflow.db of a finished sweep is emptied, or is no database: `--sync` fills a new one."""
    sweep = lab.sweep()
    sweep.run()
    before = sweep.progress()
    (sweep.out / "mlflow.db").write_bytes(content)
    if content:
        printed = sweep.told("--status")
        if "is no database" not in printed:
            outcome.notes.append(f"it was not said: {printed[-300:]}")
    printed = sweep.told("--sync")
    if f"{len(lab.keys)} trials delivered" not in printed:
        outcome.notes.append(f"not all was delivered: {printed[-300:]}")
    lab.count_repeats(sweep, before, outcome)
    lab.compare(sweep, outcome)


def moved(lab: Lab, outcome: Outcome) -> None:
    """The folder is renamed half way; MLflow's pictures lie in it afterwards."""
    sweep = stopped_half_way(lab)
    there = replace(sweep, out=sweep.out.with_name(f"{sweep.out.name}-moved"))
    os.rename(sweep.out, there.out)
    lab.resume(there, outcome)
    if sweep.out.exists():
        outcome.notes.append("the folder's old place is there again")
    if not any(there.out.glob("mlflow-artifacts/**/*.png")):
        outcome.notes.append("MLflow has no pictures in the folder")


def copied(lab: Lab, outcome: Outcome) -> None:
    """A copy goes on and is whole; not a byte of the original changes."""
    sweep = stopped_half_way(lab)
    there = replace(sweep, out=sweep.out.with_name(f"{sweep.out.name}-copy"))
    shutil.copytree(sweep.out, there.out, symlinks=True)
    before = content_of(sweep.out)
    lab.resume(there, outcome)
    if content_of(sweep.out) != before:
        outcome.notes.append("the original has changed")
    lab.resume(sweep, outcome)


def content_of(folder: Path) -> dict[str, str]:
    """Every file below a folder -> a hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def swapped(lab: Lab, outcome: Outcome) -> None:
    """Two trials' folders are exchanged: said, and neither is trained into the other."""
    sweep = stopped_half_way(lab)
    trials = sorted((sweep.out / "trials").iterdir())
    one, two = lab.random.sample(trials, 2)
    exchange(one, two)
    before = content_of(sweep.out / "trials")
    printed = sweep.run(2)
    if "holds the record of trial" not in printed:
        outcome.notes.append(f"it was not said: {printed[-300:]}")
    if content_of(sweep.out / "trials") != before:
        outcome.notes.append("a record has changed")
    exchange(one, two)
    lab.resume(sweep, outcome)


def interrupted_with_next(lab: Lab, outcome: Outcome) -> None:
    """SIGTERM to a `--next`, as a queue sends it: a checkpoint, 143, and the next one goes on."""
    sweep = lab.sweep()
    process = replace(sweep, argv=(*sweep.argv, *NEXT)).start()
    must_come(process, sweep.checkpointed)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    before = sweep.progress()
    for _ in lab.keys:
        sweep.told(*NEXT)
    sweep.told(*NEXT, expected=4)
    lab.count_repeats(sweep, before, outcome)
    lab.resume(sweep, outcome)
