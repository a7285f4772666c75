"""The benchmark of the step runs, and what it divides by is counted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.training_step import Size, rows, seconds

ROOT = Path(__file__).resolve().parents[1]
NOT_ON_A_GPU = ("ray", "mlflow", "optuna", "pandas", "pytorch_fid", "matplotlib", "rich")


def test_step_is_timed_both_ways_and_its_arithmetic_counted():
    size = Size("tiny", "digits", {"batch_size": 4, "width": 1})
    fast, plain, flop = seconds(size, rounds=2)
    assert len(fast) == len(plain) == 2 and min(fast + plain) > 0
    # Of the preset's own batch of 50 and width of 4 it would be about 8e8.
    assert 1e6 < flop < 1e9


def test_table_has_a_row_for_what_cannot_be_measured():
    found = list(rows(1, only="MNIST preset, GPU, tf32"))
    assert [row.aim for row in found] == ["<= 2 ms"]


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu_with_torch_sklearn_and_pytest_alone(tmp_path):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in NOT_ON_A_GPU)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--dry-run", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # On a machine without a GPU they are collected and skip.
    assert re.search(r"^\d+ (passed|skipped)", done.stdout, re.M) and " error" not in done.stdout
    for figure in ("MNIST preset, GPU, float32", "CIFAR-10 preset, GPU, tf32", "of 8 MNIST trials"):
        assert figure in done.stdout
    assert "<= 2 ms" in done.stdout and "<= 45 ms" in done.stdout and "<= 2 x one" in done.stdout
    assert "mnist: " in done.stdout and "aten::" in done.stdout
    assert (tmp_path / "out" / "tiny" / "result.json").exists()
