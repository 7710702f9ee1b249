"""Networks trained by the one loop: as a zoo's members are, slimmable ones, and the baselines of every width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_zoo import forward
from netspace.errors import NetspaceError, UsageError
from netspace.networks.resizing import recalibrate, with_first_channels
from netspace.networks.widths import Widths, find_widths, resized
from netspace.run_folder import read_metrics
from netspace.tasks import Classification, DataConfig, Task, load
from netspace.training import width_baselines as baselines
from netspace.training.network import NetworkConfig, NetworkLearner, calibration, network_score, train_network
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.slimmable import Slimmable, SlimmableConfig, SlimmableLearner, train_slimmable

CONFIG = NetworkConfig(epochs=2, batch_size=50, optimizer=OptimizerConfig(learning_rate=0.01, schedule="cosine"))


@pytest.fixture(scope="module")
def task() -> Classification:
    loaded = load(DataConfig(name="digits", limit=200))
    assert isinstance(loaded, Classification)
    return loaded


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(
            nn.Conv2d(1, width, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 6, 3, 2),
            nn.BatchNorm2d(6),
        ),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(24, 10)),
    )


@pytest.fixture(scope="module")
def info(task: Task) -> Widths:
    return find_widths(network(), task.inputs("train", slice(1)), "net")


@pytest.fixture(scope="module")
def trained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return train_network(network(), task, CONFIG.model_copy(update={"epochs": 8}), tmp_path_factory.mktemp("trained"))


def test_a_network_learns_and_its_training_is_recorded(trained: nn.Module, task: Task, tmp_path: Path) -> None:
    assert not trained.training and network_score(trained, task, "test") > 0.5
    one, same = (train_network(network(), task, CONFIG, tmp_path / name) for name in ("one", "same"))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in one.state_dict().items())
    records = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert records[-1]["step"] == 8 and records[-1]["val_score"] == network_score(one, task, "val")


def test_steps_are_the_zoos_adamw(task: Task) -> None:
    """The same gradients give the same weights as the optimiser of a zoo's members, to its default recipe's settings."""
    config = OptimizerConfig(learning_rate=0.004, weight_decay=0.05, schedule="cosine")
    module = nn.Linear(5, 3).double()
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()[None]
    zoo = forward.OptimizerConfig(name="adamw", learning_rate=0.004, weight_decay=0.05, schedule="cosine")
    stacked, optimizer = forward.StackedOptimizer(zoo, flat), Optimizer(module, config, 10)
    for step in range(10):
        inputs = torch.randn(7, 5, dtype=torch.float64)
        module(inputs).square().mean().backward()
        gradient = torch.cat([value.grad.flatten() for value in module.parameters() if value.grad is not None])[None]
        rate = torch.full((1, 1), 0.004 * zoo.factor("cosine", step / 10), dtype=torch.float64)
        stacked.step(flat, gradient, rate, torch.full((1, 1), 0.05, dtype=torch.float64))
        optimizer.step(step)
    torch.testing.assert_close(nn.utils.parameters_to_vector(module.parameters()).detach(), flat[0])


def test_a_finished_training_is_not_repeated_and_other_settings_are_refused(task: Task, tmp_path: Path) -> None:
    first = train_network(network(), task, CONFIG, tmp_path)
    again = train_network(network(), task, CONFIG, tmp_path)  # from its checkpoint
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    with pytest.raises(NetspaceError, match=r"last\.pt does not hold a state that can be resumed"):
        train_network(network(), task, CONFIG.model_copy(update={"seed": 1}), tmp_path)


def test_averaged_weights_are_returned(task: Task, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"optimizer": CONFIG.optimizer.model_copy(update={"ema": 0.9})})
    averaged = train_network(network(), task, config, tmp_path / "average")
    plain = train_network(network(), task, CONFIG, tmp_path / "plain")
    assert not torch.equal(averaged[0].weight, plain[0].weight)
    again = train_network(network(), task, config, tmp_path / "average")
    assert torch.equal(averaged[0].weight, again[0].weight)


def test_networks_with_data_of_their_own_are_refused(tmp_path: Path) -> None:
    chairs = load(DataConfig(name="chairs", points=64))
    with pytest.raises(UsageError, match="each network of chairs has data of its own"):
        train_network(nn.Linear(3, 1), chairs, CONFIG, tmp_path)


def test_the_full_width_of_shared_weights_is_the_plain_network(info: Widths, task: Task) -> None:
    module, inputs = network(), task.inputs("train", slice(9))
    model = Slimmable(module, info)
    full, narrow = model(inputs, [info.full(), (4, 2)])
    torch.testing.assert_close(full, module.train()(inputs), rtol=0, atol=0)
    torch.testing.assert_close(full, model(inputs), rtol=0, atol=0)
    expected = with_first_channels(module, info, (4, 2)).train()(inputs)
    torch.testing.assert_close(narrow, expected, rtol=0, atol=0)


@pytest.mark.parametrize("each_group", [False, True])
def test_a_step_takes_the_largest_the_smallest_and_random_widths(info: Widths, task: Task, each_group: bool) -> None:
    settings = SlimmableConfig(narrowest=0.5, random=3, each_group=each_group)
    learner = SlimmableLearner(Slimmable(network(), info), task, CONFIG, settings)
    drawn = [learner.choices(number) for number in range(30)]
    assert all(len(each) == 5 and each[:2] == [(8, 6), (4, 3)] for each in drawn)
    others = {widths for each in drawn for widths in each[2:]}
    assert {width for width, _ in others} == {4, 5, 6, 7, 8} and {width for _, width in others} == {3, 4, 5, 6}
    uniform = {info.at(gamma / 1000) for gamma in range(501)}
    assert (others <= uniform) is not each_group
    assert learner.choices(3) == drawn[3]


def test_the_loss_is_the_tasks_at_full_width_and_the_distance_to_it_elsewhere(info: Widths, task: Task) -> None:
    learner = SlimmableLearner(Slimmable(network(), info), task, CONFIG, SlimmableConfig(random=1))
    inputs, targets = learner.batch(2)
    full, *others = [each.detach() for each in learner.model(inputs, learner.choices(2))]
    terms = learner.terms(learner.model, 2, 0)
    torch.testing.assert_close(terms["task"].detach(), F.cross_entropy(full, targets))
    divergences = [F.kl_div(each.log_softmax(1), full.softmax(1), reduction="batchmean") for each in others]
    torch.testing.assert_close(terms["distillation"].detach(), sum(divergences))
    terms["distillation"].backward()  # the teacher learns nothing from it
    gradient = learner.model.net[0].weight.grad
    largest = max(widths[0] for widths in learner.choices(2)[1:])
    assert gradient is not None and gradient[:largest].abs().sum() > 0 and not gradient[largest:].any()


def test_slimmable_networks_work_at_widths_between(info: Widths, task: Task, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 8})
    full = train_slimmable(network(), info, task, config, SlimmableConfig(), tmp_path)
    assert full.state_dict().keys() == network().state_dict().keys()
    for widths in ((8, 6), (6, 4), (4, 3)):
        made = recalibrate(with_first_channels(full, info, widths), calibration(task, config.seed, config.batch_size))
        assert network_score(made, task, "test") > 0.25
    again = train_slimmable(network(), info, task, config, SlimmableConfig(), tmp_path)
    assert torch.equal(full[0].weight, again[0].weight)
    with pytest.raises(NetspaceError, match="resumed"):
        train_slimmable(network(), info, task, config, SlimmableConfig(narrowest=0.25), tmp_path)


Make = Callable[[nn.Module, Widths, list[tuple[int, ...]], Task, Path], list[nn.Module]]
BASELINES: dict[str, Make] = {
    "individual": lambda net, info, widths, task, folder: baselines.individual_networks(
        net, info, widths, task, CONFIG, folder
    ),
    "l1": lambda net, info, widths, task, folder: baselines.pruned_networks(net, info, widths, task, CONFIG, "l1"),
    "taylor": lambda net, info, widths, task, folder: baselines.pruned_networks(
        net, info, widths, task, CONFIG, "taylor"
    ),
    "random": lambda net, info, widths, task, folder: baselines.pruned_networks(
        net, info, widths, task, CONFIG, "random"
    ),
    "slimmable": lambda net, info, widths, task, folder: baselines.slimmable_networks(
        net, info, widths, task, CONFIG, SlimmableConfig(), folder
    ),
    "resampled": lambda net, info, widths, task, folder: baselines.resampled_networks(net, info, widths, task, CONFIG),
}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_has_the_same_widths(
    name: str, trained: nn.Module, info: Widths, task: Task, tmp_path: Path
) -> None:
    if name in ("l1", "taylor"):
        pytest.importorskip("torch_pruning", reason='needs `pip install "netspace[morph]"`')
    before = copy.deepcopy(trained.state_dict())
    widths = [info.full(), (6, 3), (1, 2)]
    networks = BASELINES[name](trained, info, widths, task, tmp_path)
    for made, each in zip(networks, widths, strict=True):
        assert repr(made) == repr(resized(trained, info, each, 0)) and not made.training
        assert 0 <= network_score(made, task, "test") <= 1
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    if name in ("l1", "taylor", "random", "resampled"):  # nothing but batch norm's statistics may change
        assert all(torch.equal(value, before[key]) for key, value in networks[0].named_parameters())


def test_individual_networks_start_from_fresh_weights_of_the_seed(
    trained: nn.Module, info: Widths, task: Task, tmp_path: Path
) -> None:
    (made,) = baselines.individual_networks(trained, info, [(4, 3)], task, CONFIG, tmp_path)
    learner = NetworkLearner(resized(network(), info, (4, 3), CONFIG.seed), task, CONFIG)
    expected = train_network(learner.model, task, CONFIG, tmp_path / "other")
    assert torch.equal(made[0].weight, expected[0].weight)


def test_recalibration_gives_all_of_them_statistics_of_the_same_inputs(
    trained: nn.Module, info: Widths, task: Task
) -> None:
    networks = baselines.recalibrated([copy.deepcopy(trained) for _ in range(2)], task, CONFIG)
    inputs = torch.cat(calibration(task, CONFIG.seed, CONFIG.batch_size))
    assert len(inputs) == 4 * 50  # one pass at most
    with torch.no_grad():
        mean = trained[0](inputs).mean((0, 2, 3))
    for each in networks:
        torch.testing.assert_close(each[1].running_mean, mean)


def test_augmentation_is_the_tasks(task: Classification) -> None:
    moving = replace(task, crop_padding=2)
    plain, moved = (NetworkLearner(network(), each, CONFIG).batch(0) for each in (task, moving))
    assert torch.equal(plain[1], moved[1]) and not torch.equal(plain[0], moved[0])
    halves = [NetworkLearner(network(), moving, CONFIG, rank, 2).batch(0)[0] for rank in range(2)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), moved[0])
