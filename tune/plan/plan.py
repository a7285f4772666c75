"""The plan of a sweep: the content of sweep.json.

A plan holds no results: a trial's state is in its run directory. The plan grows, and keeps the keys
of dropped trials (`tune.plan.drop.dropped`), so that tables ignore their records.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from mpcc.config import SHORT, Config, from_record, value_text
from mpcc.runs.code_version import code_fingerprints, code_version
from mpcc.shell import message_of
from tune.plan.cells import Cell, Trial, trials

T = TypeVar("T")

PLAN, TRIALS = "sweep.json", "trials"
STUDY, MLFLOW = "study.db", "mlflow.json"
"""A search writes the first; the second names the runs in MLflow."""
SCHEMA = 1
MAX_TRIALS = 100_000
FULL_MODEL = "full-model"
"""The variant that the others leave one thing out of (`tune.plan.leave_out`)."""


class PlanError(ValueError):
    """The options cannot be planned, or the plan is damaged; the message is one line."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the plan with its planned seeds.

    `_written` omits empty optional fields of this class and of `Plan`.
    """

    cell: Cell
    grids: tuple[str, ...]
    seeds: tuple[int, ...]
    confirm_seeds: tuple[int, ...] = ()
    """Fresh seeds that took no part in choosing this cell (`tune.plan.confirm`)."""
    chosen_on: tuple[int, ...] = ()
    """The seeds whose results chose this cell as the full model of an ablation."""


@dataclass(frozen=True)
class Plan:
    """The content of sweep.json."""

    id: str
    preset: str
    base: Config
    cells: tuple[PlannedCell, ...]
    code: str
    code_files: Mapping[str, str]
    """Module -> fingerprint of the code that the trials are trained by."""
    earlier_iterations: tuple[int, ...] = ()
    """Iterations that were planned before the training was extended."""
    confirm_by: tuple[str, ...] = ()
    """Metrics by which the cells with fresh seeds were chosen (`tune.plan.confirm`)."""
    search: Mapping[str, object] | None = None
    """The content of `tune.suggest.search.Search`; None for a grid."""
    data: Mapping[str, Mapping[str, object]] | None = None
    """`images_name` -> what the first trial recorded of these images: `fingerprint` ..."""
    equal_code: Mapping[str, Mapping[str, object]] | None = None
    """Code id -> the later `code` that gives the same numbers, and the `trials` that showed it."""
    dropped: tuple[str, ...] = ()
    """Keys of the trials that `--drop` took out; a trial that is planned again leaves this list."""

    def trials(self) -> list[Trial]:
        """Every planned trial, cell by cell."""
        return [
            trial
            for planned in self.cells
            for trial in trials(planned.cell, (*planned.seeds, *planned.confirm_seeds))
        ]

    def grow(
        self, cells: Sequence[Cell], seeds: Collection[int], grid: str | None, *, best: bool = False
    ) -> Plan:
        """This plan and these cells with these seeds; what was planned before stays.

        A planned cell keeps its variant; one without a variant can only become the full model.

        grid: the origin of the cells, such as the text of `--grid`.
        best: the full model was chosen by its results; the plan keeps the seeds that chose it.
        PlanError for more trials than one command may plan.
        """
        n_trials = len(cells) * len(seeds)
        if n_trials > MAX_TRIALS:
            raise PlanError(f"{n_trials:,} trials; at most {MAX_TRIALS:,} are allowed")
        known = {planned.cell.key: planned for planned in self.cells}
        for cell in cells:
            old = known.get(cell.key, PlannedCell(cell, (), ()))
            variant = old.cell.variant or (FULL_MODEL if cell.variant == FULL_MODEL else None)
            chosen_on = old.chosen_on
            if best and variant == FULL_MODEL and not chosen_on:
                chosen_on = self.search_seeds if cell.key in self.search_points else old.seeds
            known[cell.key] = PlannedCell(
                Cell(cell.config, {**old.cell.changes, **cell.changes}, variant),
                grids=tuple(dict.fromkeys((*old.grids, grid) if grid else old.grids)),
                seeds=tuple(sorted({*old.seeds, *seeds})),
                confirm_seeds=old.confirm_seeds,
                chosen_on=chosen_on,
            )
        grown = replace(self, cells=tuple(known.values()))
        planned = {trial.key for trial in grown.trials()} if self.dropped else set()
        return replace(grown, dropped=tuple(key for key in self.dropped if key not in planned))

    def extend(self, iterations: int) -> Plan:
        """The plan with every cell at this number of iterations. PlanError if that is not more.

        The course of a trial does not depend on how many iterations are planned, so a trial that
        resumes from the checkpoint of fewer iterations ends at the same numbers as one that was
        planned longer from the start. More iterations are another trial with a key of its own;
        `tune.store` starts its run directory from that of fewer iterations.
        """
        before = {self.base.iterations, *(p.cell.config.iterations for p in self.cells)}
        if before == {iterations}:
            return self
        if iterations <= max(before):
            raise PlanError(
                f"--continue-training needs more than the {max(before)} iterations that are "
                f"planned, got {iterations}"
            )
        longer = self._with_base({"iterations": iterations}, "--continue-training")
        return replace(
            longer, earlier_iterations=tuple(sorted({*self.earlier_iterations, *before}))
        )

    def evaluated(self, changes: Mapping[str, object]) -> Plan:
        """The plan with these changes of evaluation settings (`mpcc.config.EVALUATION`); PlanError
        if one of them is an axis."""
        new = {n: value for n, value in changes.items() if getattr(self.base, n) != value}
        return self._with_base(new, f"--set {', '.join(new)}") if new else self

    def _with_base(self, changes: Mapping[str, object], option: str) -> Plan:
        """The plan with these base settings; cells no longer override these settings."""
        base, cells = self.base.override(**changes), [planned.cell for planned in self.cells]
        moved: dict[str, Cell] = {}
        for cell in cells:
            kept = {name: value for name, value in cell.changes.items() if name not in changes}
            moved[cell.key] = Cell.of(base, kept, cell.variant)
        if len({cell.key for cell in moved.values()}) < len(moved):
            name = next(n for n in changes if any(n in cell.changes for cell in cells))
            raise PlanError(f"{option}: {name} is an axis here; add a value to the axis instead")
        planned = tuple(replace(p, cell=moved[p.cell.key]) for p in self.cells)
        points = [moved[key].key for key in self.search_points]
        search = self.search and {**self.search, "points": points}
        return replace(self, base=base, cells=planned, search=search)

    @property
    def search_points(self) -> tuple[str, ...]:
        """Cell keys of the search's points, by number; none for a grid."""
        return _texts((self.search or {}).get("points", []))

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """The seeds of each point of the search; none for a grid."""
        return _seeds((self.search or {}).get("seeds", []))

    def fingerprint_for(self, config: Config) -> str | None:
        """The fingerprint that a trial's images must have, None while it is unknown."""
        known = (self.data or {}).get(images_name(config))
        return str(known["fingerprint"]) if known else None

    def with_data(self, name: str, data: Mapping[str, object]) -> Plan:
        """The plan with a trial's record of its images, unless these images are known already.

        name: their `images_name`. Data without a fingerprint leave the plan as it is.
        """
        known = self.data or {}
        if name in known or not isinstance(data.get("fingerprint"), str):
            return self
        return replace(self, data={**known, name: data})

    def to_dict(self) -> dict[str, object]:
        """The plan as sweep.json holds it."""
        base = {name: value for name, value in self.base.to_dict().items() if name != "seed"}
        cells = [
            {"key": p.cell.key, "changes": p.cell.changes, "variant": p.cell.variant} | _written(p)
            for p in self.cells
        ]
        return {"schema": SCHEMA} | _written(self) | {"base": base, "cells": cells}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Plan:
        """The plan that `to_dict` wrote.

        PlanError for other values; the message continues a line that begins with the file's name:
        `is damaged (...)`, `has schema 2, this version reads 1`.
        """
        if values.get("schema") != SCHEMA:
            raise PlanError(f"has schema {values.get('schema')!r}, this version reads {SCHEMA}")
        try:
            return _read(values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PlanError(f"is damaged ({message_of(error)})") from None


def new_plan(preset: str, base: Config) -> Plan:
    """A plan without cells."""
    start, files = base.override(seed=0), code_fingerprints()
    return Plan(secrets.token_hex(6), preset, start, (), code_version(), files)


def images_name(config: Config) -> str:
    """The name of the images that trials of this data set, split and size share."""
    name = f"{config.dataset}, {config.split}, {config.image_size} pixels"
    if config.image_ground != "white":
        name += f", on {config.image_ground}"
    return name + (", damaged files left out" if config.skip_damaged else "")


def differences(plan: Plan, base: Config) -> dict[str, str]:
    """Setting that differs -> its value in the plan's base settings and in these, as text."""
    was, now = plan.base.to_dict(), base.override(seed=0).to_dict()
    return {
        name: f"{SHORT.get(name, name)}={value_text(was[name])}, now {value_text(now[name])}"
        for name in was
        if was[name] != now[name]
    }


def check_same_base(out: Path, plan: Plan, base: Config) -> None:
    """PlanError that names each setting in which the plan's base settings differ from these."""
    differing = differences(plan, base)
    if differing:
        longer = list(differing) == ["iterations"] and base.iterations > plan.base.iterations
        more = "go on to more iterations with --continue-training, " if longer else ""
        raise PlanError(
            f"{out} was written under other base settings: {', '.join(differing.values())}; "
            f"{more}give the same settings or choose another --out"
        )


def check_same_code(out: Path, plan: Plan) -> None:
    """PlanError that names the modules whose code has changed, apart from comments."""
    was, now = plan.code_files, code_fingerprints()
    changed = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    if changed:
        raise PlanError(
            f"{out} was written by other code: {', '.join(changed)} changed since; "
            "choose another --out, or mix old and new results knowingly with --accept-changed-code"
        )


# -- sweep.json ------------------------------------------------------------------------------------


def _written(record: Plan | PlannedCell) -> dict[str, object]:
    """A record's fields by name, without the cell itself and empty optional fields."""
    values = {f: getattr(record, f.name) for f in fields(record) if f.name != "cell"}
    return {f.name: value for f, value in values.items() if value or f.default is MISSING}


def _read(values: Mapping[str, object]) -> Plan:
    base = from_record(_typed(dict, values["base"]))
    search, data = (_typed(dict, values.get(name) or {}) for name in ("search", "data"))
    _texts(search.get("points", []))
    _seeds(search.get("seeds", []))
    for name, known in data.items():
        if not isinstance(_typed(dict, known)["fingerprint"], str):
            raise ValueError(f"the fingerprint of {name} is no text")
    iterations = _typed(list, values.get("earlier_iterations", []))
    return Plan(
        id=str(values["id"]),
        preset=str(values["preset"]),
        base=base,
        cells=tuple(_read_cell(base, saved) for saved in _typed(list, values["cells"])),
        code=str(values.get("code", "unknown")),
        code_files=_typed(dict, values.get("code_files", {})),
        earlier_iterations=tuple(Config(iterations=n).iterations for n in iterations),
        confirm_by=_texts(values.get("confirm_by", [])),
        search=search or None,
        data=data or None,
        equal_code=_equal_code(values.get("equal_code") or {}),
        dropped=_texts(values.get("dropped", [])),
    )


def _equal_code(value: object) -> Mapping[str, Mapping[str, object]] | None:
    for found in _typed(dict, value).values():
        _texts([found["code"], *_typed(list, found["trials"])])
    return _typed(dict, value) or None


def _read_cell(base: Config, value: object) -> PlannedCell:
    """A cell of sweep.json; its key must follow from the base settings and its changes."""
    saved = {"confirm_seeds": [], "chosen_on": [], **_typed(dict, value)}
    cell = Cell.of(base, _typed(dict, saved["changes"]), saved.get("variant"))
    if cell.key != saved["key"]:
        raise ValueError(f"cell {saved['key']} has other settings")
    seeds = {name: _seeds(saved[name]) for name in ("seeds", "confirm_seeds", "chosen_on")}
    return PlannedCell(cell, _texts(saved["grids"]), **seeds)


def _seeds(value: object) -> tuple[int, ...]:
    return tuple(Config(seed=seed).seed for seed in _typed(list, value))


def _texts(value: object) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in _typed(list, value)):
        raise TypeError(f"{value!r} are no texts")
    return tuple(_typed(list, value))


def _typed(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {'object' if kind is dict else 'list'}")
    return value
