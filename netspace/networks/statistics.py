"""Statistics of the weights of stacked networks: norms, spectra, moments, and embeddings that permutations do not change.

All functions work on M members at once. Axes: M members, P parameters, R C a layer's matrix, S singular values, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec

MIN_TAIL = 8  # eigenvalues below which no exponent is fitted
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def layers_of(spec: NetSpec) -> dict[str, list[str]]:
    """Return the names of the parameters of each layer, in order: 'conv1' has 'conv1.weight' and 'conv1.bias'."""
    layers: dict[str, list[str]] = {}
    for name in spec.names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def matrix_of(names: Sequence[str], spec: NetSpec) -> str | None:
    """Return the largest of a layer's parameters that is a matrix or a convolution; None if there is none."""
    shapes = dict(zip(spec.names, spec.shapes, strict=True))
    sizes = dict(zip(spec.names, spec.sizes, strict=True))
    matrices = [name for name in names if len(shapes[name]) > 1]
    return max(matrices, key=lambda name: sizes[name], default=None)


def eigenvalues(weights: Float[Tensor, "M R *C"]) -> Float[Tensor, "M S"]:
    """Return the squared singular values of weights as matrices (R, C), ascending, in float64; S is the smaller side.

    They are the eigenvalues of the smaller Gram matrix, so the least of them have an absolute error of 1e-15 of the largest.
    """
    matrices = weights.double().flatten(2)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    return torch.linalg.eigvalsh(matrices @ matrices.mT).clamp_min(0)


def stable_ranks(values: Float[Tensor, "M S"]) -> Float[Tensor, " M"]:
    """Return the squared Frobenius norm over the squared spectral norm, 1 to S, from `eigenvalues`; NaN for zero matrices."""
    return values.sum(1) / values[:, -1].where(values[:, -1] > 0, torch.nan)


def tail_exponents(values: Float[Tensor, "M S"]) -> Float[Tensor, " M"]:
    """Return the exponents alpha of densities ~ x^-alpha fitted to the larger half of `eigenvalues`.

    It is the Hill estimator (Hill, 1975) on the k = S // 2 largest, 1 + k / sum log(x_i / x_min), where x_min is the next smaller
    one: 'PL_Alpha_Hill' of Zhou et al. (Temperature Balancing, NeurIPS 2023), after the heavy tails of Martin and Mahoney
    (2021). Smaller is heavier. NaN for fewer than `MIN_TAIL` eigenvalues, and where x_min is zero.
    """
    count = values.shape[1]
    if count < MIN_TAIL:
        return torch.full((len(values),), torch.nan, dtype=values.dtype)
    k = count // 2
    least = values[:, count - k - 1]
    known = least > values[:, -1] * 1e-12
    ratios = values[:, count - k :] / least.where(known, 1.0)[:, None]
    sums = ratios.clamp_min(1.0).log().sum(1)
    return torch.where(known & (sums > 0), 1 + k / sums, torch.nan)


def layer_norms(flat: Float[Tensor, "M P"], spec: NetSpec) -> Float[Tensor, "M L"]:
    """Return the L2 norms of the L layers of `layers_of`, in float64."""
    squares = {name: _rows(value).double().square().sum(1) for name, value in unflatten(flat, spec).items()}
    return torch.stack(
        [sum((squares[name] for name in names), torch.zeros(())) for names in layers_of(spec).values()], 1
    ).sqrt()


def weight_moments(flat: Float[Tensor, "M P"], spec: NetSpec) -> Float[Tensor, "M F"]:
    """Return the mean, the variance and the quantiles 0, 25, 50, 75 and 100 % of each parameter (Unterthiner et al., 2020).

    Seven features for each parameter, in the order of the spec.
    """
    levels = torch.tensor(QUANTILES, dtype=flat.dtype, device=flat.device)
    parts = []
    for value in unflatten(flat, spec).values():
        rows = _rows(value)
        parts += [rows.mean(1)[:, None], rows.var(1, correction=0)[:, None], _quantiles(rows, levels)]
    return torch.cat(parts, 1)


def _rows(value: Tensor) -> Tensor:
    """Return a parameter (M, ...) as rows (M, N); N is 1 for a single number."""
    return value.flatten(1) if value.dim() > 1 else value[:, None]


def _quantiles(rows: Tensor, levels: Tensor) -> Tensor:
    """Return quantiles (M, Q) of rows (M, N), by linear interpolation; `torch.quantile` takes 16 million values at most."""
    ordered = rows.sort(1).values
    positions = levels * (rows.shape[1] - 1)
    lower = positions.floor().long()
    upper = positions.ceil().long()
    return torch.lerp(ordered[:, lower], ordered[:, upper], (positions - lower)[None])


def order_embedding(flat: Float[Tensor, "M P"], spec: NetSpec, bins: int = 8) -> Float[Tensor, "M F"]:
    """Return an embedding whose distances are at most those of the networks under any permutation of their channels.

    It has the means of each parameter's sorted values in `bins` equal parts, times the square root of their number. Sorting
    does not depend on a permutation and gives the least distance of two sets of values; means are nearer still. Networks
    that are far apart here are therefore no copies of each other, in whatever order.
    """
    parts = []
    for value in unflatten(flat, spec).values():
        ordered = _rows(value).double().sort(1).values
        edges = torch.linspace(0, ordered.shape[1], min(bins, ordered.shape[1]) + 1).round().long()
        sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))[:, edges].diff(dim=1)
        parts.append(sums / edges.diff().double().sqrt())
    return torch.cat(parts, 1)


def robust_z(values: Float[Tensor, "M L"], floor: float = 1e-2) -> Float[Tensor, "M L"]:
    """Return by how many robust standard deviations values differ from their column's median.

    The standard deviation is 1.4826 times the median absolute deviation (Iglewicz and Hoaglin, 1993), at least `floor`. Values
    that are not finite are left out of the medians, and NaN.
    """
    finite = values.where(values.isfinite(), torch.nan)
    difference = finite - finite.nanmedian(0).values
    spread = 1.4826 * difference.abs().nanmedian(0).values
    return difference / spread.clamp_min(floor)
