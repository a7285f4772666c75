"""Models of finished trials are evaluated in another way, and nothing is trained again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tune.plan.plan
from analysis.records.load import load
from analysis.tables.groups import groups
from mpcc.model import losses
from mpcc.runs import run_dir
from mpcc.runs.clusters import CLUSTERS
from mpcc.runs.code_version import code_fingerprints
from mpcc.runs.files import MODEL
from mpcc.training import trainer
from mpcc.use.load import find_trial
from tests.old.folders import unpack
from tune import ablation, options
from tune.plan.cells import Trial
from tune.plan.plan import Plan
from tune.store import same_code
from tune.store.folder import Store

SWEEP = ["--preset", "tiny", "--grid", "esteps=1,2", "--seeds", "1"]
SCORED = ["--set", "n_generated=24", "--set", "n_is_splits=2"]
BY_DESIGN = ("seal", "seconds")
"""What differs between two runs of a trial."""


def run(out: Path, *words: str) -> int:
    """Everything in this process, a trial a command, until nothing is left."""
    while not (code := ablation.main(["--out", str(out), *words, "--next"])):
        pass
    return code


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "sweep"
    assert run(out, *SWEEP) == 4
    return out


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "sweep"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where anything is trained."""
    monkeypatch.setattr(trainer, "train_step", lambda state: pytest.fail("an iteration was run"))
    yield


