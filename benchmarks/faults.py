"""Every fault that a sweep must survive, for real: kills, full disks, dead servers, torn files.

    python benchmarks/faults.py                         all rows that have not passed at this commit
    python benchmarks/faults.py --rows sigint,raylet-killed     some of them
    python benchmarks/faults.py --rows sigint --again --times 1     once more, and only once

After each fault the same command runs again until every trial is done. Then: no trial lost (each
has the result, the weights and the evaluations of an undisturbed sweep), none run twice (a result
is never written again, and no trial starts before the checkpoint that it had), MLflow with one
finished run for each trial, the tables byte for byte those of the undisturbed sweep, and 15 s after
the end of each driver no process left of it and its Ray. Exit code 1 where anything else is found;
its folders are kept then. Each row is added to a file with the commit that it was run at.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import fault_files, fault_folders, fault_places, fault_processes, fault_tracking  # noqa: E402
from benchmarks.fault_files import damaged, full_disk  # noqa: E402
from benchmarks.fault_lab import Lab, Outcome  # noqa: E402
from benchmarks.fault_processes import processes_of_a_killed_driver, signalled  # noqa: E402
from benchmarks.fault_tools import SweepFailed  # noqa: E402
from benchmarks.fault_tracking import server_restarted  # noqa: E402
from benchmarks.rows import machine  # noqa: E402
from mpcc.config import unknown  # noqa: E402

RESULTS = ROOT / "runs" / "faults.jsonl"
CHANGED = "+changes"
FOREIGN = {
    "TUNE_RESULT_DIR": "/nonexistent",
    "RAY_ADDRESS": "127.0.0.1:1",
    "RAY_TMPDIR": "/nonexistent",
    "OMP_NUM_THREADS": "64",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
"""Left in the environment by other projects and notebooks."""

ROWS: dict[str, tuple[Callable[[Lab, Outcome], None], int]] = {
    "driver-killed": (fault_processes.driver_killed, 10),
    "driver-killed-processes": (partial(processes_of_a_killed_driver, seconds=10), 1),
    "worker-stopped": (partial(processes_of_a_killed_driver, seconds=10, stop_worker=True), 1),
    "supervisor-killed": (
        partial(processes_of_a_killed_driver, seconds=60, kill_supervisor=True),
        1,
    ),
    "trial-killed": (fault_processes.trial_killed, 10),
    "worker-killed-at-an-end": (fault_processes.killed_at_an_end, 20),
    "raylet-killed": (fault_processes.raylet_killed, 5),
    "sigint": (partial(signalled, number=signal.SIGINT), 5),
    "sigterm": (partial(signalled, number=signal.SIGTERM), 5),
    "sigint-any-time": (partial(signalled, number=signal.SIGINT, in_training=False), 3),
    "sigterm-any-time": (partial(signalled, number=signal.SIGTERM, in_training=False), 3),
    "second-sigint": (partial(signalled, number=signal.SIGINT, twice=True), 1),
    "full-disk-checkpoint": (partial(full_disk, file="checkpoint.pt"), 1),
    "full-disk-result": (partial(full_disk, file="result.json"), 1),
    "full-disk-metrics": (partial(full_disk, file="metrics.jsonl"), 1),
    "mlflow-restarted": (partial(server_restarted, by_hand=False), 1),
    "mlflow-back-in-time": (fault_tracking.server_back_in_time, 1),
    "mlflow-by-hand": (partial(server_restarted, by_hand=True), 1),
    "mlflow-locked": (fault_tracking.database_locked, 1),
    "mlflow-being-made": (fault_tracking.killed_while_the_database_is_made, 3),
    "truncated-files": (partial(damaged, damage=fault_files.truncate), 1),
    "empty-files": (partial(damaged, damage=fault_files.empty), 1),
    "flipped-bits": (partial(damaged, damage=fault_files.flip), 1),
    "hostile-pickle": (fault_files.hostile_pickle, 1),
    "trials-with-errors": (fault_files.trials_with_errors, 1),
    "malformed-inputs": (fault_files.malformed_inputs, 1),
    "two-on-one-trial": (fault_folders.two_on_one_trial, 1),
    "next-beside-a-driver": (fault_folders.next_beside_a_driver, 1),
    "next-stopped": (fault_folders.interrupted_with_next, 1),
    "disk-full-at-the-start": (fault_folders.full_at_the_start, 1),
    "disk-full-in-the-middle": (fault_folders.full_in_the_middle, 1),
    "folder-read-only": (fault_folders.read_only_in_the_middle, 1),
    "node-disk-full": (fault_folders.node_full_for_a_while, 1),
    "plan-cut": (partial(fault_folders.plan_damaged, damage=fault_files.truncate), 1),
    "plan-emptied": (partial(fault_folders.plan_damaged, damage=fault_files.empty), 1),
    "plan-deleted": (partial(fault_folders.plan_damaged, damage=None), 1),
    "plan-and-copy-deleted": (fault_folders.plan_and_copy_deleted, 1),
    "mlflow-emptied": (partial(fault_folders.database_damaged, content=b""), 1),
    "mlflow-no-database": (partial(fault_folders.database_damaged, content=b"none" * 999), 1),
    "folder-moved": (fault_folders.moved, 1),
    "folder-copied": (fault_folders.copied, 1),
    "trials-swapped": (fault_folders.swapped, 1),
    "namesake-directory": (fault_places.beside_namesakes, 1),
    "home-read-only": (partial(fault_places.with_home, kind="read-only"), 1),
    "home-missing": (partial(fault_places.with_home, kind="missing"), 1),
    "home-slash": (partial(fault_places.with_home, kind="slash"), 1),
    "foreign-variables": (partial(fault_places.in_environment, variables=FOREIGN), 1),
    "two-users": (fault_places.two_users, 1),
    "no-ipv6": (partial(fault_places.under, wrapper=fault_places.WITHOUT_IPV6), 1),
    "host-name-unknown": (partial(fault_places.under, wrapper=fault_places.UNKNOWN_HOST), 1),
    "no-shared-memory": (
        partial(fault_places.under, wrapper=fault_places.WITHOUT_SHARED_MEMORY),
        1,
    ),
    "own-images": (fault_places.own_images, 1),
}
"""Name -> what happens, and how often by default."""


def attempt(lab: Lab, name: str, times: int) -> Outcome:
    """Let one kind of fault happen so often; an error of its own is a finding too."""
    outcome, before, begun = Outcome(), set(lab.folder.iterdir()), time.monotonic()
    lab.random.seed(f"{lab.seed} {name}")  # The same moments, whatever other rows are run.
    for _ in range(times):
        try:
            ROWS[name][0](lab, outcome)
        except Exception as error:  # whatever it is, the other faults are still to be tried
            outcome.notes.append(str(error) if isinstance(error, SweepFailed) else repr(error))
        outcome.tried += 1
        lab.count_left(lab.sessions.known(), outcome)
        lab.sessions.forget()
    made = sorted(set(lab.folder.iterdir()) - before)
    if outcome.sound:
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        outcome.notes.append(f"kept for a look: {', '.join(map(str, made))}")
    outcome.minutes = (time.monotonic() - begun) / 60
    return outcome


def commit() -> str:
    """Return the commit of this code, with `+changes` where the working tree differs."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*"]
    told = subprocess.run([*command, f"--dirty={CHANGED}"], capture_output=True, text=True)
    return told.stdout.strip() or f"unknown{CHANGED}"


