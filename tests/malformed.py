"""Malformed input: cases drawn from one seed, laid out, called in this process, and judged.

The contract: no traceback, a right exit code, nothing on the disk changed by a refusal, no code of
a file run; a refusal is one line on stderr that begins with the program's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from analysis import make_tables
from mpcc.__main__ import main as mpcc_main
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training import trainer
from tune import ablation, estimate, search
from tune.plan import grid
from tune.plan.plan import new_plan
from tune.plan.state import State
from tune.store.folder import Store, record_end

MPCC, ABLATION, SEARCH = "python -m mpcc", "ablation.py", "search.py"
TABLES = "make_tables"
MAINS: dict[str, Callable[[list[str]], int]] = {
    MPCC: mpcc_main,
    ABLATION: ablation.main,
    SEARCH: search.main,
    TABLES: make_tables.main,
}
STARTED = "started"
"""The code of what is taken: training, or Ray, was about to start."""
TAKEN_OR_REFUSED = frozenset({0, 2, 3, STARTED})
CANARY = "canary"
"""A file in the working folder that a pickle makes when its code is run."""

# -- command lines -------------------------------------------------------------------------------

SOUND = {
    MPCC: ["--preset", "tiny", "--out", "{work}/r"],
    ABLATION: ["--preset", "tiny", "--grid", "esteps=1", "--out", "{work}/s"],
    SEARCH: ["--preset", "tiny", "--space", "eta_p=1e-3..1e-2:log", "--out", "{work}/s"],
    TABLES: ["--runs", "{work}/sweep", "--out", "{out}"],
}
"""A command line that each program takes; what is spoilt is added to it."""
BAD_VALUES = [
    "", ",", "=", "x", "x,y", "nan", "inf", "-1", "0", "1.5", "1e99", "9" * 400, "\u00e9\u2028t=1",
    "width=1\n2", "K=1e999", "no=1", "width=0", "width", "esteps=", "=1", "esteps=1,,2", "esteps=9",
    "esteps=1,1", "eta_p=2..1", "eta_p=0..1:log", "eta_p=1..2:step=0", "seed=1.5", "prior=norml",
    "conditional=true", "mse,mse", "mse,x", "best", "tables", "{work}/none", "{work}/file",
    "{work}/file/below", "{work}/other", "{work}/loop/x", "~no-such-user/x", "ftp://x", "s3://",
    "s3://a:b@c/d", "sqlite:///", "sqlite:///{work}/file/x", "cuda:99", "host:99999",
]  # fmt: skip

# -- damage --------------------------------------------------------------------------------------

FILES = ["sweep.json", "sweep-copy.json", "driver.lock", "trials/done"]
FILES += [
    f"trials/{trial}/{name}"
    for trial in ("done", "half", "failed")
    for name in ("config.json", "result.json", "metrics.jsonl", "provenance.json", "checkpoint.pt")
]
ON_A_SWEEP = [
    (ABLATION, ["--out", "{work}/sweep", "--status"]),
    (ABLATION, ["--out", "{work}/sweep", "--dry-run", "--address", "auto"]),
    (TABLES, [*SOUND[TABLES], "--format", "md,csv,html"]),
    (MPCC, ["--preset", "tiny", "--set", "n_encoder_steps=1", "--out", "{work}/sweep/trials/done"]),
]
JUNK: list[Any] = [None, True, -1, 0, 2.5, "x", "", [], [[]], {}, {"a": 1}, [1, 2], "nan"]
JUNK += [10**400, "9" * 50, {"schema": 1}, [None], "\u2028\n", float("nan"), -1e99]
TEXTS = ["", "{", "[]", "null", "7", '"text"', "{}}", "[" * 100_000]
UNREADABLE = ("cut", "text", "bytes", "folder", "loop", "pickle")
"""Damage after which no JSON object can be read."""
HOWS = (*UNREADABLE, "flip", "remove", "dangling", "forbid", "drop", "set")


class Payload:
    """Unpickling it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (CANARY, "w"))


