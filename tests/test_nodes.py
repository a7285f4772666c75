"""What a node of a cluster must have, and what becomes of trials on one that lacks it."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpcc.runs.code_version import code_version
from tests.stand_ins import StandInTuner, planned, ray_with, spec_of
from tune.engine import cluster, environment
from tune.engine.cluster import check_nodes, data_missing_here, missing_here, needs_of, not_ready
from tune.engine.engine import Engine
from tune.engine.head import EngineError
from tune.engine.spec import LOCAL, NodeNeeds, Settings
from tune.engine.worker import TrialWorker
from tune.plan.cells import Trial
from tune.plan.plan import PLAN
from tune.plan.state import EventKind, State
from tune.store.remote import Remote, RemoteError

TRIALS: Sequence[Trial] = planned("esteps=1,2").trials()


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    made = Remote(str(tmp_path / "store"), retry_seconds=0)
    made.prepare()
    return made


@pytest.fixture
def needs(tmp_path: Path) -> NodeNeeds:
    """Of a sweep in a folder that nodes share."""
    return needs_of(TRIALS, Settings(tmp_path, ""))


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this node, which nobody has asked yet, lacks; to be changed."""
    import ray

    found = ["has no torch: install requirements.txt with constraints.txt"]
    context = SimpleNamespace(get_node_id=lambda: "late")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(cluster, "_ready", set())
    monkeypatch.setattr(cluster, "missing_here", lambda _: found[0] if found else None)
    return found


