"""The flat path does torch's own arithmetic, and moves what it should."""

import dataclasses
import sys

import pytest
import torch

from mpcc.config import Config
from mpcc.data.image_set import ImageSet
from mpcc.evaluation.evaluate import evaluate
from mpcc.fast.build import keep_freed_memory
from mpcc.training.algorithm import train_step
from mpcc.training.state import build_state

SMALL = dict(image_size=8, width=1, latent_size=4, n_clusters=3, batch_size=6, network_lr=1e-3)


def test_freed_memory_is_kept_where_the_c_library_takes_32_mib_at_most(monkeypatch):
    taken = {}

    class Libc:
        """glibc before 2.35."""

        def __init__(self, name: None) -> None:
            pass

        @staticmethod
        def mallopt(name: int, value: int) -> int:
            refused = name == -3 and value > 2**25
            taken.update({} if refused else {name: value})
            return int(not refused)

    monkeypatch.setattr("ctypes.CDLL", Libc)
    keep_freed_memory.__wrapped__()
    assert taken == {-3: 2**25, -1: 2**31 - 1}


def images(n_channels: int = 1, n: int = 40) -> ImageSet:
    rng = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (n, n_channels, 8, 8), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(n) % 3, ("a", "b", "c"), "0" * 12)


def images_for(changes: dict) -> ImageSet:
    """Those of `images` at the size that a variant wants."""
    data = images()
    if changes.get("image_size") == 16:
        wide = data.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        data = ImageSet(wide, data.labels, data.label_names, data.fingerprint)
    return data


def state_of(data: ImageSet | None = None, **changes):
    # Built in float64 from the start: the first steps of Adam raise a rounding to a whole step.
    torch.set_default_dtype(torch.float64)
    try:
        config = Config(**SMALL | changes)
        return build_state(config, data or images(), dtype=torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


VARIANTS = {
    "as the paper": {},
    "split": dict(latent_mode="split"),
    "copy": dict(latent_mode="copy"),
    "apart": dict(encoder_shares_discriminator=False),
    "conditional": dict(conditional=True),
    "normal prior": dict(prior="normal"),
    "laplace": dict(prior="laplace_mixture"),
    "low rank": dict(prior="low_rank_mixture"),
    "nearest": dict(upsampling="nearest"),
    "16 pixels, wide": dict(image_size=16, width=8),
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_fast_path_follows_the_plain_one_for_twenty_iterations(changes):
    data = images_for(changes)
    states = [state_of(data, **changes, fast=fast) for fast in (True, False)]
    for i in range(20):
        fast, plain = (train_step(state) for state in states)
        for name in plain:
            torch.testing.assert_close(
                fast[name], plain[name], atol=1e-5, rtol=1e-5, msg=f"{i} {name}"
            )
    a, b = (torch.cat([p.flatten() for p in s.generator.parameters()]) for s in states)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    rows = [evaluate(state).metrics for state in states]
    assert rows[0] == pytest.approx(rows[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_plain_trial_is_plain_throughout(changes):
    """Neither its parts nor, from its first iteration to its evaluation, a function it calls are of
    mpcc.fast; and one of a fast trial is."""
    size = changes.get("image_size", 8)
    data = dataclasses.replace(images(), images=torch.zeros(40, 1, size, size, dtype=torch.uint8))
    for fast in (False, True):
        called = set()

        def note(frame, event, argument, called=called):
            called.add(frame.f_globals.get("__name__", ""))

        sys.setprofile(note)
        try:
            state = state_of(data, **changes, fast=fast)
            train_step(state)
            found = evaluate(state)
        finally:
            sys.setprofile(None)
        used = {name for name in called if name.startswith("mpcc.fast")}
        networks = (state.generator, state.discriminator, state.encoder, found.generator)
        kinds = {type(m).__module__ for network in networks for m in network.modules()}
        kinds |= {type(part).__module__ for part in state.parts.values()}
        used |= {name for name in kinds if name.startswith("mpcc.fast")}
        assert bool(used) == fast and (state.updates is None or fast)


@pytest.mark.parametrize("fast", [True, False])
def test_standing_statistics_of_bfloat16_layers_are_float32(fast):
    config = Config(**SMALL, fast=fast, precision="bfloat16")
    state = build_state(config, images())
    for norm in evaluate(state).generator.norms():
        assert norm.standing_mean.dtype == norm.standing_var.dtype == torch.float32
        # More digits than 7 bits hold: the mean was not taken in bfloat16 either.
        assert not torch.equal(norm.standing_var, norm.standing_var.bfloat16().float())
