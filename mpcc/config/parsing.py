"""Settings as people write them: text to values, and values to text."""

from __future__ import annotations

import math
import re
import types
import typing
from typing import Any

from mpcc.config.checks import kind_text
from mpcc.config.fields import HINTS, full_name


def parse_value(name: str, text: str) -> Any:
    """The value that `text` means for a field, typed by the field's annotation. Raises ValueError
    that names the field as given, the text and what is allowed."""
    hint = HINTS[full_name(name)]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    kind = next(o for o in options if o is not type(None))
    if kind in (int, float) and re.match(r"-?0\d", text):
        raise ValueError(
            f"{name}: leading zeros are not allowed, got '{text}'; the decimal separator is a "
            "point: write 0.001, not 0,001"
        )
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return _whole(text)
        if kind is float:
            return float(text)
        if typing.get_origin(kind) is tuple:
            return tuple(float(part) for part in text.split("/"))
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{name} must be {kind_text(hint)}, got '{text}'") from None
    return text


def parse_assignment(text: str) -> tuple[str, Any]:
    """`field=value` as (full name, typed value); ValueError for other text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected field=value, got '{text}'")
    return full_name(name.strip()), parse_value(name.strip(), value.strip())


def parse_settings(text: str) -> dict[str, Any]:
    """The settings that name a cell, by full names, as commands and tables print them:
    `esteps=4, eta_p=6e-4`, `esteps 4, eta_p 6e-4`. ValueError for text without settings."""
    assignments: list[str] = []
    for part in re.sub(r"\s*=\s*", "=", text).split(","):
        words = part.split()
        assignments += ["=".join(words)] if len(words) == 2 and "=" not in part else words
    if not assignments or not all("=" in word for word in assignments):
        raise ValueError(
            f"'{text}' names no cell: give settings like esteps=4,eta_p=6e-4, or a cell's key"
        )
    return dict(map(parse_assignment, assignments))


def value_text(value: Any) -> str:
    """A value as people write it: 0.0006 -> 6e-4, True -> true. `parse_value` gives it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, float) and math.isfinite(value):
        if not value or 1e-2 <= abs(value) < 1e5:
            return repr(float(value)).removesuffix(".0")
        digits = next(n for n in range(17) if float(f"{value:.{n}e}") == value)
        mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if isinstance(value, tuple):
        return "/".join(value_text(v) for v in value)
    return str(value)


def _whole(text: str) -> int:
    number = float(text.replace("_", ""))
    if number != int(number):
        raise ValueError
    return int(number)
