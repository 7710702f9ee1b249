"""Smooth orders of channels: total variation by hand, Proposition 1 by numbers, the best of all orders, functions kept."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError
from netspace.networks.channels import ChannelGroup, Use
from netspace.networks.folding import fold
from netspace.networks.ordering import (
    check_function,
    greedy_orders,
    ordered,
    ordered_module,
    smooth_orders,
    total_variation,
)
from netspace.networks.widths import find_widths

IMAGE = (1, 8, 8)


class Mixed(nn.Module):
    """A residual stream with batch norm, a layer used twice, a depthwise layer, a concatenation and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise, self.slope = nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.PReLU(8)
        self.inner = nn.Conv2d(12, 5, 1)
        self.inner_norm, self.head = nn.BatchNorm2d(5), nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.norm(self.stem(x)))
        stream = F.relu(stream + self.twice(F.relu(self.twice(stream))))
        both = torch.cat([self.slope(self.depthwise(stream)), stream], 1)
        output: Tensor = self.head(F.avg_pool2d(F.relu(self.inner_norm(self.inner(both))), 2).flatten(1))
        return output


def seen(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module with random parameters and statistics, as if it had been trained, in float64."""
    random = torch.Generator().manual_seed(seed)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=random)
            value.data.copy_(drawn.square() + 0.1 if name.endswith("running_var") else drawn / 2)
    return module.double().eval()


def named(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def groups_of(module: nn.Module) -> tuple[ChannelGroup, ...]:
    return find_widths(module, torch.zeros(2, *IMAGE, dtype=next(module.parameters()).dtype), "mine").groups


def resnet(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(0)
    return archs.build(name, channels=1, image_size=8, width=0.5)


def shuffled(groups: tuple[ChannelGroup, ...], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.size, generator=random) for group in groups]


def test_total_variation_is_that_of_writers_readers_biases_and_norms() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 2)),
    )
    one, norm, two, last = net[0], net[1], net[3], net[5]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    net.requires_grad_(False)
    expected = 0.0
    for i in range(3):
        for value in (one.weight, one.bias, norm.weight, norm.bias, two.weight.transpose(0, 1)):
            expected += float((value[i] - value[i + 1]).abs().sum())
    for i in range(2):
        entries = last.weight[:, 16 * i : 16 * i + 16] - last.weight[:, 16 * i + 16 : 16 * i + 32]
        expected += float((two.weight[i] - two.weight[i + 1]).abs().sum() + (two.bias[i] - two.bias[i + 1]).abs())
        expected += float(entries.abs().sum())
    assert total_variation(named(net), groups_of(net)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("build", [Mixed, resnet], ids=["mixed", "resnet8"])
def test_an_order_along_one_axis_leaves_the_variation_along_the_others(build: type[nn.Module]) -> None:
    module = seen(build())
    groups, tensors = groups_of(module), named(module)
    before = [total_variation(tensors, [group]) for group in groups]
    assert len({use.name for group in groups for use in group.uses}) < sum(len(group.uses) for group in groups)
    for index, group in enumerate(groups):
        order = shuffled((group,), index)
        after = [total_variation(ordered(tensors, [group], order), [each]) for each in groups]
        assert after[index] != pytest.approx(before[index], rel=1e-6)
        rest = [value for other, value in enumerate(after) if other != index]
        assert rest == pytest.approx([value for other, value in enumerate(before) if other != index], rel=1e-12)
    moved = ordered(tensors, groups, shuffled(groups, 3))
    apart = sum(
        total_variation(ordered(tensors, [group], [order]), [group])
        for group, order in zip(groups, shuffled(groups, 3), strict=True)
    )
    assert total_variation(moved, groups) == pytest.approx(apart, rel=1e-12)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_small_groups_are_ordered_best(seed: int) -> None:
    module = seen(Mixed(), seed)
    groups, tensors = groups_of(module), named(module)
    assert sorted(group.size for group in groups) == [4, 5]
    best = 0.0
    for group in groups:
        every = (torch.tensor(order) for order in permutations(range(group.size)) if order[0] < order[-1])
        best += min(total_variation(ordered(tensors, [group], [order]), [group]) for order in every)
    found = ordered(tensors, groups, smooth_orders(tensors, groups, seed))
    assert total_variation(found, groups) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("build", [Mixed, resnet, lambda: resnet("vanillacnn")], ids=["mixed", "resnet8", "vanillacnn"])
def test_an_ordered_module_is_smoother_and_computes_the_same(build: type[nn.Module]) -> None:
    module = seen(build())
    before, inputs = copy.deepcopy(module.state_dict()), torch.randn(3, *IMAGE, dtype=torch.float64)
    groups = groups_of(module)
    orders = smooth_orders(named(module), groups)
    made = ordered_module(module, groups, orders)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert total_variation(named(made), groups) < total_variation(named(module), groups)
    torch.testing.assert_close(made(inputs), module(inputs), rtol=1e-9, atol=1e-9)
    check_function(module, made, inputs, "mine")
    expected = ordered(named(module), groups, orders)
    assert all(torch.equal(value, expected[name]) for name, value in made.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())


def test_statistics_of_batch_norm_move_with_their_channels() -> None:
    module = seen(Mixed())
    groups = groups_of(module)
    orders = shuffled(groups, 2)
    made = ordered_module(module, groups, orders)
    moved = {use.name: order for group, order in zip(groups, orders, strict=True) for use in group.uses}
    for name in ("norm", "inner_norm"):
        one, other = module.get_submodule(name), made.get_submodule(name)
        assert torch.equal(other.running_mean, one.running_mean[moved[f"{name}.weight"]])
        assert torch.equal(other.running_var, one.running_var[moved[f"{name}.weight"]])
        assert not torch.equal(other.running_mean, one.running_mean)


def test_folded_networks_are_ordered_too() -> None:
    module = seen(resnet())
    folded = fold(module, torch.zeros(2, *IMAGE, dtype=torch.float64))
    groups = groups_of(folded)
    made = ordered_module(folded, groups, smooth_orders(named(folded), groups))
    check_function(module, made, torch.randn(3, *IMAGE, dtype=torch.float64), "mine")


def test_orders_are_repeatable_smoother_than_greedys_and_kept_by_what_is_in_order() -> None:
    module = resnet("resnet20")
    groups, tensors = groups_of(module), named(module)
    orders = smooth_orders(tensors, groups, 4)
    assert all(torch.equal(one, two) for one, two in zip(orders, smooth_orders(tensors, groups, 4), strict=True))
    found = ordered(tensors, groups, orders)
    greedy = ordered(tensors, groups, greedy_orders(tensors, groups))
    assert total_variation(found, groups) < total_variation(greedy, groups) < total_variation(tensors, groups)
    again = ordered(found, groups, smooth_orders(found, groups, 4))
    assert total_variation(again, groups) <= total_variation(found, groups)


def test_channels_in_their_best_order_stay() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
        net[1].bias.copy_(torch.arange(9.0))
    (group,) = groups_of(net)
    assert (
        smooth_orders(named(net), [group])[0].tolist() == greedy_orders(named(net), [group])[0].tolist() == [*range(9)]
    )


def test_a_wrong_group_and_unseen_statistics_are_noticed() -> None:
    module, inputs = seen(Mixed()), torch.randn(3, *IMAGE)
    wrong = ChannelGroup(4, (Use("stem.weight", 0, 0, 1),))
    made = ordered_module(module, [wrong], [torch.arange(4).flip(0)])
    with pytest.raises(NetspaceError) as caught:
        check_function(module, made, inputs, "mine")
    assert str(caught.value).startswith("networks of mine with reordered channels answer otherwise than before")
    bare = seen(nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(216, 2)))
    groups = groups_of(bare)
    with pytest.raises(NetspaceError, match="something with channels that netspace does not see"):
        check_function(bare, ordered_module(bare, groups, shuffled(groups, 0)), inputs, "mine")


def test_parameters_that_are_not_finite_have_no_order() -> None:
    module = resnet()
    groups, tensors = groups_of(module), {name: value.detach().clone() for name, value in module.named_parameters()}
    tensors[groups[0].uses[0].name].view(-1)[0] = float("nan")
    with pytest.raises(NetspaceError, match="not all finite"):
        smooth_orders(tensors, groups)


@pytest.mark.gpu
def test_networks_on_a_gpu_have_the_same_orders() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    module = seen(resnet())
    groups = groups_of(module)
    orders = smooth_orders(named(module), groups)
    there = copy.deepcopy(module).cuda()
    made = ordered_module(there, groups, smooth_orders(named(there), groups))
    check_function(there, made, torch.randn(3, *IMAGE, device="cuda"), "mine")
    expected = ordered_module(module, groups, orders)
    assert total_variation(named(made), groups) == pytest.approx(total_variation(named(expected), groups), rel=1e-6)
