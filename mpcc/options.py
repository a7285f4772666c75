"""What the command lines share: refusals in one line, and paths that can be used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Refuses in one line, without argparse's usage text, and takes no option cut short."""

    def __init__(self, *, speaker: str, **options: object) -> None:
        """`speaker`: the name that a refusal begins with."""
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]
        self.speaker = speaker

    def error(self, message: str) -> NoReturn:
        """One line, exit 2."""
        self.exit(2, f"{self.speaker}: {' '.join(message.split())}\n")


def path(text: str) -> Path:
    """A path as typed, `~` meaning the home folder; argparse's own error for what can be none."""
    shown = text if len(text) <= 80 else text[:77] + "..."
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; is a variable of the shell not set?")
    try:
        found = Path(text).expanduser()
        found.resolve()
        found.exists()
    except RuntimeError:  # Python's word for an unknown user and for links in a circle
        raise argparse.ArgumentTypeError(
            f"'{shown}' leads nowhere (a user who does not exist, or links in a circle)"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise argparse.ArgumentTypeError(f"'{shown}' cannot be a path: {reason}") from None
    return found
