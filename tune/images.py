"""Which images the trials of a sweep see: written down early, and the same ones for all.

A trial records the fingerprint of its images before its first iteration. The driver takes it into
sweep.json while that trial runs; from then on a folder is refused where the images are others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcc import run_dir
from mpcc.config import Config
from tune import ledger
from tune.ledger import LedgerError, Plan, Trial


def name_of(config: Config) -> str:
    """The name of the images that trials of this data set, split and size share."""
    return f"{config.dataset}, {config.split}, {config.image_size} pixels"


def expected(plan: Plan, config: Config) -> str | None:
    """The fingerprint that a trial's images must have, where it is known."""
    known = (plan.data or {}).get(name_of(config))
    return known["fingerprint"] if known else None


def learnt(plan: Plan, out: Path, trials: Iterable[Trial]) -> Plan:
    """The plan with what is known of each set of images, once a trial has read them."""
    known = dict(plan.data or {})
    for trial in trials:
        name = name_of(trial.config)
        if name in known:
            continue
        try:
            data = run_dir.read_provenance(ledger.trial_dir(out, trial.key)).get("data") or {}
        except (run_dir.RunDirError, OSError):
            continue
        if isinstance(data.get("fingerprint"), str):
            known[name] = data
    return dataclasses.replace(plan, data=known) if known else plan


def knowing(plan: Plan, data: Mapping[str, Any] | None) -> Plan:
    """The plan with what was known of its images before."""
    return dataclasses.replace(plan, data={**(data or {}), **(plan.data or {})} or None)


def check(plan: Plan, out: Path, todo: Sequence[Trial], data_dir: Path | None) -> None:
    """LedgerError that names the images here that are not those which the folder was begun on."""
    from mpcc.data_cache import fingerprint

    changed = []
    for name, config in {name_of(trial.config): trial.config for trial in todo}.items():
        was = expected(plan, config)
        now = None if was is None else fingerprint(config, data_dir)
        if was != now:
            changed.append(f"{name}: fingerprint {was}, now {now}")
    if changed:
        raise LedgerError(
            f"{out} was written on other images: {'; '.join(changed)}; "
            "bring the same data or choose another --out"
        )
