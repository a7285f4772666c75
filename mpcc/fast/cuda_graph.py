"""One iteration as one CUDA graph: recorded once, then replayed by a single launch.

An iteration is some thousand small kernels, and on a GPU launching them takes longer than running
them. The recording reads the trial's own random stream, so that replays draw what plain iterations
would, and a checkpoint between two of them holds the stream as it stands.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpcc.training.algorithm import update_all
from mpcc.training.state import TrainState, starting

log = logging.getLogger(__name__)

N_CHECKED = 3
"""Plain iterations run before recording (they also warm up cuDNN); the same number is replayed from
the same state and the losses compared."""
TOLERANCE = 1e-4
"""Largest allowed difference of a recorded loss from the plain one, relative to the latter."""

Losses = dict[str, Tensor]
Recorder = Callable[[TrainState], tuple[Callable[[], None], list[str], Tensor]]
"""Records an iteration's updates; returns a function that replays them, the names of the losses and
their values: one tensor that every replay overwrites."""


class Recorded:
    """Updates by a checked CUDA graph, or by update_all."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.replay: Callable[[], None] | None = None
        self.names: list[str] = []
        self.losses = torch.empty(0)
        self.outcome = ""
        """The result of `check`, in words; empty before it."""

    def __call__(self, state: TrainState) -> Losses:
        self.check(state)
        return update_all(state) if self.replay is None else self._replayed(self.replay)

    def check(self, state: TrainState) -> None:
        """Record an iteration and compare it with plain ones, once; the state stays as it is."""
        if not self.outcome:
            with starting, torch.no_grad():
                self._check(state)

    def _check(self, state: TrainState) -> None:
        parts = copy.deepcopy({name: part.state() for name, part in state.parts.items()})
        random = state.rng.get_state()

        def go_back() -> None:
            """Restore all that updates change, in place: a recording reads the same memory."""
            for name, part in state.parts.items():
                part.load_state(parts[name])
            state.rng.set_state(random)

        plain = [update_all(state) for _ in range(N_CHECKED)]
        go_back()
        try:
            replay, self.names, self.losses = self.recorder(state)
            recorded = [self._replayed(replay) for _ in range(N_CHECKED)]
            difference = _difference(plain, recorded)
        except RuntimeError as error:
            # A failed recording may leave the generator in capture mode: replace it.
            state.rng = torch.Generator(state.device)
            first = str(error).partition("\n")[0] or type(error).__name__  # The rest is advice.
            difference = f"recording one failed: {first}"
        go_back()
        if difference is None:
            self.replay = replay
            self.outcome = (
                f"agrees with {N_CHECKED} plain ones, losses to {TOLERANCE:g} of their size"
            )
        else:
            self.outcome = f"iterations run kernel by kernel, as {difference}"
            log.warning(self.outcome)

    def _replayed(self, replay: Callable[[], None]) -> Losses:
        replay()
        # The next replay overwrites the recorded ones.
        return dict(zip(self.names, self.losses.clone().unbind(), strict=True))


def _difference(plain: Sequence[Losses], recorded: Sequence[Losses]) -> str | None:
    """The first recorded loss that differs from the plain one, in words; None if all agree."""
    for ours, theirs in zip(plain, recorded, strict=True):
        for name, loss in ours.items():
            other = theirs[name]
            if not torch.isclose(other, loss, rtol=TOLERANCE, atol=0.0, equal_nan=True):
                return f"a recorded one gives {name} {other:.6g}, a plain one {loss:.6g}"
    return None


def record(state: TrainState) -> tuple[Callable[[], None], list[str], Tensor]:
    """Record the updates of an iteration without running them; RuntimeError if CUDA refuses."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(state.rng)
    # cuBLAS has one workspace per stream, which a recording keeps: trials that record on the same
    # stream and replay in parallel would overwrite each other's. The default stream cannot record.
    own = torch.cuda.current_stream(state.device)
    stream = None if own == torch.cuda.default_stream(state.device) else own
    # Other trials of this process go on meanwhile, hence thread_local.
    with (
        torch.cuda.device(state.device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        losses = update_all(state)
        values = torch.stack(list(losses.values()))
    return graph.replay, list(losses), values