def read_results(file: Path, of: str) -> dict[str, Outcome]:
    """Return row -> what came of it when it was last run at this commit."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        values = json.loads(line)
        at, name = values.pop("commit"), values.pop("row")
        if at == of:
            found[name] = Outcome(**values)
    return found


def add_result(file: Path, of: str, name: str, outcome: Outcome) -> None:
    """Add what came of a row to the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps({"commit": of, "row": name, **asdict(outcome)}) + "\n")


def summary(results: dict[str, Outcome], of: str) -> list[str]:
    """Return the lines of a table of all rows, those that were not run at this commit too."""
    heads = ("tried", "lost", "twice", "tables", "MLflow", "left", "minutes")
    lines = [f"at {of}", f"{'row':<26}" + "".join(f"{head:>10}" for head in heads)]
    for name in ROWS:
        found = results.get(name)
        if found is None or found.not_tried:
            reason = "not run" if found is None else f"not tried: {found.not_tried}"
            lines.append(f"{name:<26}   {reason}")
            continue
        tables = f"{found.other_tables} differ" if found.other_tables else "identical"
        runs = f"{found.other_mlflow} differ" if found.other_mlflow else "right"
        cells = (found.tried, found.lost, found.twice, tables, runs, found.left)
        text = "".join(f"{cell:>10}" for cell in (*cells, f"{found.minutes:.1f}"))
        lines.append(f"{name:<26}{text}{'' if found.sound else '   FAILED'}")
        lines += [f"    {note}" for note in found.notes]
    return lines


def options() -> argparse.Namespace:
    """Return the options of the command line; exit code 2 for what is wrong with them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), metavar="NAME,NAME")
    parser.add_argument("--again", action="store_true", help="also what has passed at this commit")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--times", type=int, metavar="N", help="instead of the stated numbers")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    args.rows = [name.strip() for name in args.rows.split(",")]
    for name in args.rows:
        if name not in ROWS:
            parser.error(unknown("row", name, ROWS))
    if args.times is not None and args.times < 1:
        parser.error(f"--times must be at least 1, got {args.times}")
    return args


def run(names: Sequence[str], args: argparse.Namespace, of: str) -> None:
    """Run these rows one after the other, and add each to the results as it ends."""
    folder = Path(tempfile.mkdtemp(prefix="mpcc-faults-"))
    print(machine(), flush=True)
    lab = Lab(folder, args.seed)
    print(f"undisturbed: {len(lab.keys)} trials in {lab.seconds:.0f} s", flush=True)
    sound = True
    try:
        for name in names:
            outcome = attempt(lab, name, args.times or ROWS[name][1])
            if commit() != of:
                outcome.notes.append("the code has changed meanwhile")
            add_result(args.results, of, name, outcome)
            sound &= outcome.sound
            verdict = "sound" if outcome.sound else "FAILED"
            print(f"{name}: {verdict}, {outcome.minutes:.1f} minutes", flush=True)
    finally:  # Ctrl-C reaches no sweep: each is in a session of its own.
        lab.sessions.end()
    if sound:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    args, of = options(), commit()
    known = {} if args.again or of.endswith(CHANGED) else read_results(args.results, of)
    passed = {
        name
        for name, outcome in known.items()
        if outcome.sound
        and not outcome.not_tried
        and outcome.tried >= (args.times or ROWS[name][1])
    }
    todo = [name for name in args.rows if name not in passed]
    if todo:
        run(todo, args, of)
    results = read_results(args.results, of)
    print("\n".join(["", *summary(results, of)]))
    return int(any(not results[name].sound for name in args.rows))


if __name__ == "__main__":
    sys.exit(main())
