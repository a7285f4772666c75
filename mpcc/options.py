"""What the command lines share: errors in one line, and checks of device names and paths."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
from pathlib import Path
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser with one-line errors, without usage text; it accepts no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line on stderr and exit with status 2."""
        self.exit(
            2, f"{self.prog.removesuffix('.py')}: {' '.join(explained(message, self).split())}\n"
        )


def explained(message: str, parser: argparse.ArgumentParser) -> str:
    """argparse's message; for an unknown option also the nearest one, or a pointer to --help."""
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        return message
    options = re.findall(r"--?[a-z][\w-]*", parser.format_help())
    for word in unknown.split():
        near = difflib.get_close_matches(word.partition("=")[0], options, n=1, cutoff=0.7)
        if word.startswith("-") and near:
            return f"{message}; did you mean {near[0]}?"
    return f"{message}; --help lists what there is"


def checked_device(name: object) -> str:
    """The device's name, from text or a torch.device; ValueError, one line, for any other name."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(name)):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got '{name}'")
    return str(name)


def path(text: str) -> Path:
    """The path in a command-line option, `~` expanded; ArgumentTypeError if it cannot be a path."""
    try:
        return usable(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def usable(text: str | Path) -> Path:
    """The path with `~` expanded; ValueError, one line, if it is no path or no such user exists.
    `~x.png` can name an existing file if there is no user x.png."""
    text = str(text)
    shown = text if len(text) <= 80 else text[:77] + "..."
    if not text.strip():
        raise ValueError("the path is empty; is a variable of the shell not set?")
    try:
        found = Path(os.path.expanduser(text))
        if str(found).startswith("~") and not os.path.lexists(found):
            raise RuntimeError
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.stat()  # Raises for a symlink loop, too.
    except RuntimeError:
        raise ValueError(f"'{shown}' cannot be resolved: unknown user") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"'{shown}' cannot be a path: {reason}") from None
    return found
