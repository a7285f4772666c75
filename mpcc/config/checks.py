"""Type checks of field values, and the text for values, types and ranges in error messages."""

from __future__ import annotations

import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal


def unknown(what: str, given: str, available: Iterable[str]) -> str:
    """Error text for an unknown name, in one line: the name, the nearest one, all available."""
    available = sorted(available, key=str.lower)
    alike = [name for name in available if name.lower() == given.lower()]
    near = alike or difflib.get_close_matches(given, available, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {what} '{given}'{hint} available: {', '.join(available)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field's annotation; a float must be finite, and a bool does
    not count as an int."""
    origin, options = _taken_apart(hint)
    if origin is types.UnionType:
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(v, float) or fits(v, int) for v in value)
    if hint is float:
        return isinstance(value, float) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


@functools.cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`int | None` -> (UnionType, (int, None)); looked up a million times in a large sweep."""
    return typing.get_origin(hint), typing.get_args(hint)


def kind_text(hint: Any) -> str:
    """The values that an annotation allows, in words: `a whole number or none`."""
    if isinstance(hint, types.UnionType):
        return " or ".join(kind_text(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "numbers separated by '/'"
    names = {bool: "true or false", int: "a whole number", float: "a finite number"}
    return names.get(hint, "none")


def short(value: Any) -> str:
    """A value of any type for an error message, cut to 60 characters."""
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def range_text(low: float, high: float, value: float) -> str:
    """The allowed range in words; if `high` is 10⁶ or more, only the bound that `value` breaks."""
    if high < 10**6:
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}" if value < low else f"at most {high}"


TF32_NEEDS_GPU = (
    "precision=tf32 needs a GPU; this run would use the CPU: leave it out (float32) or train on a "
    "GPU"
)


def check_weights(weights: tuple[float, ...], n_clusters: int) -> None:
    """ValueError unless there are n_clusters positive weights that float32 can hold: otherwise a
    weight, their sum or a weight's share of the sum would become 0 or infinite."""
    low, high = 1e-30, 1e30
    if len(weights) != n_clusters or not low <= min(weights) <= max(weights) <= high:
        raise ValueError(
            f"given_cluster_weights must be {n_clusters} positive numbers, {low:g} to {high:g}, "
            f"got {short(weights)}"
        )
    if min(weights) / max(weights) < low:
        raise ValueError(
            f"given_cluster_weights must differ by a factor of {high:g} at most, "
            f"got {short(weights)}"
        )
