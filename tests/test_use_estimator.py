"""The scikit-learn estimator: trained by the code of a trial, and at home in scikit-learn."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import mpcc
from mpcc.config import PRESETS
from mpcc.evaluation.metrics import cluster_information
from mpcc.runs.model_file import read_model
from mpcc.training.trainer import train
from mpcc.use.trained import bytes_of

X = load_digits().images / 16.0
QUICK = {"settings": {"batch_size": 8, "width": 1, "J": 4}, "iterations": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def fitted() -> mpcc.MPCC:
    return mpcc.MPCC(random_state=3, **QUICK).fit(X)


def test_it_gives_the_bits_of_the_trial_with_its_settings_and_seed(
    fitted: mpcc.MPCC, tmp_path: Path
) -> None:
    settings = {"batch_size": 8, "width": 1, "latent_size": 4, "iterations": 5, "seed": 3}
    list(train(PRESETS["digits"].override(**settings), tmp_path, device="cpu"))
    trial = mpcc.load(tmp_path, device="cpu")
    ours, theirs = (read_model(bytes_of(m), "")[1] for m in (fitted.model_, trial))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(fitted.labels_, trial.predict(X))


def test_all_its_methods_agree(fitted: mpcc.MPCC) -> None:
    assert np.array_equal(fitted.predict(X), fitted.labels_) and fitted.labels_.dtype == np.int64
    assert repr(fitted.model_).startswith("Model(a fitted MPCC: 10 clusters, 1x8x8 images, ")
    proba = fitted.predict_proba(X)
    assert proba.shape == (1797, 10) and np.array_equal(proba.argmax(1), fitted.labels_)
    assert fitted.transform(X).shape == (1797, 4)
    assert fitted.score(X) == pytest.approx(fitted.metrics_["cluster_information"], abs=1e-5)
    assert fitted.score(X, load_digits().target) == fitted.score(X)
    assert 0 <= cluster_information(np.log(proba)) <= np.log(10)
    assert fitted.sample(3, cluster=2).shape == (3, 1, 8, 8)
    again = mpcc.MPCC(random_state=3, **QUICK)
    assert np.array_equal(again.fit_predict(X), fitted.labels_)
    other = mpcc.MPCC(random_state=4, **QUICK).fit(X)
    assert not np.array_equal(other.transform(X), fitted.transform(X))


def test_it_is_cloned_changed_and_pickled_like_any_other(fitted: mpcc.MPCC) -> None:
    assert clone(fitted).get_params() == fitted.get_params()
    frame = pickle.loads(pickle.dumps(fitted)).set_output(transform="pandas").transform(X)
    assert list(frame) == ["mpcc0", "mpcc1", "mpcc2", "mpcc3"]
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)
    assert mpcc.MPCC().set_params(n_clusters=3, iterations=7).get_params()["n_clusters"] == 3
    back = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(back.predict_proba(X), fitted.predict_proba(X))
    assert np.array_equal(back.model_.reconstruct(X[:5]), fitted.model_.reconstruct(X[:5]))


def test_it_works_in_a_pipeline_beside_k_means_and_in_a_grid() -> None:
    as_images = FunctionTransformer(lambda flat: flat.reshape(-1, 8, 8) / 16.0)
    flat = load_digits().data[:300]
    ours = make_pipeline(as_images, mpcc.MPCC(random_state=0, **QUICK)).fit(flat)
    theirs = make_pipeline(FunctionTransformer(), KMeans(10, n_init=1, random_state=0)).fit(flat)
    assert ours.predict(flat).shape == theirs.predict(flat).shape == (300,)
    grid = GridSearchCV(mpcc.MPCC(random_state=0, **QUICK), {"n_clusters": [2, 3]}, cv=2)
    grid.fit(X[:200])
    assert set(grid.cv_results_["param_n_clusters"]) == {2, 3} and grid.best_score_ >= 0


def test_random_state_is_a_seed_a_stream_or_none() -> None:
    stream = [
        mpcc.MPCC(random_state=np.random.RandomState(0), **QUICK).fit(X[:50]).config_.seed
        for _ in range(2)
    ]
    assert stream[0] == stream[1]
    np.random.seed(0)
    drawn = [mpcc.MPCC(**QUICK).fit(X[:50]).config_.seed for _ in range(2)]
    assert drawn[0] != drawn[1]
    numpys = {"n_clusters": np.int64(3), "random_state": np.int64(5), "iterations": np.int32(1)}
    assert mpcc.MPCC(**QUICK | numpys).fit(X[:50]).config_.to_dict()["seed"] == 5


def test_colour_images_and_other_sizes_choose_their_network() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (40, 13, 15, 3), np.uint8)
    found = mpcc.MPCC(n_clusters=2, random_state=0, **QUICK).fit(colour)
    assert found.model_.image_shape == (3, 16, 16) and found.predict(colour).max() <= 1
    smaller = mpcc.MPCC(n_clusters=2, image_size=8, random_state=0, **QUICK).fit(colour)
    assert smaller.model_.image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({}, X.reshape(-1, 64), "reshape flat images"),
        ({}, "folder", "got str"),
        ({}, X * 16, r"beyond 0 to 1"),
        ({"preset": "diigts"}, X, "did you mean 'digits'"),
        ({"settings": {"etap": 1}}, X, "did you mean 'eta_p'"),
        ({"settings": {"K": 3}}, X, "settings may not hold K"),
        ({"settings": {"J": 3, "latent_size": 3}}, X, "settings may not hold latent_size"),
        ({"n_clusters": 0}, X, "n_clusters must be"),
        ({"n_clusters": 100}, X[:50], "n_clusters=100 is more than the 50 images"),
        ({"random_state": 2**40}, X, "seed must be at most 2147483647"),
        ({"settings": {"prior": "normal"}}, X, "prior=normal has no clusters"),
        ({}, load_digits().images.astype(np.uint8), r"nearly black.* value_range=\(0, 16\)"),
        ({"image_size": 9}, X, "image_size must be one of"),
        ({"device": "cuda:99"}, X, "cuda:99"),
        ({"settings": {"network_lr": 10, "prior_lr": 10}, "iterations": 300}, X, "diverged"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(changes, images, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mpcc.MPCC(**{"random_state": 0, **QUICK, **changes}).fit(images)
    assert "\n" not in str(caught.value)
