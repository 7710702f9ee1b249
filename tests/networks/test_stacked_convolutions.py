"""Convolutions of stacked networks by our own loops: torch's, with gradients, in float64."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from netspace.errors import NetspaceError
from netspace.networks import stacked_convolutions
from netspace.networks.stacked_convolutions import batch_last

M, B = 3, 4
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {  # images (C, H, W), weights (O, C, K, L)
    "plain": ((2, 6, 5), (3, 2, 3, 3), {}),
    "padded": ((2, 6, 5), (4, 2, 3, 3), {"padding": 1}),
    "stride": ((3, 7, 8), (5, 3, 3, 3), {"stride": 2, "padding": 1}),
    "stride of three": ((2, 8, 7), (2, 2, 2, 2), {"stride": 3}),
    "one pixel": ((5, 4, 4), (7, 5, 1, 1), {"stride": 2}),
    "five by two": ((1, 8, 9), (2, 1, 5, 2), {"stride": (1, 2), "padding": (2, 1)}),
    "dilated": ((2, 9, 9), (3, 2, 3, 3), {"dilation": 2, "padding": 2}),
    "dilated stride": ((2, 9, 9), (3, 2, 3, 3), {"dilation": (1, 2), "padding": 2, "stride": 2}),
    "groups": ((4, 5, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((3, 6, 6), (3, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "whole image": ((2, 3, 4), (3, 2, 3, 4), {}),
}


def tensors(case: str, shared: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    image, weight, _ = CASES[case]
    random = torch.Generator().manual_seed(1)
    shapes = [(*([] if shared else [M]), B, *image), (M, *weight), (M, weight[0])]
    return [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]


def one_after_another(case: str, images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    settings = CASES[case][2]
    rows = [images] * M if images.dim() == 4 else list(images)
    return torch.stack(
        [
            F.conv2d(x, w, None if bias is None else bias[m], **settings)
            for m, (x, w) in enumerate(zip(rows, weights, strict=True))
        ]
    )


def stacked(case: str, images: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    settings = CASES[case][2]
    dims = (None if images.dim() == 4 else 0, 0, None if bias is None else 0)
    with batch_last():
        found: Tensor = vmap(lambda x, w, b: F.conv2d(x, w, b, **settings), in_dims=dims)(images, weights, bias)
    return found


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times our own loops ran."""
    calls: list[int] = []
    loop = stacked_convolutions.convolved

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return loop(*arguments)

    monkeypatch.setattr(stacked_convolutions, "convolved", counted)
    return calls


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_torchs(case: str, with_bias: bool, shared: bool, ours: list[int]) -> None:
    results = []
    for run in (one_after_another, stacked):
        images, weights, bias = (each.requires_grad_() for each in tensors(case, shared))
        outputs = run(case, images, weights, bias if with_bias else None)
        outputs.sin().sum().backward()
        results.append([outputs.detach(), images.grad, weights.grad, *([bias.grad] if with_bias else [])])
    assert ours
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", ["padded", "stride"])
def test_float32_is_as_exact_as_its_sums(case: str) -> None:
    given = tensors(case, False, torch.float32)
    found = stacked(case, *given)
    exact = one_after_another(case, *(each.double() for each in given))
    assert found.dtype == torch.float32 and (found.double() - exact).abs().max() < 1e-5


def test_numbers_of_threads_give_the_same_bytes() -> None:
    given, before = tensors("padded", False, torch.float32), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(stacked("padded", *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_weights_that_all_networks_share(ours: list[int]) -> None:
    images, weights, bias = tensors("padded", False)
    with batch_last():
        found = vmap(lambda x: F.conv2d(x, weights[0], bias[0], padding=1))(images)
    torch.testing.assert_close(found, torch.stack([F.conv2d(x, weights[0], bias[0], padding=1) for x in images]))
    assert ours


def test_a_network_alone_and_images_without_gradients(ours: list[int]) -> None:
    images, weights, bias = tensors("padded", True)
    with batch_last():
        found = F.conv2d(images, weights[0].requires_grad_(), bias[0], padding=1)
    torch.testing.assert_close(found, F.conv2d(images, weights[0], bias[0], padding=1))
    assert len(ours) == 1 and found.requires_grad


@pytest.mark.parametrize(
    ("images", "weights", "settings"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16), {}),
        (torch.zeros(1, 4, 4), torch.zeros(1, 1, 3, 3), {}),
        (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 3, 3), {"padding": "same"}),
        (torch.zeros(0, 1, 4, 4), torch.zeros(1, 1, 3, 3), {}),
    ],
    ids=["bf16", "without a batch", "named padding", "no images"],
)
def test_what_the_loops_are_not_for_is_left_to_torch(
    images: Tensor, weights: Tensor, settings: dict[str, Any], ours: list[int]
) -> None:
    with batch_last():
        found = F.conv2d(images, weights, **settings)
    assert torch.equal(found, F.conv2d(images, weights, **settings)) and not ours


