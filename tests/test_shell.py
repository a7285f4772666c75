"""What is printed to be typed next works as it is printed."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpcc import shell
from tests.records import SweepBuilder
from tune import command

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://ada:se@cret@host:5432/db", "postgresql://ada:***@host:5432/db"),
        ("mysql+pymysql://host/db?user=ada&password=secret&x=1", "...db?user=ada&password=***&x=1"),
        ("no answer of https://secret@host/x (401)", "no answer of https://***@host/x (401)"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
    ],
)
def test_a_password_in_an_address_is_not_shown(text: str, told: str) -> None:
    assert shell.without_password(text).endswith(told.removeprefix("..."))
    assert "secret" not in told
    assert shell.one_line(ValueError(text)) == shell.without_password(text)


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in (errno.EROFS, errno.EACCES):
        error = OSError(number, os.strerror(number), "/clone/runs")
        expected = f"cannot use /clone/runs: {os.strerror(number)}; choose another --out"
        assert shell.one_line(error) == expected
    monkeypatch.setattr(os, "access", lambda *_: False)
    unreadable = PermissionError(errno.EACCES, "Permission denied", __file__)
    assert shell.one_line(unreadable) == f"cannot read {__file__}: Permission denied"
    assert shell.one_line(ValueError("a\n b")) == "a b"
    assert shell.one_line(ValueError()) == "ValueError"


def test_a_command_ends_its_process_but_no_notebooks_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    command.end(3)
    monkeypatch.setattr("builtins.__IPYTHON__", True, raising=False)
    with pytest.raises(SystemExit, match="4"):  # %run of a cell.
        command.end(4)
    assert ended == [3]


# -- standard output that nobody reads -----------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = SweepBuilder(tmp_path_factory.mktemp("sweep") / "s").plan([{"n_encoder_steps": 1}])
    for seed in range(3):
        made.trial({"n_encoder_steps": 1}, seed, {"acc_majority": 0.5})
    return made.path


COMMANDS = {
    "mpcc": "-m mpcc --preset tiny --dry-run",
    "installed": "-c 'import sys, mpcc.__main__ as m; sys.exit(m.main())' --preset tiny --dry-run",
    "ablation": "tune/ablation.py --accept-changed-code --status --out SWEEP",
    "search": "tune/search.py --dry-run --out SWEEP/none --space esteps=1..2 --points 0",
    "tables": "analysis/make_tables.py --runs SWEEP --out SWEEP/tables",
}
STREAMS = {
    "pipe": "| true; exit ${PIPESTATUS[0]}",
    "full": "> /dev/full",
    "closed": ">&-",
    "all": "<&- >&- 2>&-",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_nobody_takes_changes_no_exit_code(name: str, sweep: Path) -> None:
    command = f"{sys.executable} {COMMANDS[name]}".replace("SWEEP", str(sweep))

    def run(more: str) -> subprocess.CompletedProcess[str]:
        line = ["bash", "-c", f"{command} {more}"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    plain = run("")
    assert plain.returncode == (2 if name == "search" else 0), plain.stderr
    lost = "standard output cannot be written (No space left on device): what is printed is lost\n"
    for streams, more in STREAMS.items():
        done = run(more)
        assert done.returncode == plain.returncode, streams
        printed = streams == "full" and plain.stdout
        if streams != "all":
            assert done.stderr == (lost if printed else "") + plain.stderr
    if name == "tables":
        assert (sweep / "tables" / "grid.md").stat().st_size > 0
