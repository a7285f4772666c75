"""What a search varies: ranges and choices of settings, from words or a TOML file, as plain data.

    eta_p=1e-3..2e-2:log      any number between, evenly on a logarithmic scale
    esteps=1..6               whole numbers, since the setting is one
    batch_size=25..100:step=25
    lambda_p=0,0.01,0.1       these values, in no order
    prior=gaussian_mixture,laplace_mixture

A TOML file says the same in a table `[space]`; tune/space.toml is one with every form explained.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpcc.config import SHORT, Config, full_name, parse_value, value_text
from mpcc.options import usable

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ROOT = Path(__file__).resolve().parents[2]
TABLE = "space"
DIGITS = 3
"""Significant digits of a number that a search draws: its key and its name in a table are exact."""


class SpaceError(ValueError):
    """A space that makes no sense; the message is one line."""


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included; whole where the bounds are."""

    field: str
    low: float
    high: float
    log: bool = False
    step: int | None = None

    @property
    def text(self) -> str:
        """The axis as it is typed."""
        marks = (":log" if self.log else "") + (f":step={self.step}" if self.step else "")
        return f"{short(self.field)}={value_text(self.low)}..{value_text(self.high)}{marks}"

    @property
    def options(self) -> tuple[object, ...] | None:
        """All values of a range of whole numbers, None for others."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return tuple(range(self.low, self.high + 1, self.step or 1))
        return None

    def distribution(self) -> BaseDistribution:
        """The axis as Optuna knows it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: object) -> object:
        """A number that Optuna has drawn, to DIGITS significant digits and within the bounds."""
        assert isinstance(value, (int, float))
        if self.options is not None:
            return int(value)
        return min(max(float(f"{value:.{DIGITS - 1}e}"), self.low), self.high)

    def to_json(self) -> object:
        """The axis as JSON and TOML hold it."""
        marks = {"log": self.log, "step": self.step}
        return {"low": self.low, "high": self.high} | {k: v for k, v in marks.items() if v}


@dataclass(frozen=True)
class Choice:
    """One of some values, in no order."""

    field: str
    options: tuple[object, ...]

    @property
    def text(self) -> str:
        """The axis as it is typed."""
        return f"{short(self.field)}={','.join(map(value_text, self.options))}"

    def distribution(self) -> BaseDistribution:
        """The axis as Optuna knows it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([category(option) for option in self.options])

    def rounded(self, value: object) -> object:
        """The option that Optuna has drawn."""
        return next(option for option in self.options if category(option) == value)

    def to_json(self) -> object:
        """The axis as JSON and TOML hold it."""
        return list(self.options)


Axis = Range | Choice


@dataclass(frozen=True)
class Space:
    """The settings that a search varies, in the order in which they were given."""

    axes: tuple[Axis, ...]

    @property
    def text(self) -> str:
        """The space in one spelling, as it is typed after --space."""
        return " ".join(axis.text for axis in self.axes)

    def values_of(self, config: Config) -> dict[str, object] | None:
        """The values of these settings in a configuration, None where one lies off its axis."""
        values = {axis.field: getattr(config, axis.field) for axis in self.axes}
        return values if all(holds(axis, values[axis.field]) for axis in self.axes) else None

    def points(self) -> Iterator[dict[str, object]] | None:
        """Every point of a space of whole numbers and choices; None where there is no end."""
        options = [axis.options for axis in self.axes if axis.options is not None]
        if len(options) < len(self.axes):
            return None
        names = [axis.field for axis in self.axes]
        return (dict(zip(names, values, strict=True)) for values in itertools.product(*options))

    def to_dict(self) -> dict[str, object]:
        """Field -> its range or its options, as JSON and TOML hold them."""
        return {axis.field: axis.to_json() for axis in self.axes}


def parse_space(words: Sequence[str], base: Config) -> Space:
    """The space that `--space WORD...` means: axes, or TOML files of axes.

    Raises SpaceError or the setting's own ValueError, in one line: unknown or repeated settings,
    bounds in the wrong order or out of the setting's range, a logarithm of 0, a single value.
    """
    axes: list[Axis] = []
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if equals:
            axes.append(_axis(name, _entry(name, text), base))
        elif name:
            axes += space_of_dict(_read(word), base).axes
    return _checked(axes)


def space_of_dict(values: Mapping[str, object], base: Config) -> Space:
    """The space of a table of axes, as TOML and sweep.json hold it; raises as `parse_space`."""
    return _checked([_axis(name, entry, base) for name, entry in values.items()])


def short(field: str) -> str:
    """The name of a setting as it is typed and as Optuna's study has it."""
    return SHORT.get(field, field)


