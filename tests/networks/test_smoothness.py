"""NeRN's smoothness term against a slow oracle; what changes it and what does not."""

from __future__ import annotations

import math

import pytest
import torch

from netspace.networks.kernels import smoothness_loss

CONVOLUTIONS = [(3, 4, 3, 3), (2, 1, 5, 5), (1, 3, 3, 3), (4, 3, 1, 1), (3, 2, 5), (2, 3, 2, 2, 2), (5, 4), (1, 6)]


def slow_smoothness(weight: torch.Tensor) -> float:
    """Eq. 6 of one layer, a pair of kernels at a time."""

    def distance(one: torch.Tensor, two: torch.Tensor) -> float:
        a, b = one.flatten().tolist(), two.flatten().tolist()
        if len(a) == 1:
            return abs(a[0] - b[0])
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    total = 0.0
    for f in range(weight.shape[0] - 1):
        for c in range(weight.shape[1] - 1):
            total += distance(weight[f, c], weight[f + 1, c]) + distance(weight[f, c], weight[f, c + 1])
    return total


def weights() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in CONVOLUTIONS]


def test_smoothness_loss_is_the_sum_over_neighbouring_kernels() -> None:
    for weight in weights():
        assert float(smoothness_loss([weight])) == pytest.approx(slow_smoothness(weight), rel=1e-12, abs=1e-12)
    assert float(smoothness_loss(weights())) == pytest.approx(sum(map(slow_smoothness, weights())), rel=1e-12)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_kernels_that_are_all_alike_are_smooth(shape: tuple[int, ...]) -> None:
    kernel = torch.randn(1, 1, *shape[2:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert float(smoothness_loss([kernel.expand(shape)])) == pytest.approx(0, abs=1e-12)


def test_smoothness_loss_counts_directions_not_sizes_except_of_single_values() -> None:
    wide, single = weights()[0], weights()[3]
    sizes = torch.rand(3, 4, 1, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.1
    whole = float(smoothness_loss([wide]))
    assert float(smoothness_loss([wide * sizes])) == pytest.approx(whole, rel=1e-12)
    assert float(smoothness_loss([wide.flip(2, 3)])) == pytest.approx(whole, rel=1e-12)  # one change of all kernels
    assert float(smoothness_loss([wide[[1, 0, 2]]])) != pytest.approx(whole, rel=1e-3)  # order counts
    signs = torch.ones(3, 4, 1, 1, dtype=torch.float64)
    signs[0, 0] = -1
    assert float(smoothness_loss([wide * signs])) != pytest.approx(whole, rel=1e-3)  # and so does the sign
    assert float(smoothness_loss([single + 2])) == pytest.approx(float(smoothness_loss([single])), rel=1e-12)
    assert float(smoothness_loss([3 * single])) == pytest.approx(3 * float(smoothness_loss([single])), rel=1e-12)


def test_a_matrix_is_a_convolution_of_one_pixel() -> None:
    matrix = weights()[6]
    assert float(smoothness_loss([matrix])) == float(smoothness_loss([matrix[:, :, None, None]])) > 0
    ramp = torch.arange(5.0, dtype=torch.float64)[:, None] + torch.zeros(4, dtype=torch.float64)
    assert float(smoothness_loss([ramp])) == 4 * 3  # between rows alone, of all columns but the last
    assert float(smoothness_loss([ramp[[0, 2, 1, 3, 4]]])) == (2 + 1 + 2 + 1) * 3  # in another order


def test_kernels_of_zeros_have_a_finite_gradient() -> None:
    weight = weights()[0]
    weight[0, 0] = 0
    weight.requires_grad_()
    smoothness_loss([weight]).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_smoothness_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one layer at least; found none"):
        smoothness_loss([])
