"""Every fault that a sweep must survive, for real: kills, full disks, dead servers, torn files.

    python benchmarks/faults.py                    all of them, as often as stated: over an hour
    python benchmarks/faults.py --only sigint      some of them, by the beginning of their names
    python benchmarks/faults.py --times 1          each once

After each fault the same command runs again until every trial is done. Then: no trial lost (each
has the result, the weights and the evaluations of an undisturbed sweep), none run twice (a result
is never written again, and no trial starts before the checkpoint that it had), MLflow with one
finished run for each trial, the tables byte for byte those of the undisturbed sweep. Exit code 1
where anything else is found; its folders are kept then.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import fault_tracking  # noqa: E402
from benchmarks.fault_tools import (  # noqa: E402
    TRIAL,
    Stand,
    Sweep,
    SweepFailed,
    finish,
    kill,
    mlflow_runs,
    must_come,
    processes,
    wait_for,
)
from mpcc import run_dir  # noqa: E402

INJECTION = ROOT / "benchmarks" / "injection"
EVALUATIONS = 3
SETTINGS = ("--preset", "tiny", "--iterations", "120", "--set", "eval_every=40")
ARGV = (*SETTINGS, "--grid", "esteps=1,2,3", "--seeds", "2", "--checkpoint-seconds", "0")
OLD_MAGIC = b"mpcc checkpoint 1\n"
CHECKPOINT_HEAD = len(OLD_MAGIC) + 65
"""Bytes of the magic, which has one length in all layouts, and of the hash."""
SIGNAL_SECONDS = 20.0
TRIES = 3
Process = subprocess.Popen[str]
Stands = dict[str, Stand]
MALFORMED = 300


@dataclass
class Outcome:
    """What one kind of fault has done, over all tries."""

    tried: int = 0
    lost: int = 0
    twice: int = 0
    other_tables: int = 0
    other_mlflow: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.twice or self.other_tables or self.other_mlflow or self.notes)


class Lab:
    """An undisturbed sweep to compare with, and folders for the others."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.reference = Sweep(folder / "undisturbed", ARGV)
        begun = time.monotonic()
        process = self.reference.start()
        wait_for(process, self.reference.checkpointed)
        self.before_training = time.monotonic() - begun
        finish(process)
        self.seconds = time.monotonic() - begun
        self.tables = self.reference.tables()
        self.keys = sorted(self.reference.results())
        self.count = 0

    def sweep(self, *more: str, parent: Path | None = None) -> Sweep:
        """A sweep of its own, with an empty folder."""
        self.count += 1
        return Sweep((parent or self.folder) / f"sweep-{self.count}", (*ARGV, *more))

    def at_random_moment(self, *, in_training: bool = True) -> tuple[Sweep, Process, Stands]:
        """A sweep of its own that runs and has come to a random moment, and how far that is.

        By what is on disk, not by the clock: a machine is not equally fast all the time. Without
        `in_training` the moment may also lie before the first iteration or after the last one.
        """
        n = len(self.keys)
        for _ in range(TRIES):
            sweep = self.sweep()
            process = sweep.start()
            stage = self.random.choice(range(n - 1) if in_training else (-3, -2, -1, 0, n // 2, n))
            if stage < 0:
                time.sleep(self.random.uniform(0.0, self.before_training))
            elif stage == n:
                wait_for(process, lambda made=sweep: len(made.results()) == n)
                time.sleep(self.random.uniform(0.0, 1.5))
            else:
                wait_for(process, partial(sweep.has_come_to, stage))
                time.sleep(self.random.uniform(0.0, 0.5))
            before = sweep.stand()
            if process.poll() is None:
                return sweep, process, before
            process.communicate()
        raise SweepFailed(f"{TRIES} sweeps ended before anything could be done to them")

    def go_on(
        self,
        sweep: Sweep,
        outcome: Outcome,
        database: Path | None = None,
        before: Stands | None = None,
    ) -> None:
        """Run the command again until all is done, and hold it against the undisturbed sweep.

        `before` is how far the trials had come when the fault came.
        """
        before = sweep.stand() if before is None else before
        sweep.run()
        self.count_repeats(sweep, before, outcome)
        self.compare(sweep, outcome, database)

    @staticmethod
    def count_repeats(sweep: Sweep, before: Stands, outcome: Outcome) -> None:
        after = sweep.stand()
        outcome.twice += sum(
            before.get(key, Stand()).trained_again(stand) for key, stand in after.items()
        )

    def compare(self, sweep: Sweep, outcome: Outcome, database: Path | None = None) -> None:
        stored, evaluations = sweep.stored(), sweep.evaluations()
        expected, rows = self.reference.stored(), self.reference.evaluations()
        outcome.lost += sum(
            stored.get(key) != expected[key] or evaluations.get(key) != rows[key]
            for key in self.keys
        )
        outcome.other_tables += sweep.tables() != self.tables
        runs = sorted(mlflow_runs(database or sweep.out / "mlflow.db"), key=str)
        wanted = [(key, "FINISHED", EVALUATIONS, EVALUATIONS) for key in self.keys]
        outcome.other_mlflow += runs != sorted([*wanted, (None, "FINISHED", 0, 0)], key=str)


def sigkill_of_the_driver(lab: Lab, outcome: Outcome) -> None:
    sweep, process, before = lab.at_random_moment(in_training=False)
    process.kill()
    process.communicate()
    lab.go_on(sweep, outcome, before=before)


def sigkill_of_a_trial(lab: Lab, outcome: Outcome) -> None:
    """The sweep mends that by itself; the second run finds nothing to do."""
    sweep, process, before = lab.at_random_moment()
    if not kill(processes(process.pid, *TRIAL)[:1]) and len(sweep.results()) < len(lab.keys):
        outcome.notes.append("no trial process was found")
    finish(process)
    lab.go_on(sweep, outcome, before=before)


def sigkill_of_the_raylet(lab: Lab, outcome: Outcome) -> None:
    sweep, process, before = lab.at_random_moment()
    if not kill(processes(process.pid, "raylet")):
        outcome.notes.append("no raylet was found")
    begun = time.monotonic()
    said = finish(process, None)
    if process.returncode not in (0, 3):
        outcome.notes.append(f"exit code {process.returncode}")
    if process.returncode == 3 and "Ray has died" not in said:
        outcome.notes.append("Ray's death was not told")
    if time.monotonic() - begun > 60:
        outcome.notes.append(f"the driver needed {time.monotonic() - begun:.0f} s to end")
    lab.go_on(sweep, outcome, before=before)


def _signal(
    lab: Lab, outcome: Outcome, number: signal.Signals, *, in_training: bool = True
) -> None:
    sweep, process, before = lab.at_random_moment(in_training=in_training)
    begun = time.monotonic()
    process.send_signal(number)
    said = finish(process, None)
    seconds = time.monotonic() - begun
    # A signal may come when the last trial has just ended.
    # Before Python has read its first line a signal ends it by itself.
    codes = (128 + number,) if sweep.out.exists() else (128 + number, -number)
    if process.returncode not in codes and len(sweep.results()) < len(lab.keys):
        outcome.notes.append(f"exit code {process.returncode}: {said[-300:]}")
    if seconds > SIGNAL_SECONDS:
        outcome.notes.append(f"{seconds:.0f} s to the end")
    states = dict.fromkeys(lab.keys, "KILLED") | dict.fromkeys(sweep.results(), "FINISHED")
    if "KILLED" in states.values():
        fault_tracking.check_states(sweep, said, states, outcome)
    lab.go_on(sweep, outcome, before=before)


def sigint(lab: Lab, outcome: Outcome) -> None:
    _signal(lab, outcome, signal.SIGINT)


def sigterm(lab: Lab, outcome: Outcome) -> None:
    _signal(lab, outcome, signal.SIGTERM)


def sigint_outside_training(lab: Lab, outcome: Outcome) -> None:
    _signal(lab, outcome, signal.SIGINT, in_training=False)


def sigterm_outside_training(lab: Lab, outcome: Outcome) -> None:
    _signal(lab, outcome, signal.SIGTERM, in_training=False)


def second_sigint(lab: Lab, outcome: Outcome) -> None:
    sweep = lab.sweep()
    process = sweep.start()
    must_come(process, sweep.checkpointed)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    finish(process, None)
    if process.returncode != 130 or time.monotonic() - begun > 3:
        outcome.notes.append(
            f"exit code {process.returncode} after {time.monotonic() - begun:.1f} s"
        )
    lab.go_on(sweep, outcome)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size in memory; Unsupported where it cannot be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if subprocess.run(words, capture_output=True).returncode != 0:
        raise Unsupported("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Unsupported(RuntimeError):
    """This machine cannot make the fault happen."""


def _full_disk(lab: Lab, outcome: Outcome, file: str) -> None:
    """The disk is full when the file is written: stopped, not failed; room, and it goes on."""
    lab.count += 1
    with small_disk(lab.folder / f"disk-{lab.count}", 64) as disk:
        sweep = lab.sweep(parent=disk)
        ballast, done = disk / "ballast", lab.folder / f"full-{lab.count}"
        order = {"kind": "full disk", "trial": lab.random.choice(lab.keys), "file": file}
        orders = [order | {"ballast": str(ballast), "done": str(done)}]
        said = sweep.run(3, injected(orders))
        if not done.exists() or "no room" not in said and "No space" not in said:
            outcome.notes.append(f"the disk was not full, or it was not told: {said[-300:]}")
        ballast.unlink()
        lab.go_on(sweep, outcome)


def full_disk_at_a_checkpoint(lab: Lab, outcome: Outcome) -> None:
    _full_disk(lab, outcome, "checkpoint.pt")


def full_disk_at_a_result(lab: Lab, outcome: Outcome) -> None:
    _full_disk(lab, outcome, "result.json")


def full_disk_at_a_metric_line(lab: Lab, outcome: Outcome) -> None:
    _full_disk(lab, outcome, "metrics.jsonl")


def injected(orders: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The environment of a sweep whose trials meet these faults."""
    return {"PYTHONPATH": str(INJECTION), "MPCC_FAULTS": json.dumps(list(orders))}


def half_done(sweep: Sweep) -> list[Path]:
    """Run directories of trials with an evaluation, two intact checkpoints and no result."""
    found = []
    for path in sweep.checkpointed():
        rows = path / "metrics.jsonl"
        if rows.exists() and rows.stat().st_size and len(run_dir.read_checkpoints(path)[0]) == 2:
            found.append(path)
    return found


def half_way(sweep: Sweep) -> bool:
    """Whether two trials are done and another one is half done."""
    return len(sweep.results()) >= 2 and bool(half_done(sweep))


def stopped_half_way(lab: Lab) -> Sweep:
    """A sweep that was interrupted with two trials done and another one half done."""
    for _ in range(TRIES):
        sweep = lab.sweep()
        process = sweep.start()
        come = wait_for(process, partial(half_way, sweep))
        if come:
            process.send_signal(signal.SIGINT)
        finish(process, None)
        if come and half_done(sweep):
            return sweep
    raise SweepFailed(f"{TRIES} sweeps were not stopped with a trial half done")


def _damaged(lab: Lab, outcome: Outcome, damage: Callable[[bytes], bytes]) -> None:
    """Checkpoint and metrics of every trial half done; a result, and metrics, of trials done.

    Nothing of it need be trained again but what lies between two checkpoints.
    """
    sweep = stopped_half_way(lab)
    half, done = half_done(sweep), sorted(sweep.results())
    spoilt = [path / name for path in half for name in ("checkpoint.pt", "metrics.jsonl")]
    spoilt += [sweep.out / "trials" / done[0] / "result.json"]
    spoilt += [sweep.out / "trials" / done[1] / "metrics.jsonl"]
    for file in spoilt:
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        if file.read_bytes() == whole:
            outcome.notes.append(f"{file.name} was not spoilt")
    before = sweep.stand()
    if not all(before[path.name].iteration > 0 for path in half):
        outcome.notes.append("no checkpoint was left to go on from")
    lab.go_on(sweep, outcome, before=before)
    after = sweep.stand()
    for path in half:
        if len(after[path.name].starts) == len(before[path.name].starts):
            outcome.notes.append("a trial half done was not gone on with")


def truncated_files(lab: Lab, outcome: Outcome) -> None:
    _damaged(lab, outcome, lambda data: data[: len(data) // 2])


def empty_files(lab: Lab, outcome: Outcome) -> None:
    _damaged(lab, outcome, lambda data: b"")


def flipped_bits(lab: Lab, outcome: Outcome) -> None:
    """Several bits anywhere, of a checkpoint in its head and in what follows."""

    def flip(data: bytes) -> bytes:
        spoilt = bytearray(data)
        head = CHECKPOINT_HEAD
        places = [lab.random.randrange(len(data)) for _ in range(lab.random.randint(1, 6))]
        if data.startswith(b"mpcc checkpoint") and lab.random.random() < 0.5:
            places += [lab.random.randrange(head), lab.random.randrange(head, len(data))]
        for at in set(places):
            spoilt[at] ^= 1 << lab.random.randrange(8)
        return bytes(spoilt)

    _damaged(lab, outcome, flip)


class Canary:
    """A pickle that would leave a file behind if it were loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickle_that_would_run_code(lab: Lab, outcome: Outcome) -> None:
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
        seal = hashlib.sha256(content).hexdigest().encode() + b"\n"
        (path / "checkpoint.pt").write_bytes(magic + seal + content)
        (path / "metrics.jsonl").write_bytes(payload)
    (sweep.out / "trials" / done[0] / "result.json").write_bytes(payload)
    before = sweep.stand()
    before |= {key: replace(before[key], iteration=n) for key, n in fallback.items()}
    lab.go_on(sweep, outcome, before=before)
    if canary.exists():
        outcome.notes.append("the code ran")


def nan_exception_out_of_memory(lab: Lab, outcome: Outcome) -> None:
    """Exactly these three trials are marked, with their causes; retried, they end as the others."""
    kinds = ("nan", "exception", "out of memory")
    hit = dict(zip(kinds, lab.random.sample(lab.keys, 3), strict=True))
    orders = [{"kind": kind, "trial": key, "iteration": 50} for kind, key in hit.items()]
    sweep = lab.sweep()
    said = sweep.run(3, injected(orders))
    results = {key: result for key, (_, result) in sweep.results().items()}
    states = {key: result["state"] for key, result in results.items()}
    wanted = dict.fromkeys(lab.keys, "done") | {hit["nan"]: "diverged"}
    wanted |= {hit["exception"]: "failed", hit["out of memory"]: "failed"}
    if states != wanted:
        outcome.notes.append(f"states {states}, expected {wanted}")
    for kind, words in (("nan", "not finite"), ("exception", "code: "), (kinds[2], kinds[2])):
        if words not in str(results.get(hit[kind], {}).get("cause")):
            outcome.notes.append(f"{kind}: cause {results.get(hit[kind], {}).get('cause')!r}")
    statuses = dict.fromkeys(lab.keys, "FINISHED") | dict.fromkeys(hit.values(), "FAILED")
    fault_tracking.check_states(sweep, said, statuses, outcome)
    _check_marks(sweep, outcome)
    untouched = {k: v for k, v in sweep.stand().items() if states.get(k) == "done"}
    before = lab.reference.stored()
    if any(sweep.stored()[key] != before[key] for key in untouched):
        outcome.notes.append("another trial has other numbers")
    retried = Sweep(sweep.out, (*sweep.argv, "--retry", "failed,diverged"))
    retried.run()
    lab.count_repeats(sweep, untouched, outcome)
    lab.compare(sweep, outcome)


def _check_marks(sweep: Sweep, outcome: Outcome) -> None:
    """The table of a sweep with a diverged and two failed trials says so in their cells."""
    text = "\n".join(sweep.tables().values())
    for word in ("diverged", "failed"):
        if word not in text:
            outcome.notes.append(f"the table does not say that a trial {word}")


def malformed_inputs(lab: Lab, outcome: Outcome) -> None:
    """Command lines, settings, run directories and data files that are wrong: one line, code 2."""
    from tests import malformed_runs

    folder = lab.folder / "malformed"
    found = malformed_runs.run(MALFORMED, 0, folder)
    outcome.notes += found.offences
    outcome.tried += sum(found.tried.values()) - 1


FAULTS: dict[str, tuple[Callable[[Lab, Outcome], None], int]] = {
    "SIGKILL of the driver": (sigkill_of_the_driver, 10),
    "SIGKILL of a trial": (sigkill_of_a_trial, 10),
    "SIGKILL of the raylet": (sigkill_of_the_raylet, 5),
    "SIGINT": (sigint, 5),
    "SIGTERM": (sigterm, 5),
    "out of training: SIGINT": (sigint_outside_training, 3),
    "out of training: SIGTERM": (sigterm_outside_training, 3),
    "second SIGINT": (second_sigint, 1),
    "full disk at a checkpoint": (full_disk_at_a_checkpoint, 1),
    "full disk at a result": (full_disk_at_a_result, 1),
    "full disk at a metric line": (full_disk_at_a_metric_line, 1),
    "MLflow server restarted": (fault_tracking.server_restarted, 1),
    "MLflow server back in time": (fault_tracking.server_back_in_time, 1),
    "MLflow delivered by hand": (fault_tracking.delivered_by_hand, 1),
    "MLflow data base locked": (fault_tracking.database_locked, 1),
    "MLflow data base being made": (fault_tracking.killed_while_the_database_is_made, 3),
    "truncated files": (truncated_files, 1),
    "empty files": (empty_files, 1),
    "flipped bits": (flipped_bits, 1),
    "pickle that would run code": (pickle_that_would_run_code, 1),
    "NaN, exception, out of memory": (nan_exception_out_of_memory, 1),
    "malformed inputs": (malformed_inputs, 1),
}
"""Name -> what happens, and how often by default."""


def attempt(lab: Lab, name: str, times: int) -> Outcome:
    """Let one kind of fault happen so often; an error of its own is a finding too."""
    outcome, before = Outcome(), set(lab.folder.iterdir())
    for _ in range(times):
        try:
            FAULTS[name][0](lab, outcome)
        except Unsupported:
            raise
        except Exception as error:  # whatever it is, the other faults are still to be tried
            text = str(error) if isinstance(error, SweepFailed) else repr(error)
            outcome.notes.append(text)
        outcome.tried += 1
    made = sorted(set(lab.folder.iterdir()) - before)
    if outcome.sound:
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        outcome.notes.append(f"kept for a look: {', '.join(map(str, made))}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--times", type=int, metavar="N", help="instead of the stated numbers")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    for word in args.only:
        if not any(name.lower().startswith(word.lower()) for name in FAULTS):
            parser.error(f"no fault begins with '{word}'; there are: {', '.join(FAULTS)}")
    if args.times is not None and args.times < 1:
        parser.error(f"--times must be at least 1, got {args.times}")
    chosen = [n for n in FAULTS if any(n.lower().startswith(o.lower()) for o in args.only)]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="mpcc-faults-"))
    lab = Lab(folder, args.seed)
    print(f"undisturbed: {len(lab.keys)} trials in {lab.seconds:.0f} s\n")
    print(f"{'fault':<32}{'tried':>6}{'lost':>6}{'twice':>7}{'tables':>12}{'MLflow':>10}  min")
    sound = {name: _report(lab, name, args.times or FAULTS[name][1]) for name in chosen}
    untried = [name for name, found in sound.items() if found is None]
    if untried:
        print(f"\nnot tried on this machine: {', '.join(untried)}")
    if False in sound.values():
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _report(lab: Lab, name: str, times: int) -> bool | None:
    """Whether a fault did no harm; None where it could not be tried."""
    begun = time.monotonic()
    try:
        outcome = attempt(lab, name, times)
    except Unsupported as error:
        print(f"{name:<32}   not tried: {error}", flush=True)
        return None
    tables = f"{outcome.other_tables} differ" if outcome.other_tables else "identical"
    runs = f"{outcome.other_mlflow} differ" if outcome.other_mlflow else "right"
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{name:<32}{outcome.tried:>6}{outcome.lost:>6}{outcome.twice:>7}{tables:>12}{runs:>10}"
        f"{minutes:>5.1f}",
        flush=True,
    )
    for note in outcome.notes:
        print(f"    {note}", flush=True)
    return outcome.sound


if __name__ == "__main__":
    sys.exit(main())
