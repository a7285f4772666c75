"""`make test-cluster`: two machines' worth of Ray, S3, MLflow on PostgreSQL, all started here.

Two Ray nodes run as processes of this machine, each with its own folders and pretended GPUs, token
authentication on. Where the system lets us (`unshare`), they do not see the repository's code, the
driver's folders or each other's: code and files must travel. The S3 store is moto's server, or the
one that MPCC_TEST_S3 names (with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of it).
"""

import gzip
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_tools import ROOT, Sweep, descendants, kill
from mpcc.runs import run_dir
from mpcc.runs.code_version import code_version
from tune.store.lock import sweep_owner
from tune.store.remote import Remote, RemoteError

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.cluster
GRID = [
    "--preset", "tiny", "--iterations", "40", "--set", "eval_every=20",
    "--grid", "esteps=1,2", "eta_p=1e-3,5e-3", "batch_size=25,50", "--seeds", "3",
    "--checkpoint-seconds", "0",
]  # fmt: skip
N_TRIALS = 24


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


def answers(port: int) -> bool:
    with socket.socket() as opened:
        opened.settimeout(1)
        return opened.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Site:
    """What runs for the tests, and ends with them."""

    base: Path
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def start(
        self, name: str, *command: str, cwd: Path | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd or self.base,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.base / f"{name}.log"

    def end(self) -> None:
        for process in reversed(self.processes):
            kill_tree(process.pid)
            process.wait(30)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all that it has started."""
    kill([*reversed(descendants(pid)), pid])


def program(name: str, package: str) -> str:
    """The path of a program; the test fails, saying what to install, where it is missing."""
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(places[-1]) if places else None
    if found is None:
        pytest.fail(f"{name} is not installed: {package}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.environment["RAY_AUTH_MODE"] = "token"
    made.environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    made.environment["OMP_NUM_THREADS"] = "1"
    # Trials must train on the CPU, for the numbers to be equal to the bit.
    made.environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def s3(site: Site) -> str:
    """The address of an S3 store, a bucket in it; credentials are in the site's environment."""
    import boto3  # pip install -r requirements-cluster.txt

    address = os.environ.get("MPCC_TEST_S3")
    if address is None:
        port = free_port()
        moto = program("moto_server", "pip install -r requirements-cluster.txt")
        site.start("s3", moto, "-H", "127.0.0.1", "-p", str(port))
        until(lambda: answers(port), 60, "the S3 store")
        address = f"http://127.0.0.1:{port}"
        site.environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    site.environment |= {
        "AWS_ENDPOINT_URL": address,
        "MLFLOW_S3_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=site.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=site.environment["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="mpcc-test")
    return "s3://mpcc-test"


@pytest.fixture(scope="module")
def postgres(site: Site) -> Iterator[str]:
    """The URI of a new data base in a PostgreSQL of our own, in a folder that its user can reach.

    pytest closes its own to other users, whenever it starts.
    """
    import psycopg  # noqa: F401  pip install -r requirements-cluster.txt

    initdb = program("initdb", "apt-get install postgresql")
    server = program("postgres", "apt-get install postgresql")
    home, port = Path(tempfile.mkdtemp(prefix="mpcc-postgres-")), free_port()
    data, password = home / "data", home / "password"
    secret = secrets.token_hex(16)
    password.write_text(secret)
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    if os.geteuid() != 0:  # PostgreSQL refuses to run as root
        user = []
    else:
        for path in (home, password):
            shutil.chown(path, "postgres", "postgres")
    subprocess.run(
        [*user, initdb, "-D", str(data), "-U", "mlflow", f"--pwfile={password}",
         "--auth=scram-sha-256"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    process = site.start("postgres", *user, server, "-D", str(data), "-p", str(port),
               "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}",
               "-c", "fsync=off")  # fmt: skip
    until(lambda: answers(port), 120, "PostgreSQL")
    yield f"postgresql://mlflow:{secret}@127.0.0.1:{port}/postgres"
    kill_tree(process.pid)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def mlflow_server(site: Site, s3: str, postgres: str) -> str:
    """An MLflow server on PostgreSQL that keeps artifacts in S3."""
    port = free_port()
    site.start(
        "mlflow", str(BIN / "mlflow"), "server", "--workers", "1", "--host", "127.0.0.1",
        "--port", str(port), "--backend-store-uri", postgres,
        "--artifacts-destination", f"{s3}/mlflow", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
    until(lambda: answers(port), 400, "MLflow")
    return f"http://127.0.0.1:{port}"


def hidden(site: Site, *command: str) -> list[str]:
    """The command where it sees neither the repository's code nor the driver's folders."""
    shadows = [ROOT / "mpcc", ROOT / "tune", site.base / "outs"]
    script = "".join(f"mount -t tmpfs none '{folder}' && " for folder in shadows) + 'exec "$@"'
    wrapped = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    trial = subprocess.run([*wrapped, "sh", "-c", script, "sh", "true"], capture_output=True)
    return [*wrapped, "sh", "-c", script, "sh", *command] if trial.returncode == 0 else [*command]


def start_node(
    site: Site, name: str, *options: str, **environment: str
) -> "subprocess.Popen[bytes]":
    temp = Path("/tmp") / f"mpcc-{os.getpid()}-{name}"  # A socket's path must be short.
    temp.mkdir(exist_ok=True)
    (site.base / "outs").mkdir(exist_ok=True)
    scratch = site.base / f"{name}-scratch"
    command = [
        str(BIN / "ray"), "start", "--block", "--num-cpus=2", "--num-gpus=2",
        "--object-store-memory=80000000", "--disable-usage-stats", f"--temp-dir={temp}", *options,
    ]  # fmt: skip
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    pretended = {"CUDA_VISIBLE_DEVICES": "98,99", "MPCC_SCRATCH_DIR": str(scratch), "PATH": path}
    return site.start(name, *hidden(site, *command), **pretended | environment)


def start_head(site: Site, name: str, *options: str) -> tuple[str, "subprocess.Popen[bytes]"]:
    """The address of a new cluster of one node, and the node's process."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = start_node(site, name, "--head", f"--port={port}", *options)
    until(lambda: answers(port) and n_nodes(site, address) == 1, 240, "Ray's head")
    return address, head


def end_node(name: str, process: "subprocess.Popen[bytes]") -> None:
    kill_tree(process.pid)
    shutil.rmtree(f"/tmp/mpcc-{os.getpid()}-{name}", ignore_errors=True)


@dataclass(frozen=True)
class Cluster:
    """Two nodes of Ray."""

    address: str
    dashboard: str
    """Where jobs are submitted."""
    second: "subprocess.Popen[bytes]"
    """The node that is not the head."""


@pytest.fixture(scope="module")
def cluster(site: Site, s3: str) -> Iterator[Cluster]:
    port = free_port()
    address, head = start_head(site, "head", f"--dashboard-port={port}", "--include-dashboard=true")
    second = start_node(site, "second", f"--address={address}")
    until(lambda: n_nodes(site, address) == 2, 240, "two Ray nodes")
    yield Cluster(address, f"http://127.0.0.1:{port}", second)
    end_node("second", second)
    end_node("head", head)


@pytest.fixture(scope="module")
def other_cluster(site: Site, s3: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of a second cluster, of one node, and its process."""
    address, head = start_head(site, "other", "--include-dashboard=false")
    yield address, head
    end_node("other", head)


def n_nodes(site: Site, address: str) -> int:
    code = (
        "import ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR');"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", address],
        env=site.environment, capture_output=True, text=True,
    )  # fmt: skip
    return int(asked.stdout.strip() or 0) if asked.returncode == 0 else 0


def ablation(site: Site, name: str, *options: str) -> list[str]:
    program = str(ROOT / "tune" / "ablation.py")
    return [sys.executable, program, "--out", str(site.base / "outs" / name), *options]


def sweep(site: Site, name: str, *options: str) -> "subprocess.Popen[bytes]":
    return site.start(name, *ablation(site, name, *GRID, *options))


def finished(site: Site, name: str, process: "subprocess.Popen[bytes]", seconds: float) -> str:
    code = process.wait(seconds)
    log = site.log(name).read_text()
    assert code == 0 and "Traceback" not in log, log
    return log


def tables(out: Path) -> dict[str, str]:
    """Every table of the sweep and its companion file, but for what each sweep has of its own.

    That is, of each trial, the seconds it took, MLflow's name for it, and the digest of its
    records, which hold such seconds.
    """
    made = Sweep(out, ()).tables()
    companion = out.parent / f"tables-{out.name}" / "grid-provenance.json"
    content = json.loads(companion.read_text())
    assert len(content["trials"]) == N_TRIALS
    for trial in content["trials"].values():
        assert re.fullmatch("[0-9a-f]{12}", trial.pop("records")) and trial.pop("mlflow_run")
    return made | {companion.name: json.dumps(content, indent=1)}


def weights(out: Path) -> dict[str, str]:
    found = (json.loads(file.read_text()) for file in out.glob("trials/*/result.json"))
    return {result["trial_key"]: result["weights_sha256"] for result in found}


@pytest.fixture
def with_s3(site: Site, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process can use the store."""
    for name, value in site.environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)


def test_files_in_s3_are_written_listed_and_removed_and_a_missing_bucket_is_named(
    s3: str, with_s3: None
) -> None:
    from mpcc.data.files import DataError
    from tune.store.datasets import folder_on_node

    store = Remote(f"{s3}/by-hand", retry_seconds=0)
    packed = gzip.compress(b"stays packed")
    assert store.read("a/b.gz") is None and store.list() == {} and store.info("a/b.gz") is None
    store.write("a/b.gz", b"first")
    store.write("a/b.gz", packed)
    store.write("empty", b"")
    assert store.read("a/b.gz") == packed and store.read("empty") == b""
    assert {n: about.size for n, about in store.list().items()} == {
        "a/b.gz": len(packed),
        "empty": 0,
    }
    assert abs(time.time() - store.list("a")["a/b.gz"].time_ns / 1e9) < 60
    store.delete("a/b.gz")
    store.delete("a/b.gz")
    assert store.info("a/b.gz") is None and set(store.list()) == {"empty"}
    with pytest.raises(RemoteError, match="NO_SUCH_BUCKET"):
        Remote("s3://mpcc-nowhere/x", retry_seconds=0).write("x", b"1")
    with pytest.raises(DataError, match="mnist: train-images.*not found in s3://"):
        folder_on_node(f"{s3}/data", "mnist")


def status_from_a_laptop(site: Site, storage: str) -> tuple[int, str]:
    """What --status says, and its exit code, from a machine that has nothing of the sweep."""
    with tempfile.TemporaryDirectory(dir=site.base) as laptop:
        command = [sys.executable, str(ROOT / "tune" / "ablation.py"), "--status"]
        told = subprocess.run(
            [*command, "--storage", storage, "--out", f"{laptop}/out"],
            cwd=laptop, env=site.environment, capture_output=True, text=True,
        )  # fmt: skip
    return told.returncode, told.stdout + told.stderr


def test_sigint_in_the_middle_of_a_long_interval_ends_with_checkpoints_in_the_storage(
    site: Site, s3: str, cluster: Cluster, with_s3: None, tmp_path: Path
) -> None:
    """On two nodes that share no disk; no evaluation and no checkpoint is due for hours."""
    storage = f"{s3}/sweeps/interrupted"
    long = ["--preset", "tiny", "--iterations", "1000000", "--set", "eval_every=1000000",
            "--grid", "esteps=1,2", "--seeds", "2", "--checkpoint-seconds", "100000"]  # fmt: skip
    where = ["--address", cluster.address, "--storage", storage, "--gpus-per-trial", "1"]
    process = site.start("interrupted", *ablation(site, "interrupted", *long, *where))
    scratch = [site.base / "head-scratch", site.base / "second-scratch"]

    def all_at_work() -> bool:
        assert process.poll() is None, site.log("interrupted").read_text()
        return all(len(list(path.glob("*/trials/*/provenance.json"))) == 2 for path in scratch)

    until(all_at_work, 300, "two trials on each node")
    time.sleep(3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and time.monotonic() - begun < 20
    log = site.log("interrupted").read_text()
    assert "SIGINT: writing checkpoints" in log and "Traceback" not in log, log
    code, told = status_from_a_laptop(site, storage)
    keys = re.findall(r"trial (\w{12}) .* stopped ", told)
    assert code == 3 and len(keys) == 4, told
    for key in keys:
        (tmp_path / key).mkdir()
        sent = Remote(storage).read(f"trials/{key}/{run_dir.CHECKPOINT}")
        assert sent is not None, (key, log)
        (tmp_path / key / run_dir.CHECKPOINT).write_bytes(sent)
        kept, _ = run_dir.read_checkpoints(tmp_path / key)
        assert kept[0].iteration and kept[0].iteration > 0
    until(lambda: not any(list(p.glob("mpcc-trial-*")) for p in scratch), 30, "empty scratches")


@pytest.fixture(scope="module")
def local(site: Site) -> dict[str, str]:
    """The tables of the same sweep on this machine alone."""
    finished(site, "local", sweep(site, "local"), 900)
    return tables(site.base / "outs" / "local")


def test_a_node_killed_in_the_middle_costs_nothing_but_time(
    site: Site, s3: str, mlflow_server: str, cluster: Cluster, local: dict[str, str]
) -> None:
    storage = f"{s3}/sweeps/one"
    where = ["--address", cluster.address, "--storage", storage, "--tracking-uri", mlflow_server]
    process = sweep(site, "killed", *where, "--gpus-per-trial", "1")
    out = site.base / "outs" / "killed"

    def both_at_work() -> bool:
        assert process.poll() is None, site.log("killed").read_text()
        scratch = [site.base / f"{name}-scratch" for name in ("head", "second")]
        running = [list(folder.glob("*/trials/*/checkpoint.pt")) for folder in scratch]
        return all(running) and len(weights(out)) >= 4

    until(both_at_work, 600, "trials on both nodes")
    code, told = status_from_a_laptop(site, storage)
    assert code == 3 and f"driver: process {process.pid} on" in told and " running " in told, told
    before = {p: p.stat().st_mtime_ns for p in out.glob("trials/*/result.json")}
    kill_tree(cluster.second.pid)
    text = finished(site, "killed", process, 900)
    assert "View run" not in text
    assert len(weights(out)) == N_TRIALS
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert weights(out) == weights(site.base / "outs" / "local")
    assert tables(out) == local
    code, told = status_from_a_laptop(site, storage)
    assert code == 0 and f"{N_TRIALS} trials: {N_TRIALS} done\n" in told, told

    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("mpcc-tiny")
    runs = [r for r in client.search_runs([experiment.experiment_id], max_results=1000)]
    keys = [r.data.tags["trial_key"] for r in runs if "trial_key" in r.data.tags]
    assert sorted(keys) == sorted(weights(out)) and {r.info.status for r in runs} == {"FINISHED"}
    assert any(a.path == "samples.png" for a in client.list_artifacts(runs[0].info.run_id)) or any(
        a.path == "sweep.json" for a in client.list_artifacts(runs[0].info.run_id)
    )


def test_the_trials_said_which_code_they_ran_and_that_they_ran_on_the_cpu(
    site: Site, local: dict[str, str]
) -> None:
    said = {
        name: [
            json.loads(p.read_text()) for p in (site.base / "outs" / name).glob("trials/*/prov*")
        ]
        for name in ("local", "killed")
    }
    assert len(said["killed"]) == N_TRIALS
    for entry in ("code", "code_files", "device", "torch", "python"):
        values = {name: {json.dumps(p[entry]) for p in found} for name, found in said.items()}
        assert len(values["local"]) == 1 and values["local"] == values["killed"], entry
    assert said["killed"][0]["device"].startswith("cpu")


def test_a_cluster_and_this_machine_alone_give_the_same_tables(
    site: Site, s3: str, cluster: Cluster, local: dict[str, str]
) -> None:
    """On what is left of the cluster: one node, joined by hand."""
    where = ["--address", cluster.address, "--storage", f"{s3}/sweeps/two"]
    finished(site, "joined", sweep(site, "joined", *where, "--data-dir", f"{s3}/data"), 900)
    assert tables(site.base / "outs" / "joined") == local


def test_a_submitted_job_gives_the_same_tables(
    site: Site, s3: str, cluster: Cluster, local: dict[str, str]
) -> None:
    """Its driver runs on the head, which has no code of ours; what the job sets reaches trials."""
    out = site.base / "submitted"
    given = {"MPCC_CODE_VERSION": code_version(), "AWS_DEFAULT_REGION": "us-east-1"}
    process = site.start(
        "submitted", str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard,
        "--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": given}), "--",
        "python", "tune/ablation.py", "--address", "auto", "--storage", f"{s3}/sweeps/three",
        "--out", str(out), *GRID, cwd=ROOT,
    )  # fmt: skip
    log = finished(site, "submitted", process, 900)
    assert f"{N_TRIALS} of {N_TRIALS} trials done" in log
    assert tables(out) == local


def test_trials_run_elsewhere_when_a_node_joins_late_and_is_not_ready(
    site: Site, s3: str, cluster: Cluster, local: dict[str, str]
) -> None:
    other = site.base / "other-libraries" / "scikit_learn-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 0.1\n")
    where = [
        "--address",
        cluster.address,
        "--storage",
        f"{s3}/sweeps/late",
        "--gpus-per-trial",
        "2",  # One trial for each node, so that the sweep is longer than a node's start.
    ]
    process = sweep(site, "late-sweep", *where, "--max-concurrent", "2")
    out = site.base / "outs" / "late-sweep"
    until(lambda: process.poll() is not None or weights(out), 300, "a first result")
    late = start_node(site, "late", f"--address={cluster.address}", PYTHONPATH=str(other.parent))
    try:
        log = finished(site, "late-sweep", process, 900)
        assert log.count("has scikit-learn 0.1, the driver") == 1, log
        assert "; trials run on other machines\n" in log, log
        assert tables(out) == local
        assert not list((site.base / "late-scratch").glob("*/trials/*/config.json"))
    finally:
        end_node("late", late)


def test_without_a_storage_a_node_that_cannot_see_the_folder_is_named_before_anything_runs(
    site: Site, cluster: Cluster
) -> None:
    if not hidden(site, "true")[0] == "unshare":
        pytest.skip("no `unshare --mount` here: every node sees every folder")
    process = sweep(site, "refused", "--address", cluster.address)
    assert process.wait(300) == 2
    log = site.log("refused").read_text()
    assert re.search(r"not every machine is ready: [\d.]+ cannot use .*give --storage", log), log
    assert not list((site.base / "outs" / "refused").glob("trials/*"))


def test_a_driver_with_another_token_is_refused_in_one_line(site: Site, cluster: Cluster) -> None:
    out = site.base / "outs" / "stranger"
    process = site.start(
        "stranger", *ablation(site, "stranger", *GRID, "--address", cluster.address),
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )  # fmt: skip
    assert process.wait(240) == 2
    log = site.log("stranger").read_text()
    assert log.count("our token must be that of its nodes") == 1, log
    assert "Traceback" not in log and not list(out.glob("trials/*"))


def elsewhere(site: Site) -> tuple[list[str], dict[str, str]]:
    """What makes a driver one of another machine, whose clock is a day ahead: words, variables."""
    folder = site.base / "tomorrow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 86400\n"
    )
    words = ["unshare", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"]),
             "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]  # fmt: skip
    if subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        pytest.skip("no `unshare --uts` here: every driver is of this machine")
    return words, {"PYTHONPATH": str(folder)}


def test_one_driver_at_a_time_works_on_a_bucket_whatever_its_clock_says(
    site: Site,
    s3: str,
    cluster: Cluster,
    other_cluster: tuple[str, "subprocess.Popen[bytes]"],
    local: dict[str, str],
) -> None:
    """Through two clusters; the owner is of another machine, and then it is gone."""
    words, ahead = elsewhere(site)
    storage = ["--storage", f"{s3}/sweeps/shared"]
    where = [*storage, "--address", other_cluster[0]]
    owner = site.start("owner", *words, *ablation(site, "owner", *GRID, *where), **ahead)
    out = site.base / "outs" / "owner"
    until(lambda: owner.poll() is not None or len(weights(out)) >= 2, 300, "two results")
    rival = sweep(site, "rival", *storage, "--address", cluster.address)
    assert rival.wait(90) == 2, site.log("rival").read_text()
    tomorrow = time.strftime("%Y-%m-%d", time.localtime(time.time() + 86400))
    said = rf"in use by process {owner.pid} on elsewhere since {tomorrow}.*--address"
    assert re.search(said, site.log("rival").read_text()), site.log("rival").read_text()
    assert owner.poll() is None
    kill_tree(owner.pid)
    before = {key: made for key, made in weights(out).items()}
    heir = sweep(site, "heir", *storage, "--address", cluster.address)
    text = finished(site, "heir", heir, 900)
    assert "on elsewhere" in text and "watching it for 30 s" in text
    ended = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/result.json")}
    taken = site.base / "outs" / "heir"
    assert all(
        (taken / "trials" / k / "result.json").stat().st_mtime_ns <= ended[k] for k in before
    )
    assert tables(taken) == local


def test_a_driver_whose_cluster_dies_says_so_and_ends(
    site: Site, other_cluster: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    address, head = other_cluster
    store = site.base / "orphan-store"
    process = sweep(site, "orphan", "--address", address, "--storage", str(store))
    trials = store / "trials"
    until(lambda: process.poll() is not None or list(trials.glob("*/checkpoint.pt")), 600, "work")
    assert process.poll() is None, site.log("orphan").read_text()
    kill_tree(head.pid)
    begun = time.monotonic()
    assert process.wait(120) == 3 and time.monotonic() - begun < 60
    log = site.log("orphan").read_text()
    silent = re.search(r"the cluster is gone: .* not answered for (\d+) s; run the same", log)
    assert silent and int(silent[1]) < 30, log
    assert "Traceback" not in log and "Go on:   the same command again" in log
    assert sweep_owner(site.base / "outs" / "orphan") is None


def test_the_slurm_script_starts_nodes_runs_the_sweep_and_ends_them(site: Site) -> None:
    """With stand-ins for Slurm's own commands, two "nodes" on this machine."""
    if not (ROOT / ".venv" / "bin" / "ray").exists():
        pytest.skip("the script wants .venv in the repository: make .venv/installed")
    tools = site.base / "slurm-tools"
    tools.mkdir()
    stand_ins = {
        "scontrol": "echo one; echo two",
        "hostname": "echo 127.0.0.1",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    }
    for name, body in stand_ins.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    job = str(os.getpid())
    out = site.base / "outs" / "slurm"
    words = ["--preset", "tiny", "--iterations", "4", "--grid", "esteps=1,2", "--seeds", "1"]
    process = site.start(
        "slurm", "bash", str(ROOT / "deploy" / "slurm.sh"), "--out", str(out), *words,
        PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_ID=job, SLURM_JOB_NODELIST="one,two", SLURM_CPUS_PER_TASK="1",
        SLURM_GPUS_ON_NODE="0", MPCC_RAY_PORT=str(free_port()),
    )  # fmt: skip
    assert process.wait(400) == 0, site.log("slurm").read_text()
    assert len(weights(out)) == 2
    left = f"/tmp/mpcc-{job}/"
    until(lambda: not any(left in line for line in commands()), 60, "the end of the job's nodes")
    shutil.rmtree(left, ignore_errors=True)


def commands() -> list[str]:
    """The command line of every process."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text().replace("\0", " "))
        except OSError:
            continue
    return found
