"""How smooth weights are and how alike two networks see: the measures of decoupled NeRN's analysis (2024), as pure functions.

Axes: F filters, C channels, K side of a kernel, B inputs, D features. A weight (F, C, ...) is taken as the matrix
(F, C * K * K). All is computed in float64.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor


def singular_ratio(weight: Tensor, share: float = 0.5) -> float:
    """S_ratio: the sum of the largest singular values of a weight's matrix over the sum of all, at most 1.

    Higher means smoother: less lies in the small singular values. The authors do not say how many values lead; here it
    is the share `share`, rounded up. NaN for a weight of zeros.
    """
    values = torch.linalg.svdvals(weight.double().flatten(1))
    total = float(values.sum())
    return float(values[: _leading(len(values), share)].sum()) / total if total else float("nan")


def low_pass(weight: Tensor, keep: float) -> Tensor:
    """The weight without the high frequencies of its matrix, by the 2-D Fourier transform.

    Kept is what lies, along both axes, within the share `keep` of the highest frequency: 1 keeps all, 0 the mean alone.
    """
    matrix = weight.double().flatten(1)
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64).abs() <= keep / 2 for size in matrix.shape)
    kept = torch.fft.fft2(matrix) * (rows[:, None] & columns)
    return torch.fft.ifft2(kept).real.reshape(weight.shape).to(weight.dtype)


def scale_small(weight: Tensor, factor: float, share: float = 0.5) -> Tensor:
    """The weight with the singular values of its matrix after the leading share `share` times `factor`."""
    left, values, right = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    leading = _leading(len(values), share)
    scaled = torch.cat([values[:leading], factor * values[leading:]])
    return ((left * scaled) @ right).reshape(weight.shape).to(weight.dtype)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two representations (B, D) and (B, D') of the same inputs, 0 to 1.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred features (Kornblith et al. 2019, Sec. 3); the same is computed
    from B x B matrices where features are more than inputs. Orthogonal maps and scales of features do not change it. NaN where
    features do not vary.
    """
    x, y = (each.double() - each.double().mean(dim=0) for each in (first, second))
    if max(x.shape[1], y.shape[1]) > len(x):
        left, right = x @ x.T, y @ y.T
        both, norms = float((left * right).sum()), float(left.norm() * right.norm())
    else:
        both, norms = float((y.T @ x).square().sum()), float((x.T @ x).norm() * (y.T @ y).norm())
    return both / norms if norms else float("nan")


def _leading(count: int, share: float) -> int:
    return ceil(share * count)
