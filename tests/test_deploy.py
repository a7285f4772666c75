"""The files of deploy/, as far as they can be checked without a cloud."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
PYTHON = re.search(r"python=(\S+)", (ROOT / "environment.yml").read_text())
assert RAY and PYTHON


def parsed(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.slow
def test_the_cloud_cluster_passes_rays_own_validation() -> None:
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = parsed("ray-cluster.yaml")[0]
    validate_config(prepare_config(config))
    assert config["provider"]["type"] == "aws"
    broken = config | {"available_node_type": {}}
    with pytest.raises(Exception, match="available_node_type"):
        validate_config(broken)


def test_versions_are_those_of_the_constraints() -> None:
    assert RAY and PYTHON
    ray, python = RAY[1], PYTHON[1]
    tag = f"rayproject/ray:{ray}-py{python.replace('.', '')}"
    assert f"FROM {tag}\n" in (DEPLOY / "Dockerfile").read_text()
    kube = parsed("kuberay.yaml")[0]["spec"]
    assert kube["rayVersion"] == ray
    pods = [kube["headGroupSpec"], *kube["workerGroupSpecs"]]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in pods}
    assert images == {f"REGISTRY/mpcc-ray:{ray}"}
    assert f"python{python} -m venv" in (DEPLOY / "ray-cluster.yaml").read_text()
    assert f"python:{python}-slim" in (DEPLOY / "compose.yaml").read_text()


def test_every_way_to_a_cluster_asks_for_a_token() -> None:
    cloud = (DEPLOY / "ray-cluster.yaml").read_text()
    starts = [line for line in cloud.splitlines() if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert parsed("kuberay.yaml")[0]["spec"]["authOptions"] == {"mode": "token"}
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in (DEPLOY / "slurm.sh").read_text()
    for file in DEPLOY.iterdir():
        assert "AUTH_MODE=disabled" not in file.read_text()


def test_nothing_of_ours_listens_to_the_world() -> None:
    services = parsed("compose.yaml")[0]["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(str(port).startswith("127.0.0.1:") for port in ports)
    assert "ports" not in services["database"]
    for name in ("ray-cluster.yaml", "kuberay.yaml", "slurm.sh"):
        assert "dashboard-host" not in (DEPLOY / name).read_text()
    assert parsed("kuberay.yaml")[0]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's import
def test_mlflows_server_knows_the_options_that_compose_gives_it() -> None:
    from mlflow.cli import server

    known = {name for parameter in server.params for name in parameter.opts}
    line = parsed("compose.yaml")[0]["services"]["mlflow"]["command"][2]
    given = set(re.findall(r"(--[a-z-]+)", line.split("mlflow server")[1]))
    assert given and given <= known, given - known


@pytest.mark.parametrize("name", ["slurm.sh", "array.sh"])
def test_the_slurm_scripts_are_sound_shell(name: str) -> None:
    script = DEPLOY / name
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.slow
def test_jobs_of_an_array_train_every_trial_once(tmp_path: Path) -> None:
    """As shells, without Slurm: what a job does is the script's own."""
    out = tmp_path / "x"
    grid = ["--preset", "tiny", "--grid", "esteps=1", "--seeds", "1", "--out", str(out)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("SLURM_SUBMIT_DIR", None)
    jobs = [
        subprocess.Popen(
            ["bash", str(DEPLOY / "array.sh"), *grid],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], printed
    assert all("nothing is left to do" in text for text in printed)
    assert "".join(printed).count("training esteps=") == 1
    assert len(list(out.glob("trials/*/result.json"))) == 1


def test_every_step_of_a_slurm_job_gets_the_cores_that_ray_is_told_of() -> None:
    script = (DEPLOY / "slurm.sh").read_text()
    export = script.index('export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"\n')
    assert export < script.index("srun --")
    assert '--num-cpus="$SRUN_CPUS_PER_TASK"' in script


def test_the_image_leaves_free_the_place_the_code_is_sent_to_and_only_commits_are_sent() -> None:
    shipped = (DEPLOY / "README.md").read_text()
    assert "kubectl cp" not in shipped
    sent = re.search(r"git archive HEAD \| kubectl exec -i \S+ -- sh -c '(.*)'", shipped)
    assert sent and sent[1] == "mkdir -p ~/mpcc && tar -x -C ~/mpcc"
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        assert not line.startswith("COPY") or line.split()[-1] == "/opt/mpcc-requirements/"


def test_what_is_sent_to_a_pod_is_the_committed_files(tmp_path: Path) -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git repository here")
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    script = f"mkdir -p {tmp_path}/mpcc && tar -x -C {tmp_path}/mpcc"
    subprocess.run(["sh", "-c", script], input=packed.stdout, check=True)
    names = {path.name for path in (tmp_path / "mpcc").iterdir()}
    assert {"mpcc", "tune", "analysis", "README.md"} <= names
    assert not names & {".git", ".venv", "runs", "shared"}


def test_compose_accepts_its_file() -> None:
    services = parsed("compose.yaml")[0]
    assert set(services["services"]) == {"database", "mlflow"}
    assert set(services["volumes"]) == {"database", "artifacts"}
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("no docker here")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker here has no compose")
    command = [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    environment = {**os.environ, "MLFLOW_DB_PASSWORD": "x"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