def spoil(path: Path, how: str, seed: int) -> None:
    """Do the damage to a file, which need not be there."""
    rng, data = random.Random(seed), path.read_bytes() if path.is_file() else b""
    if how not in ("flip", "forbid", "cut", "drop", "set"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "folder":
        path.mkdir()
    elif how in ("loop", "dangling"):
        path.symlink_to(path.name if how == "loop" else "nowhere")
    elif how in ("text", "bytes", "pickle"):
        text = rng.choice(TEXTS).encode()
        path.write_bytes({"text": text, "bytes": b"\xff\xfe" + rng.randbytes(20)}.get(how)
                         or pickle.dumps(Payload()))  # fmt: skip
    elif path.is_file() and how == "forbid":
        path.chmod(0)
    elif path.is_file() and how == "cut":
        path.write_bytes(data[: rng.choice((0, len(data) // 2))])
    elif path.is_file() and how == "flip" and data:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
    elif path.is_file() and path.suffix in (".json", ".jsonl"):
        first, *rest = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        path.write_text("\n".join([json.dumps(edited(json.loads(first), how, rng)), *rest]))


def edited(content: Any, how: str, rng: random.Random) -> Any:
    """The object with one of its values, however deep it lies, dropped or replaced."""
    place, key = content, rng.choice(sorted(content))
    while place[key] and isinstance(place[key], dict | list) and rng.random() < 0.7:
        place = place[key]
        key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if how == "drop":
        del place[key]
    else:
        place[key] = rng.choice(JUNK)
    return content


# -- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call, `{work}` standing for its folder and `{out}` for one beside it; what is spoilt."""

    program: str
    argv: tuple[str, ...]
    file: str = ""
    how: str = ""
    seed: int = 0
    codes: frozenset[int | str] = frozenset({2})

    def __str__(self) -> str:
        return f"{self.program} {list(self.argv)} {self.file} {self.how} {self.seed}"


def options(program: str) -> list[str]:
    """The long options that the program's --help explains."""
    told = str(called(program, ["--help"]).out)
    return sorted(set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", told, re.M)) - {"--help"})


def cases(n: int, number: int) -> list[Case]:
    """`n` different cases, half of them command lines, the same for the same seed."""
    rng, found = random.Random(number), dict[str, Case]()
    known = {program: options(program) for program in MAINS}
    while len(found) < n:
        if len(found) < n // 2:
            program = rng.choice(list(MAINS))
            word = f"{rng.choice(known[program])}={rng.choice(BAD_VALUES)}"
            if rng.random() < 0.1:
                word = f"--zz{word}"
            case = Case(program, (*SOUND[program], word), codes=TAKEN_OR_REFUSED)
        else:
            program, argv = rng.choice(ON_A_SWEEP)
            file, how = rng.choice(FILES), rng.choice(HOWS)
            codes = TAKEN_OR_REFUSED
            if "/" in file and program == ABLATION:  # No record hinders a look at the others.
                codes = frozenset({3 if "--status" in argv else 0})
            case = Case(program, tuple(argv), file, how, rng.randrange(1000), codes)
        found[str(case)] = case
    return list(found.values())


# -- what lies there before ----------------------------------------------------------------------


class Template:
    """A folder with a sweep, made once and copied for every case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "other").mkdir(parents=True)
        (folder / "other" / "mine.txt").write_text("mine")
        (folder / "file").write_text("a file")
        (folder / "loop").symlink_to("loop")
        self.keys = self._sweep(folder / "sweep")

    def lay_out(self, work: Path) -> None:
        """A fresh copy."""
        shutil.copytree(self.folder, work, symlinks=True)

    def named(self, text: str) -> str:
        """`trials/done` as the directory of that trial."""
        for name, key in self.keys.items():
            text = text.replace(f"trials/{name}", f"trials/{key}")
        return text

    def _sweep(self, out: Path) -> dict[str, str]:
        """Four trials: done, stopped half-way, failed, planned; the keys of the first three."""
        base = PRESETS["tiny"].override()
        made = grid.cells(base, grid.parse_grid(["esteps=1,2"], "tiny"))
        plan = new_plan("tiny", base).grow(made, (0, 1), "esteps=1,2")
        store = Store(out)
        store.write_plan(plan)
        done, half, failed, _ = plan.trials()
        list(trainer.train(done.config, store.trial_dir(done.key)))
        with patch.object(trainer, "PROGRESS_SECONDS", -1.0):
            progress = trainer.train(half.config, store.trial_dir(half.key), checkpoint_seconds=-1)
            while next(progress).iteration < 3:
                pass
            progress.close()
        assert (store.trial_dir(half.key) / run_dir.PREVIOUS_CHECKPOINT).exists()
        path = store.trial_dir(failed.key)
        record_end(path, failed.config, State.FAILED, "code: KeyError: 'a'")
        return {"done": done.key, "half": half.key, "failed": failed.key}


# -- calls and what is wrong with them -----------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """An ended call of a program in this process."""

    code: int | str
    """The exit code; STARTED; for an exception its name and place."""
    out: str
    err: str


class Started(BaseException):
    """Something was about to be trained."""


def _started(*_: Any) -> None:
    raise Started


def _not_measured(*_: Any) -> None:
    raise ValueError("nothing is measured here")


def called(program: str, argv: list[str]) -> Call:
    """Call `main` of a program; nothing is trained, Ray is not started."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with (
                patch("tune.run.sweep_lock", _started),
                patch("tune.run.trial_lock", _started),
                patch.object(trainer, "_Run", _started),
                patch.object(estimate, "measure", _not_measured),
            ):
                code = MAINS[program](argv)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else repr(ended.code)
        except Started:
            code = STARTED
        except Exception as error:  # Any is an offence.
            code = "".join(traceback.format_exception(error)[-3:])
    return Call(code, out.getvalue(), err.getvalue())


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
            mode = path.stat().st_mode
            path.chmod(mode | 0o400)
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            path.chmod(mode)
        else:
            found[name] = "folder"
    return found


def judge(case: Case, call: Call, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The offences of an answer."""
    offences = []
    if not isinstance(call.code, int) and call.code != STARTED:
        return [f"traceback: {call.code}"]
    if call.code not in case.codes:
        expected = sorted(case.codes, key=str)
        offences.append(f"exit code {call.code}, not {expected}: {call.err[-200:]!r}")
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
    if CANARY in changed or (changed and (call.code == 2 or case.program == ABLATION)):
        offences.append(f"changed on the disk: {changed[:5]}")
    unread = case.file == "trials/done/result.json" and case.how in UNREADABLE
    if unread and case.codes == {3}:
        if not any(" stopped " in line and "result.json" in line for line in call.out.splitlines()):
            offences.append("the damaged trial is not shown as stopped with its cause")
    return offences


@dataclass
class Outcome:
    """What came of the cases: how often each program ended by each code, and all offences."""

    codes: Counter[tuple[str, int | str]] = field(default_factory=Counter)
    offences: list[str] = field(default_factory=list)


def run(n: int, seed: int, folder: Path) -> Outcome:
    """Try `n` cases in folders below `folder`, which must be empty or missing."""
    folder, outcome = Path(folder).resolve(), Outcome()
    template = Template(folder / "template")
    work = folder / "case" / "work"
    before: dict[str, str] = {}
    for i, case in enumerate(cases(n, seed)):
        if not before:
            shutil.rmtree(work.parent, ignore_errors=True)
            template.lay_out(work)
            before = snapshot(work.parent)
        if case.how:
            spoil(work / "sweep" / template.named(case.file), case.how, case.seed)
            before = snapshot(work.parent)
        with inside(work.parent):
            argv = [template.named(word).replace("{work}", str(work)) for word in case.argv]
            out = work.parent / "out"
            call = called(case.program, [word.replace("{out}", str(out)) for word in argv])
            shutil.rmtree(out, ignore_errors=True)
            after = snapshot(work.parent)
            offences = judge(case, call, before, after)
        before = {} if case.how or after != before else before  # What nothing changed serves again.
        outcome.codes[case.program, call.code] += 1
        outcome.offences += [f"{i}: {case}: {what}" for what in offences]
    shutil.rmtree(work.parent)
    shutil.rmtree(template.folder)
    return outcome
