"""The baseline is k-means' own accuracy, computed once."""

import pytest
import torch

from mpcc.config import PRESETS
from mpcc.data import image_set as data
from mpcc.evaluation import baseline


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path))


def test_a_baseline_is_computed_once_for_each_number_of_clusters(monkeypatch):
    digits = data.load(PRESETS["digits"])
    first = baseline.kmeans_acc_majority(digits, 10)
    assert baseline.kmeans_acc_majority(digits, 2) < 0.75 < first < 0.85
    monkeypatch.setattr(baseline, "best_of_ten_starts", None)  # would fail if it were called
    assert baseline.kmeans_acc_majority(digits, 10) == first


def test_data_without_labels_has_no_baseline():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="needs labels"):
        baseline.kmeans_acc_majority(data.ImageSet(images, None, (), "0"), 2)
