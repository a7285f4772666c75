"""Whether the files in a folder are what the records give: those asked for, and all others there.

What was asked for is made again and compared byte by byte, with the same tables in other formats
that lie beside it. Other tables, the report and the figures were made with options of their own:
their companion files name every trial with the digest of its records, and those are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.output.export import COMPANION, trial_records
from analysis.tables.groups import Group

WHOLE = ("grid", "layout", "search", "report", "figures")
"""What rests on every trial there is: a trial more makes it stale, elsewhere one of its cells."""


def is_stale(file: Path, content: str | bytes) -> bool:
    """Whether this file is missing or says something else."""
    data = content.encode() if isinstance(content, str) else content
    return not file.is_file() or file.read_bytes() != data


def outdated(out: Path, made: Iterable[str], groups: Iterable[Group]) -> list[str]:
    """Companion files, beyond those made again, that name other records than there are now."""
    now = trial_records(groups)
    skipped = set(made)
    files = [file for file in sorted(out.glob(f"*{COMPANION}")) if file.name not in skipped]
    return [file.name for file in files if _disagrees(file, now)]


def _disagrees(file: Path, now: Mapping[str, Any]) -> bool:
    try:
        known = json.loads(file.read_bytes())["trials"]
        changed = any(key in now and now[key] != known[key] for key in known)
        cells = {trial["cell"] for trial in known.values()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return True
    more = [now[key] for key in now.keys() - known.keys()]
    if file.name.removesuffix(COMPANION) in WHOLE:
        return changed or bool(more)
    return changed or any(trial["cell"] in cells and "seeds" not in trial for trial in more)
