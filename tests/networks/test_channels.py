"""Groups of channels by their graph, and alignment: functions stay, planted orders are found, distances fall."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError
from netspace.networks.alignment import align, check_same_function, reset_statistics
from netspace.networks.batch import run_one
from netspace.networks.channels import ChannelGroup, Use, channel_groups, permute
from netspace.networks.folding import FrozenAffine
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec

IMAGE = (1, 8, 8)


class Forward(nn.Module):
    """Layers, and what their forward is."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def residual() -> nn.Module:
    layers = {"stem": nn.Conv2d(1, 6, 3, padding=1), "one": nn.Conv2d(6, 5, 3, padding=1)}
    layers |= {"two": nn.Conv2d(5, 6, 3, padding=1), "head": nn.Linear(6, 3)}
    return Forward(
        lambda self, x: self.head(F.relu((y := self.stem(x)) + self.two(F.relu(self.one(y)))).mean((2, 3))), **layers
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.PReLU(8)),
        *(nn.Conv2d(8, 5, 1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(20, 3)),
    )


def joined() -> nn.Module:
    layers = {"left": nn.Conv2d(1, 3, 3, padding=1), "right": nn.Conv2d(1, 5, 3, padding=1), "last": nn.Conv2d(8, 4, 1)}
    layers["head"] = nn.Linear(4 * 64, 3)
    return Forward(
        lambda self, x: self.head(torch.relu(self.last(torch.cat([self.left(x), self.right(x)], 1))).flatten(1)),
        **layers,
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 6, 3), nn.GELU(), nn.Conv2d(6, 2, 8), nn.Flatten()
    )


def unflattened() -> nn.Module:
    layers = {
        "one": nn.Linear(64, 12),
        "two": nn.ConvTranspose2d(3, 4, 2),
        "affine": FrozenAffine(torch.rand(4), torch.rand(4)),
    }
    layers |= {"skip": nn.Linear(12, 2), "head": nn.Linear(36, 2)}

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.one(x.flatten(1)).relu()
        return self.skip(y) + self.head(torch.tanh(self.affine(self.two(y.view(-1, 3, 2, 2)))).flatten(1))

    return Forward(forward, **layers)


def groups_of(module: nn.Module) -> tuple[ChannelGroup, ...]:
    return channel_groups(module.eval(), torch.randn(2, *IMAGE), "mine")


def spec_of(module: nn.Module) -> NetSpec:
    return NetSpec.from_module(module, "mine", {}, IMAGE)


def flat_of(module: nn.Module, count: int = 3) -> Tensor:
    """Random parameters (count, P) in float64."""
    return torch.randn(count, sum(each.numel() for each in module.parameters()), dtype=torch.float64) / 3


def shuffled(flat: Tensor, spec: NetSpec, groups: tuple[ChannelGroup, ...]) -> Tensor:
    """The same networks with the channels of every group in random orders."""
    tensors = unflatten(flat, spec)
    for group in groups:
        orders = torch.stack([torch.randperm(group.size) for _ in flat])
        tensors = {**tensors, **permute(tensors, group, orders)}
    return torch.cat([tensors[name].flatten(1) for name in spec.names], 1)


