"""Lays out the cases of `tests.malformed`, calls the programs and judges what they did.

The contract: no traceback, the right exit code, nothing on the disk changed, no code of a file run;
a refusal is one line on stderr that begins with the program's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mpcc.__main__ import main as mpcc_main
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training import trainer
from tests.malformed import ABLATION, MPCC, SEARCH, TABLES, Case, Damage, cases
from tune import ablation, estimate, search
from tune.plan import grid
from tune.plan.plan import new_plan
from tune.plan.state import State
from tune.store.folder import Store, record_end

CANARY = "canary"
"""A file in the working folder that a pickle makes when its code is run."""


@dataclass
class Outcome:
    """What came of the cases: how many of each kind, and a line for each offence."""

    tried: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    """By kind and exit code, `data 2`."""
    offences: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """An ended call of a program in this process."""

    code: int | str
    """The exit code; for an exception its name and place."""
    out: str
    err: str


class Started(BaseException):
    """Something was about to be trained that should have been refused."""


def run(n: int, seed: int, folder: Path) -> Outcome:
    """Try `n` cases in folders below `folder`, which must be empty or missing."""
    folder = Path(folder).resolve()
    templates = Templates(folder / "templates")
    outcome = Outcome()
    begun = time.monotonic()
    for i, case in enumerate(cases(n, seed)):
        work = folder / f"{i}" / "work"
        offences, code = attempt(case, work, templates)
        outcome.tried[case.kind] += 1
        outcome.codes[f"{case.kind} {code}"] += 1
        outcome.offences += [f"{i}: {case}: {what}" for what in offences]
        shutil.rmtree(work.parent)
    shutil.rmtree(folder / "templates")
    outcome.seconds = time.monotonic() - begun
    return outcome


def attempt(case: Case, work: Path, templates: Templates) -> tuple[list[str], int | str]:
    """What was wrong with the answer to one case, and its exit code."""
    templates.lay_out(case.folder, work)
    for damage in case.damage:
        spoil(work / "sweep" / templates.named(damage.file), damage)
    with inside(work.parent):
        before = snapshot(work.parent)
        places = {"{work}": str(work), "{out}": str(work.parent / "out")}
        argv = [templates.named(word) for word in case.argv]
        for name, place in places.items():
            argv = [word.replace(name, place) for word in argv]
        call = called(case.program, argv)
        shutil.rmtree(work.parent / "out", ignore_errors=True)
        return judge(case, call, before, snapshot(work.parent)), call.code


def judge(case: Case, call: Call, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The offences of an answer."""
    offences = []
    if not isinstance(call.code, int):
        return [f"traceback: {call.code}"]
    if call.code not in case.codes:
        offences.append(f"exit code {call.code}, not {sorted(case.codes)}: {call.err[-200:]!r}")
    if "Traceback" in call.out + call.err:
        offences.append("a traceback is printed")
    if call.code == 2:
        if call.err.count("\n") != 1 or len(call.err.splitlines()) != 1:
            offences.append(f"not one line: {call.err!r}")
        if not call.err.startswith(f"{case.program}: "):
            offences.append(f"does not begin with the program's name: {call.err!r}")
        if call.out:
            offences.append(f"prints a result as well: {call.out[:80]!r}")
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed:
        offences.append(f"changed on the disk: {changed[:5]}")
    if case.codes == {3} and case.damage[0].file == "trials/done/result.json":
        if not any(" stopped " in line and "result.json" in line for line in call.out.splitlines()):
            if case.damage[0].how in ("truncate", "text", "bytes", "folder", "pickle", "loop"):
                offences.append("the damaged trial is not shown as stopped with its cause")
    return offences


def called(program: str, argv: list[str]) -> Call:
    """Call `main` of a program; nothing is trained, Ray is not started."""
    from analysis import make_tables

    programs: dict[str, Callable[[list[str]], int]] = {
        MPCC: mpcc_main,
        ABLATION: ablation.main,
        SEARCH: search.main,
        TABLES: make_tables.main,
    }
    out, err = io.StringIO(), io.StringIO()
    code: int | str
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with (
                patch("tune.run.SweepLock", _started),
                patch.object(trainer, "_Run", _started),
                patch.object(estimate, "measure", _not_measured),
            ):
                code = programs[program](argv)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else repr(ended.code)
        except (Exception, Started) as error:  # any is an offence
            code = _place(error)
    return Call(code, out.getvalue(), err.getvalue())


def _started(*_: Any) -> None:
    raise Started("it started")


