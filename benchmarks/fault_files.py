"""Full disks, damaged files, trials and inputs that are wrong, for `benchmarks/faults.py`."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import fault_tracking
from benchmarks.fault_lab import TRIES, Lab, Outcome
from benchmarks.fault_tools import Sweep, SweepFailed, finish, injected, wait_for
from mpcc.runs import run_dir
from mpcc.runs.files import with_hash

OLD_MAGIC = b"mpcc checkpoint 1\n"
CHECKPOINT_HEAD = len(OLD_MAGIC) + 65
"""Bytes of the magic, which has one length in all layouts, and of the hash."""
DISK_MEGABYTES = 64
MALFORMED = 300


@contextmanager
def small_disk(lab: Lab, outcome: Outcome) -> Iterator[Path | None]:
    """A file system of its own; None, and said, where it cannot be mounted."""
    lab.count += 1
    disk = lab.folder / f"disk-{lab.count}"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        outcome.not_tried = "mounting a small file system needs root"
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def full_disk(lab: Lab, outcome: Outcome, file: str) -> None:
    """The disk is full when the file is written: stopped, not failed; with room it goes on."""
    with small_disk(lab, outcome) as disk:
        if disk is None:
            return
        sweep = lab.sweep(parent=disk)
        ballast, done = disk / "ballast", lab.folder / f"full-{lab.count}"
        order = {"kind": "full disk", "trial": lab.random.choice(lab.keys), "file": file}
        orders = [order | {"ballast": str(ballast), "done": str(done)}]
        printed = sweep.run(3, injected(orders))
        if not done.exists() or "no room" not in printed and "No space" not in printed:
            outcome.notes.append(f"the disk was not full, or it was not told: {printed[-300:]}")
        ballast.unlink()
        lab.resume(sweep, outcome)


def half_done(sweep: Sweep) -> list[Path]:
    """Return run directories of trials with an evaluation, two intact checkpoints, no result."""
    found = []
    for path in sweep.checkpointed():
        rows = path / "metrics.jsonl"
        if rows.exists() and rows.stat().st_size and len(run_dir.read_checkpoints(path)[0]) == 2:
            found.append(path)
    return found


def is_half_way(sweep: Sweep) -> bool:
    """Return whether two trials are done and another one is half done."""
    return sweep.has_results(2) and bool(half_done(sweep))


def stopped_half_way(lab: Lab) -> Sweep:
    """Return a sweep that was interrupted with two trials done and another one half done."""
    for _ in range(TRIES):
        sweep = lab.sweep()
        process = sweep.start()
        come = wait_for(process, partial(is_half_way, sweep))
        if come:
            process.send_signal(signal.SIGINT)
        finish(process, None)
        if come and half_done(sweep):
            return sweep
    raise SweepFailed(f"{TRIES} sweeps were not stopped with a trial half done")


def damaged(lab: Lab, outcome: Outcome, damage: Callable[[bytes, random.Random], bytes]) -> None:
    """Checkpoint and metrics of every trial half done; a result, and metrics, of trials done.

    Nothing of it need be trained again but what lies between two checkpoints.
    """
    sweep = stopped_half_way(lab)
    half, done = half_done(sweep), sorted(sweep.results())
    files = [path / name for path in half for name in ("checkpoint.pt", "metrics.jsonl")]
    files += [sweep.out / "trials" / done[0] / "result.json"]
    files += [sweep.out / "trials" / done[1] / "metrics.jsonl"]
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(damage(whole, lab.random))
        if file.read_bytes() == whole:
            outcome.notes.append(f"{file.name} was not damaged")
    before = sweep.progress()
    if not all(before[path.name].iteration > 0 for path in half):
        outcome.notes.append("no checkpoint was left to go on from")
    lab.resume(sweep, outcome, before=before)
    after = sweep.progress()
    for path in half:
        if len(after[path.name].starts) == len(before[path.name].starts):
            outcome.notes.append("a trial half done was not resumed")


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Return the first half."""
    return data[: len(data) // 2]


def empty(data: bytes, rng: random.Random) -> bytes:
    """Return nothing."""
    return b""


def flip(data: bytes, rng: random.Random) -> bytes:
    """Return the data with several bits flipped, of a checkpoint in its head and behind it."""
    spoilt = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 6))]
    if data.startswith(b"mpcc checkpoint") and rng.random() < 0.5:
        places += [rng.randrange(CHECKPOINT_HEAD), rng.randrange(CHECKPOINT_HEAD, len(data))]
    for at in set(places):
        spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


