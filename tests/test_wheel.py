"""`pip install .` gives `mpcc`, and nothing else under a name of its own."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USE = """
import sys, pathlib
for name in ("ray", "mlflow", "optuna", "pandas", "statsmodels", "rich", "filelock", "pytorch_fid"):
    sys.modules[name] = None
import mpcc
assert "torch" not in sys.modules
assert pathlib.Path(mpcc.__file__).is_relative_to(sys.prefix), mpcc.__file__
for name in ("tune", "analysis", "tests"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
from sklearn.datasets import load_digits
x = load_digits().images[:100] / 16
settings = {"batch_size": 8, "width": 1}
ours = mpcc.MPCC(3, iterations=3, settings=settings, random_state=0, device="cpu")
print(ours.fit(x).predict(x).shape, ours.sample(2).shape)
"""


def test_only_what_mpcc_imports_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not {"ray[tune]", "mlflow", "optuna"} & set(project["dependencies"])
    wanted = {*project["dependencies"], *sum(project["optional-dependencies"].values(), [])}
    listed = (ROOT / "requirements.txt").read_text().split("# tests")[0].splitlines()
    assert {line for line in listed if line and line[0] != "#"} <= wanted


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools builds in the folder that it is given.
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in ("mpcc", "tune", "analysis", "tests"):
        for file in (ROOT / package).rglob("*.py"):
            target = source / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, *build, "--wheel-dir", str(tmp_path), str(source)], tmp_path)
    wheel = next(tmp_path.glob("mpcc-*.whl"))
    with zipfile.ZipFile(wheel) as opened:
        tops = {name.partition("/")[0] for name in opened.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mpcc"}
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    # Where the libraries lie; ours comes from the wheel alone.
    site = Path(run([str(python), "-c", "import site; print(site.getsitepackages()[0])"], tmp_path))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
         str(wheel)], tmp_path)  # fmt: skip
    assert run([str(python), "-I", "-c", USE], tmp_path).split("\n")[0] == "(100,) (2, 1, 8, 8)"
    mpcc = str(python.with_name("mpcc"))
    assert '"dataset": "digits"' in run([mpcc, "--preset", "tiny", "--dry-run"], tmp_path)
    assert run([mpcc, "--help"], tmp_path).startswith("usage: mpcc ")


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
