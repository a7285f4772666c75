"""What one trial leaves on disk, and how it is written: whole or not at all.

    config.json      every field of its Config
    provenance.json  code version, libraries, machine, device, data fingerprint
    metrics.jsonl    one line per evaluation
    checkpoint.pt    the state of training; checkpoint-previous.pt is the one before
    continues.json   after how many iterations it once ended, where it was told to go on
    result.json      how it ended: done, diverged or failed; absent while it has not
    *.png            pictures

The record here is the truth about a trial; MLflow and the tables are views of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpcc.config import Config, from_dict, value_text

CONFIG = "config.json"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"
CONTINUES = "continues.json"
RESULT = "result.json"

DONE, DIVERGED, FAILED, PRUNED = "done", "diverged", "failed", "pruned"
ENDED = (DONE, DIVERGED, FAILED, PRUNED)
"""States that a result records; a search prunes what it gives up before its last iteration. A
trial without a result is planned, running or stopped."""

_MAGIC = b"mpcc checkpoint 1\n"


class RunDirError(ValueError):
    """A file of a run directory is not what it should be; the message names it and what to do."""


def open_run(path: Path, config: Config) -> Path:
    """The directory for this trial, made where it is missing.

    Raises RunDirError when it holds a trial of another configuration, and names the difference.
    """
    path = Path(path)
    if check_run(path, config):
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, config.to_dict())
    return path


def check_run(path: Path, config: Config) -> bool:
    """Whether a directory is free for this trial; False where it holds it already.

    Writes nothing. Raises RunDirError where it holds another trial, or what is none of ours.
    """
    if path.exists() and not path.is_dir():
        raise RunDirError(f"{path} is a file; choose another --out")
    saved = read_config(path)
    if saved is None:
        if path.exists() and any(path.iterdir()):
            raise RunDirError(f"{path} holds other files and no {CONFIG}; choose another --out")
    elif saved != config:
        was, now = saved.to_dict(), config.to_dict()
        name = next(n for n in was if was[n] != now[n])
        raise RunDirError(
            f"{path} holds a run with {name}={value_text(was[name])}, now {value_text(now[name])}: "
            "go on with its own settings or choose another --out"
        )
    refuse_foreign_checkpoints(path)
    return saved is None


def refuse_foreign_checkpoints(path: Path) -> None:
    """Raise RunDirError for a checkpoint file that another program wrote; damage is no such."""
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        file = Path(path) / name
        if file.is_dir():
            raise RunDirError(f"{file} is a folder; move it away to train here")
        if file.exists():
            with file.open("rb") as opened:
                start = opened.read(len(_MAGIC))
            if not _MAGIC.startswith(start):
                raise RunDirError(
                    f"{file} is not a checkpoint of this program; move it away to train here"
                )


def read_config(path: Path) -> Config | None:
    """The configuration of the trial in this directory, None where there is none."""
    values = read_json(Path(path) / CONFIG)
    if values is None:
        return None
    try:
        return from_dict(values)
    except (ValueError, TypeError) as error:
        raise RunDirError(f"{Path(path) / CONFIG} does not fit this version: {error}") from None


def read_result(path: Path) -> dict[str, Any] | None:
    """How the trial ended (`state`, `cause`, `metrics`, ...), None while it has not."""
    file = Path(path) / RESULT
    result = read_json(file)
    if result is None:
        return None
    if result.get("state") not in ENDED:
        raise RunDirError(f"{file} has no state that is known; delete it to run again")
    wrong = _misfit({"metrics": {}, "iteration": None} | result, _RESULT_FIELDS)
    if wrong:
        raise RunDirError(f"{file} has a '{wrong}' that cannot be; delete it to run again")
    return result


def earlier_iterations(path: Path) -> list[int]:
    """After how many iterations this training has ended before it was told to go on."""
    file = Path(path) / CONTINUES
    found = (read_json(file) or {}).get("iterations") or []
    if not isinstance(found, list) or not all(_is_count(n) and n for n in found):
        raise RunDirError(f"{file} is damaged; delete the run directory to start over")
    return found


def read_provenance(path: Path) -> dict[str, Any]:
    """What a trial ran on, the content of provenance.json; empty where there is none."""
    file = Path(path) / PROVENANCE
    found = read_json(file) or {}
    wrong = _misfit(found, {"code": _is_text, "device": _is_text, "data": _is_object})
    wrong = wrong or _misfit(found.get("data") or {}, _DATA_FIELDS)
    if wrong:
        raise RunDirError(f"{file} has a '{wrong}' that cannot be; delete it to run again")
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The evaluations so far, by rising iteration; a torn last line is left out."""
    data = _read(Path(path) / METRICS)
    lines = (data or b"").split(b"\n")
    lines = lines[: -1 if not lines[-1] else None]
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not _is_count(row["iteration"]):
                raise ValueError
            rows[row["iteration"]] = row
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(lines):
                raise RunDirError(
                    f"{Path(path) / METRICS}, line {number} is not a row of metrics; "
                    "delete the run directory to run the trial again"
                ) from None
    return [rows[iteration] for iteration in sorted(rows)]


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one evaluation."""
    with (Path(path) / METRICS).open("ab") as file:
        file.write(_dumps(row, indent=None).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def drop_metrics_after(path: Path, iteration: int) -> None:
    """Forget evaluations later than the checkpoint that training goes on from."""
    rows = read_metrics(path)
    text = "".join(_dumps(r, indent=None) + "\n" for r in rows if r["iteration"] <= iteration)
    if rows:
        write_bytes(Path(path) / METRICS, text.encode())


def write_checkpoint(path: Path, payload: bytes) -> None:
    """Replace the checkpoint; the one before stays as a fallback."""
    path = Path(path)
    current = path / CHECKPOINT
    header = _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    staged = path / (CHECKPOINT + ".new")
    write_bytes(staged, header + payload)
    if current.exists():
        os.replace(current, path / PREVIOUS_CHECKPOINT)
    os.replace(staged, current)


def read_checkpoints(path: Path) -> tuple[list[bytes], list[str]]:
    """The payloads of the intact checkpoints, newest first, and a line for each that is not."""
    payloads, problems = [], []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        file = Path(path) / name
        if not file.exists():
            continue
        data = file.read_bytes()
        header_size = len(_MAGIC) + 65
        payload = data[header_size:]
        digest = hashlib.sha256(payload).hexdigest().encode()
        if not data.startswith(_MAGIC):
            problems.append(f"{file} is not a checkpoint of this program")
        elif data[len(_MAGIC) : header_size - 1] != digest:
            problems.append(f"{file} is damaged ({len(data)} bytes, wrong hash)")
        else:
            payloads.append(payload)
    return payloads, problems


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in this file, None where there is no file."""
    data = _read(path)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise RunDirError(f"{path} is not JSON; delete it to run again") from None
    if not isinstance(value, dict):
        raise RunDirError(f"{path} holds no JSON object; delete it to run again")
    return value


