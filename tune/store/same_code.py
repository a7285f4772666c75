"""Trains finished trials anew to see whether changed code matters (`--accept-changed-code`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mpcc.config import Config
from mpcc.runs import run_dir
from mpcc.runs.code_version import code_fingerprints, code_id, latest_code
from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.plan.state import State
from tune.store.folder import Store


def with_equal_code(
    store: Store, plan: Plan, data_dir: Path | None, log: Callable[[str], None]
) -> Plan:
    """The plan, with the earlier code versions that reproduce this version's numbers.

    One trial of each kind is trained anew to its first evaluation. If all its losses and metrics
    equal the record's, tables treat both code versions as one.
    """
    equal, now = dict(plan.equal_code or {}), code_id(code_fingerprints())
    codes: dict[str, dict[object, Trial]] = {}
    for trial in plan.trials():
        if store.status(trial).state == State.DONE:
            provenance = run_dir.read_provenance(store.trial_dir(trial.key))
            code = latest_code(code_id(provenance.get("code_files")), equal)
            if code not in (None, now) and "evaluated_anew" not in provenance:
                codes.setdefault(str(code), {}).setdefault(_kind(trial.config), trial)
    for code, kinds in codes.items():
        log(f"other code: training {len(kinds)} finished trials anew, to their first evaluation")
        for trial in kinds.values():
            from mpcc.training.again import differing  # torch: only when it is needed

            names = differing(store.trial_dir(trial.key), data_dir)
            if names:
                log(
                    f"the codes differ: {', '.join(names[:3])} of {trial.text}; tables keep the "
                    "trials of both apart"
                )
                break
        else:
            log("the codes give equal numbers on these trials: tables count them as one")
            equal[code] = {"code": now, "trials": [trial.key for trial in kinds.values()]}
    return replace(plan, equal_code=equal or None)


def _kind(config: Config) -> object:
    """The settings that decide which code a trial runs: all but numbers."""
    values = config.to_dict().values()
    return tuple(value for value in values if isinstance(value, str | bool))
