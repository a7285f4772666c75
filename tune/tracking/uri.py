"""The address of a sweep's MLflow, and how to look at its runs. Does not import MLflow."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from mpcc.options import usable
from mpcc.shell import without_password
from tune.plan.plan import MLFLOW
from tune.store.plan_file import readable

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
SQLITE = "sqlite:///"
HEAD = b"SQLite format 3\0"


def default_uri(out: Path) -> str:
    """A SQLite database under the output folder, by its absolute path."""
    return f"{SQLITE}{Path(out).resolve() / DATABASE}"


def recorded_uri(uri: str, out: Path) -> str:
    """The URI as mlflow.json holds it: no password, and no folder of the sweep's own database."""
    return f"{SQLITE}{DATABASE}" if uri == default_uri(out) else without_password(uri)


def damage_of(uri: str) -> str | None:
    """The damage of the database at a SQLite URI, by its first bytes; None if it seems sound.

    An empty file counts as sound: SQLite takes it for a new database.
    """
    file = file_of(uri)
    if file is None or not file.exists():
        return None
    try:
        with file.open("rb") as opened:
            head = opened.read(len(HEAD))
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    return None if head in (b"", HEAD) else f"{file} is no database; --sync makes a new one"


def file_of(uri: str) -> Path | None:
    """The file of a SQLite URI; None for other kinds."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def checked_uri(uri: str) -> str:
    """The URI as it is used, a SQLite path made absolute. ValueError for other kinds."""
    if uri.startswith(SQLITE):
        try:
            path = usable(uri.removeprefix(SQLITE)).resolve()
        except ValueError as error:
            raise ValueError(f"--tracking-uri {uri}: {error}") from None
        if path.is_dir():
            raise ValueError(f"--tracking-uri {uri} names a folder, not a database file")
        return f"{SQLITE}{path}"
    if re.match(r"(https?|postgresql(\+\w+)?|mysql(\+\w+)?)://[^/\s]+", uri):
        return uri
    raise ValueError(
        f"--tracking-uri must start with sqlite:///, http://, https://, postgresql:// or mysql://, "
        f"got '{uri}'"
    )


def ui_hint(uri: str, out: Path, program: str = "mlflow") -> list[str]:
    """The lines that tell how to open a sweep's runs in a browser, and how to start a server."""
    damage = damage_of(uri)
    if damage is not None:
        return [damage]
    experiment = str(read_record(out, uri).get("experiment", ""))
    known = experiment.isdigit()
    page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if known else ""
    if uri.startswith("http"):
        return [f"open {without_password(uri).rstrip('/')}{page}"]
    return [
        # Without the job execution it starts in seconds; MLflow's start page shows no runs.
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.quote(program)} server "
        f"--backend-store-uri {shlex.quote(without_password(uri))} --workers 1 --port 5000",
        f"then open http://localhost:5000{page}",
    ]


def read_record(out: Path, uri: str) -> Mapping[str, object]:
    """The content of mlflow.json (experiment, parent run, runs by trial) if it is for this URI."""
    record = readable(out / MLFLOW)
    return record if record.get("tracking_uri") in (uri, recorded_uri(uri, out)) else {}


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, at most 200 characters."""
    lines = [line.strip() for line in without_password(str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
