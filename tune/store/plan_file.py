"""sweep.json and its sealed copy, which replaces a sweep.json that is lost, damaged or altered.

    sweep.json        the plan (`tune.plan.plan`)
    sweep-copy.json   the same, with a hash of its content; written first

If both are lost, a grid is planned again from the configurations of its trials. A search is not:
its space and its sampler are recorded nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mpcc.config import PRESETS, Config
from mpcc.runs import run_dir
from mpcc.runs.files import RunDirError, is_sound, read_bytes, read_json, sealed, write_json
from tune.plan.cells import Cell
from tune.plan.plan import MLFLOW, PLAN, STUDY, TRIALS, Plan, PlanError, new_plan

COPY = "sweep-copy.json"


def parse_plan(data: bytes | None, where: str, option: str) -> Plan | None:
    """The plan in these bytes, None for none. `where`, `option` go into PlanError's message."""
    try:
        return None if data is None else Plan.from_dict(json.loads(data))
    except (ValueError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, PlanError) else "is damaged (no JSON object)"
        raise PlanError(f"{where} {reason}; choose another {option}") from None


def read_plan(out: Path) -> tuple[Plan | None, str | None]:
    """The plan of a folder, and in one line what was wrong with its file; None for either.

    PlanError if the plan can neither be read nor made again. Nothing is written.
    """
    file, copy, plan, problem = out / PLAN, _copy(out), None, None
    try:
        plan = parse_plan(read_bytes(file), str(file), "--out")
    except (PlanError, RunDirError) as error:
        problem = error
    if copy is not None and plan != copy:
        what = "was missing" if plan is None and problem is None else "was damaged or altered"
        return copy, f"{file} {what}; its copy {COPY} is used"
    if problem is None and plan is not None:
        return plan, None
    plan = _planned_again(out)
    if plan is not None:
        what = "was missing" if problem is None else "was damaged"
        return plan, f"{file} {what}; the grid is planned again from the settings of its trials"
    if problem is not None:
        raise problem
    return None, None


def write_plan(out: Path, values: Mapping[str, object]) -> None:
    """Write the plan and its copy, unless the files already hold it."""
    values = json.loads(json.dumps(values))
    record = sealed({"plan": values})
    if readable(out / COPY) != record:
        write_json(out / COPY, record)
    if readable(out / PLAN) != values:
        write_json(out / PLAN, values)


def _copy(out: Path) -> Plan | None:
    """The plan in the copy, None if the copy is missing, damaged or altered."""
    record = readable(out / COPY)
    plan = record.get("plan")
    if not is_sound(record) or not isinstance(plan, dict):
        return None
    with suppress(PlanError):
        return Plan.from_dict(plan)
    return None


def readable(file: Path) -> dict[str, object]:
    """The object in a file of JSON; empty if the file is missing, damaged or unreadable."""
    with suppress(RunDirError, OSError):
        return read_json(file) or {}
    return {}


def recorded_configs(trials: Path) -> Iterator[Config]:
    """The configurations of the trials in a folder, without damaged or misplaced ones."""
    for folder in sorted(trials.glob("*")):
        with suppress(RunDirError, OSError):
            config = run_dir.read_config(folder)
            if config is not None and config.trial_key == folder.name:
                yield config


def _planned_again(out: Path) -> Plan | None:
    """A grid's plan from its trials' settings, None without trials; PlanError for a search."""
    configs = list(recorded_configs(out / TRIALS))
    if not configs:
        return None
    if (out / STUDY).exists():
        raise PlanError(
            f"{out / PLAN} and {COPY} are lost or damaged, and a search cannot be planned again "
            "from its trials: restore one of the two files, or choose another --out"
        )
    fields = [config.to_dict() for config in configs]
    varied = [n for n in fields[0] if n != "seed" and len({str(f[n]) for f in fields}) > 1]
    settings = configs[0].to_dict()
    preset = min(
        PRESETS,
        key=lambda name: sum(settings[n] != v for n, v in PRESETS[name].to_dict().items()),
    )
    base = configs[0].override(**{name: getattr(PRESETS[preset], name) for name in varied})
    plan = new_plan(preset, base)
    for config in configs:
        changes = {name: getattr(config, name) for name in varied}
        plan = plan.grow([Cell.of(base, changes)], [config.seed], "from the trials' settings")
    known = readable(out / MLFLOW).get("sweep")
    return replace(plan, id=str(known)) if known else plan
