"""Training in groups: a member's weights are those of a plain loop over its own plan, whoever trains beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.forward import OptimizerConfig, Way
from model_zoo.recipe import RunPlan, Variety, VarietyConfig, ZooRecipe
from model_zoo.trainer import Group
from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_torch, write_torch
from netspace.networks.kernels import smoothness_loss
from netspace.streams import generator
from netspace.tasks import Classification, DataConfig, load

NETS = ["lenetlike", "vanillacnn", "resnet8"]
BATCH, IMAGES, EPOCHS = 16, 60, 5  # four steps an epoch, the last of 12 images: 20 steps
RUNS = [
    RunPlan("a", 0, 11, (5,), 1e-2, "train"),
    RunPlan("a", 1, 22, (2, 4), 1e-3, "train"),
    RunPlan("a", 2, 33, (1,), 3e-3, "val"),
]
States = dict[tuple[int, int], dict[str, Tensor]]


class Double(Classification):
    """The task with images in float64."""

    def normalise(self, images: Tensor) -> Tensor:
        scale, shift = (1 / (255 * self.std.double())), self.mean.double() / self.std.double()
        return images.double() * scale[:, None, None] - shift[:, None, None]


def task(moving: bool = False) -> Double:
    data = load(
        DataConfig(
            name="generated",
            image_size=8,
            channels=1,
            classes=3,
            limit=IMAGES,
            crop_padding=2 * moving,
            flip=moving,
        )
    )
    return Double(**{field.name: getattr(data, field.name) for field in fields(data)})


def make(name: str) -> Callable[[], nn.Module]:
    return lambda: archs.build(name, channels=1, image_size=8, classes=3, width=0.25).double()


def recipe(**optimizer: object) -> ZooRecipe:
    return ZooRecipe.model_validate(
        {"archs": {"a": {"arch": "lenetlike"}}, "batch_size": BATCH, "optimizer": optimizer}
    )


def group(name: str, runs: list[RunPlan], fused: int, moving: bool = False, /, **optimizer: object) -> Group:
    return Group(task(moving), make(name), runs, recipe(**optimizer), Way(fused))


def finish(trained: Group) -> States:
    """All members by run and epoch."""
    found: States = {}
    for _, snapshot in trained.epochs():
        if snapshot is not None:
            for place, run in enumerate(snapshot.runs):
                found[run.run, snapshot.epochs[place]] = {name: value[place] for name, value in snapshot.state.items()}
    return found


def assert_equal(one: States, two: States, tolerance: float) -> None:
    assert one.keys() == two.keys()
    for key, state in one.items():
        assert state.keys() == two[key].keys()
        for name, value in state.items():
            torch.testing.assert_close(
                value,
                two[key][name],
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, where=(key, name): f"{where}: {text}",
            )


def plain_loop(
    name: str,
    run: RunPlan,
    moving: bool,
    kind: type[torch.optim.Optimizer],
    factor: Callable[[float], float],
    **settings: Any,
) -> States:
    """Module, torch's optimiser, a batch at a time, an image at a time."""
    data = task(moving)
    torch.manual_seed(run.seed)
    net = make(name)()
    optimizer = kind(net.parameters(), lr=1.0, **settings)  # type: ignore[call-arg]
    found: States = {}
    for epoch in range(1, run.epochs[-1] + 1):
        random = generator(run.seed, epoch)
        order = torch.randperm(IMAGES, generator=random).tolist()
        if moving:
            shifts = torch.randint(5, (2, IMAGES), generator=random).tolist()
            mirrored = torch.randint(2, (IMAGES,), generator=random).tolist()
        for step, start in enumerate(range(0, IMAGES, BATCH)):
            pixels = []
            for place in range(start, min(start + BATCH, IMAGES)):
                image = data.train.images[order[place]]
                if moving:
                    top, left = shifts[0][place], shifts[1][place]
                    image = F.pad(image, (2, 2, 2, 2))[:, top : top + 8, left : left + 8]
                    image = image.flip(-1) if mirrored[place] else image
                pixels.append(image)
            labels = data.train.labels[order[start : start + BATCH]]
            optimizer.zero_grad()
            F.cross_entropy(net(data.normalise(torch.stack(pixels))), labels).backward()
            for held in optimizer.param_groups:
                held["lr"] = run.learning_rate * factor((epoch - 1 + step / 4) / run.epochs[-1])
            optimizer.step()
        if epoch in run.epochs:
            found[run.run, epoch] = copy.deepcopy(dict(net.state_dict()))
    return found


@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "augmented"])
@pytest.mark.parametrize("name", NETS)
def test_a_member_trained_in_a_group_is_the_one_trained_alone(name: str, moving: bool) -> None:
    """Stacked, beside members of other rates that leave earlier; batch norm's statistics too."""
    together = finish(group(name, RUNS, 3, moving))
    assert set(together) == {(0, 5), (1, 2), (1, 4), (2, 1)}
    alone: States = {}
    for run in RUNS:
        alone |= finish(group(name, [run], 1, moving))
    assert_equal(together, alone, 1e-9)
    if name == "resnet8":
        assert int(together[0, 5]["bn1.num_batches_tracked"]) == 20
        assert not torch.equal(together[0, 5]["bn1.running_mean"], together[1, 4]["bn1.running_mean"])


