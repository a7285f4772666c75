"""Trials that share a process are to the bit what they are alone, and fail alone."""

import math

import pytest
import torch

from mpcc.data.image_set import ImageSet
from mpcc.fast import together
from mpcc.fast.together import (
    iterations_per_second,
    n_that_fit,
    n_trials_for,
    n_worth_it,
    side_by_side,
)
from mpcc.runs import run_dir
from mpcc.training import state, trainer
from mpcc.training.state import on_device
from mpcc.training.trainer import train
from tests.test_trainer import files


@pytest.fixture(scope="module")
def some_digits(digits) -> ImageSet:
    return ImageSet(digits.images[:40], digits.labels[:40], digits.label_names, "f" * 12)


def train_all(trials, **how):
    """Each trial's progress by its key, as `side_by_side` yields it."""
    runs = {config.trial_key: train(config, path, **how) for config, path in trials}
    return side_by_side(runs, how["device"])


def ends(said) -> dict:
    return dict(said)  # the last word of each trial


def test_trials_together_equal_each_alone_to_the_bit(tiny, some_digits, tmp_path):
    configs = [tiny, tiny.override(seed=1), tiny.override(n_encoder_steps=2, prior_lr=1e-3)]
    for i, config in enumerate(configs):
        list(train(config, tmp_path / f"alone{i}", image_set=some_digits, device="cpu"))
    trials = [(config, tmp_path / f"beside{i}") for i, config in enumerate(configs)]
    last = ends(train_all(trials, image_set=some_digits, device="cpu"))
    assert {key: now.state for key, now in last.items()} == {c.trial_key: "done" for c in configs}
    for i in range(3):
        assert files(tmp_path / f"beside{i}") == files(tmp_path / f"alone{i}")


def test_a_fault_and_a_divergence_leave_the_others_untouched(
    tiny, some_digits, tmp_path, monkeypatch
):
    good, broken, diverging = tiny, tiny.override(seed=1), tiny.override(seed=2)
    list(train(good, tmp_path / "alone", image_set=some_digits, device="cpu"))
    usual = trainer.train_step

    def faulty(state):
        terms = usual(state)
        if state.iteration == 3 and state.config == broken:
            raise RuntimeError("an illegal memory access was encountered")
        if state.iteration == 3 and state.config == diverging:
            terms["loss/encoder"] = torch.tensor(math.nan)
        return terms

    monkeypatch.setattr(trainer, "train_step", faulty)
    trials = [(c, tmp_path / str(c.seed)) for c in (good, broken, diverging)]
    last = ends(train_all(trials, image_set=some_digits, device="cpu"))
    assert last[good.trial_key].state == "done"
    assert str(last[broken.trial_key]) == "an illegal memory access was encountered"
    assert last[diverging.trial_key].cause == "loss/encoder is not finite at iteration 3"
    assert files(tmp_path / "0") == files(tmp_path / "alone")
    assert run_dir.read_result(tmp_path / "1") is None


def test_closing_early_leaves_checkpoints_that_go_on_to_the_same_end(tiny, some_digits, tmp_path):
    configs = [tiny.override(iterations=12, eval_every=6, seed=seed) for seed in (0, 1)]
    trials = [(config, tmp_path / str(config.seed)) for config in configs]
    run = train_all(trials, image_set=some_digits, device="cpu")
    next(run)
    run.close()
    assert all((path / run_dir.CHECKPOINT).exists() for _, path in trials)
    ends(train_all(trials, image_set=some_digits, device="cpu"))
    list(train(configs[1], tmp_path / "whole", image_set=some_digits, device="cpu"))
    assert files(tmp_path / "1") == files(tmp_path / "whole")


def test_images_are_copied_to_a_device_once():
    pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    # Each trial reads the data set for itself: what tells that it is the same is its fingerprint.
    sets = [ImageSet(pixels.clone(), None, (), name) for name in ("a", "a", "b")]
    assert on_device(sets[0], "cpu").images is sets[0].images
    first, again, other = (on_device(images, "meta") for images in sets)
    assert again is first and other is not first
    del first, again
    assert ("a", "meta") not in state._copies  # The last trial that uses it takes it along.


def test_as_many_trials_as_fit_the_memory_and_no_more_than_make_it_faster():
    assert n_that_fit(100e9, 10e9) == 8  # a fifth stays free
    assert n_that_fit(1e9, 10e9) == 1
    assert n_that_fit(100e9, 1e6) == together.MAX_TRIALS
    rates = {1: 10.0, 2: 19.0, 4: 30.0, 8: 31.0, 16: 90.0}
    assert n_worth_it(rates.__getitem__, 16) == 4
    assert n_worth_it(rates.__getitem__, 3) == 2
    assert n_worth_it(lambda n: 5.0, 16) == 1


def test_the_rate_of_trials_together_is_measured_and_a_failure_is_none(
    tiny, some_digits, monkeypatch
):
    cpu = torch.device("cpu")
    assert iterations_per_second(tiny, some_digits, cpu, 2, n_iterations=1) > 0
    monkeypatch.setattr(together, "iterations_per_second", lambda *given: float(given[3] < 3))
    assert n_trials_for(tiny, some_digits, cpu) == 1

    def out_of_memory(state):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.undo()
    monkeypatch.setattr(together, "train_step", out_of_memory)
    assert iterations_per_second(tiny, some_digits, cpu, 2) == 0
