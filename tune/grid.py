"""What an ablation varies: axes, their levels, and the cells they span, as plain data.

A cell is a configuration without its seed; a trial is a cell and a seed. Both have stable keys
(`Config.cell_key`, `Config.trial_key`), so the same grid always means the same trials.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mpcc.config import PRESETS, SHORT, Config, full_name, parse_value, value_text

TABLE1 = ("n_encoder_steps", "prior_lr")
MAX_TRIALS = 100_000


class GridError(ValueError):
    """A grid, a choice of seeds or of cells that makes no sense; the message is one line."""


@dataclass(frozen=True)
class Axis:
    """Fields that vary together, and the rows of values that they take."""

    fields: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A parsed `--grid`: its text in one spelling, its axes, and seeds where it names them."""

    text: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One configuration of the grid: what it changes of the base settings, by full field names."""

    config: Config
    changes: dict[str, Any]

    @cached_property
    def key(self) -> str:
        return self.config.cell_key

    @property
    def text(self) -> str:
        return cell_text(self.changes)


def cell_text(changes: Mapping[str, Any]) -> str:
    """What a cell changes as people read it: `esteps=4, eta_p=5e-3`."""
    parts = [f"{SHORT.get(name, name)}={value_text(value)}" for name, value in changes.items()]
    return ", ".join(parts) or "base settings"


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


def default_levels(field: str, preset: str) -> tuple[Any, ...] | None:
    """The levels of an axis given without values, None where values are needed."""
    settings = PRESETS[preset]
    if field in TABLE1:
        column = TABLE1.index(field)
        return tuple(dict.fromkeys(row[column] for row in table1_rows(preset)))
    if field == "prior_entropy_weight":
        weight = settings.prior_entropy_weight
        return (0.0, _two_digits(weight / 10), weight, _two_digits(weight * 10))
    if field == "batch_size":
        # 25, 50, 64 where the preset has the paper's 50; Appendix D has 64 fail.
        size = settings.batch_size
        return tuple(dict.fromkeys((max(2, size // 2), size, round(size * 1.28))))
    return None


def parse_grid(words: Sequence[str], preset: str) -> Grid:
    """The grid that `--grid WORD...` means.

    Raises GridError, in one line, for an unknown axis, an axis or value given twice, an axis
    without values that has no levels of its own, and an empty grid.
    """
    given = _split(words)
    seeds: tuple[int, ...] | None = None
    axes: list[Axis] = []
    both = all(given.get(field, ("?", None))[1] == [] for field in TABLE1)
    for field, (name, texts) in given.items():
        if field == "seed":
            seeds = tuple(_values(field, name, texts)) if texts else None
        elif both and field in TABLE1:
            if field == next(f for f in given if f in TABLE1):
                axes.append(Axis(TABLE1, table1_rows(preset)))
        else:
            levels = _values(field, name, texts) if texts else default_levels(field, preset)
            if levels is None:
                raise GridError(
                    f"axis {name} needs values: --grid {name}=A,B (only esteps, eta_p, lambda_p, "
                    "batch_size and seed have levels of their own)"
                )
            axes.append(Axis((field,), tuple((value,) for value in levels)))
    return Grid(_canonical(given), tuple(axes), seeds)


def cells(base: Config, grid: Grid) -> list[Cell]:
    """The product of the grid's axes, in their order. ValueError for a value out of range."""
    count = 1
    for axis in grid.axes:
        count *= len(axis.rows)
    if count > MAX_TRIALS:
        raise GridError(f"the grid has {count:,} cells; at most {MAX_TRIALS:,} are allowed")
    made = []
    for rows in itertools.product(*(axis.rows for axis in grid.axes)):
        values = {
            field: value
            for axis, row in zip(grid.axes, rows, strict=True)
            for field, value in zip(axis.fields, row, strict=True)
        }
        config = base.override(**values, seed=0)
        made.append(Cell(config, {field: getattr(config, field) for field in values}))
    return made


