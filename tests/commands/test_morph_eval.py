"""`netspace morph eval`: what it measures, by slow oracles; what it trains once; what it refuses."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from morphs import DATA, write_morph
from torch import nn

from netspace.commands import morph_eval, morph_methods
from netspace.commands.morph import fit
from netspace.commands.morph_eval import evaluate, features_and_outputs, last_layer
from netspace.commands.morph_methods import BASELINES, network_config
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_tensors
from netspace.networks.pruning import pruned
from netspace.networks.resizing import with_first_channels
from netspace.results.morph_eval import MorphEvaluation
from netspace.saved_morph import open_morph
from netspace.tasks import DataConfig, load
from netspace.training import width_baselines as others
from netspace.training.morph import MorphConfig
from netspace.training.network import NetworkConfig, calibration, network_score
from netspace.training.slimmable import SlimmableConfig, train_slimmable
from netspace.zoo import Zoo

GAMMAS = (0.0, 0.4, 0.8)
DRAWS = 3  # instead of 50, which take longer


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (morph_eval, morph_methods):
            patch.setattr(module, "DRAWS", DRAWS)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("morph")
    write_morph(folder, epochs=6)
    return folder


@pytest.fixture(scope="module")
def result(run: Path) -> MorphEvaluation:
    return evaluate(run, GAMMAS, epochs=2)


def test_every_method_is_measured_at_the_same_widths(run: Path, result: MorphEvaluation) -> None:
    morph = open_morph(run)
    assert [each.gamma for each in result.widths] == list(GAMMAS)
    for each in result.widths:
        module = morph.network(morph.info.at(each.gamma))
        assert each.parameters == sum(value.numel() for value in module.parameters())
        assert set(each.baselines.payload()) == set(BASELINES) and None not in each.baselines.payload().values()
    assert [each.trained for each in result.widths] == [True, True, False]
    assert result.full_parameters == result.stored_parameters == result.widths[0].parameters
    assert result.training["epochs"] == 2 and result.seeds == 1 and result.score is None
    first = result.widths[0]
    assert first.accuracy == first.baselines.pruned_l1 == first.baselines.resampled  # the network itself, recalibrated
    assert first.accuracy == pytest.approx(result.full_accuracy, abs=0.1) and first.accuracy > 0.7
    assert first.agreement is not None and first.agreement > 0.8
    assert first.baselines.individual != first.accuracy
    assert result.widths[1].baselines.us_net not in (result.widths[1].accuracy, result.widths[1].baselines.resampled)
    assert MorphEvaluation.read(run / "eval.json") == result


def test_accuracies_are_those_of_the_test_images(run: Path, result: MorphEvaluation) -> None:
    morph, task = open_morph(run), load(DATA)
    widths, figures = morph.info.at(0.4), result.widths[1]
    config = network_config(run, morph, task, 2)
    images = calibration(task, config.seed, config.batch_size)
    network = morph.network(widths, batches=images)
    assert figures.accuracy == network_score(network, task, "test")
    assert figures.sampled_accuracy == network_score(
        morph.network(widths, draws=DRAWS, seed=config.seed, batches=images), task, "test"
    )
    outputs = [each(task.inputs("test", slice(None))).argmax(1) for each in (network, morph.module)]
    assert figures.agreement == pytest.approx(float((outputs[0] == outputs[1]).double().mean()))
    plain = others.recalibrated([pruned(morph.module, morph.info, widths, "l1")], task, config)[0]
    assert figures.baselines.pruned_l1 == network_score(plain, task, "test")


def slow_cka(first: np.ndarray, second: np.ndarray) -> float:
    """|Y'X|^2 / (|X'X| |Y'Y|) of centred features (Kornblith et al. 2019, Sec. 3)."""
    x, y = (each - each.mean(axis=0) for each in (first, second))
    norm = np.linalg.norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def test_properties_by_definition(run: Path, result: MorphEvaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    morph, task = open_morph(run), load(DATA)
    config = network_config(run, morph, task, 2)
    images = calibration(task, config.seed, config.batch_size)
    networks = [morph.network(morph.info.at(gamma), batches=images) for gamma in GAMMAS]
    inputs = task.inputs("test", slice(None))
    assert result.inputs == task.size("test") == len(inputs)
    features, logits = [], []
    for network in networks:
        read: list[torch.Tensor] = []
        handle = network.get_submodule("fc").register_forward_pre_hook(
            lambda _, given, read=read: read.append(given[0])
        )
        logits.append(network(inputs).detach().double())
        handle.remove()
        features.append(read[0].detach().flatten(1).double().numpy())
    expected = [slow_cka(each, features[0]) for each in features]
    assert result.cka["morph"] == pytest.approx(expected, rel=1e-5) and expected[0] == pytest.approx(1.0)
    assert result.cka.keys() == result.divergence.keys() == {"morph", "individual", "us_net"}
    for row, target in enumerate(logits):
        for column, other in enumerate(logits):
            p, q = target.softmax(1), other.softmax(1)
            slow = float((p * (p / q).log()).sum(1).mean())
            assert result.divergence["morph"][row][column] == pytest.approx(slow, rel=1e-4, abs=1e-6)


def test_us_net_begins_at_the_network_or_at_fresh_weights(run: Path, result: MorphEvaluation, tmp_path: Path) -> None:
    morph, task = open_morph(run), load(DATA)
    config, limits = network_config(run, morph, task, 2), morph.config.widths
    slimmable = SlimmableConfig(narrowest=limits.narrowest, random=limits.random, each_group=limits.each_group)
    full = train_slimmable(morph.module, morph.info, task, config, slimmable, tmp_path / "slimmable")
    narrow = with_first_channels(full, morph.info, morph.info.at(0.4))
    score = network_score(others.recalibrated([narrow], task, config)[0], task, "test")
    assert result.us_net_start == "network" and result.widths[1].baselines.us_net == score
    own = shutil.copytree(run, tmp_path / "own")
    fresh = evaluate(own, (0.0, 0.4), ["us_net"], epochs=1, us_net_start="fresh")
    assert fresh.us_net_start == "fresh" and fresh.widths[1].baselines.us_net != score
    assert evaluate(own, (0.0,), []).us_net_start is None
    with pytest.raises(UsageError, match="unknown start of the slimmable network 'netwrok': did you mean 'network'"):
        evaluate(run, us_net_start="netwrok")


def test_a_second_evaluation_trains_nothing(run: Path, result: MorphEvaluation) -> None:
    before = {file: file.stat().st_mtime_ns for file in (run / "baselines").rglob("last.pt")}
    assert len(before) == 4  # three individual networks and one slimmable
    again = evaluate(run, GAMMAS, epochs=2)
    assert again == result
    assert {file: file.stat().st_mtime_ns for file in (run / "baselines").rglob("last.pt")} == before
    assert None not in again.seconds.individual and again.seconds.us_net is not None and again.seconds.morph == 7.5


def test_a_stopped_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_morph(tmp_path)
    train, done = others.train_network, []

    def stopping(*given: object) -> nn.Module:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(given)
        return train(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(others, "train_network", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, (0.0, 0.5), ["individual"])
    assert not (tmp_path / "eval.json").exists()
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "baselines").rglob("last.pt")}
    monkeypatch.setattr(others, "train_network", train)
    result = evaluate(tmp_path, (0.0, 0.5), ["individual"])
    assert len(first) == 1 and all(file.stat().st_mtime_ns == when for file, when in first.items())
    assert result.widths[0].baselines.payload().keys() == {"individual"}
    assert result.seconds.individual[0] is not None


