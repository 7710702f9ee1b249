"""Running networks from their parameters: all ways equal the module itself, outputs and gradients, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import Convolutions
from networks_that_go_wrong import PostAct, Recurrent
from torch import Tensor, nn

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks import batch as functional
from netspace.networks.batch import NetBatch, last_channels, run_loop, run_one, run_vmap
from netspace.networks.folding import fold
from netspace.networks.prep import flatten, unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.stacked_convolutions import batch_last

MEMBERS, BATCH = 3, 4


def run_last(module: nn.Module, spec: NetSpec, flat: Tensor, inputs: Tensor, shared: bool) -> Tensor:
    return run_vmap(module, spec, flat, last_channels(inputs, shared), shared)


def run_batch_last(module: nn.Module, spec: NetSpec, flat: Tensor, inputs: Tensor, shared: bool) -> Tensor:
    with batch_last():
        return run_vmap(module, spec, flat, inputs, shared)


WAYS = {"loop": run_loop, "vmap": run_vmap, "channels last": run_last, "batch last": run_batch_last}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def example(name: str) -> tuple[nn.Module, NetSpec, Tensor]:
    """A skeleton in float64, its spec, and parameters (M, P) of three networks of natural size."""
    shape, settings = (1, 8, 8), {"channels": 1, "image_size": 8, "classes": 5, "width": 0.5}
    module = archs.skeleton(name, settings, shape).double().requires_grad_(False)
    spec = NetSpec.from_module(module, name, settings, shape)
    rows = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        rows.append(flatten(dict(archs.skeleton(name, settings, shape).double().named_parameters()), spec))
        rows[-1] = (rows[-1] + 0.1 * torch.randn_like(rows[-1])).detach()
    return module, spec, torch.stack(rows)


def inputs_for(shared: bool) -> Tensor:
    torch.manual_seed(9)
    return torch.randn(*([BATCH] if shared else [MEMBERS, BATCH]), 1, 8, 8, dtype=torch.float64)


def slow(module: nn.Module, spec: NetSpec, flat: Tensor, inputs: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Outputs and gradients of their sum of squares: the weights copied into the module, which is then called."""
    outputs, gradients = [], []
    for member, row in enumerate(flat):
        net = copy.deepcopy(module).requires_grad_()
        net.load_state_dict(unflatten(row, spec))
        output = net(inputs if shared else inputs[member])
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append(torch.cat([value.grad.flatten() for value in net.parameters()]))  # type: ignore[union-attr]
    return torch.stack(outputs), torch.stack(gradients)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["lenetlike", "vanillacnn", "resnet8"])