def test_what_a_machine_lacks_for_the_trials_is_named(
    needs: NodeNeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot use" in str(missing_here(needs)) and "give --storage" in str(missing_here(needs))
    (tmp_path / PLAN).touch()
    assert missing_here(needs) is None and list(tmp_path.iterdir()) == [tmp_path / PLAN]
    for name, version, word in (
        ("Python", "3.1", "the driver 3.1"),
        ("torch", "0.1", "the driver 0.1"),
        ("no-such-library", "1", "has no no-such-library"),
        ("mpcc/model/losses.py", "other", "has mpcc/model/losses.py"),
    ):
        assert name == "no-such-library" or name in needs.versions
        assert word in str(missing_here(replace(needs, versions={name: version})))
    assert data_missing_here(needs) is None
    no_data = replace(needs, datasets=("mnist",), data_dir=str(tmp_path / "none"))
    assert "does not exist" in str(data_missing_here(no_data))
    monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert "Inception weights" in str(data_missing_here(replace(needs, inception=True)))


def test_a_folder_that_takes_no_files_is_named(
    needs: NodeNeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / PLAN).touch()
    monkeypatch.setattr(cluster.tempfile, "TemporaryFile", full)
    assert "Read-only file system): share it, or give --storage" in str(missing_here(needs))


def test_with_a_remote_the_folder_is_the_drivers_alone(remote: Remote, tmp_path: Path) -> None:
    needs = needs_of(TRIALS, Settings(tmp_path / "none", "", remote=remote.address))
    assert missing_here(needs) is None
    (tmp_path / "store").rmdir()  # This node does not share it: another one may.
    assert "give another --storage" in str(missing_here(needs))


def test_inception_weights_are_wanted_everywhere_where_images_are_drawn_and_someone_has_them(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [replace(t, config=t.config.override(n_generated=50)) for t in TRIALS]
    drawing = [replace(t, config=t.config.override(image_size=16)) for t in small]
    settings = Settings(tmp_path, "")
    monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert not needs_of(drawing, settings).inception
    monkeypatch.setattr(cluster, "is_address", lambda text: text is not None)
    stored = replace(settings, data_dir=remote.address)
    assert not needs_of(drawing, stored).inception
    remote.write(cluster.inception.WEIGHTS_NAME, b"weights")
    assert needs_of(drawing, stored).inception
    monkeypatch.setattr(cluster.inception, "find_weights", lambda: Path(__file__))
    assert needs_of(drawing, settings).inception
    assert not needs_of(TRIALS, settings).inception
    assert not needs_of(small, settings).inception  # 8×8 pixels say nothing to it


def test_every_node_that_is_not_ready_is_named_and_data_come_after_all_else(
    needs: NodeNeeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {missing_here: ["10.0.0.2 has no torch", "10.0.0.2 has no numpy"]}
    asked = []

    def ask(probe: Any, needs: NodeNeeds, seconds: float) -> list[str]:
        asked.append(probe)
        return answers.get(probe, [])

    monkeypatch.setattr(cluster, "_ask_nodes", ask)
    logged: list[str] = []
    with pytest.raises(EngineError) as caught:
        check_nodes(needs, logged.append)
    text = "not every machine is ready: 10.0.0.2 has no torch; 10.0.0.2 has no numpy"
    assert str(caught.value) == text and asked == [missing_here] and logged == []
    answers.clear()
    check_nodes(replace(needs, data_dir="s3://bucket/data"), logged.append)
    assert asked[1:] == [missing_here, data_missing_here] and "downloading" in logged[0]


def test_a_machine_that_joined_late_is_asked_by_its_first_trial_and_not_again(
    needs: NodeNeeds, lacks: list[str]
) -> None:
    assert "has no torch" in str(not_ready(needs, "digits"))
    lacks.clear()
    assert not_ready(needs, "digits") is None
    lacks.append("would be said again")
    assert not_ready(needs, "digits") is None
    assert "would be said again" in str(not_ready(needs, "mnist"))


def test_a_remote_that_is_away_is_no_fault_of_the_node_and_a_refusal_is(
    needs: NodeNeeds, lacks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("s3://b: timed out", "s3://b: ACCESS_DENIED"):

        def fails(_: NodeNeeds, text: str = text) -> None:
            raise RemoteError(text)

        monkeypatch.setattr(cluster, "missing_here", fails)
        if "DENIED" in text:
            assert text in str(not_ready(needs, "digits"))
        else:
            with pytest.raises(RemoteError):
                not_ready(needs, "digits")


def test_a_trial_on_a_machine_that_is_not_ready_is_handed_back_and_not_failed(
    lacks: list[str], remote: Remote, tmp_path: Path
) -> None:
    trial, settings = TRIALS[0], Settings(tmp_path, "", remote=remote.address)
    needs = needs_of([trial], settings)
    worker = TrialWorker(spec_of(tmp_path, trial, remote=remote.address, needs=needs))
    event = worker.step()
    worker.release()
    assert event.kind == EventKind.HANDED_BACK and event.state == State.PLANNED and event.ends
    assert event.node == "late" and "has no torch" in str(event.cause)
    assert remote.list() == {}


def test_a_trial_that_was_handed_back_runs_elsewhere_and_so_do_those_after_it(
    needs: NodeNeeds, lacks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def begin(tuner: StandInTuner) -> None:
        given.append(tuner.trial_queue.suggest("1"))
        given.append(tuner.trial_queue.suggest("2"))
        event = TrialWorker(replace(given[0]["sweep"][0], needs=needs)).step()
        trial = SimpleNamespace(config=given[0], trial_id="1")
        tuner.callback.on_trial_start(0, [], trial)
        tuner.callback.on_trial_result(0, [], trial, {"event": event})
        tuner.callback.on_trial_complete(0, [], trial)

    tuner, logged = StandInTuner(begin), list[str]()
    ray_with(monkeypatch, tuner=tuner)
    engine = Engine(Settings(tmp_path, ""), TRIALS, logged.append)
    first, second, third = (spec_of(tmp_path, trial) for trial in TRIALS[:3])
    with engine:
        engine.submit(first)
        engine.submit(second)
        kinds = [event.kind for _ in range(2) if (event := engine.next_event(60))]
        assert kinds == [EventKind.STARTED, EventKind.HANDED_BACK]
        assert engine.next_event(0.1) is None  # It has not ended.
        engine.submit(first)  # As the loop does.
        engine.submit(third)
        given += [tuner.trial_queue.suggest("3"), tuner.trial_queue.suggest("4")]
        tuner.over.set()
    specs = [config["sweep"][0] for config in given]
    assert [spec.key for spec in specs] == [first.key, second.key, first.key, third.key]
    assert [spec.avoided_nodes for spec in specs] == [(), (), ("late",), ("late",)]
    assert len(logged) == 1 and "has no torch" in logged[0] and "other machines" in logged[0]


def test_only_a_cluster_is_sent_credentials_and_the_version_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("UNRELATED", "stays")

    def sent(address: str, threads: int, **more: Any) -> dict[str, str]:
        settings = Settings(tmp_path, "", address=address, **more)
        return dict(environment.worker_variables(settings, threads))

    here = sent(LOCAL, 1, remote="s3://bucket/sweep")
    shared = sent("auto", 1)
    assert "PYTHONPATH" in here and "AWS_SECRET_ACCESS_KEY" not in here
    assert "AWS_SECRET_ACCESS_KEY" not in shared and "PYTHONPATH" not in shared
    for where in ({"remote": "s3://bucket/sweep"}, {"data_dir": "s3://bucket/data"}):
        stored = sent("auto", 2, **where)
        assert stored["AWS_SECRET_ACCESS_KEY"] == "secret" and "UNRELATED" not in stored
        assert stored["MPCC_CODE_VERSION"] == code_version() and stored["OMP_NUM_THREADS"] == "2"
