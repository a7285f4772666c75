"""What `--grid` and `--seeds` mean: axes, their levels, the cells that they span, seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpcc.config import PRESETS, SHORT, Config, full_name, parse_value, value_text
from tune.plan.cells import Cell, GridError

TABLE1 = ("n_encoder_steps", "prior_lr")
MAX_TRIALS = 100_000


@dataclass(frozen=True)
class Axis:
    """Fields that vary together, and the rows of values that they take."""

    fields: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A parsed `--grid`: its text in one spelling, its axes, and seeds where it names them."""

    text: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Word:
    """An axis as it was typed: its name, and the texts of its values where it has any."""

    name: str
    texts: list[str]


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
    """The levels of an axis that is named without values, None where values are needed."""
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
    typed = _split(words)
    pair = all(field in typed and not typed[field].texts for field in TABLE1)
    seeds: tuple[int, ...] | None = None
    axes: list[Axis] = []
    for field, word in typed.items():
        if field == "seed":
            seeds = _checked_seeds(_values(word)) if word.texts else None
        elif pair and field in TABLE1:
            axes.append(Axis(TABLE1, table1_rows(preset)))
        else:
            axes.append(Axis((field,), tuple((value,) for value in _levels(field, word, preset))))
    return Grid(_canonical(typed), tuple(dict.fromkeys(axes)), seeds)


def cells(base: Config, grid: Grid) -> list[Cell]:
    """The product of the grid's axes, in their order. ValueError for a value out of range."""
    count = math.prod(len(axis.rows) for axis in grid.axes)
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
    wrong = GridError(f"--seeds must be a count or a list like 0,3,7, got '{text}'")
    try:
        numbers = [parse_value("seed", part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise wrong from None
    if not numbers:
        raise wrong
    if "," in text:
        return _checked_seeds(numbers)
    if not 1 <= numbers[0] <= MAX_TRIALS:
        raise GridError(f"--seeds must be between 1 and {MAX_TRIALS}, got {text}")
    return tuple(range(numbers[0]))


def _split(words: Iterable[str]) -> dict[str, _Word]:
    """The axes as they were typed, by field."""
    typed: dict[str, _Word] = {}
    if not any(word.strip(", ") for word in words):
        raise GridError("the grid is empty; write --grid esteps,eta_p")
    for word in words:
        texts: list[str] | None = None  # of the axis whose values may go on
        for part in word.split(","):
            name, equals, first = (piece.strip() for piece in part.partition("="))
            if texts is not None and not equals:
                texts.append(name)
                continue
            if not name:
                raise GridError(f"'{word}' in --grid has an empty name; write --grid esteps,eta_p")
            if not equals and name[0].isdigit():
                raise GridError(
                    f"'{name}' in --grid is no axis; values follow each other by commas without "
                    "spaces: --grid esteps=1,2,4"
                )
            field = full_name(name)
            if field in typed:
                raise GridError(f"axis {name} is given twice in --grid")
            if equals and not first:
                raise GridError(f"axis {name} has no values; write --grid {name}=A,B")
            texts = [first] if equals else None
            typed[field] = _Word(name, texts or [])
    return typed


def _levels(field: str, word: _Word, preset: str) -> Sequence[object]:
    """The values of an axis, or the levels of its own."""
    levels = _values(word) if word.texts else default_levels(field, preset)
    if levels is None:
        raise GridError(
            f"axis {word.name} needs values: --grid {word.name}=A,B (only esteps, eta_p, lambda_p, "
            "batch_size and seed have levels of their own)"
        )
    return levels


def _values(word: _Word) -> list[object]:
    """The values of an axis, typed by its field."""
    name = word.name
    values: list[object] = []
    for text in word.texts:
        if not text:
            raise GridError(f"axis {name} has an empty value; write --grid {name}=A,B")
        value = parse_value(name, text)
        if isinstance(value, float) and not math.isfinite(value):
            raise GridError(f"{name} must be a finite number, got '{text}'")
        if value in values:
            raise GridError(f"axis {name} has the value {text} twice")
        values.append(value)
    return values


def _checked_seeds(seeds: Sequence[object]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise GridError(f"seed {twice} is given twice")
    return tuple(Config(seed=seed).seed for seed in seeds if isinstance(seed, int))


def _canonical(typed: Mapping[str, _Word]) -> str:
    """The grid's text with short names: axes without values in one word, the pair first."""
    short = {field: SHORT.get(field, field) for field in typed}
    bare = [short[field] for field, word in typed.items() if not word.texts]
    pair = [name for name in ("esteps", "eta_p") if name in bare]
    words = [",".join([*pair, *(name for name in bare if name not in pair)])] if bare else []
    for field, word in typed.items():
        if word.texts:
            values = (value_text(parse_value(field, text)) for text in word.texts)
            words.append(f"{short[field]}={','.join(values)}")
    return " ".join(words)


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")