def test_each_further_seed_has_a_network_and_a_morph_of_its_own(tmp_path: Path) -> None:
    write_morph(tmp_path)
    result = evaluate(tmp_path, (0.0, 0.5), ["individual", "pruned_l1"], seeds=2)
    task, scores, pruned_scores = load(DATA), [], []
    (other,) = (tmp_path / "baselines").rglob("morph.safetensors")
    for seed, folder in enumerate((tmp_path, other.parent)):
        morph = open_morph(folder)
        config = network_config(tmp_path, morph, task)
        assert config.seed == morph.config.seed == seed
        images = calibration(task, config.seed, config.batch_size)
        scores.append(network_score(morph.network(morph.info.at(0.5), batches=images), task, "test"))
        module = pruned(morph.module, morph.info, morph.info.at(0.5), "l1")
        pruned_scores.append(network_score(others.recalibrated([module], task, config)[0], task, "test"))
    figures = result.widths[1]
    assert figures.accuracy == pytest.approx(sum(scores) / 2)
    assert figures.accuracy_std == pytest.approx(float(np.std(scores, ddof=1)))
    assert figures.baselines.pruned_l1 == pytest.approx(sum(pruned_scores) / 2)
    assert figures.baselines_std.pruned_l1 == pytest.approx(float(np.std(pruned_scores, ddof=1)))
    assert figures.baselines_std.individual is not None and figures.baselines_std.us_net is None
    own = {file: file.stat().st_mtime_ns for file in (tmp_path / "baselines").rglob("*.safetensors")}
    assert evaluate(tmp_path, (0.0, 0.5), ["individual", "pruned_l1"], seeds=2) == result
    assert {file: file.stat().st_mtime_ns for file in own} == own
    alone = evaluate(tmp_path, (0.5,), [])
    assert not any(name.endswith("_std") for name in alone.widths[0].payload()) and alone.cka.keys() == {"morph"}