NAMED = {
    name: lambda name=name: archs.skeleton(name, {"channels": 1, "image_size": 8, "width": 0.5}, IMAGE)
    for name in ("lenetlike", "vanillacnn", "resnet8", "resnet20")
}
NETWORKS = {
    "residual": residual,
    "depthwise": depthwise,
    "joined": joined,
    "transposed": transposed,
    "unflattened": unflattened,
    **NAMED,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_of_a_group_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]().double().eval()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    flat, inputs = flat_of(module), torch.randn(4, *IMAGE, dtype=torch.float64)
    moved = shuffled(flat, spec, groups)
    assert groups and not torch.equal(flat, moved)
    for before, after in zip(flat, moved, strict=True):
        torch.testing.assert_close(
            run_one(module, spec, after, inputs), run_one(module, spec, before, inputs), rtol=1e-9, atol=1e-9
        )
    check_same_function(module, spec, flat, moved, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_orders_are_found(name: str) -> None:
    torch.manual_seed(1)
    module = NETWORKS[name]().double().eval()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    reference = flat_of(module, 1)[0]
    noisy = reference + 0.01 * flat_of(module, 4)
    moved = shuffled(noisy, spec, groups)
    found = align(reference, moved, spec, groups)
    torch.testing.assert_close(found, noisy)


def test_residual_streams_share_a_group() -> None:
    module = residual()
    groups = groups_of(module)
    assert sorted(group.size for group in groups) == [5, 6]
    stream = next(group for group in groups if group.size == 6)
    assert {(use.name, use.axis) for use in stream.uses} == {
        *(
            ("stem.weight", 0),
            ("stem.bias", 0),
            ("one.weight", 1),
            ("two.weight", 0),
            ("two.bias", 0),
            ("head.weight", 1),
        ),
    }


def test_a_flattened_map_repeats_channels_and_joined_ones_lie_one_after_the_other() -> None:
    uses = {(use.name, use.start, use.repeats) for group in groups_of(joined()) for use in group.uses}
    assert ("head.weight", 0, 64) in uses and {("last.weight", 0, 1), ("last.weight", 3, 1)} <= uses
    assert {use.repeats for group in groups_of(depthwise()) for use in group.uses if use.name == "2.weight"} == {2}


def test_a_map_made_of_linear_outputs_gives_each_channel_several_of_them() -> None:
    first, second = groups_of(unflattened())
    assert {(use.name, use.axis, use.repeats) for use in first.uses} == {
        *(("one.weight", 0, 4), ("one.bias", 0, 4), ("skip.weight", 1, 4), ("two.weight", 0, 1)),
    }
    assert first.size == 3 and second.size == 4
    assert {use.name for use in second.uses} == {
        "two.weight",
        "two.bias",
        "affine.weight",
        "affine.bias",
        "head.weight",
    }


def test_linear_outputs_that_become_maps_of_several_sizes_stay() -> None:
    module = Forward(
        lambda self, x: self.two((y := self.one(x.flatten(1))).view(-1, 3, 2, 2)).flatten(1) + self.head(y.unflatten(1, (6, 2)).mean(2)),
        one=nn.Linear(64, 12), two=nn.Conv2d(3, 1, (1, 2)), head=nn.Linear(6, 2),
    )  # fmt: skip
    assert groups_of(module) == ()


def test_all_of_resnet20_moves_but_images_and_classes() -> None:
    module = NAMED["resnet20"]()
    used = {(use.name, use.axis) for group in groups_of(module) for use in group.uses}
    rest = {(name, axis) for name, value in module.named_parameters() for axis in range(min(value.dim(), 2))} - used
    assert rest == {("conv1.weight", 1), ("fc.weight", 0), ("fc.bias", 0)}


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.head(torch.relu(self.one(x)).roll(1, 1).mean((2, 3))),  # channels change places
        lambda self, x: self.head(self.one(x).softmax(1).mean((2, 3))[:, [1, 0, 2, 3]]),
        lambda self, x: self.head((self.one(x) * torch.arange(4.0).view(1, 4, 1, 1)).mean((2, 3))),
        lambda self, x: self.head(self.one(x).flatten(2).transpose(1, 2).mean(1)),
        lambda self, x: self.head(self.one(x).view(-1, 2, 2, 36).mean((3,)).flatten(1)),
        lambda self, x: self.head(torch.cat(self.one(x).chunk(2, 1)[::-1], 1).mean((2, 3))),
        lambda self, x: self.head((self.one(x) * self.one.bias.view(4, 1, 1)).mean((2, 3))),
        lambda self, x: self.head((self.one(x) + self.one.weight.flatten()[:6]).mean((2, 3))),
    ],
)
def test_what_is_not_certain_stays(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert groups_of(Forward(forward, one=nn.Conv2d(1, 4, 3), head=nn.Linear(4, 3))) == ()


class ActivatedNorm(nn.BatchNorm2d):
    """Batch norm with more in its forward, which folding keeps."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input)).roll(1, 1)


def test_norms_that_stay_move_only_where_nothing_of_them_is_the_architectures() -> None:
    def network(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 2))

    (group,) = groups_of(network(nn.BatchNorm2d(4)))  # mean 0 and variance 1 in every channel
    assert {use.name for use in group.uses} == {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight"}
    trained = nn.BatchNorm2d(4)
    trained.running_mean.copy_(torch.arange(4.0))
    assert groups_of(network(trained)) == groups_of(network(ActivatedNorm(4))) == ()


def test_sizes_of_a_value_are_not_its_channels() -> None:
    sized = Forward(
        lambda self, x: self.head(self.one(x).view(x.size(0), -1)), one=nn.Conv2d(1, 4, 3), head=nn.Linear(144, 3)
    )
    shaped = Forward(
        lambda self, x: self.head(self.one(x).view(x.shape[0], -1)), one=nn.Conv2d(1, 4, 3), head=nn.Linear(144, 3)
    )
    assert groups_of(sized) == groups_of(shaped) and len(groups_of(sized)) == 1


def test_layers_used_twice_are_tied() -> None:
    module = Forward(
        lambda self, x: self.head(self.two(torch.relu(self.two(torch.relu(self.one(x))))).mean((2, 3))),
        one=nn.Conv2d(1, 4, 1), two=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 2),
    )  # fmt: skip
    (group,) = groups_of(module)
    assert {("two.weight", 0), ("two.weight", 1)} <= {(use.name, use.axis) for use in group.uses}
    module.double()
    spec, flat = spec_of(module), flat_of(module)
    check_same_function(module, spec, flat, shuffled(flat, spec, (group,)), torch.randn(2, *IMAGE))


def test_alignment_is_the_best_of_all_orders_where_one_layer_is_hidden() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    reference, other = flat_of(module, 2)
    found = align(reference, other[None], spec, groups)[0]
    orders = torch.tensor(list(itertools.permutations(range(5))))
    tensors = {name: value.expand(len(orders), *value.shape) for name, value in unflatten(other, spec).items()}
    every = {**tensors, **permute(tensors, groups[0], orders)}
    distances = (torch.cat([every[name].flatten(1) for name in spec.names], 1) - reference).square().sum(1)
    torch.testing.assert_close((found - reference).square().sum(), distances.min())


def test_distances_never_rise_and_one_network_alone_gives_the_same_as_many() -> None:
    torch.manual_seed(4)
    module = NAMED["resnet8"]().double()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    flat = flat_of(module, 4)
    found = align(flat[0], flat, spec, groups)
    assert torch.equal(found[0], flat[0])
    assert ((found - flat[0]).square().sum(1) <= (flat - flat[0]).square().sum(1)).all()
    torch.testing.assert_close(found[2:3], align(flat[0], flat[2:3], spec, groups), rtol=0, atol=0)


def test_a_wrong_group_is_noticed() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    spec, flat = spec_of(module), flat_of(module)
    wrong = ChannelGroup(5, (Use("1.weight", 0, 0, 1),))
    with pytest.raises(
        NetspaceError, match=r"answer otherwise than before \(largest difference .*\): their graph"
    ) as caught:
        check_same_function(module, spec, flat, shuffled(flat, spec, (wrong,)), torch.randn(3, *IMAGE))
    assert "graph does something with channels that netspace does not see" in str(caught.value)


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    decides = Forward(lambda self, x: self.one(x) if x.sum() > 0 else self.one(-x), one=nn.Conv2d(1, 2, 1))
    with pytest.raises(NetspaceError, match=r"cannot align the channels of mine: torch\.fx cannot trace its forward"):
        groups_of(decides)


def test_reset_statistics_gives_hidden_channels_the_mixture_of_their_sources() -> None:
    torch.manual_seed(5)
    module = NAMED["resnet8"]().double().eval()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    sources, inputs = flat_of(module, 3), torch.randn(64, *IMAGE, dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    mixed = weights @ sources
    found = reset_statistics(module, spec, groups, mixed, sources, weights, inputs)
    torch.testing.assert_close(found[1], sources[1])  # a source is its own mixture

    def moments(flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        seen = {}
        handles = [
            layer.register_forward_hook(
                lambda _m, _i, output, name=name: seen.update({name: (output.mean((0, 2, 3)), output.std((0, 2, 3)))})
            )
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Conv2d)
        ]
        run_one(module, spec, flat, inputs)
        for handle in handles:
            handle.remove()
        return seen

    every, own = [moments(flat) for flat in sources], moments(found[0])
    assert len(own) == 9
    for name, values in own.items():
        for position, value in enumerate(values):
            wanted = sum(weight * each[name][position] for weight, each in zip(weights[0], every, strict=True))
            torch.testing.assert_close(value, wanted)
    assert not torch.allclose(found[0], mixed[0])
    head = spec.offsets[spec.names.index("fc.weight")]
    assert torch.equal(found[0, head:], mixed[0, head:])  # outputs are nobody's channels


def test_channels_that_do_not_vary_keep_their_weights() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    spec, groups = spec_of(module), channel_groups(module, torch.randn(2, *IMAGE, dtype=torch.float64), "mine")
    sources = torch.zeros(1, spec.num_parameters, dtype=torch.float64)
    ones = torch.ones(1, 1, dtype=torch.float64)
    found = reset_statistics(module, spec, groups, sources.clone(), sources, ones, torch.randn(8, *IMAGE).double())
    assert torch.equal(found, sources)
