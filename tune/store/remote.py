"""Files that every machine of a cluster reaches: a folder, or an object store (s3://, gs://).

It uses pyarrow's file systems with their usual credentials (environment variables, profiles, the
role of a machine). Files are small, and are read and written whole or not at all.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from mpcc.options import usable
from mpcc.runs.files import remove_scraps, write_bytes
from mpcc.shell import message_of

RETRY_SECONDS = 60.0
"""How long a remote that does not answer is asked again, 0.5, 1, 2, 4, 8, 8 ... seconds apart."""

OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=5"}
"""S3: one request for a small file, where the default begins with an upload in parts. Google: give
up within seconds, so that we can ask again and report it; the default is minutes."""

REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|"
    "SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|Permission denied|PERMISSION_DENIED|"
    "UNAUTHENTICATED"
)
"""Parts of the messages of errors for which asking again is useless."""

P = ParamSpec("P")
T = TypeVar("T")


class RemoteError(OSError):
    """The remote does not answer, or refuses; never the fault of a trial. One line."""

    errno = errno.EIO
    """Marks an infrastructure error for `tune.engine.faults`."""


class Stored(NamedTuple):
    """Size and time of a file."""

    size: int
    """Bytes."""
    time_ns: int
    """Time of writing by the remote's clock, in nanoseconds since 1970; often whole seconds."""


def _retried(
    method: Callable[Concatenate[Remote, P], T],
) -> Callable[Concatenate[Remote, P], T]:
    """The method, tried again for `retry_seconds`; RemoteError then, or at once for a refusal."""

    @functools.wraps(method)
    def retried(remote: Remote, /, *args: P.args, **kwargs: P.kwargs) -> T:
        begun, pause = time.monotonic(), 0.5
        while True:
            try:
                if remote.missing:  # A fault, not an empty remote.
                    raise OSError(errno.EIO, f"{remote.address} is gone")
                return method(remote, *args, **kwargs)
            except (OSError, ValueError) as error:
                end = begun + remote.retry_seconds
                if REFUSED.search(str(error)) or time.monotonic() + pause > end:
                    raise _error(remote.address, error) from error
            time.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(8.0, 2 * pause)

    return retried


class Remote:
    """Named files below one address; a name is like `trials/KEY/metrics.jsonl`."""

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        """`address` as `checked_address` gives it; nothing is requested yet."""
        from pyarrow import fs

        self.address, self.retry_seconds = address, retry_seconds
        self._is_folder = not is_address(address)
        files, root = fs.LocalFileSystem(), address
        if not self._is_folder:
            option = OPTIONS["s3" if address.startswith("s3") else "gs"]
            joint = "&" if "?" in address else "?"
            try:
                files, root = fs.FileSystem.from_uri(f"{address}{joint}{option}")
            except (OSError, ValueError) as error:
                raise _error(address, error) from None
        self._files = fs.SubTreeFileSystem(root, files)

    @property
    def missing(self) -> bool:
        """Whether it is a folder that does not exist."""
        return self._is_folder and not os.path.isdir(self.address)

    def prepare(self) -> None:
        """Make a folder that is missing; a bucket must exist."""
        if self.missing:
            os.makedirs(self.address, exist_ok=True)

    @_retried
    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""
        with suppress(FileNotFoundError):
            # pyarrow would unpack a .gz on the way.
            with self._files.open_input_stream(name, compression=None) as file:
                return bytes(file.read())
        return None

    @_retried
    def write(self, name: str, data: bytes, time_ns: int | None = None) -> None:
        """Make or replace a file, whole or not at all.

        A folder keeps the time that is given; an object store has its own. Half-written files that
        dead writers left beside it are removed.
        """
        if not self._is_folder:
            with self._files.open_output_stream(name, compression=None) as file:
                file.write(data)
            return
        path = Path(self.address, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_scraps(path.parent)
        write_bytes(path, data)
        if time_ns is not None:
            os.utime(path, ns=(time_ns, time_ns))

    @_retried
    def delete(self, name: str) -> None:
        """Remove a file, if there is one."""
        with suppress(FileNotFoundError):
            self._files.delete_file(name)

    @_retried
    def info(self, name: str) -> Stored | None:
        """Size and time of a file, None if there is none."""
        about = self._files.get_file_info(name)
        return Stored(int(about.size), int(about.mtime_ns or 0)) if about.is_file else None

    @_retried
    def list(self, folder: str = "") -> dict[str, Stored]:
        """All files below a folder, by their names from the root; hidden ones are left out."""
        from pyarrow import fs

        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        return {
            str(about.path): Stored(int(about.size), int(about.mtime_ns or 0))
            for about in self._files.get_file_info(selector)
            if about.is_file and "/." not in f"/{about.path}"
        }


def is_address(text: object) -> bool:
    """Whether this names an object store, not a folder."""
    return isinstance(text, str) and "://" in text


def checked_address(text: str) -> str:
    """The address that `--storage` means, a path made absolute. ValueError for other text."""
    refuse_credentials("--storage", text)
    if re.match(r"(s3|gs|gcs)://[a-z0-9]", text):
        return text.rstrip("/")
    text = text.removeprefix("file://")
    if is_address(text) or not text.strip():
        raise ValueError(
            f"--storage must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, got '{text}'"
        )
    try:
        path = usable(text).resolve()
    except ValueError as error:
        raise ValueError(f"--storage: {error}") from None
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--storage {path}: {there} is a file; name a folder")
    return str(path)


def refuse_credentials(option: str, address: str) -> None:
    """ValueError, which does not repeat them, if an object store's address holds credentials."""
    if re.match(r"\w+://(?!anonymous@)[^/]*@", address):
        raise ValueError(
            f"{option} must hold no credentials: give them by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the role of the machine"
        )


def _error(address: str, error: Exception) -> RemoteError:
    return RemoteError(f"{address}: {message_of(error, 300)}")
