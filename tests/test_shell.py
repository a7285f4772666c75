"""What is printed to be typed next works as it is printed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpcc import shell


def test_a_program_goes_by_its_name_only_where_the_shell_finds_this_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("environment", "system"):  # as in a venv: two links to one interpreter
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python").symlink_to(Path(sys.executable).resolve())
    ours = tmp_path / "environment" / "python"
    monkeypatch.setattr(sys, "executable", str(ours))
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    assert shell.program("python") == str(ours)
    monkeypatch.chdir(tmp_path)
    assert shell.program("python") == "environment/python"
    monkeypatch.setenv("PATH", f"{ours.parent}{os.pathsep}{tmp_path / 'system'}")
    assert shell.program("python") == "python"
    assert shell.program("no-such-program") == "no-such-program"


def test_a_path_is_shown_from_here_where_it_lies_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell.shown(tmp_path / "runs" / "a") == shell.shown(Path("runs/a")) == "runs/a"
    assert shell.shown(tmp_path.parent / "b") == str(tmp_path.parent / "b")


def test_a_script_runs_as_it_is_printed_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(shell.script("analysis", "make_tables.py"))
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "Tables from the records" in done.stdout
