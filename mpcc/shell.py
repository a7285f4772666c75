"""What to type next, so that it works as printed: programs of this environment, paths from here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def program(name: str) -> str:
    """A program of this environment: by its name where the shell finds that one, else its path.

    An environment's `python` is a link to the system's: it is the folders that must agree.
    """
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not ours.exists() or (found and os.path.samefile(Path(found).parent, ours.parent)):
        return name
    return shown(ours)


def script(*parts: str) -> str:
    """One of our scripts with the Python that runs it: `python analysis/make_tables.py`."""
    return shlex.join([program("python"), shown(ROOT.joinpath(*parts))])


def shown(path: Path) -> str:
    """A path as seen from the current directory where it lies below, else absolute."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)
