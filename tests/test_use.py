"""What a trial has trained, used: the same clusters and images as in its own evaluation."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mpcc
from mpcc.config import PRESETS
from mpcc.data.image_set import ImageSet, load, to_uint8
from mpcc.data.readers import read
from mpcc.evaluation.evaluate import evaluate
from mpcc.evaluation.metrics import clustering
from mpcc.runs import run_dir
from mpcc.runs.clusters import CLUSTERS, read_clusters
from mpcc.runs.files import MODEL, RunDirError, with_hash
from mpcc.runs.model_file import model_bytes, read_model
from mpcc.training.algorithm import train_step
from mpcc.training.state import build_state
from mpcc.training.trainer import train
from mpcc.use.model import BATCH, Model
from mpcc.use.trained import bytes_of, for_use, model_of
from tests.records import SweepBuilder

ROOT = Path(__file__).resolve().parents[1]
TINY = PRESETS["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trial on the digits."""
    path = tmp_path_factory.mktemp("use") / "trial"
    for _ in train(TINY.override(iterations=40, width=2), path, device="cpu"):
        pass
    return path


@pytest.fixture(scope="module")
def model(trial: Path) -> Model:
    return mpcc.load(trial, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """The digits as uint8 (N, H, W)."""
    return load(TINY).images[:, 0].numpy().copy()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"fast": False},
    {"prior": "normal"},
    {"prior": "low_rank_mixture", "latent_mode": "copy", "encoder_shares_discriminator": False},
    {"prior": "laplace_mixture", "image_size": 16, "latent_mode": "split", "latent_size": 6},
    {"given_cluster_weights": (2.0,), "n_clusters": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_model_read_from_its_file_equals_the_trainers_own_evaluation_to_the_bit(
    changes: dict[str, Any],
) -> None:
    config = TINY.override(**changes)
    state = build_state(config, load(config))
    for _ in range(3):
        train_step(state)
    evaluation = evaluate(state)
    data = for_use(state, evaluation, None)[MODEL]
    ours = model_of(data, "it", CPU)
    x = state.image_set.images
    z = ours.encode(x)
    assert torch.equal(torch.from_numpy(z), evaluation.z_means)
    if evaluation.clusters is None:
        with pytest.raises(ValueError, match="prior=normal and has no clusters"):
            ours.predict(x)
    else:
        assert np.array_equal(ours.predict(x), evaluation.clusters.numpy())
        assert np.allclose(ours.predict_proba(x).sum(1), 1, atol=1e-5)
    with torch.no_grad():
        drawn = evaluation.generator(evaluation.z_means, evaluation.clusters)
    assert np.array_equal(ours.reconstruct(x), to_uint8(drawn).numpy())
    assert bytes_of(ours) == data


def test_the_clusters_of_a_trial_give_its_accuracy_by_hand_and_those_of_its_model(
    trial: Path, model: Model, pixels: np.ndarray
) -> None:
    rows = list(
        csv.DictReader(io.StringIO(gzip.decompress((trial / CLUSTERS).read_bytes()).decode()))
    )
    assert rows == read_clusters(trial) and list(rows[0]) == [
        "index", "label", "cluster", "probability"
    ]  # fmt: skip
    clusters = np.array([int(row["cluster"]) for row in rows])
    right = 0
    for k in set(clusters.tolist()):
        labels = [row["label"] for row, c in zip(rows, clusters, strict=True) if c == k]
        right += max(labels.count(label) for label in set(labels))
    result = run_dir.read_result(trial)
    assert result is not None and right / len(rows) == result["metrics"]["acc_majority"]
    assert np.array_equal(model.predict(pixels), clusters)
    shares = model.predict_proba(pixels).max(1)
    assert np.allclose(shares, [float(row["probability"]) for row in rows], atol=1e-5)


def test_clusters_that_are_not_those_of_the_record_are_refused(trial: Path, tmp_path: Path) -> None:
    for name in (run_dir.CONFIG, run_dir.RESULT, run_dir.METRICS):
        (tmp_path / name).write_bytes((trial / name).read_bytes())
    assert read_clusters(tmp_path) is None
    rows = gzip.decompress((trial / CLUSTERS).read_bytes())
    (tmp_path / CLUSTERS).write_bytes(gzip.compress(rows))  # With a time.
    with pytest.raises(RunDirError, match=r"clusters.csv.gz is damaged"):
        read_clusters(tmp_path)


def copied(trial: Path, to: Path, *names: str) -> Path:
    to.mkdir()
    for name in names or [file.name for file in trial.iterdir()]:
        (to / name).write_bytes((trial / name).read_bytes())
    return to


def test_a_trial_without_a_model_file_gives_the_same_model_from_its_checkpoint(
    trial: Path, model: Model, pixels: np.ndarray, tmp_path: Path
) -> None:
    old = mpcc.load(copied(trial, tmp_path / "old", "config.json", "checkpoint.pt"), device="cpu")
    for name, array in read_model(bytes_of(model), "")[1].items():
        assert np.array_equal(array, read_model(bytes_of(old), "")[1][name]), name
    assert np.array_equal(old.reconstruct(pixels[:9]), model.reconstruct(pixels[:9]))


def test_a_trial_on_its_way_gives_the_model_of_its_newest_checkpoint(tmp_path: Path) -> None:
    under_way = train(TINY.override(iterations=9, eval_every=3), tmp_path / "t", device="cpu")
    next(under_way)
    under_way.close()
    assert mpcc.load(tmp_path / "t", device="cpu").iteration == 3


def test_a_model_file_of_an_earlier_attempt_is_not_taken_for_the_trials(
    trial: Path, tmp_path: Path
) -> None:
    other = copied(trial, tmp_path / "t")
    (other / "result.json").unlink()
    (other / MODEL).write_bytes(b"anything")
    assert mpcc.load(other, device="cpu").iteration == 40


def test_an_image_gives_the_same_bits_in_whatever_company_and_process(
    trial: Path, model: Model, pixels: np.ndarray
) -> None:
    many = pixels[: 2 * BATCH + 5]
    z, x_hat = model.encode(many), model.reconstruct(many)
    for i in (0, BATCH - 1, BATCH, 2 * BATCH + 4):
        assert np.array_equal(model.encode(many[i : i + 1])[0], z[i])
        assert np.array_equal(model.reconstruct(many[i : i + 1])[0], x_hat[i])
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        backwards = model.reconstruct(many[::-1])
    assert np.array_equal(backwards[::-1], x_hat)
    code = (
        "import hashlib, mpcc, numpy, sys\n"
        "from sklearn.datasets import load_digits\n"
        "import torch; torch.set_num_threads(2)\n"
        f"x = mpcc.load(sys.argv[1], device='cpu').reconstruct(load_digits().images[:{len(many)}], "
        "value_range=(0, 16))\n"
        "assert torch.get_num_threads() == 2\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)  # Seconds, for nothing.\n"
        "print(hashlib.sha256(x.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(trial)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == hashlib.sha256(x_hat.tobytes()).hexdigest()


def test_samples_repeat_by_seed_and_come_from_their_cluster(model: Model) -> None:
    a = model.sample(5, cluster=3, seed=0)
    assert a.shape == (5, 1, 8, 8) and a.dtype == np.uint8
    assert np.array_equal(a, model.sample(5, cluster=3, seed=0))
    assert not np.array_equal(a, model.sample(5, cluster=3, seed=1))
    assert not np.array_equal(a, model.sample(5, cluster=4, seed=0))
    assert model.sample(70).shape == (70, 1, 8, 8)
    assert np.array_equal(a, model.sample(np.int64(5), cluster=np.int64(3), seed=np.int64(0)))
    for n, cluster in ((0, None), (3, 10), (3, -1)):
        with pytest.raises(ValueError, match="must be"):
            model.sample(n, cluster)
    for args in ((2.5,), (3, "3"), (3, 3.0), (3, 3, None)):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            model.sample(*args)


def test_an_interpolation_begins_and_ends_with_the_reconstructions(
    model: Model, pixels: np.ndarray
) -> None:
    path = model.interpolate(pixels[0], pixels[1], n=5)
    ends = model.reconstruct(pixels[:2])
    assert path.shape == (5, 1, 8, 8)
    assert np.array_equal(path[[0, -1]], ends)
    with pytest.raises(ValueError, match="n must be at least 2"):
        model.interpolate(pixels[0], pixels[1], n=1)
    with pytest.raises(ValueError, match="one image|grey images"):
        model.interpolate(pixels[:2], pixels[1])


def test_encode_gives_means_and_on_demand_log_variances(model: Model, pixels: np.ndarray) -> None:
    means, log_vars = model.encode(pixels[:3], log_var=True)
    assert means.shape == log_vars.shape == (3, 4) and not np.array_equal(means, log_vars)
    assert np.array_equal(means, model.encode(pixels[:3]))


# -- damage and refusals ---------------------------------------------------------------------------


def harmed(data: bytes) -> Iterator[tuple[str, bytes]]:
    head, tensors = read_model(data, "")
    weight = "encoder.mean.0.weight"
    yield "nothing", b""
    yield "foreign", b"PK\3\4 something else"
    yield "cut", data[: len(data) // 2]
    yield "flipped", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    yield "no head", model_bytes({}, {})
    yield "no weights", model_bytes(head, {})
    yield "one missing", model_bytes(head, {k: v for k, v in tensors.items() if k != weight})
    yield "one too many", model_bytes(head, {**tensors, "encoder.more": tensors[weight]})
    yield "another shape", model_bytes(head, {**tensors, weight: tensors[weight][:1]})
    huge = head["config"] | {"width": 1024, "image_size": 64, "n_clusters": 10_000}
    yield "other networks", model_bytes({**head, "config": huge}, tensors)
    yield "no such field", model_bytes({**head, "config": {"nothing": 1}}, tensors)
    yield "deep", with_hash(b"mpcc model 1\n", b"[" * 100_000 + b"\n")
    negative = b'{"tensors": [["a", [-1]], ["b", [1]]]}\n'
    yield "negative", with_hash(b"mpcc model 1\n", negative)


def test_a_damaged_foreign_or_hostile_model_is_one_line(trial: Path, tmp_path: Path) -> None:
    for name, data in harmed((trial / MODEL).read_bytes()):
        file = tmp_path / "x.mpcc"
        file.write_bytes(data)
        with pytest.raises(RunDirError) as caught:
            mpcc.load(file, device="cpu")
        assert str(file) in str(caught.value) and "\n" not in str(caught.value), name


def test_a_damaged_model_in_a_trials_folder_is_told_from_its_record(
    trial: Path, tmp_path: Path
) -> None:
    other = copied(trial, tmp_path / "t")
    head, tensors = read_model((trial / MODEL).read_bytes(), "")
    (other / MODEL).write_bytes(model_bytes({**head, "iteration": 41}, tensors))
    with pytest.raises(RunDirError, match="delete it to use the checkpoint"):
        mpcc.load(other)
    (other / MODEL).unlink()
    assert mpcc.load(other).iteration == 40


def test_what_cannot_be_loaded_is_refused_in_one_line(trial: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    begun = copied(trial, tmp_path / "begun", "config.json")
    diverged = copied(trial, tmp_path / "diverged", "config.json")
    end = {"state": "diverged", "cause": "loss/encoder is not finite", "iteration": 3}
    run_dir.write_result(diverged, end)
    torn = copied(trial, tmp_path / "torn", "config.json", "checkpoint.pt")
    (torn / "checkpoint.pt").write_bytes((torn / "checkpoint.pt").read_bytes()[:-5])
    for path, cell, message in (
        (tmp_path / "nothing", None, "does not exist"),
        (tmp_path / "empty", None, "holds no trial"),
        (begun, None, "has no checkpoint yet"),
        (diverged, None, r"diverged \(loss/encoder is not finite\)"),
        (torn, None, "is damaged"),
        (trial, "best", "has no cells"),
    ):
        with pytest.raises(RunDirError, match=message) as caught:
            mpcc.load(path, cell)
        assert "\n" not in str(caught.value)
    for device in ("cuda:99", "gpu", None):
        with pytest.raises(ValueError, match="device"):
            mpcc.load(trial, device=device)
    assert mpcc.load(trial, device=CPU).device == CPU


# -- of a sweep ------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> SweepBuilder:
    """Three cells of two seeds; the second is the best by I(x; y), the third by labels."""
    changes = [{"n_encoder_steps": n} for n in (1, 2, 4)]
    made = SweepBuilder(tmp_path / "sweep", "tiny", iterations=4).plan(changes, seeds=(0, 1))
    for change, information, accuracy in zip(
        changes, (0.1, 0.9, 0.5), (0.2, 0.3, 0.9), strict=True
    ):
        for seed in (0, 1):
            metrics = {"cluster_information": information + 0.3 * seed, "acc_majority": accuracy}
            made.trial(change, seed, metrics)
    return made


def test_the_best_planned_cell_has_most_information_whatever_labels_say(
    sweep: SweepBuilder,
) -> None:
    from mpcc.use.load import find_trial

    best = {"n_encoder_steps": 2}
    unplanned = sweep.trial({"n_encoder_steps": 3}, 0, {"cluster_information": 2.0})
    sweep.plan([{"n_encoder_steps": 5}], seeds=(0, 1))
    sweep.fill({"n_encoder_steps": 5}, [{"cluster_information": 3.0}], failures=["collapsed"])
    assert find_trial(sweep.path, "best", 0) == sweep.folder(best, 0)
    assert find_trial(sweep.path, "best", 1) == sweep.folder(best, 1)
    key = sweep.config(best, 0).cell_key
    for cell in (key, key[:6], "esteps=2", "n_encoder_steps=2 batch_size=8"):
        assert find_trial(sweep.path, cell, 1) == sweep.folder(best, 1)
    plan = json.loads((sweep.path / "sweep.json").read_text())
    plan["dropped"] = [sweep.folder(best, seed).name for seed in (0, 1)]
    (sweep.path / "sweep.json").write_text(json.dumps(plan))
    assert find_trial(sweep.path, "best", 0) == sweep.folder({"n_encoder_steps": 4}, 0)
    (sweep.path / "sweep.json").unlink()
    assert find_trial(sweep.path, "best", 0) == unplanned


@pytest.mark.parametrize(
    ("cell", "seed", "message"),
    [
        (None, 0, 'say which cell, such as cell="best"'),
        ("esteps=3", 0, "no cells of .* fit 'esteps=3'; its cells are: esteps=1 "),
        ("batch_size=8", 0, "3 cells of .* fit 'batch_size=8'; they are: esteps=1 "),
        ("bach_size=8", 0, "did you mean 'batch_size'"),
        ("bests", 0, "names no cell"),
        ("best", 7, "has no trial of seed 7: it has 0; 1"),
    ],
)
def test_a_cell_that_is_none_or_several_is_refused_with_those_there_are(
    sweep: SweepBuilder, cell: str | None, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mpcc.load(sweep.path, cell, seed=seed)


def test_cells_of_other_data_are_not_compared_by_information(sweep: SweepBuilder) -> None:
    sweep.plan([{"n_clusters": 20}], seeds=(0,))
    sweep.trial({"n_clusters": 20}, 0, {"cluster_information": 2.0})
    with pytest.raises(ValueError, match="does not compare"):
        mpcc.load(sweep.path, "best")


# -- a real data set -------------------------------------------------------------------------------


@pytest.mark.data
def test_mnist_as_a_folder_of_pngs_and_as_arrays_gives_the_same_clusters(
    data_dir: Path, tmp_path: Path
) -> None:
    config = TINY.override(dataset="mnist", image_size=16, width=2, n_generated=None)
    whole = load(config, data_dir)
    some = ImageSet(whole.images[:2000], whole.labels[:2000], whole.label_names, "some")
    list(train(config, tmp_path / "run", device="cpu", image_set=some))
    ours = mpcc.load(tmp_path / "run")
    originals = read(config, data_dir).images[:300]
    (tmp_path / "png").mkdir()
    for i, image in enumerate(originals[:, 0]):
        Image.fromarray(image).save(tmp_path / "png" / f"{i:03}.png")
    rows = read_clusters(tmp_path / "run")
    assert rows is not None
    trained = [int(row["cluster"]) for row in rows[:300]]
    labels = [int(row["label"]) for row in rows]
    clusters = [int(r["cluster"]) for r in rows]
    assert clustering(labels, clusters, 10)["acc_majority"] == pytest.approx(
        (run_dir.read_result(tmp_path / "run") or {})["metrics"]["acc_majority"], abs=0
    )
    for given in (originals, tmp_path / "png", originals[:, 0] / 255.0):
        assert ours.predict(given).tolist() == trained
