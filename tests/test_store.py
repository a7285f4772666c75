"""A sweep's folder: its plan on disk, the states of its trials, and how a folder is opened."""

from pathlib import Path

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from tests.stand_ins import planned
from tune.plan.cells import Trial
from tune.plan.plan import Plan, PlanError, images_name
from tune.plan.state import State
from tune.store.folder import Store, open_store, record_end

TINY = PRESETS["tiny"]
DIGITS = images_name(TINY)


def write_trial(store: Store, trial: Trial, state: str | None = "done", rows: int = 2) -> Path:
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    for iteration in range(1, rows + 1):
        run_dir.append_metrics(path, {"iteration": iteration, "seconds": 1.0, "acc_majority": 0.5})
    if state is not None:
        result = {"state": state, "cause": None, "iteration": rows, "trial_key": trial.key}
        run_dir.write_result(path, result | {"metrics": {"acc_majority": 0.5}})
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def test_a_kill_in_the_first_write_leaves_nothing_that_is_refused(tmp_path: Path) -> None:
    left = tmp_path / ".sweep.json.999999999.tmp"
    left.write_text("{")
    assert open_store(tmp_path).read_plan() is None and not left.exists()


def test_a_plan_that_is_there_already_is_not_written_again(store: Store) -> None:
    store.write_plan(planned("esteps=1"))
    plan = store.read_plan()
    assert plan is not None
    before = (store.out / "sweep.json").stat()
    store.write_plan(plan)
    after = (store.out / "sweep.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert {path.name for path in store.out.iterdir()} == {"sweep.json", "sweep-copy.json"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": 1}',
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(store: Store, content: bytes) -> None:
    store.out.mkdir()
    (store.out / "sweep.json").write_bytes(content)
    with pytest.raises(PlanError, match="sweep.json .*choose another --out") as error:
        store.read_plan()
    assert "\n" not in str(error.value)


# -- states ----------------------------------------------------------------------------------------


def test_the_state_of_a_trial_is_read_from_its_run_directory(store: Store) -> None:
    trials = planned("esteps=1,2,4").trials()
    write_trial(store, trials[0])
    write_trial(store, trials[1], "diverged", rows=0)
    write_trial(store, trials[2], None)
    write_trial(store, trials[3], None)
    store.record_end(trials[4], State.FAILED, "code: KeyError: 'a'")
    found = store.statuses(trials, {trials[2].key})
    assert list(found) == [trial.key for trial in trials]
    statuses = list(found.values())
    states = ["done", "diverged", "running", "stopped", "failed", "planned"]
    assert [status.state for status in statuses] == states
    assert statuses[4].cause == "code: KeyError: 'a'"
    assert statuses[3].iteration == 2 and statuses[3].accuracy == 0.5
    assert store.status(trials[5], {trials[5].key}).state == State.RUNNING


def test_a_result_that_misses_the_last_evaluation_does_not_count(store: Store) -> None:
    trial = planned("esteps=1").trials()[0]
    path = write_trial(store, trial)
    rows = run_dir.read_metrics(path)
    run_dir.write_metrics(path, rows[:1])
    result = {"state": "done", "cause": None, "iteration": 2, "trial_key": trial.key}
    run_dir.write_result(path, result | {"metrics": {}})
    status = store.status(trial)
    assert status.state == State.STOPPED and "misses the last evaluation" in str(status.cause)


def test_a_recorded_result_is_never_overwritten_by_a_failure(store: Store) -> None:
    trial = planned("esteps=1").trials()[0]
    path = write_trial(store, trial)
    record_end(path, trial.config, State.FAILED, "killed: its process died")
    assert store.status(trial).state == State.DONE


def test_an_end_is_recorded_with_the_evaluations_so_far(store: Store) -> None:
    trial = planned("esteps=1").trials()[0]
    write_trial(store, trial, None)
    store.record_end(trial, State.PRUNED, "mse 0.5 at 2, above the median 0.4")
    status = store.status(trial)
    assert (status.state, status.iteration, status.accuracy) == (State.PRUNED, 2, 0.5)
    assert status.cause == "mse 0.5 at 2, above the median 0.4"


