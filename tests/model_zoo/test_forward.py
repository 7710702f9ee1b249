"""The forward pass of stacked networks: the same networks in every layout, precision and compilation; what torch is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from shutil import which
from typing import Any

import pytest
import torch
from helpers import IMAGE_ARCHS, Convolutions, no_waiting
from test_trainer import RUNS, States, assert_equal, finish, make, recipe, task
from torch import Tensor, nn

from model_zoo.forward import Forward, Layout, Precision, Way
from model_zoo.recipe import RunPlan
from model_zoo.trainer import Group
from netspace import archs
from netspace.networks.batch import stacked_channels_last
from netspace.tasks import Classification, DataConfig, load

NETS = ["lenetlike", "vanillacnn", "resnet8"]
STACKED: Layout = "channels last"
LAYOUTS: tuple[Layout, ...] = (STACKED, "batch last")


def trained(name: str, runs: list[RunPlan], way: Way, moving: bool = False) -> States:
    return finish(Group(task(moving), make(name), runs, recipe(), way))


@pytest.mark.parametrize("name", IMAGE_ARCHS)
def test_fused_members_of_every_architecture_are_those_trained_alone(name: str) -> None:
    """20 steps in float64, on moving images, in the layouts that convolutions like."""
    small = partial(archs.build, name, channels=1, image_size=8, classes=3, width=0.125)
    runs = [RunPlan("a", 0, 11, (5,), 1e-3, "train"), RunPlan("a", 1, 22, (3, 5), 3e-4, "train")]

    def found(chosen: list[RunPlan], way: Way) -> States:
        return finish(Group(task(True), lambda: small().double(), chosen, recipe(), way))

    alone = found(runs[:1], Way(1)) | found(runs[1:], Way(1))
    for layout in LAYOUTS:
        assert_equal(found(runs, Way(2, "float32", layout)), alone, 1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_the_layout_makes_no_other_networks(name: str, fused: int, layout: Layout) -> None:
    assert_equal(trained(name, RUNS, Way(fused, "float32", layout)), trained(name, RUNS, Way(fused)), 1e-9)


def pass_of(name: str, way: Way) -> tuple[list[Tensor], Tensor]:
    """What the convolutions of one pass see, and the gradient."""
    data = load(DataConfig(name="generated", image_size=16, channels=3, classes=3, limit=20))

    def build() -> nn.Module:
        return archs.build(name, channels=3, image_size=16, classes=3)

    runs = [RunPlan("a", number, number, (1,), 1e-3, "train") for number in range(way.fused)]
    group = Group(data, build, runs, recipe(), way)
    images = data.normalise(data.train.images[:12]).expand(way.fused, 12, 3, 16, 16)
    with Convolutions() as seen:
        _, gradient = group._backward(images, data.train.labels[:12].expand(way.fused, 12))
    return seen.inputs, gradient


@pytest.mark.parametrize("fused", [1, 4])
@pytest.mark.parametrize("name", NETS)
def test_convolutions_see_the_layout_that_was_asked_for(name: str, fused: int) -> None:
    def are_last(way: Way) -> list[bool]:
        return [each.is_contiguous(memory_format=torch.channels_last) for each in pass_of(name, way)[0]]

    assert all(are_last(Way(fused, "float32", STACKED))) and not any(are_last(Way(fused)))


@pytest.mark.parametrize("fused", [1, 4])
@pytest.mark.parametrize("name", NETS)
def test_convolutions_see_the_precision_that_was_asked_for(name: str, fused: int) -> None:
    """Stacked ones too, which autocast does not reach; weights and their gradients stay in float32."""
    (full, wanted), (half, found) = (pass_of(name, Way(fused, precision)) for precision in ("float32", "bf16"))
    assert {each.dtype for each in full} == {torch.float32} and {each.dtype for each in half} == {torch.bfloat16}
    assert found.dtype == wanted.dtype == torch.float32
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.2


def test_autocast_does_not_reach_stacked_convolutions() -> None:
    """If this fails torch has learnt it, and `bf16_convolutions` can go."""
    with torch.autocast("cpu", torch.bfloat16):
        given = torch.randn(2, 1, 3, 5, 5), torch.randn(2, 4, 3, 3, 3)
        assert torch.func.vmap(torch.nn.functional.conv2d)(*given).dtype == torch.float32
        assert torch.nn.functional.conv2d(given[0][0], given[1][0]).dtype == torch.bfloat16


def test_stacked_channels_last_moves_no_value() -> None:
    images = torch.randn(3, 2, 4, 5, 6)
    assert torch.equal(stacked_channels_last(images), images)
    merged = stacked_channels_last(images).transpose(0, 1).flatten(1, 2)  # as vmap merges members and channels
    assert merged.is_contiguous(memory_format=torch.channels_last)


def test_a_failed_pass_has_changed_nothing() -> None:
    way, data = Way(2), task()
    group = Group(data, make("resnet8"), RUNS[:2], recipe(), way)
    before = {name: value.clone() for name, value in group.buffers.items()}
    images = data.normalise(data.train.images[:8]).expand(2, 8, 1, 8, 8)
    _, _, held = group.forward(group.flat, group.buffers, images, data.train.labels[:8].expand(2, 8))
    assert all(torch.equal(value, before[name]) for name, value in group.buffers.items())
    assert not torch.equal(held["bn1.running_mean"], before["bn1.running_mean"])


def counting(monkeypatch: pytest.MonkeyPatch, backend: str = "eager") -> list[Any]:
    """Compiles in a hurry, and fails where a pass is not one graph; the graphs there were."""
    graphs: list[Any] = []
    compile_ = torch.compile

    def noted(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    def hurried(run: Callable[..., Any], **settings: Any) -> Any:
        return compile_(run, **settings, fullgraph=True, backend=noted)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", hurried)
    return graphs


def test_a_compiled_pass_is_one_graph_though_members_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four members at once, then three, filled up; and a second group compiles nothing anew."""
    epochs = (1, 2, 2, 2)
    runs = [RunPlan("a", number, number, (last,), 1e-2, "train") for number, last in enumerate(epochs)]
    settings = recipe().model_copy(update={"batch_size": 30})
    way = Way(4)

    def group(compiled: bool, forward: Forward | None = None) -> Group:
        changed = settings.model_copy(update={"compile": compiled})
        return Group(task(), make("lenetlike"), runs, changed, way, forward=forward)

    plain = group(False)
    expected, widths = finish(plain), set[int]()
    graphs = counting(monkeypatch)
    first = group(True)
    run = first.forward.run

    def noted(rows: Tensor, *rest: Any) -> Any:
        widths.add(len(rows))
        return run(rows, *rest)

    monkeypatch.setattr(first.forward, "run", noted)
    assert_equal(finish(first), expected, 1e-9)
    assert widths == {4} and len(graphs) == 1
    assert_equal(finish(group(True, first.forward)), expected, 1e-9)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("fused", "precision"), [(1, "float32"), (2, "bf16")])
