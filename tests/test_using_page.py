"""docs/using-a-model.md, the README's commands that use a model, and the example run as printed."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import mpcc
from mpcc.__main__ import main
from mpcc.config import PRESETS
from mpcc.runs.run_dir import read_result
from mpcc.training.trainer import train
from mpcc.use import commands

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "using-a-model.md"
NOTEBOOK = ROOT / "examples" / "digits.ipynb"
SMALL = PRESETS["digits"].override(iterations=3, width=1, n_encoder_steps=4, prior_lr=0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial in runs/one, a sweep in runs/digits, images in DIR."""
    base = tmp_path_factory.mktemp("page")
    list(train(SMALL, base / "runs" / "one", device="cpu"))
    for seed in (0, 1):
        config = SMALL.override(seed=seed, width=2)
        list(train(config, base / "runs" / "digits" / "trials" / config.trial_key, device="cpu"))
    (base / "DIR").mkdir()
    for i, image in enumerate(load_digits().images[:20]):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(base / "DIR" / f"{i}.png")
    return base


def few_iterations(monkeypatch: pytest.MonkeyPatch, iterations: int, **settings: Any) -> None:
    """Let MPCC train shortly, whatever the page says: what it says is tried."""
    real = mpcc.MPCC.fit

    def fit(self: mpcc.MPCC, X: Any, y: object = None) -> mpcc.MPCC:
        return real(self.set_params(iterations=iterations, settings=settings), X, y)

    monkeypatch.setattr(mpcc.MPCC, "fit", fit)


def test_the_pages_python_runs_as_printed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    few_iterations(monkeypatch, 3, width=1)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        if "import mlflow" not in block:  # That one is run in tests/test_tracking.py.
            exec(block, names)
    assert len(blocks) >= 5 and names["drawn"].shape == (64, 1, 8, 8)
    assert names["path"].shape == (8, 1, 8, 8) and names["clusters"].shape == (1797,)
    result = read_result(Path("runs/one"))
    assert result is not None and names["accuracy"] == result["metrics"]["acc_majority"]


COMMANDS = [
    match.partition(" # ")[0].strip()
    for file in (PAGE, ROOT / "README.md")
    for match in re.findall(r"^python -m mpcc (.*)$", file.read_text(), re.M)
    if match.split()[0] in commands.COMMANDS
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_that_uses_a_model_runs_as_printed(
    words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    argv = shlex.split(words)
    assert main(argv) == 0
    assert Path(argv[argv.index("--out") + 1]).exists()


def test_every_command_is_printed() -> None:
    assert {words.split()[0] for words in COMMANDS} == set(commands.COMMANDS)


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few_iterations(monkeypatch, 300)  # Of 700; they suffice for the accuracy below.
    matplotlib.use("agg")
    names: dict[str, Any] = {"display": print}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    table = names["table"]
    assert list(table.index) == ["k-means", "MPCC"] and table.Acc.between(0.5, 1).all()
    assert names["drawn"].shape[1:] == (1, 8, 8)
