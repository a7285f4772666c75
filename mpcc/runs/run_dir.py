"""The files of one trial, and how they are read and written: whole or not at all.

    config.json      every field of its Config
    provenance.json  code version, libraries, machine, device, data fingerprint
    metrics.jsonl    one line per evaluation
    checkpoint.pt    the state of training, see `mpcc.runs.checkpoints`; the previous one beside it
    continues.json   iteration counts at which earlier, shorter runs ended
    result.json      how the trial ended: done, diverged, failed or pruned; absent until then
    model.mpcc       the trained model, see `mpcc.runs.model_file`; of a trial that is done
    clusters.csv.gz  the cluster of every image, see `mpcc.runs.clusters`; of a trial that is done
    *.png            pictures

The record here is the truth about a trial; MLflow and the tables are views of it. Provenance and
result are sealed with a hash, the result together with the evaluations, the model and the clusters:
so a damaged number is noticed even if the file is still valid JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mpcc.config import Config, from_record, value_text
from mpcc.runs.checkpoints import CHECKPOINT as CHECKPOINT
from mpcc.runs.checkpoints import CHECKPOINTS as CHECKPOINTS
from mpcc.runs.checkpoints import PREVIOUS_CHECKPOINT as PREVIOUS_CHECKPOINT
from mpcc.runs.checkpoints import STAGED_CHECKPOINT as STAGED_CHECKPOINT
from mpcc.runs.checkpoints import read_checkpoints as read_checkpoints
from mpcc.runs.checkpoints import refuse_foreign_checkpoints as refuse_foreign_checkpoints
from mpcc.runs.checkpoints import write_checkpoint as write_checkpoint
from mpcc.runs.files import SEAL, belongs, dumps, is_sound, quarantine, read_bytes, sealed
from mpcc.runs.files import RunDirError as RunDirError
from mpcc.runs.files import read_json as read_json
from mpcc.runs.files import write_bytes as write_bytes
from mpcc.runs.files import write_json as write_json

CONFIG = "config.json"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
CONTINUES = "continues.json"
RESULT = "result.json"

DONE, DIVERGED, FAILED, PRUNED = "done", "diverged", "failed", "pruned"
ENDED = (DONE, DIVERGED, FAILED, PRUNED)
"""States that a result records; a search prunes trials that it stops before their last iteration. A
trial without a result is planned, running or stopped."""


def open_run(path: Path, config: Config) -> Path:
    """The directory for this trial, created if it is missing.

    RunDirError for a trial of another configuration, naming the difference, or for files of another
    program.
    """
    path = Path(path)
    if check_run(path, config):
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, config.to_dict())
    return path


def check_run(path: Path, config: Config) -> bool:
    """Whether a directory is free for this trial; False if it holds it already. Writes nothing.
    RunDirError if it holds another trial, or files of another program."""
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
            "resume with its own settings or choose another --out"
        )
    refuse_foreign_checkpoints(path)
    return saved is None


def read_config(path: Path) -> Config | None:
    """The configuration of the trial in this directory, or None; RunDirError if it is invalid."""
    values = read_json(Path(path) / CONFIG)
    if values is None:
        return None
    try:
        return from_record(values)
    except (ValueError, TypeError) as error:
        raise RunDirError(f"{Path(path) / CONFIG} does not fit this version: {error}") from None


def read_result(path: Path) -> dict[str, Any] | None:
    """How the trial ended (`state`, `cause`, `metrics`, ...), None while it has not. RunDirError if
    it, or the evaluations that it was recorded with, are damaged."""
    return read_sealed(path)[0]


def read_trial(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """How the trial ended, and its evaluations."""
    result, data = read_sealed(path)
    return result, parse_metrics(path, data)


def read_end(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """How the trial ended, and its last evaluation, empty without one.

    As `read_trial`, but for a trial that is done only the last evaluation is parsed: the seal shows
    that the others are unchanged.
    """
    result, data = read_sealed(path)
    if result is not None and SEAL in result and result["state"] == DONE:
        data = data[data.rfind(b"\n", 0, -1) + 1 :]
    rows = parse_metrics(path, data)
    return result, rows[-1] if rows else {}


def read_sealed(path: Path) -> tuple[dict[str, Any] | None, bytes]:
    """The result, and the content of metrics.jsonl for `parse_metrics`; RunDirError if they do not
    belong together."""
    result = read_result_record(path)
    data = read_bytes(os.path.join(path, METRICS)) or b""
    if result is not None and not belongs(result, METRICS, data):
        raise RunDirError(
            f"{Path(path) / METRICS} is damaged: other rows than {RESULT} was recorded with; "
            "delete the run directory to run the trial again"
        )
    return result, data


def read_result_record(path: Path) -> dict[str, Any] | None:
    """The content of result.json, without a check of metrics.jsonl; RunDirError if damaged."""
    file = os.path.join(path, RESULT)
    result = read_json(file)
    if result is None:
        return None
    if not is_sound(result):
        raise RunDirError(f"{file} is damaged (wrong hash); delete it to run again")
    if result.get("state") not in ENDED:
        raise RunDirError(f"{file} has no state that is known; delete it to run again")
    wrong = _misfit({"metrics": {}, "iteration": None} | result, _RESULT_FIELDS)
    if wrong:
        raise RunDirError(f"{file} has an invalid '{wrong}'; delete it to run again")
    return result


def write_result(
    path: Path,
    values: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]] | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, Any]:
    """Record how a trial ended, sealed together with its evaluations; returns the record.

    rows: the trial's evaluations; None: those in metrics.jsonl. files: name -> content of files
    that are written beside the result and sealed with it.
    """
    file = Path(path) / METRICS
    data = (read_bytes(file) or b"") if rows is None else metrics_text(rows)
    for name, content in files.items():
        write_bytes(Path(path) / name, content)
    record = sealed(values, **{METRICS: data}, **files)
    write_json(Path(path) / RESULT, record)
    return record


def earlier_iterations(path: Path) -> list[int]:
    """Iteration counts at which this trial ended before it was extended; RunDirError if damaged."""
    file = Path(path) / CONTINUES
    found = (read_json(file) or {}).get("iterations") or []
    if not isinstance(found, list) or not all(_is_count(n) and n for n in found):
        raise RunDirError(f"{file} is damaged; delete the run directory to start over")
    return found


def read_provenance(path: Path) -> dict[str, Any]:
    """Content of provenance.json, what a trial ran on; empty without it, RunDirError if damaged."""
    file = Path(path) / PROVENANCE
    found = read_json(file) or {}
    if not is_sound(found):
        raise RunDirError(f"{file} is damaged (wrong hash); delete it to run again")
    wrong = _misfit(found, {"data": _is_object, **dict.fromkeys(_PROVENANCE_TEXTS, _is_text)})
    wrong = wrong or _misfit(found.get("data") or {}, _DATA_FIELDS)
    if wrong:
        raise RunDirError(f"{file} has an invalid '{wrong}'; delete it to run again")
    return found


def write_provenance(path: Path, values: Mapping[str, Any]) -> None:
    """Record what a trial runs on."""
    write_json(Path(path) / PROVENANCE, sealed(values))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The evaluations, by iteration, without an incomplete last line; RunDirError if damaged."""
    return parse_metrics(path, read_bytes(Path(path) / METRICS) or b"")


def parse_metrics(path: Path, data: bytes) -> list[dict[str, Any]]:
    """The rows in the content of metrics.jsonl, as `read_metrics`; path: for the message."""
    lines = data.split(b"\n")
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


def metrics_text(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of metrics.jsonl with these evaluations."""
    return "".join(dumps(row) + "\n" for row in rows).encode()


def write_metrics(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Make metrics.jsonl hold exactly these evaluations."""
    file, text = Path(path) / METRICS, metrics_text(rows)
    try:
        same = (read_bytes(file) or b"") == text
    except RunDirError:
        quarantine(file)
        same = False
    if not same:
        write_bytes(file, text)


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one evaluation."""
    with (Path(path) / METRICS).open("ab") as file:
        file.write(dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _misfit(values: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """The first field whose value has the wrong type; a field may be missing."""
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
    "n_parameters": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
}
_PROVENANCE_TEXTS = ("code", "device", "processor")
_DATA_FIELDS: dict[str, Callable[[Any], bool]] = {
    "dataset": _is_text,
    "fingerprint": _is_text,
    "n_images": _is_count,
    "notes": _is_texts,
}
