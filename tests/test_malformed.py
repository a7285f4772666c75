"""Malformed input: no traceback, the right exit code, nothing written, no code of a file run."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.malformed import (
    ABLATION,
    CANARY,
    MAINS,
    MPCC,
    SEARCH,
    STARTED,
    TABLES,
    Call,
    Case,
    Template,
    called,
    cases,
    inside,
    judge,
    run,
    snapshot,
)
from tests.test_promises import PROGRAMS

N = 100
"""`make faults` tries 300."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("malformed") / "template")


def test_malformed_inputs_are_answered_as_promised(tmp_path: Path) -> None:
    outcome = run(N, 0, tmp_path)
    assert outcome.offences == []
    assert outcome.codes.total() == N
    refused = Counter(program for (program, code), n in outcome.codes.items() if code == 2)
    assert refused.keys() == MAINS.keys()


def test_cases_are_the_same_for_one_seed_and_others_for_another() -> None:
    first, again, other = cases(40, 5), cases(40, 5), cases(40, 6)
    assert first == again and len(set(first)) == 40 and set(first) != set(other)


def test_the_same_folders_undamaged_are_taken(template: Template, tmp_path: Path) -> None:
    work = tmp_path / "work"
    template.lay_out(work)
    with inside(tmp_path):
        out = f"{work}/sweep"
        assert called(ABLATION, ["--out", out, "--status"]).code == 3
        assert called(ABLATION, ["--out", out, "--dry-run"]).code == 0
        assert called(TABLES, ["--runs", out, "--out", "tables"]).code == 0
        assert called(ABLATION, ["--out", out]).code == STARTED


def test_the_judge_sees_every_kind_of_offence() -> None:
    case = Case(ABLATION, ())
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


@pytest.mark.parametrize(
    ("name", "program", "words"),
    [
        ("mpcc", MPCC, ("--set", "width=1\n2", "--out", "{work}/r")),
        ("ablation", ABLATION, ("--grid=\u00e9\u2028t=1", "--out", "{work}/s")),
        ("search", SEARCH, ("--space", "~no-user/x", "--out", "{work}/s")),
        ("make_tables", TABLES, ("--runs", "{work}/sweep", "--out", "{work}/file")),
    ],
)
def test_a_process_of_its_own_answers_alike(
    name: str, program: str, words: tuple[str, ...], template: Template, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    template.lay_out(work)
    before = snapshot(tmp_path)
    command = [sys.executable, *PROGRAMS[name], *(w.replace("{work}", str(work)) for w in words)]
    root = Path(PROGRAMS["ablation"][0]).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
    call = Call(done.returncode, done.stdout, done.stderr)
    assert judge(Case(program, words), call, before, snapshot(tmp_path)) == []
