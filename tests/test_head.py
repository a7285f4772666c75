"""A local Ray: who can reach it, how it ends, and what of it is left."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import tune
from tests.test_exposure import is_loopback, sockets_of
from tune.engine import environment, head
from tune.engine.supervisor import kill_session, session_members

ROOT = Path(tune.__file__).parents[1]

DRIVER = """
import json, os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from tune.engine.head import EngineError, LocalHead
ray_head = LocalHead({"GREETING": "hello"})
ray_head.start(2)
failed = []
def connect():
    try:
        ray_head.connect()
    except EngineError as error:
        failed.append(str(error))
thread = threading.Thread(target=connect)  # As the engine does.
thread.start()
thread.join()
if failed:
    sys.exit(failed[0])
import ray
@ray.remote(num_cpus=1, max_restarts=0)
class Worker:
    def greet(self): return os.getpid(), os.environ["GREETING"]
workers = [Worker.remote() for _ in range(2)]
def say(**facts):
    print(json.dumps(facts), flush=True)
said = ray.get([worker.greet.remote() for worker in workers])
address = ray.get_runtime_context().gcs_address
say(supervisor=ray_head._supervisor.pid, folder=str(ray_head._folder), address=address,
    workers=[pid for pid, _ in said], greetings=[text for _, text in said])
for line in sys.stdin:
    begun = time.monotonic()
    if line == "problem\\n":
        while ray_head.problem() is None and time.monotonic() < begun + 30:
            time.sleep(0.1)
        say(problem=ray_head.problem(), seconds=time.monotonic() - begun)
    if line in ("stop\\n", "kill\\n"):
        getattr(ray_head, line.strip())()
        say(seconds=time.monotonic() - begun)
    if line == "again\\n":
        from tune.engine import head
        head.SHARED_MEMORY = "/nowhere"  # As in a container without it.
        ray_head = LocalHead()
        ray_head.start(1)
        ray_head.connect()
        ray_head.stop()
        say()
"""


class Driver:
    """A process that has started a local Ray with two workers."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(ROOT)],
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the driver says once Ray is there."""
        if self._facts is None:
            self._facts = self._read()
        return self._facts

    @property
    def session(self) -> int:
        return int(self.facts["supervisor"])

    def ask(self, word: str) -> dict[str, Any]:
        """Tell the driver a word and return its answer."""
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return dict(json.loads(line))

    def end(self) -> tuple[str, str]:
        """Let the driver end by itself and return what it has printed besides."""
        return self.process.communicate(timeout=30)

    def left_after(self, seconds: float) -> list[int]:
        """Processes of the session that are still there after so many seconds; waits no longer."""
        end = time.monotonic() + seconds
        while (left := session_members(self.session)) and time.monotonic() < end:
            time.sleep(0.1)
        return left


@pytest.fixture
def start() -> Iterator[Callable[..., Driver]]:
    """Start drivers that do not outlive the test."""
    drivers: list[Driver] = []

    def start(environment: Mapping[str, str] | None = None) -> Driver:
        drivers.append(Driver(environment))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.communicate()
        if driver._facts is not None:
            kill_session(driver.session)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


LEFT_BY_OTHERS = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_TOKEN": "of-another-cluster",
    "RAY_AUTH_MODE": "disabled",
    "RAY_REDIS_ADDRESS": "192.0.2.1:6379",
    "TUNE_RESULT_DIR": "/nowhere",
    "HOME": "/nowhere/at/all",
}


@pytest.mark.slow
def test_ray_is_private_and_quiet_and_ends_at_once_without_a_trace(
    start: Callable[..., Driver],
) -> None:
    """Whatever others left in the environment, without a home, and with umlauts in TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="ü ", dir="/tmp") as odd:
        driver = start(dict(os.environ) | LEFT_BY_OTHERS | {"TMPDIR": odd})
        folder = Path(driver.facts["folder"])
        assert driver.facts["greetings"] == ["hello", "hello"]
        assert mode(folder) == 0o700
        members = session_members(driver.session)
        assert set(driver.facts["workers"]) < set(members)
        sockets = sockets_of([driver.process.pid, *members])
        for program in ("gcs_server", "raylet"):
            assert any(program in words for words in sockets.values()), sockets
        assert [address for address in sockets if not is_loopback(address)] == []
        os.kill(driver.facts["workers"][0], signal.SIGKILL)  # Ray has something to say about that.
        time.sleep(2)
        assert driver.ask("stop")["seconds"] < 3
        assert driver.left_after(0) == [] and not folder.exists()
        assert driver.ask("again") == {}  # In one process, as the cells of a notebook are.
        assert driver.end() == ("", "") and driver.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("supervised", [True, False])