@pytest.mark.parametrize("name", NETS)
def test_a_compiled_pass_of_every_kind_is_one_graph(
    monkeypatch: pytest.MonkeyPatch, name: str, fused: int, precision: Precision
) -> None:
    graphs = counting(monkeypatch, "aot_eager")
    settings = recipe().model_copy(update={"compile": True, "smoothness": 0.01})
    data = load(DataConfig(name="generated", image_size=8, channels=1, classes=3, limit=16))

    def build() -> nn.Module:
        return archs.build(name, channels=1, image_size=8, classes=3, width=0.25)

    finish(Group(data, build, RUNS[2:] * fused, settings, Way(fused, precision, STACKED)))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="torch.compile needs a compiler here")
@pytest.mark.parametrize("name", NETS)
def test_compiled_training_gives_the_same_networks(name: str) -> None:
    torch._dynamo.reset()
    settings = recipe().model_copy(update={"batch_size": 30})
    compiled = Group(
        task(), make(name), RUNS[:2], settings.model_copy(update={"compile": True}), Way(2, "float32", STACKED)
    )
    assert_equal(finish(compiled), finish(Group(task(), make(name), RUNS[:2], settings, Way(2))), 1e-9)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("fused", [1, 3])
def test_an_epoch_does_not_wait_for_the_device(fused: int, precision: Precision, device: str) -> None:
    data = load(
        DataConfig(name="generated", image_size=8, channels=1, classes=3, limit=60, crop_padding=2, flip=True),
        device=device,
    )

    def build() -> nn.Module:
        return archs.build("resnet8", channels=1, image_size=8, classes=3, width=0.25)

    group = Group(data, build, RUNS, recipe(name="adamw", weight_decay=0.1), Way(fused, precision, STACKED))
    group.round = 1
    group._one_epoch()  # the first one sets up libraries
    with no_waiting(data.device):
        group._one_epoch()


# ---- on a GPU


@pytest.fixture
def cuda_task() -> Classification:
    """Images on the GPU."""
    data = DataConfig(name="generated", image_size=16, channels=3, classes=3, limit=60, crop_padding=2, flip=True)
    return load(data, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETS)
def test_recorded_passes_on_a_gpu_give_the_same_networks(cuda_task: Classification, name: str) -> None:
    def build() -> nn.Module:
        return archs.build(name, channels=3, image_size=16, classes=3).double()

    class Double(Classification):
        def normalise(self, images: Tensor) -> Tensor:
            return super().normalise(images).double()

    data = Double(**vars(cuda_task))
    compiled = recipe().model_copy(update={"compile": True})
    expected = finish(Group(data, build, RUNS, recipe(), Way(3)))
    assert_equal(finish(Group(data, build, RUNS, compiled, Way(3))), expected, 1e-9)
    narrow = Group(data, build, RUNS, compiled, Way(3), width=2)  # in parts, which overwrite each other's results
    assert_equal(finish(narrow), expected, 1e-9)
