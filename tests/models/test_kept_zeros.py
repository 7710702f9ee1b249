"""Masks of zeros against what they are made of: which layers count, round trips through bytes, and bytes that are none."""

from __future__ import annotations

import pytest
import torch

from netspace.models.kept_zeros import find_zeros, pack_zeros, unpack_zeros
from netspace.networks.kernels import Layer


def with_zeros(shape: tuple[int, ...], count: int, seed: int = 0) -> torch.Tensor:
    """Return a tensor with so many zeros, some of them negative ones."""
    random = torch.Generator().manual_seed(seed)
    value = torch.rand(shape, generator=random) + 0.5
    value.view(-1)[torch.randperm(value.numel(), generator=random)[:count]] = -0.0
    return value


def layers_of(state: dict[str, torch.Tensor]) -> list[Layer]:
    return [Layer(name, tuple(value.shape)) for name, value in state.items()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_layers_with_a_tenth_of_zeros_count(dtype: torch.dtype) -> None:
    counts = {"none": 0, "few": 35, "tenth": 36, "half": 180, "all": 360}
    state = {name: with_zeros((8, 5, 3, 3), count).to(dtype) for name, count in counts.items()}
    found = find_zeros(state, layers_of(state))
    assert list(found) == ["tenth", "half", "all"]
    assert all(torch.equal(value, state[name] == 0) for name, value in found.items())


def test_a_mask_larger_than_its_zeros_is_none() -> None:
    state = {"a.weight": torch.tensor([[[[0.0, 1.0, 2.0]]]])}  # four bytes of a zero, more of a mask and its name
    assert find_zeros(state, layers_of(state)) == {}


def test_masks_come_back_from_their_bytes() -> None:
    torch.manual_seed(0)
    shapes = {"conv": (7, 5, 3, 3), "point": (6, 4, 1, 1), "matrix": (9, 11), "line": (4, 3, 5), "whole": (3, 2, 3, 3)}
    zeros = {name: torch.rand(shape) < 0.6 for name, shape in shapes.items()} | {"whole": torch.ones(3, 2, 3, 3).bool()}
    layers = [Layer(name, shape) for name, shape in shapes.items()]
    read = unpack_zeros(pack_zeros(zeros), layers)
    assert list(read) == list(zeros) and all(torch.equal(read[name], value) for name, value in zeros.items())
    assert unpack_zeros(pack_zeros({}), []) == {}


def test_filters_without_weights_cost_next_to_nothing() -> None:
    zeros = {"conv": torch.zeros(64, 64, 3, 3).bool()}
    zeros["conv"][::3] = True
    assert len(pack_zeros(zeros)) < 64 * 64 * 9 / 8 / 50


def test_bytes_that_are_no_mask() -> None:
    layers = [Layer("conv", (6, 4, 3, 3))]
    packed = pack_zeros({"conv": torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5})
    with pytest.raises(ValueError, match=r"its zeros are torch.float32 of shape \(1,\), where bytes were expected"):
        unpack_zeros(torch.ones(1), layers)
    with pytest.raises(ValueError, match=r"its zeros cannot be read: .* cut short or altered"):
        unpack_zeros(packed[:5], layers)
    with pytest.raises(ValueError, match=r"its zeros cannot be read: .* cut short or altered"):
        unpack_zeros(torch.cat([packed, packed]), layers)
    with pytest.raises(ValueError, match=r"its zeros are no mask|its zeros cannot be read"):
        unpack_zeros(torch.full((len(packed),), 7, dtype=torch.uint8), layers)