def test_nothing_is_left_when_the_driver_is_killed_and_a_worker_is_stopped(
    supervised: bool, start: Callable[..., Driver]
) -> None:
    """Even if the supervisor, which ends the rest at once, is killed with it."""
    driver = start()
    os.kill(driver.facts["workers"][0], signal.SIGSTOP)
    if not supervised:
        os.kill(driver.session, signal.SIGKILL)
    driver.process.kill()
    assert driver.left_after(10 if supervised else 60) == []
    assert not Path(driver.facts["folder"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["supervisor", "gcs_server"])
def test_the_end_of_a_part_of_ray_is_named_and_nothing_is_left(
    victim: str, start: Callable[..., Driver]
) -> None:
    driver = start()
    members = {pid: Path(f"/proc/{pid}/exe") for pid in session_members(driver.session)}
    (found,) = (
        [driver.session]
        if victim == "supervisor"
        else [pid for pid, program in members.items() if program.readlink().name == victim]
    )
    os.kill(found, signal.SIGKILL)
    said = driver.ask("problem")
    assert said["problem"].startswith("Ray has died") and said["seconds"] < 10
    assert victim == "supervisor" or victim in said["problem"]
    assert driver.ask("kill")["seconds"] < 10
    assert driver.left_after(0) == [] and driver.end() == ("", "")


def test_a_ray_that_is_ready_before_it_has_written_its_address_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(os, "environ", dict(os.environ))
    program = tmp_path / "ray"
    program.write_text(
        "#!/bin/sh\n"
        "for word; do case $word in --temp-dir=*) folder=${word#*=};; esac; done\n"
        "echo Ray runtime started.; sleep 0.5; mkdir $folder\n"
        "echo 127.0.0.1:1 > $folder/ray_current_cluster; exec sleep 60\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(head, "ray_program", lambda: program)
    asked: list[str] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    ray_head = head.LocalHead()
    ray_head.start(1)
    ray_head.connect()
    ray_head.stop()
    assert asked == ["127.0.0.1:1"]


def test_a_ray_that_does_not_start_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dict(os.environ)
    monkeypatch.setattr(os, "environ", changed)
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho Error: no\n")
    program.chmod(0o755)
    monkeypatch.setattr(head, "ray_program", lambda: program)
    ray_head = head.LocalHead()
    ray_head.start(1)
    with pytest.raises(head.EngineError, match="did not start on this machine .*Error: no") as it:
        ray_head.connect()
    assert "\n" not in str(it.value)
    ray_head.stop()
    ray_head.stop()  # Once more does no harm.


def test_another_thread_may_set_variables_while_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is imported meanwhile, and sets some: the list of all moves in memory."""
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(head, "ray_program", lambda: program)
    over = threading.Event()

    def set_variables() -> None:
        while not over.is_set():
            for number in range(3000):
                os.putenv(f"MPCC_TEST_{number}", "set")
            for number in range(3000):
                os.unsetenv(f"MPCC_TEST_{number}")

    thread = threading.Thread(target=set_variables)
    thread.start()
    try:
        for _ in range(8):
            ray_head = head.LocalHead()
            ray_head.start(1)
            ray_head.kill()
    finally:
        over.set()
        thread.join()


def test_a_head_that_was_never_started_can_be_ended() -> None:
    ray_head = head.LocalHead()
    assert ray_head.problem() is None
    ray_head.stop()
    ray_head.kill()


def test_a_session_ends_with_all_its_process_groups_stopped_ones_too() -> None:
    code = (
        "import subprocess as s; s.Popen(['sleep', '60'], process_group=0); s.run(['sleep', '60'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while len(session_members(process.pid)) < 3:
        time.sleep(0.01)
    os.kill(session_members(process.pid)[-1], signal.SIGSTOP)
    assert kill_session(process.pid) and session_members(process.pid) == []
    assert process.wait() == -signal.SIGKILL


def test_variables_are_set_before_ray_is_imported_and_a_clusters_own_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for local in (True, False):
        changed = {"RAY_ADDRESS": "a:1", "RAY_AUTH_MODE": "disabled", "TUNE_RESULT_DIR": "x"}
        monkeypatch.setattr(os, "environ", changed)
        environment.apply(local=local)
        assert "TUNE_RESULT_DIR" not in changed and changed["RAY_USAGE_STATS_ENABLED"] == "0"
        assert ("RAY_ADDRESS" in changed) is not local
        assert changed["RAY_AUTH_MODE"] == ("token" if local else "disabled")
