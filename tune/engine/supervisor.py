"""The parent of a local Ray: ends all its processes when the driver ends, in whatever way.

Run as a script in a session of its own, `python supervisor.py DRIVER_PID FOLDER COMMAND ...`. Ray
gives each worker a process group of its own, so the session is what all processes of Ray have in
common. Ray's temporary FOLDER is removed after them.
Standard library only, because Ray waits for this process to start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_SECONDS = 0.1
KILL_SECONDS = 10.0
"""Limit for the end of all processes; the kernel ends one that waits for a dead disk later."""


def session_members(session: int) -> list[int]:
    """Return the processes of a session that have not ended, without the calling process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; then follow state, parent, group, session.
            words = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # The process has just ended.
        if int(words[3]) == session and words[0] not in (b"Z", b"X"):
            found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def kill_session(session: int, seconds: float = KILL_SECONDS) -> bool:
    """Kill all processes of a session but the calling one; return whether all have ended."""
    end = time.monotonic() + seconds
    while members := session_members(session):  # Again: one may have started another meanwhile.
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def main(driver: int, folder: str, command: list[str]) -> int:
    """Run the command until it ends or the driver ends, then end its session."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler, because the command would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    supervisor = os.getpid()
    if os.fork() == 0:  # A second watcher, in case this process is killed as well.
        while os.getppid() == supervisor:
            time.sleep(LOOK_SECONDS)
        kill_session(supervisor)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    head = subprocess.Popen(command)
    while os.getppid() == driver and head.poll() is None:
        time.sleep(LOOK_SECONDS)
    code = head.poll()
    kill_session(supervisor)
    if code is None:  # Else the driver needs the log that says why Ray has ended.
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if code is None else abs(code)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
