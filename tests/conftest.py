"""Shared by all tests: one thread, real digits, real data where MPCC_DATA_DIR says."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The user's own cache stays as it is; what one test prepares, the next finds.
os.environ["MPCC_CACHE_DIR"] = tempfile.mkdtemp(prefix="mpcc-tests-")
atexit.register(shutil.rmtree, os.environ["MPCC_CACHE_DIR"], ignore_errors=True)

import pytest  # noqa: E402

from mpcc.config import PRESETS, Config  # noqa: E402


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; skips, saying so, where there is none."""
    folder = os.environ.get("MPCC_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: set MPCC_DATA_DIR to a folder that holds it")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits at 8×8, as the tiny preset reads them."""
    import torch

    from mpcc.data.image_set import load

    torch.set_num_threads(1)
    return load(PRESETS["tiny"])


@pytest.fixture
def tiny() -> Config:
    """The smallest preset: 1,797 digits, four iterations."""
    return PRESETS["tiny"]


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs take no time to measure."""
    from tune import estimate

    def measure(*_: object) -> None:
        raise ValueError("not in this test")

    monkeypatch.setattr(estimate, "measure", measure)
