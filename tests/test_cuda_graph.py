"""What a GPU's recorded iterations rest on, on a CPU; test_gpu.py has the recording itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpcc.data.image_set import ImageSet
from mpcc.fast.cuda_graph import Recorded
from mpcc.model.layers import bilinear_double
from mpcc.runs import run_dir
from mpcc.training import trainer
from mpcc.training.algorithm import train_step, update_all
from mpcc.training.state import build_state
from mpcc.training.trainer import train
from tests.test_weights import VARIANTS, images

WAITING_OPS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "multinomial",
    "_linalg_check_errors",
}
"""Operations that hand a value to the host, or whose result's size is one."""


class OpsSeen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.fixture(scope="module")
def some_images() -> ImageSet:
    return images()


def small(tiny, **changes):
    return tiny.override(**{"n_clusters": 3, "latent_size": 4, "batch_size": 6, **changes})


@pytest.mark.parametrize(
    "changes",
    [c for name, c in VARIANTS.items() if name != "16 pixels, wide"]
    + [{"given_cluster_weights": (1.0, 2.0, 3.0)}],
    ids=str,
)
def test_an_iteration_asks_the_device_for_nothing(changes, tiny, some_images):
    state = build_state(small(tiny, **changes), some_images)
    with torch.no_grad(), OpsSeen() as seen:
        update_all(state)
    assert seen.names & {"convolution", "bmm"} and not seen.names & WAITING_OPS


def test_the_look_for_waiting_operations_finds_one():
    with OpsSeen() as seen:
        float(torch.ones(()))
    assert seen.names & WAITING_OPS


class Emulated(TorchDispatchMode):
    """Records every operation with its very tensors, as a CUDA graph does with their addresses.

    `replay` runs them again on those: what an iteration replaces instead of overwriting stays old.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            if any(returned.alias_info is not None for returned in func._schema.returns):
                if func._schema.is_mutable:
                    func(*args, **kwargs)
                continue  # A view shares its memory already.
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def emulated(state):
    """As `cuda_graph.record`: the recorded run itself must leave the state as it was."""
    tensors = [t for part in state.parts.values() for t in part.state().values()]
    for part in state.parts.values():
        for group in part.groups:
            tensors += [group.u, group.v, group.sigma, group.normalised]
    before, random_state = [t.clone() for t in tensors], state.rng.get_state()
    with torch.no_grad(), Emulated() as recording:
        losses = update_all(state)
        values = torch.stack(list(losses.values()))
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(value)
    state.rng.set_state(random_state)
    return recording.replay, list(losses), values


def run(state, n, updates=None) -> list[dict[str, float]]:
    state.updates = updates
    kept = [train_step(state) for _ in range(n)]
    return [{name: float(value) for name, value in terms.items()} for terms in kept]


@pytest.mark.parametrize(("error", "agrees"), [(1.00005, True), (1.0002, False)])
def test_a_recording_with_other_losses_is_not_used_and_that_is_said(
    error, agrees, tiny, some_images, caplog
):
    """The recording is right once, and then a little wrong in one loss."""

    def wrong(state):
        replay, names, losses = emulated(state)
        n = 0

        def replay_wrongly() -> None:
            nonlocal n
            replay()
            losses[2] *= error if n else 1.0
            n += 1

        return replay_wrongly, names, losses

    plain = run(build_state(small(tiny), some_images), 4)
    recorded = Recorded(wrong)
    found = run(build_state(small(tiny), some_images), 4, recorded)
    assert (recorded.replay is not None) is agrees
    assert [r.getMessage() for r in caplog.records] == ([] if agrees else [recorded.outcome])
    if not agrees:
        assert found == plain
        said = "iterations run kernel by kernel, as a recorded one gives loss/encoder "
        assert recorded.outcome.startswith(said) and ", a plain one " in recorded.outcome


def test_a_recording_that_fails_leaves_the_trial_as_it_is_and_says_so_once(
    tiny, some_images, caplog
):
    def failing(state):
        torch.rand(5, generator=state.rng)  # as a half-made recording may
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    plain = run(build_state(small(tiny), some_images), 3)
    recorded = Recorded(failing)
    assert run(build_state(small(tiny), some_images), 3, recorded) == plain
    assert [r.getMessage() for r in caplog.records] == [recorded.outcome]
    assert recorded.outcome == (
        "iterations run kernel by kernel, as recording one failed: "
        "operation not permitted when stream is capturing"
    )


def test_provenance_says_what_the_check_came_to_and_a_cpu_has_none(
    tiny, some_images, tmp_path, monkeypatch
):
    def with_recording(*given):
        state = build_state(*given)
        state.updates = Recorded(emulated)
        return state

    list(train(small(tiny), tmp_path / "plain", image_set=some_images, device="cpu"))
    assert "recorded_iteration" not in run_dir.read_provenance(tmp_path / "plain")
    monkeypatch.setattr(trainer, "build_state", with_recording)
    list(train(small(tiny), tmp_path / "recorded", image_set=some_images, device="cpu"))
    said = run_dir.read_provenance(tmp_path / "recorded")["recorded_iteration"]
    assert said.startswith("agrees with 3 plain ones")
    results = [run_dir.read_result(tmp_path / name) for name in ("plain", "recorded")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


def test_bilinear_doubling_is_torchs_own():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    oracle = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(bilinear_double(x), oracle)
    by_pixel = x.detach().contiguous(memory_format=torch.channels_last)
    assert bilinear_double(by_pixel).is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(oracle)
    (ours,) = torch.autograd.grad((bilinear_double(x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((oracle * weight).sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conditional": True},
        {"prior": "low_rank_mixture"},
        {"latent_mode": "split"},
        {"upsampling": "nearest", "prior_adversarial_lr": "network"},
    ],
    ids=str,
)
def test_a_recording_that_is_replayed_is_the_plain_iteration_to_the_bit(changes, tiny, some_images):
    config = small(tiny, width=8, **changes)
    states = [build_state(config, some_images) for _ in range(2)]
    n = 4
    recorded = Recorded(emulated)
    assert run(states[0], n) == run(states[1], n, recorded)
    assert recorded.outcome == "agrees with 3 plain ones, losses to 0.0001 of their size"
    pairs = zip(*(state.parts.values() for state in states), strict=True)
    assert all(torch.equal(a.raw[0], b.raw[0]) for a, b in pairs)