def test_evaluations_that_cannot_be_read_are_none(store: Store) -> None:
    trial = planned("esteps=1").trials()[0]
    assert store.rows(trial.key) == []
    path = write_trial(store, trial)
    assert [row["iteration"] for row in store.rows(trial.key)] == [1, 2]
    (path / run_dir.METRICS).write_bytes(b"\x00\n{}\n")
    assert store.rows(trial.key) == []


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b'{"state": "do', b"\x00\xff\n{}\n"])
def test_a_trial_with_a_damaged_file_runs_again(store: Store, name: str, content: bytes) -> None:
    trial = planned("esteps=1").trials()[0]
    path = write_trial(store, trial)
    rows = run_dir.read_metrics(path)
    run_dir.write_checkpoint(path, b"state")
    (path / name).write_bytes(content)
    before = store.status(trial).state
    message = store.repair(trial)
    if name == "config.json":
        assert before == State.DONE and store.status(trial).state == State.DONE
    else:
        assert before == State.STOPPED and store.status(trial).state == State.STOPPED
        assert message and name in message
    assert run_dir.read_config(path) == trial.config
    # A checkpoint has the evaluations up to its iteration: the trial resumes from there.
    assert (path / run_dir.CHECKPOINT).exists()
    assert run_dir.read_metrics(path) == ([] if name != "config.json" else rows)
    assert store.repair(trial) is None


def test_a_retried_failure_goes_on_and_a_retried_divergence_starts_afresh(store: Store) -> None:
    failed, diverged = planned("esteps=1").trials()
    for trial, state in ((failed, State.FAILED), (diverged, State.DIVERGED)):
        path = write_trial(store, trial, state)
        run_dir.write_checkpoint(path, b"state")
        store.reset(trial, state)
        assert store.status(trial).state == State.STOPPED
        assert (path / run_dir.CHECKPOINT).exists() == (state == State.FAILED)


def test_folders_and_links_in_the_place_of_records_are_set_aside_under_names_of_their_own(
    store: Store,
) -> None:
    trial, another = planned("esteps=1").trials()
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    for aside in ("result.json.damaged", "result.json.damaged2"):
        (path / "result.json").mkdir()
        (path / "result.json" / "inside").touch()
        (path / "checkpoint.pt").mkdir(exist_ok=True)
        message = store.repair(trial)
        assert message is not None and "result.json, checkpoint.pt damaged" in message
        assert (path / aside / "inside").exists()
        assert not (path / "result.json").exists() and not (path / "checkpoint.pt").exists()
    store.trial_dir(another.key).symlink_to("nowhere")
    assert "was no folder; quarantined" in str(store.repair(another))
    assert store.status(another).state == State.PLANNED


# -- images ----------------------------------------------------------------------------------------


def begin(store: Store, plan: Plan, fingerprint: str) -> Path:
    """A trial of which no more is there than what its killed process wrote first."""
    trial = plan.trials()[0]
    path = run_dir.open_run(store.trial_dir(trial.key), trial.config)
    data = {"dataset": "digits", "fingerprint": fingerprint, "n_images": 3}
    run_dir.write_provenance(path, {"code": "c0de", "data": data})
    return path


def test_the_first_trial_that_runs_says_which_images_the_sweep_has(store: Store) -> None:
    plan = planned("esteps=1,2")
    assert store.with_recorded_images(plan) == plan
    path = begin(store, plan, "f00d")
    known = store.with_recorded_images(plan)
    assert known.fingerprint_for(TINY) == "f00d"
    assert known.fingerprint_for(TINY.override(image_size=16)) is None
    file = path / run_dir.PROVENANCE
    file.write_text(file.read_text().replace("f00d", "f11d"))  # Damaged: it says nothing.
    assert store.with_recorded_images(plan) == plan
    assert store.with_recorded_images(known) == known


def test_a_plan_that_does_not_know_the_images_leaves_them_known(store: Store) -> None:
    plan = planned("esteps=1,2")
    begin(store, plan, "f00d")
    store.write_plan(store.with_recorded_images(plan))
    store.write_plan(plan)
    read = store.read_plan()
    assert read is not None and read.fingerprint_for(TINY) == "f00d"


# -- opening ---------------------------------------------------------------------------------------


def test_a_folder_is_opened_by_its_full_path_and_made_only_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(Path("new/place"))
    assert store.out == tmp_path / "new" / "place" and store.remote is None
    assert store.read_plan() is None and store.refresh() is None and not list(tmp_path.iterdir())
    plan = planned("esteps=1")
    store.write_plan(plan)
    assert open_store(Path("new/place")).read_plan() == plan == store.refresh()


def test_a_file_or_a_folder_of_others_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; choose another --out"):
        open_store(tmp_path / "file")
    with pytest.raises(ValueError, match="holds other files and no sweep.json; choose another"):
        open_store(tmp_path)


def test_a_folder_with_nothing_but_locks_is_ours(tmp_path: Path) -> None:
    for name in ("driver.lock", "driver.json"):
        (tmp_path / name).touch()
    for name in ("drivers", "claims"):
        (tmp_path / name).mkdir()
    (tmp_path / "storage.json").write_text("{}")
    assert open_store(tmp_path).read_plan() is None
