"""PReps: the height rule, packing and its inverse for any size, and nothing ever cropped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.networks.prep import check_size, flatten, height, pack, unflatten, unpack
from netspace.networks.spec import NetSpec

SPEC = NetSpec("tiny", (), (1, 4, 4), ("w", "b", "t"), ((3, 2, 2), (3,), ()))
widths = st.integers(1, 40).map(lambda eighths: 8 * eighths)
leads = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def state(lead: tuple[int, ...] = (), seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn((*lead, *shape), dtype=torch.float64, generator=random)
            for name, shape in zip(SPEC.names, SPEC.shapes, strict=True)}  # fmt: skip
    return draw


@pytest.mark.parametrize(
    ("parameters", "width", "rows"),
    [
        (77_706, 10_000, 8),
        (855_770, 10_000, 88),
        (80_000, 10_000, 8),
        (80_001, 10_000, 12),
        (1, 8, 4),
        (0, 8, 4),
    ],
)
def test_heights(parameters: int, width: int, rows: int) -> None:
    """NetSpace, Suppl. II and Tab. I: folded ResNet8 and ResNet56 on CIFAR-10."""
    assert height(parameters, width) == rows


@given(st.integers(1, 10**7), widths)
def test_height_is_the_papers_ceiling_padded_to_a_multiple_of_4(parameters: int, width: int) -> None:
    rows = height(parameters, width)
    exact = math.ceil(parameters / width)  # exact in doubles at these sizes
    assert rows % 4 == 0 and exact <= rows < exact + 4
    check_size(parameters, (rows, width))
    if rows > 4:
        with pytest.raises(NetspaceError):
            check_size(parameters, (rows - 4, width))


@given(st.integers(1, 700), widths, leads, st.integers(0, 2))
def test_unpack_inverts_pack(parameters: int, width: int, lead: tuple[int, ...], spare: int) -> None:
    flat = torch.randn(*lead, parameters, dtype=torch.float64)
    size = (height(parameters, width) + 4 * spare, width)
    prep = pack(flat, size)
    assert prep.shape == (*lead, *size)
    assert torch.equal(unpack(prep, parameters), flat)
    assert not prep.flatten(-2)[..., parameters:].any()


def test_a_prep_is_filled_row_by_row() -> None:
    prep = pack(torch.arange(1.0, 11.0), (4, 8))
    assert prep[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and prep[1].tolist() == [9, 10, 0, 0, 0, 0, 0, 0]
    assert not prep[2:].any()


def test_unpack_is_a_view_and_drops_the_padding_unread() -> None:
    prep = torch.zeros(2, 4, 8)
    prep[..., 3, 7] = float("nan")
    flat = unpack(prep, 31)
    assert flat.isfinite().all()
    flat[0, 0] = 5.0
    assert prep[0, 0, 0] == 5.0


def test_gradients_go_through_pack_and_unpack() -> None:
    flat = torch.randn(2, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpack(pack(x, (4, 8)) * 2, 11), (flat,))


def test_what_does_not_fit_is_an_error_that_says_what_would() -> None:
    with pytest.raises(
        NetspaceError,
        match=r"33 parameters do not fit a PRep of 4 x 8 \(32 values\): use a height of at least 8",
    ):
        pack(torch.zeros(33), (4, 8))
    with pytest.raises(NetspaceError, match="do not fit"):
        unpack(torch.zeros(4, 8), 33)


@pytest.mark.parametrize("size", [(3, 8), (4, 12), (0, 8), (4, 0), (-4, 8), (4, -8)])
def test_a_malformed_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(NetspaceError, match=rf"a PRep of {size[0]} x {size[1]} was asked for.*multiple of 4.*of 8"):
        check_size(1, size)


@pytest.mark.parametrize("width", [0, -8, 12, 7])
def test_a_malformed_width_has_no_height(width: int) -> None:
    with pytest.raises(NetspaceError, match=f"positive multiple of 8, not {width}"):
        height(100, width)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_unflatten_inverts_flatten_with_leading_axes(lead: tuple[int, ...]) -> None:
    held = state(lead)
    flat = flatten(held, SPEC)
    assert flat.shape == (*lead, SPEC.num_parameters)
    back = unflatten(flat, SPEC)
    assert list(back) == list(SPEC.names)
    for name, value in held.items():
        assert torch.equal(back[name], value)
    assert torch.equal(flatten(back, SPEC), flat)
    back["b"].zero_()  # views of the same memory
    assert not flat[..., SPEC.offsets[1] : SPEC.offsets[2]].any()


def test_flatten_goes_by_the_specs_order_not_the_dictionarys() -> None:
    held = state()
    assert torch.equal(flatten(dict(reversed(held.items())), SPEC), flatten(held, SPEC))
    assert torch.equal(flatten(held, SPEC)[:12], held["w"].flatten())


def test_flatten_refuses_another_networks_state() -> None:
    held = state()
    with pytest.raises(NetspaceError, match=r"not one of 'tiny': 1 parameters are missing \(first: b\)"):
        flatten({"w": held["w"], "t": held["t"]}, SPEC)
    with pytest.raises(NetspaceError, match=r"1 are not known \(first: running_mean\)"):
        flatten(held | {"running_mean": torch.zeros(3)}, SPEC)
    with pytest.raises(NetspaceError, match=r"b has shape \(4,\) where \(3,\) is expected"):
        flatten(held | {"b": torch.zeros(4)}, SPEC)
    with pytest.raises(NetspaceError, match=r"not one of 'tiny': w has shape \(2,\)"):
        flatten(held | {"w": torch.zeros(2)}, SPEC)
    with pytest.raises(NetspaceError, match=r"parameters are missing \(first: w\)"):
        flatten({}, SPEC)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_flatten_refuses_values_that_are_not_finite(bad: float) -> None:
    held = state()
    held["b"][1] = bad
    with pytest.raises(NetspaceError, match="parameter b of 'tiny' holds values that are not finite"):
        flatten(held, SPEC)


def test_unflatten_refuses_another_length() -> None:
    with pytest.raises(NetspaceError, match=r"'tiny' has 16 parameters; 15 values were given"):
        unflatten(torch.zeros(2, 15), SPEC)
