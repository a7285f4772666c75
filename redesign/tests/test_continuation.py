"""Trials that go on to more iterations than were planned at first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpcc import run_dir
from mpcc.config import PRESETS
from mpcc.trainer import train
from tune import ablation, continuation, ledger
from tune.grid import cells, parse_grid
from tune.ledger import Plan

BASE = PRESETS["tiny"].override(iterations=4, eval_every=2)


def plan(*grid: str, seeds: tuple[int, ...] = (0,)) -> Plan:
    made = cells(BASE, parse_grid(list(grid), "tiny"))
    return ledger.new_plan("tiny", BASE).grow(made, seeds, " ".join(grid))


def run(out: Path, planned: Plan, images) -> None:
    for trial in planned.trials():
        for _ in train(trial.config, ledger.trial_dir(out, trial.key), image_set=images):
            pass


def rows(path: Path) -> list[dict]:
    return [{n: v for n, v in r.items() if n != "seconds"} for r in run_dir.read_metrics(path)]


def test_a_continued_trial_ends_as_one_that_was_planned_longer_from_the_start(
    digits, tmp_path: Path
) -> None:
    images = replace(digits, images=digits.images[:120], labels=digits.labels[:120])
    short = plan("esteps=1,2")
    run(tmp_path, short, images)
    longer = continuation.lengthen(short, 7)
    assert [t.config.iterations for t in longer.trials()] == [7, 7]
    for trial in longer.trials():
        assert continuation.goes_on_from(tmp_path, longer, trial) == 4
        continuation.take_over(tmp_path, longer, trial)
        assert ledger.status(tmp_path, trial).iteration == 4
        again = continuation.lengthen(short, 7)
        continuation.take_over(tmp_path, again, trial)  # Twice is once.
    run(tmp_path, longer, images)
    for trial in longer.trials():
        path, alone = ledger.trial_dir(tmp_path, trial.key), tmp_path / "alone" / trial.key
        for _ in train(trial.config, alone, image_set=images):
            pass
        result, expected = (run_dir.read_result(p) for p in (path, alone))
        assert result and expected
        assert result["weights_sha256"] == expected["weights_sha256"]
        assert rows(path) == rows(alone)
        assert run_dir.earlier_iterations(path) == [4]
    kept = sorted((tmp_path / "earlier" / "4-iterations").glob("*/*"))
    assert {file.name for file in kept} >= {"config.json", "metrics.jsonl", "result.json"}
    assert not any(file.suffix == ".pt" for file in kept)
    assert {p.name for p in (tmp_path / "trials").iterdir()} == {t.key for t in longer.trials()}


def command(out: Path, *words: str) -> int:
    return ablation.main(["--out", str(out), *words])


def test_more_iterations_are_refused_without_the_option_and_planned_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ledger.write_plan(out, plan("esteps=1,2"))
    settings = ["--preset", "tiny", "--set", "eval_every=2"]
    assert command(out, *settings, "--iterations", "8", "--dry-run") == 2
    assert "iterations=4, now 8; go on to more iterations with --continue-training" in (
        capsys.readouterr().err
    )
    for words in ([], settings, [*settings, "--grid", "esteps=1,2,4"]):
        longer = [*words, "--iterations", "8", "--continue-training", "--dry-run"]
        assert command(out, *longer) == 0
        assert "8 iterations" in capsys.readouterr().out
    assert command(out, "--continue-training") == 2
    assert "--iterations N" in capsys.readouterr().err
    assert json.loads((out / ledger.PLAN).read_text())["base"]["iterations"] == 4
