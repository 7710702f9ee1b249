"""The U-Net and the convolutional VAE: what they compute, their sizes, their groups of channels, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspace import archs
from netspace.archs.identity import check_identity, check_outputs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.channels import channel_groups, permute
from netspace.networks.folding import fold
from netspace.networks.graph import in_float64, trace

CASES: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...], int]] = [
    ("unet", {"channels": 2, "classes": 5, "image_size": 12, "width": 0.25}, (2, 12, 12), (5, 12, 12), 10),
    ("conv_vae", {"channels": 3, "image_size": 12, "latent": 4, "width": 0.125}, (3 * 144 + 4,), (3 * 144 + 8,), 6),
]


def made(name: str, settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The network as zoos hold it, in float64, its biases not zero, and three inputs."""
    torch.manual_seed(0)
    net = in_float64(archs.skeleton(name, settings, shape))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return net, torch.randn(3, *shape, dtype=torch.float64)


def blocks(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    for layer in (0, 3):
        x = F.leaky_relu(
            F.conv2d(x, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"], padding=1), 0.01
        )
    return x


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_unet_joins_maps_of_the_way_down_and_up() -> None:
    name, settings, shape, *_ = CASES[0]
    net, x = made(name, settings, shape)
    weights = dict(net.named_parameters())
    fine = blocks(weights, "down1", x)
    middle = blocks(weights, "down2", F.max_pool2d(fine, 2))
    up = doubled(blocks(weights, "bottom", F.max_pool2d(middle, 2)))
    up = doubled(blocks(weights, "up2", torch.cat([up, middle], 1)))
    up = blocks(weights, "up1", torch.cat([up, fine], 1))
    expected = (
        torch.einsum("bchw,kc->bkhw", up, weights["head.weight"][:, :, 0, 0]) + weights["head.bias"][:, None, None]
    )
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_a_vae_draws_its_latent_with_the_noise_of_its_input() -> None:
    name, settings, shape, *_ = CASES[1]
    net, x = made(name, settings, shape)
    weights, images, noise = dict(net.named_parameters()), x[:, :432].view(3, 3, 12, 12), x[:, 432:]

    def layer(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1)

    h = F.leaky_relu(layer(F.leaky_relu(layer(images, "encoder.0", 2), 0.01), "encoder.2", 2), 0.01)
    h = F.leaky_relu(layer(h, "encoder.4"), 0.01).flatten(1)
    mean, log_variance = (
        h @ weights[f"{head}.weight"].T + weights[f"{head}.bias"] for head in ("mean", "log_variance")
    )
    z = mean + log_variance.mul(0.5).exp() * noise
    maps = (
        torch.einsum("be,echw->bchw", z, weights["decoder.conv1.weight"]) + weights["decoder.conv1.bias"][:, None, None]
    )
    maps = F.leaky_relu(layer(doubled(F.leaky_relu(maps, 0.01)), "decoder.conv2"), 0.01)
    maps = F.leaky_relu(layer(doubled(maps), "decoder.conv3"), 0.01)
    expected = torch.cat([layer(maps, "decoder.conv4").flatten(1), mean, log_variance], 1)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.decode(z).flatten(1), expected[:, :432], rtol=0, atol=1e-12)


def test_a_vae_does_not_overflow() -> None:
    net = archs.build("conv_vae", image_size=8, latent=2, width=0.1)
    with torch.no_grad():
        net.log_variance.bias.copy_(torch.tensor([1e6, -1e6]))
    outputs = net(torch.randn(4, 66))
    assert outputs.isfinite().all() and outputs[0, -2:].tolist() == [12, -12]


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_they_take_every_image_whose_side_is_a_multiple_of_four(side: int, channels: int) -> None:
    size = {"channels": channels, "image_size": side, "width": 0.25}
    assert archs.build("unet", classes=7, **size)(torch.randn(2, channels, side, side)).shape == (2, 7, side, side)
    pixels = channels * side**2
    assert archs.build("conv_vae", latent=5, **size)(torch.randn(2, pixels + 5)).shape == (2, pixels + 10)


@pytest.mark.parametrize(("name", "settings", "shape", "outputs", "groups"), CASES)
def test_they_are_their_parameters_and_can_be_traced(
    name: str, settings: dict[str, Any], shape: tuple[int, ...], outputs: tuple[int, ...], groups: int
) -> None:
    check_identity(name, lambda: archs.build(name, **settings), shape)
    check_outputs(name, lambda: archs.build(name, **settings), torch.randn(2, *shape), outputs, trained=True)
    assert len(list(trace(archs.build(name, **settings), name, "look at").nodes)) > 10


@pytest.mark.parametrize(("name", "settings", "shape", "outputs", "groups"), CASES)
def test_all_hidden_channels_may_be_permuted(
    name: str, settings: dict[str, Any], shape: tuple[int, ...], outputs: tuple[int, ...], groups: int
) -> None:
    """Those that are concatenated, too; classes, pixels and latents may not, nor may channels be permuted in part."""
    net, x = made(name, settings, shape)
    found = channel_groups(net, x, name)
    assert len(found) == groups
    before = net(x)
    for group in found:
        state = {key: value.detach()[None] for key, value in net.named_parameters()}
        order = torch.arange(group.size).roll(1)[None]
        moved = {key: value[0] for key, value in permute(state, group, order).items()}
        after = torch.func.functional_call(net, moved, (x,))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
        first = next(iter(moved))
        in_part = torch.func.functional_call(net, {first: moved[first]}, (x,))
        assert not torch.allclose(in_part, before, rtol=0, atol=1e-6)


def test_a_unet_without_batch_norm_has_the_state_of_a_folded_one() -> None:
    settings = CASES[0][1]
    x = torch.randn(2, 2, 12, 12)
    folded, plain = fold(archs.build("unet", **settings), x), archs.build("unet", **settings, batch_norm=False).eval()
    assert [*plain.state_dict()] == [*folded.state_dict()]
    plain.load_state_dict(folded.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), folded(x))
    counts = [sum(value.numel() for value in each.parameters()) for each in (plain, archs.build("unet", **settings))]
    assert counts[1] - counts[0] == 2 * (4 + 8 + 16 + 8 + 4)  # a convolution and its norm have one value a channel more


