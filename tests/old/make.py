"""Make this folder: sweeps as commit 2cd723f left them, and what became of them by its own hand.

    git worktree add ../old 2cd723f              # a clean checkout, with its environment
    ../old/.venv/bin/python tests/old/make.py ../old [--work DIR] [--keep] [NAME ...]

Newer code must go on with these folders (`tests/test_old_sweeps.py`), so they are kept and never
made again by newer code. The interrupted ones come out a little otherwise each time: how far they
were is wherever the signal met them. It takes five minutes on two cores; with --keep half of that:
then the archives stay, and what the old code says of them is written anew.

    NAME.tar.gz    what lay on the disk: sweep/, the output folder; store/, its storage if any
    NAME.txt       the tables that the old code printed for it, as it was
    expected.json  per folder: the command, the trials as they were, what --status said and, for
                   those that were not finished, the trials after the old code had gone on with a
                   copy; of a search also its points

Left out: pictures, checkpoints of trials that have ended (but in KEEP), MLflow's artifacts (but
the records among those of `finished`). Everything runs under the host name `somewhere`, and the
place of the files is `/somewhere` in what names it: mlflow.json, storage.json and mlflow.db.
`unpack` puts the new place there. Times of files are kept, and those of locks put back to 2020:
what a dead driver left is old, whatever the clock says where it is unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMIT = "2cd723f"
NEUTRAL, HOST = "/somewhere", "somewhere"
SWEEP, STORE = "sweep", "store"
ABLATION, SEARCH = "tune/ablation.py", "tune/search.py"
LONG_AGO = 1577836800  # 2020
KEEP = ("finished", "half")
"""Where the checkpoints of finished trials stay: they can be told to go on."""

SHORT = ["--preset", "tiny", "--iterations", "8", "--set", "eval_every=4"]
LONG = ["--preset", "tiny", "--iterations", "200", "--set", "eval_every=50"]
LONG += ["--checkpoint-seconds", "0"]
SPACE = ["--space", "eta_p=1e-3..2e-2:log", "esteps=1..2", "--seeds", "2", "--ahead", "2"]
WORDS = {
    "finished": [ABLATION, *SHORT, "--grid", "esteps=1,2", "--seeds", "2"],
    "half": [ABLATION, *LONG, "--grid", "esteps=1,2,3", "--seeds", "2"],
    "search": [SEARCH, *SHORT, *SPACE, "--points", "5", "--startup", "2"],
    "prune": [SEARCH, *LONG, *SPACE, "--points", "10", "--startup", "3", "--prune", "median"],
    "drivers": [
        *[SEARCH, *LONG, *SPACE, "--points", "5", "--startup", "2", "--max-concurrent", "1"],
    ],
    "leave-one-out": [ABLATION, *SHORT, "--ablate", "no-floor,equal-rates", "--seeds", "2"],
    "storage": [
        *[ABLATION, *LONG, "--grid", "esteps=1,2,3", "--seeds", "2"],
        *["--storage", f"{NEUTRAL}/{STORE}"],
    ],
}
STATES = {
    "half": {"done", "stopped", "planned"},
    "prune": {"done", "pruned", "stopped"},
    "drivers": {"done", "stopped"},
    "storage": {"done", "stopped", "planned"},
}
"""What there must be of those that are not finished: whoever disturbs may come too late."""

LONGER = {"finished": ["--iterations", "12", "--continue-training"]}
"""What a finished one is told beyond its command, to train all its trials further."""


def processor() -> str:
    """The maker of this machine's processor: each has other kernels for the same instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].split() for line in lines if line.startswith("model name"))
    return next(names, ["unknown"])[0]


def unpack(name: str, place: Path) -> Path:
    """Put a folder of old into `place`, as if it had always lain there; returns its sweep.

    storage.json and mlflow.json hold absolute paths, and mlflow.db those of its artifacts: they are
    written anew with this place. Records are left as they are.
    """
    with tarfile.open(HERE / f"{name}.tar.gz") as archive:
        archive.extractall(place, filter="data")
    _move(place, NEUTRAL, str(place))
    return place / SWEEP


def command(words: list[str], root: Path, place: Path) -> list[str]:
    """The command line with these words of expected.json, for a folder unpacked into `place`."""
    program, *rest = (word.replace(NEUTRAL, str(place)) for word in words)
    return [sys.executable, str(root / program), "--out", str(place / SWEEP), *rest]


