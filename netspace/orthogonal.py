"""Matrices with the same directions and singular values near 1, for optimisers that take such steps (Jordan et al. 2024).

Axes: K matrices, R rows, C columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic x -> a x + b x^3 + c x^5, as in torch
ITERATIONS = 5
EPSILON = 1e-7  # smallest norm that a matrix is divided by


def orthogonalise(matrices: Float[Tensor, "K R C"], precision: torch.dtype = torch.float32) -> Float[Tensor, "K R C"]:
    """Return matrices with their singular values brought near 1 by five steps of a quintic (Jordan et al. 2024).

    Each step maps X to (a + b S + c S^2) X with S = X X^T. For long matrices in float32 or above, the factors are
    multiplied first: two products with the long side instead of ten. In bf16 that would lose the small singular values.
    """
    x = matrices.to(precision)
    norm = torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPSILON)
    short, long = sorted(x.shape[-2:])
    # By steps: 10 products with the long side and 5 of short squares; by factors: 2 and 17.
    by_factors = precision != torch.bfloat16 and 8 * long > 12 * short
    return (_by_factors(x, norm) if by_factors else _by_steps(x / norm)).to(matrices.dtype)


def _by_steps(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(ITERATIONS):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _by_factors(x: Tensor, norm: Tensor) -> Tensor:
    """As `_by_steps(x / norm)`. No tensor of the size of x is made but the result, and x is never transposed in memory."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    s = (x.mT @ x if tall else x @ x.mT) / norm.square()
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(s, s, s, beta=b, alpha=c)  # commutes with s: all are polynomials of it
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            s = factor @ s @ factor
    assert product is not None
    product = product / norm
    return x @ product if tall else product @ x