def planned(out: Path) -> list[Trial]:
    plan = Store(out).read_plan()
    assert plan is not None
    return plan.trials()


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Of the planned trials, by cell: all that is recorded, but for what differs by design."""
    found = {}
    for trial in planned(out):
        path = Store(out).trial_dir(trial.key)
        result, rows = run_dir.read_trial(path)
        assert result is not None
        last = {name: value for name, value in rows[-1].items() if name != "seconds"}
        kept = {name: value for name, value in result.items() if name not in BY_DESIGN}
        files = {name: (path / name).read_bytes() for name in (MODEL, CLUSTERS)}
        found[trial.cell.text] = kept | {"last": last} | files
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in out.glob("trials/*/*")}


@pytest.mark.usefixtures("untrained")
def test_what_is_evaluated_anew_stands_beside_what_was_there(sweep: Path) -> None:
    before, trials = contents(sweep), planned(sweep)
    assert run(sweep, "--evaluate", *SCORED) == 4
    assert contents(sweep).items() >= before.items()
    now = planned(sweep)
    assert len(now) == 2 and not {t.key for t in now} & {t.key for t in trials}
    for trial in now:
        path = Store(sweep).trial_dir(trial.key)
        anew = run_dir.read_provenance(path)["evaluated_anew"]
        assert anew["model_of"] in {t.key for t in trials}
        assert run_dir.read_config(path) == trial.config and trial.config.n_generated == 24
    assert find_trial(sweep, "esteps=1", 0).name == now[0].key  # The model as evaluated last.
    again = contents(sweep)
    assert run(sweep, *SWEEP) == 4 and contents(sweep) == again  # The plan's evaluation stays.
    assert run(sweep, "--set", "n_generated=none", "--set", "n_is_splits=10") == 4
    assert planned(sweep) == trials and contents(sweep) == again


def test_the_numbers_are_those_of_a_sweep_that_asked_for_them_from_the_start(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("n_standing_passes=5", "max_saturation=0", "min_diversity=0")
    words = [*SCORED, *(word for text in others for word in ("--set", text))]
    before = records(sweep)
    assert run(tmp_path / "new", *SWEEP, *words) == 4
    monkeypatch.setattr(trainer, "train_step", lambda state: pytest.fail("an iteration was run"))
    assert run(sweep, *words) == 4
    assert records(sweep) == records(tmp_path / "new") != before


@pytest.mark.usefixtures("untrained")
def test_tables_show_the_evaluation_of_the_plan_and_say_which(sweep: Path) -> None:
    before = load([sweep])
    assert run(sweep, "--evaluate", *SCORED) == 4
    after = load([sweep])
    assert len(after.trials) == 2 and set(after.trials["n_generated"]) == {24}
    assert after.trials["fid_cnn"].notna().all() and "fid_cnn" not in before.trials
    (note,) = after.notes
    assert "with n_generated=24, n_is_splits=2; 2 records of other evaluations" in note
    assert "n_generated=none, n_is_splits=10" in note


@pytest.mark.usefixtures("untrained")
def test_values_of_an_axis_are_cells_of_their_own(sweep: Path) -> None:
    assert run(sweep, "--grid", "esteps=1", "n_standing_passes=2,5", "--seeds", "1") == 4
    assert len(planned(sweep)) == 3
    frame = load([sweep]).trials
    assert sorted(frame["n_standing_passes"]) == [2, 2, 5]
    mse, nmi = (frame[frame["n_encoder_steps"] == 1][name].tolist() for name in ("mse", "nmi"))
    assert len(set(mse)) == 2 and len(set(nmi)) == 1  # Only the generator has passes.


def test_a_fresh_grid_of_evaluations_trains_each_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = [], trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda state: steps.append(0) or step(state))
    grid = ["--preset", "tiny", "--grid", "n_standing_passes=2,3,4", "--seeds", "1"]
    assert run(tmp_path / "s", *grid) == 4
    ends = {trial.key: run_dir.read_result(tmp_path / "s" / "trials" / trial.key) for trial in
            planned(tmp_path / "s")}  # fmt: skip
    assert len(ends) == 3 and len({end["weights_sha256"] for end in ends.values() if end}) == 1
    assert len(steps) == 4


@pytest.mark.usefixtures("untrained")
def test_a_sweep_of_an_earlier_version_is_evaluated_from_its_checkpoints(tmp_path: Path) -> None:
    out = unpack("finished", tmp_path)
    before = contents(out)
    assert run(out, "--evaluate", *SCORED, "--accept-changed-code") == 4
    assert contents(out).items() >= before.items()
    (done,) = {run_dir.read_result(out / "trials" / t.key)["state"] for t in planned(out)}
    assert done == "done"


@pytest.mark.usefixtures("untrained")
def test_a_trial_without_a_checkpoint_is_named_and_never_trained_again(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, kept = (Store(sweep).trial_dir(trial.key) for trial in planned(sweep))
    (lost / run_dir.CHECKPOINT).unlink()
    before = (sweep / "sweep.json").read_bytes()
    assert run(sweep, "--evaluate", *SCORED, "--only", "esteps=1") == 2
    assert "no trial of" in capsys.readouterr().err
    assert run(sweep, *SCORED) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{lost} keeps no checkpoint.pt" in line and "--evaluate" in line
    assert (sweep / "sweep.json").read_bytes() == before
    assert run(sweep, "--evaluate", *SCORED) == 4
    assert "left out: esteps=1, seed=0" in capsys.readouterr().out
    assert len(list(sweep.glob("trials/*/result.json"))) == 3


def test_what_is_under_way_or_not_trained_is_not_evaluated(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Store(sweep).trial_dir(planned(sweep)[0].key)
    (first / run_dir.RESULT).unlink()
    assert run(sweep, "--evaluate", *SCORED) == 2
    assert "1 trials of" in (error := capsys.readouterr().err) and "finish them first" in error
    shutil.rmtree(first)
    assert run(sweep, "--evaluate", *SCORED) == 4
    assert "left out: esteps=1, seed=0: it is not trained yet" in capsys.readouterr().out
    assert run(sweep.parent / "none", "--evaluate", *SCORED) == 2


@pytest.mark.usefixtures("untrained")
def test_a_trial_that_diverged_has_diverged_under_every_evaluation(sweep: Path) -> None:
    store, old = Store(sweep), Store(sweep).read_plan()
    assert old is not None
    path = store.trial_dir(old.trials()[0].key)
    end = run_dir.read_result(path)
    assert end is not None
    run_dir.write_result(path, {**end, "state": "diverged", "cause": "a loss"})
    assert run(sweep, "--evaluate", *SCORED) == 4
    status, other = (store.status(trial) for trial in planned(sweep))
    assert (status.state, status.cause, status.metrics) == ("diverged", "a loss", {})
    assert other.state == "done"


def test_a_plan_that_is_evaluated_in_another_way_is_read_again_and_back(sweep: Path) -> None:
    plan = Store(sweep).read_plan()
    assert plan is not None
    other = plan.evaluated({"n_generated": 24})
    assert Plan.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert other.evaluated({"n_generated": None}) == plan
    assert [a.training_key for a in plan.trials()] == [b.training_key for b in other.trials()]


def test_changed_code_counts_as_the_old_one_where_it_gives_the_same_numbers(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, before, said = Store(sweep), contents(sweep), []
    plan = store.read_plan()
    assert plan is not None
    other = {**code_fingerprints(), "mpcc/model/losses.py": "changed"}
    for module in (same_code, trainer, options, tune.plan.plan):
        monkeypatch.setattr(module, "code_fingerprints", lambda: other)
    joined = same_code.with_equal_code(store, plan, None, said.append)
    assert said[-1].startswith("the codes give equal numbers on these trials")
    assert same_code.with_equal_code(store, joined, None, pytest.fail) == joined  # known now
    assert contents(sweep) == before
    store.write_plan(joined)
    assert run(sweep, "--grid", "esteps=1,2", "--seeds", "2", "--accept-changed-code") == 4
    for text, parts in (({}, 2), ({"equal_code": None}, 4)):
        found = json.loads((sweep / "sweep.json").read_text()) | text
        (sweep / "sweep.json").write_text(json.dumps(found))
        assert len(groups(load([sweep]))) == parts
    # The same where a number is another one.
    monkeypatch.setattr(losses, "generator_hinge_loss", lambda scores: -1.01 * scores.mean())
    assert same_code.with_equal_code(store, plan, None, said.append) == plan
    assert said[-1].startswith("the codes differ: ")
