"""Muon: momentum whose matrices are orthogonalised before each step (Jordan et al., 2024).

As `torch.optim.Muon`, with two differences: matrices of one shape are orthogonalised together, and in a precision that
is given. torch's computes in bf16 wherever it runs, which a processor without such instructions does forty times slower
than float32.

Axes: K matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic x -> a x + b x^3 + c x^5, as in torch
ITERATIONS = 5
EPSILON = 1e-7  # least norm that a matrix is divided by


class Muon(torch.optim.Optimizer):
    """Steepest descent in the spectral norm, for parameters that are matrices.

    The step of a matrix (R, C) is `lr * sqrt(max(1, R / C))` times the orthogonalised Nesterov momentum of its gradient.
    The state is laid out as `torch.optim.Muon`'s.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """`precision` is that of the orthogonalisation; parameters and momentum keep their own."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.precision = precision
        if any(value.dim() != 2 for group in self.param_groups for value in group["params"]):
            raise ValueError("Muon takes matrices alone")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        values = [value for value in group["params"] if value.grad is not None]
        if not values:
            return
        for value in values:
            if "momentum_buffer" not in self.state[value]:
                self.state[value]["momentum_buffer"] = torch.zeros_like(value.grad)
        gradients = [value.grad for value in values]
        momenta = [self.state[value]["momentum_buffer"] for value in values]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, value in enumerate(values):
            by_shape[value.shape].append(index)
        for (rows, columns), indices in by_shape.items():
            steps = orthogonalise(torch.stack([updates[index] for index in indices]), self.precision)
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_([values[index] for index in indices], list(steps.unbind(0)), alpha=-rate)


def orthogonalise(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Matrices (K, R, C) with their singular values brought near 1 by five steps of a quintic, in their own dtype.

    Each step maps X to (a + b S + c S^2) X with S = X X^T. In float32 (or above) the factors of matrices that are longer
    than they are wide are multiplied first, which leaves two products with the long side in place of ten; in bf16 that
    would lose the small singular values.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(precision)
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPSILON)
    short, long = x.shape[-2:]
    # Products of two, counted as in a square of the short side: 10 with the long side and 5 others, or 2 and 17.
    x = _by_factors(x) if precision != torch.bfloat16 and 8 * long > 12 * short else _by_steps(x)
    return (x.mT if tall else x).to(matrices.dtype)


def _by_steps(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x


def _by_factors(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    s = x @ x.mT
    unit = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(s, s, s, beta=b, alpha=c) + a * unit  # commutes with s: all are polynomials of it
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            s = factor @ s @ factor
    assert product is not None
    return product @ x
