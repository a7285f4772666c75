"""Files that every machine of a cluster reaches: a folder, or an object store (s3://, gs://).

By pyarrow's file systems, with their usual credentials: environment variables, profiles, the role
of a machine. Files are small enough to be read and written whole, and are seen whole or not at all.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from mpcc import run_dir
from mpcc.options import usable

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
"""Found in errors that no further request can overcome."""

P = ParamSpec("P")
T = TypeVar("T")


class RemoteError(OSError):
    """The remote does not answer, or refuses; never the fault of a trial. One line."""

    errno = errno.EIO
    """An infrastructure error, for whoever looks at the number."""


@dataclass(frozen=True)
class Stored:
    """What is known of a file without reading it."""

    size: int
    """Bytes."""
    time_ns: int
    """When it was written by the remote's clock, nanoseconds since 1970; often whole seconds."""


def _asked_again(
    method: Callable[Concatenate[Remote, P], T],
) -> Callable[Concatenate[Remote, P], T]:
    """The method; RemoteError once there was no answer for `retry_seconds`, or a refusal."""

    @functools.wraps(method)
    def asked_again(remote: Remote, /, *args: P.args, **kwargs: P.kwargs) -> T:
        begun, pause = time.monotonic(), 0.5
        while True:
            try:
                return method(remote, *args, **kwargs)
            except (OSError, ValueError) as error:
                # Read each time: whoever has little time left lowers it while we ask.
                end = begun + remote.retry_seconds
                if REFUSED.search(str(error)) or time.monotonic() + pause > end:
                    raise _error(remote.address, error) from error
            time.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(8.0, 2 * pause)

    return asked_again


class Remote:
    """Named files below one address; a name is like `trials/KEY/metrics.jsonl`."""

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        """`address` as `checked_address` gives it; nothing is requested yet."""
        from pyarrow import fs

        self.address, self.retry_seconds = address, retry_seconds
        self._local = not is_address(address)
        self._fs, self._root = fs.LocalFileSystem(), address
        if not self._local:
            scheme, joint = address.partition(":")[0], "&" if "?" in address else "?"
            option = OPTIONS["s3" if scheme == "s3" else "gs"]
            try:
                self._fs, self._root = fs.FileSystem.from_uri(f"{address}{joint}{option}")
            except (OSError, ValueError) as error:
                raise _error(address, error) from None

    def prepare(self) -> None:
        """Make a folder that is missing. A bucket must exist. RemoteError where it cannot be."""
        if self._local:
            try:
                Path(self._root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _error(self.address, error) from None

    @_asked_again
    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        try:
            # pyarrow would unpack a .gz on the way.
            with self._fs.open_input_stream(self._path(name), compression=None) as file:
                return bytes(file.read())
        except FileNotFoundError:
            self._check_root()
            return None

    @_asked_again
    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, whole or not at all."""
        if self._local:
            self._check_root()
            path = Path(self._path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            run_dir.write_bytes(path, data)
        else:
            with self._fs.open_output_stream(self._path(name), compression=None) as file:
                file.write(data)

    @_asked_again
    def delete(self, name: str) -> None:
        """Remove a file, where there is one."""
        try:
            self._fs.delete_file(self._path(name))
        except FileNotFoundError:
            self._check_root()

    @_asked_again
    def info(self, name: str) -> Stored | None:
        """Size and time of a file, None where there is none."""
        about = self._fs.get_file_info(self._path(name))
        return Stored(int(about.size), int(about.mtime_ns or 0)) if about.is_file else None

    def exists(self, name: str) -> bool:
        """Whether there is such a file; False where there is no answer."""
        try:
            return self.info(name) is not None
        except RemoteError:
            return False

    @_asked_again
    def list(self, folder: str = "") -> dict[str, Stored]:
        """All files below a folder, by their names from the root; hidden ones are left out."""
        from pyarrow import fs

        self._check_root()
        found = {}
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        for about in self._fs.get_file_info(selector):
            if about.is_file and not about.base_name.startswith("."):
                name = str(about.path)[len(self._root) :].lstrip("/")
                found[name] = Stored(int(about.size), int(about.mtime_ns or 0))
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def _check_root(self) -> None:
        """A folder that is gone is a fault, not an empty remote."""
        if self._local and not os.path.isdir(self._root):
            raise OSError(5, f"{self._root} is gone")


def is_address(text: object) -> bool:
    """Whether this names an object store and no folder."""
    return isinstance(text, str) and "://" in text


def checked_address(text: str) -> str:
    """The address of `--storage` as it is used, a path made absolute. ValueError for no address."""
    if re.match(r"(s3|gs|gcs)://[a-z0-9][a-z0-9._-]+(/|\?|$)", text):
        return text.rstrip("/")
    if text.startswith("gs://anonymous@"):
        return text.rstrip("/")
    if re.match(r"(s3|gs|gcs)://[^/]*@", text):
        raise ValueError(
            "--storage must hold no credentials: give them by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the role of the machine"
        )
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


def _error(address: str, error: Exception) -> RemoteError:
    """In one line, of at most 300 characters beside the address."""
    return RemoteError(f"{address}: {(' '.join(str(error).split()) or type(error).__name__)[:300]}")