def _not_measured(*_: Any) -> None:
    raise estimate.MeasureError("nothing is measured here")


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = [
        f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
    ]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else frame.filename
    return f"{type(error).__name__}: {str(error)[:150]} at {where}"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in this folder; handlers, variables and the folder are as before afterwards."""
    here, handlers = Path.cwd(), logging.getLogger().handlers[:]
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    os.chdir(folder)
    try:
        with patch.dict(os.environ):
            os.environ.pop("MPCC_DATA_DIR", None)
            yield
    finally:
        os.chdir(here)
        logging.getLogger().handlers[:] = handlers
        for number, handler in signals.items():
            signal.signal(number, handler)


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> kind and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            found[name] = _hash(path)
        else:
            found[name] = "folder"
    return found


def _hash(path: Path) -> str:
    mode = path.stat().st_mode
    path.chmod(mode | 0o400)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    finally:
        path.chmod(mode)


# -- damage --------------------------------------------------------------------------------------


class Payload:
    """Unpickling it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (CANARY, "w"))


def spoil(path: Path, damage: Damage) -> None:
    """Do the damage to a file, which need not be there."""
    data = path.read_bytes() if path.is_file() else b""
    if damage.how in ("folder", "loop", "dangling", "remove", "text", "bytes", "pickle"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if damage.how == "folder":
        path.mkdir(parents=True)
    elif damage.how in ("loop", "dangling"):
        path.symlink_to(path.name if damage.how == "loop" else "nowhere")
    elif damage.how == "forbid" and path.exists():
        path.chmod(0)
    new = _content(data, damage.how, damage.value)
    if new is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new)


def _content(data: bytes, how: str, value: Any) -> bytes | None:
    """What a file of these bytes is to hold after the damage; None where it is not written."""
    if how == "flip":
        at = int(len(data) * value)
        return data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :] if data else None
    contents: dict[str, Callable[[], bytes]] = {
        "truncate": lambda: data[: int(len(data) * value)],
        "text": lambda: value.encode(),
        "bytes": lambda: value,
        "pickle": lambda: pickle.dumps(Payload()),
        "row": lambda: json.dumps({"iteration": value}).encode() + b"\n" + data,
        "json": lambda: json.dumps({"run_id": value, "delivered": value}).encode(),
        "drop": lambda: json.dumps(_edited(json.loads(data or b"{}"), how, value)).encode(),
        "set": lambda: json.dumps(_edited(json.loads(data or b"{}"), how, value)).encode(),
    }
    return contents[how]() if how in contents else None


def _edited(content: Any, how: str, value: Any) -> Any:
    names = (value if how == "drop" else value[0]).split("/")
    place = content
    for name in names[:-1]:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    last = int(names[-1]) if isinstance(place, list) else names[-1]
    if how == "set":
        place[last] = value[1]
    elif isinstance(place, list) or last in place:
        del place[last]
    return content


# -- what lies there before ----------------------------------------------------------------------


class Templates:
    """Folders made once and copied for every case that needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._keys: dict[str, str] = {}
        self._sweep(folder / "sweep" / "sweep")
        for name in ("sweep", "plain"):
            place = folder / name
            (place / "other").mkdir(parents=True)
            (place / "other" / "mine.txt").write_text("mine")
            (place / "file").write_text("a file")
            (place / "loop").symlink_to("loop")

    def lay_out(self, name: str, work: Path) -> None:
        """A fresh copy of the folder of that name."""
        shutil.copytree(self.folder / name, work, symlinks=True)

    def named(self, text: str) -> str:
        """`trials/done` as the directory of that trial."""
        for name, key in self._keys.items():
            text = text.replace(f"trials/{name}", f"trials/{key}")
        return text

    def _sweep(self, out: Path) -> None:
        """Four trials: done, stopped half-way, failed, planned."""
        base = PRESETS["tiny"].override()
        made = grid.cells(base, grid.parse_grid(["esteps=1,2"], "tiny"))
        plan = new_plan("tiny", base).grow(made, (0, 1), "esteps=1,2")
        store = Store(out)
        store.write_plan(plan)
        done, half, failed, _ = plan.trials()
        self._keys = {"done": done.key, "half": half.key, "failed": failed.key}
        for _ in trainer.train(done.config, store.trial_dir(done.key)):
            pass
        path = store.trial_dir(half.key)
        with patch.object(trainer, "PROGRESS_SECONDS", -1.0):
            progress = trainer.train(half.config, path, checkpoint_seconds=-1)
            while next(progress).iteration < 3:
                pass
            progress.close()
        assert (path / run_dir.PREVIOUS_CHECKPOINT).exists()
        path = store.trial_dir(failed.key)
        record_end(path, failed.config, State.FAILED, "code: KeyError: 'a'")
