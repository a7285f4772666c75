"""What a sweep has planned: the content of sweep.json.

A plan grows and never shrinks. It holds no results: a trial's state is in its run directory.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpcc.code_version import code_fingerprints, code_version
from mpcc.config import SHORT, Config, from_dict, value_text
from tune.plan.cells import Cell, Trial, trials

PLAN, TRIALS = "sweep.json", "trials"
SCHEMA = 1

FULL_MODEL = "full-model"
"""The variant that the others leave one thing out of (`tune.plan.leave_out`)."""


class PlanError(ValueError):
    """What is asked for does not fit the plan, or the plan is damaged; the message is one line."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the plan with all the seeds that were ever asked for."""

    cell: Cell
    grids: tuple[str, ...]
    seeds: tuple[int, ...]
    variant: str | None = None
    confirm_seeds: tuple[int, ...] = ()
    """Fresh seeds that took no part in choosing this cell (`tune.plan.confirm`)."""
    chosen_on: tuple[int, ...] = ()
    """The seeds whose results chose this cell as the full model of an ablation."""

    def to_dict(self) -> dict[str, object]:
        """The cell as sweep.json holds it."""
        values: dict[str, object] = {
            "key": self.cell.key,
            "changes": self.cell.changes,
            "variant": self.variant,
            "grids": list(self.grids),
            "seeds": list(self.seeds),
        }
        if self.confirm_seeds:
            values["confirm_seeds"] = list(self.confirm_seeds)
        if self.chosen_on:
            values["chosen_on"] = list(self.chosen_on)
        return values


