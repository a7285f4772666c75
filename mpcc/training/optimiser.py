"""`Part`: the parameters that an update function hands to one optimiser, and its Adam step.

Adam has β1 = 0, β2 = 0.999 and ε = 1e-8 throughout (Appendix C), so it needs no first moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from mpcc.model.layers import Spectral

BETA2 = 0.999
EPS = 1e-8


class Part(Protocol):
    """Parameters that one optimiser moves; `leaves` are the tensors a loss is differentiated by."""

    leaves: list[Tensor]
    raw: list[Tensor]
    """Tensors that Adam updates and the moving average averages."""
    lr: float

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters by one Adam step; gradients in the order of `leaves`."""

    def copy_to(self, module: nn.Module, raw: Sequence[Tensor], n_power_iterations: int) -> None:
        """Load raw and this part's singular vectors into a module, then run n power iterations."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint needs, by name."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned, to the bit."""


@contextmanager
def only_trainable(*parts: Part) -> Iterator[None]:
    """Inside the block, gradients flow into exactly these parts; outside it they are off."""
    leaves = [leaf for part in parts for leaf in part.leaves]
    for leaf in leaves:
        leaf.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)


def minimise(loss: Tensor, *parts: Part) -> None:
    """One optimiser step of each part on this loss."""
    leaves = [leaf for part in parts for leaf in part.leaves]
    gradients = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        start = 0
        for part in parts:
            part.step(gradients[start : start + len(part.leaves)])
            start += len(part.leaves)


class ModulePart(Part):
    """A module's parameters under torch's own Adam."""

    def __init__(self, modules: Sequence[nn.Module], lr: float) -> None:
        self.modules = nn.ModuleList(modules)
        self.leaves = self.raw = list(self.modules.parameters())
        self.layers = [m for m in self.modules.modules() if isinstance(m, Spectral)]
        for leaf in self.leaves:
            leaf.requires_grad_(False)
        self.lr = lr

    @cached_property
    def adam(self) -> torch.optim.Adam:
        """torch's Adam, created at first use: this takes a second, which a fast trial saves."""
        return torch.optim.Adam(self.leaves, lr=self.lr, betas=(0.0, BETA2), eps=EPS)

    def step(self, gradients: Sequence[Tensor]) -> None:
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        self.adam.param_groups[0]["lr"] = self.lr
        self.adam.step()
        self.adam.zero_grad()
        for layer in self.layers:
            layer.power_iterate()

    def copy_to(self, module: nn.Module, raw: Sequence[Tensor], n_power_iterations: int) -> None:
        module.load_state_dict(self.modules[0].state_dict())
        for parameter, value in zip(module.parameters(), raw, strict=True):
            parameter.copy_(value)
        for layer in module.modules():
            if isinstance(layer, Spectral):
                layer.power_iterate(n_power_iterations)

    def state(self) -> dict[str, Tensor]:
        tensors = {f"module/{k}": v for k, v in self.modules.state_dict().items()}
        for i, leaf in enumerate(self.leaves):
            for name, value in self.adam.state.get(leaf, {}).items():
                tensors[f"adam/{i}/{name}"] = value
        return tensors

    def load_state(self, state: dict[str, Tensor]) -> None:
        module = {k[7:]: v for k, v in state.items() if k.startswith("module/")}
        self.modules.load_state_dict(module)
        for i, leaf in enumerate(self.leaves):
            prefix = f"adam/{i}/"
            self.adam.state[leaf] = {
                k[len(prefix) :]: v.clone() for k, v in state.items() if k.startswith(prefix)
            }
