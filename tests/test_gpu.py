"""What only a GPU can show: a trial on it repeats itself, goes on, shares it, and can be used."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import mpcc
from mpcc.config import PRESETS, Config
from mpcc.data.image_set import ImageSet
from mpcc.evaluation.evaluate import evaluate
from mpcc.fast import cuda_graph
from mpcc.fast.cuda_graph import Recorded
from mpcc.fast.together import n_trials_for, side_by_side
from mpcc.runs import run_dir
from mpcc.training.algorithm import train_step
from mpcc.training.device import prepare_process
from mpcc.training.state import build_state
from mpcc.training.trainer import train
from tests.test_cuda_graph import run, small
from tests.test_trainer import files
from tests.test_weights import VARIANTS, images, images_for, state_of

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
SHORT = PRESETS["digits"].override(iterations=120, eval_every=60)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """Skips where there is none; afterwards torch multiplies as it did."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [each.fp32_precision for each in settings]
    yield
    for each, precision in zip(settings, before, strict=True):
        each.fp32_precision = precision


@pytest.fixture(scope="module")
def alone(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trial that was not interrupted."""
    path = tmp_path_factory.mktemp("alone") / "r"
    if torch.cuda.is_available():
        list(train(SHORT, path, image_set=digits, device="cuda"))
    return path


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_recorded_iterations_are_plain_ones_to_the_bit(
    precision: str, changes: dict, tiny: Config
) -> None:
    config = small(tiny, precision=precision, **{"width": 8, **changes})
    data = images_for(changes)
    prepare_process(config, GPU)
    states = [build_state(config, data, GPU) for _ in range(2)]
    recorded = Recorded(cuda_graph.record)
    n = 20
    assert run(states[0], n) == run(states[1], n, recorded)
    assert recorded.replay is not None, recorded.outcome
    assert torch.equal(states[0].rng.get_state(), states[1].rng.get_state())
    assert torch.equal(states[0].average[0], states[1].average[0])


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_fast_path_follows_the_plain_one_for_twenty_iterations(changes: dict) -> None:
    if changes.get("image_size") == 16:
        pytest.skip("test_weights.py compares these layers")
    states = []
    for fast in (True, False):
        state = state_of(images(), **changes, fast=fast)
        prepare_process(state.config, GPU)
        torch.set_default_dtype(torch.float64)
        states.append(build_state(state.config, images(), GPU, dtype=torch.float64))
        torch.set_default_dtype(torch.float32)
    for _ in range(20):
        fast, plain = (train_step(state) for state in states)
        for name in plain:
            torch.testing.assert_close(fast[name], plain[name], atol=1e-5, rtol=1e-5, msg=name)
    rows = [evaluate(state).metrics for state in states]
    assert rows[0] == pytest.approx(rows[1], rel=1e-3, abs=1e-5)


def test_a_gpu_draws_the_images_that_the_cpu_draws(tiny: Config) -> None:
    # Weights are the same on every device; random streams are not.
    states = [build_state(small(tiny), images(), device) for device in ("cpu", "cuda")]
    prepare_process(states[1].config, GPU)
    z, y = states[0].prior.sample(6, states[0].rng)
    with torch.no_grad():
        a = states[0].generator(z, y)
        b = states[1].generator(z.cuda(), y.cuda())
    torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-4)


def test_a_trial_repeats_itself_and_goes_on_to_the_same_end(
    digits: ImageSet, alone: Path, tmp_path: Path
) -> None:
    list(train(SHORT, tmp_path / "again", image_set=digits, device="cuda"))
    first = train(SHORT, tmp_path / "parts", image_set=digits, device="cuda")
    next(first)
    first.close()
    list(train(SHORT, tmp_path / "parts", image_set=digits, device="cuda"))
    assert run_dir.read_provenance(tmp_path / "parts")["starts"][1] > 0
    for name in ("again", "parts"):
        assert files(tmp_path / name) == files(alone)
        said = run_dir.read_provenance(tmp_path / name)["recorded_iteration"]
        assert said.startswith("agrees with 3 plain ones")


def test_trials_that_share_a_gpu_equal_each_alone(
    digits: ImageSet, alone: Path, tmp_path: Path
) -> None:
    configs = [SHORT.override(seed=seed) for seed in range(4)]
    runs = {
        str(c.seed): train(c, tmp_path / str(c.seed), image_set=digits, device="cuda")
        for c in configs
    }
    last = dict(side_by_side(runs, "cuda"))
    assert {now.state for now in last.values()} == {"done"}, last
    list(train(configs[3], tmp_path / "3 alone", image_set=digits, device="cuda"))
    assert files(tmp_path / "0") == files(alone)
    assert files(tmp_path / "3") == files(tmp_path / "3 alone")


def test_as_many_trials_share_a_gpu_as_make_it_faster(digits: ImageSet) -> None:
    assert n_trials_for(SHORT, digits, GPU) in (1, 2, 4, 8, 16)


def test_a_plain_trial_trains_on_a_gpu(digits: ImageSet, tmp_path: Path) -> None:
    config = SHORT.override(fast=False, iterations=4, eval_every=2)
    first = train(config, tmp_path / "r", image_set=digits, device="cuda", checkpoint_seconds=0)
    next(first)
    first.close()
    assert list(train(config, tmp_path / "r", image_set=digits, device="cuda"))[-1].state == "done"


def test_a_model_of_a_gpu_is_used_there_and_on_the_cpu(alone: Path, digits: ImageSet) -> None:
    there, here = (mpcc.load(alone, device=device) for device in ("cuda", "cpu"))
    some = digits.images[:500]
    np.testing.assert_allclose(there.encode(some), here.encode(some), atol=1e-3)
    assert (there.predict(some) == here.predict(some)).mean() > 0.99
    far = np.abs(there.reconstruct(some).astype(int) - here.reconstruct(some).astype(int))
    assert far.max() <= 2
    assert there.sample(4, seed=1).shape == here.sample(4, seed=1).shape


def test_an_evaluation_holds_nothing_of_images_times_clusters_times_dimensions(
    tiny: Config,
) -> None:
    config = tiny.override(n_clusters=100, latent_size=24, batch_size=50)
    pixels = torch.arange(70_000 * 64).mul_(37).remainder_(251).to(torch.uint8)
    data = ImageSet(pixels.view(-1, 1, 8, 8), torch.arange(70_000) % 100, (), "0" * 12)
    state = build_state(config, data, GPU)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate(state)
    assert torch.cuda.max_memory_allocated() - before < 500e6