def test_other_tasks_have_their_measures_and_pictures(tmp_path: Path) -> None:
    """Of a U-Net: mIoU as accuracy, what else the task measures, features of the last convolution, rows of pictures."""
    data = DataConfig(name="segmentation", image_size=16, limit=50)
    morph = write_morph(tmp_path, "unet", data=data)
    result = evaluate(tmp_path, (0.0, 0.5), ["pruned_l1", "individual"], epochs=1)
    task, config = load(data), network_config(tmp_path, morph, load(data), 1)
    network = morph.network(morph.info.at(0.5), batches=calibration(task, config.seed, config.batch_size))
    expected = task.assess(lambda inputs: network(inputs)[None], "test", torch.tensor([-1]))
    figures = result.widths[1]
    assert result.score is not None and result.score.name == "mIoU"
    assert figures.accuracy == pytest.approx(float(expected["mIoU"])) and set(figures.measures) == {
        "f1",
        "pixel_accuracy",
    }
    assert figures.measures["f1"].morph == pytest.approx(float(expected["f1"]))
    assert figures.measures["f1"].payload().keys() == {"morph", "pruned_l1", "individual"}
    assert 0 < result.cka["morph"][1] < 1 and result.divergence["morph"][0][1] > 0
    rows, _ = read_tensors(tmp_path / "eval.safetensors")
    assert sorted(rows) == ["00 image", "01 truth", "02 prediction, γ 0", "03 prediction, γ 0.5"]
    assert all(row.shape == (6, 16, 16, 3) and row.dtype == torch.uint8 for row in rows.values())


def test_widths_above_the_full_one_have_no_slimmable_or_pruned_network(tmp_path: Path) -> None:
    write_morph(tmp_path)
    result = evaluate(tmp_path, (0.0, -0.5), ["us_net", "pruned_l1", "resampled"], epochs=1)
    wide, full = result.widths
    assert wide.gamma == -0.5 and wide.parameters > full.parameters and not wide.trained
    assert wide.baselines.us_net is wide.baselines.pruned_l1 is None and wide.baselines.resampled is not None
    assert result.cka.keys() == {"morph"}


def test_a_morph_of_fresh_weights_is_compared_with_trained_networks(tmp_path: Path) -> None:
    write_morph(tmp_path, "resnet8", start="nothing", batch_norm="fold")
    result = evaluate(tmp_path, (0.0, 0.5), ["pruned_l1", "individual", "us_net"], epochs=1)
    first = result.widths[0]
    assert result.us_net_start == "fresh"
    with pytest.raises(UsageError, match="was fitted to no network, so that a slimmable one cannot begin with its wei"):
        evaluate(tmp_path, us_net_start="network")
    assert "full_accuracy" not in result.payload() and first.agreement is None
    assert first.baselines.pruned_l1 == pytest.approx(first.baselines.individual)


def test_networks_of_files_are_trained_as_long_as_the_recipe_says(tmp_path: Path) -> None:
    stages, task = [{"learns": "weights", "steps": 5}, {"epochs": 1.5}, {"steps": 8}], load(DATA)
    morph = write_morph(tmp_path, seed=3, stages=stages)
    (tmp_path / "baselines").mkdir()
    config = network_config(tmp_path, morph, task, seed=2)
    assert (config.epochs, config.batch_size, config.seed) == (4, 50, 5)  # 300 and 400 of 200 images, rounded
    assert config.optimizer == NetworkConfig().optimizer
    longer = network_config(tmp_path, morph, task, 9)
    assert longer == config.model_copy(update={"epochs": 9, "seed": 3})


