"""A remote: retries, what workers upload, the copy in the output folder, data sets per node.

The remote is a folder here, by the same pyarrow calls; `make test-cluster` does it over S3. Who may
work on one is in tests/test_lock.py.
"""

import gzip
import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpcc.config import PRESETS
from mpcc.data import files as data_files
from mpcc.runs import run_dir
from tests import stand_ins
from tune.engine.faults import trial_cause
from tune.plan.cells import Cell, Trial
from tune.plan.plan import Plan, PlanError
from tune.plan.state import State
from tune.run import write_for_next
from tune.store import datasets, transfer
from tune.store import remote as remote_module
from tune.store.adopt import extend, extends_from
from tune.store.folder import Store, open_store
from tune.store.lock import sweep_lock
from tune.store.remote import Remote, RemoteError, checked_address
from tune.store.transfer import Downloads, Upload

SHORT = PRESETS["tiny"].override(iterations=40, eval_every=10)


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    made = Remote(checked_address(str(tmp_path / "store")), retry_seconds=0)
    made.prepare()
    return made


@pytest.fixture
def store(tmp_path: Path, remote: Remote) -> Store:
    """A sweep's folder with that remote."""
    return Store(tmp_path / "out", remote)


@pytest.fixture
def upload(tmp_path: Path, remote: Remote) -> Upload:
    """A worker's side of a trial, which has begun."""
    (tmp_path / "scratch").mkdir()
    made = Upload(tmp_path / "scratch", remote, trial_of().key)
    trial_dir(tmp_path).mkdir(parents=True)
    made.download()
    return made


def trial_dir(tmp_path: Path, scratch: str = "scratch") -> Path:
    """The run directory of a worker's trial."""
    return tmp_path / scratch / "trials" / trial_of().key


def trial_of(config=SHORT) -> Trial:
    return Trial(Cell(config, {}), config.seed, config, config.trial_key)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ftp://x/y", "s3://BUCKET"),
        ("", "folder"),
        ("s3://", "s3://BUCKET"),
        ("s3://KEY:SECRET@bucket/x", "no credentials"),
        ("gs://someone@bucket/x", "no credentials"),
        (__file__, "is a file"),
        (f"{__file__}/below", "is a file"),
    ],
)
def test_an_address_that_cannot_be_a_storage_is_refused_in_one_line(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        checked_address(text)
    assert "\n" not in str(caught.value) and "SECRET@" not in str(caught.value)


def test_addresses_are_kept_and_paths_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_address("s3://bucket/some/where/") == "s3://bucket/some/where"
    assert checked_address("gs://bucket") == "gs://bucket"
    assert checked_address("here") == checked_address(f"file://{tmp_path}/here")
    assert checked_address("here") == str(tmp_path / "here")


def test_every_kind_of_address_is_one_that_pyarrow_takes_with_our_options() -> None:
    """No network: nothing is asked of them yet. An option that pyarrow does not know raises."""
    for address in ("gs://anonymous@bucket/x", "s3://bucket/x?region=us-east-1"):
        assert Remote(address, 0).address == address
    with pytest.raises(RemoteError, match="nonsense"):
        Remote("gs://anonymous@bucket/x?nonsense=1", 0)


def test_files_are_written_replaced_listed_and_removed(remote: Remote) -> None:
    assert remote.read("a/b") is None and remote.list() == {} and remote.info("a/b") is None
    remote.write("a/b", b"1")
    remote.write("a/b", b"22")
    remote.write("c", b"")
    remote.write("packed.gz", gzip.compress(b"kept as it is"))
    assert gzip.decompress(remote.read("packed.gz") or b"") == b"kept as it is"
    remote.delete("packed.gz")
    (Path(remote.address) / "a" / ".b.1.tmp").write_bytes(b"torn")
    assert remote.read("a/b") == b"22" and remote.info("a/b") == remote.list()["a/b"]
    assert {name: about.size for name, about in remote.list().items()} == {"a/b": 2, "c": 0}
    assert set(remote.list("a")) == {"a/b"}
    remote.delete("a/b")
    remote.delete("a/b")
    assert remote.list("a") == {}


def test_a_storage_that_stumbles_is_asked_again(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote_module.time, "sleep", pauses.append)
    remote.retry_seconds = 60
    write, faults = remote_module.write_bytes, [OSError(5, "timeout"), OSError(28, "full")]

    def stumbling(path: Path, data: bytes) -> None:
        if faults:
            raise faults.pop()
        write(path, data)

    monkeypatch.setattr(remote_module, "write_bytes", stumbling)
    remote.write("x", b"1")
    assert remote.read("x") == b"1" and len(pauses) == 2 and pauses[1] > pauses[0]


def test_a_refusal_is_not_repeated_and_a_loss_is_told_apart_from_nothing_there(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.retry_seconds = 60
    refused = OSError("AWS Error ACCESS_DENIED during PutObject operation")
    monkeypatch.setattr(remote_module, "write_bytes", lambda *_: (_ for _ in ()).throw(refused))
    begun = time.monotonic()
    with pytest.raises(RemoteError, match="ACCESS_DENIED"):
        remote.write("x", b"1")
    assert time.monotonic() - begun < 0.4
    remote.retry_seconds = 0
    Path(remote.address).rename(f"{remote.address}-gone")
    for call in (lambda: remote.read("x"), lambda: remote.list(), lambda: remote.delete("x")):
        with pytest.raises(RemoteError, match="is gone"):
            call()


def test_a_fault_of_the_storage_is_a_machines_fault_and_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RemoteError("s3://b: no answer")))
    assert isinstance(error, RemoteError) and str(error) == "s3://b: no answer"
    assert trial_cause(error) is None


