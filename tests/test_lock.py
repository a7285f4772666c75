"""One driver for each sweep: refused, replaced, released; with real processes.

"Elsewhere" is a process of this machine that takes itself for another machine and whose file locks
are not seen here, as on a shared disk that does not pass them on.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tune.store import lock as lock_module
from tune.store import remote as remote_module
from tune.store.folder import Store
from tune.store.lock import CLAIM, Claim, Claims, LockError, release_lock, sweep_lock, sweep_owner
from tune.store.remote import Remote

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from tune.store import lock as module
from tune.store.folder import Store
from tune.store.lock import LockError, sweep_lock
from tune.store.remote import Remote

out, remote, machine, *keys = sys.argv[1:]
module.BEAT_SECONDS, module.LOOK_SECONDS, module.WATCH_SECONDS = 0.3, 0.2, 3.0
if machine:
    module.this_machine = lambda: machine
    module.socket.gethostname = lambda: machine
    module.time.time = lambda: 1e10  # A clock that is centuries ahead.
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")
    fcntl.flock = refuse
try:
    with sweep_lock(Store(Path(out), Remote(remote) if remote else None)) as lock:
        lock.renew(keys)
        time.sleep(0.6)
        print("held", flush=True)
        while not lock.lost:
            time.sleep(0.02)
        print("lost", flush=True)
except LockError as error:
    print(error, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]
USUAL = (lock_module.BEAT_SECONDS, lock_module.WATCH_SECONDS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.3), ("LOOK", 0.2), ("WATCH", 3.0)):
        monkeypatch.setattr(lock_module, f"{name}_SECONDS", seconds)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a driver of a folder, as a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def driver(
        out: Path, *keys: str, remote: str = "", machine: str = ""
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLD, str(out), remote, machine, *keys]
        begun.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return begun[-1]

    yield driver
    for process in begun:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def no_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOTSUP) -> Iterator[None]:
    """A file system that cannot lock."""

    def refuse(*_: object) -> None:
        raise OSError(number, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        yield


def running_keys(out: Path) -> set[str]:
    owner = sweep_owner(out)
    return set() if owner is None else set(owner.running)


# -- one machine -----------------------------------------------------------------------------------


def test_a_second_driver_is_refused_and_a_dead_ones_lock_is_taken_over(
    tmp_path: Path, start: Start
) -> None:
    owner = start(tmp_path, "abc", "def")
    assert said(owner) == "held"
    with pytest.raises(LockError, match="--address adds machines") as error, open_lock(tmp_path):
        pass
    text = f"{tmp_path} is in use by process {owner.pid} on {socket.gethostname()} since 20"
    assert str(error.value).startswith(text) and "\n" not in str(error.value)
    found = sweep_owner(tmp_path)
    assert found is not None and found.pid == owner.pid and found.text in str(error.value)
    assert running_keys(tmp_path) == {"abc", "def"}
    owner.kill()
    wait(lambda: sweep_owner(tmp_path) is None)  # Also while nobody has taken note of its end.
    assert running_keys(tmp_path) == set()
    begun = time.monotonic()
    with open_lock(tmp_path):
        assert time.monotonic() - begun < 1
        found = sweep_owner(tmp_path)
        assert found is not None and found.pid == os.getpid()
    assert sweep_owner(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["driver.lock"]


def test_a_driver_that_hangs_keeps_its_lock_on_this_machine(tmp_path: Path, start: Start) -> None:
    owner = start(tmp_path)
    assert said(owner) == "held"
    owner.send_signal(signal.SIGSTOP)
    time.sleep(1)
    with pytest.raises(LockError, match=f"process {owner.pid}"), open_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"pid": "x"}'])
def test_a_torn_claim_and_what_earlier_code_left_do_not_hinder(
    tmp_path: Path, content: bytes
) -> None:
    old = {"host": "elsewhere", "pid": 1, "started": 0, "running": ["abc"], "token": "other"}
    drivers = tmp_path / "drivers"
    drivers.mkdir()
    (tmp_path / CLAIM).write_bytes(content)
    for file in (tmp_path / "driver.lock", drivers / "0123abcd.json"):
        file.write_text(json.dumps(old))
    for file in (drivers / "plan.lock", drivers / "0123abcd.stop"):
        file.touch()
    assert sweep_owner(tmp_path) is None
    begun = time.monotonic()
    with open_lock(tmp_path):
        assert time.monotonic() - begun < 1 and sweep_owner(tmp_path) is not None
    assert sweep_owner(tmp_path) is None and not (tmp_path / CLAIM).exists()


def test_the_claim_says_which_trials_run_now(tmp_path: Path) -> None:
    with open_lock(tmp_path) as lock:
        lock.renew(["abc"])
        wait(lambda: running_keys(tmp_path) == {"abc"})
        lock.renew([])
        wait(lambda: running_keys(tmp_path) == set())
        assert not lock.lost


def test_a_full_disk_ends_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with open_lock(tmp_path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(remote_module, "write_bytes", full)
            lock.renew(["abc"])
            time.sleep(1)
            assert running_keys(tmp_path) == set()
        wait(lambda: running_keys(tmp_path) == {"abc"})
        assert not lock.lost


def test_a_folder_that_takes_no_claim_is_refused_by_an_ordinary_error(tmp_path: Path) -> None:
    (tmp_path / CLAIM).mkdir()
    assert sweep_owner(tmp_path) is None
    with pytest.raises(OSError, match=str(tmp_path)), open_lock(tmp_path):
        pass
    (tmp_path / CLAIM).rmdir()
    with open_lock(tmp_path):  # Nothing of it is locked.
        pass


def test_who_works_on_a_folder_is_seen_without_heavy_imports(tmp_path: Path, start: Start) -> None:
    owner = start(tmp_path)
    assert said(owner) == "held"
    program = (
        "import sys\nfrom pathlib import Path\nfrom tune.store.folder import open_store\n"
        "from tune.store.lock import sweep_owner\n"
        f"print(sweep_owner(open_store(Path({str(tmp_path)!r})).out).pid,"
        " sorted({'pyarrow', 'filelock', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == f"{owner.pid} []", done.stderr


# -- several machines, or a file system without locks ----------------------------------------------


def test_an_owner_elsewhere_holds_while_its_claim_changes_whatever_its_clock_says(
    tmp_path: Path, start: Start
) -> None:
    owner = start(tmp_path, "abc", machine="elsewhere")
    assert said(owner) == "held"
    lines: list[str] = []
    begun = time.monotonic()
    with (
        pytest.raises(LockError, match=f"in use by process {owner.pid} on elsewhere since 2286-"),
        open_lock(tmp_path, lines),
    ):
        pass
    assert time.monotonic() - begun < lock_module.WATCH_SECONDS
    (line,) = lines
    assert f"may be in use by process {owner.pid} on elsewhere" in line
    assert running_keys(tmp_path) == {"abc"}


def test_an_owner_elsewhere_that_is_gone_is_replaced_after_a_while_and_not_before(
    tmp_path: Path, start: Start
) -> None:
    assert 3 * USUAL[0] < USUAL[1] == 30  # Seconds; here it is a tenth of them.
    owner = start(tmp_path, machine="elsewhere")
    assert said(owner) == "held"
    owner.kill()
    future = time.time() + 86_400  # By the clock of its machine the claim is of tomorrow.
    os.utime(tmp_path / CLAIM, (future, future))
    found = sweep_owner(tmp_path)  # Nobody can know at once.
    assert found is not None and "on elsewhere" in found.text
    begun = time.monotonic()
    with open_lock(tmp_path):
        assert lock_module.WATCH_SECONDS <= time.monotonic() - begun < lock_module.WATCH_SECONDS + 2
        found = sweep_owner(tmp_path)
        assert found is not None and found.pid == os.getpid()


@pytest.mark.parametrize("late", [False, True])
def test_an_owner_that_was_replaced_while_it_hung_leaves_and_one_driver_stays(
    late: bool, tmp_path: Path, start: Start
) -> None:
    owner = start(tmp_path, machine="elsewhere")
    assert said(owner) == "held"
    owner.send_signal(signal.SIGSTOP)
    stale = (tmp_path / CLAIM).read_bytes()
    with open_lock(tmp_path) as lock:
        if late:  # It was about to write its claim when it was stopped: then the other one leaves.
            (tmp_path / CLAIM).write_bytes(stale)
            wait(lambda: lock.lost)
        owner.send_signal(signal.SIGCONT)
        if not late:
            assert said(owner) == "lost"
        time.sleep(1)
        assert lock.lost is late and (owner.poll() is None) is late


def test_of_many_that_start_at_once_without_locks_one_works(tmp_path: Path, start: Start) -> None:
    drivers = [start(tmp_path, machine=f"machine{i}") for i in range(4)]
    ends = [said(driver) for driver in drivers]
    assert ends.count("held") == 1, ends
    assert all("in use by process" in end for end in ends if end != "held")


def test_of_two_that_write_their_claims_at_once_the_last_stays(tmp_path: Path) -> None:
    files = Remote(str(tmp_path))
    first, second = Claim(files, CLAIM), Claim(files, CLAIM)
    first.write()
    second.write()
    assert second.held() and not first.held()
    first.withdraw()  # It leaves the other's claim alone.
    assert second.held()
    second.withdraw()
    assert not second.held() and files.list() == {}


def test_without_file_locks_a_living_driver_of_this_machine_is_respected_and_a_dead_one_is_not(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start(tmp_path)
    assert said(owner) == "held"
    for number in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
        with (
            no_locks(monkeypatch, number),
            pytest.raises(LockError, match=f"in use by process {owner.pid}"),
            open_lock(tmp_path),
        ):
            pass
    with no_locks(monkeypatch):
        owner.kill()
        owner.wait()
        begun = time.monotonic()
        with open_lock(tmp_path) as lock:
            assert time.monotonic() - begun < 1 and not lock.lost


# -- released by hand ------------------------------------------------------------------------------


def test_a_released_sweep_is_free_and_its_owner_leaves(tmp_path: Path, start: Start) -> None:
    store = Store(tmp_path)
    assert release_lock(store) is None
    owner = start(tmp_path, machine="elsewhere")
    assert said(owner) == "held"
    found = release_lock(store)
    assert found is not None and found.text.startswith(f"process {owner.pid} on elsewhere since")
    assert sweep_owner(tmp_path) is None
    with open_lock(tmp_path):
        assert said(owner) == "lost"


def test_the_claim_of_a_machine_that_is_gone_is_released_at_once(
    tmp_path: Path, start: Start
) -> None:
    remote = tmp_path / "remote"
    store = Store(tmp_path / "out", Remote(str(remote)))
    owner = start(store.out, remote=str(remote), machine="elsewhere")
    assert said(owner) == "held"
    owner.kill()
    found = release_lock(store)
    assert found is not None and "on elsewhere" in found.text
    begun = time.monotonic()
    with sweep_lock(store):
        assert time.monotonic() - begun < 1


# -- a remote --------------------------------------------------------------------------------------


def test_of_two_drivers_on_one_remote_the_second_is_refused_and_a_dead_one_replaced(
    tmp_path: Path, start: Start
) -> None:
    remote = tmp_path / "remote"
    owner = start(tmp_path / "first", "abc", remote=str(remote))
    assert said(owner) == "held"
    store = Store(tmp_path / "second", Remote(str(remote)))
    with pytest.raises(LockError, match="choose another --storage") as error, sweep_lock(store):
        pass
    assert str(error.value).startswith(f"{remote} is in use by process {owner.pid} on ")
    found = sweep_owner(store.out, store.remote)
    assert found is not None and found.running == ("abc",) and sweep_owner(store.out) is None
    owner.kill()
    owner.wait()
    # As if it had died while it wrote its claim.
    (remote / f".driver.json.{owner.pid}.tmp").write_text('{"name"')
    begun = time.monotonic()
    with sweep_lock(store) as lock:
        assert time.monotonic() - begun < 1
        lock.renew(["def"])
        wait(lambda: sweep_owner(tmp_path, store.remote).running == ("def",))  # type: ignore[union-attr]
    assert sweep_owner(store.out, store.remote) is None
    assert not list(remote.iterdir())


def test_a_remote_that_is_away_for_a_while_costs_no_driver_its_claim(tmp_path: Path) -> None:
    root = tmp_path / "remote"
    store = Store(tmp_path / "out", Remote(str(root)))
    with sweep_lock(store) as lock:
        root.rename(tmp_path / "away")
        time.sleep(1.5)
        (tmp_path / "away").rename(root)
        time.sleep(1.5)
        assert not lock.lost and sweep_owner(store.out, store.remote) is not None
    assert not list(root.iterdir())


def test_nobody_works_on_a_remote_that_is_not_made_yet(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", Remote(str(tmp_path / "remote")))
    assert sweep_owner(store.out, store.remote) is None and release_lock(store) is None
    assert list(tmp_path.iterdir()) == []


def open_lock(
    out: Path, lines: list[str] | None = None
) -> contextlib.AbstractContextManager[Claims]:
    return sweep_lock(Store(out), [].append if lines is None else lines.append)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