def test_settings_of_a_task_go_before_those_of_shapes() -> None:
    """A segmentation has more outputs than classes; a VAE's input is one row."""
    assert archs.task_settings("unet", {}, (3, 32, 32), 11 * 1024, {"classes": 11}) == {
        "channels": 3,
        "image_size": 32,
        "classes": 11,
    }
    own = {"channels": 1, "image_size": 28, "latent": 16}
    assert archs.task_settings("conv_vae", {"width": 0.5}, (800,), 816, own) == {"width": 0.5, **own}
    with pytest.raises(UsageError) as caught:
        archs.task_settings("conv_vae", {"latent": 8}, (800,), 816, own)
    assert str(caught.value) == (
        "conv_vae is built with latent=8 but the task has latent=16: set latent to fit, or leave it out."
    )


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "unet",
            {"image_size": 30},
            "unet halves images twice, so image_size is a multiple of 4, not 30: resize the images.",
        ),
        ("unet", {"batch_norm": 1}, "unet needs batch_norm to be true or false, not 1."),
        ("conv_vae", {"image_size": 10}, "conv_vae halves images twice, so image_size is a multiple of 4, not 10"),
        ("conv_vae", {"latent": 0}, "conv_vae needs latent to be a whole number from 1 to 4096, not 0."),
        ("conv_vae", {"width": -1}, "conv_vae needs width to be a number above 0 (1 is the original), not -1."),
    ],
)
def test_settings_out_of_range_are_told(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        archs.build(name, **settings)
    assert str(caught.value).startswith(sentence)


def test_outputs_of_another_shape_are_told() -> None:
    with pytest.raises(
        NetspaceError, match=r"unet gives outputs of \(10, 32, 32\) in evaluation, but the task has \(5, 32, 32\) "
    ):
        check_outputs(
            "unet",
            lambda: archs.build("unet", width=0.1),
            torch.zeros(2, 3, 32, 32),
            (5, 32, 32),
            trained=False,
            nouns=("images", "logits"),
        )
