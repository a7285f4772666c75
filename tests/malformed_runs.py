"""Lays out the cases of `tests.malformed`, calls the programs and judges what they did.

The contract: no traceback, the right exit code, nothing on the disk changed, no code of a file run;
a refusal is one line on stderr that begins with the program's name.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from mpcc.__main__ import main as mpcc_main
from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training import trainer
from tests.malformed import ABLATION, MPCC, RESTART, SEARCH, TABLES, Case, Damage, cases
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
    spoilt = work / ("sweep" if case.folder == "sweep" else "data")
    for damage in case.damage:
        spoil(spoilt / templates.named(damage.file), damage)
    with inside(work.parent):
        if case.program == RESTART:
            return restarted(case, work, templates)
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


def restarted(case: Case, work: Path, templates: Templates) -> tuple[list[str], int | str]:
    """Repair and train as a sweep does: the end must be that of an undisturbed trial."""
    out, offences = work / "sweep", []
    store = Store(out)
    plan = store.read_plan()
    assert plan is not None
    damaged = next(t for t in plan.trials() if t.key in templates.named(case.damage[0].file))
    path = store.trial_dir(damaged.key)
    logging.disable(logging.WARNING)
    try:
        store.repair(damaged)
        with patch.object(trainer, "write_pictures"):  # Most of the time, and none of the numbers.
            for _ in trainer.train(damaged.config, path):
                pass
        result = run_dir.read_result(path)
        whole = run_dir.read_result(templates.undisturbed / damaged.key)
        assert result is not None and whole is not None
        for name in ("state", "iteration", "weights_sha256", "metrics"):
            if result[name] != whole[name]:
                offences.append(f"another {name} than undisturbed: {result[name]}")
        if evaluations(path) != evaluations(templates.undisturbed / damaged.key):
            offences.append(f"other evaluations than undisturbed: {evaluations(path)}")
    except Exception as error:  # any is an offence
        return [f"traceback: {_place(error)}"], type(error).__name__
    finally:
        logging.disable(logging.NOTSET)
    if Path(CANARY).exists():
        offences.append("the code of a file was run")
    return offences, 0


def evaluations(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, but for times; the file must have nothing else."""
    rows = [json.loads(line) for line in (path / run_dir.METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


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
    elif damage.how == "image":
        _image(path, damage.value)
    new = _content(path, data, damage.how, damage.value)
    if new is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new)


def _content(path: Path, data: bytes, how: str, value: Any) -> bytes | None:
    """What a file of these bytes is to hold after the damage; None where it is not written."""
    if how == "flip":
        at = int(len(data) * value)
        return data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :] if data else None
    if how in ("sealed pickle", "other"):
        return _checkpoint_of_another(path) if how == "other" else _sealed(pickle.dumps(Payload()))
    contents: dict[str, Callable[[], bytes]] = {
        "truncate": lambda: data[: int(len(data) * value)],
        "text": lambda: value.encode(),
        "bytes": lambda: value,
        "pickle": lambda: pickle.dumps(Payload()),
        "idx": lambda: _idx(value),
        "row": lambda: json.dumps({"iteration": value}).encode() + b"\n" + data,
        "json": lambda: json.dumps({"run_id": value, "delivered": value}).encode(),
        "drop": lambda: json.dumps(_edited(json.loads(data or b"{}"), how, value)).encode(),
        "set": lambda: json.dumps(_edited(json.loads(data or b"{}"), how, value)).encode(),
        "batch": lambda: _batch(value),
    }
    return contents[how]() if how in contents else None


def _idx(value: Any) -> bytes:
    header = value[0] + struct.pack(f">{len(value) - 1}I", *value[1:])
    return gzip.compress(header + b"\0\x0b" * 30)


