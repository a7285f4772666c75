"""Groups of trials as CSV, and the companion file that says where every number comes from.

A companion file lists every trial with the digest of its records. With it `--check` finds out
whether tables, a report and figures made with other options still agree with the records.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.records.frame import STATES, Records
from analysis.statistics import stats
from analysis.statistics.factorial import Effect
from analysis.tables.columns import protocol_name
from analysis.tables.compare import Line
from analysis.tables.groups import Group, tally
from mpcc.config import value_text

COMPANION = "-provenance.json"
WHOLE = ("grid", "layout", "search", "report", "figures")
"""Files made from all trials: any new trial makes them stale. Others depend on their own cells."""
_TRIAL_META = ("cell_key", "trial_key", "sweep", "variant", "confirm")
_TRIAL_END = ("code", "device", "fingerprint", "n_images", "seconds_train", "run_dir", "mlflow_run")


def trials_csv(records: Records, groups: Sequence[Group]) -> str:
    """One row per trial: keys, swept settings by their full names, seed, state, every metric.

    `not_finite` names the metrics recorded as infinite or undefined; their columns are empty.
    """
    axes = records.swept
    measured = [name for name in records.trials if name.startswith("baseline/")]
    names = [*records.metrics, *measured]
    header = [*_TRIAL_META, *axes, "seed", "state", "cause", "iteration", *names, *_TRIAL_END]
    rows = []
    for trial in (trial for group in groups for trial in group.trials):
        odd = [n for n in names if math.isinf(trial[n]) or n in trial["undefined"]]
        rows.append([*(trial[name] for name in header), " ".join(odd)])
    return _csv([*header, "not_finite"], rows)


def cells_csv(records: Records, groups: Sequence[Group]) -> str:
    """One row per cell and metric, in recorded units, with the raw value of every seed.

    `seeds` is `fresh` for a cell's seeds that confirm a choice, which have a separate row.
    """
    axes = records.swept
    states = [f"n_{state}" for state in STATES]
    header = ["cell_key", "part", "seeds", "variant", *axes, "metric", "protocol", "n_cell"]
    header += [*states, "n", "mean"]
    header += ["std_ddof1", "t95_low", "t95_high", "median", "min", "max", "n_not_finite", "values"]
    rows = []
    for group in groups:
        seeds = "fresh" if group.confirm else ""
        head = [group.cell_key, group.part, seeds, group.variant]
        head += [group.settings[a] for a in axes]
        counts = [group.counts.get(state, 0) for state in STATES]
        for metric in records.metrics:
            s = group.summary(metric)
            least, median, greatest = np.nan, np.nan, np.nan
            if s.n:
                least, median, greatest = s.array.min(), np.median(s.array), s.array.max()
            values = ";".join(f"{seed}:{float(value)!r}" for seed, value in s.values)
            protocol = protocol_name(metric, group.settings)
            row = [*head, metric, protocol, s.n_planned, *counts, s.n, s.mean.estimate, s.std]
            row += [s.mean.low, s.mean.high, median, least, greatest, len(s.not_finite), values]
            rows.append(row)
    return _csv(header, rows)


def differences_csv(records: Records, lines: Sequence[Line]) -> str:
    """One row per comparison, in recorded units."""
    axes = records.swept
    header = ["metric", "cell_key", "part", *axes, "baseline_key", "n_pair", "difference"]
    header += ["ci95_low", "ci95_high", "hedges_g", "test", "df", "p", "p_holm", "seeds_needed"]
    header += ["verdict"]
    rows = []
    for line in lines:
        group, result = line.group, line.result
        row = [line.metric, group.cell_key, group.part, *(group.settings[a] for a in axes)]
        row += [line.baseline.cell_key, result.difference.n, result.difference.estimate]
        row += [result.difference.low, result.difference.high, result.g, result.test, result.df]
        row += [result.p, line.holm, line.seeds_needed, line.verdict]
        rows.append(row)
    return _csv(header, rows)


def effects_csv(measured: Mapping[str, tuple[list[Effect], str]]) -> str:
    """One row per metric and effect."""
    rows = [
        [m, e.name, e.df, e.f, e.p, e.eta2, remark]
        for m, (found, remark) in measured.items()
        for e in found
    ]
    return _csv(["metric", "effect", "df", "F", "p", "eta2", "remark"], rows)


def companion(records: Records, groups: Sequence[Group], name: str, test: str) -> dict[str, str]:
    """Name -> content of a result's companion file: settings, code, the test and the digest of
    every trial's records."""
    sweeps = [
        {"name": s.name, "axes": list(s.axes), "grids": list(s.grids), "base": dict(s.base)}
        for s in records.sweeps
    ]
    statistics = {"ddof": 1, "confidence": stats.CONFIDENCE, "alpha": stats.ALPHA, "test": test}
    statistics["family"] = "comparisons of one table and metric, Holm"
    content = {
        "table": name,
        "statistics": statistics,
        "selection": f"{records.moment}; {records.selection}",
        "trials_by_state": tally(groups),
        "sweeps": sweeps,
        "notes": list(records.notes),
        "trials": trial_records(groups),
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return {f"{name}{COMPANION}": text}


def trial_records(groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
    """Trial key -> cell, seed, state, digest of the records, code version and MLflow run."""
    return {
        trial["trial_key"]: {
            "cell": group.cell_key,
            "seed": trial["seed"],
            "state": trial["state"],
            "records": trial["digest"],
            "code": trial["code"],
            "mlflow_run": trial["mlflow_run"],
        }
        | ({"seeds": "fresh"} if group.confirm else {})
        for group in groups
        for trial in group.trials
    }


def outdated(out: Path, made: Iterable[str], groups: Iterable[Group]) -> list[str]:
    """Companion files in `out`, except those in `made`, that do not match the current records."""
    now = trial_records(groups)
    skipped = set(made)
    files = [file for file in sorted(out.glob(f"*{COMPANION}")) if file.name not in skipped]
    return [file.name for file in files if _disagrees(file, now)]


def _disagrees(file: Path, now: Mapping[str, Any]) -> bool:
    try:
        known = json.loads(file.read_bytes())["trials"]
        changed = any(key in now and now[key] != known[key] for key in known)
        cells = {trial["cell"] for trial in known.values()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return True
    more = [now[key] for key in now.keys() - known.keys()]
    if file.name.removesuffix(COMPANION) in WHOLE:
        return changed or bool(more)
    return changed or any(trial["cell"] in cells and "seeds" not in trial for trial in more)


def _plain(value: Any) -> Any:
    """A value for CSV: floats at full precision; None, NaN and infinity as an empty field."""
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    if value is None:
        return ""
    return value_text(value) if isinstance(value, (bool, tuple)) else value


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return file.getvalue()
