"""The right to work on a folder: where files cannot be locked, and when another has taken it."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli_ablation import call, write_plan
from tune import drivers, ledger, lock


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot lock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)


def named(pid: int, host: str | None = None) -> str:
    """What the lock of this process says."""
    host = host or socket.gethostname()
    return json.dumps({"host": host, "pid": pid, "started": 0, "running": [], "token": "other"})


def test_without_file_locks_a_living_driver_of_this_machine_is_respected(
    tmp_path: Path, without_locks: None
) -> None:
    file = tmp_path / lock.LOCK
    file.write_text(named(os.getppid()))
    with pytest.raises(lock.LockError, match=f"in use by process {os.getppid()}"):
        lock.Lock(tmp_path)
    assert lock.lock_owner(tmp_path) is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    file.write_text(named(gone.pid))
    held = lock.Lock(tmp_path)
    assert not held.lost
    held.release()


def test_without_file_locks_the_later_of_two_that_begin_at_once_stays(
    tmp_path: Path, without_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.sleep

    def sleep(seconds: float) -> None:
        (tmp_path / lock.LOCK).write_text(named(os.getppid()))
        real(0)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(lock.LockError, match="just been taken by another driver"):
        lock.Lock(tmp_path)
    assert json.loads((tmp_path / lock.LOCK).read_text())["token"] == "other"


def test_a_driver_that_was_taken_for_dead_notices_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    held = lock.Lock(tmp_path)
    file = tmp_path / lock.LOCK
    theirs = named(1, "elsewhere")
    file.write_text(theirs)
    held.renew({"abc"})
    assert held.lost and file.read_text() == theirs
    held.release()
    assert file.read_text() == theirs


def test_the_lock_is_renewed_whatever_the_driver_is_busy_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    held = lock.Lock(tmp_path)
    file = tmp_path / lock.LOCK
    os.utime(file, (0, 0))
    limit = time.monotonic() + 10
    while file.stat().st_mtime == 0 and time.monotonic() < limit:
        time.sleep(0.02)
    assert time.time() - file.stat().st_mtime < 60
    held.release()


def test_of_two_commands_that_grow_a_folder_neither_loses_the_others_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has read the plan before the first one wrote it, and gets the lock after."""
    write_plan(tmp_path, "--grid", "esteps=1")
    real = drivers.Lock
    ran: list[int] = []

    def late(out: Path) -> Any:
        monkeypatch.setattr(drivers, "Lock", real)
        write_plan(tmp_path, "--grid", "esteps=1,2")
        return real(out)

    monkeypatch.setattr(drivers, "Lock", late)
    monkeypatch.setattr("tune.preflight.check_tracking", lambda *_, **__: None)
    monkeypatch.setattr("tune.sweep.run", lambda plan, trials, *_: ran.append(len(trials)) or 3)
    code, _, _ = call(capsys, "--preset", "tiny", "--out", str(tmp_path), "--grid", "esteps=1,4")
    assert code == 3 and len(ran) == 1
    plan = ledger.read_plan(tmp_path)
    assert plan is not None
    assert [c.cell.text for c in plan.cells] == ["esteps=1", "esteps=2", "esteps=4"]
