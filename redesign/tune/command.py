"""How a command reads its words and answers: typed options, exit codes, errors in one line."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, NoReturn, TypeVar

from mpcc.options import explained
from tune.display import log
from tune.signals import Interrupted, Signals

T = TypeVar("T")
GROUPS = ("what to run", "what to look for", "base settings", "where", "instead of running")
"""In the order in which `--help` shows them."""


def option(
    group: str,
    text: str,
    metavar: str | None = None,
    *,
    names: tuple[str, ...] = (),
    default: object = None,
    read: Callable[[str], object] | None = None,
    **more: object,
) -> Any:
    """A dataclass field that is an option of the command line, by default of its own name.

    read: takes the text that was typed; its ValueError follows the option's name. The rest is
    argparse's.
    """
    about = {"help": text, **({"metavar": metavar} if metavar else {}), **more}
    return field(default=default, metadata={"group": group, "names": names, "read": read} | about)


class UsageError(Exception):
    """What was asked for makes no sense; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        """The message, and what was probably meant."""
        raise UsageError(explained(message, self))


def parse(
    words: Sequence[str] | None, kind: type[T], name: str, description: str, examples: str
) -> T:
    """The options that these words are, by default those of the command line.

    kind: a dataclass whose fields are made by `option`. UsageError, one line, for other words.
    """
    parser = _Parser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # The defaults are the fields' own.
    )
    groups = {name: parser.add_argument_group(name).add_argument for name in GROUPS}
    of_kind = fields(kind)  # type: ignore[arg-type]
    for one in sorted(of_kind, key=lambda one: GROUPS.index(one.metadata["group"])):
        about = dict(one.metadata)
        group, names, read = (about.pop(name) for name in ("group", "names", "read"))
        names = names or (f"--{one.name.replace('_', '-')}",)
        if read is not None:
            about["type"] = named(names[0], read)
        groups[group](*names, dest=one.name, **about)
    return kind(**vars(parser.parse_args(words)))


def answer(name: str, run: Callable[[Signals], int]) -> int:
    """Run a command and return its exit code, 2 with one line on stderr for a usage error."""
    try:
        with Signals() as signals:
            return run(signals)
    except Interrupted as stop:
        log(f"{name}: {stop}; the same command goes on")
        return 128 + stop.number
    except (UsageError, ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        log(f"{name}: {text}")
        return 2
    finally:
        _flush_stderr()


def end(status: int) -> NoReturn:
    """End the program; Python would look through all that Ray and MLflow leave, for a second."""
    gc.freeze()
    sys.exit(status)


def _flush_stderr() -> None:
    """Replace a stderr that cannot be flushed: Python would end with another exit code."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")


# -- what `read` can be: each takes the text that was typed --------------------------------------


def number(low: float, high: float) -> Callable[[str], float]:
    """A number within these bounds; ValueError for any other text."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}, got '{text}'")
        return value

    return read


def whole(low: int, high: int) -> Callable[[str], int]:
    """The same, for a whole number."""

    def read(text: str) -> int:
        value = number(low, high)(text)
        if value != int(value):
            raise ValueError(f"must be a whole number, got '{text}'")
        return int(value)

    return read


def named(name: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """The same, with a UsageError that begins with the option's name."""

    def read_named(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise UsageError(f"{name} {error}") from None

    return read_named
