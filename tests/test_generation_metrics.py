"""Generation scores against pytorch-fid, closed forms, and on networks with random weights."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch

from mpcc.config import PRESETS
from mpcc.data import image_set as data
from mpcc.evaluation import classifier, inception
from mpcc.evaluation import generation as generation_metrics
from mpcc.evaluation.evaluate import evaluate, generated_batches, generation_scores
from mpcc.evaluation.generation import (
    FeatureNetwork,
    extract,
    feature_fid,
    frechet_distance,
    inception_score,
    kernel_distance,
    statistics,
)
from mpcc.training.algorithm import train_step
from mpcc.training.state import build_state


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MPCC_INCEPTION_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def random_inception():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return inception.network_from_state(None, "random")


def normal(n, d, seed, scale=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(n, d, generator=rng, dtype=torch.float64) @ mixing * scale + shift


def pixels(n, seed, channels=3, size=8):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=rng, dtype=torch.uint8)


def image_set(images, labels=None):
    return data.ImageSet(images, labels, (), data.fingerprint(images, labels))


def pixel_network(calls=None):
    """Features that are the pixels themselves; counts its calls."""

    def run(images):
        if calls is not None:
            calls.append(len(images))
        flat = images.flatten(1).float() / 255
        return flat, flat.log_softmax(1)

    return FeatureNetwork("pixels", run)


# -- Fréchet distance ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pytorch-fid's own call of sqrtm
def test_frechet_distance_equals_pytorch_fids():
    from pytorch_fid.fid_score import calculate_frechet_distance

    x, y = normal(300, 24, 0), normal(200, 24, 1, scale=1.3, shift=0.5)
    theirs = calculate_frechet_distance(
        x.mean(0).numpy(), np.cov(x.numpy().T), y.mean(0).numpy(), np.cov(y.numpy().T)
    )
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(theirs, abs=1e-3)
    assert theirs > 1


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    # two points per axis: mean and variance are known exactly
    def cross(centre, spreads):
        d = len(spreads)
        points = torch.diag(torch.tensor(spreads, dtype=torch.float64))
        return torch.cat([points, -points]) * ((2 * d - 1) / 2) ** 0.5 + centre

    a, b = [1.0, 2.0, 0.5], [2.0, 1.0, 0.5]
    expected = 3 * 0.7**2 + sum((s - t) ** 2 for s, t in zip(a, b, strict=True))
    found = frechet_distance(statistics(cross(0.0, a)), statistics(cross(0.7, b)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_exact_with_fewer_samples_than_dimensions():
    x, y = normal(10, 40, 0), normal(15, 40, 1)
    # the same samples in coordinates of the 25 dimensions that they span, where all is regular
    basis = torch.linalg.qr(torch.cat([x, y]).T).Q
    in_few = frechet_distance(statistics(x), statistics(y))
    in_span = frechet_distance(statistics(x @ basis), statistics(y @ basis))
    assert in_few == pytest.approx(in_span, rel=1e-9)
    assert statistics(x).root.shape == (10, 40)


@pytest.mark.parametrize("n", [8, 500])
def test_fid_of_the_training_set_with_itself_is_zero(n):
    x = statistics(normal(n, 16, 0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * float(x.root.square().sum()))


def test_distances_of_features_that_are_not_finite_are_no_numbers():
    x, y = normal(60, 8, 0), normal(50, 8, 1)
    known = statistics(y)
    broken = dataclasses.replace(known, mean=torch.full_like(known.mean, math.nan))
    assert math.isnan(frechet_distance(statistics(x), broken))  # at least 0, and never by nan
    x[3, 2] = math.nan
    assert math.isnan(kernel_distance(x, y))


# -- kernel distance and inception score ---------------------------------------------------------


def test_kid_equals_the_sums_written_out():
    x, y = normal(4, 3, 0), normal(5, 3, 1)

    def mean(a, b, skip):
        values = [
            (float(p @ q) / 3 + 1) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (skip and i == j)
        ]
        return sum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kid_of_one_distribution_is_near_zero_and_of_another_is_not():
    x, y, z = (normal(400, 6, s, 0.3, shift) for s, shift in ((0, 0.0), (1, 0.0), (2, 1.0)))
    assert abs(kernel_distance(x, y)) < 0.1 < kernel_distance(x, z)


def test_kid_by_subsets_agrees_with_all_samples():
    x, z = normal(400, 6, 0, 0.3), normal(400, 6, 2, 0.3, 1.0)
    assert kernel_distance(x, z, subset_size=100) == pytest.approx(kernel_distance(x, z), rel=0.1)


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes():
    sure = torch.eye(5).repeat(40, 1).clamp(min=1e-30).log()
    assert inception_score(sure, 2) == pytest.approx(5, rel=0.01)
    assert inception_score(torch.full((40, 5), 0.2).log(), 2) == pytest.approx(1.0)


def test_inception_score_shuffles_samples_that_come_class_by_class():
    by_class = torch.eye(5).repeat_interleave(400, 0).clamp(min=1e-30).log()
    assert inception_score(by_class, 5) > 4.9  # unshuffled, each split would score 1


def test_too_few_samples_are_refused_in_words():
    with pytest.raises(ValueError, match="3 samples are too few for 10 splits"):
        inception_score(torch.zeros(3, 2), 10)
    with pytest.raises(ValueError, match="at least 2"):
        statistics(torch.zeros(1, 3))


# -- from images to numbers ----------------------------------------------------------------------


def test_training_set_scored_against_itself():
    images = pixels(80, 0)
    row = generation_metrics.scores(
        pixel_network(), images.split(30), image_set(images), n_is_splits=2
    )
    assert sorted(row) == ["fid", "inception_score", "kid"]
    assert row["fid"] == pytest.approx(0, abs=1e-6) and abs(row["kid"]) < 0.05
    assert row["inception_score"] > 1


def test_float_samples_are_rounded_to_uint8_first():
    images = pixels(20, 0)
    floats = data.to_float(images) + 0.003 * torch.rand(images.shape)  # under half a level
    seen, _ = extract(pixel_network(), [floats])
    expected, _ = extract(pixel_network(), [images])
    assert (seen == expected).all()


def test_reference_of_a_data_set_is_computed_once():
    calls: list[int] = []
    images = image_set(pixels(50, 0))
    network = pixel_network(calls)
    first = feature_fid(network, [pixels(20, 1)], images)
    assert sum(calls) == 70
    assert feature_fid(network, [pixels(20, 1)], images) == first
    assert sum(calls) == 90


# -- the Inception network -----------------------------------------------------------------------


def test_features_equal_pytorch_fids_own_network(random_inception, monkeypatch):
    import pytorch_fid.inception as theirs

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = inception._architecture().state_dict()
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: state)
    network = theirs.InceptionV3().eval()
    images = pixels(2, 0, size=32)
    with torch.no_grad():
        expected = network(images.float() / 255)[0].flatten(1)
    features, log_probs = extract(random_inception, [images])
    assert features.shape == (2, 2048) and log_probs.shape == (2, 1008)
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_grey_images_count_as_colour_images_without_colour(random_inception):
    grey = pixels(1, 0, channels=1)
    a, _ = extract(random_inception, [grey])
    b, _ = extract(random_inception, [grey.repeat(1, 3, 1, 1)])
    assert torch.equal(a, b)


def test_missing_weights_give_a_reason_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(inception.InceptionMissing, match="--inception-weights FILE .https://"):
        inception.find_weights()
    with pytest.raises(inception.InceptionMissing, match="nowhere.pth do not exist"):
        inception.find_weights(tmp_path / "nowhere.pth")


def test_other_weights_are_refused_however_they_are_found(tmp_path, monkeypatch):
    file = tmp_path / "other.pth"
    file.write_bytes(b"other weights")
    with pytest.raises(inception.InceptionMissing, match="damaged or of another network"):
        inception.find_weights(file)
    monkeypatch.setenv("MPCC_INCEPTION_WEIGHTS", str(file))
    with pytest.raises(inception.InceptionMissing, match="damaged or of another network"):
        inception.find_weights()


def test_right_weights_are_found_in_torchs_cache_and_loaded(tmp_path, monkeypatch):
    state = inception._architecture().state_dict()
    cached = tmp_path / "torch" / "hub" / "checkpoints" / inception.WEIGHTS_NAME
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", digest)
    assert inception.find_weights() == cached
    network = inception.load_inception(inception.find_weights())
    assert network.name == f"inception-{digest[:8]}"


# -- the classifier of the data set itself -------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", 60)


def test_classifier_learns_the_digits(quick):
    digits = data.load(PRESETS["digits"])
    _, log_probs = extract(classifier.load_classifier(digits), [digits.images])
    assert (log_probs.argmax(1) == digits.labels).float().mean() > 0.8


def test_fid_cnn_ranks_drawings_of_digits_as_an_eye_would():
    """Other draws of the data, without one digit, a model that has begun to learn, and what never
    means a digit: means of each, an untrained model, one image."""
    config = PRESETS["digits"].override(n_generated=2000)
    digits = data.load(config)
    network = classifier.load_classifier(digits)
    state = build_state(config, digits)

    def drawn() -> torch.Tensor:
        return torch.cat(list(generated_batches(state, evaluate(state).generator)))

    untrained = drawn()
    for _ in range(60):
        train_step(state)
    again = torch.randint(len(digits.images), (2000,), generator=torch.Generator().manual_seed(0))
    one, rest = digits.images[:1].expand(2000, -1, -1, -1), digits.images[digits.labels != 3]
    samples = (digits.images[again], rest, drawn(), untrained, one)
    found = [feature_fid(network, [images], digits) for images in samples]
    assert found == sorted(found) and found[0] < 1 < 5 < found[1]
    assert 4 * found[2] < found[3]


def test_classifier_is_the_same_from_cache_and_anew_and_another_by_seed(quick, tmp_path):
    digits = data.load(PRESETS["digits"])
    images = [digits.images[:10]]
    first, _ = extract(classifier.load_classifier(digits), images)
    cached, _ = extract(classifier.load_classifier(digits), images)
    (file,) = (tmp_path / "cache" / "classifiers").glob("*.npz")
    file.write_bytes(b"broken")
    anew, _ = extract(classifier.load_classifier(digits), images)
    other, _ = extract(classifier.load_classifier(digits, seed=1), images)
    assert torch.equal(first, cached) and torch.equal(first, anew)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_classifier_takes_every_size_and_colour(size):
    network = classifier.Classifier(3, size, 7)
    features, log_probs = network(pixels(2, 0, size=size))
    assert features.shape == (2, 128) and log_probs.shape == (2, 7)


@pytest.mark.parametrize("size", [8, 16])
def test_fid_cnn_of_colours_stands_in_where_inception_says_nothing_alone(quick, size):
    config = PRESETS["tiny"].override(dataset="cifar10", image_size=size, n_generated=16)
    images = image_set(pixels(40, 0, size=size), torch.arange(40) % 10)
    state = build_state(config, images)
    row, unavailable = generation_scores(state, evaluate(state))
    assert ("fid_cnn" in row) == (size == 8) == ("fid_cnn" not in unavailable)


def test_data_without_labels_has_no_fid_cnn():
    with pytest.raises(ValueError, match="needs labels"):
        classifier.load_classifier(image_set(pixels(4, 0)))
