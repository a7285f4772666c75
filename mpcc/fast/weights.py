"""Raw weights, normalised weights and Adam's state of many layers in one buffer each.

Layers of one shape are normalised together, once after each update. The plain counterpart of a
`FlatPart` is `mpcc.training.optimiser.ModulePart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from mpcc.fast.layers import Spectral, quicken
from mpcc.training.optimiser import BETA2, EPS, Part


@dataclass
class _Group:
    """n spectral weights of one shape (rows × columns), contiguous in the buffer."""

    layers: list[Spectral]
    raw: Tensor
    normalised: Tensor
    u: Tensor
    v: Tensor
    span: slice
    sigma: Tensor = field(init=False)
    """(n, 1, 1). Written in place, never replaced: a CUDA graph reads the same memory."""

    def __post_init__(self) -> None:
        self.sigma = self.u.new_empty(len(self.layers), 1, 1)

    def normalise(self, n_power_iterations: int) -> None:
        """Run n power iterations on v, then set σ = |W v|, u = W v / σ, normalised = W / σ (n = 0:
        v unchanged)."""
        for _ in range(max(1, n_power_iterations)):
            if n_power_iterations:
                torch.bmm(self.raw.mT, self.u, out=self.v)
                self.v.div_(torch.linalg.vector_norm(self.v, dim=1, keepdim=True).clamp_min_(1e-12))
            torch.bmm(self.raw, self.v, out=self.u)
            torch.linalg.vector_norm(self.u, dim=1, keepdim=True, out=self.sigma)
            self.sigma.clamp_min_(1e-12)
            self.u.div_(self.sigma)
        torch.div(self.raw, self.sigma, out=self.normalised)

    def raw_gradient(self, gradient: Tensor) -> None:
        """Turn the gradient w.r.t. W/σ into that w.r.t. W, in place: (g - <g, W/σ> u vᵀ) / σ."""
        g = gradient[self.span].view_as(self.raw)
        along = torch.linalg.vecdot(g.flatten(1), self.normalised.flatten(1))[:, None, None]
        torch.baddbmm(g, self.u * along, self.v.mT, alpha=-1, out=g)
        g.div_(self.sigma)


class Pool:
    """The parameters of several modules in one buffer, in segments of which parts are made.

    Convolution weights are stored channels-last, the layout in which they are used.
    """

    def __init__(self, segments: Sequence[Sequence[nn.Module]]) -> None:
        ordered = [_ordered(modules) for modules in segments]
        sample = next(p for segment in ordered for p, _ in segment)
        size = sum(p.numel() for segment in ordered for p, _ in segment)
        self.raw = torch.empty(size, dtype=sample.dtype, device=sample.device)
        self.normalised = torch.empty_like(self.raw)
        self.groups: list[list[_Group]] = []
        self.leaves: list[list[Tensor]] = []
        self.spans: list[slice] = []
        offset = 0
        for segment in ordered:
            start = offset
            leaves: list[Tensor] = []
            groups: list[_Group] = []
            for shape, members in groupby(segment, _spectral_shape):
                first, layers = offset, []
                for parameter, layer in members:
                    span = slice(offset, offset + parameter.numel())
                    offset = span.stop
                    view = _view(self.raw[span], parameter.shape)
                    view.copy_(parameter.data)
                    parameter.data = view
                    parameter.requires_grad_(False)
                    if layer is not None:
                        layer.normalised = _view(self.normalised[span], parameter.shape)
                        layers.append(layer)
                    leaves.append(parameter if layer is None else layer.normalised)
                if shape is not None:
                    groups.append(self._group(layers, shape, slice(first, offset)))
            self.groups.append(groups)
            self.leaves.append(leaves)
            self.spans.append(slice(start, offset))

    def _group(self, layers: list[Spectral], shape: torch.Size, span: slice) -> _Group:
        kind = (len(layers), shape[0], shape[1:].numel())
        u = torch.stack([layer.u for layer in layers])[:, :, None].contiguous()
        v = self.raw.new_zeros(len(layers), kind[2], 1)
        for i, layer in enumerate(layers):
            one = torch.Size((1, *shape[1:]))
            _view(v[i, :, 0], one).copy_(layer.v.view(one))
        raw, normalised = self.raw[span].view(kind), self.normalised[span].view(kind)
        group = _Group(layers, raw, normalised, u, v, span)
        group.normalise(0)
        return group


class FlatPart(Part):
    """The segments first..last (inclusive) of a pool under one Adam; parts may share segments."""

    def __init__(self, pool: Pool, first: int, last: int, lr: float) -> None:
        span = slice(pool.spans[first].start, pool.spans[last].stop)
        self.leaves = [leaf for leaves in pool.leaves[first : last + 1] for leaf in leaves]
        self.groups = [group for groups in pool.groups[first : last + 1] for group in groups]
        self.raw = [pool.raw[span]]
        self.gradient = torch.empty_like(pool.raw)
        self.span = span
        self.square_average = torch.zeros_like(pool.raw[span])
        # Counted on the device: a CUDA graph would repeat a number from the host.
        self.n_steps = torch.zeros((), dtype=torch.float64, device=pool.raw.device)
        self.lr = lr

    def step(self, gradients: Sequence[Tensor]) -> None:
        gradient = self.gradient[self.span]
        torch.cat([_lying(g) for g in gradients], out=gradient)
        for group in self.groups:
            group.raw_gradient(self.gradient)
        # Adam without a first moment.
        self.n_steps.add_(1)
        self.square_average.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        correction = (1 - BETA2**self.n_steps).sqrt_()
        denominator = self.square_average.sqrt().div_(correction).add_(EPS)
        self.raw[0].addcdiv_(gradient, denominator, value=-self.lr)
        self.refresh()

    def refresh(self, n_power_iterations: int = 1) -> None:
        """Normalise the weights again, after a change."""
        for group in self.groups:
            group.normalise(n_power_iterations)

    def copy_to(self, module: nn.Module, raw: Sequence[Tensor], n_power_iterations: int) -> None:
        quicken(module)
        part = FlatPart(Pool([[module]]), 0, 0, 0.0)
        part.load_weights(raw[0], self.vectors(), n_power_iterations)

    def vectors(self) -> Tensor:
        """v of every group, end to end; u follows from it."""
        vectors = [group.v.flatten() for group in self.groups]
        return torch.cat(vectors) if vectors else self.raw[0].new_empty(0)

    def load_weights(self, raw: Tensor, vectors: Tensor, n_power_iterations: int = 0) -> None:
        """Copy raw weights and singular vectors from a part of the same layout."""
        self.raw[0].copy_(raw)
        start = 0
        for group in self.groups:
            group.v.copy_(vectors[start : start + group.v.numel()].view_as(group.v))
            start += group.v.numel()
        self.refresh(0)  # u from v, before it improves v
        if n_power_iterations:
            self.refresh(n_power_iterations)

    def state(self) -> dict[str, Tensor]:
        return {
            "raw": self.raw[0],
            "vectors": self.vectors(),
            "square_average": self.square_average,
            "n_steps": self.n_steps,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.load_weights(state["raw"], state["vectors"])
        self.square_average.copy_(state["square_average"])
        self.n_steps.copy_(state["n_steps"])


def _ordered(modules: Sequence[nn.Module]) -> list[tuple[nn.Parameter, Spectral | None]]:
    """Each parameter with its spectral layer, those of one shape side by side, the rest last."""
    found: dict[int, tuple[nn.Parameter, Spectral | None]] = {}
    for module in modules:
        for sub in module.modules():
            for name, parameter in sub.named_parameters(recurse=False):
                layer = sub if isinstance(sub, Spectral) and name == "weight" else None
                found[id(parameter)] = (parameter, layer)
    shapes = [shape for shape in map(_spectral_shape, found.values()) if shape]
    return sorted(found.values(), key=lambda pair: [*shapes, None].index(_spectral_shape(pair)))


def _spectral_shape(pair: tuple[nn.Parameter, Spectral | None]) -> torch.Size | None:
    return pair[0].shape if pair[1] else None


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    """A piece of a buffer as a tensor of this shape, channels last if it is 4-D."""
    if len(shape) == 4:
        n, c, h, w = shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(shape)


def _lying(gradient: Tensor) -> Tensor:
    """A gradient as one vector, in the order in which `_view` lays its weight."""
    if gradient.dim() == 4:
        gradient = gradient.permute(0, 2, 3, 1)
    return gradient.reshape(-1)
