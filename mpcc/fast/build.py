"""Switch a trial to the fast layers, optimisers and CUDA graph."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

from mpcc.fast.cuda_graph import Recorded, record
from mpcc.fast.layers import quicken
from mpcc.fast.weights import FlatPart, Pool
from mpcc.training.state import TrainState

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's constants for parameters of mallopt."""


def speed_up(state: TrainState) -> None:
    """Give a trial before its first iteration the layers and parts of `mpcc.fast` and, on a GPU, a
    CUDA graph of its iteration."""
    generator, discriminator, encoder = state.generator, state.discriminator, state.encoder
    for network in (generator, discriminator, encoder):
        quicken(network)
    lr, parts = state.config.network_lr, state.parts
    parts["generator"] = FlatPart(Pool([[generator]]), 0, 0, lr)
    # D and E share the trunk's weights, each with its own Adam state.
    own_d = [m for name, m in discriminator.named_children() if name != "trunk"]
    own_e = [m for name, m in encoder.named_children() if name != "trunk"]
    if encoder.trunk is discriminator.trunk:
        pool = Pool([own_d, [discriminator.trunk], own_e])
        parts["discriminator"], parts["encoder"] = (FlatPart(pool, i, i + 1, lr) for i in (0, 1))
    else:
        parts["discriminator"] = FlatPart(Pool([own_d, [discriminator.trunk]]), 0, 1, lr)
        parts["encoder"] = FlatPart(Pool([[encoder.trunk], own_e]), 0, 1, lr)
    if "prior" in parts:
        parts["prior"] = FlatPart(Pool([[state.prior]]), 0, 0, state.config.prior_lr)
    if state.device.type == "cuda":
        state.updates = Recorded(record)
    else:
        keep_freed_memory()


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next iteration instead of returning it.

    At 32×32 pixels the layers of an iteration are megabytes each; getting their pages anew took up
    to a twentieth of an iteration's time. Does nothing if the C library is not glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            # glibc before 2.35 refuses more than 32 MiB, and returns 0.
            mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
