"""Each preset's networks at the paper's resolution: build, train, evaluate."""

import pytest

from mpcc.config import PRESETS
from mpcc.runs import run_dir
from mpcc.training.trainer import train
from tests.test_data import make_official, write_cifar, write_idx_set, write_omniglot

SHORT = {"iterations": 3, "batch_size": 4}
"""The paper's batch of 50 would take minutes an iteration at CIFAR's width on a CPU."""
NARROW = {"cifar10": 24, "cifar20": 24, "omniglot": 4}
"""At full width, whose parameters test_networks.py counts, an evaluation alone takes minutes."""


def results_of(name: str, data_dir, path) -> dict:
    width = {"width": NARROW[name]} if name in NARROW else {}
    config = PRESETS[name].override(**SHORT, **width)
    last = list(train(config, path, data_dir=data_dir, device="cpu"))[-1]
    assert last.state == "done" and last.iteration == 3
    result = run_dir.read_result(path)
    assert {"acc_majority", "acc_hungarian", "nmi", "ari", "mse"} <= set(result["metrics"])
    assert result["metrics"]["acc_majority"] >= result["metrics"]["acc_hungarian"]
    assert {"samples.png", "reconstructions.png", "latent.png", "curves.png"} <= {
        p.name for p in path.iterdir()
    }
    return result


@pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10", "cifar20", "omniglot"])
def test_preset_trains_three_iterations_on_files_in_its_official_format(
    name, tmp_path, monkeypatch
):
    if name in ("mnist", "fmnist"):
        make_official(monkeypatch, name, write_idx_set(tmp_path, name, 40, 20))
    elif name == "omniglot":
        write_omniglot(tmp_path)
    else:
        make_official(
            monkeypatch, name, write_cifar(tmp_path, name, 4 if name == "cifar10" else 15)
        )
    results_of(name, tmp_path, tmp_path / "run")
