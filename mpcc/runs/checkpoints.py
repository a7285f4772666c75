"""Checkpoints on disk: current, previous, staged.

    mpcc checkpoint 2
    hash of all that follows
    {"iteration": ..., "rows": [...], "result": ...}
    the state of training, as torch writes it

A checkpoint holds the evaluations up to its iteration, and the final one also the result, so that a
damaged metrics.jsonl or result.json is written again from it without retraining. All parts but the
last are read without torch. Version 1, of earlier code, holds only the state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcc.runs.files import (
    DAMAGED,
    RunDirError,
    dumps,
    quarantine,
    read_bytes,
    with_hash,
    without_hash,
    write_bytes,
)

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"
STAGED_CHECKPOINT = "checkpoint.pt.new"
CHECKPOINTS = (STAGED_CHECKPOINT, CHECKPOINT, PREVIOUS_CHECKPOINT)
"""Newest first. A staged one stays only after a kill between its writing and its renaming; so a
running trial has up to three files of this size, and an ended trial has one."""

_MAGIC = b"mpcc checkpoint 2\n"
_MAGIC_1 = b"mpcc checkpoint 1\n"


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
    """How the trial ended, if it has."""


def write_checkpoint(
    path: Path,
    payload: bytes,
    *,
    iteration: int = 0,
    rows: Sequence[Mapping[str, Any]] = (),
    result: Mapping[str, Any] | None = None,
) -> None:
    """Replace the checkpoint; the one before stays as a fallback. At least one is always intact."""
    path = Path(path)
    head = {"iteration": iteration, "rows": list(rows), "result": result}
    write_bytes(path / STAGED_CHECKPOINT, with_hash(_MAGIC, dumps(head).encode() + b"\n" + payload))
    _put_in_place(path)


def read_checkpoints(path: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """The intact checkpoints, newest first, and the problem of each unreadable file, by name."""
    found, problems = [], {}
    for name in CHECKPOINTS:
        try:
            found += _read(Path(path) / name)
        except RunDirError as error:
            problems[name] = str(error)
    return found, problems


def quarantine_damaged(path: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """As `read_checkpoints`; quarantines the damaged files and puts a staged one in place. Without
    this the next write would replace an intact file by a damaged one."""
    found, problems = read_checkpoints(path)
    for name in problems:
        _quarantine_latest(Path(path) / name)
    if (Path(path) / STAGED_CHECKPOINT).exists():
        _put_in_place(Path(path))
    return found, problems


def refuse_foreign_checkpoints(path: Path) -> None:
    """Raise RunDirError for another program's checkpoint; damaged files of ours are not refused."""
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


def _read(file: Path) -> list[Checkpoint]:
    """The checkpoint in a file, [] without a file; RunDirError if it is not a sound checkpoint."""
    data = read_bytes(file)
    if data is None:
        if file.is_symlink():
            raise RunDirError(f"{file} leads nowhere")
        return []
    magic = _MAGIC_1 if data.startswith(_MAGIC_1) else _MAGIC
    content = without_hash(data, magic, str(file), "checkpoint")
    if magic == _MAGIC_1:
        return [Checkpoint(content)]
    head, _, payload = content.partition(b"\n")
    try:
        values = json.loads(head)
        rows = tuple({"iteration": int(row["iteration"])} | row for row in values["rows"])
        return [Checkpoint(payload, int(values["iteration"]), rows, values["result"])]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RunDirError(f"{file} is damaged (its head says nothing)") from None


def _put_in_place(path: Path) -> None:
    """Rename the staged checkpoint to the current one, and the current one to the previous one."""
    current = path / CHECKPOINT
    if current.exists():
        os.replace(current, path / PREVIOUS_CHECKPOINT)
    os.replace(path / STAGED_CHECKPOINT, current)


def _quarantine_latest(file: Path) -> None:
    """Quarantine; keep only the newest: checkpoints are large."""
    aside = file.with_name(f"{file.name}{DAMAGED}")
    if file.is_dir() and not file.is_symlink():
        quarantine(file)
    else:
        if aside.is_dir():
            shutil.rmtree(aside)
        os.replace(file, aside)
