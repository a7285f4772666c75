"""The space of a search: ranges and choices of settings, from options or a TOML file, as data.

    eta_p=1e-3..2e-2:log      any number between, evenly on a logarithmic scale
    esteps=1..6               whole numbers, since the setting is one
    batch_size=25..100:step=25
    lambda_p=0,0.01,0.1       these values, in no order
    prior=gaussian_mixture,laplace_mixture

A TOML file says the same in a table `[space]`; tune/space.toml is one with every form explained.
"""

from __future__ import annotations

import itertools
import re
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
TABLE, BOUNDS = "space", ("low", "high")
RANGE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+)(?P<log>:log)?(:step=(?P<step>[1-9]\d*))?")
DIGITS = 3
"""Drawn floats have this many significant digits, so that the printed value is the value used."""


@dataclass(frozen=True)
class Axis:
    """A setting that a search varies, and its values: a range or a choice in no order."""

    field: str
    text: str
    """The values as they are typed."""
    entry: object
    """The values as TOML and sweep.json hold them."""
    distribution: BaseDistribution
    options: Sequence[object] | None = None
    """Every value, None for a continuous range."""

    @property
    def name(self) -> str:
        """The name of the setting as it is typed and as Optuna's study has it."""
        return SHORT.get(self.field, self.field)

    def value(self, drawn: object) -> object:
        """The setting's value for Optuna's draw: a float has at most DIGITS digits."""
        from optuna.distributions import FloatDistribution

        if isinstance(self.distribution, FloatDistribution):
            number = float(f"{drawn:.{DIGITS - 1}e}")
            return min(max(number, self.distribution.low), self.distribution.high)
        return next(option for option in self.options or () if category(option) == drawn)


@dataclass(frozen=True)
class Space:
    """The settings that a search varies, in the order in which they were given."""

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("the space is empty; write --space eta_p=1e-3..2e-2:log esteps=1..6")
        names = [axis.name for axis in self.axes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice in the space")

    def __str__(self) -> str:
        """The space in its standard form, as it is typed after --space."""
        return " ".join(f"{axis.name}={axis.text}" for axis in self.axes)

    def points(self) -> Iterator[dict[str, object]]:
        """Every point of a space of whole numbers and choices; none if a range is continuous."""
        options = [axis.options for axis in self.axes if axis.options is not None]
        names = [axis.field for axis in self.axes]
        if len(options) == len(names):
            for values in itertools.product(*options):
                yield dict(zip(names, values, strict=True))

    def to_dict(self) -> dict[str, object]:
        """Field -> its range or its options, as JSON and TOML hold them."""
        return {axis.field: axis.entry for axis in self.axes}


def parse_space(words: Sequence[str], base: Config) -> Space:
    """The space that `--space WORD...` means: axes, or TOML files of axes.

    Raises ValueError, in one line: unknown or repeated settings,
    bounds in the wrong order or out of the setting's range, a logarithm of 0, a single value.
    """
    axes: list[Axis] = []
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if equals:
            axes.append(_axis(name, _entry(name, text), base))
        elif name:
            axes += space_of_dict(_read(name), base).axes
    return Space(tuple(axes))


def space_of_dict(values: Mapping[str, object], base: Config) -> Space:
    """The space of a table of axes, as TOML and sweep.json hold it; raises as `parse_space`."""
    return Space(tuple(_axis(name, entry, base) for name, entry in values.items()))


def category(value: object) -> bool | int | float | str | None:
    """A setting's value as Optuna can hold it: several numbers as their text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value_text(value)


def _read(name: str) -> dict[str, object]:
    """The table of axes in a TOML file."""
    path = usable(name)
    path = path if path.is_file() else ROOT / path  # tune/space.toml, from whatever folder
    if not path.is_file():
        raise ValueError(
            f"'{name}' in --space is neither a file nor like eta_p=1e-3..2e-2:log or esteps=1,2,4"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not TOML: {error}") from None
    table = content.get(TABLE)
    if len(content) > 1 or not isinstance(table, dict):
        raise ValueError(f"{name}: a space file holds the table [{TABLE}] and nothing else")
    return table


def _entry(name: str, text: str) -> object:
    """The values typed after `name=`, as a table of axes holds them."""
    if ".." not in text:
        return [parse_value(name, part.strip()) for part in text.split(",")]
    match = RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} must be like A..B, A..B:log or A..B:step=N, got '{text}'")
    low, high = (parse_value(name, bound.strip()) for bound in match.group(*BOUNDS))
    entry = {"low": low, "high": high, "log": match["log"] is not None}
    return entry | ({"step": int(match["step"])} if match["step"] else {})


def _axis(name: str, entry: object, base: Config) -> Axis:
    """The axis of an entry in a table of axes; ValueError if it is invalid."""
    field = full_name(name)
    if field == "seed":
        raise ValueError("seed is no setting to search; give the seeds of a point as --seeds N")
    if isinstance(entry, list):
        configs = [base.override(**{field: value}) for value in entry]
        return _choice(field, name, tuple(getattr(config, field) for config in configs))
    if isinstance(entry, dict) and {*BOUNDS} <= entry.keys() <= {*BOUNDS, "log", "step"}:
        bounds = {key: getattr(base.override(**{field: entry[key]}), field) for key in BOUNDS}
        return _range(field, name, **(entry | bounds))
    raise ValueError(
        f"{name} must be a list of values or {{ low = A, high = B }}, the latter with log = true "
        f"or step = N if wanted, got {entry!r}"
    )


def _range(
    field: str, name: str, low: float, high: float, log: bool = False, step: int | None = None
) -> Axis:
    from optuna.distributions import FloatDistribution, IntDistribution

    span = f"{value_text(low)}..{value_text(high)}"
    if not {type(low), type(high)} <= {int, float}:
        raise ValueError(f"{name} takes no range; write its values: --space {name}=A,B")
    if not low < high:
        raise ValueError(f"{name} must go from a lower to a higher value, got {span}")
    if not isinstance(log, bool):
        raise ValueError(f"log of {name} must be true or false, got {log!r}")
    if log and low <= 0:
        raise ValueError(f"{name} on a logarithmic scale must start above 0, got {span}")
    whole = type(low) is type(step) is int
    if step is not None and (log or not whole or step < 1 or (high - low) % step):
        raise ValueError(
            f"step={step} of {name} must divide {span}, whole numbers and not logarithmic"
        )
    text = span + (":log" if log else f":step={step}" if step else "")
    entry = {"low": low, "high": high, **({"log": True} if log else {"step": step} if step else {})}
    if not isinstance(low, int):
        return Axis(field, text, entry, FloatDistribution(low, high, log))
    values = range(low, int(high) + 1, step or 1)
    return Axis(field, text, entry, IntDistribution(low, int(high), log, values.step), values)


def _choice(field: str, name: str, options: Sequence[object]) -> Axis:
    from optuna.distributions import CategoricalDistribution

    text = ",".join(map(value_text, options))
    if len(set(options)) < len(options):
        raise ValueError(f"{name} has a value twice: {text}")
    if len(options) < 2:
        raise ValueError(f"{name} has one value; what does not vary is --set {name}=VALUE")
    distribution = CategoricalDistribution([category(option) for option in options])
    return Axis(field, text, list(options), distribution, options)
