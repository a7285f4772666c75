"""Reads a command's options, and ends it: exit codes, errors in one line."""

from __future__ import annotations

import argparse
import builtins
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import field, fields
from typing import Any, NoReturn, TypeVar

from mpcc.options import explained
from mpcc.shell import one_line
from tune.display import ignore_output_errors, log
from tune.signals import Interrupted, Signals

T = TypeVar("T")
GROUPS = ("what to run", "what to look for", "base settings", "where", "instead of running")
"""The groups of options, in the order of `--help`."""


def option(
    group: str,
    text: str,
    metavar: str | None = None,
    *,
    names: tuple[str, ...] = (),
    default: object = None,
    **more: object,
) -> Any:
    """A dataclass field that is a command-line option, `--NAME` unless `names` is given.

    metavar: the value's placeholder; without it the option is a flag. more: for `add_argument`.
    """
    kind = {"metavar": metavar} if metavar else {"action": "store_true"}
    return field(
        default=default if metavar else False,
        metadata={"group": group, "names": names, "argument": {"help": text, **kind, **more}},
    )


class _Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message, and with the nearest option if there is one."""
        raise ValueError(explained(message, self))


def parse(
    words: Sequence[str] | None, kind: type[T], name: str, description: str, examples: str
) -> T:
    """Parse `words` (default: sys.argv) into a `kind`.

    kind: a dataclass whose fields are made by `option`. ValueError for words that do not fit.
    """
    parser = _Parser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # The defaults are the fields' own.
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    of_kind = fields(kind)  # type: ignore[arg-type]
    for one in sorted(of_kind, key=lambda one: GROUPS.index(one.metadata["group"])):
        names = one.metadata["names"] or (f"--{one.name.replace('_', '-')}",)
        group = groups[one.metadata["group"]]
        group.add_argument(*names, dest=one.name, **one.metadata["argument"])
    return kind(**vars(parser.parse_args(words)))


def number(kind: Callable[[str], T], low: float, high: float) -> Callable[[str], T]:
    """A parser of an `int` or `float` within these bounds; argparse's error for any other text."""
    name = "a whole number" if kind is int else "a number"

    def read(text: str) -> T:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:  # type: ignore[operator]
                return value
        raise argparse.ArgumentTypeError(f"must be {name} from {low:g} to {high:g}, got '{text}'")

    return read


def answer(name: str, run: Callable[[Signals], int]) -> int:
    """Run a command and return its exit code, 2 with one line on stderr for a usage error."""
    try:
        with Signals() as signals:
            return run(signals)
    except Interrupted as stop:
        log(f"{name}: {stop}; the same command resumes")
        return 128 + stop.number
    except (ValueError, OSError) as error:
        log(f"{name}: {one_line(error)}")
        return 2


def end(status: int) -> NoReturn:
    """End the program at once: threads may wait forever for a Ray or an MLflow that has ended."""
    for stream in (sys.stdout, sys.stderr):
        with ignore_output_errors():
            stream.flush()
    if hasattr(builtins, "__IPYTHON__"):  # %run in a notebook: its kernel must live on.
        sys.exit(status)
    os._exit(status)