def test_all_ways_equal_the_module_itself(name: str, way: str, shared: bool) -> None:
    module, spec, flat = example(name)
    inputs = inputs_for(shared)
    outputs, gradients = slow(module, spec, flat, inputs, shared)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # the members differ
    rows = flat.clone().requires_grad_()
    found = WAYS[way](module, spec, rows, inputs, shared)
    torch.testing.assert_close(found, outputs, **EXACT)
    found.square().sum().backward()
    torch.testing.assert_close(rows.grad, gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_the_inputs(way: str) -> None:
    module, spec, flat = example("lenetlike")
    inputs = inputs_for(True).requires_grad_()
    WAYS[way](module, spec, flat, inputs, True).square().sum().backward()
    expected = inputs_for(True).requires_grad_()
    torch.stack([run_one(module, spec, row, expected) for row in flat]).square().sum().backward()
    torch.testing.assert_close(inputs.grad, expected.grad, **EXACT)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_all_networks_have_their_channels_last_in_memory(channels: int) -> None:
    images = torch.randn(2, channels, 5, 4)
    last = last_channels(images, True)
    assert torch.equal(last, images) and last.stride() == (20 * channels, 1, 4 * channels, channels)
    own = last_channels(images.expand(3, *images.shape), False)
    assert torch.equal(own, images.expand_as(own)) and own.stride() == (
        channels,
        60 * channels,
        1,
        12 * channels,
        3 * channels,
    )


@pytest.mark.parametrize("mode", ["loop", "vmap", "channels last", "batch last"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_pieces_give_what_the_whole_gives(
    mode: str, shared: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, spec, flat = example("vanillacnn")
    inputs = inputs_for(shared)
    whole = NetBatch(module, spec, mode)(flat, inputs, shared=shared)  # type: ignore[arg-type]
    pieced = NetBatch(module, spec, mode, max_elements=at_once * BATCH)  # type: ignore[arg-type]
    sizes: list[int] = []
    run = pieced._run
    monkeypatch.setattr(pieced, "_run", lambda rows, *rest: (sizes.append(len(rows)), run(rows, *rest))[1])
    torch.testing.assert_close(pieced(flat, inputs, shared=shared), whole, **EXACT)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[at_once]


def test_a_batch_with_gradients_is_never_cut() -> None:
    module, spec, flat = example("lenetlike")
    rows = flat.clone().requires_grad_()
    output = NetBatch(module, spec, "vmap", max_elements=1)(rows, inputs_for(True))
    output.sum().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0


def test_the_skeletons_own_values_are_never_read() -> None:
    module, spec, flat = example("resnet8")
    nets = NetBatch(module, spec, "loop")
    before = nets(flat, inputs_for(True))
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(float("nan"))
    assert torch.equal(nets(flat, inputs_for(True)), before)


def test_the_order_of_members_is_kept_and_a_permutation_permutes() -> None:
    module, spec, flat = example("lenetlike")
    nets = NetBatch(module, spec, "vmap")
    order = torch.tensor([2, 0, 1])
    outputs = nets(flat, inputs_for(True))
    torch.testing.assert_close(nets(flat[order], inputs_for(True)), outputs[order], **EXACT)
    assert not torch.allclose(nets(flat[order], inputs_for(True)), outputs)


def test_auto_picks_by_calibration_once_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module, spec, flat = example("lenetlike")
    asked: list[str] = []

    def pick(subject: str, ways: dict[str, object], repeats: int) -> str:
        asked.append(subject)
        for way in ways.values():
            way()  # type: ignore[operator]
        return "vmap"

    monkeypatch.setattr(functional, "fastest", pick)
    nets = NetBatch(module, spec)
    inputs = inputs_for(True)
    expected = run_vmap(module, spec, flat, inputs, True)
    assert torch.equal(nets(flat, inputs), expected) and torch.equal(nets(flat, inputs), expected)
    assert len(asked) == 1
    nets(flat[[0, 1, 2, 0]], inputs)  # three and four are one size
    assert len(asked) == 1
    nets(flat.clone().requires_grad_(), inputs)
    nets(flat, inputs_for(False), shared=False)
    assert len(asked) == 3
    nets(flat, inputs.clone().requires_grad_())  # as probes have gradients, of networks that have none
    assert len(asked) == 4
    nets(flat[:1], inputs)  # one network is never stacked
    assert len(asked) == 4


def test_what_does_not_fit_is_told() -> None:
    module, spec, flat = example("lenetlike")
    other, _, _ = example("vanillacnn")
    with pytest.raises(NetspaceError, match=r"the skeleton of 'lenetlike' is not of its spec: .*missing"):
        NetBatch(other, spec)
    nets = NetBatch(module, spec, "loop")
    with pytest.raises(NetspaceError, match=r"3 networks were given 4 batches of inputs: one for each"):
        nets(flat, torch.zeros(4, 2, 1, 8, 8).double(), shared=False)
    words = (
        r"inputs of shape \(3, 8, 8\) were given, which networks of 'lenetlike' cannot take: \(1, 8, 8\) was expected"
    )
    for mode in ("auto", "loop", "vmap", "channels last", "batch last"):
        with pytest.raises(UsageError, match=words):
            NetBatch(module, spec, mode)(flat, torch.zeros(2, 3, 8, 8).double())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words):
        nets(flat, torch.zeros(3, 2, 3, 8, 8).double(), shared=False)
    with pytest.raises(NetspaceError, match=r"'lenetlike' has [\d,]+ parameters; 7 values were given"):
        nets(flat[:, :7], inputs_for(True))


def test_half_precision_is_calibrated_apart_and_runs_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    module, spec, flat = example("lenetlike")
    asked: list[str] = []
    monkeypatch.setattr(functional, "fastest", lambda subject, ways, repeats: asked.append(subject) or "loop")
    nets, inputs = NetBatch(module.float(), spec), inputs_for(True).float()
    exact = nets(flat.float(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = nets(flat.float(), inputs)
        own = nets(flat.float(), inputs.expand(len(flat), *inputs.shape), shared=False)
    assert len(set(asked)) == 3 and rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(own, rough)


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_convolutions_can_be_given_in_half_precision(shared: bool) -> None:
    """As networks alone are computed under autocast, which does not reach convolutions under `vmap`."""
    module, spec, flat = example("resnet8")
    module, flat, inputs = module.float(), flat.float(), inputs_for(shared).float()
    halved = functional.bf16_convolutions(module)
    convolutions = {name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {name.rpartition(".")[0] for name in halved} == convolutions and len(halved) == 2 * len(convolutions)
    exact = run_vmap(module, spec, flat, inputs, shared)
    with torch.autocast("cpu", torch.bfloat16), Convolutions() as seen:
        rough = run_vmap(module, spec, flat, inputs, shared, halved)
    assert {each.dtype for each in seen.inputs} == {torch.bfloat16}
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(run_vmap(module, spec, flat, inputs, shared), exact)  # the layers' hooks change nothing


@pytest.mark.gpu
def test_stacked_networks_on_a_gpu_compute_in_half_precision_under_autocast() -> None:
    module, spec, flat = example("resnet8")
    nets, rows, inputs = NetBatch(module.float().cuda(), spec), flat.float().cuda(), inputs_for(True).float().cuda()
    exact, seen = nets(rows, inputs), list[torch.dtype]()
    handle = module.conv1.register_forward_hook(lambda layer, given, found: seen.append(found.dtype))
    with torch.autocast("cuda", torch.bfloat16):
        rough = nets(rows, inputs)
    handle.remove()
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("make", "mode"), [(Recurrent, "loop"), (PostAct, "vmap")])
def test_networks_that_vmap_cannot_stack_run_one_after_another(make: type[torch.nn.Module], mode: str) -> None:
    module = fold(make(), torch.zeros(2, 1, 8, 8))
    spec = NetSpec.from_module(module, "net", {}, (1, 8, 8))
    nets, flat, images = NetBatch(module, spec), torch.randn(3, spec.num_parameters), torch.randn(5, 1, 8, 8)
    assert nets._stackable(flat, images, True) == nets._stackable(flat, images[None].expand(3, -1, -1, -1, -1), False)
    assert nets._stackable(flat, images, True) == mode
    expected = torch.stack([run_one(module, spec, row, images) for row in flat])
    torch.testing.assert_close(nets(flat, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "members"), [(8, 64), (28, 16), (512, 8)])
def test_more_members_are_timed_of_networks_with_less_work(
    monkeypatch: pytest.MonkeyPatch, side: int, members: int
) -> None:
    layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    spec = NetSpec.from_module(layers, "test", {}, (1, side, side))
    keys: list[str] = []
    monkeypatch.setattr(functional, "fastest", lambda subject, ways, repeats: keys.append(subject) or "loop")
    nets = NetBatch(layers, spec)
    nets._pick(torch.zeros(100, spec.num_parameters), torch.zeros(48, 1, side, side), True)
    assert keys[0].split("} (")[-1].startswith(f"{members}, 64, True")