# -- a worker --------------------------------------------------------------------------------------


def test_a_trial_sends_rows_before_the_checkpoint_and_the_result_before_the_last_one(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trial_dir(tmp_path)
    for name in ("checkpoint.pt", "result.json", "metrics.jsonl", "config.json", "curves.png"):
        (path / name).write_bytes(b"x")
    for name in ("checkpoint-previous.pt", ".metrics.jsonl.1.tmp", "result.json.damaged"):
        (path / name).write_bytes(b"x")
    sent: list[str] = []
    write = Remote.write

    def recorded(self: Remote, name: str, data: bytes, time_ns: int | None = None) -> None:
        sent.append(name.rpartition("/")[2])
        write(self, name, data, time_ns)

    monkeypatch.setattr(Remote, "write", recorded)
    upload.send(patient=False)
    assert set(sent[:2]) == {"config.json", "curves.png"}
    assert sent[2:] == ["metrics.jsonl", "result.json", "checkpoint.pt"]
    upload.send(patient=False)
    assert len(sent) == 5
    (path / "metrics.jsonl").write_bytes(b"xx")
    upload.send(patient=False)
    assert sent[5:] == ["metrics.jsonl"]


def test_a_later_attempt_gets_what_an_earlier_one_has_sent(
    upload: Upload, remote: Remote, tmp_path: Path
) -> None:
    path = trial_dir(tmp_path)
    fill(path, "metrics.jsonl", "checkpoint.pt", "curves.png")
    upload.send(patient=True)
    (tmp_path / "later").mkdir()
    later, path = Upload(tmp_path / "later", remote, trial_of().key), trial_dir(tmp_path, "later")
    later.download()
    (path / "metrics.jsonl").write_bytes(b"newer")
    later.download()
    assert (path / "metrics.jsonl").read_bytes() == b"newer"
    assert {file.name for file in path.iterdir()} == {
        "metrics.jsonl", "checkpoint.pt", "curves.png"}  # fmt: skip


def test_an_earlier_attempt_writes_nothing_once_a_later_one_has_the_trial(
    upload: Upload, remote: Remote, tmp_path: Path
) -> None:
    key = trial_of().key
    (tmp_path / "late").mkdir()
    late = Upload(tmp_path / "late", remote, key)
    late.download()
    fill(trial_dir(tmp_path), "metrics.jsonl")
    upload.send(patient=False)
    with pytest.raises(RemoteError, match=f"another attempt at trial {key}"):
        upload.send(patient=True)
    assert remote.info(f"trials/{key}/metrics.jsonl") is None
    fill(trial_dir(tmp_path, "late"), "metrics.jsonl")
    late.send(patient=True)
    assert remote.info(f"trials/{key}/metrics.jsonl") is not None


def test_training_goes_on_while_the_storage_is_away_and_the_end_waits_for_it(
    upload: Upload, remote: Remote, tmp_path: Path
) -> None:
    fill(trial_dir(tmp_path), "metrics.jsonl")
    root = Path(remote.address)
    root.rename(f"{root}-away")
    upload.send(patient=False)
    with pytest.raises(RemoteError):
        upload.send(patient=True)
    Path(f"{root}-away").rename(root)
    upload.send(patient=False)  # It has just failed: not asked again yet.
    assert remote.read(f"trials/{trial_of().key}/metrics.jsonl") is None
    upload.send(patient=True)
    assert remote.read(f"trials/{trial_of().key}/metrics.jsonl") == b"metrics.jsonl"


def test_scratch_folders_of_dead_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_SCRATCH_DIR", str(tmp_path))
    probe = transfer.scratch_dir()
    ours = probe.name.partition(f"{os.getpid()}-")[0]
    probe.rmdir()
    for name in (f"{ours}999999999-dead", f"{ours}1-lives", "another"):
        (tmp_path / name).mkdir()
    made = transfer.scratch_dir()
    assert made.parent == tmp_path and made.name.startswith(f"{ours}{os.getpid()}-")
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{ours}1-lives", "another", made.name}  # fmt: skip


# -- the driver ------------------------------------------------------------------------------------


def planned() -> tuple[Plan, list[Trial]]:
    plan = stand_ins.planned("esteps=1,2", iterations=40, eval_every=10)
    return plan, plan.trials()


def fill(path: Path, *names: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_bytes(name.encode())


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_output_folder_gets_the_records_and_not_the_checkpoints(store: Store) -> None:
    plan, trials = planned()
    key, root = trials[0].key, Path(store.remote.address)  # type: ignore[union-attr]
    fill(root / "trials" / key, "metrics.jsonl", "result.json", "checkpoint.pt",
         "owner.json", "attempts", "curves.png")  # fmt: skip
    fill(root / "trials" / "..evil", "x")
    store.download()
    here = store.out / "trials"
    assert {p.name for p in here.iterdir()} == {key}
    assert {p.name for p in (here / key).iterdir()} == {
        "metrics.jsonl", "result.json", "curves.png"}  # fmt: skip
    (here / key / "metrics.jsonl").write_bytes(b"damaged in this copy")
    assert store.repair(trials[0]) is None  # The remote's is whole.
    store.download(key)
    assert (here / key / "metrics.jsonl").read_bytes() == b"metrics.jsonl"


def test_news_that_come_while_the_storage_is_away_are_fetched_when_it_is_back(
    store: Store, remote: Remote
) -> None:
    plan, trials = planned()
    root, key = Path(remote.address), trials[0].key
    downloads = Downloads(store.download)
    fill(root / "trials" / key, "metrics.jsonl")
    root.rename(f"{root}-away")
    downloads.submit("plan", lambda: store.write_plan(plan))
    downloads.submit(key, lambda: store.download(key))
    wait(lambda: downloads.problem)
    assert "is gone" in str(downloads.problem) and not (store.out / "trials").exists()
    Path(f"{root}-away").rename(root)
    wait(lambda: downloads.problem is None and (store.out / "trials" / key).exists())
    assert (store.out / "trials" / key / "metrics.jsonl").exists()
    assert store.read_plan() == plan and remote.read("sweep.json") is not None
    fill(root / "trials" / trials[1].key, "result.json")
    assert downloads.flush(time.monotonic() + 10) is None
    assert (store.out / "trials" / trials[1].key / "result.json").exists()


def test_a_result_that_another_machine_has_reset_is_not_kept_here(
    store: Store, remote: Remote
) -> None:
    plan, trials = planned()
    store.write_plan(plan)
    key, root = trials[0].key, Path(remote.address) / "trials"
    fill(root / key, "metrics.jsonl", "result.json")
    store.upload_missing(trials)
    store.download()
    here = store.out / "trials" / key
    assert (here / "result.json").exists()
    (root / key / "result.json").unlink()  # There: --retry, and a driver that was then killed.
    fill(here.with_name(trials[1].key), "result.json")  # The remote knows nothing of it.
    store.download()
    assert {file.name for file in here.iterdir()} == {"metrics.jsonl"}
    assert (here.with_name(trials[1].key) / "result.json").exists()
    store.upload_missing(trials)
    assert not (root / key / "result.json").exists()


def test_the_end_of_a_sweep_waits_for_a_remote_no_longer_than_it_may(
    store: Store, remote: Remote
) -> None:
    downloads = Downloads(store.download)
    root = Path(remote.address)
    remote.retry_seconds = 60
    root.rename(f"{root}-away")
    key = planned()[1][0].key
    downloads.submit(key, lambda: store.download(key))
    begun = time.monotonic()
    assert downloads.flush(begun + 2)
    assert time.monotonic() - begun < 3


def test_another_machine_finds_the_plan_and_another_sweep_is_refused(
    store: Store, remote: Remote, tmp_path: Path
) -> None:
    plan, trials = planned()
    with sweep_lock(store):
        store.write_plan(plan)
    fill(Path(remote.address) / "trials" / trials[0].key, "metrics.jsonl", "checkpoint.pt")
    second = open_store(tmp_path / "second", remote.address)
    assert second.read_plan() == plan and second.remote is not None
    assert [f.name for f in second.trial_dir(trials[0].key).iterdir()] == ["metrics.jsonl"]
    again = open_store(tmp_path / "second")
    assert again.remote is not None and again.remote.address == remote.address
    with pytest.raises(ValueError, match="belongs to --storage"):
        open_store(tmp_path / "second", "s3://other/place")
    other, _ = planned()
    Store(tmp_path / "third").write_plan(other)
    with pytest.raises(PlanError, match="different sweeps"):
        open_store(tmp_path / "third", remote.address)
    assert Store(tmp_path / "third").read_plan() == other


def test_a_remote_without_a_sweep_is_remembered_when_the_plan_is_written(
    store: Store, remote: Remote
) -> None:
    opened = open_store(store.out, remote.address)
    assert opened.read_plan() is None and not store.out.exists()
    nowhere = open_store(store.out, f"{remote.address}-to-come")
    assert nowhere.remote is not None and not Path(nowhere.remote.address).exists()
    opened.write_plan(planned()[0])
    found = open_store(store.out).remote
    assert found is not None and found.address == remote.address


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 1, "id": "a"}'])
def test_a_damaged_plan_of_a_remote_is_refused_and_the_folders_own_stays(
    content: bytes, store: Store, remote: Remote
) -> None:
    plan = planned()[0]
    store.write_plan(plan)
    remote.write("sweep.json", content)
    with pytest.raises(PlanError, match="choose another --storage") as error:
        store.refresh()
    assert "\n" not in str(error.value) and store.read_plan() == plan


def test_a_plan_that_another_machine_has_grown_is_seen_under_the_lock(
    store: Store, remote: Remote, tmp_path: Path
) -> None:
    plan = planned()[0]
    store.write_plan(plan)
    grown = plan.grow([plan.cells[0].cell], (7,), "more")
    open_store(tmp_path / "second", remote.address).write_plan(grown)
    assert store.read_plan() == plan
    assert store.refresh() == grown == store.read_plan()


def test_what_was_trained_here_goes_to_the_storage_once(store: Store, remote: Remote) -> None:
    plan, trials = planned()
    done, begun, known, planned_only = (t.key for t in trials)
    out = store.out / "trials"
    fill(out / done, "config.json", "result.json", "checkpoint.pt", "mlflow.json")
    fill(out / begun, "config.json", "checkpoint.pt", "checkpoint-previous.pt")
    fill(out / known, "config.json")
    there = Path(remote.address) / "trials"
    fill(there / known, "config.json", "checkpoint.pt")
    (there / known / "config.json").write_bytes(b"the storage's")
    store.write_plan(plan)
    assert write_for_next(store, plan, plan, trials, None)  # `--next` sends it before it trains.
    assert store.not_uploaded(trials) == []
    assert {p.name for p in (there / done).iterdir()} == {
        "config.json", "result.json", "checkpoint.pt"}  # fmt: skip
    assert {p.name for p in (there / begun).iterdir()} == {"config.json", "checkpoint.pt"}
    assert (there / known / "config.json").read_bytes() == b"the storage's"
    assert not (there / planned_only).exists()


@pytest.mark.parametrize(("state", "left"), [("failed", {"checkpoint.pt", "metrics.jsonl"}),
                                             ("diverged", set())])  # fmt: skip
def test_a_trial_to_be_run_again_is_forgotten_in_the_storage_too(
    state: str, left: set[str], store: Store, remote: Remote
) -> None:
    _, trials = planned()
    folder = f"trials/{trials[0].key}"
    fill(Path(remote.address) / folder, "result.json", "metrics.jsonl", "checkpoint.pt")
    store.download()
    store.reset(trials[0], State(state))
    assert set(remote.list(folder)) == {f"{folder}/{name}" for name in left}
    assert not (store.out / folder / "result.json").exists()


def test_an_end_that_the_driver_records_is_in_the_remote_as_well(
    store: Store, remote: Remote
) -> None:
    trial = planned()[1][0]
    store.record_end(trial, State.FAILED, "killed: its process died 3 times")
    result = json.loads(remote.read(f"trials/{trial.key}/result.json") or b"")
    assert result["state"] == "failed"


@pytest.mark.parametrize("interrupted", [False, True])
def test_more_iterations_start_from_the_storages_checkpoint(
    interrupted: bool, store: Store, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trials = planned()
    short = trials[0]
    fill(Path(remote.address) / "trials" / short.key, "checkpoint.pt", "metrics.jsonl")
    for base in (Path(remote.address), store.out):
        fill(base / "trials" / short.key)
        run_dir.write_json(base / "trials" / short.key / "config.json", short.config.to_dict())
    longer = plan.extend(80)
    trial = longer.trials()[0]
    assert extends_from(store, longer, trial) == 40
    if interrupted:
        with monkeypatch.context() as patch, pytest.raises(RemoteError):
            patch.setattr(Remote, "write", lambda *_: raise_error(RemoteError("away")))
            extend(store, longer, trial)
        assert extends_from(store, longer, trial) == 40
    extend(store, longer, trial)
    extend(store, longer, trial)  # Twice is once.
    assert remote.list(f"trials/{short.key}") == {}
    assert remote.read(f"trials/{trial.key}/checkpoint.pt") == b"checkpoint.pt"
    sent = json.loads(remote.read(f"trials/{trial.key}/config.json") or b"")
    assert sent["iterations"] == 80
    assert not (store.out / "trials" / trial.key / "checkpoint.pt").exists()
    assert extends_from(store, longer, trial) is None


def raise_error(error: Exception) -> None:
    raise error


# -- data sets -------------------------------------------------------------------------------------


def mnist_in(folder: Path) -> None:
    """Four files under their names, declared as not the official ones."""
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        images = struct.pack(">IIII", 2051, n, 28, 28) + bytes(n * 28 * 28)
        labels = struct.pack(">II", 2049, n) + bytes(i % 10 for i in range(n))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))
    (folder / "MODIFIED.txt").write_text("made up for a test\n")