@pytest.mark.parametrize(
    ("weights", "bias", "settings"),
    [
        ((1, 2, 3, 3), 1, {}),
        ((1, 1, 5, 5), 1, {}),
        ((5, 1, 3, 3), 3, {}),
        ((3, 1, 3, 3), 5, {}),
        ((3, 1, 3, 3), 1, {}),
        ((1, 1, 3, 3), 1, {"padding": -1}),
        ((1, 1, 3, 3), 1, {"dilation": 0}),
        ((1, 1, 3, 3), 1, {"stride": 0}),
    ],
    ids=[
        "channels",
        "kernel too large",
        "bias too short",
        "bias too long",
        "one bias",
        "padding",
        "dilation",
        "stride",
    ],
)
def test_what_does_not_fit_is_refused_as_by_torch(
    weights: tuple[int, ...], bias: int, settings: dict[str, Any]
) -> None:
    with batch_last(), pytest.raises(RuntimeError):
        F.conv2d(torch.zeros(2, 1, 4, 4), torch.zeros(weights), torch.zeros(bias), **settings)


@pytest.mark.parametrize("alone", [True, False])
def test_gradients_of_gradients_are_refused(alone: bool) -> None:
    images, weights, _ = (each.requires_grad_() for each in tensors("padded", False))
    with batch_last():
        outputs = F.conv2d(images[0], weights[0]) if alone else vmap(F.conv2d)(images, weights)
    with pytest.raises(NetspaceError, match="second derivatives"):
        torch.autograd.grad(outputs.square().sum(), images, create_graph=True)
    with pytest.raises(NetspaceError, match="second derivatives"):
        torch.autograd.grad(outputs.sum(), images, create_graph=True)


def test_a_layer_that_writes_over_the_outputs_of_one_network() -> None:
    images, weights, _ = tensors("padded", True)
    weight = weights[0].requires_grad_()
    with batch_last():
        found = F.relu_(F.conv2d(images, weight))
    expected = F.relu(F.conv2d(images, weight))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.square().sum(), weight)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_strides_may_be_numpys() -> None:
    images, weights, _ = tensors("padded", True)
    with batch_last():
        found = F.conv2d(images, weights[0], stride=np.int64(2))  # type: ignore[call-overload]
    torch.testing.assert_close(found, F.conv2d(images, weights[0], stride=2))


def after_itself(x: Tensor, w: Tensor) -> Tensor:
    """As networks do whose activations write over their inputs."""
    first = F.relu_(F.conv2d(x * 1.0, w, padding=1))
    second = F.conv2d(first, w, padding=1)
    second += first
    return F.leaky_relu_(second)


def written_over(x: Tensor, w: Tensor) -> Tensor:
    first = F.conv2d(x * 1.0, w, padding=1)
    second = F.conv2d(first, w, padding=1)
    first.mul_(2.0)
    return second + first


def test_layers_that_write_over_their_inputs() -> None:
    """Where gradients do not need these, as of torch's own convolutions; elsewhere they are refused, not wrong."""
    torch.manual_seed(0)
    x, results = torch.randn(M, B, 2, 5, 5), []
    for mode in (contextlib.nullcontext(), batch_last()):
        torch.manual_seed(1)
        w = torch.randn(M, 2, 2, 3, 3).requires_grad_()
        with mode:
            outputs = vmap(after_itself)(x, w)
        outputs.sin().sum().backward()
        results.append((outputs.detach(), w.grad))
        with mode:
            wrong = vmap(written_over)(x, w)
        with pytest.raises(RuntimeError, match=r"modified.*inplace"):
            wrong.sum().backward()
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_modules_and_layers_between_keep_the_batch_last() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2), nn.AvgPool2d(2), nn.Flatten()
    )
    states = [{name: torch.randn_like(value) for name, value in net.named_parameters()} for _ in range(M)]
    rows = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    images = torch.randn(B, 1, 9, 9)
    expected = torch.stack([torch.func.functional_call(net, state, (images,)) for state in states])
    with batch_last():
        found = vmap(lambda state: torch.func.functional_call(net, state, (images,)))(rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
