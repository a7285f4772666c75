"""Read one run directory as a row of the DataFrame: settings, final state, metrics, provenance.

A record names its trial twice: by the key of its configuration and by the key in its sealed result.
If these keys contradict each other or the folder that the plan gave to the trial, the record is
left out: its row has state `damaged` and says why.
"""

import errno
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis.records.folders import LoadError
from analysis.records.frame import BASELINE, CURVE, DAMAGED, META, PLANNED, RUNNING, STOPPED, number
from mpcc.config import Config, from_record
from mpcc.runs.code_version import code_id
from mpcc.runs.files import SEAL, read_bytes
from mpcc.runs.run_dir import (
    CONFIG,
    METRICS,
    PROVENANCE,
    RESULT,
    RunDirError,
    parse_metrics,
    read_config,
    read_json,
    read_provenance,
    read_sealed,
)
from tune.plan.plan import MLFLOW


def blank(config: Config, sweep: str, *, variant: str | None, planned: bool) -> dict[str, Any]:
    """The row of a trial that left no record."""
    row: dict[str, Any] = dict.fromkeys(META)
    row |= config.to_dict()
    row |= {"sweep": sweep, "trial_key": config.trial_key, "cell_key": config.cell_key}
    row |= {"variant": variant, "planned": planned, "confirm": False}
    return row | {"state": PLANNED, "iteration": 0}


def read_loose(
    path: Path, folder: Path, sweep: str, running: Collection[str], curves: bool
) -> dict[str, Any]:
    """The row of a run directory that is in no plan: its configuration says which trial it is.

    Raises LoadError, with a one-line message, if the configuration does not fit this version.
    """
    try:
        config = from_record(read_json(path / CONFIG) or {})
    except (ValueError, TypeError) as error:
        raise LoadError(f"{path / CONFIG} does not fit this version: {error}") from None
    row = blank(config, sweep, variant=None, planned=False)
    return row | read_record(path, folder, config.trial_key, running, curves)


def read_record(
    path: Path, folder: Path, key: str, running: Collection[str], curves: bool
) -> dict[str, Any]:
    """State, metrics and provenance of a run; state `damaged` if unreadable or not trial `key`."""
    place = path.as_posix().removeprefix(folder.as_posix()).lstrip("/") or "."
    row: dict[str, Any] = {"run_dir": place, "digest": digest(path)}
    try:
        result, content = read_sealed(path)
        provenance = read_provenance(path)
        mlflow = read_json(path / MLFLOW) or {}
        ended = result or {}
        made = parse_metrics(path, content) if result is None or SEAL not in result else []
        check_identity(path, key, ended, provenance, made)
        if curves:
            with suppress(RunDirError):
                rows = parse_metrics(path, content)
                row[CURVE] = [_numbers(one) for one in rows]
    except (RunDirError, OSError) as error:
        return row | {"state": DAMAGED, "cause": str(error).replace(f"{folder}/", "")}
    if result is None:
        metrics = dict(made[-1]) if made else {}
        state = RUNNING if path.name in running else STOPPED
        row |= {"state": state, "iteration": metrics.pop("iteration", 0)}
    else:
        row |= {name: result.get(name) for name in ("state", "cause", "iteration")}
        seconds, sizes = result.get("seconds") or {}, result.get("n_parameters") or {}
        row["seconds_train"] = seconds.get("train")
        row["seconds_evaluate"] = seconds.get("evaluate")
        if {"generator", "encoder"} <= sizes.keys():
            row["n_parameters"] = sizes["generator"] + sizes["encoder"]
        row["sealed"] = SEAL in result
        metrics = result.get("metrics") or {}
    data = provenance.get("data") or {}
    row |= {
        "code": provenance.get("code"),
        "code_id": code_id(provenance.get("code_files")) or provenance.get("code"),
        "device": provenance.get("device"),
        "device_kind": str(provenance.get("device") or "").partition(":")[0] or None,
        "processor": provenance.get("processor"),
        "fingerprint": data.get("fingerprint"),
        "n_images": data.get("n_images"),
        "data_notes": "; ".join(data.get("notes") or []) or None,
    }
    run_id = mlflow.get("run_id")
    row["mlflow_run"] = run_id if isinstance(run_id, str) else None
    row |= _numbers({k: v for k, v in metrics.items() if k not in _NO_METRICS})
    row["unavailable"] = json.dumps(ended.get("unavailable") or {}, sort_keys=True)
    row["failures"] = " ".join(sorted(ended.get("failures") or ()))
    baseline = ended.get("baseline") or {}
    return row | {BASELINE + k: number(v) for k, v in baseline.items()}


def check_identity(
    path: Path,
    key: str,
    result: Mapping[str, Any],
    provenance: Mapping[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Raise RunDirError if a record is not that of trial `key`, or if its seal was removed.

    result, provenance: as read, empty if missing. rows: the evaluations, needed only to check a
    result without a seal. Records of versions before seals have a seal in neither file.
    """
    config = read_config(path)
    if config is not None and config.trial_key != key:
        raise RunDirError(f"{path / CONFIG} is of trial {config.trial_key}, not {key}: left out")
    if result.get("trial_key", key) != key:
        raise RunDirError(f"{path / RESULT} is of trial {result['trial_key']}, not {key}: left out")
    if not result or SEAL in result:
        return
    if SEAL in provenance:
        raise RunDirError(f"{path / RESULT} has lost its seal: left out")
    last, told = (rows[-1] if rows else {}), result.get("metrics") or {}
    differing = [n for n in told if n in last and last[n] != told[n] and n not in _NO_METRICS]
    if differing:
        raise RunDirError(
            f"{path / RESULT} and the last row of {METRICS} differ in {differing[0]}: left out"
        )


_NO_METRICS = ("iteration", "seconds")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as floats; `undefined` lists the names of those recorded as not a number."""
    found = {k: number(v) for k, v in metrics.items()}
    odd = sorted(k for k, v in found.items() if math.isnan(v) and metrics[k] is not None)
    return found | {"undefined": " ".join(odd)}


def digest(path: Path) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over the record files, to detect a change."""
    content = hashlib.sha256()
    for name in (CONFIG, METRICS, RESULT, PROVENANCE):
        try:
            data = read_bytes(f"{path}/{name}") or b""
        except RunDirError:  # a folder, or a pipe: the row says so
            data = str(errno.EISDIR).encode()
        except OSError as error:  # permission denied; the row's cause says so
            data = str(error.errno).encode()
        content.update(f"{name} {len(data)}\n".encode() + data)
    return content.hexdigest()[:12]
