"""Atomic writes, locks of directories, and JSON sealed with a hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 2
"""Version of sealed records; earlier records have no seal and no version."""
MODEL = "model.mpcc"
"""File name of a trial's model; defined here because `mpcc.runs.model_file` imports numpy."""
SEAL = "seal"
DAMAGED = ".damaged"
"""Suffix of a quarantined file, followed by a number from the second on."""
SCRAP_SECONDS = 600.0
"""Age after which another machine's half-written file is taken for abandoned."""
_HOST = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname())
_SCRAP = re.compile(r"\..+?(?:\.pid-([0-9A-Za-z-]+)-|\.)(\d+)\.tmp")


class RunDirError(ValueError):
    """A file of a run directory is not what it should be; the message names it and what to do."""


class BusyError(OSError):
    """Another process holds the lock of a directory; one line."""

    errno = errno.EBUSY


@contextlib.contextmanager
def exclusive(path: Path, patience: float) -> Iterator[None]:
    """Lock a directory, a run's or the cache's, against other processes; makes it if missing.

    It is a kernel lock on the directory itself: it ends with its process and leaves no file.
    BusyError if another process still has it after `patience` seconds. A file system without locks
    gives no protection.
    """
    end = time.monotonic() + patience
    while (folder := _locked(path)) is None:
        if time.monotonic() > end:
            raise BusyError(
                f"another process trains in {path}: wait for it or choose another --out"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # It is not empty, as a rule.
            path.rmdir()
        os.close(folder)


def _locked(path: Path) -> int | None:
    """The descriptor of a directory that we have locked; None if another process has the lock."""
    if path.exists() and not path.is_dir():
        raise RunDirError(f"{path} is a file; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    try:
        folder = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None  # Another process has removed it, empty, on leaving.
    try:
        import fcntl

        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(folder), path.stat()):
            return folder
    except (BlockingIOError, FileNotFoundError):
        pass
    except (ImportError, OSError):  # Nobody can lock it.
        return folder
    os.close(folder)
    return None


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The object in this file, None without a file; RunDirError if it is not a JSON object."""
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise RunDirError(f"{path} is not JSON; delete it to run again") from None
    if not isinstance(value, dict):
        raise RunDirError(f"{path} holds no JSON object; delete it to run again")
    return value


def read_bytes(path: str | Path) -> bytes | None:
    """The bytes of a file, None without a file; RunDirError for a folder, a pipe or a device."""
    try:
        # A pipe without a writer would keep us waiting, and a device may have no end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
        reason = "a pipe or a device"
    except FileNotFoundError:
        return None
    except OSError as error:
        # Other errors (permissions, a failing disk) are not damage that a new run may replace.
        if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise
        reason = str(error.strerror)
    raise RunDirError(f"{path} is no file ({reason}); delete it to run again")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically. Infinite and undefined numbers become strings."""
    write_bytes(path, (dumps(value, indent=1) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old or the new one whole.
    Raises OSError and leaves no temporary file; if the disk is full, the message names the file."""
    path = Path(path)
    staged = staged_path(path)
    try:
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no room on the disk for {path}") from None
        raise


def staged_path(path: Path) -> Path:
    """The hidden name beside a file or folder under which this process prepares it."""
    return path.with_name(f".{path.name}.pid-{_HOST}-{os.getpid()}.tmp")


def dumps(value: Mapping[str, Any], indent: int | None = None) -> str:
    """The JSON of an object, with infinite and undefined numbers as strings."""
    return json.dumps(_finite(value), indent=indent, sort_keys=False, allow_nan=False)


def with_hash(magic: bytes, content: bytes) -> bytes:
    """The bytes of a file: a first line that says what it is, a hash of the rest, the rest."""
    return magic + _hash_line(content) + content


def without_hash(data: bytes, magic: bytes, name: str, what: str, hint: str = "") -> bytes:
    """The content of a `with_hash` file; RunDirError if it is damaged or not a `what`."""
    if not data.startswith(magic):
        raise RunDirError(f"{name} is not a {what} of this program")
    start = len(magic) + len(_hash_line(b""))
    content = data[start:]
    if data[len(magic) : start] != _hash_line(content):
        raise RunDirError(f"{name} is damaged ({len(data):,} bytes, wrong hash){hint}")
    return content


def _hash_line(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def sealed(values: Mapping[str, Any], **files: bytes) -> dict[str, Any]:
    """The object with a hash of its content and of the bytes of each file that belongs to it."""
    record = {name: value for name, value in values.items() if name != SEAL} | {"schema": SCHEMA}
    seal = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    record = _finite(record)
    return record | {SEAL: {"record": _content_hash(record, seal)} | seal}


def is_sound(record: Mapping[str, Any]) -> bool:
    """Whether the content is what was sealed; an earlier version's record has no seal."""
    if SEAL not in record and "schema" not in record:
        return True
    seal = record.get(SEAL)
    if not isinstance(seal, dict):
        return False
    rest = {name: value for name, value in record.items() if name != SEAL}
    files = {name: value for name, value in seal.items() if name != "record"}
    return seal.get("record") == _content_hash(rest, files)


def belongs(record: Mapping[str, Any], name: str, data: bytes) -> bool:
    """Whether a file has the bytes that it had when the record was sealed; True without a seal."""
    seal = record.get(SEAL)
    return not isinstance(seal, dict) or seal.get(name) == hashlib.sha256(data).hexdigest()


def quarantine(file: Path) -> Path:
    """Rename a file or folder to `NAME.damaged`, or `NAME.damaged2` and so on; the new path."""
    aside, number = file.with_name(f"{file.name}{DAMAGED}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = file.with_name(f"{file.name}{DAMAGED}{number}")
    os.replace(file, aside)
    return aside


def remove_scraps(folder: Path) -> None:
    """Remove the half-written files and folders of writers that are dead."""
    for file in folder.glob(".*.tmp"):
        match = _SCRAP.fullmatch(file.name)
        if match is None:
            continue
        host, pid = match.groups()
        try:
            if host in (None, _HOST):
                dead = not _lives(int(pid))
            else:
                dead = time.time() - file.stat().st_mtime > SCRAP_SECONDS
            if dead and file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            elif dead:
                file.unlink(missing_ok=True)
        except OSError:
            continue  # Its writer has just finished, or the disk refuses: do not fail the trial.


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _content_hash(record: Mapping[str, Any], seal: Mapping[str, Any]) -> str:
    """A hash of an object's content, whatever its layout as JSON."""
    try:
        text = json.dumps([record, seal], sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return "too deep"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
