"""The images of a sweep: known from its first trial on, and never exchanged unseen."""

import dataclasses
from pathlib import Path

import pytest

from mpcc import run_dir
from mpcc.config import PRESETS
from tune import ablation, images, ledger
from tune.grid import cells, parse_grid
from tune.ledger import Plan

TINY = PRESETS["tiny"]
DIGITS = images.name_of(TINY)


def planned(out: Path) -> Plan:
    made = cells(TINY, parse_grid(["esteps=1,2"], "tiny"))
    plan = ledger.new_plan("tiny", TINY).grow(made, (0,), "esteps=1,2")
    ledger.write_plan(out, plan)
    return plan


def begun(out: Path, plan: Plan, fingerprint: str) -> Path:
    """A trial of which no more is there than what its killed process wrote first."""
    path = run_dir.open_run(ledger.trial_dir(out, plan.trials()[0].key), plan.trials()[0].config)
    data = {"dataset": "digits", "fingerprint": fingerprint, "n_images": 3}
    run_dir.write_provenance(path, {"code": "c0de", "data": data})
    return path


def test_the_first_trial_that_runs_says_which_images_the_sweep_has(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert images.expected(images.learnt(plan, tmp_path, plan.trials()), TINY) is None
    path = begun(tmp_path, plan, "f00d")
    known = images.learnt(plan, tmp_path, plan.trials())
    assert images.expected(known, TINY) == "f00d"
    assert images.expected(known, TINY.override(image_size=16)) is None
    file = path / run_dir.PROVENANCE
    file.write_text(file.read_text().replace("f00d", "f11d"))  # Damaged: it says nothing.
    assert images.learnt(plan, tmp_path, plan.trials()) == plan


def test_a_plan_that_does_not_know_the_images_leaves_them_known(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    begun(tmp_path, plan, "f00d")
    ledger.write_plan(tmp_path, images.learnt(plan, tmp_path, plan.trials()))
    ledger.write_plan(tmp_path, plan)
    read = ledger.read_plan(tmp_path)
    assert read is not None and images.expected(read, TINY) == "f00d"


@pytest.mark.parametrize("known_by", ["plan", "trial"])
def test_a_folder_that_was_begun_on_other_images_is_refused_before_anything_runs(
    known_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path)
    if known_by == "trial":  # Its driver was killed before it could write that down.
        begun(tmp_path, plan, "f00d")
    else:
        data = {DIGITS: {"dataset": "digits", "fingerprint": "f00d"}}
        ledger.write_plan(tmp_path, dataclasses.replace(plan, data=data))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert ablation.main(["--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{DIGITS}: fingerprint f00d, now " in err and err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_the_fingerprint_of_prepared_images_is_told_without_torch(digits, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom mpcc.config import PRESETS\nfrom mpcc.data_cache import fingerprint\n"
        "print(fingerprint(PRESETS['tiny'], None), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.split() == [digits.fingerprint, "False"], said.stderr
