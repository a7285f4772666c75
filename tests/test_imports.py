"""The layout: imports point one way, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "ray", "mlflow", "optuna", "matplotlib", "sklearn", "pandas"}


def top_level_imports(path: Path) -> set[str]:
    """Modules imported when this file is, functions' own imports left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def all_imports(path: Path) -> set[str]:
    """Every module that this file names in an import, wherever."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", sorted((ROOT / "mpcc").rglob("*.py")), ids=lambda p: p.stem)
def test_the_trainer_knows_nothing_of_sweeps_and_tables(path):
    forbidden = {"ray", "mlflow", "optuna", "pandas", "tune", "analysis"}
    if path.parts[-2:] == ("use", "load.py"):
        forbidden.remove("mlflow")  # A model's address may be MLflow's.
        assert "mlflow" not in packages(top_level_imports(path))
    assert not packages(all_imports(path)) & forbidden


def test_the_model_is_plain_and_a_trial_becomes_fast_in_one_place():
    for path in (ROOT / "mpcc" / "model").glob("*.py"):
        ours = {name for name in all_imports(path) if name.startswith("mpcc.")}
        assert ours <= {"mpcc.config", "mpcc.model", "mpcc.model.layers"}, path
    outside = {p for p in (ROOT / "mpcc").rglob("*.py") if p.parent.name != "fast"}
    named = {p.name: {n for n in all_imports(p) if n.startswith("mpcc.fast")} for p in outside}
    # pace.py measures trials side by side; how an iteration is made is the seam's alone.
    assert {name: found for name, found in named.items() if found} == {
        "state.py": {"mpcc.fast.build"},
        "pace.py": {"mpcc.fast.together"},
        "trained.py": {"mpcc.fast.layers"},  # A model rounds as the trial that trained it.
    }


LAYERS = {
    "plan": {"plan"},
    "store": {"plan", "store"},
    "tracking": {"plan", "store", "tracking"},
    "suggest": {"plan", "store", "suggest"},
    "engine": {"plan", "store", "tracking", "engine", "display", "signals"},
}
"""Package of tune -> what of tune it may import, at the top of a module or within."""


def parts_of_tune(path: Path) -> set[str]:
    """The packages and modules of tune that this file imports, by their first name."""
    return {name.split(".")[1] for name in all_imports(path) if name.startswith("tune.")}


@pytest.mark.parametrize("package", LAYERS)
def test_the_packages_of_tune_import_in_one_direction(package):
    for path in (ROOT / "tune" / package).glob("*.py"):
        assert parts_of_tune(path) <= LAYERS[package], path


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").rglob("*.py")), ids=lambda p: p.stem)
def test_tables_open_neither_torch_nor_ray_and_of_tune_only_plans_and_records(path):
    assert not packages(all_imports(path)) & {"torch", "torchvision", "ray"}
    assert parts_of_tune(path) <= {"plan", "store"}


@pytest.mark.parametrize(
    ("library", "room", "n_of_analysis"),
    [("ray", "engine", 0), ("mlflow", "tracking", 1), ("optuna", "suggest", 1)],
)
def test_a_library_is_known_to_one_package(library, room, n_of_analysis):
    users = [p for p in (ROOT / "tune").rglob("*.py") if library in packages(all_imports(p))]
    assert users and {path.parent.name for path in users} == {room}
    users = [p for p in (ROOT / "analysis").rglob("*.py") if library in packages(all_imports(p))]
    assert len(users) == n_of_analysis


def test_only_the_public_interface_of_ray_is_used():
    for folder in ("tune", "mpcc", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "ray._" not in text and "class_cache" not in text and "setattr(" not in text


def test_config_needs_the_standard_library_only():
    for path in (ROOT / "mpcc" / "config").glob("*.py"):
        assert packages(top_level_imports(path)) <= {*sys.stdlib_module_names, "mpcc"}
        assert all(
            name.startswith("mpcc.config")
            for name in all_imports(path)
            if packages({name}) == {"mpcc"}
        )


@pytest.mark.parametrize("name", ["model/losses", "model/prior", "evaluation/metrics"])
def test_pure_modules_take_no_config(name):
    assert "mpcc.config" not in all_imports(ROOT / "mpcc" / f"{name}.py")


NO_DATA = """from mpcc.data import files
try:
    files.check_available("mnist", "/nowhere")
except files.DataError:
    pass"""
LIGHT = {
    "import mpcc": HEAVY,
    "import mpcc.__main__": HEAVY,
    "import tune.ablation": HEAVY,
    "import tune.search": HEAVY,
    "import tune.plan.grid": HEAVY,
    "import tune.store.folder": HEAVY,
    "import analysis.make_tables": HEAVY,
    "import mpcc.evaluation.metrics": {"torch", "scipy", "sklearn"},
    "import mpcc.evaluation.plots, mpcc.evaluation.pictures": {"matplotlib"},
    "import tune.engine.head, tune.engine.cluster": {"ray"},
    NO_DATA: {"torch", "numpy", "sklearn"},
}
"""What is run -> the libraries that it must not import."""


@pytest.mark.parametrize("code", LIGHT)
def test_light_entry_points_import_nothing_heavy(code):
    program = f"{code}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(out.stdout.split()) & LIGHT[code]
