"""The images of a sweep: known from its first trial on, and never exchanged unseen."""

from pathlib import Path

import pytest

from mpcc.config import PRESETS
from tests.stand_ins import planned
from tests.test_store import begin
from tune import ablation
from tune.plan.plan import images_name
from tune.store.folder import Store

TINY = PRESETS["tiny"]
DIGITS = images_name(TINY)


@pytest.mark.parametrize("known_by", ["plan", "trial"])
def test_a_folder_that_was_begun_on_other_images_is_refused_before_anything_runs(
    known_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("esteps=1,2", seeds=(0,))
    if known_by == "trial":  # Its driver was killed before it could write that down.
        Store(tmp_path).write_plan(plan)
        begin(Store(tmp_path), plan, "f00d")
    else:
        Store(tmp_path).write_plan(plan.with_data(DIGITS, {"fingerprint": "f00d"}))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert ablation.main(["--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{DIGITS}: fingerprint f00d, now " in err and err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_the_fingerprint_of_prepared_images_is_told_without_torch(digits, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom mpcc.config import PRESETS\nfrom mpcc.data.prepared import fingerprint\n"
        "print(fingerprint(PRESETS['tiny'], None), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.split() == [digits.fingerprint, "False"], said.stderr
