"""One network at other widths: which groups there are, shapes, attributes, fresh weights, budgets and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from resizable import IMAGE, Separable, UNet, Vae, mlp, trained
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.folding import FrozenAffine, fold
from netspace.networks.widths import (
    Widths,
    count_parameters,
    find_widths,
    macs,
    resized,
    widths_for,
)

HAND_MADE: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...], tuple[int, ...]]] = {
    "unet": (UNet, ("down.0", "middle.0", "up"), (3, 2, 2)),
    "wider unet": (UNet, ("down.0", "middle.0", "up"), (7, 8, 9)),
    "separable": (Separable, ("features.0", "features.6", "features.11"), (3, 2, 4)),
    "vae": (Vae, ("encoder.0", "encoder.2", "start", "decoder.1"), (2, 1, 3, 2)),
    "vae by view": (
        lambda *widths: Vae(*widths, layer=False) if widths else Vae(layer=False),
        ("encoder.0", "encoder.2", "start", "decoder.1"),
        (1, 3, 2, 2),
    ),
    "mlp": (mlp, ("1", "4"), (3, 4)),
}
NAMED: dict[str, Callable[[float], nn.Module]] = {
    "lenetlike": lambda width: archs.build("lenetlike", channels=1, image_size=8, width=width),
    "vanillacnn": lambda width: archs.build("vanillacnn", channels=1, image_size=8, width=width),
    "resnet20": lambda width: archs.build("resnet20", channels=1, image_size=8, width=width),
    "resnet20 without batch norm": lambda width: archs.build(
        "resnet20", channels=1, image_size=8, width=width, batch_norm=False
    ),
}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def check_same(made: nn.Module, expected: nn.Module) -> None:
    """Check that a module is one built at these widths: names, shapes, what layers say of themselves, and outputs."""
    assert shapes_of(made) == shapes_of(expected)
    assert repr(made) == repr(expected)
    expected.load_state_dict(made.state_dict())
    inputs = torch.randn(3, 1, 8, 8)
    outputs, others = (each.eval()(inputs) for each in (made, expected))
    torch.testing.assert_close(outputs, others, rtol=0, atol=0)


def unwritten(module: nn.Module, info: Widths) -> set[str]:
    """Return the layers with weights that no group writes."""
    weights = dict(module.named_parameters())
    written = set()
    for use in (use for group in info.groups for use in group.uses if use.name in weights):
        layer = module.get_submodule(use.name.rpartition(".")[0])
        if use.axis == (1 if isinstance(layer, nn.ConvTranspose2d) and use.name.endswith("weight") else 0):
            written.add(use.name.rpartition(".")[0])
    return {name.rpartition(".")[0] for name in weights} - written


@pytest.mark.parametrize("name", HAND_MADE)
def test_resized_networks_are_those_that_a_factory_builds_at_these_widths(name: str) -> None:
    make, names, widths = HAND_MADE[name]
    module = trained(make())
    info = find_widths(module, IMAGE, name)
    assert info.names == names
    check_same(resized(module, info, widths, 3), make(*widths))
    assert info.shapes(dict(module.named_parameters()), widths) == {
        key: tuple(value.shape) for key, value in make(*widths).named_parameters()
    }
    check_same(resized(module, info, info.full(), 3), make())
    last = {"unet": {"last"}, "wider unet": {"last"}, "separable": {"classifier.1"}, "mlp": {"6"}}
    assert unwritten(module, info) == last.get(name, {"mean", "log_variance", "decoder.3"})


@pytest.mark.parametrize("name", NAMED)
def test_named_architectures_at_half_width_are_those_of_their_factory(name: str) -> None:
    module = trained(NAMED[name](1.0))
    info = find_widths(module, IMAGE, name)
    check_same(resized(module, info, info.at(0.5), 0), NAMED[name](0.5))
    check_same(resized(module, info, info.full(), 0), NAMED[name](1.0))
    assert unwritten(module, info) == {next(reversed([key.rpartition(".")[0] for key, _ in module.named_parameters()]))}
    assert count_parameters(module, info, info.at(0.5)) == sum(each.numel() for each in NAMED[name](0.5).parameters())


def test_folded_networks_have_the_widths_of_their_unfolded_ones() -> None:
    module = trained(NAMED["resnet20"](1.0))
    info, folded = find_widths(module, IMAGE, "it"), fold(module, IMAGE)
    of_folded = find_widths(folded, IMAGE, "it")
    assert of_folded.names == info.names and of_folded.full() == info.full()
    made = resized(folded, of_folded, of_folded.at(0.5), 0)
    expected = dict(NAMED["resnet20 without batch norm"](0.5).named_parameters())
    assert {name: value.shape for name, value in made.named_parameters()} == {k: v.shape for k, v in expected.items()}


def test_affine_maps_that_folding_leaves_are_fresh_again() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), FrozenAffine(torch.rand(4), torch.rand(4)), nn.Conv2d(4, 2, 3))
    info = find_widths(net, IMAGE, "net")
    state = resized(net, info, (3,), 0).state_dict()
    torch.testing.assert_close(state["2.weight"], torch.ones(3))
    torch.testing.assert_close(state["2.bias"], torch.zeros(3))


def test_weights_follow_from_the_seed_and_nothing_else_changes() -> None:
    module = trained(NAMED["resnet20"](1.0))
    info = find_widths(module, IMAGE, "it")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (resized(module, info, info.at(0.5), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert not module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(one["conv1.weight"], nn.Conv2d(1, 8, 3, bias=False).weight)
    assert torch.equal(one["bn1.running_mean"], torch.zeros(8)) and torch.equal(one["bn1.running_var"], torch.ones(8))
    assert not any(each._forward_pre_hooks for each in resized(module, info, info.at(0.5), 1).modules())


def test_all_that_changes_is_trained() -> None:
    module = trained(UNet())
    info = find_widths(module, IMAGE, "unet")
    made = resized(module, info, (2, 2, 2), 0)
    made(torch.randn(4, 1, 8, 8)).square().mean().backward()
    assert made.training and all(value.grad is not None for value in made.parameters())


def test_rates_and_names_give_widths() -> None:
    info = find_widths(UNet(), IMAGE, "unet")
    assert info.full() == info.at(0) == (4, 6, 3)
    assert info.at(0.5) == (2, 3, 2) and info.at(0.99) == (1, 1, 1) and info.at(-1) == (8, 12, 6)
    assert info.named({"up": 2, "down.0": 9}) == (9, 6, 2) and info.named({}) == info.full()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            lambda info: info.named({"middle.1": 3}),
            r"unknown group of channels of unet 'middle.1': did you mean 'middle.0'",
        ),
        (lambda info: info.named({"up": 0}), r"the width of up of unet is a whole number of at least 1, not 0"),
        (lambda info: info.named({"up": 1.5}), r"not 1\.5"),
        (lambda info: info.shapes({}, (1, 2)), r"unet has 3 groups of channels, but 2 widths are given"),
        (lambda info: info.at(1.0), r"gamma is a number below 1, and 0 is the full width; found 1"),
        (lambda info: info.at(float("nan")), r"found nan"),
        (lambda info: info.at(-16.0), r"found -16: give one from -15 to below 1"),
        (
            lambda info: info.named({"up": 10**9}),
            r"is at most 16 times its \d+ channels, not 1,000,000,000: give one up to",
        ),
    ],
)
def test_widths_that_cannot_be(ask: Callable[[Widths], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(find_widths(UNet(), IMAGE, "unet"))


class Flattens(nn.Module):
    """A flattened map, by a view with a `literal` number of values or without."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 3)
        self.literal = literal

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        y = y.view(-1, 4 * 64) if self.literal else y.flatten(1)
        output: Tensor = self.head(y)
        return output