class Canary:
    """A pickle that would leave a file behind if it were loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile_pickle(lab: Lab, outcome: Outcome) -> None:
    """In place of a checkpoint under a right hash, by the layouts of old and of now by turns."""
    canary = lab.folder / f"canary-{lab.count}"
    payload = pickle.dumps(Canary(canary))
    sweep = stopped_half_way(lab)
    done, fallback = sorted(sweep.results()), {}
    for count, path in enumerate(half_done(sweep)):
        fallback[path.name] = run_dir.read_checkpoints(path)[0][1].iteration or 0
        whole = (path / "checkpoint.pt").read_bytes()
        if count % 2:
            head = whole[CHECKPOINT_HEAD:].partition(b"\n")[0] + b"\n"
            magic, content = whole[: len(OLD_MAGIC)], head + payload
        else:
            magic, content = OLD_MAGIC, payload
        (path / "checkpoint.pt").write_bytes(with_hash(magic, content))
        (path / "metrics.jsonl").write_bytes(payload)
    (sweep.out / "trials" / done[0] / "result.json").write_bytes(payload)
    before = sweep.progress()
    before |= {key: replace(before[key], iteration=n) for key, n in fallback.items()}
    lab.resume(sweep, outcome, before=before)
    if canary.exists():
        outcome.notes.append("the code ran")


def trials_with_errors(lab: Lab, outcome: Outcome) -> None:
    """NaN, exception, out of memory: these trials are marked with their causes, and no others.

    Retried, they end as those of the undisturbed sweep.
    """
    causes = {"nan": "not finite", "exception": "code: ", "out of memory": "out of memory"}
    hit = dict(zip(causes, lab.random.sample(lab.keys, 3), strict=True))
    orders = [{"kind": kind, "trial": key, "iteration": 50} for kind, key in hit.items()]
    sweep = lab.sweep()
    printed = sweep.run(3, injected(orders))
    results = {key: result for key, (_, result) in sweep.results().items()}
    states = {key: result["state"] for key, result in results.items()}
    wanted = dict.fromkeys(lab.keys, "done") | dict.fromkeys(hit.values(), "failed")
    wanted[hit["nan"]] = "diverged"
    if states != wanted:
        outcome.notes.append(f"states {states}, expected {wanted}")
    for kind, text in causes.items():
        cause = str(results.get(hit[kind], {}).get("cause"))
        if text not in cause:
            outcome.notes.append(f"{kind}: cause {cause!r}")
    statuses = dict.fromkeys(lab.keys, "FINISHED") | dict.fromkeys(hit.values(), "FAILED")
    fault_tracking.check_states(sweep, printed, statuses, outcome)
    table = "\n".join(sweep.tables().values())
    outcome.notes += [
        f"no {word} in the table" for word in ("diverged", "failed") if word not in table
    ]
    untouched = {k: v for k, v in sweep.progress().items() if states.get(k) == "done"}
    reference = lab.reference.stored()
    if any(sweep.stored()[key] != reference[key] for key in untouched):
        outcome.notes.append("another trial has other numbers")
    Sweep(sweep.out, (*sweep.argv, "--retry", "failed,diverged")).run()
    lab.count_repeats(sweep, untouched, outcome)
    lab.compare(sweep, outcome)


def malformed_inputs(lab: Lab, outcome: Outcome) -> None:
    """Command lines, settings, run directories and data files that are wrong: one line, code 2."""
    from tests import malformed

    found = malformed.run(MALFORMED, 0, lab.folder / "malformed")
    outcome.notes += found.offences
    outcome.tried += found.codes.total() - 1
