"""Sweeps as commit 2cd723f left them, and what became of them by its own hand.

Newer code must go on with these folders (`tests/test_old_sweeps.py`), so they are kept and never
made again. The program that made them with a checkout of that commit is in the history:
`git log -- tests/old/make.py`.

    NAME.tar.gz    what lay on the disk: sweep/, the output folder; store/, its storage if any
    NAME.txt       the tables that the old code printed for it, as it was
    expected.json  per folder: the command, the trials as they were, what --status said and, for
                   those that were not finished, the trials after the old code had gone on with a
                   copy; of a search also its points

Left out: pictures, checkpoints of trials that have ended (but of `finished` and `half`), MLflow's
artifacts (but the records among those of `finished`). Everything ran under the host name
`somewhere`, and the place of the files is `/somewhere` in what names it: mlflow.json, storage.json
and mlflow.db. `unpack` puts the new place there. Times of files are kept, and those of locks put
back to 2020: what a dead driver left is old, whatever the clock says where it is unpacked.
"""

import contextlib
import os
import sqlite3
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEUTRAL = "/somewhere"
SWEEP, STORE = "sweep", "store"


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