def test_a_view_with_numbers_in_it_is_refused_in_one_sentence() -> None:
    module = Flattens(literal=True)
    info = find_widths(module, IMAGE, "mine")
    for width in (2, 3):
        with pytest.raises(NetspaceError, match=rf"mine with one={width} .*; if its forward has a number") as caught:
            resized(module, info, (width,), 0)
        assert "\n" not in str(caught.value)
    resized(Flattens(literal=False), info, (2,), 0)


@pytest.mark.parametrize(
    "between",
    [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        nn.Sequential(nn.GroupNorm(2, 4)),
        nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    ],
)
def test_layers_that_cut_channels_into_parts_keep_theirs(between: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), between, nn.Conv2d(4, 3, 3))
    with pytest.raises(NetspaceError, match="net has no group of channels whose width can change"):
        find_widths(net, IMAGE, "net")
    longer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), between, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3))
    assert find_widths(longer, IMAGE, "net").full() == (5,)


def test_networks_without_widths_are_refused() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    tied = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    tied[1].weight = tied[0].weight
    for module, words in (
        (Decides(), r"cannot .* torch\.fx cannot trace its forward"),
        (tied, r"the widths of net cannot change: 1\.weight are also parameters by other names"),
        (nn.Linear(3, 4), r"net does not run on an example of shape \(2, 1, 8, 8\)"),
        (nn.Conv2d(1, 4, 3), r"net has no group of channels whose width can change"),
    ):
        with pytest.raises(NetspaceError, match=words):
            find_widths(module, IMAGE, "net")


def by_hand(widths: Sequence[int]) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of the U-Net."""
    down, middle, side = widths
    weights = 9 * down, 9 * down * middle, 4 * middle * side, 9 * 2 * (down + side)
    parameters = sum(weights) + 3 * down + middle + side + 2
    return parameters, 64 * weights[0] + 16 * weights[1] + 16 * weights[2] + 64 * weights[3]


@pytest.mark.parametrize("widths", [(4, 6, 3), (2, 1, 5)])
def test_parameters_and_multiply_accumulates(widths: tuple[int, ...]) -> None:
    module = UNet()
    info = find_widths(module, IMAGE, "unet")
    parameters, operations = by_hand(widths)
    assert count_parameters(module, info, widths) == parameters
    assert macs(module, info, widths) == operations
    assert sum(each.numel() for each in resized(module, info, widths, 0).parameters()) == parameters


@pytest.mark.parametrize("unit", ["parameters", "flops"])
def test_the_widest_network_within_a_budget(unit: str) -> None:
    module = UNet()
    info = find_widths(module, IMAGE, "unet")
    every = {info.at(step / 2000) for step in range(2000)}
    costs = {each: by_hand(each)[0] if unit == "parameters" else 2 * by_hand(each)[1] for each in every}
    for budget in (costs[1, 1, 1], costs[2, 3, 2], costs[2, 3, 2] - 1, costs[4, 6, 3]):
        widths = info.at(widths_for(module, info, **{unit: budget}))
        assert costs[widths] == max(cost for cost in costs.values() if cost <= budget)
    for budget in (costs[1, 1, 1] - 1, costs[4, 6, 3] + 1):
        with pytest.raises(
            UsageError, match=rf"unet has {costs[1, 1, 1]:,} .* and {costs[4, 6, 3]:,} at its full width"
        ):
            widths_for(module, info, **{unit: budget})
    with pytest.raises(UsageError, match="give one of the two"):
        widths_for(module, info)