def _sealed(content: bytes) -> bytes:
    return b"mpcc checkpoint 1\n" + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _checkpoint_of_another(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(_another(run_dir.read_checkpoints(path.parent)[0][0].payload), buffer)
    return _sealed(buffer.getvalue())


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


def _another(payload: bytes) -> dict[str, Any]:
    """A checkpoint that is sound and of this trial, but of other networks."""
    content = torch.load(io.BytesIO(payload), weights_only=True)
    content["parts"]["encoder"]["raw"] = content["parts"]["encoder"]["raw"][:-1]
    return content


def _batch(how: str) -> bytes:
    """A CIFAR batch of four images that is not quite one."""
    images, labels = np.zeros((4, 3072), np.uint8), [0, 1, 2, 3]
    batch: Any = {"data": images, "labels": labels, "coarse_labels": labels}

    def with_labels(given: Any) -> dict[str, Any]:
        return {"data": images, "labels": given, "coarse_labels": given}

    made = {
        "empty": lambda: {"data": images[:0], "labels": [], "coarse_labels": []},
        "no images": lambda: {k: v for k, v in batch.items() if k != "data"},
        "no labels": lambda: {"data": images},
        "few labels": lambda: with_labels([0]),
        "ragged": lambda: with_labels([0, [1, 2], 3, 4]),
        "floats": lambda: with_labels([0.0, 1.0, 2.0, 3.0]),
        "large": lambda: with_labels([0, 1, 2, 99]),
        "negative": lambda: with_labels([0, 1, 2, -1]),
        "list": lambda: [images, labels],
        "shape": lambda: batch | {"data": images[:, :-1]},
        "int64": lambda: batch | {"data": images.astype(np.int64)},
        "none": lambda: with_labels(None),
        "text labels": lambda: with_labels(["a", "b", "c", "d"]),
        "huge": lambda: with_labels([10**30, 0, 1, 2]),
        "opens": lambda: batch | {"extra": Payload()},
    }
    if how == "deep":
        return b"\x80\x04" + b"(" * 100_000 + b"."
    if how == "calls":
        return b"cos\nsystem\n(S'touch " + CANARY.encode() + b"'\ntR."
    return pickle.dumps(made[how]())


def _image(path: Path, how: str) -> None:
    if how == "sound":
        Image.new("L", (8, 8)).save(path)
        return
    data = path.read_bytes()
    if how == "size":
        Image.new("L", (5, 7)).save(path)
        if path.parts[-2] == "cats":
            path.write_bytes(b"")  # Images of one's own may have any size.
    elif how == "gif":
        path.write_bytes(b"GIF89a" + data[6:])
    elif how == "bomb":
        head = struct.pack(">II", 2**17, 2**17) + data[24:29]
        crc = struct.pack(">I", __import__("zlib").crc32(b"IHDR" + head))
        path.write_bytes(data[:16] + head + crc + data[33:])
    elif how == "zero":
        head = struct.pack(">II", 0, 0) + data[24:29]
        crc = struct.pack(">I", __import__("zlib").crc32(b"IHDR" + head))
        path.write_bytes(data[:16] + head + crc + data[33:])
    else:
        changed = {
            "cut": data[:40],
            "empty": b"",
            "chunk": data[:37] + b"\xff" * 8 + data[45:],
            "text": b"not an image",
        }
        path.write_bytes(changed[how])


# -- what lies there before ----------------------------------------------------------------------


class Templates:
    """Folders made once and copied for every case that needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.undisturbed = folder / "undisturbed"
        self._keys: dict[str, str] = {}
        self._sweep(folder / "sweep" / "sweep")
        for name in ("sweep", "plain"):
            place = folder / name
            (place / "other").mkdir(parents=True)
            (place / "other" / "mine.txt").write_text("mine")
            (place / "file").write_text("a file")
            (place / "loop").symlink_to("loop")
        for name in ("mnist", "cifar10", "cifar20", "omniglot", "folder"):
            _DATA[name](folder / name / "data")

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
        for trial in (done, half):
            for _ in trainer.train(trial.config, self.undisturbed / trial.key):
                pass
        shutil.copytree(self.undisturbed / done.key, store.trial_dir(done.key))
        path = store.trial_dir(half.key)
        with patch.object(trainer, "PROGRESS_SECONDS", -1.0):
            progress = trainer.train(half.config, path, checkpoint_seconds=-1)
            while next(progress).iteration < 3:
                pass
            progress.close()
        assert (path / run_dir.PREVIOUS_CHECKPOINT).exists()
        path = store.trial_dir(failed.key)
        record_end(path, failed.config, State.FAILED, "code: KeyError: 'a'")


def _idx_data(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 30, 28, 28) + bytes(30 * 784)
        labels = struct.pack(">4BI", 0, 0, 8, 1, 30) + bytes(i % 10 for i in range(30))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    (raw / "MODIFIED.txt").write_text("made for tests")


def _cifar_data(folder: Path, name: str, key: str, files: list[str]) -> None:
    place = folder / name
    place.mkdir(parents=True)
    for file in files:
        batch = {"data": np.zeros((4, 3072), np.uint8), key: [0, 1, 2, 3]}
        (place / file).write_bytes(pickle.dumps(batch))
    (place / "MODIFIED.txt").write_text("made for tests")


def _omniglot_data(folder: Path) -> None:
    place = folder / "Omniglot" / "images_background"
    for i in range(100):
        character = place / f"a{i // 10:02}" / f"c{i % 10}"
        character.mkdir(parents=True)
        for j in range(2 if i == 0 else 1):
            Image.new("L", (12, 12), 255).save(character / f"{j}.png")


def _folder_data(folder: Path) -> None:
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(folder / label / f"{i}.png")


_DATA: dict[str, Callable[[Path], None]] = {
    "mnist": _idx_data,
    "cifar10": lambda folder: _cifar_data(
        folder,
        "cifar-10-batches-py",
        "labels",
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    ),
    "cifar20": lambda folder: _cifar_data(
        folder, "cifar-100-python", "coarse_labels", ["train", "test"]
    ),
    "omniglot": _omniglot_data,
    "folder": _folder_data,
}
