"""Weights at other widths: chosen, first and interpolated channels against oracles; flexible forwards; batch norm's statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from resizable import IMAGE, Separable, UNet, Vae, mlp, trained
from torch import Tensor, nn
from torch.func import functional_call

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.folding import fold, unfold
from netspace.networks.graph import batch_norms
from netspace.networks.resizing import (
    chosen_channels,
    first_channels,
    interpolated_channels,
    interpolation,
    recalibrate,
    resampled,
    summed_axes,
    with_channels,
    with_first_channels,
    with_statistics,
)
from netspace.networks.widths import find_widths, flexible, resized

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "separable": Separable,
    "vae": Vae,
    "mlp": mlp,
    "resnet8": lambda: archs.build("resnet8", channels=1, image_size=8, width=0.5),
}


def outputs(module: nn.Module, inputs: Tensor) -> list[Tensor]:
    given = module(inputs)
    return [given] if isinstance(given, Tensor) else list(given)


def close(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-9) -> None:
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_without_channels_that_nothing_reads_stay_the_same(name: str) -> None:
    """Channels are cut that every layer reads with weight 0: what stays is the function."""
    module = trained(NETWORKS[name]()).double()
    info = find_widths(module, IMAGE.double(), name)
    keep = [torch.arange(size)[1::2] if size > 1 else torch.arange(1) for size in info.full()]
    state, summed = module.state_dict(), summed_axes(module)
    for group, kept in zip(info.groups, keep, strict=True):
        cut = torch.ones(group.size, dtype=torch.bool)
        cut[kept] = False
        for use in group.uses:
            if (use.name, use.axis) in summed:
                entries = use.start + torch.arange(group.size * use.repeats)[cut.repeat_interleave(use.repeats)]
                state[use.name].index_fill_(use.axis, entries, 0.0)
    inputs = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    close(outputs(with_channels(module, info, keep), inputs), outputs(module, inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_first_channels_are_a_corner_of_each_tensor(name: str) -> None:
    module = trained(NETWORKS[name]())
    info = find_widths(module, IMAGE, name)
    widths = info.at(0.5)
    made = with_first_channels(module, info, widths)
    chosen = chosen_channels(module.state_dict(), info, [torch.arange(width) for width in widths])
    assert all(torch.equal(value, chosen[key]) for key, value in made.state_dict().items())
    full = module.state_dict()
    if name not in (
        "unet",
        "vae",
        "separable",
    ):  # there a tensor's axis has other parts, or several entries of a channel
        for key, value in made.state_dict().items():
            assert torch.equal(value, full[key][tuple(slice(length) for length in value.shape)])
    same = with_first_channels(module, info, info.full()).state_dict()
    assert all(torch.equal(value, full[key]) for key, value in same.items())


def test_first_channels_where_maps_are_joined_made_and_flattened() -> None:
    unet, vae = trained(UNet()), trained(Vae())
    narrow = with_first_channels(unet, find_widths(unet, IMAGE, "unet"), (3, 2, 2)).state_dict()
    weight = unet.state_dict()["last.weight"]
    assert torch.equal(narrow["last.weight"], weight[:, [0, 1, 2, 4, 5]])
    assert torch.equal(narrow["middle.1.running_var"], unet.state_dict()["middle.1.running_var"][:2])
    narrow = with_first_channels(vae, find_widths(vae, IMAGE, "vae"), (2, 3, 2, 1)).state_dict()
    assert torch.equal(narrow["mean.weight"], vae.state_dict()["mean.weight"][:, :12])
    assert torch.equal(narrow["start.weight"], vae.state_dict()["start.weight"][:8])
    with pytest.raises(UsageError, match=r"encoder\.2 of vae has 4 channels at most here, not 5"):
        first_channels(vae.state_dict(), find_widths(vae, IMAGE, "vae"), (2, 5, 2, 1))


@pytest.mark.parametrize(("size", "width"), [(8, 4), (7, 3), (5, 1), (4, 4), (3, 8), (1, 4)])
def test_interpolation_is_numpys(size: int, width: int) -> None:
    values = np.random.default_rng(0).normal(size=size)
    expected = np.interp((np.arange(width) + 0.5) / width, (np.arange(size) + 0.5) / size, values)
    np.testing.assert_allclose(interpolation(size, width).numpy() @ values, expected, rtol=1e-12)


def test_resampled_layers_are_interpolated_on_both_axes_and_sums_keep_their_size() -> None:
    module = trained(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    module.double()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    info = find_widths(module, IMAGE.double(), "net")
    found = {key: value.numpy() for key, value in resampled(module, info, (4, 3)).state_dict().items()}

    def half(value: np.ndarray, axis: int) -> np.ndarray:
        """At half the width each new channel is in the middle of two."""
        even, odd = (np.take(value, range(start, value.shape[axis], 2), axis) for start in (0, 1))
        return (even + odd) / 2

    np.testing.assert_allclose(found["0.weight"], half(state["0.weight"], 0))
    np.testing.assert_allclose(found["0.bias"], half(state["0.bias"], 0))
    for key in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        np.testing.assert_allclose(found[key], half(state[key], 0))
    np.testing.assert_allclose(found["2.weight"], 2 * half(half(state["2.weight"], 0), 1))
    np.testing.assert_allclose(found["4.weight"], 2 * half(state["4.weight"], 1))
    np.testing.assert_array_equal(found["4.bias"], state["4.bias"])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_equal_channels_stay_the_same_at_any_width(name: str) -> None:
    """Where all channels of a group are copies of one, fewer or more of them compute the same."""
    module = trained(NETWORKS[name]()).double()
    info, state = find_widths(module, IMAGE.double(), name), module.state_dict()
    one = chosen_channels(state, info, [torch.zeros(size, dtype=torch.int64) for size in info.full()])
    module.load_state_dict(one)
    inputs = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    for widths in (info.at(0.4), info.at(-0.5), info.full()):
        close(outputs(resampled(module, info, widths), inputs), outputs(module, inputs))


def test_all_ways_are_differentiable() -> None:
    module = UNet()
    info = find_widths(module, IMAGE, "unet")
    weights = dict(module.named_parameters())
    for narrow in (first_channels(weights, info, (2, 3, 2)), interpolated_channels(weights, info, (2, 3, 2), ())):
        torch.stack([value.square().sum() for value in narrow.values()]).sum().backward()
        gradient = module.last.weight.grad
        assert gradient is not None and gradient.abs().sum() > 0
        module.zero_grad()


@pytest.mark.parametrize("name", NETWORKS)
def test_flexible_networks_take_weights_of_any_widths(name: str) -> None:
    module = trained(NETWORKS[name]())
    info = find_widths(module, IMAGE, name)
    made, inputs = flexible(module).train(), torch.randn(4, 1, 8, 8)
    for widths in (info.full(), info.at(0.5), info.at(-1), info.full()):
        plain = resized(module, info, widths, 1)
        torch.manual_seed(0)  # dropout, and noise of the latent
        expected = outputs(plain, inputs)
        torch.manual_seed(0)
        given = functional_call(made, dict(plain.named_parameters()), (inputs,))
        close([given] if isinstance(given, Tensor) else list(given), expected)
    assert not any("running" in key for key in made.state_dict())
    assert not any(each._forward_pre_hooks for each in module.modules())


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, momentum=0.3)
    )
    module.double()
    batches = [torch.randn(5, 1, 8, 8, dtype=torch.float64) for _ in range(3)]
    before = {key: value.clone() for key, value in module.named_parameters()}
    assert recalibrate(module, batches) is module

    means, variances, deeper = [], [], []
    for batch in batches:
        hidden = nn.functional.conv2d(batch, before["0.weight"], before["0.bias"])
        mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3))
        means.append(mean)
        variances.append(variance)
        biased = hidden.var((0, 2, 3), correction=0)
        normal = (hidden - mean.view(3, 1, 1)) / (biased + 1e-5).sqrt().view(3, 1, 1)
        deeper.append(nn.functional.conv2d(normal, before["3.weight"], before["3.bias"]).mean((0, 2, 3)))
    for value, expected in (("1.running_mean", means), ("1.running_var", variances), ("4.running_mean", deeper)):
        torch.testing.assert_close(module.get_buffer(value), torch.stack(expected).mean(0))
    assert not any(each.training for each in module.modules())
    assert [each.momentum for each in module if isinstance(each, nn.BatchNorm2d)] == [0.1, 0.3]
    assert all(torch.equal(value, before[key]) for key, value in module.named_parameters())


def test_networks_without_batch_norm_are_not_run() -> None:
    recalibrate(mlp()[:2], iter(()))

    def fails() -> Tensor:
        raise AssertionError

    recalibrate(nn.Linear(2, 2), (fails() for _ in range(1)))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("vae", "mlp")])
@torch.no_grad()
def test_norms_take_the_statistics_of_their_inputs_and_the_function_stays(name: str) -> None:
    """Each norm's inputs, collected plainly, have the mean and variance that it says; outputs stay to rounding."""
    module, random = trained(NETWORKS[name]()).eval(), torch.Generator().manual_seed(3)
    batches = [torch.randn(count, *IMAGE.shape[1:], generator=random) for count in (7, 5)]
    made = with_statistics(module, batches, name)
    close(outputs(module.double(), batches[0].double()), outputs(made.double(), batches[0].double()), 1e-6)
    affine = 0
    for norm in batch_norms(made).values():
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        for each in batches:
            made(each.double())
        handle.remove()
        rows = torch.cat([each.transpose(0, 1).flatten(1) for each in seen], dim=1)
        assert norm.running_mean is not None and norm.running_var is not None
        agrees = torch.allclose(norm.running_mean, rows.mean(1), atol=1e-5)
        agrees &= torch.allclose(norm.running_var, rows.var(1), rtol=1e-4, atol=1e-5)
        assert agrees == norm.affine  # without weights it would have to change the function
        affine += norm.affine
    assert affine


@torch.no_grad()
def test_an_unfolded_network_normalises_again() -> None:
    """The network, folded and unfolded, normalises in training by about what it says, as the network did that was trained."""
    module, random = trained(NETWORKS["resnet8"]()).eval(), torch.Generator().manual_seed(4)
    inputs = torch.randn(64, *IMAGE.shape[1:], generator=random)
    folded = dict(fold(module, IMAGE).named_parameters())
    again = with_statistics(unfold(NETWORKS["resnet8"](), folded, IMAGE), [inputs], "resnet8")
    torch.testing.assert_close(again(inputs), module(inputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.train()(inputs), module(inputs), rtol=0.05, atol=0.05)


def test_a_network_that_reads_its_norms_is_refused() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            assert self.norm.running_var is not None
            value: Tensor = self.norm(x) * self.norm.running_var.sum()
            return value

    with pytest.raises(NetspaceError, match="reading computes something else once its batch norms"):
        with_statistics(Reading().eval(), [3 * torch.rand(4, 1, 8, 8)], "reading")
