"""Commands and paths to paste into a shell; output that survives closed pipes and full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]


def program(name: str) -> str:
    """How to call a program of this environment: by name if the shell finds this one, else by path.

    Folders are compared, not files: a venv's `python` is a symlink to the system's.
    """
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not ours.exists() or (found and os.path.samefile(Path(found).parent, ours.parent)):
        return name
    return shown(ours)


def script(*parts: str) -> str:
    """One of our scripts with the Python that runs it: `python analysis/make_tables.py`."""
    return shlex.join([program("python"), shown(ROOT.joinpath(*parts))])


def own_name() -> str:
    """How the user started `mpcc`: by the installed command or as a module."""
    return "mpcc" if Path(sys.argv[0]).name == "mpcc" else "python -m mpcc"


def shown(path: Path) -> str:
    """The path relative to the current directory if it lies below that, else the absolute path."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def one_line(error: Exception) -> str:
    """An error in one line, with advice if a file or folder is read-only or access is denied."""
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES) and error.filename:
        if os.path.exists(error.filename) and not os.access(error.filename, os.R_OK):
            return f"cannot read {error.filename}: {error.strerror}"
        return f"cannot use {error.filename}: {error.strerror}; choose another --out"
    return message_of(error)


def message_of(error: BaseException, limit: int | None = None) -> str:
    """An error's message in one line, without passwords, cut to `limit` characters; its type's name
    if it is empty."""
    return " ".join(without_password(str(error)).split())[:limit] or type(error).__name__


def without_password(text: str) -> str:
    """The text with *** in place of the password, or the token, in every address in it."""
    text = re.sub(r"(://[^/\s:@]*:)[^/\s]*@", r"\1***@", text)
    text = re.sub(r"(https?://)[^/\s:@]+@", r"\1***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


def guard_output() -> None:
    """Call once at start: print() then never ends the program, even if stdout or stderr is closed,
    broken or full.

    Text that cannot be written is dropped; a full disk is reported on stderr. The exit code stays
    that of the work, whose results are files.
    """
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # Reserve the descriptor: our next file would get it.
    sys.stderr = _Guarded(sys.stderr or open(2, "w", closefd=False))  # type: ignore[assignment]
    sys.stdout = _Guarded(sys.stdout or open(1, "w", closefd=False))  # type: ignore[assignment]


class _Guarded:
    """A standard stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):  # Names of files may have any bytes.
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text on an OSError; returns its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop the text on an OSError."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect the stream to /dev/null, buffered text included."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if error.errno not in (errno.EPIPE, errno.EBADF) and self is sys.stdout:
            reason = f"standard output cannot be written ({error.strerror})"
            print(f"{reason}: what is printed is lost", file=sys.stderr, flush=True)
