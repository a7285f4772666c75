"""A storage and what leans on it: retries, claims, the copy in the output folder, data per node.

The storage is a folder here, by the same pyarrow calls; `make test-cluster` does it over S3.
"""

import gzip
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mpcc import data_files, run_dir
from mpcc.config import PRESETS
from tune import ledger, mirror, node_data, storage_lock
from tune import storage as storage_module
from tune.grid import Cell, cells, parse_grid
from tune.ledger import Trial
from tune.lock import LockError
from tune.mirror import Mirror
from tune.place import Carried
from tune.storage import Storage, StorageError, checked_storage
from tune.storage_lock import StorageLock, storage_owner
from tune.trainable import cause_of

SHORT = PRESETS["tiny"].override(iterations=40, eval_every=10)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    made = Storage(checked_storage(str(tmp_path / "store")), retry_seconds=0)
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPCC_SCRATCH_DIR", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def trial_of(config=SHORT) -> Trial:
    return Trial(Cell(config, {}), config.seed, config, config.trial_key)


def spec_of(trial: Trial, store: Storage, **more) -> dict:
    return {
        "key": trial.key,
        "config": trial.config.to_dict(),
        "run_dir": "/nowhere",
        "data_dir": None,
        "device": "cpu",
        "checkpoint_seconds": 0.0,
        "checkpoint_iterations": None,
        "stop_file": f"/nowhere/{mirror.STOP}",
        "fingerprint": None,
        "storage": store.address,
        "session": "s",
        "driver": ["elsewhere", 1],
        "alone": True,
    } | more


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ftp://x/y", "s3://BUCKET"),
        ("", "folder"),
        ("s3://", "s3://BUCKET"),
        ("s3://KEY:SECRET@bucket/x", "no credentials"),
        ("gs://someone@bucket/x", "no credentials"),
        (__file__, "is a file"),
    ],
)
def test_an_address_that_cannot_be_a_storage_is_refused_in_one_line(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        checked_storage(text)
    assert "\n" not in str(caught.value) and "SECRET@" not in str(caught.value)


def test_addresses_are_kept_and_paths_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_storage("s3://bucket/some/where/") == "s3://bucket/some/where"
    assert checked_storage("gs://bucket") == "gs://bucket"
    assert checked_storage("here") == checked_storage(f"file://{tmp_path}/here")
    assert checked_storage("here") == str(tmp_path / "here")


def test_every_kind_of_address_is_one_that_pyarrow_takes_with_our_options() -> None:
    """No network: nothing is asked of them yet. An option that pyarrow does not know raises."""
    for address in ("gs://anonymous@bucket/x", "s3://bucket/x?region=us-east-1"):
        assert Storage(address, 0).address == address
    with pytest.raises(StorageError, match="nonsense"):
        Storage("gs://anonymous@bucket/x?nonsense=1", 0)


def test_files_are_written_replaced_listed_and_removed(store: Storage) -> None:
    assert store.read("a/b") is None and store.list() == {} and not store.exists("a/b")
    store.write("a/b", b"1")
    store.write("a/b", b"22")
    store.write("c", b"")
    store.write("packed.gz", gzip.compress(b"kept as it is"))
    assert gzip.decompress(store.read("packed.gz") or b"") == b"kept as it is"
    store.delete("packed.gz")
    (Path(store.address) / "a" / ".b.1.tmp").write_bytes(b"torn")
    assert store.read("a/b") == b"22" and store.exists("a/b")
    assert {name: about.size for name, about in store.list().items()} == {"a/b": 2, "c": 0}
    assert set(store.list("a")) == {"a/b"}
    store.delete("a/b")
    store.delete("a/b")
    assert store.list("a") == {}


def test_a_storage_that_stumbles_is_asked_again(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage_module.time, "sleep", pauses.append)
    store.retry_seconds = 60
    write, faults = run_dir.write_bytes, [OSError(5, "timeout"), OSError(28, "full")]

    def stumbling(path: Path, data: bytes) -> None:
        if faults:
            raise faults.pop()
        write(path, data)

    monkeypatch.setattr(run_dir, "write_bytes", stumbling)
    store.write("x", b"1")
    assert store.read("x") == b"1" and len(pauses) == 2 and pauses[1] > pauses[0]


def test_a_refusal_is_not_repeated_and_a_loss_is_told_apart_from_nothing_there(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.retry_seconds = 60
    refused = OSError("AWS Error ACCESS_DENIED during PutObject operation")
    monkeypatch.setattr(run_dir, "write_bytes", lambda *_: (_ for _ in ()).throw(refused))
    begun = time.monotonic()
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        store.write("x", b"1")
    assert time.monotonic() - begun < 0.4
    store.retry_seconds = 0
    Path(store.address).rename(f"{store.address}-gone")
    for call in (lambda: store.read("x"), lambda: store.list(), lambda: store.delete("x")):
        with pytest.raises(StorageError, match="is gone"):
            call()


def test_a_fault_of_the_storage_is_a_machines_fault_and_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("storage s3://b: no answer")))
    assert isinstance(error, StorageError) and str(error) == "storage s3://b: no answer"
    assert cause_of(error) is None