def tables_text(printed: str) -> str:
    """What make_tables.py prints, but for the lines about where files lie and what to do next."""
    return printed.partition("\nWritten to ")[0] + "\n"


def _move(place: Path, before: str, after: str) -> None:
    """Replace a path in what names one."""
    for file in place.rglob("*.json"):
        if file.name in ("mlflow.json", "storage.json") and before in file.read_text():
            times = file.stat()
            file.write_text(file.read_text().replace(before, after))
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for file in place.rglob("mlflow.db"):
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                change = f"update {table} set {column} = replace({column}, ?, ?)"
                database.execute(change, (before, after))
            database.execute("vacuum")


# -- with the old code -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tests/old by the old code.")
    parser.add_argument("checkout", type=Path, help=f"a clean checkout of {COMMIT}")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweep"), help="where to run them")
    parser.add_argument("--keep", action="store_true", help="keep the archives, read them anew")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, of: " + str([*WORDS]))
    args = parser.parse_args()
    if socket.gethostname() != HOST:  # No name of a machine in what is kept.
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        again = ["sh", "-c", f'hostname {HOST} && exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvp("unshare", ["unshare", *as_root, "--uts", *again])
    checkout = args.checkout.resolve()
    git = [
        "git",
        "-C",
        str(checkout),
        "describe",
        "--always",
        "--abbrev=7",
        "--dirty",
        "--exclude=*",
    ]
    at = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    if at != COMMIT:
        sys.exit(f"{checkout} is at {at}, not at {COMMIT}")
    sys.path.insert(0, str(checkout))
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MPCC_CACHE_DIR"] = str(args.work / "cache")
    os.environ["MPCC_SCRATCH_DIR"] = str(args.work / "scratch")
    os.environ.pop("MPCC_DATA_DIR", None)

    file = HERE / "expected.json"
    expected = json.loads(file.read_text()) if file.exists() else {"folders": {}}
    for name in args.names or WORDS:
        print(f"{name} …", flush=True)
        if not args.keep:
            make(name, checkout, args.work / name)
        expected["folders"][name] = look(name, checkout, args.work / f"{name}-read")
        expected["folders"][name] |= go_on(name, checkout, args.work / f"{name}-gone-on")
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    expected |= {"code": COMMIT, "torch": torch.__version__, "cpu_capability": capability}
    expected["processor"] = processor()
    order = {name: expected["folders"][name] for name in WORDS if name in expected["folders"]}
    expected["folders"] = order
    file.write_text(json.dumps(expected, indent=1, sort_keys=False, ensure_ascii=False) + "\n")


def make(name: str, checkout: Path, place: Path) -> None:
    """Run it, disturb it where that belongs to it, and pack what it leaves."""
    from benchmarks.fault_tools import cut_power, must_come

    _fresh(place)
    out, store = place / SWEEP, place / STORE
    process = _start(WORDS[name], checkout, place)
    if name in ("half", "prune"):
        wanted = {"half": "done", "prune": "pruned"}[name]
        must_come(process, lambda: wanted in _states(out) and _cut_off(out))
        process.send_signal(signal.SIGINT)
        _end(process, 130)
    elif name == "storage":
        must_come(process, lambda: "done" in _states(out) and _cut_off(store))
        cut_power(process)
    elif name == "drivers":
        must_come(process, lambda: any((out / "drivers").glob("*.json")))
        second = _start(WORDS[name], checkout, place)
        must_come(process, lambda: _running(out) == 2 and len(_states(out)) >= 3 and _cut_off(out))
        for driver in (process, second):
            cut_power(driver)
    else:
        _end(process, 0)
    time.sleep(1)
    _strip(name, place)
    _move(place, str(place), NEUTRAL)
    _pack(name, place)


def look(name: str, checkout: Path, place: Path) -> dict[str, Any]:
    """What the old code says of it as it is."""
    _fresh(place)
    out = unpack(name, place)
    status = subprocess.run(
        [sys.executable, str(checkout / WORDS[name][0]), "--out", str(out), "--status"],
        capture_output=True,
        text=True,
    )
    program = str(checkout / "analysis" / "make_tables.py")
    for source, file in (
        (["--runs", str(out)], f"{name}.txt"),
        (["--mlflow", f"sqlite:///{out / 'mlflow.db'}"], f"{name}-mlflow.txt"),
    ):
        if file == f"{name}-mlflow.txt" and name != "finished":
            continue
        tables = subprocess.run(
            [sys.executable, program, *source, "--out", str(place / "tables")],
            capture_output=True,
            text=True,
            check=True,
        )
        (HERE / file).write_text(tables_text(tables.stdout).replace(str(place), NEUTRAL))
    text = status.stdout.replace(str(place), NEUTRAL)
    content = _content(out)
    if not STATES.get(name, {"done"}) <= set(content["states"]):
        sys.exit(f"{name} has come out as {content['states']}: make it again")
    found = {"command": WORDS[name], "status": {"code": status.returncode, "text": text}}
    return found | content


def go_on(name: str, checkout: Path, place: Path) -> dict[str, Any]:
    """What the old code makes of a copy by the same command, or a longer one where it is done."""
    _fresh(place)
    out = unpack(name, place)
    if set(_content(out)["states"]) <= {"done", "pruned"}:
        if name not in LONGER:
            return {}
        words = [*WORDS[name], *LONGER[name]]
        at = words.index("--iterations")
        del words[at : at + 2]  # The first one; the longer one follows.
        _end(_start(words, checkout, place), 0)
        return {"longer": {"command": words} | _content(out)}
    _end(_start(WORDS[name], checkout, place), 0)
    return {"end": _content(out)}


def _content(out: Path) -> dict[str, Any]:
    """Every planned trial as the old ledger sees it; of a search also its points."""
    from tune import ledger

    plan = ledger.read_plan(out)
    assert plan is not None
    trials: dict[str, Any] = {}
    for trial in plan.trials():
        status = ledger.status(out, trial)
        entry = {"cell": trial.cell.text, "seed": trial.seed, "state": status.state}
        trials[trial.key] = entry | {"iteration": status.iteration}
        for name, fields in (
            ("result.json", ("metrics", "weights_sha256")),
            ("provenance.json", ("starts",)),
        ):
            file = ledger.trial_dir(out, trial.key) / name
            if file.exists():
                record = json.loads(file.read_text())
                trials[trial.key] |= {field: record[field] for field in fields}
    states = [trial["state"] for trial in trials.values()]
    found = {"states": {state: states.count(state) for state in sorted(set(states))}}
    if plan.search:
        found["points"] = list(plan.search["points"])
    return found | {"trials": trials}


def _start(words: list[str], checkout: Path, place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(words, checkout, place),
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[str], code: int) -> None:
    out, err = process.communicate(timeout=600)
    if process.returncode != code:
        sys.exit(f"ended with {process.returncode}, not {code}:\n{out}\n{err}")


def _states(out: Path) -> list[str]:
    """How trials have ended so far."""
    found = []
    for file in out.glob("trials/*/result.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text())["state"])
    return found


def _cut_off(out: Path) -> bool:
    """Whether a trial is in the middle: one evaluation of four and a checkpoint."""
    return any(
        (file.parent / "checkpoint.pt").exists() and file.read_bytes().count(b"\n") == 1
        for file in out.glob("trials/*/metrics.jsonl")
    )


def _running(out: Path) -> int:
    """How many drivers have trials in hand."""
    found = 0
    for file in (out / "drivers").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            found += bool(json.loads(file.read_text())["running"])
    return found


def _strip(name: str, place: Path) -> None:
    for picture in place.rglob("*.png"):
        picture.unlink()
    if name != "finished":
        shutil.rmtree(place / SWEEP / "mlflow-artifacts", ignore_errors=True)
    if name not in KEEP:
        for checkpoint in place.rglob("trials/*/checkpoint*"):
            if (checkpoint.parent / "result.json").exists():
                checkpoint.unlink()


def _pack(name: str, place: Path) -> None:
    """One archive of it, in which nothing names this machine."""
    foreign = [b"/tmp", b"/work", b"/root", b"/home", str(place).encode()]

    def entry(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        is_lock = info.name.endswith("driver.lock") or "/drivers/" in info.name
        info.mtime = LONG_AGO if is_lock else int(info.mtime)
        return info

    with (
        open(HERE / f"{name}.tar.gz", "wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(p for top in (SWEEP, STORE) for p in (place / top).rglob("*")):
            if path.is_file():
                held = [text for text in foreign if text in path.read_bytes()]
                if held:
                    sys.exit(f"{path} names this machine: {held}")
            archive.add(path, str(path.relative_to(place)), recursive=False, filter=entry)


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


if __name__ == "__main__":
    main()