@pytest.fixture
def as_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder counts as a storage's address."""
    monkeypatch.setattr(datasets, "is_address", lambda data_dir: data_dir is not None)


def test_data_of_a_storage_is_fetched_once_and_again_only_when_it_changes(
    remote: Remote, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    mnist_in(Path(remote.address) / "MNIST" / "raw")
    place = datasets.folder_on_node(remote.address, "mnist")
    assert place is not None and place.is_relative_to(tmp_path / "cache")
    assert len(data_files.source_files("mnist", place)) == 5
    read: list[str] = []
    plain = Remote.read
    monkeypatch.setattr(Remote, "read", lambda self, n: read.append(n) or plain(self, n))
    assert datasets.folder_on_node(remote.address, "mnist") == place and read == []
    (Path(remote.address) / "MNIST/raw/MODIFIED.txt").write_text("made up once more\n")
    datasets.folder_on_node(remote.address, "mnist")
    assert read == ["MNIST/raw/MODIFIED.txt"]
    assert datasets.folder_on_node(remote.address, "digits") is not None


def test_fetched_weights_stand_in_for_a_file_that_only_the_drivers_machine_has(
    remote: Remote, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    remote.write(datasets.inception.WEIGHTS_NAME, b"weights")
    here = tmp_path / "mine.pth"
    for named, stays in ((here, False), (None, False), (here, True)):
        if named is None:
            monkeypatch.delenv("MPCC_INCEPTION_WEIGHTS")
        else:
            monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(named))
        if stays:
            here.touch()
        place = datasets.folder_on_node(remote.address, "digits")
        assert place is not None
        expected = here if stays else place / datasets.inception.WEIGHTS_NAME
        assert os.environ["MPCC_INCEPTION_WEIGHTS"] == str(expected)


def test_data_that_is_missing_or_unsound_in_the_storage_is_named(
    remote: Remote, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    for dataset, missing in (("mnist", "train-images"), ("omniglot", "images_background")):
        with pytest.raises(data_files.DataError, match=f"{dataset}: {missing}.*") as error:
            datasets.folder_on_node(remote.address, dataset)
        assert f"not found in {remote.address}/" in str(error.value)
        assert "--download" not in str(error.value) and "\n" not in str(error.value)
    mnist_in(Path(remote.address) / "MNIST" / "raw")
    remote.delete("MNIST/raw/MODIFIED.txt")
    with pytest.raises(data_files.DataError, match="MD5"):
        datasets.folder_on_node(remote.address, "mnist")
