"""Reads `--grid` and `--seeds`: axes, their levels, the cells that they span, seeds."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mpcc.config import (
    DEFAULTS,
    PRESETS,
    SHORT,
    Config,
    dead,
    from_dict,
    full_name,
    parse_value,
    value_text,
    without_dead,
)
from tune.plan.cells import Cell
from tune.plan.plan import MAX_TRIALS, PlanError

TABLE1 = ("n_encoder_steps", "prior_lr")

Axis = list[dict[str, object]]
"""The levels of an axis, each as its changes of the base settings."""


@dataclass(frozen=True)
class Grid:
    """A parsed `--grid`: its text in a standard form, its axes, and the seeds that it names."""

    text: str
    axes: list[Axis]
    seeds: tuple[int, ...]


def table1_rows(preset: str) -> tuple[tuple[int, float], ...]:
    """(E_steps, η_p) of Table 1 scaled to the preset.

    E_steps goes from a quarter to the whole of the preset's at η_p = η, then η_p from η to the
    preset's in two equal steps. The preset `cifar10` gives the paper's rows exactly: (1, 2e-4),
    (2, 2e-4), (4, 2e-4), (4, 4e-4), (4, 6e-4).
    """
    settings = PRESETS[preset]
    full, low, top = settings.n_encoder_steps, settings.network_lr, settings.prior_lr
    quarter, half, middle = max(1, full // 4), max(1, full // 2), _two_digits((low + top) / 2)
    rows = ((quarter, low), (half, low), (full, low), (full, middle), (full, top))
    return tuple(dict.fromkeys(rows))


def default_levels(field: str, preset: str) -> tuple[object, ...] | None:
    """The default levels of an axis, None if it has none."""
    weight, size = PRESETS[preset].prior_entropy_weight, PRESETS[preset].batch_size
    levels: dict[str, Sequence[object]] = {
        **dict(zip(TABLE1, zip(*table1_rows(preset), strict=True), strict=True)),
        "prior_entropy_weight": (0.0, _two_digits(weight / 10), weight, _two_digits(weight * 10)),
        # 25, 50, 64 if the preset has the paper's 50; in Appendix D training fails at 64.
        "batch_size": (max(2, size // 2), size, round(size * 1.28)),
    }
    return tuple(dict.fromkeys(levels[field])) if field in levels else None


def parse_grid(words: Sequence[str], preset: str) -> Grid:
    """The grid that `--grid WORD...` means.

    Raises PlanError, in one line, for an unknown axis, an axis or value given twice, an axis
    without values that has no default levels, and an empty grid.
    """
    if not any(word.strip(", ") for word in words):
        raise PlanError("the grid is empty; write --grid esteps,eta_p")
    typed: dict[str, list[object]] = {}
    for word in words:
        for part in re.split(r",(?=[^,=]*=)", word):  # before each NAME= but the first
            names, equals, texts = part.partition("=")
            for name in (name.strip() for name in names.split(",")):
                field = _field(name, word, preset, bare=not equals)
                if field in typed:
                    raise PlanError(f"axis {name} is given twice in --grid")
                typed[field] = _values(name, texts) if equals else []
    seeds = tuple(from_dict({"seed": seed}).seed for seed in typed.get("seed", []))
    return Grid(_canonical(typed), _axes(typed, preset), seeds)


def cells(base: Config, grid: Grid, planned: Collection[str] = ()) -> list[Cell]:
    """The product of the grid's axes, in their order. ValueError for a value out of range.

    Of cells that differ only in settings without effect, such as K under a normal prior, only the
    first is kept; cells already planned (`planned`: their keys) are always kept.
    """
    count = math.prod(map(len, grid.axes))
    if count > MAX_TRIALS:
        raise PlanError(f"the grid has {count:,} cells; at most {MAX_TRIALS:,} are allowed")
    made, seen = [], set()
    for levels in itertools.product(*grid.axes):
        cell = Cell.of(base, {name: value for level in levels for name, value in level.items()})
        trained = without_dead(cell.config)
        if cell.key in planned or trained not in seen:
            made.append(cell)
        seen.add(trained)
    return made


def merged_cells_note(grid: Grid, cells: Sequence[Cell]) -> str | None:
    """How many of a grid's cells are kept in `cells`, and why; None if all are."""
    count = math.prod(map(len, grid.axes))
    if len(cells) == count:
        return None
    varied = {name for levels in grid.axes for level in levels for name in level}
    idle = varied & {name for cell in cells for name in dead(cell.config)}
    names = " and ".join(SHORT.get(name, name) for name in DEFAULTS if name in idle)
    if idle:
        why = f"some do not depend on {names}"
    else:
        why = "only the ratios of cluster weights have an effect"
    return f"of the grid's {count} cells {len(cells)} are kept: {why}, so duplicates are left out"


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` means the seeds 0 to 4; `0,3,7` these; `7,` the one seed 7."""
    numbers = []
    with suppress(ValueError):
        numbers = [parse_value("seed", part.strip()) for part in text.split(",") if part.strip()]
    if not numbers:
        raise PlanError(f"--seeds must be a count or a list like 0,3,7, got '{text}'")
    if "," not in text:
        if not 1 <= numbers[0] <= MAX_TRIALS:
            raise PlanError(f"--seeds must be between 1 and {MAX_TRIALS}, got {text}")
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        twice = next(seed for seed in numbers if numbers.count(seed) > 1)
        raise PlanError(f"seed {twice} is given twice")
    return tuple(from_dict({"seed": seed}).seed for seed in numbers)


def _field(name: str, word: str, preset: str, *, bare: bool) -> str:
    """The field of the axis `name` in `--grid word`. bare: the axis is given without values."""
    if not name:
        raise PlanError(f"'{word}' in --grid has an empty name; write --grid esteps,eta_p")
    if bare and name[0].isdigit():
        raise PlanError(
            f"'{name}' in --grid is no axis; values follow each other by commas without spaces: "
            "--grid esteps=1,2,4"
        )
    field = full_name(name)
    if bare and field != "seed" and default_levels(field, preset) is None:
        raise PlanError(
            f"axis {name} needs values: --grid {name}=A,B (only esteps, eta_p, lambda_p, "
            "batch_size and seed have default values)"
        )
    return field


def _values(name: str, texts: str) -> list[object]:
    """The values of an axis, typed by its field."""
    values: list[object] = []
    for text in (text.strip() for text in texts.split(",")):
        if not text:
            what = "an empty value" if values else "no values"
            raise PlanError(f"axis {name} has {what}; write --grid {name}=A,B")
        value = parse_value(name, text)
        if isinstance(value, float) and not math.isfinite(value):
            raise PlanError(f"{name} must be a finite number, got '{text}'")
        if value in values:
            raise PlanError(f"axis {name} has the value {text} twice")
        values.append(value)
    return values


def _axes(typed: Mapping[str, Sequence[object]], preset: str) -> list[Axis]:
    """The levels of each axis; Table 1's two axes without values are one axis, its rows."""
    pair = all(field in typed and not typed[field] for field in TABLE1)
    axes: list[Axis] = []
    for field, values in typed.items():
        levels: Axis
        levels = [{field: value} for value in values or default_levels(field, preset) or ()]
        if pair and field in TABLE1:
            levels = [dict(zip(TABLE1, row, strict=True)) for row in table1_rows(preset)]
        if field != "seed" and levels not in axes:
            axes.append(levels)
    return axes


def _canonical(typed: Mapping[str, Sequence[object]]) -> str:
    """The grid's text with short names: axes without values in one word, Table 1's two first."""
    bare = [field for field in dict.fromkeys((*TABLE1, *typed)) if typed.get(field) == []]
    words = [",".join(SHORT.get(field, field) for field in bare)] if bare else []
    for field, values in typed.items():
        if values:
            words.append(f"{SHORT.get(field, field)}={','.join(map(value_text, values))}")
    return " ".join(words)


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")
