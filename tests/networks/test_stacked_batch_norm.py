"""Batch norm of stacked networks in training by our own loops: torch's, with gradients and statistics, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from netspace.errors import NetspaceError
from netspace.networks import stacked_batch_norm
from netspace.networks.stacked_convolutions import batch_last

M = 3
SHAPES = {
    "images": (4, 5, 6, 7),
    "one input": (1, 2, 3, 3),
    "a pixel": (6, 3, 1, 1),
    "longer than a sum": (9, 2, 11, 13),
}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times our own loops ran."""
    calls: list[int] = []
    loop = stacked_batch_norm.in_threads

    def counted(*arguments: Any) -> None:
        calls.append(1)
        loop(*arguments)

    monkeypatch.setattr(stacked_batch_norm, "in_threads", counted)
    return calls


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images, weights, biases, running means and variances of M networks."""
    random = torch.Generator().manual_seed(3)
    images = torch.randn((M, *shape), generator=random, dtype=dtype) * 3 + 20
    rows = [torch.rand((M, shape[1]), generator=random, dtype=dtype) + 0.5 for _ in range(4)]
    return [images, *rows]


def one_after_another(images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
    """Outputs, running means and variances by torch."""
    mean, variance = mean.clone(), variance.clone()
    outputs = [F.batch_norm(images[m], mean[m], variance[m], weight[m], bias[m], True, 0.3, 1e-3) for m in range(M)]
    return [torch.stack(outputs), mean, variance]


def stacked(images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
    def one(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(x, mean, variance, w, b, True, 0.3, 1e-3), mean, variance

    with batch_last():
        return list(vmap(one)(images, weight, bias, mean, variance))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("last", [True, False], ids=["batch last", "batch first"])
def test_outputs_gradients_and_statistics_are_torchs(shape: tuple[int, ...], last: bool, ours: list[int]) -> None:
    given = tensors(shape)
    if last:
        given[0] = given[0].permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    random = torch.Generator().manual_seed(4)
    found = []
    for run in (one_after_another, stacked):
        leaves = [each.clone().requires_grad_() for each in given[:3]]
        outputs, mean, variance = run(*leaves, *given[3:])
        weights = torch.randn(outputs.shape, generator=random.manual_seed(4), dtype=torch.float64)
        gradients = torch.autograd.grad((outputs * weights).sum(), leaves)
        found.append([outputs, *gradients, mean, variance])
    assert len(ours) == 2  # forward and back
    for torchs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-9, atol=1e-9)


def test_weights_that_lie_otherwise_in_memory() -> None:
    images, *rows = tensors(SHAPES["images"])
    turned = [each.T.contiguous().T for each in rows]
    found = []
    for run, given in ((one_after_another, rows), (stacked, turned)):
        leaves = [images.clone().requires_grad_(), given[0].requires_grad_(), given[1].requires_grad_()]
        outputs, mean, variance = run(*leaves, *given[2:])
        found.append([outputs, *torch.autograd.grad(outputs.sin().sum(), leaves), mean, variance])
    for torchs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1000.1])
def test_constant_channels_are_exact(value: float) -> None:
    """As for channels that are dead, whose noise Adam would follow."""
    images = torch.full((M, 32, 2, 9, 9), value, requires_grad=True)
    weight, bias = torch.ones(M, 2, requires_grad=True), torch.full((M, 2), 0.25)
    outputs, mean, variance = stacked(images, weight, bias, torch.zeros(M, 2), torch.ones(M, 2))
    assert torch.equal(outputs, torch.full_like(outputs, 0.25))
    torch.testing.assert_close(mean, torch.full_like(mean, 0.3 * value))
    torch.testing.assert_close(variance, torch.full_like(variance, 0.7))
    (gradient,) = torch.autograd.grad((outputs * torch.randn(outputs.shape)).sum() + 10 * outputs.sum(), weight)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("alone", [True, False])
def test_gradients_of_gradients_are_refused(alone: bool) -> None:
    images, weight, *_ = (each.requires_grad_() for each in tensors(SHAPES["images"]))
    with batch_last():
        if alone:
            outputs = F.batch_norm(images[0], None, None, weight[0], training=True)
        else:
            outputs = vmap(lambda x, w: F.batch_norm(x, None, None, w, training=True))(images, weight)
    for loss in (outputs.square().sum(), outputs.sum()):
        with pytest.raises(NetspaceError, match="second derivatives"):
            torch.autograd.grad(loss, images, create_graph=True)


def test_statistics_that_networks_share_are_refused_and_stay() -> None:
    images, weight, bias, *_ = tensors(SHAPES["images"])
    mean, variance = torch.zeros(5).double(), torch.ones(5).double()
    with batch_last(), pytest.raises(RuntimeError):
        vmap(lambda x, w, b: F.batch_norm(x, mean, variance, w, b, True))(images, weight, bias)
    assert torch.equal(mean, torch.zeros(5).double()) and torch.equal(variance, torch.ones(5).double())


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"running_var": None}, {"weight": torch.ones(4)}], ids=str)
def test_what_torch_refuses(settings: dict[str, Any]) -> None:
    given: dict[str, Any] = {"running_mean": torch.zeros(5), "running_var": torch.ones(5), "training": True} | settings
    with batch_last(), pytest.raises((RuntimeError, ValueError)):
        F.batch_norm(torch.ones(4, 5, 2, 2), **given)


def test_a_layer_that_writes_over_the_outputs_of_one_network() -> None:
    images, weight, *_ = tensors(SHAPES["images"])
    row = weight[0].requires_grad_()
    with batch_last():
        found = F.relu_(F.batch_norm(images[0], None, None, row, training=True))
    expected = F.relu(F.batch_norm(images[0], None, None, row, training=True))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.square().sum(), row)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_float32_is_as_exact_as_torchs() -> None:
    given = tensors((64, 3, 28, 28), torch.float32)
    exact = one_after_another(*(each.double() for each in given))
    for own, torchs, best in zip(stacked(*given), one_after_another(*given), exact, strict=True):
        error, bound = ((each - best).abs().max().item() for each in (own, torchs))
        assert error <= 2 * bound + 1e-6


def test_numbers_of_threads_give_the_same_bytes() -> None:
    given = tensors(SHAPES["images"], torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(stacked(*given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_modules_and_one_network_alone(affine: bool, track: bool, ours: list[int]) -> None:
    module = nn.BatchNorm2d(5, affine=affine, track_running_stats=track, dtype=torch.float64)
    images = tensors(SHAPES["images"])[0]
    plain, own = nn.BatchNorm2d(5, affine=affine, track_running_stats=track, dtype=torch.float64), module
    expected = plain(images[0])
    with batch_last():
        found = own(images[0])
    torch.testing.assert_close(found, expected)
    assert ours
    if track:
        assert plain.running_var is not None and own.running_var is not None
        torch.testing.assert_close(own.running_var, plain.running_var)
        assert own.num_batches_tracked == 1


def test_layers_that_write_over_its_outputs() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1)).double()
    weights = {name: torch.stack([value.detach() + m for m in range(M)]) for name, value in network.named_parameters()}
    buffers = {name: torch.stack([value] * M) for name, value in network.named_buffers()}
    images = torch.randn(M, 5, 2, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = []
    for ours in (False, True):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}

        def one(rows: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            fresh = {name: value.clone() for name, value in buffers.items()}
            outputs: Tensor = functional_call(network, {**rows, **fresh}, (x,))
            return outputs

        if ours:
            with batch_last():
                outputs = vmap(one)(leaves, buffers, images)
        else:
            rows = [[{n: v[m] for n, v in each.items()} for each in (leaves, buffers)] for m in range(M)]
            outputs = torch.stack([one(own, fresh, images[m]) for m, (own, fresh) in enumerate(rows)])
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), list(leaves.values()))])
    for torchs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-7, atol=1e-7)


def test_what_the_loops_are_not_for_is_left_to_torch(ours: list[int]) -> None:
    images = tensors(SHAPES["images"])[0][0]
    frozen = nn.BatchNorm2d(5, dtype=torch.float64).eval()
    vectors = nn.BatchNorm1d(5, dtype=torch.float64)
    with batch_last():
        torch.testing.assert_close(frozen(images), images / (1 + frozen.eps) ** 0.5)
        vectors(images.flatten(2).mean(2))
    assert not ours


def test_one_value_of_a_channel_is_refused_as_by_torch() -> None:
    with batch_last(), pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
