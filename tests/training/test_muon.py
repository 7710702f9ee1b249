"""Muon against torch's own and against the published iteration in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netspace.orthogonal import orthogonalise
from netspace.training.optimizers import Muon


def iterate(matrix: Tensor) -> Tensor:
    """Five steps of x -> a x + b x^3 + c x^5 on the singular values of one matrix, by its decomposition in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    left, values, right = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (8, 200), (200, 8), (12, 13), (1, 6), (6, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_singular_values_are_those_of_the_iteration(shape: tuple[int, int], scale: float) -> None:
    matrices = scale * torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([iterate(each) for each in matrices])
    torch.testing.assert_close(orthogonalise(matrices, torch.float64), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(orthogonalise(matrices.float()).double(), expected, rtol=1e-3, atol=1e-4)


def test_small_singular_values_survive_the_product_of_factors() -> None:
    """A matrix of rank 4 and noise a thousandth of it, much longer than wide, so that factors are multiplied first."""
    random = torch.Generator().manual_seed(1)
    low = torch.randn(64, 4, generator=random) @ torch.randn(4, 640, generator=random)
    matrix = low + 1e-3 * torch.randn(64, 640, generator=random)
    expected = iterate(matrix)
    assert (orthogonalise(matrix[None])[0].double() - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_matrix_of_zeros_stays_so() -> None:
    assert orthogonalise(torch.zeros(2, 3, 9)).abs().max() == 0


def test_steps_are_torchs_in_bf16() -> None:
    random = torch.Generator().manual_seed(2)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5)]
    mine = [nn.Parameter(torch.randn(*shape, generator=random)) for shape in shapes]
    torchs = [nn.Parameter(value.detach().clone()) for value in mine]
    ours, theirs = (
        Muon(mine, lr=0.1, precision=torch.bfloat16),
        torch.optim.Muon(torchs, lr=0.1, weight_decay=0.0),
    )
    for _ in range(6):
        for one, two in zip(mine, torchs, strict=True):
            one.grad = torch.randn(*one.shape, generator=random)
            two.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for one, two in zip(mine, torchs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0.01)  # bf16: a hundredth of a step, six steps of 0.1


def test_the_state_of_torchs_is_taken_over() -> None:
    value = nn.Parameter(torch.ones(3, 4))
    theirs = torch.optim.Muon([value], lr=0.1)
    value.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    theirs.step()
    ours = Muon([value], lr=0.2)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state[value]["momentum_buffer"], theirs.state[value]["momentum_buffer"])
    ours.step()
    assert value.isfinite().all()


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)
