"""Statistics of stacked weights against slow and obvious ones, one network at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from netspace.networks.spec import NetSpec
from netspace.networks.statistics import (
    eigenvalues,
    layer_norms,
    layers_of,
    matrix_of,
    order_embedding,
    robust_z,
    stable_ranks,
    tail_exponents,
    weight_moments,
)

SPEC = NetSpec("any", (), (1, 8, 8), ("a.weight", "a.bias", "b.weight", "scale"), ((12, 3, 3, 3), (12,), (5, 40), ()))


@pytest.fixture(scope="module")
def flat() -> torch.Tensor:
    return torch.randn(7, SPEC.num_parameters, generator=torch.Generator().manual_seed(0))


def test_layers_are_parameters_of_one_module() -> None:
    assert layers_of(SPEC) == {"a": ["a.weight", "a.bias"], "b": ["b.weight"], "scale": ["scale"]}
    assert [matrix_of(names, SPEC) for names in layers_of(SPEC).values()] == ["a.weight", "b.weight", None]


def test_norms_and_moments(flat: torch.Tensor) -> None:
    norms, moments = layer_norms(flat, SPEC), weight_moments(flat, SPEC)
    ends = np.cumsum([0, *SPEC.sizes])
    for row, values in enumerate(flat.double().numpy()):
        parts = [values[start:end] for start, end in itertools.pairwise(ends)]
        expected = [
            np.sqrt((parts[0] ** 2).sum() + (parts[1] ** 2).sum()),
            np.sqrt((parts[2] ** 2).sum()),
            abs(parts[3][0]),
        ]
        assert norms[row].tolist() == pytest.approx(expected, rel=1e-12)
        slow = [[each.mean(), each.var(), *np.quantile(each, [0, 0.25, 0.5, 0.75, 1])] for each in parts]
        assert moments[row].tolist() == pytest.approx(np.concatenate(slow).tolist(), abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 27), (40, 9)])
def test_spectra(shape: tuple[int, int]) -> None:
    weights = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    values = eigenvalues(weights)
    for row, matrix in enumerate(weights.double().numpy()):
        squares = np.sort(np.linalg.svd(matrix, compute_uv=False) ** 2)
        assert values[row].numpy() == pytest.approx(squares, rel=1e-9)
        assert float(stable_ranks(values)[row]) == pytest.approx((matrix**2).sum() / squares[-1])
        k = len(squares) // 2
        hill = 1 + k / sum(np.log(squares[-i] / squares[-k - 1]) for i in range(1, k + 1))
        assert float(tail_exponents(values)[row]) == pytest.approx(hill)


def test_the_exponent_of_a_pareto_sample_is_its_own() -> None:
    draws = np.random.default_rng(0).pareto(1.5, size=(50, 4000)) + 1  # density ~ x^-2.5
    found = tail_exponents(torch.from_numpy(np.sort(draws, 1)))
    assert float(found.mean()) == pytest.approx(2.5, abs=0.02)


def test_spectra_of_nothing_are_unknown() -> None:
    values = eigenvalues(torch.zeros(2, 9, 9))
    assert stable_ranks(values).isnan().all() and tail_exponents(values).isnan().all()
    assert tail_exponents(eigenvalues(torch.randn(1, 7, 20))).isnan().all()  # too few


def test_distances_of_embeddings_bound_those_under_permutations(flat: torch.Tensor) -> None:
    embedded = order_embedding(flat, SPEC)
    moved = flat.clone()
    weight = moved[:, : 12 * 27].view(7, 12, 27)
    weight[:] = weight[:, torch.randperm(12)]
    assert torch.equal(order_embedding(moved, SPEC), embedded)
    nudged = moved + 0.01 * torch.randn_like(moved)
    least = (nudged - moved).double().norm(dim=1)
    assert bool(((order_embedding(nudged, SPEC) - embedded).norm(dim=1) <= least).all())
    assert bool(
        ((embedded[1:] - embedded[:-1]).norm(dim=1) > least[0]).all()
    )  # others are not nearer than nudged copies


def test_robust_deviations_are_those_of_medians() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [100.0, 0.05], [torch.nan, 0.0]])
    found = robust_z(values.double())
    assert found[:5, 0].tolist() == pytest.approx([(x - 3) / 1.4826 for x in (1, 2, 3, 4, 100)])
    assert found[4, 1] == pytest.approx(5.0) and bool(found[5, 0].isnan())  # the floor, where there is no spread
