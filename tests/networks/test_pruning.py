"""Pruned networks: the channels that stay, torch-pruning's own groups, exact widths and what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from resizable import IMAGE, Separable, UNet, Vae, mlp, trained
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.pruning import channel_scores, pruned
from netspace.networks.widths import find_widths, resized

tp = pytest.importorskip("torch_pruning", reason='needs `pip install "netspace[morph]"`')

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "mlp": mlp,
    "lenetlike": lambda: archs.build("lenetlike", channels=1, image_size=8),
    "resnet8": lambda: archs.build("resnet8", channels=1, image_size=8, width=0.5),
}
BATCH = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def loss(module: nn.Module) -> Tensor:
    given = module(BATCH)
    return (given if isinstance(given, Tensor) else given[0]).square().mean()


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_torch_pruning_groups_itself_keep_the_same_channels(name: str, criterion: Any) -> None:
    module = trained(NETWORKS[name]())
    info = find_widths(module, IMAGE, name)
    widths = info.at(0.5)
    found = pruned(module, info, widths, criterion, loss=loss)

    own = copy.deepcopy(module)
    for layer in own.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    loss(own).backward()
    importance = (
        tp.importance.GroupMagnitudeImportance(p=1) if criterion == "l1" else tp.importance.GroupTaylorImportance()
    )
    graph = tp.DependencyGraph().build_dependency(own, example_inputs=BATCH)
    cuts = []
    for layer_name, size, width in zip(info.names, info.full(), widths, strict=True):
        layer = own.get_submodule(layer_name)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        scores = importance(graph.get_pruning_group(layer, prune, list(range(size))))
        cuts.append((layer, prune, scores.argsort()[: size - width].tolist()))
    for layer, prune, cut in cuts:
        graph.get_pruning_group(layer, prune, cut).prune()
    expected = own.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_channels_with_the_largest_norm_over_all_tensors_stay() -> None:
    module = trained(UNet())
    info, state = find_widths(module, IMAGE, "unet"), module.state_dict()
    for group, score in zip(info.groups, channel_scores(module, info, "l1"), strict=True):
        parts = [
            state[use.name]
            .movedim(use.axis, 0)[use.start : use.start + group.size]
            .abs()
            .reshape(group.size, -1)
            .sum(1)
            for use in group.uses
            if use.name.endswith("weight")
        ]
        norm = torch.stack(parts).sum(0)
        assert torch.equal(score.argsort(), norm.argsort())
        torch.testing.assert_close(score, norm / norm.mean())


def test_maps_made_of_linear_outputs_and_depthwise_channels_are_scored_as_a_whole() -> None:
    vae, separable = trained(Vae()), trained(Separable())
    scores = dict(zip((info := find_widths(vae, IMAGE, "vae")).names, channel_scores(vae, info, "l1"), strict=True))
    state = vae.state_dict()
    norm = state["start.weight"].abs().view(5, -1).sum(1) + state["decoder.1.weight"].abs().flatten(1).sum(1)
    torch.testing.assert_close(scores["start"], norm / norm.mean())
    scores = dict(
        zip((info := find_widths(separable, IMAGE, "net")).names, channel_scores(separable, info, "l1"), strict=True)
    )
    state = separable.state_dict()
    norm = state["features.6.weight"].abs().flatten(1).sum(1) + state["features.7.weight"].abs()
    norm = norm + state["features.11.weight"].abs().sum((0, 2, 3)).view(6, 2).sum(1)
    torch.testing.assert_close(scores["features.6"], norm / norm.mean())


@pytest.mark.parametrize("criterion", ["l1", "taylor", "random"])
@pytest.mark.parametrize("make", [*NETWORKS.values(), Vae, Separable])
def test_pruned_networks_have_exactly_the_widths_that_were_asked_for(
    make: Callable[[], nn.Module], criterion: Any
) -> None:
    module = trained(make())
    info = find_widths(module, IMAGE, "net")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for gamma in (0.0, 0.3, 0.75):
        made = pruned(module, info, info.at(gamma), criterion, loss=loss)
        assert repr(made) == repr(resized(module, info, info.at(gamma), 0))
        assert not made.training and loss(made).isfinite()
        if not gamma:
            torch.testing.assert_close(loss(made), loss(module), rtol=0, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(value.grad is None for value in module.parameters())


def test_random_channels_follow_from_the_seed() -> None:
    module = trained(UNet())
    info = find_widths(module, IMAGE, "unet")
    one, same, other = (pruned(module, info, (2, 3, 2), "random", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(UNet())
    info = find_widths(module, IMAGE, "unet")
    for arguments, words in (
        (((4, 6, 4), "l1"), "up of unet has 3 channels at most here, not 4"),
        (((4, 6, 0), "l1"), "the width of up of unet is a whole number of at least 1, not 0"),
        (((4, 6, 3), "l2"), "unknown criterion of pruning 'l2': There are: l1, taylor, random"),
        (((4, 6, 3), "taylor"), "pruning by taylor needs the gradients of a loss"),
    ):
        with pytest.raises(UsageError, match=words):
            pruned(module, info, *arguments)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(NetspaceError, match=r"pruning needs torch_pruning, .*: pip install 'netspace\[morph\]'"):
        pruned(module, info, (4, 6, 3), "l1")
    pruned(module, info, (4, 6, 3), "random")  # which needs nothing
