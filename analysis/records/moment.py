"""Records with the metrics of an evaluation other than the last (--at)."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.records.frame import STOPPED, Records, records
from mpcc.config import RANGES
from mpcc.evaluation.metrics import METRICS, NEED_LABELS, metric_name
from mpcc.runs.run_dir import DONE

BEST = "best:"


def at(found: Records, moment: str) -> Records:
    """The records with the metrics of iteration `moment`, or of each trial's best (`best:METRIC`).

    found: loaded with `curves`. A trial that was evaluated at that iteration counts as done, even
    if it did not finish; other trials have no value. METRIC must not need labels (see `checked`).
    Raises ValueError, with a one-line message, if no trial was evaluated there.
    """
    chosen = _chosen(found.evaluations, moment)
    rows = []
    for row in found.trials.to_dict("records"):
        kept = {k: v for k, v in row.items() if k not in found.metrics}
        kept |= {"undefined": "", "unavailable": "{}", "failures": ""}
        if known := chosen.get(row["trial_key"]):
            values = {k: v for k, v in known.items() if k in found.metrics and not math.isnan(v)}
            reached = row["iteration"] if moment.startswith(BEST) else int(known["iteration"])
            kept |= values | {"undefined": known["undefined"]}
            kept |= {"state": DONE, "cause": None, "iteration": reached}
        elif row["state"] == DONE:
            kept |= {"state": STOPPED, "cause": f"no evaluation at {moment}"}
        rows.append(kept)
    if not any(row["state"] == DONE for row in rows):
        all_known = sorted({int(i) for i in found.evaluations.get("iteration", ())})
        shown = ", ".join(map(str, all_known[:8])) + (", …" if len(all_known) > 8 else "")
        raise ValueError(f"no trial was evaluated at {moment}; there are iterations {shown}")
    named = f"the iteration that {moment.removeprefix(BEST)} chose (@best)"
    named = f"iteration {int(moment):,} (@{moment})" if moment.isdecimal() else named
    moved = records(rows, found.sweeps, found.notes)
    return replace(moved, evaluations=found.evaluations, moment=named)


def checked(text: str) -> str:
    """`--at` normalised: an iteration, or `best:METRIC`; ValueError says what is allowed."""
    metric = text.removeprefix(BEST)
    if metric != text:
        metric = metric_name(metric)
        allowed = [n for n, m in METRICS.items() if m.has_better_end and n not in NEED_LABELS]
        if metric not in allowed:
            names = ", ".join(allowed)
            raise ValueError(
                f"--at {text}: an iteration is chosen without labels, by one of {names}"
            )
        return BEST + metric
    if not text.isdecimal() or not 0 < int(text) <= RANGES["iterations"][1]:
        raise ValueError(f"--at must be an iteration or best:METRIC, got '{text}'")
    return str(int(text))


def _chosen(evaluations: pd.DataFrame, moment: str) -> dict[str, dict[Any, Any]]:
    """Trial key -> its evaluation at this moment, for the trials that have one."""
    metric = moment.removeprefix(BEST)
    if not {"iteration" if moment.isdecimal() else metric} <= {*evaluations}:
        return {}
    if moment.isdecimal():
        rows = evaluations[evaluations["iteration"] == int(moment)]
    else:
        known = evaluations.dropna(subset=[metric])
        values = known.groupby("trial_key")[metric]
        rows = known.loc[values.idxmax() if METRICS[metric].higher_is_better else values.idxmin()]
    return {row["trial_key"]: row for row in rows.to_dict("records")}
