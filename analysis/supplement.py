"""One archive for a paper's supplement: the records of sweeps, their tables and the command.

The archive holds the plan and the records of every trial. It leaves out checkpoints, models, the
cluster of each image, locks, and the addresses of MLflow and of a remote. The same records give the
same bytes.
"""

import argparse
import io
import json
import os
import re
import shlex
import socket
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.options import parser
from analysis.records.folders import run_dirs
from analysis.report.page import PICTURES
from mpcc.runs.files import SEAL, dumps, read_bytes, read_json, sealed, write_bytes
from mpcc.runs.run_dir import (
    CONFIG,
    CONTINUES,
    METRICS,
    PROVENANCE,
    RESULT,
    read_provenance,
    read_sealed,
)
from mpcc.shell import shown
from tune.plan.plan import MLFLOW, PLAN
from tune.store.plan_file import COPY, readable

README = "README.md"
PACKED = (PLAN, COPY, CONFIG, CONTINUES, METRICS, PROVENANCE, RESULT)
ANONYMOUS = "machine, user, paths and addresses are replaced, and the seal is made anew"
"""Text of the field `anonymous` in a record."""
NAMING = ("machine", "notes", "cause", "unavailable")
"""Fields of a record whose texts may name machines, users, paths and addresses."""
_FIRST_TIME = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every file: the earliest that ZIP allows."""

Hide = Callable[[str], str]


def stage(folders: Sequence[Path], scratch: Path, anonymous: bool, pictures: bool) -> list[Path]:
    """Copy what goes into the archive below `scratch`; returns the copy of each folder.

    Raises RunDirError if `anonymous` and a record is damaged: a new seal would hide the damage.
    """
    hide, place = _hiding(folders) if anonymous else None, scratch / "packed"
    copies: list[Path] = []
    for number, folder in enumerate(folders, 1):
        name = "sweep" if anonymous else folder.resolve().name
        if number > 1 and (anonymous or (place / name).exists()):
            name += f"-{number}"
        copies.append(place / name)
        for source in {folder, *run_dirs(folder)}:
            files = _records(source, pictures)
            if hide is not None:
                files |= _anonymous(source, files, hide)
            for file, data in files.items():
                target = place / name / source.relative_to(folder) / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    return copies


def pack(options: argparse.Namespace) -> str:
    """Write the copies (now in `options.runs`) and a README to `options.export`; returns a line."""
    place = options.runs[0].parent
    (place / README).write_text(_readme(options))
    files = sorted(path for path in place.rglob("*") if path.is_file())
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for file in files:
            about = zipfile.ZipInfo(file.relative_to(place).as_posix(), _FIRST_TIME)
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(about, file.read_bytes())
    options.export.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.export, content.getvalue())
    return f"Written to {shown(options.export)}: {len(files)} files, see {README} in it"


def _readme(options: argparse.Namespace) -> str:
    """The README: what is in the archive, how to check it and how to train what is missing."""
    names = [path.name for path in options.runs]
    words, usual = ["--runs", *names], vars(parser().parse_args([]))
    for name, value in vars(options).items():
        if value != usual[name] and name not in ("runs", "mlflow", "sweep", "export", "anonymous"):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    commands = [f"python analysis/make_tables.py {shlex.join(words)} --check"]
    for copy in options.runs:
        plan = read_json(copy / PLAN)
        if plan is not None:
            script = "search" if plan.get("search") else "ablation"
            commands.append(f"python tune/{script}.py --out {shlex.quote(copy.name)}")
    hidden = f"\nIn every provenance.json and result.json {ANONYMOUS}.\n"
    indented = "".join(f"    {command}\n" for command in commands)
    return f"""# Records and tables

In the folder of the code, with these folders beside it:

{indented}
The first makes the tables again and compares them. The others train what is
missing; checkpoints and models are left out here.
""" + (hidden if options.anonymous else "")


def _hiding(folders: Iterable[Path]) -> Hide:
    """A function that replaces machines, users, paths and addresses in a text."""
    home = os.path.expanduser("~")
    machines = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    for source in (source for folder in folders for source in (folder, *run_dirs(folder))):
        machines.add(str(read_provenance(source).get("machine", "")))
    users = {os.environ.get("LOGNAME", ""), os.environ.get("USER", ""), os.path.basename(home)}
    words = dict.fromkeys(users, "USER")
    words |= {machine: f"machine-{i}" for i, machine in enumerate(sorted(machines - {""}), 1)}
    # Known folders are matched literally, since they may contain spaces; the longest first.
    places = sorted({home, os.getcwd(), *(str(f.resolve()) for f in folders)}, key=len)
    named = "|".join(re.escape(place) for place in reversed(places) if len(place) > 1)
    rest = r"(?:/[^\s/:;,'\"()]+)"
    path = rf"(?:{named}){rest}*|(?<![\w.~/])~?{rest}+/?"
    address = r"[A-Za-z][\w+.-]*://\S+|[\w.+-]+@[\w.-]+(?::\S+)?"
    word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True) if word)

    def hide(text: str) -> str:
        text = re.sub(path, "PATH", re.sub(address, "ADDRESS", text))
        return re.sub(rf"(?<![\w-])(?:{word})(?![\w-])", lambda m: words[m[0]], text)

    return hide


def _records(source: Path, pictures: bool) -> dict[str, bytes]:
    names = [*PACKED, *(PICTURES if pictures else ())]
    found = {name: read_bytes(source / name) for name in names}
    files = {name: data for name, data in found.items() if data is not None}
    known = readable(source / MLFLOW)
    runs: dict[str, object] = {name: known[name] for name in ("run_id", "runs") if name in known}
    return files | ({MLFLOW: (dumps(runs, indent=1) + "\n").encode()} if runs else {})


def _anonymous(source: Path, files: Mapping[str, bytes], hide: Hide) -> dict[str, bytes]:
    """Provenance and result without names; RunDirError if one of them fails its seal."""
    read_sealed(source)
    made = {}
    for name in (name for name in (PROVENANCE, RESULT) if name in files):
        record = read_provenance(source) if name == PROVENANCE else json.loads(files[name])
        record = _hidden(record, hide) | {"anonymous": ANONYMOUS}
        if SEAL in record:
            belongs = {METRICS: files.get(METRICS, b"")} if name == RESULT else {}
            record = sealed(record, **belongs)
        made[name] = (dumps(record, indent=1) + "\n").encode()
    return made


def _hidden(value: Any, hide: Hide, named: bool = False) -> Any:
    """A record with the texts in fields of NAMING replaced; `named`: `value` is in such a field."""
    if isinstance(value, dict):
        return {key: _hidden(own, hide, named or key in NAMING) for key, own in value.items()}
    if isinstance(value, list):
        return [_hidden(own, hide, named) for own in value]
    return hide(value) if named and isinstance(value, str) else value