def test_of_two_drivers_the_second_is_refused_until_the_first_lets_go(store: Storage) -> None:
    first = StorageLock(store)
    first.renew(["abc"])
    owner = storage_owner(store)
    assert owner and owner["running"] == ["abc"] and owner["pid"] == os.getpid()
    with pytest.raises(LockError, match=f"process {os.getpid()} on .*choose another --storage"):
        StorageLock(store)
    first.renew([])
    assert not first.lost
    first.release()
    assert storage_owner(store) is None
    StorageLock(store).release()


def test_the_claim_of_a_dead_process_or_a_silent_machine_is_taken_over(store: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claims = {
        "drivers/dead.json": {"host": socket.gethostname(), "pid": gone.pid, "settled": True},
        "drivers/silent.json": {"host": "elsewhere", "pid": 1, "settled": True},
    }
    for name, claim in claims.items():
        store.write(name, json.dumps(claim).encode())
    with pytest.raises(LockError, match="elsewhere"):
        StorageLock(store)
    old = time.time() - storage_lock.HEARTBEAT_SECONDS - 1
    os.utime(Path(store.address) / "drivers/silent.json", (old, old))
    taken = StorageLock(store)
    assert len(store.list("drivers")) == 1
    store.delete(next(iter(store.list("drivers"))))  # as one that thinks this driver dead does
    taken.renew([])
    assert taken.lost and store.list("drivers") == {}


def test_a_trial_sends_rows_before_the_checkpoint_and_the_result_before_the_last_one(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Carried(spec_of(trial_of(), store))
    place.fetch()
    for name in ("checkpoint.pt", "result.json", "metrics.jsonl", "config.json", "curves.png"):
        (place.path / name).write_bytes(b"x")
    (place.path / "checkpoint-previous.pt").write_bytes(b"x")
    sent: list[str] = []
    write = store.__class__.write

    def recorded(self: Storage, name: str, data: bytes) -> None:
        sent.append(name.rpartition("/")[2])
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", recorded)
    place.send()
    assert sent == ["config.json", "curves.png", "metrics.jsonl", "result.json", "checkpoint.pt"]
    place.send()
    assert len(sent) == 5
    (place.path / "metrics.jsonl").write_bytes(b"xx")
    place.send()
    assert sent[5:] == ["metrics.jsonl"]
    place.leave()
    assert not place.path.exists()


def test_an_earlier_attempt_writes_nothing_once_a_later_one_has_the_trial(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = (Carried(spec_of(trial_of(), store)) for _ in range(2))
    early.fetch()
    late.fetch()
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    (early.path / "metrics.jsonl").write_bytes(b"x")
    with pytest.raises(SystemExit):
        early.send()
    assert not store.exists(f"trials/{trial_of().key}/metrics.jsonl")
    (late.path / "metrics.jsonl").write_bytes(b"x")
    late.finish()
    assert store.exists(f"trials/{trial_of().key}/metrics.jsonl")


def test_training_goes_on_while_the_storage_is_away_and_the_end_waits_for_it(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.0)
    place = Carried(spec_of(trial_of(), store))
    place._storage.retry_seconds = 0
    place.fetch()
    (place.path / "metrics.jsonl").write_bytes(b"x")
    root = Path(store.address)
    root.rename(f"{root}-away")
    place.send()
    with pytest.raises(StorageError):
        place.finish()
    Path(f"{root}-away").rename(root)
    place.finish()
    assert store.read(f"trials/{trial_of().key}/metrics.jsonl") == b"x"


def run_to_end(runner) -> dict:
    while True:
        report = runner.step()
        if report["done"]:
            return report


@pytest.mark.slow
def test_a_trial_whose_machine_is_lost_goes_on_elsewhere_to_the_same_bits(
    store: Storage, tmp_path: Path, own_scratch: Path
) -> None:
    from mpcc.trainer import train
    from tune.trainable import TrialRunner

    trial = trial_of()
    first = TrialRunner({"trial": spec_of(trial, store)})
    while not store.exists(f"trials/{trial.key}/checkpoint.pt"):
        assert not first.step()["done"]
    lost = next(own_scratch.iterdir())  # The machine is gone, its scratch folder with it.
    second = TrialRunner({"trial": spec_of(trial, store)})
    assert run_to_end(second)["state"] == "done"
    second.cleanup()
    assert sorted(own_scratch.iterdir()) == [lost]
    assert not store.exists(f"trials/{trial.key}/attempts")

    for _ in train(trial.config, tmp_path / "alone"):
        pass
    there = Path(store.address) / "trials" / trial.key
    alone, carried = (run_dir.read_result(p) for p in (tmp_path / "alone", there))
    assert alone and carried and carried["weights_sha256"] == alone["weights_sha256"]
    rows = [[r["iteration"] for r in run_dir.read_metrics(p)] for p in (there, tmp_path / "alone")]
    assert rows[0] == rows[1] == [10, 20, 30, 40]

    third = TrialRunner({"trial": spec_of(trial, store)})
    before = (there / "result.json").read_bytes()
    assert run_to_end(third)["state"] == "done"  # an end is fetched, not trained again
    assert (there / "result.json").read_bytes() == before


@pytest.mark.slow
def test_a_stop_asked_for_by_the_storage_leaves_a_checkpoint_there(store: Storage) -> None:
    from tune.trainable import TrialRunner

    trial = trial_of()
    runner = TrialRunner({"trial": spec_of(trial, store, checkpoint_seconds=1e6)})
    assert runner.step()["state"] == "running"
    assert not store.exists(f"trials/{trial.key}/checkpoint.pt")
    store.write(mirror.STOP, b"")
    runner._place._next_look = 0.0
    assert runner.step()["state"] == "stopped"
    assert store.exists(f"trials/{trial.key}/checkpoint.pt")
    runner.cleanup()


def planned(n_seeds: int = 2) -> tuple[ledger.Plan, list[Trial]]:
    base = SHORT
    plan = ledger.new_plan("tiny", base)
    plan = plan.grow(cells(base, parse_grid(["esteps=1,2"], "tiny")), range(n_seeds), "esteps=1,2")
    return plan, plan.trials()


def fill(path: Path, *names: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_bytes(name.encode())


def test_the_output_folder_gets_the_records_and_not_the_checkpoints(
    store: Storage, tmp_path: Path
) -> None:
    plan, trials = planned()
    key = trials[0].key
    fill(Path(store.address) / "trials" / key, "metrics.jsonl", "result.json", "checkpoint.pt",
         "owner.json", "attempts", "curves.png")  # fmt: skip
    fill(Path(store.address) / "trials" / "..evil", "x")
    copy = Mirror(tmp_path / "out", store)
    copy.pull()
    here = tmp_path / "out" / "trials"
    assert {p.name for p in here.iterdir()} == {key}
    assert {p.name for p in (here / key).iterdir()} == {
        "metrics.jsonl", "result.json", "curves.png"}  # fmt: skip
    (here / key / "metrics.jsonl").write_bytes(b"damaged in this copy")
    copy.pull([key])
    assert (here / key / "metrics.jsonl").read_bytes() == b"metrics.jsonl"


def test_news_that_come_while_the_storage_is_away_are_fetched_when_it_is_back(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trials = planned()
    root = Path(store.address)
    copy = Mirror(tmp_path / "out", store)
    copy.begin(plan, trials)
    store.retry_seconds = 0
    poked = threading.Event()
    copy.attend(lambda: [trials[0].key], poked.set)
    fill(root / "trials" / trials[0].key, "metrics.jsonl")
    root.rename(f"{root}-away")
    copy.news(trials[0].key)
    end = time.monotonic() + 20
    while copy.problem is None and time.monotonic() < end:
        time.sleep(0.01)
    assert copy.problem and "is gone" in copy.problem and not poked.is_set()
    Path(f"{root}-away").rename(root)
    assert poked.wait(20)
    assert (tmp_path / "out" / "trials" / trials[0].key / "metrics.jsonl").exists()
    owner = storage_owner(store)
    assert owner and owner["running"] == [trials[0].key]
    copy.ask_stop()
    while not store.exists(mirror.STOP) and time.monotonic() < end:
        time.sleep(0.01)
    assert store.exists(mirror.STOP)
    assert copy.settle(lambda: 5.0) is None
    copy.release()
    assert storage_owner(store) is None


def test_another_machine_finds_the_plan_and_another_sweep_is_refused(
    store: Storage, tmp_path: Path
) -> None:
    plan, trials = planned()
    first = Mirror(tmp_path / "first", store)
    first.begin(plan, trials)
    first.release()
    mirror.bring(tmp_path / "second", store.address)
    assert ledger.read_plan(tmp_path / "second") == plan
    assert mirror.storage_of(tmp_path / "second", None) == store.address
    with pytest.raises(ValueError, match="belongs to --storage"):
        mirror.storage_of(tmp_path / "second", "s3://other/place")
    other, _ = planned()
    ledger.write_plan(tmp_path / "third", other)
    with pytest.raises(ledger.LedgerError, match="different sweeps"):
        mirror.bring(tmp_path / "third", store.address)


def test_what_was_trained_here_goes_to_the_storage_once(store: Storage, tmp_path: Path) -> None:
    plan, trials = planned()
    done, begun, known, planned_only = (t.key for t in trials)
    out = tmp_path / "out" / "trials"
    fill(out / done, "config.json", "result.json", "checkpoint.pt", "mlflow.json")
    fill(out / begun, "config.json", "checkpoint.pt", "checkpoint-previous.pt")
    fill(out / known, "config.json")
    there = Path(store.address) / "trials"
    fill(there / known, "config.json", "checkpoint.pt")
    (there / known / "config.json").write_bytes(b"the storage's")
    copy = Mirror(tmp_path / "out", store)
    copy.begin(plan, trials)
    copy.release()
    assert {p.name for p in (there / done).iterdir()} == {
        "config.json", "result.json", "checkpoint.pt"}  # fmt: skip
    assert {p.name for p in (there / begun).iterdir()} == {"config.json", "checkpoint.pt"}
    assert (there / known / "config.json").read_bytes() == b"the storage's"
    assert not (there / planned_only).exists()


@pytest.mark.parametrize(("state", "left"), [("failed", {"checkpoint.pt", "metrics.jsonl"}),
                                             ("diverged", set())])  # fmt: skip
def test_a_trial_to_be_run_again_is_forgotten_in_the_storage_too(
    state: str, left: set[str], store: Storage, tmp_path: Path
) -> None:
    plan, trials = planned()
    folder = f"trials/{trials[0].key}"
    fill(Path(store.address) / folder, "result.json", "metrics.jsonl", "checkpoint.pt")
    copy = Mirror(tmp_path / "out", store)
    copy.pull()
    copy.forget(trials[0], state)
    assert set(store.list(folder)) == {f"{folder}/{name}" for name in left}
    assert not (tmp_path / "out" / folder / "result.json").exists()


def test_more_iterations_start_from_the_storages_checkpoint(store: Storage, tmp_path: Path) -> None:
    from tune.continuation import lengthen

    plan, trials = planned()
    short = trials[0]
    fill(Path(store.address) / "trials" / short.key, "checkpoint.pt", "metrics.jsonl")
    for base in (Path(store.address), tmp_path / "out"):
        fill(base / "trials" / short.key)
        run_dir.write_json(base / "trials" / short.key / "config.json", short.config.to_dict())
    longer = lengthen(plan, 80)
    trial = longer.trials()[0]
    copy = Mirror(tmp_path / "out", store)
    copy.begin(longer, longer.trials())
    copy.take_over(longer, trial)
    copy.release()
    assert store.list(f"trials/{short.key}") == {}
    assert store.read(f"trials/{trial.key}/checkpoint.pt") == b"checkpoint.pt"
    sent = json.loads(store.read(f"trials/{trial.key}/config.json") or b"")
    assert sent["iterations"] == 80
    assert not (tmp_path / "out" / "trials" / trial.key / "checkpoint.pt").exists()


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
    monkeypatch.setattr(node_data, "is_address", lambda data_dir: data_dir is not None)


def test_data_of_a_storage_is_fetched_once_and_again_only_when_it_changes(
    store: Storage, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    mnist_in(Path(store.address) / "MNIST" / "raw")
    node_data.check_stored(store.address, ["mnist"])
    place = node_data.folder_here(store.address, "mnist")
    assert place is not None and place.is_relative_to(tmp_path / "cache")
    assert len(data_files.source_files("mnist", place)) == 5
    read: list[str] = []
    plain = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, n: read.append(n) or plain(self, n))
    assert node_data.folder_here(store.address, "mnist") == place and read == []
    (Path(store.address) / "MNIST/raw/MODIFIED.txt").write_text("made up once more\n")
    node_data.folder_here(store.address, "mnist")
    assert read == ["MNIST/raw/MODIFIED.txt"]
    assert node_data.folder_here(store.address, "digits") is not None


def test_fetched_weights_stand_in_for_a_file_that_only_the_drivers_machine_has(
    store: Storage, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    store.write(node_data.inception.WEIGHTS_NAME, b"weights")
    here = tmp_path / "mine.pth"
    for named, stays in ((here, False), (None, False), (here, True)):
        if named is None:
            monkeypatch.delenv("MPCC_INCEPTION_WEIGHTS")
        else:
            monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(named))
        if stays:
            here.touch()
        place = node_data.folder_here(store.address, "digits")
        assert place is not None
        expected = here if stays else place / node_data.inception.WEIGHTS_NAME
        assert os.environ["MPCC_INCEPTION_WEIGHTS"] == str(expected)


def test_data_that_is_missing_or_unsound_in_the_storage_is_named(
    store: Storage, tmp_path: Path, as_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(data_files.DataError, match="mnist: train-images.*not found in"):
        node_data.check_stored(store.address, ["mnist"])
    with pytest.raises(data_files.DataError, match="omniglot: no file found in"):
        node_data.check_stored(store.address, ["omniglot"])
    mnist_in(Path(store.address) / "MNIST" / "raw")
    store.delete("MNIST/raw/MODIFIED.txt")
    with pytest.raises(data_files.DataError, match="MD5"):
        node_data.folder_here(store.address, "mnist")