def category(value: object) -> bool | int | float | str | None:
    """A setting's value as Optuna can hold it: several numbers as their text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value_text(value)


def holds(axis: Axis, value: object) -> bool:
    """Whether the value lies on the axis."""
    if isinstance(axis, Range) and axis.options is None:
        return isinstance(value, (int, float)) and axis.low <= value <= axis.high
    return value in (axis.options or ())


def _checked(axes: Sequence[Axis]) -> Space:
    if not axes:
        raise SpaceError("the space is empty; write --space eta_p=1e-3..2e-2:log esteps=1..6")
    names = [axis.field for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise SpaceError(f"{short(name)} is given twice in the space")
    return Space(tuple(axes))


def _read(name: str) -> dict[str, object]:
    """The table of axes in a TOML file."""
    path = usable(name)
    if not path.is_file() and (ROOT / path).is_file():
        path = ROOT / path  # tune/space.toml, from whatever folder
    if not path.is_file():
        raise SpaceError(
            f"'{name}' in --space is neither a file nor like eta_p=1e-3..2e-2:log or esteps=1,2,4"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpaceError(f"{name} is not TOML: {error}") from None
    others = [key for key in content if key != TABLE]
    table = content.get(TABLE)
    if others or not isinstance(table, dict):
        what = f"has '{others[0]}'" if others else "has no table"
        raise SpaceError(f"{name} {what}: a space file holds the table [{TABLE}] and nothing else")
    return table


def _entry(name: str, text: str) -> object:
    """What follows `name=` in a word, as a table of axes would hold it."""
    if ".." not in text:
        texts = [part.strip() for part in text.split(",")]
        if not all(texts):
            raise SpaceError(f"{name} has an empty value; write --space {name}=A,B or {name}=A..B")
        return [parse_value(name, part) for part in texts]
    bounds, *marks = text.split(":")
    low, high = bounds.split("..", 1)
    entry: dict[str, object] = {"low": low, "high": high}
    for mark in marks:
        if mark == "log":
            entry["log"] = True
        elif mark.startswith("step="):
            entry["step"] = mark.removeprefix("step=")
        else:
            raise SpaceError(f"unknown ':{mark}' of {name}; available: log, step=N")
    return entry


def _axis(name: str, entry: object, base: Config) -> Axis:
    """The axis of an entry in a table of axes."""
    field = full_name(name)
    if field == "seed":
        raise SpaceError("seed is no setting to search; give the seeds of a point as --seeds N")
    if isinstance(entry, list):
        return _choice(field, name, entry, base)
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry):
        raise SpaceError(
            f"{name} must be a list of values or {{ low = A, high = B }}, got {entry!r}"
        )
    extra = [key for key in entry if key not in ("low", "high", "log", "step")]
    if extra:
        raise SpaceError(f"unknown '{extra[0]}' of {name}; available: low, high, log, step")
    low, high = (_number(name, str(entry[key])) for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"log of {name} must be true or false, got {log!r}")
    step = None if entry.get("step") is None else _step(name, str(entry["step"]))
    return _range(Range(field, low, high, log, step), name, base)


def _number(name: str, text: str) -> float:
    value = parse_value(name, text.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpaceError(f"{name} takes no range; write its values: --space {name}=A,B")
    if not math.isfinite(value):
        raise SpaceError(f"{name} must be a finite number, got '{text}'")
    return value


def _step(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise SpaceError(f"step of {name} must be a whole number of at least 1, got '{text}'")
    return int(text)


def _range(axis: Range, name: str, base: Config) -> Range:
    """The range itself; SpaceError where it makes no sense."""
    low, high = axis.low, axis.high
    span = f"{value_text(low)}..{value_text(high)}"
    if not low < high:
        raise SpaceError(f"{name} must go from a lower to a higher value, got {span}")
    if axis.log and low <= 0:
        raise SpaceError(f"{name} on a logarithmic scale must start above 0, got {span}")
    if axis.step and (axis.log or axis.options is None or (high - low) % axis.step):
        raise SpaceError(
            f"step={axis.step} of {name} must divide {span}, whole numbers and not logarithmic"
        )
    for value in (low, high):
        base.override(**{axis.field: value})
    return axis


def _choice(field: str, name: str, values: Sequence[object], base: Config) -> Choice:
    """The choice of these values; SpaceError where it makes no sense."""
    options = tuple(getattr(base.override(**{field: value}), field) for value in values)
    if len(set(options)) < len(options):
        raise SpaceError(f"{name} has a value twice: {', '.join(map(value_text, options))}")
    if len(options) < 2:
        raise SpaceError(f"{name} has one value; what does not vary is --set {name}=VALUE")
    return Choice(field, options)