def test_networks_of_a_zoo_are_trained_as_its_member(tiny_zoo: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo.h5"
    shutil.copy(tiny_zoo, zoo)
    recipe = MorphConfig.model_validate({"stages": [{"steps": 1}], "batch_size": 20, "seed": 4})
    fit(tmp_path / "m", recipe, "lenetlike/0023", zoo)
    (tmp_path / "m" / "baselines").mkdir()
    morph = open_morph(tmp_path / "m")
    config = network_config(tmp_path / "m", morph, morph.task())
    with Zoo(zoo) as opened:
        row = opened.group("lenetlike").members[23]
    expected = {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.0, "schedule": "constant"}
    assert config.optimizer.model_dump().items() >= expected.items()
    assert (config.epochs, config.batch_size, config.seed) == (row["epochs"], 25, 4)
    zoo.unlink()  # what was found is kept
    assert network_config(tmp_path / "m", morph, morph.task()) == config


def test_networks_are_not_trained_as_a_member_whose_decay_was_in_its_gradient(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decay of a zoo's adam and muon is a penalty in the loss, ours is decoupled, as adamw's."""
    recipe = MorphConfig.model_validate({"stages": [{"steps": 8}], "batch_size": 25})
    fit(tmp_path / "m", recipe, "lenetlike/0023", tiny_zoo)
    morph = open_morph(tmp_path / "m")
    names = {}
    for name, decay in itertools.product(("adam", "adamw", "muon"), (0.0, 0.02)):

        def changed(path: Path, name: str = name, decay: float = decay) -> Zoo:
            zoo = Zoo(path)
            optimizer = {**zoo.header.recipe["optimizer"], "name": name, "weight_decay": decay, "muon_rate": 0.003}
            zoo.header = replace(zoo.header, recipe={**zoo.header.recipe, "optimizer": optimizer})
            return zoo

        with monkeypatch.context() as patch:
            patch.setattr(morph_methods, "Zoo", changed)
            found = network_config(tmp_path / "m", morph, morph.task())
        (tmp_path / "m" / "baselines" / "network.json").unlink()
        names[name, decay] = "default" if found.optimizer == NetworkConfig().optimizer else found.optimizer.name
        assert names[name, decay] == "default" or found.optimizer.weight_decay == decay
    assert names == {
        ("adam", 0.0): "adam", ("adamw", 0.0): "adam", ("muon", 0.0): "muon",
        ("adam", 0.02): "default", ("adamw", 0.02): "adam", ("muon", 0.02): "default",
    }  # fmt: skip


def test_the_last_layer_of_a_network_is_the_one_that_runs_last() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Conv2d(4, 2, 1), nn.Conv2d(1, 4, 3)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.head(self.body(x))
            return output

    net, inputs = Net(), torch.randn(3, 1, 10, 10)
    assert last_layer(net, inputs) == "head"
    features, outputs = features_and_outputs(net, "head", inputs)
    torch.testing.assert_close(
        features, net.body(inputs).unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1)).flatten(1).detach()
    )
    assert torch.equal(outputs, net(inputs).detach())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
    with pytest.raises(NetspaceError, match="runs neither a linear layer nor a convolution"):
        last_layer(nn.PReLU(), inputs)


def test_mistakes_are_one_sentence(tmp_path: Path, run: Path) -> None:
    for gammas, why in (((), "no compression rate"), ((0.5, 0.5), "has one twice"), ((1.0,), "a number below 1")):
        with pytest.raises(UsageError, match=why):
            evaluate(run, gammas, [])
    with pytest.raises(UsageError, match="unknown baseline 'prunedl1': did you mean 'pruned_l1'"):
        evaluate(run, baselines=["prunedl1"])
    with pytest.raises(UsageError, match="does not exist"):
        evaluate(tmp_path / "nothing")
    moved = tmp_path / "moved"
    write_morph(moved)
    (moved / "network.safetensors").unlink()
    with pytest.raises(UsageError, match="is not the whole folder of a `netspace morph fit`"):
        evaluate(moved)
    assert not (moved / "baselines").exists()


def test_the_command_prints_a_table_or_one_object(cli: Callable[..., Any], run: Path, result: MorphEvaluation) -> None:
    words = ("morph", "eval", run, "--gammas", "0,0.4,0.8", "--epochs", 2, "--device", "cpu")
    printed = cli(*words, "--json")
    assert printed.code == 0 and printed.json == result.payload()
    assert set(printed.json) >= {"widths", "stored_parameters", "full_parameters", "cka", "divergence", "seconds"}
    keys = {"gamma", "parameters", "trained", "accuracy", "sampled_accuracy", "agreement", "baselines"}
    assert all(set(each) == keys and set(each["baselines"]) == set(BASELINES) for each in printed.json["widths"])
    lines = cli(*words).out.splitlines()
    assert "accuracy on the test images (* within the morph's training; the network it was fitted to scores" in lines[0]
    head, _, *rows = lines[1:6]
    expected = "gamma parameters morph 3 draws alone US-Net pruned l1 Taylor random resampled"
    assert " ".join(head.split()) == expected
    assert [row.split("  ")[0] for row in rows] == ["0 *", "0.4 *", "0.8"]
    assert f"{100 * (result.widths[0].accuracy or 0):.1f} %" in rows[0] and "s the morph" in lines[-2]
    assert lines[-2].endswith("US-Net began at the network, and so did the morph")


def test_the_command_says_what_is_wrong_with_its_options(cli: Callable[..., Any], run: Path) -> None:
    failed = cli("morph", "eval", run, "--gammas", "half")
    assert failed.code == 2 and "--gammas 'half' was expected to be numbers with commas between" in failed.err
    failed = cli("morph", "eval", run, "--baselines", "none,us_net")
    assert failed.code == 2 and "unknown baseline 'none'" in failed.err
