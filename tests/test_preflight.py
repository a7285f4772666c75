"""What is looked at before the first trial."""

import pickle
import shutil
import socket
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mpcc import run_dir
from mpcc.code_version import code_version
from mpcc.config import PRESETS
from tune import cluster, ledger, preflight, tracking
from tune.grid import cells, checkpoint_bytes, parse_grid
from tune.ledger import Trial
from tune.trainable import cause_of


def trials(preset: str = "tiny") -> list[Trial]:
    made = cells(PRESETS[preset], parse_grid(["esteps=1,2"], preset))
    return [trial for cell in made for trial in ledger.trials(cell, (0, 1))]


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    preflight.check(trials(), tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_too_small_a_disk_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(preflight.PreflightError, match="1 MB are free; make room"):
        preflight.check(trials(), tmp_path)


def test_room_is_asked_for_three_checkpoints_of_what_runs_and_one_of_the_rest(
    tmp_path: Path,
) -> None:
    todo = trials()
    sizes = [checkpoint_bytes(trial.config) for trial in todo]
    assert len(set(sizes)) == 1
    ends = 4 * (sizes[0] + preflight.OTHER_BYTES)
    assert preflight.disk_need(todo, tmp_path, 2) == ends + 2 * 2 * sizes[0]
    assert preflight.disk_need(todo, tmp_path) == ends + 4 * 2 * sizes[0]
    # What a stopped trial has on the disk is not needed once more.
    path = ledger.trial_dir(tmp_path, todo[0].key)
    path.mkdir(parents=True)
    (path / "checkpoint.pt").write_bytes(bytes(sizes[0]))
    assert preflight.disk_need(todo, tmp_path, 2) == ends + 3 * sizes[0]
    for name in ("checkpoint-previous.pt", "checkpoint.pt.new"):
        (path / name).write_bytes(bytes(sizes[0]))
    assert preflight.disk_need(todo[:1], tmp_path, 1) == preflight.OTHER_BYTES


def test_a_damaged_checkpoint_of_a_trial_does_not_refuse_its_sweep(tmp_path: Path) -> None:
    trial = trials()[0]
    path = ledger.trial_dir(tmp_path, trial.key)
    path.mkdir(parents=True)
    (path / "checkpoint.pt").write_bytes(bytes(100))
    with pytest.raises(run_dir.RunDirError, match="not a checkpoint of this program"):
        preflight.check(trials(), tmp_path)  # None of ours is known to have been here.
    run_dir.write_json(path / run_dir.CONFIG, trial.config.to_dict())
    preflight.check(trials(), tmp_path)
    assert "checkpoint.pt damaged, runs again" in str(ledger.mend(tmp_path, trial))
    assert {p.name for p in path.iterdir()} == {"config.json", "checkpoint.pt.damaged"}


def test_too_little_memory_is_refused_with_the_number_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = preflight.memory_need(PRESETS["tiny"])
    monkeypatch.setattr(preflight, "free_memory", lambda: int(2.5 * need))
    preflight.check_memory(trials(), 2)
    with pytest.raises(preflight.PreflightError, match="--max-concurrent 2$"):
        preflight.check_memory(trials(), 4)
    monkeypatch.setattr(preflight, "free_memory", lambda: need // 2)
    with pytest.raises(preflight.PreflightError, match="free some"):
        preflight.check_memory(trials(), 1)


def test_the_free_memory_is_some_of_this_machines() -> None:
    free = preflight.free_memory()
    assert free is None or 2**20 < free < 2**50


def test_a_data_base_that_is_locked_or_broken_is_refused_at_first_and_waited_for_later(
    tmp_path: Path,
) -> None:
    uri = tracking.default_uri(tmp_path)
    assert preflight.check_tracking(uri, tmp_path, "tiny", begun=False) is None
    file = tmp_path / tracking.DATABASE
    assert not file.exists()
    with closing(sqlite3.connect(file)) as holder:
        holder.execute("create table t (x)")
        holder.execute("begin exclusive")
        with pytest.raises(preflight.PreflightError, match="locked.*leave that out"):
            preflight.check_tracking(uri, tmp_path, "tiny", begun=False)
        assert "locked" in str(preflight.check_tracking(uri, tmp_path, "tiny", begun=True))
    file.write_bytes(b"no data base" * 100)
    assert preflight.check_tracking(uri, tmp_path, "tiny", begun=False) is None  # Made again.
    with pytest.raises(preflight.PreflightError, match="not a database"):
        preflight.check_tracking(uri, tmp_path / "other", "tiny", begun=False)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_refused_at_first_and_waited_for_later(
    tmp_path: Path,
) -> None:
    uri = "http://127.0.0.1:9"
    with pytest.raises(preflight.PreflightError, match=f"MLflow at {uri} cannot be written to"):
        preflight.check_tracking(uri, tmp_path, "tiny", begun=False)
    assert preflight.check_tracking(uri, tmp_path, "tiny", begun=True)


def test_the_write_probe_leaves_nothing_and_names_what_hinders(tmp_path: Path) -> None:
    assert preflight.write_probe(str(tmp_path / "new")) is None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert preflight.write_probe(str(tmp_path / "file" / "under"))


def test_an_address_where_no_cluster_answers_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        preflight.PreflightError, match=f"no Ray cluster answers at 127.0.0.1:{port}"
    ):
        cluster.check_address(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        cluster.check_address(f"127.0.0.1:{listening.getsockname()[1]}")
    for text in ("local", "auto"):
        cluster.check_address(text)


def test_what_a_machine_lacks_for_the_trials_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = cluster.needs(trials(), tmp_path, None, None)
    assert "does not see" in str(cluster.missing_here(needed))
    (tmp_path / ledger.PLAN).touch()
    assert cluster.missing_here(needed) is None
    lacking = [
        ({"python": ("3", "1")}, "the driver 3.1"),
        ({"libraries": {"torch": "0.1"}}, "the driver 0.1"),
        ({"libraries": {"no-such-library": "1"}}, "has no no-such-library"),
        ({"code": {"mpcc/losses.py": "other"}}, "another version of this code"),
    ]
    for change, word in lacking:
        assert word in str(cluster.missing_here(needed | change))
    assert cluster.data_missing_here(needed) is None
    no_data = {"datasets": ["mnist"], "data_dir": str(tmp_path / "none")}
    assert "does not exist" in str(cluster.data_missing_here(needed | no_data))
    monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert "Inception weights" in str(cluster.data_missing_here(needed | {"inception": True}))


def test_inception_weights_are_wanted_everywhere_where_images_are_drawn_and_someone_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trials()
    drawing = [replace(t, config=t.config.override(n_generated=50)) for t in plain]
    monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert not cluster.needs(drawing, tmp_path, None, None)["inception"]
    monkeypatch.setattr(cluster.inception, "find_weights", lambda: tmp_path / "there.pth")
    assert cluster.needs(drawing, tmp_path, None, None)["inception"]
    assert not cluster.needs(plain, tmp_path, None, None)["inception"]


@pytest.fixture
def late_machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process of a machine that nobody has asked yet; what it lacks, to be changed."""
    lacks = ["has no torch: install requirements.txt with constraints.txt"]
    monkeypatch.setattr(cluster, "_ready", set())
    monkeypatch.setattr(cluster, "NOT_READY_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "missing_here", lambda _: lacks[0] if lacks else None)
    return lacks


def test_a_machine_that_joined_late_is_asked_by_its_first_trial_and_not_again(
    late_machine: list[str], tmp_path: Path
) -> None:
    needed = cluster.needs(trials(), tmp_path, None, None)
    cluster.check_here(None, "digits", lambda: False)
    begun = time.monotonic()
    with pytest.raises(cluster.NotReady, match="has no torch") as caught:
        cluster.check_here(needed, "digits", lambda: False)
    assert time.monotonic() - begun >= 0.2
    assert cause_of(pickle.loads(pickle.dumps(caught.value))) is None
    late_machine.clear()
    cluster.check_here(needed, "digits", lambda: False)
    late_machine.append("would be said again")
    cluster.check_here(needed, "digits", lambda: False)
    with pytest.raises(cluster.NotReady):
        cluster.check_here(needed, "mnist", lambda: True)


def test_a_trial_on_a_machine_that_is_not_ready_is_handed_back_and_not_failed(
    late_machine: list[str], tmp_path: Path
) -> None:
    from tests.test_storage import spec_of
    from tune.storage import Storage
    from tune.trainable import TrialRunner

    trial, store = trials()[0], Storage(str(tmp_path / "store"), 0)
    store.prepare()
    needed = cluster.needs([trial], tmp_path, store.address, None)
    runner = TrialRunner({"trial": spec_of(trial, store, needed=needed)})
    with pytest.raises(cluster.NotReady):
        runner.step()
    runner.cleanup()
    assert store.list() == {}


def test_only_a_cluster_is_sent_credentials_and_the_version_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("UNRELATED", "stays")
    here = cluster.environment("local", 1, storage=True)
    shared = cluster.environment("auto", 1, storage=False)
    stored = cluster.environment("auto", 2, storage=True)
    assert "PYTHONPATH" in here and "AWS_SECRET_ACCESS_KEY" not in here
    assert "AWS_SECRET_ACCESS_KEY" not in shared and "PYTHONPATH" not in shared
    assert stored["AWS_SECRET_ACCESS_KEY"] == "secret" and "UNRELATED" not in stored
    assert stored["MPCC_CODE_VERSION"] == code_version() and stored["OMP_NUM_THREADS"] == "2"