def check_count(n_trials: int) -> None:
    """GridError for more trials than one command may plan."""
    if n_trials > MAX_TRIALS:
        raise GridError(f"{n_trials:,} trials; at most {MAX_TRIALS:,} are allowed")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` means the seeds 0 to 4; `0,3,7` these; `7,` the one seed 7."""
    try:
        if "," not in text:
            count = parse_value("seed", text)
            if not 1 <= count <= MAX_TRIALS:
                raise GridError(f"--seeds must be between 1 and {MAX_TRIALS}, got {text}")
            return tuple(range(count))
        seeds = [parse_value("seed", part.strip()) for part in text.split(",") if part.strip()]
    except GridError:
        raise
    except ValueError:
        raise GridError(f"--seeds must be a count or a list like 0,3,7, got '{text}'") from None
    if not seeds:
        raise GridError(f"--seeds must be a count or a list like 0,3,7, got '{text}'")
    return tuple(_checked_seeds(seeds))


def chosen(cell: Cell, choice: str) -> bool:
    """Whether `choice` names this cell: settings it has (`esteps=4,eta_p=5e-3`), or its key."""
    if re.fullmatch(r"[0-9a-f]{4,12}", choice):
        return cell.key.startswith(choice)
    for part in re.split(r"[,\s]+", choice.strip()):
        name, equals, text = part.partition("=")
        if not equals:
            raise GridError(
                f"'{choice}' names no cell: give settings like esteps=4, or a cell's key"
            )
        if getattr(cell.config, full_name(name)) != parse_value(name, text):
            return False
    return True


def cost(config: Config) -> float:
    """The expected work of a trial, in units of its own: longer trials are started first."""
    updates = config.n_discriminator_steps + 1 + config.n_encoder_steps
    pixels = config.image_size**2
    return float(config.iterations * updates * config.batch_size * pixels * config.width**2)


def checkpoint_bytes(config: Config) -> int:
    """About how large one checkpoint is: weights, their moving average and Adam's two moments.

    From the layers of Appendix C, without building them: w = 4C channels, a 3×3 convolution has
    9 w² weights.
    """
    w, blocks = 4 * config.width, config.n_generator_blocks
    shared, own = 46 * w * w, 72 * w * w + 4 * w * config.latent_size
    discriminator = shared + 18 * w * w
    places = 2 * config.latent_size * max(1, config.n_latent_places - 1)
    generator = 16 * w * config.latent_size + blocks * (19 * w * w + 4 * w * places)
    generator += blocks * 4 * w * config.n_clusters
    numbers = 4 * generator + 3 * discriminator + 3 * own + 2 * shared
    return 4 * numbers + 100_000


def _split(words: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """Field -> (name as given, texts of its values; none where only the name is given)."""
    given: dict[str, tuple[str, list[str]]] = {}
    if not any(word.strip(", ") for word in words):
        raise GridError("the grid is empty; write --grid esteps,eta_p")
    for word in words:
        current: list[str] | None = None
        for part in word.split(","):
            name, equals, first = (piece.strip() for piece in part.partition("="))
            if current is not None and not equals:
                current.append(name)
                continue
            if not name:
                raise GridError(f"'{word}' in --grid has an empty name; write --grid esteps,eta_p")
            if not equals and name[0].isdigit():
                raise GridError(
                    f"'{name}' in --grid is no axis; values follow each other by commas without "
                    "spaces: --grid esteps=1,2,4"
                )
            field = full_name(name)
            if field in given:
                raise GridError(f"axis {name} is given twice in --grid")
            current = [first] if equals else None
            given[field] = (name, current if current is not None else [])
            if equals and not first:
                raise GridError(f"axis {name} has no values; write --grid {name}=A,B")
    return given


def _values(field: str, name: str, texts: Sequence[str]) -> list[Any]:
    values: list[Any] = []
    for text in texts:
        if not text:
            raise GridError(f"axis {name} has an empty value; write --grid {name}=A,B")
        value = parse_value(name, text)
        if isinstance(value, float) and not math.isfinite(value):
            raise GridError(f"{name} must be a finite number, got '{text}'")
        if value in values:
            raise GridError(f"axis {name} has the value {text} twice")
        values.append(value)
    return _checked_seeds(values) if field == "seed" else values


def _checked_seeds(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise GridError(f"seed {twice} is given twice")
    for seed in seeds:
        Config(seed=seed)
    return seeds


def _canonical(given: Mapping[str, tuple[str, list[str]]]) -> str:
    """The grid's text with short names, one word per axis with values."""
    bare = [SHORT.get(field, field) for field, (_, texts) in given.items() if not texts]
    bare.sort(key=lambda name: name not in ("esteps", "eta_p"))
    if bare[:2] == ["eta_p", "esteps"]:
        bare[:2] = ["esteps", "eta_p"]
    full = [
        f"{SHORT.get(field, field)}={','.join(value_text(parse_value(field, t)) for t in texts)}"
        for field, (_, texts) in given.items()
        if texts
    ]
    return " ".join(([",".join(bare)] if bare else []) + full)


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")
