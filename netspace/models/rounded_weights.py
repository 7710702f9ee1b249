"""The weights of one network in training as integers times a step, and the bits that these integers will take.

Rounding passes gradients straight through. Bits are those of geometric distributions by rows and columns, which is near to what
the contexts of the entropy coder learn. Axes: R rows (filters), C columns of a tensor as a matrix, K positions of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from netspace.networks.rounding import Codes, as_rows, kernel_positions

Steps = Literal[
    "each", "shared", "rows"
]  # a learnt step for each tensor, one factor for all of them, or one for each row
FLOOR = 0.02  # added to mean magnitudes: what a row of zeros is expected to hold
VECTOR_LEVELS = 127  # integers up to which a bias, or another vector, goes when training begins
BITS_OF_BYTE = 8


class RoundedWeights(nn.Module):
    """A state dict whose floating-point parameters are integers times a step; all other tensors are as they are.

    Weights are learnt in units of their root mean square, so that one learning rate serves all tensors.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        codes: Mapping[str, Codes],
        vectors: list[str],
        steps: Steps = "each",
        bits: int | None = None,
        sparse: bool = False,
    ) -> None:
        """Begin with a network and the steps of its `codes`.

        `vectors` names parameters of one axis that are learnt too, with a fixed step. With `bits` the integers are
        clamped to these; with `sparse` those that are zero in `codes` stay zero.
        """
        super().__init__()
        self.fixed_steps: Tensor
        self.names, self.vectors, self.kind = list(codes), list(vectors), steps
        self.top = None if bits is None else 2 ** (bits - 1) - 1
        self.rest = {name: value for name, value in state.items() if name not in codes and name not in vectors}
        self.shapes = {name: tuple(state[name].shape) for name in [*codes, *vectors]}
        self.types = {name: state[name].dtype for name in [*codes, *vectors]}
        self.units = {name: _unit(state[name]) for name in [*codes, *vectors]}
        self.values = nn.ParameterList(
            [nn.Parameter(as_rows(state[name]) / self.units[name]) for name in [*codes, *vectors]]
        )
        begun = [(codes[name].steps / self.units[name]).log() for name in codes]
        fixed = [as_rows(state[name]).abs().amax() / self.units[name] / VECTOR_LEVELS for name in vectors]
        fixed = [step if float(step) > 0 else torch.ones_like(step) for step in fixed]
        learnt = [torch.zeros(1)] if steps == "shared" else begun
        self.log_steps = nn.ParameterList([nn.Parameter(each.clone()) for each in learnt])
        self.register_buffer("fixed_steps", torch.stack(fixed) if fixed else torch.empty(0), persistent=False)
        offsets = begun if steps == "shared" else []
        for index, each in enumerate(offsets):
            self.register_buffer(f"offset{index}", each, persistent=False)
        self.masks: list[Tensor | None] = [(codes[name].values != 0).float() if sparse else None for name in codes]

    def elementwise(self) -> list[nn.Parameter]:
        """Return the steps, which have a learning rate of their own."""
        return list(self.log_steps)

    def not_matrices(self) -> list[nn.Parameter]:
        """Return all weights: their rows and columns are no matrix to orthogonalise."""
        return list(self.values)

    def step(self, index: int) -> Tensor:
        """Return the step of a tensor with codes, (1,) or (R,), in units of the tensor."""
        if self.kind == "shared":
            offset: Tensor = getattr(self, f"offset{index}")
            return (offset + self.log_steps[0]).exp()
        return self.log_steps[index].exp()

    def integers(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tensor's integers (R, C) with straight-through gradients, what was rounded (R, C), and the step."""
        coded = index < len(self.names)
        step = self.step(index) if coded else self.fixed_steps[index - len(self.names)].reshape(1)
        exact = self.values[index] / step[:, None]
        mask = self.masks[index] if coded else None
        if mask is not None:
            exact = exact * mask.to(exact.device)
        if coded and self.top is not None:
            exact = exact.clamp(-self.top, self.top)
        return exact + (exact.round() - exact).detach(), exact, step

    def forward(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the state dict, the bytes that its integers will take (), and the same with gradients to shrink it."""
        state, size = dict(self.rest), self.values[0].new_zeros(())
        penalty = size
        for index, name in enumerate([*self.names, *self.vectors]):
            integers, exact, step = self.integers(index)
            weight = integers * (step * self.units[name])[:, None]
            state[name] = weight.view(self.shapes[name]).to(self.types[name])
            if index < len(self.names):
                bits, slope = expected_bits(integers.detach(), kernel_positions(self.shapes[name]))
                size = size + bits / BITS_OF_BYTE
                magnitude = exact.abs()
                penalty = penalty + (slope * magnitude + magnitude.clamp(max=1.0)).sum() / BITS_OF_BYTE
        return state, size, penalty

    @torch.no_grad()
    def codes(self) -> dict[str, Codes]:
        """Return the integers of all tensors, vectors too, and their steps."""
        codes = {}
        for index, name in enumerate([*self.names, *self.vectors]):
            integers, _, step = self.integers(index)
            values = integers.round().to(torch.int32).cpu()
            codes[name] = Codes(values, (step * self.units[name]).float().cpu().reshape(-1))
        return codes


def expected_bits(integers: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Return the bits () of integers (R, C), and by how many bits each grows with its magnitude, (R, C).

    A magnitude k of mean m has the geometric distribution, log2(1 + m) + k log2((1 + m) / m) bits, and a bit more
    for the sign if it is not zero. m is the product of the mean magnitudes of the row and of the kernel's channel, over that of all.
    """
    magnitude = integers.abs()
    rows = magnitude.mean(1, keepdim=True) + FLOOR
    channels = magnitude.view(len(magnitude), -1, positions).mean((0, 2)).repeat_interleave(positions)[None] + FLOOR
    mean = rows * channels / (magnitude.mean() + FLOOR)
    slope = torch.log2((1 + mean) / mean)
    bits = torch.log2(1 + mean) + slope * magnitude + (magnitude > 0)
    return bits.sum(), slope


def _unit(value: Tensor) -> float:
    size = float(value.detach().float().square().mean().sqrt()) if value.numel() else 1.0
    return size if size > 0 and math.isfinite(size) else 1.0
