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
from typing import Any

from mpcc.config import SHORT, Config, full_name, parse_value, value_text
from mpcc.options import usable

ROOT = Path(__file__).resolve().parents[1]
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
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def text(self) -> str:
        """As it is typed."""
        more = (":log" if self.log else "") + (f":step={self.step}" if self.step else "")
        return f"{_short(self.field)}={value_text(self.low)}..{value_text(self.high)}{more}"

    def values(self) -> tuple[Any, ...] | None:
        """All that it can take, None for a number that is not whole."""
        if not self.whole:
            return None
        return tuple(range(int(self.low), int(self.high) + 1, self.step or 1))

    def holds(self, value: Any) -> bool:
        """Whether the value lies in it."""
        known = self.values()
        return value in known if known is not None else self.low <= value <= self.high

    def rounded(self, value: Any) -> Any:
        """A number as it is tried: DIGITS significant digits, within the bounds."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS - 1}e}"), self.low), self.high)

    def to_dict(self) -> dict[str, Any]:
        """As JSON and TOML hold it."""
        marks = {"log": self.log, "step": self.step}
        return {"low": self.low, "high": self.high} | {k: v for k, v in marks.items() if v}


@dataclass(frozen=True)
class Choice:
    """One of some values, in no order."""

    field: str
    options: tuple[Any, ...]

    @property
    def text(self) -> str:
        """As it is typed."""
        return f"{_short(self.field)}={','.join(map(value_text, self.options))}"

    def values(self) -> tuple[Any, ...] | None:
        """All that it can take."""
        return self.options

    def holds(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return value in self.options

    def rounded(self, value: Any) -> Any:
        """The value itself."""
        return value


Axis = Range | Choice


@dataclass(frozen=True)
class Space:
    """The settings that a search varies, in the order they were given."""

    axes: tuple[Axis, ...]

    @property
    def text(self) -> str:
        """The space in one spelling, as it is typed after --space."""
        return " ".join(axis.text for axis in self.axes)

    def values_of(self, config: Config) -> dict[str, Any] | None:
        """What these settings are in the space, None where they lie outside."""
        values = {axis.field: getattr(config, axis.field) for axis in self.axes}
        return values if all(axis.holds(values[axis.field]) for axis in self.axes) else None

    def points(self) -> Iterator[dict[str, Any]] | None:
        """Every point of a space of whole numbers and choices; None where there is no end."""
        known = [axis.values() for axis in self.axes]
        if any(values is None for values in known):
            return None
        names = [axis.field for axis in self.axes]
        every = itertools.product(*(values for values in known if values is not None))
        return (dict(zip(names, values, strict=True)) for values in every)

    def to_dict(self) -> dict[str, Any]:
        """Field -> its range or its options, as JSON and TOML hold them."""
        return {
            axis.field: list(axis.options) if isinstance(axis, Choice) else axis.to_dict()
            for axis in self.axes
        }


def parse_space(words: Sequence[str], base: Config) -> Space:
    """The space that `--space WORD...` means: axes, or TOML files of axes.

    Raises SpaceError or the setting's own ValueError, in one line: unknown or repeated settings,
    bounds in the wrong order or out of the setting's range, a logarithm of 0, a single value.
    """
    axes: list[Axis] = []
    for word in words:
        if "=" in word:
            axes.append(_axis_of_word(word, base))
        elif word.strip():
            axes += space_of_dict(_read(word), base).axes
    return _checked(axes)


def space_of_dict(values: Mapping[str, Any], base: Config) -> Space:
    """The space of a table of axes, as TOML and sweep.json hold it; raises as `parse_space`."""
    return _checked([_axis_of_entry(name, entry, base) for name, entry in values.items()])


def _checked(axes: Sequence[Axis]) -> Space:
    if not axes:
        raise SpaceError("the space is empty; write --space eta_p=1e-3..2e-2:log esteps=1..6")
    names = [axis.field for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise SpaceError(f"{_short(name)} is given twice in the space")
    return Space(tuple(axes))


def _read(name: str) -> dict[str, Any]:
    try:
        path = usable(name)
    except ValueError as error:
        raise SpaceError(f"--space: {error}") from None
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


def _axis_of_word(word: str, base: Config) -> Axis:
    name, _, text = (part.strip() for part in word.partition("="))
    field = _field(name)
    if ".." not in text:
        texts = [part.strip() for part in text.split(",")]
        if not all(texts):
            raise SpaceError(f"{name} has an empty value; write --space {name}=A,B or {name}=A..B")
        return _choice(field, name, [parse_value(name, part) for part in texts], base)
    bounds, *marks = text.split(":")
    low, high = (_number(field, name, part) for part in bounds.split("..", 1))
    log, step = False, None
    for mark in marks:
        if mark == "log":
            log = True
        elif mark.startswith("step="):
            step = _step(name, mark.removeprefix("step="))
        else:
            raise SpaceError(f"unknown ':{mark}' of {name}; available: log, step=N")
    return _range(Range(field, low, high, log, step), name, base)


def _axis_of_entry(name: str, entry: Any, base: Config) -> Axis:
    field = _field(name)
    if isinstance(entry, list):
        return _choice(field, name, entry, base)
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry):
        raise SpaceError(
            f"{name} must be a list of values or {{ low = A, high = B }}, got {entry!r}"
        )
    extra = [key for key in entry if key not in ("low", "high", "log", "step")]
    if extra:
        raise SpaceError(f"unknown '{extra[0]}' of {name}; available: low, high, log, step")
    low, high = (_number(field, name, str(entry[key])) for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"log of {name} must be true or false, got {log!r}")
    step = None if entry.get("step") is None else _step(name, str(entry["step"]))
    return _range(Range(field, low, high, log, step), name, base)


def _field(name: str) -> str:
    field = full_name(name)
    if field == "seed":
        raise SpaceError("seed is no setting to search; give the seeds of a point as --seeds N")
    return field


def _number(field: str, name: str, text: str) -> Any:
    value = parse_value(name, text.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpaceError(f"{name} takes no range; write its values: --space {name}=A,B")
    if not math.isfinite(value):
        raise SpaceError(f"{name} must be a finite number, got '{text}'")
    return value


def _step(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise SpaceError(f"step of {name} must be a whole number of at least 1, got '{text}'")
    return int(text)


def _range(axis: Range, name: str, base: Config) -> Range:
    low, high = axis.low, axis.high
    span = f"{value_text(low)}..{value_text(high)}"
    if not low < high:
        raise SpaceError(f"{name} must go from a lower to a higher value, got {span}")
    if axis.log and low <= 0:
        raise SpaceError(f"{name} on a logarithmic scale must start above 0, got {span}")
    if axis.step and (axis.log or not axis.whole or (high - low) % axis.step):
        raise SpaceError(
            f"step={axis.step} of {name} must divide {span}, whole numbers and not logarithmic"
        )
    for value in (low, high):
        base.override(**{axis.field: value})
    return axis


def _choice(field: str, name: str, values: Sequence[Any], base: Config) -> Choice:
    options = tuple(getattr(base.override(**{field: value}), field) for value in values)
    if len(set(options)) < len(options):
        raise SpaceError(f"{name} has a value twice: {', '.join(map(value_text, options))}")
    if len(options) < 2:
        raise SpaceError(f"{name} has one value; what does not vary is --set {name}=VALUE")
    return Choice(field, options)


def _short(field: str) -> str:
    return SHORT.get(field, field)
