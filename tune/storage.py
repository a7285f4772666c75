"""A folder of files that every machine of a cluster reaches: a path, s3://BUCKET or gs://BUCKET.

By pyarrow's file systems, with their usual credentials: environment variables, profiles, the role
of a machine. Files are small enough to be read and written whole, and are seen whole or not at all.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpcc import run_dir
from mpcc.options import usable

RETRY_SECONDS = 60.0
"""How long a storage that does not answer is asked again, 0.5, 1, 2, 4, 8, 8 ... seconds apart."""

GCS_RETRIES = "retry_limit_seconds=5"

REFUSALS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "Permission denied",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)
"""Words of errors that asking again does not mend."""

T = TypeVar("T")


class StorageError(OSError):
    """The storage does not answer, or refuses; never the fault of a trial. One line."""

    def __init__(self, text: str) -> None:
        super().__init__(5, text)  # EIO: a machine's fault for whoever looks at the number

    def __str__(self) -> str:
        return str(self.args[1])

    def __reduce__(self) -> tuple[type[StorageError], tuple[str]]:
        return StorageError, (str(self),)


@dataclass(frozen=True)
class Stored:
    """What the storage says of a file."""

    size: int
    """Bytes."""
    time_ns: int
    """When it was written by the storage's clock, nanoseconds since 1970; often whole seconds."""


def checked_storage(text: str) -> str:
    """The storage as it is used, a path made absolute. ValueError for what cannot be one."""
    if re.match(r"(s3|gs|gcs)://[a-z0-9][a-z0-9._-]+(/|\?|$)", text):
        return text.rstrip("/")
    if re.match(r"(s3|gs|gcs)://[^/]*@", text) and not text.startswith("gs://anonymous@"):
        raise ValueError(
            "--storage must hold no credentials: give them by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the role of the machine"
        )
    if text.startswith("gs://anonymous@"):
        return text.rstrip("/")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text or not text.strip():
        raise ValueError(
            f"--storage must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, got '{text}'"
        )
    try:
        path = usable(text).resolve()
    except ValueError as error:
        raise ValueError(f"--storage: {error}") from None
    if path.exists() and not path.is_dir():
        raise ValueError(f"--storage {path} is a file; name a folder")
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--storage {path}: {there} is a file; name another place")
    return str(path)


class Storage:
    """Named files below one address; names are like `trials/KEY/metrics.jsonl`."""

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        """`address` as `checked_storage` gives it; nothing is asked of the storage yet."""
        from pyarrow import fs

        self.address, self.retry_seconds = address, retry_seconds
        self._local = "://" not in address
        if self._local:
            self._fs: Any = fs.LocalFileSystem()
            self._root = address
        else:
            # S3: one request per small file, where the default begins with an upload in parts.
            # Google: give up within seconds, for us to try again and to tell; else it is minutes.
            option = "allow_delayed_open=true" if address.startswith("s3") else GCS_RETRIES
            address += ("&" if "?" in address else "?") + option
            try:
                self._fs, self._root = fs.FileSystem.from_uri(address)
            except (OSError, ValueError) as error:
                raise StorageError(f"storage {self.address}: {_line(error)}") from None

    def prepare(self) -> None:
        """Make a folder that is missing. A bucket must exist. StorageError where it cannot be."""
        if self._local:
            try:
                Path(self._root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"storage {self.address}: {_line(error)}") from None

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""

        def read() -> bytes | None:
            try:
                # pyarrow would unpack a .gz on the way.
                with self._fs.open_input_stream(self._path(name), compression=None) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                self._check_root()
                return None

        return self._tried(read)

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file."""

        def write() -> None:
            if self._local:
                self._check_root()
                path = Path(self._path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                run_dir.write_bytes(path, data)
                return
            with self._fs.open_output_stream(self._path(name), compression=None) as file:
                file.write(data)

        self._tried(write)

    def delete(self, name: str) -> None:
        """Remove a file, where there is one."""

        def delete() -> None:
            try:
                self._fs.delete_file(self._path(name))
            except FileNotFoundError:
                self._check_root()

        self._tried(delete)

    def exists(self, name: str) -> bool:
        """Whether there is such a file; asked once, False where the storage does not answer."""
        try:
            return self._info(name) is not None
        except OSError:
            return False

    def info(self, name: str) -> Stored | None:
        """Size and time of a file, None where there is none."""
        return self._tried(lambda: self._info(name))

    def list(self, folder: str = "") -> dict[str, Stored]:
        """All files below a folder, by their names from the storage's root."""
        from pyarrow import fs

        def listed() -> dict[str, Stored]:
            self._check_root()
            selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
            found = {}
            for info in self._fs.get_file_info(selector):
                if info.is_file and not info.base_name.startswith("."):
                    name = info.path[len(self._root) :].lstrip("/")
                    found[name] = Stored(int(info.size), int(info.mtime_ns or 0))
            return found

        return self._tried(listed)

    def _info(self, name: str) -> Stored | None:
        about = self._fs.get_file_info(self._path(name))
        return Stored(int(about.size), int(about.mtime_ns or 0)) if about.is_file else None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _check_root(self) -> None:
        """A folder that is gone is a fault, not an empty storage."""
        if self._local and not os.path.isdir(self._root):
            raise OSError(5, f"{self._root} is gone")

    def _tried(self, call: Callable[[], T]) -> T:
        """The call's value; StorageError once it has failed for `retry_seconds`."""
        until, pause = time.monotonic() + self.retry_seconds, 0.5
        while True:
            try:
                return call()
            except (OSError, ValueError) as error:
                text = _line(error)
                refused = any(word in text for word in REFUSALS)
                if refused or time.monotonic() + pause > until:
                    raise StorageError(f"storage {self.address}: {text}") from error
            time.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(8.0, 2 * pause)


def _line(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