def _read(path: Path) -> bytes | None:
    """The bytes of a file, None where there is none; RunDirError where something else is there."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        # Other errors (rights, a disk that fails) are no damage that a new run may replace.
        if error.errno not in (errno.EISDIR, errno.ELOOP):
            raise
        raise RunDirError(f"{path} is no file ({error.strerror}); delete it to run again") from None


def _misfit(values: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """The first field whose value is not of its kind; a field may be missing."""
    return next((n for n, fits in fields.items() if n in values and not fits(values[n])), None)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**12


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_RESULT_FIELDS: dict[str, Callable[[Any], bool]] = {
    "cause": _is_text,
    "iteration": _is_count,
    "metrics": _is_object,
    "failures": _is_texts,
    "unavailable": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "baseline": _is_object,
    "seconds": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
}
_DATA_FIELDS: dict[str, Callable[[Any], bool]] = {
    "dataset": _is_text,
    "fingerprint": _is_text,
    "n_images": _is_count,
    "notes": _is_texts,
}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically. Infinite and undefined numbers become strings."""
    write_bytes(path, (_dumps(value, indent=1) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old or the new one whole."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no room on the disk for {path}") from None
        raise


def _dumps(value: Mapping[str, Any], indent: int | None) -> str:
    return json.dumps(_finite(value), indent=indent, sort_keys=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
