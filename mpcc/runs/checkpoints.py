"""Checkpoints on disk: newest, one before, and one just being put in place.

    mpcc checkpoint 2
    hash of all that follows
    {"iteration": ..., "rows": [...], "result": ...}
    the state of training, as torch writes it

A checkpoint carries the evaluations up to its iteration, and one at the end the result, so that a
damaged metrics.jsonl or result.json is written again from it instead of being trained again. All of
it but the last part is read without torch. Version 1, of earlier code, has the state alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcc.runs.files import DAMAGED, RunDirError, dumps, read_bytes, set_aside, write_bytes

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"
STAGED_CHECKPOINT = "checkpoint.pt.new"
CHECKPOINTS = (STAGED_CHECKPOINT, CHECKPOINT, PREVIOUS_CHECKPOINT)
"""Newest first. The staged one stays only where a kill came between its writing and its renaming;
so a trial that runs holds up to three files of this size, and one that has ended one."""

_MAGIC = b"mpcc checkpoint 2\n"
_MAGIC_1 = b"mpcc checkpoint 1\n"
_HASH = 65
"""Bytes of a hash and its end of line."""


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint."""

    payload: bytes
    """The state of training, for torch to read."""
    iteration: int | None = None
    """None in a checkpoint of version 1, as are the rows."""
    rows: tuple[dict[str, Any], ...] | None = None
    """The evaluations up to its iteration, as metrics.jsonl had them."""
    result: dict[str, Any] | None = None
    """How the trial ended, where it has."""


def write_checkpoint(
    path: Path,
    payload: bytes,
    *,
    iteration: int = 0,
    rows: Sequence[Mapping[str, Any]] = (),
    result: Mapping[str, Any] | None = None,
) -> None:
    """Replace the checkpoint; the one before stays as a fallback. One is intact at any moment."""
    path = Path(path)
    current, staged = path / CHECKPOINT, path / STAGED_CHECKPOINT
    head = {"iteration": iteration, "rows": list(rows), "result": result}
    content = dumps(head).encode() + b"\n" + payload
    seal = hashlib.sha256(content).hexdigest().encode() + b"\n"
    write_bytes(staged, _MAGIC + seal + content)
    if current.exists():
        os.replace(current, path / PREVIOUS_CHECKPOINT)
    os.replace(staged, current)


def read_checkpoints(path: Path) -> tuple[list[Checkpoint], list[str]]:
    """The intact checkpoints, newest first, and a line for each file that is none."""
    found, problems = [], []
    for name in CHECKPOINTS:
        read = _read(Path(path) / name)
        if isinstance(read, str):
            problems.append(read)
        elif read is not None:
            found.append(read)
    return found, problems


def settle(path: Path) -> dict[str, str]:
    """Leave intact checkpoints only, under their two names; name and line of each set aside.

    Without this the next write would put a damaged file in the place of an intact one.
    """
    path = Path(path)
    problems = {}
    for name in CHECKPOINTS:
        read = _read(path / name)
        if isinstance(read, str):
            problems[name] = read
            _set_aside(path / name)
    staged, current = path / STAGED_CHECKPOINT, path / CHECKPOINT
    if staged.exists():
        if current.exists():
            os.replace(current, path / PREVIOUS_CHECKPOINT)
        os.replace(staged, current)
    return problems


def refuse_foreign_checkpoints(path: Path) -> None:
    """Raise RunDirError for a checkpoint file that another program wrote; damage is no such."""
    for name in CHECKPOINTS:
        file = Path(path) / name
        if file.is_dir():
            raise RunDirError(f"{file} is a folder; move it away to train here")
        if file.exists():
            with file.open("rb") as opened:
                start = opened.read(len(_MAGIC))
            if not any(magic.startswith(start) for magic in (_MAGIC, _MAGIC_1)):
                raise RunDirError(
                    f"{file} is not a checkpoint of this program; move it away to train here"
                )


def _read(file: Path) -> Checkpoint | str | None:
    """The checkpoint in a file, what is wrong with it, or None where there is no file."""
    try:
        data = read_bytes(file)
    except RunDirError as error:
        return str(error)
    if data is None:
        return f"{file} leads nowhere" if file.is_symlink() else None
    if not data.startswith((_MAGIC, _MAGIC_1)):
        return f"{file} is not a checkpoint of this program"
    content = data[len(_MAGIC) + _HASH :]
    seal = hashlib.sha256(content).hexdigest().encode() + b"\n"
    if data[len(_MAGIC) : len(_MAGIC) + _HASH] != seal:
        return f"{file} is damaged ({len(data)} bytes, wrong hash)"
    if data.startswith(_MAGIC_1):
        return Checkpoint(content)
    head, _, payload = content.partition(b"\n")
    try:
        values = json.loads(head)
        rows = tuple({"iteration": int(row["iteration"])} | row for row in values["rows"])
        return Checkpoint(payload, int(values["iteration"]), rows, values["result"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{file} is damaged (its head says nothing)"


def _set_aside(file: Path) -> None:
    """As other damaged files, but one at most: checkpoints are large."""
    aside = file.with_name(f"{file.name}{DAMAGED}")
    if file.is_dir() and not file.is_symlink():
        set_aside(file)
    else:
        if aside.is_dir():
            shutil.rmtree(aside)
        os.replace(file, aside)