@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "augmented"])
@pytest.mark.parametrize("name", NETS)
def test_a_member_is_the_one_of_a_plain_loop(name: str, moving: bool) -> None:
    expected = plain_loop(name, RUNS[0], moving, torch.optim.Adam, lambda _: 1.0) | plain_loop(
        name, RUNS[1], moving, torch.optim.Adam, lambda _: 1.0
    )
    assert_equal(finish(group(name, RUNS[:2], 2, moving)), expected, 1e-9)


@pytest.mark.parametrize("fused", [1, 2])
def test_rates_follow_each_members_own_schedule(fused: int) -> None:
    settings = {"name": "sgd", "momentum": 0.5, "weight_decay": 0.01, "schedule": "cosine"}
    config = recipe(**settings).optimizer
    runs = [replace(run, schedule="cosine", weight_decay=0.01) for run in RUNS[:2]]

    def factor(progress: float) -> float:
        return config.factor("cosine", progress)

    expected: States = {}
    for run in runs:
        expected |= plain_loop("lenetlike", run, False, torch.optim.SGD, factor, momentum=0.5, weight_decay=0.01)
    assert_equal(finish(group("lenetlike", runs, fused, **settings)), expected, 1e-9)


def test_members_differ_in_schedule_and_weight_decay_too() -> None:
    """Beside each other, and the third in the place of the one that leaves first."""
    kinds = [("constant", 0.0), ("cosine", 0.1), ("steps", 0.02)]
    runs = [replace(run, schedule=kind, weight_decay=decay) for run, (kind, decay) in zip(RUNS, kinds, strict=True)]
    expected: States = {}
    for run in runs:
        settings = {"betas": (0.9, 0.999), "weight_decay": run.weight_decay}

        def factor(progress: float, schedule: Any = run.schedule) -> float:
            return OptimizerConfig().factor(schedule, progress)

        expected |= plain_loop("lenetlike", run, False, torch.optim.AdamW, factor, **settings)
    for fused in (1, 2, 3):
        assert_equal(finish(group("lenetlike", runs, fused, name="adamw")), expected, 1e-9)


@pytest.mark.parametrize("name", NETS)
def test_a_run_in_the_place_of_another_is_the_one_trained_alone(name: str) -> None:
    waiting = [*RUNS, RunPlan("a", 3, 44, (3,), 2e-3, "test"), RunPlan("a", 4, 55, (1, 2), 5e-3, "test")]
    trained = group(name, waiting, 2)
    sizes = []
    found: States = {}
    for _, snapshot in trained.epochs():
        sizes.append(len(trained.runs))
        if snapshot is not None:
            for place, run in enumerate(snapshot.runs):
                values = {key: value[place] for key, value in snapshot.state.items()}
                found[run.run, snapshot.epochs[place]] = values
    assert set(sizes[:-2]) == {2}, "free places are taken at once"
    alone: States = {}
    for run in waiting:
        alone |= finish(group(name, [run], 1))
    assert_equal(found, alone, 1e-9)


@pytest.mark.parametrize("late", [False, True], ids=["at the first step", "later"])
def test_fewer_at_once_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """The same networks, batch norm's statistics included, though steps failed half-way, at whatever step."""
    expected = finish(group("resnet8", RUNS, 3))
    short = group("resnet8", RUNS, 3)
    whole, calls = short.forward, [0]

    def greedy(rows: Tensor, *rest: Any) -> Any:
        found = whole(rows, *rest)
        calls[0] += 1
        if len(rows) > 1 and (calls[0] > 2 or not late):
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(short, "forward", greedy)
    assert_equal(finish(short), expected, 1e-9)
    assert short.width == 1


def test_no_memory_for_one_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*rest: Any) -> Any:
        raise torch.OutOfMemoryError

    short = group("lenetlike", RUNS, 3)
    monkeypatch.setattr(short, "forward", never)
    with pytest.raises(
        NetspaceError, match=r"memory does not hold one network in training with 16 images: set batch_size lower"
    ):
        finish(short)


@pytest.mark.skipif(which("c++") is None, reason="torch.compile needs a compiler here")
@pytest.mark.parametrize("name", NETS)
def test_smooth_members_of_a_group_are_those_trained_alone(name: str) -> None:
    smooth = recipe().model_copy(update={"smoothness": 0.01})

    def trained(runs: list[RunPlan], fused: int) -> States:
        return finish(Group(task(), make(name), runs, smooth, Way(fused)))

    together = trained(RUNS, 3)
    alone: States = {}
    for run in RUNS:
        alone |= trained([run], 1)
    assert_equal(together, alone, 1e-9)
    plain = finish(group(name, RUNS[:1], 1))[0, 5]

    def roughness(state: dict[str, Tensor]) -> float:
        return float(smoothness_loss(value for value in state.values() if value.ndim > 2))

    assert roughness(together[0, 5]) < 0.95 * roughness(plain)


