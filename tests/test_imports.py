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


@pytest.mark.parametrize("path", sorted((ROOT / "mpcc").glob("*.py")), ids=lambda p: p.stem)
def test_the_trainer_knows_nothing_of_sweeps_and_tables(path):
    forbidden = {"ray", "mlflow", "optuna", "pandas", "tune", "analysis"}
    assert not packages(all_imports(path)) & forbidden


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda p: p.stem)
def test_tables_open_neither_torch_nor_ray(path):
    assert not packages(all_imports(path)) & {"torch", "torchvision", "ray"}
    # Of tune only what is plain: states, who holds a sweep, what to type, what pruning does.
    theirs = {name for name in all_imports(path) if name.split(".")[0] == "tune"}
    assert theirs <= {"tune.ledger", "tune.lock", "tune.pruning", "tune.shell"}


def test_config_needs_the_standard_library_only():
    used = packages(top_level_imports(ROOT / "mpcc" / "config.py"))
    assert used <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["losses", "prior", "metrics"])
def test_pure_modules_take_no_config(name):
    assert "mpcc.config" not in all_imports(ROOT / "mpcc" / f"{name}.py")


@pytest.mark.parametrize(
    "module",
    [
        "mpcc.__main__",
        "tune.ablation",
        "tune.search",
        "tune.grid",
        "tune.ledger",
        "analysis.make_tables",
    ],
)
def test_light_entry_points_import_nothing_heavy(module):
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(out.stdout.split()) & HEAVY
