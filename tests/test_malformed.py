"""Malformed input: no traceback, the right exit code, nothing written, no code of a file run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.malformed import ABLATION, MPCC, SEARCH, SHARES, TABLES, Case, cases
from tests.malformed_runs import CANARY, Templates, called, inside, judge, run, snapshot

ROOT = Path(__file__).resolve().parents[1]
N = 300


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("malformed") / "templates")


def test_300_malformed_inputs_are_answered_as_promised(tmp_path: Path) -> None:
    outcome = run(N, 0, tmp_path)
    assert outcome.offences == []
    assert outcome.tried == Counter({kind: round(N * share) for kind, share in SHARES.items()})
    assert outcome.codes["command line 2"] == outcome.tried["command line"]


def test_cases_are_the_same_for_one_seed_and_others_for_another() -> None:
    first, again, other = cases(40, 5), cases(40, 5), cases(40, 6)
    assert list(map(repr, first)) == list(map(repr, again))
    assert len(set(map(repr, first))) == 40 and set(map(repr, first)) != set(map(repr, other))


def test_every_program_is_among_the_cases() -> None:
    programs = Counter(case.program for case in cases(N, 0))
    assert programs.keys() == {MPCC, ABLATION, SEARCH, TABLES}
    assert min(programs.values()) >= 5, programs


def test_the_same_folders_undamaged_are_taken(templates: Templates, tmp_path: Path) -> None:
    work = tmp_path / "work"
    templates.lay_out("sweep", work)
    with inside(tmp_path):
        out = f"{work}/sweep"
        assert called(ABLATION, ["--out", out, "--status"]).code == 3
        assert called(ABLATION, ["--out", out, "--dry-run"]).code == 0
        assert called(TABLES, ["--runs", out, "--out", "tables"]).code == 0
        assert "it started" in str(called(ABLATION, ["--out", out]).code)


def test_the_judge_sees_every_kind_of_offence(tmp_path: Path) -> None:
    from tests.malformed_runs import Call

    case = Case("command line", ABLATION, (), "plain")
    before: dict[str, str] = {}

    def offences(code: int | str, out: str, err: str, after: dict[str, str] = before) -> str:
        return " ".join(judge(case, Call(code, out, err), before, after))

    assert offences(2, "", "ablation.py: no\n") == ""
    assert "traceback" in offences("KeyError: 'a'", "", "")
    assert "exit code 0" in offences(0, "", "")
    assert "not one line" in offences(2, "", "ablation.py: no\nand no\n")
    assert "program's name" in offences(2, "", "usage: no\n")
    assert "result as well" in offences(2, "cells", "ablation.py: no\n")
    assert "changed on the disk" in offences(2, "", "ablation.py: no\n", {CANARY: "x"})


SPAWNED = [
    Case("command line", MPCC, ("--out", "{work}/r", "--set", "K=1e999"), "plain"),
    Case("command line", MPCC, ("--set", "width=1\n2", "--out", "{work}/r"), "plain"),
    Case("command line", ABLATION, ("--grid", "esteps=1,,2", "--out", "{work}/s"), "plain"),
    Case("command line", ABLATION, ("--grid=\u00e9\u2028t=1", "--out", "{work}/s"), "plain"),
    Case("command line", TABLES, ("--runs", "{work}/sweep", "--out", "{work}/file"), "sweep"),
    Case("command line", ABLATION, ("--grid", "esteps=1", "--storage", "~no-user/x"), "plain"),
    Case("command line", SEARCH, ("--space", "~no-user/x", "--out", "{work}/s"), "plain"),
    Case("command line", TABLES, ("--runs", "~no-such-user/x"), "plain"),
]  # fmt: skip
PROGRAMS = {
    MPCC: ["-m", "mpcc"],
    ABLATION: [str(ROOT / "tune" / "ablation.py")],
    SEARCH: [str(ROOT / "tune" / "search.py")],
    TABLES: [str(ROOT / "analysis" / "make_tables.py")],
}


@pytest.mark.parametrize("case", SPAWNED, ids=str)
def test_a_process_of_its_own_answers_alike(
    case: Case, templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.malformed_runs import Call

    work = tmp_path / "work"
    templates.lay_out(case.folder, work)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    argv = [word.replace("{work}", str(work)) for word in case.argv]
    before = snapshot(tmp_path)
    words = [sys.executable, *PROGRAMS[case.program], *argv]
    done = subprocess.run(words, cwd=work, capture_output=True, text=True, encoding="utf-8")
    call = Call(done.returncode, done.stdout, done.stderr)
    assert judge(case, call, before, snapshot(tmp_path)) == []