def test_the_order_of_members_does_not_matter_and_the_seed_does() -> None:
    one, two = finish(group("lenetlike", RUNS, 3)), finish(group("lenetlike", RUNS[::-1], 3))
    assert_equal(one, two, 1e-9)
    other = RunPlan("a", 0, 12, (5,), 1e-2, "train")
    changed = finish(group("lenetlike", [other], 1))[0, 5]
    assert not torch.allclose(changed["conv1.weight"], one[0, 5]["conv1.weight"], atol=1e-3)


@pytest.mark.parametrize("fused", [1, 2, 3])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_group_goes_on_exactly_from_its_state(tmp_path: Path, fused: int, stop: int) -> None:
    """Through a file, as a restart does; after members have left, too."""
    whole = finish(group("resnet8", RUNS, fused, True))
    first, found = group("resnet8", RUNS, fused, True), {}
    for number, (_, snapshot) in enumerate(first.epochs(), 1):
        if snapshot is not None:
            for place, run in enumerate(snapshot.runs):
                found[run.run, snapshot.epochs[place]] = {name: value[place] for name, value in snapshot.state.items()}
        if number == stop:
            break
    write_torch(tmp_path / "group.pt", first.state())
    second = group("resnet8", RUNS, fused, True)
    second.load(read_torch(tmp_path / "group.pt"))
    assert second.round == stop and [run.run for run in second.runs] == [run.run for run in first.runs]
    assert second.epochs_done == first.epochs_done
    assert_equal(found | finish(second), whole, 0.0)


def test_epochs_tell_the_images_that_were_seen_by_all() -> None:
    trained = group("lenetlike", RUNS, 3)
    assert [seen for seen, _ in trained.epochs()] == [180, 120, 120, 120, 60]
    assert not trained.runs and list(trained.epochs()) == []


def test_varied_members_learn_from_their_own_images_and_labels() -> None:
    """In a group as alone, as a plain loop does that knows only what a run sees."""
    varied = [replace(run, variety=Variety(2, 0.5, 0.4)) for run in RUNS]
    settings = recipe(name="sgd", momentum=0.0).model_copy(update={"variety": VarietyConfig(classes=(2, 2))})
    together = finish(Group(task(), make("lenetlike"), varied, settings, Way(3)))
    run, data = varied[0], task()
    seen, labels = Variety(2, 0.5, 0.4).training_data(data.train.labels, run.seed)
    torch.manual_seed(run.seed)
    net = make("lenetlike")()
    optimizer = torch.optim.SGD(net.parameters(), lr=run.learning_rate)
    for epoch in range(1, 6):
        random = generator(run.seed, epoch)
        order = torch.cat([seen[torch.randperm(len(seen), generator=random)] for _ in range(IMAGES)])[:IMAGES]
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(data.normalise(data.train.images[batch])), labels[batch]).backward()
            optimizer.step()
    assert_equal({(0, 5): together[0, 5]}, {(0, 5): dict(net.state_dict())}, 1e-9)


def test_variety_of_a_task_without_classes_is_refused() -> None:
    varied = [replace(run, variety=Variety(2, 0.5, 0.4)) for run in RUNS]
    settings = recipe().model_copy(update={"variety": VarietyConfig()})
    begun = Group(task(), make("lenetlike"), varied, settings, Way(3))
    begun.task = SimpleNamespace(size=begun.task.size, targets=begun.task.targets, name="points")  # type: ignore[assignment]
    with pytest.raises(UsageError, match="variety is of networks that classify images; points is another task"):
        begun._labels()


def test_snapshots_are_copies() -> None:
    trained = group("lenetlike", RUNS[1:2], 1)
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for _, snapshot in trained.epochs():
        if snapshot is not None:
            kept.append((snapshot.state, copy.deepcopy(snapshot.state)))
    for state, before in kept:
        assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert not torch.equal(kept[0][0]["fc3.weight"], kept[1][0]["fc3.weight"])


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    finish(group("lenetlike", RUNS[2:], 1, True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fused", [1, 2])
def test_bf16_keeps_its_weights_in_float32_and_learns_the_same_way(fused: int) -> None:
    data = load(DataConfig(name="generated", image_size=8, channels=1, classes=3, limit=IMAGES))

    def build() -> nn.Module:
        return archs.build("resnet8", channels=1, image_size=8, classes=3, width=0.25)

    run = RunPlan("a", 0, 1, (1,), 1e-3, "train")
    runs = [run, RunPlan("a", 1, 2, (1,), 1e-3, "train")][:fused]
    half = finish(Group(data, build, runs, recipe(), Way(fused, "bf16")))[0, 1]
    full = finish(Group(data, build, runs, recipe(), Way(fused)))[0, 1]
    for name, value in full.items():
        assert half[name].dtype == value.dtype
    change = torch.cat([(half[name] - full[name]).flatten() for name in full if name.endswith("weight")])
    assert 0 < change.abs().mean() < 4e-3  # four steps of 1e-3: not far apart, and not the same


def test_ways_are_told_in_words() -> None:
    assert str(Way(8, "bf16")) == "8 at once, bf16" and Way() == Way(1, "float32")