@dataclass(frozen=True)
class Plan:
    """The content of sweep.json."""

    preset: str
    base: Config
    cells: tuple[PlannedCell, ...]
    id: str
    code: str
    code_files: Mapping[str, str]
    """Module -> fingerprint of the code that the trials are trained by."""
    data: Mapping[str, Mapping[str, object]] | None = None
    """`images_name` -> what the first trial recorded of these images: `fingerprint` ..."""
    earlier_iterations: tuple[int, ...] = ()
    """Iterations that were planned before the training was extended (`tune.plan.extend`)."""
    search: Mapping[str, object] | None = None
    """What a search looks for (`tune.suggest`); None for a grid."""
    confirm_by: tuple[str, ...] = ()
    """Metrics by which the cells with fresh seeds were chosen (`tune.plan.confirm`)."""

    def trials(self) -> list[Trial]:
        """Every planned trial, cell by cell."""
        return [
            trial
            for planned in self.cells
            for trial in trials(planned.cell, (*planned.seeds, *planned.confirm_seeds))
        ]

    def grow(self, cells: Iterable[Cell], seeds: Iterable[int], grid: str) -> Plan:
        """This plan and these cells with these seeds; what was planned before stays."""
        seeds = tuple(seeds)
        known = {planned.cell.key: planned for planned in self.cells}
        for cell in cells:
            old = known.get(cell.key)
            if old is None:
                known[cell.key] = PlannedCell(cell, (grid,), tuple(sorted(seeds)))
            else:
                changes = {**old.cell.changes, **cell.changes}
                known[cell.key] = dataclasses.replace(
                    old,
                    cell=dataclasses.replace(old.cell, changes=changes),
                    grids=tuple(dict.fromkeys((*old.grids, grid))),
                    seeds=tuple(sorted({*old.seeds, *seeds})),
                )
        return dataclasses.replace(self, cells=tuple(known.values()))

    @property
    def search_points(self) -> tuple[str, ...]:
        """Cell keys of the search's points, by number; none for a grid."""
        return _texts((self.search or {}).get("points", []))

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """The seeds that the value of a search's point rests on; none for a grid."""
        return _seeds(self.base, (self.search or {}).get("seeds", []))

    def fingerprint_for(self, config: Config) -> str | None:
        """The fingerprint that a trial's images must have, None where it is not known yet."""
        known = (self.data or {}).get(images_name(config))
        return str(known["fingerprint"]) if known else None

    def with_data(self, name: str, data: Mapping[str, object]) -> Plan:
        """The plan with what a trial recorded of its images, where they are not known yet.

        name: their `images_name`. Data without a fingerprint leave the plan as it is.
        """
        known = self.data or {}
        if name in known or not isinstance(data.get("fingerprint"), str):
            return self
        return dataclasses.replace(self, data={**known, name: data})

    def to_dict(self) -> dict[str, object]:
        """The plan as sweep.json holds it."""
        base = {name: value for name, value in self.base.to_dict().items() if name != "seed"}
        values: dict[str, object] = {
            "schema": SCHEMA,
            "id": self.id,
            "preset": self.preset,
            "base": base,
            "cells": [planned.to_dict() for planned in self.cells],
            "code": self.code,
            "code_files": dict(self.code_files),
        }
        if self.earlier_iterations:
            values["earlier_iterations"] = list(self.earlier_iterations)
        if self.confirm_by:
            values["confirm_by"] = list(self.confirm_by)
        if self.search:
            values["search"] = dict(self.search)
        if self.data:
            values["data"] = dict(self.data)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Plan:
        """The plan that `to_dict` wrote.

        PlanError where it is none; the message continues a line that begins with the file's name:
        `is damaged (...)`, `has schema 2, this version reads 1`.
        """
        if values.get("schema") != SCHEMA:
            raise PlanError(f"has schema {values.get('schema')!r}, this version reads {SCHEMA}")
        try:
            return _plan(values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlanError(f"is damaged ({reason})") from None


def new_plan(preset: str, base: Config) -> Plan:
    """A plan without cells."""
    files = code_fingerprints()
    return Plan(preset, base.override(seed=0), (), secrets.token_hex(6), code_version(), files)


def images_name(config: Config) -> str:
    """The name of the images that trials of this data set, split and size share."""
    return f"{config.dataset}, {config.split}, {config.image_size} pixels"


def check_same_base(out: Path, plan: Plan, base: Config) -> None:
    """PlanError that names each setting in which the plan's base settings differ from these."""
    was, now = plan.base.to_dict(), base.override(seed=0).to_dict()
    differing = [name for name in was if was[name] != now[name]]
    if differing:
        text = ", ".join(
            f"{SHORT.get(name, name)}={value_text(was[name])}, now {value_text(now[name])}"
            for name in differing
        )
        longer = differing == ["iterations"] and now["iterations"] > was["iterations"]
        more = "go on to more iterations with --continue-training, " if longer else ""
        raise PlanError(
            f"{out} was written under other base settings: {text}; "
            f"{more}give the same settings or choose another --out"
        )


def check_same_code(out: Path, plan: Plan) -> None:
    """PlanError that names the modules whose code, comments aside, is not the plan's."""
    now = code_fingerprints()
    changed = [name for name in now if plan.code_files.get(name) != now[name]]
    changed += [name for name in plan.code_files if name not in now]
    if changed:
        raise PlanError(
            f"{out} was written by other code: {', '.join(sorted(changed))} changed since; "
            "choose another --out, or mix old and new results knowingly with --accept-changed-code"
        )


def check_same_data(out: Path, plan: Plan, trials: Iterable[Trial], data_dir: Path | None) -> None:
    """PlanError that names the images on this machine that are not those of the plan."""
    from mpcc.data_cache import fingerprint

    changed = []
    for name, config in {images_name(trial.config): trial.config for trial in trials}.items():
        was = plan.fingerprint_for(config)
        now = None if was is None else fingerprint(config, data_dir)
        if was != now:
            changed.append(f"{name}: fingerprint {was}, now {now}")
    if changed:
        raise PlanError(
            f"{out} was written on other images: {'; '.join(changed)}; "
            "bring the same data or choose another --out"
        )


def _plan(values: Mapping[str, object]) -> Plan:
    base = from_dict(_mapping(values["base"]))
    data = {name: _mapping(known) for name, known in _mapping(values.get("data") or {}).items()}
    for name, known in data.items():
        if not isinstance(known["fingerprint"], str):
            raise ValueError(f"the fingerprint of {name} is no text")
    code_files = _mapping(values.get("code_files", {}))
    iterations = _list(values.get("earlier_iterations", []))
    return Plan(
        preset=str(values["preset"]),
        base=base,
        cells=tuple(_planned_cell(base, _mapping(saved)) for saved in _list(values["cells"])),
        id=str(values["id"]),
        code=str(values.get("code", "unknown")),
        code_files={name: str(fingerprint) for name, fingerprint in code_files.items()},
        data=data or None,
        earlier_iterations=tuple(base.override(iterations=n).iterations for n in iterations),
        search=_search(base, values.get("search")),
        confirm_by=_texts(values.get("confirm_by", [])),
    )


def _planned_cell(base: Config, saved: Mapping[str, object]) -> PlannedCell:
    """A cell of sweep.json; its key must follow from the base settings and its changes."""
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in _mapping(saved["changes"]).items()
    }
    cell, variant = Cell(base.override(**changes), changes), saved.get("variant")
    if cell.key != saved["key"]:
        raise ValueError(f"cell {saved['key']} has other settings")
    return PlannedCell(
        cell,
        grids=_texts(saved["grids"]),
        seeds=tuple(sorted(_seeds(base, saved["seeds"]))),
        variant=None if variant is None else str(variant),
        confirm_seeds=_seeds(base, saved.get("confirm_seeds", [])),
        chosen_on=_seeds(base, saved.get("chosen_on", [])),
    )


def _search(base: Config, value: object) -> Mapping[str, object] | None:
    """A search of sweep.json; only what this module reads of it is checked here."""
    if value is None:
        return None
    search = _mapping(value)
    _texts(search.get("points", []))
    _seeds(base, search.get("seeds", []))
    return search


def _seeds(base: Config, value: object) -> tuple[int, ...]:
    return tuple(base.override(seed=seed).seed for seed in _list(value))


def _texts(value: object) -> tuple[str, ...]:
    texts = [item for item in _list(value) if isinstance(item, str)]
    if len(texts) < len(_list(value)):
        raise TypeError(f"{value!r} are no texts")
    return tuple(texts)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list")
    return list(value)
