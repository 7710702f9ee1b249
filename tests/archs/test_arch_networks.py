"""The named architectures: the paper's parameter counts, any image, one state folded or built plain."""

from __future__ import annotations

import pytest
import torch
from helpers import IMAGE_ARCHS
from torch import nn

from netspace import archs
from netspace.archs.convnets import LARGEST, SMALLEST, scaled
from netspace.errors import UsageError
from netspace.networks.folding import Folder, fold

CIFAR = {"channels": 3, "image_size": 32, "classes": 10}
TINY_IMAGENET = {"channels": 3, "image_size": 64, "classes": 200}
RESNETS = ["resnet8", "resnet20", "resnet32", "resnet56"]


def size(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("name", "cifar", "tiny"),
    [
        ("lenetlike", 62_006, 79_612),
        ("vanillacnn", 68_818, 112_856),
        ("resnet8", 78_042, 128_792),
        ("resnet32", 466_906, 517_656),
        ("resnet56", 855_770, 906_520),
        ("resnet20", 272_474, 323_224),  # not in the paper: what the rule of the others gives
    ],
)
def test_parameter_counts_are_the_papers(name: str, cifar: int, tiny: int) -> None:
    """netspace.md, Suppl., Tab. I."""
    assert size(archs.build(name, **CIFAR)) == cifar == size(archs.build(name))
    assert size(archs.build(name, **TINY_IMAGENET)) == tiny


def test_a_folded_resnet8_has_a_bias_for_each_batch_norm() -> None:
    assert size(archs.skeleton("resnet8", CIFAR, (3, 32, 32))) == 77_706


@pytest.mark.parametrize("name", IMAGE_ARCHS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_every_architecture_takes_every_image(name: str, channels: int, side: int) -> None:
    net = archs.build(name, channels=channels, image_size=side, classes=7, width=0.5).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, channels, side, side))
    assert logits.shape == (2, 7) and logits.isfinite().all()


@pytest.mark.parametrize("name", ["lenetlike", "vanillacnn", "resnet8"])
def test_every_side_within_the_limits_is_seen_whole(name: str) -> None:
    """Maps never vanish, and the last third of the image reaches the logits."""
    for side in [*range(SMALLEST, 70), 95, 128, LARGEST]:
        net = archs.build(name, channels=1, image_size=side, width=0.1).eval()
        x = torch.randn(1, 1, side, side, requires_grad=True)
        net(x).square().sum().backward()
        assert x.grad is not None and x.grad[..., -(side // 3) :, -(side // 3) :].abs().sum() > 0


@pytest.mark.parametrize("name", RESNETS)
def test_plain_and_folded_states_are_the_same(name: str) -> None:
    settings = {"channels": 1, "classes": 3, "image_size": 8, "width": 0.25}
    plain = archs.build(name, **settings, batch_norm=False).eval()
    x = torch.randn(2, 1, 8, 8)
    folded = fold(archs.build(name, **settings), x)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert list(shapes) == [key for key, _ in folded.named_parameters()]
    assert shapes == {key: value.shape for key, value in folded.state_dict().items()}
    plain.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), folded(x))
    assert Folder(archs.build(name, **settings), x).shapes == {key: tuple(shape) for key, shape in shapes.items()}


def test_the_names_of_a_folded_resnet() -> None:
    keys = list(archs.skeleton("resnet8", {}, (3, 32, 32)).state_dict())
    assert keys[:4] == ["conv1.weight", "conv1.bias", "layer1.0.conv1.weight", "layer1.0.conv1.bias"]
    assert keys[-4:] == ["layer3.0.downsample.0.weight", "layer3.0.downsample.0.bias", "fc.weight", "fc.bias"]


@pytest.mark.parametrize("name", [name for name in IMAGE_ARCHS if name not in ("morph_lenet", "small_cnn")])
def test_all_activations_are_leaky(name: str) -> None:
    slopes = {m.negative_slope for m in archs.build(name).modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.01}


@pytest.mark.parametrize("name", archs.ARCHS)
def test_width_scales_and_one_is_exact(name: str) -> None:
    sizes = [size(archs.build(name, width=width)) for width in (0.01, 0.5, 1, 1.0, 2)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3] < sizes[4]


def test_scaled_rounds_half_up_and_keeps_two() -> None:
    assert [scaled(5, width) for width in (0.01, 0.3, 0.5, 0.7, 1, 1.1, 3)] == [2, 2, 3, 4, 5, 6, 15]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"channels": 0}, "resnet8 needs channels to be a whole number of at least 1, not 0."),
        ({"classes": 2.5}, "resnet8 needs classes to be a whole number of at least 1, not 2.5."),
        ({"classes": True}, "resnet8 needs classes to be a whole number of at least 1, not True."),
        ({"width": 0}, "resnet8 needs width to be a number above 0 (1 is the original), not 0."),
        ({"width": "wide"}, "resnet8 needs width to be a number above 0 (1 is the original), not 'wide'."),
        ({"width": float("nan")}, "resnet8 needs width to be a number above 0 (1 is the original), not nan."),
        (
            {"image_size": 300},
            "resnet8 takes square images of 8 to 224 pixels a side, not image_size=300: resize the images.",
        ),
        ({"batch_norm": "yes"}, "resnet8 needs batch_norm to be true or false, not 'yes'."),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        archs.build("resnet8", **settings)
    assert str(caught.value) == sentence


def test_a_resnet_by_its_depth_is_the_named_one() -> None:
    named, by_depth = archs.build("resnet14", width=0.25), archs.build("resnet", depth=14, width=0.25)
    shapes = [[(name, value.shape) for name, value in each.state_dict().items()] for each in (named, by_depth)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("depth", [2, 13, "14", True])
def test_a_depth_that_no_resnet_has_is_refused(depth: object) -> None:
    with pytest.raises(UsageError, match=r"^resnet needs depth to be 8, 14, 20, 26 and so on"):
        archs.build("resnet", depth=depth)


def test_the_small_cnn_is_that_of_its_zoo() -> None:
    """3 convolutions of 16 channels and a linear layer: 4,970 parameters."""
    net = archs.build("small_cnn", activation="tanh")
    assert size(net) == 160 + 2 * 2320 + 170 and sum(isinstance(m, nn.Tanh) for m in net.modules()) == 3
    for settings in ({"activation": "gelu"}, {"padding": 2}, {"padding": 0, "image_size": 14}):
        with pytest.raises(UsageError, match="small_cnn needs activation to be one of relu, tanh, and padding 0"):
            archs.build("small_cnn", **settings)
