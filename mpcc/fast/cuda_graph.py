"""One iteration as one CUDA graph: recorded once, then replayed by a single launch.

An iteration is some thousand small kernels, and on a GPU launching them takes longer than running
them. The recording reads the trial's own random stream, so that replays draw what plain iterations
would, and a checkpoint between two of them holds the stream as it stands.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from mpcc.training.algorithm import update_all
from mpcc.training.state import TrainState

log = logging.getLogger(__name__)

N_PLAIN_ITERATIONS = 3
"""Iterations of the training made plainly before one is recorded: libraries set themselves up."""

Losses = dict[str, Tensor]
Recorder = Callable[[TrainState], tuple[Callable[[], None], list[str], Tensor]]
"""Records an iteration's updates: gives what replays them, and the names and values of the losses,
one tensor that every replay fills."""

_recording = threading.Lock()


class Recorded:
    """An iteration's updates: plain at first, then recorded, or plain for good where that fails."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.n_plain = N_PLAIN_ITERATIONS
        self.replay: Callable[[], None] | None = None
        self.names: list[str] = []
        self.losses = torch.empty(0)
        self.failed = False

    def __call__(self, state: TrainState) -> Losses:
        if self.n_plain:
            self.n_plain -= 1
        elif self.replay is None and not self.failed:
            self._record(state)
        if self.replay is None:
            return update_all(state)
        self.replay()
        # The next replay overwrites the recorded ones.
        return dict(zip(self.names, self.losses.clone().unbind(), strict=True))

    def _record(self, state: TrainState) -> None:
        random_state = state.rng.get_state()
        try:
            self.replay, self.names, self.losses = self.recorder(state)
        except RuntimeError as error:
            self.failed = True
            # The failed recording may have left its mark on the generator: go on with a fresh one.
            state.rng = torch.Generator(state.device)
            state.rng.set_state(random_state)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("iterations run kernel by kernel, as recording one failed: %s", reason)


def record(state: TrainState) -> tuple[Callable[[], None], list[str], Tensor]:
    """Record the updates of an iteration without running them; RuntimeError where CUDA refuses."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(state.rng)
    # Other trials of this process go on meanwhile, hence thread_local; but one records at a time.
    with (
        _recording,
        torch.cuda.device(state.device),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        losses = update_all(state)
        values = torch.stack(list(losses.values()))
    return graph.replay, list(losses), values
