"""Rebuilt weights on another data set: what is trained, what is chosen, what is kept, and mistakes."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import settings
from safetensors.torch import save_file
from torch import nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression import transfer as module_of_transfer
from netspace.compression.fit import begin
from netspace.compression.transfer import TransferConfig, TransferLearner, last_layer, new_layer, transfer
from netspace.errors import NetspaceError, UsageError
from netspace.results.transfer import Transfer, Trial
from netspace.tasks import Classification, load_images
from netspace.tasks.base import DataConfig
from netspace.training.loop import Validation
from netspace.training.network import network_score, train

Cli = Callable[..., Any]
KWARGS = {"channels": 1, "image_size": 8, "classes": 4, "width": 0.25}
SHORT: dict[str, Any] = {"data": {"name": "digits", "limit": 60}, "seeds": 2, "epochs": 1, "batch_size": 30}


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, Path]:
    """A compressed file of a network with batch norm and four outputs, and its state dict."""
    torch.manual_seed(0)
    state = archs.build("vanillacnn", **KWARGS).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    begin(dict(state), settings(), None).save(tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors", tmp_path / "net.safetensors"


def config(**changes: Any) -> TransferConfig:
    return TransferConfig.model_validate({**SHORT, "rates": [1e-3, 1e-2], **changes})


def run(network: tuple[Path, Path], out: Path, **changes: Any) -> Transfer:
    return transfer(
        network[0], str(network[1]), out, config(**changes), arch=ArchConfig(arch="vanillacnn", kwargs=KWARGS)
    )


def test_all_starts_are_trained_and_chosen_by_validation(network: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(network, tmp_path / "t")
    assert Transfer.read(tmp_path / "t" / "transfer.json") == result
    assert [(row.start, row.tuned) for row in result.rows] == [
        (start, tuned) for start in ("original", "rebuilt", "random") for tuned in ("whole", "last")
    ]
    assert (result.classes, result.new_last, result.images_train, result.images_val) == (10, True, 60, 297)
    originals = {row.tuned: row for row in result.rows if row.start == "original"}
    for row in result.rows:
        folders = {
            rate: [tmp_path / "t" / f"{row.start}-{row.tuned}-{rate:g}-{n}" for n in (0, 1)] for rate in (1e-3, 1e-2)
        }
        trials = {rate: [Trial.read(each / "trial.json") for each in those] for rate, those in folders.items()}
        means = {rate: sum(trial.accuracy_val for trial in those) for rate, those in trials.items()}
        assert means[row.rate] == max(means.values())
        assert row.accuracy_test == [trial.accuracy_test for trial in trials[row.rate]]
        assert row.mean == pytest.approx(sum(row.accuracy_test) / 2)
        assert row.std == pytest.approx(abs(row.accuracy_test[0] - row.accuracy_test[1]) / 2**0.5)
        other = originals[row.tuned].accuracy_test
        expected = None if row.start == "original" else statistics.fmean(row.accuracy_test) - statistics.fmean(other)
        assert row.difference == (None if expected is None else pytest.approx(expected))


def test_finished_trainings_are_kept(
    network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(network, tmp_path / "t", seeds=1, rates=[1e-3])
    assert all(row.std is None and row.difference_std is None for row in first.rows)
    monkeypatch.setattr(module_of_transfer, "train", lambda *_: pytest.fail("trained again"))
    assert run(network, tmp_path / "t", seeds=1, rates=[1e-3]) == first
    with pytest.raises(UsageError, match="was begun with another network, file, data set or settings"):
        run(network, tmp_path / "t", seeds=2, rates=[1e-3])


@pytest.fixture
def task() -> Classification:
    return load_images(DataConfig(name="digits", limit=60))


def learner(task: Classification, last: str | None, epochs: int = 2) -> TransferLearner:
    torch.manual_seed(1)
    module = archs.build("vanillacnn", **{**KWARGS, "classes": 10})
    return TransferLearner(module, task, config(epochs=epochs).training(1e-2, 0), last)


def keep_last(made: TransferLearner) -> None:
    """Give later validations higher scores, whatever they measure."""
    validate, rising = made.validate, itertools.count()

    def rated() -> Validation:
        result = validate()
        return Validation(result.figures, (float(next(rising)),), result.note)

    made.validate = rated  # type: ignore[method-assign]


def test_the_last_layer_alone_is_trained(task: Classification, tmp_path: Path) -> None:
    made = learner(task, None)
    name = last_layer(made.model.eval(), torch.zeros(2, 1, 8, 8), "net")
    for last in (None, name):
        made = learner(task, last)
        keep_last(made)
        before = copy.deepcopy(made.model.state_dict())
        train(lambda rank, world, made=made: made, task, tmp_path / str(last))
        moved = {key for key, value in made.model.state_dict().items() if not torch.equal(value, before[key])}
        inside = {key for key in before if key.startswith(f"{name}.")}
        assert moved == inside if last else moved > inside  # statistics of batch norms too


def test_the_best_epoch_by_validation_is_kept(task: Classification, tmp_path: Path) -> None:
    made, scores = learner(task, None, 3), []
    validate = made.validate

    def recording() -> Any:
        result = validate()
        scores.append(result.figures["val_score"])
        return result

    made.validate = recording  # type: ignore[method-assign]
    network = train(lambda rank, world: made, task, tmp_path / "t")
    assert len(scores) == 4  # before the first epoch, too
    assert network_score(network, task, "val") == pytest.approx(max(scores))


def test_seeds_draw_other_fresh_layers_and_the_same_ones_for_all_starts(
    network: tuple[Path, Path], tmp_path: Path
) -> None:
    drawn: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    of = module_of_transfer._Starts

    class Recording(of):  # type: ignore[misc, valid-type]
        def network(self, start: Any, number: int) -> nn.Module:
            module = super().network(start, number)
            drawn[start, number] = copy.deepcopy(module.state_dict())
            return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_of_transfer, "_Starts", Recording)
        last = run(network, tmp_path / "t", rates=[1e-3]).last_layer
    key, first = f"{last}.weight", next(iter(drawn["original", 0]))
    assert torch.equal(drawn["original", 0][key], drawn["rebuilt", 0][key])
    assert not torch.equal(drawn["original", 0][key], drawn["original", 1][key])
    assert torch.equal(drawn["original", 0][first], drawn["original", 1][first])
    assert not torch.equal(drawn["original", 0][first], drawn["rebuilt", 0][first])
    assert not torch.equal(drawn["random", 0][first], drawn["random", 1][first])


class TwoHeads(nn.Module):
    """Layers that are not made in the order in which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.idle = nn.Conv2d(6, 4, 1), nn.Conv2d(1, 6, 3), nn.Linear(2, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(images))).mean(dim=(2, 3))


def test_the_last_layer_is_the_last_one_called() -> None:
    module = TwoHeads()
    assert last_layer(module, torch.zeros(2, 1, 8, 8), "net") == "head"
    layer = new_layer(nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), 7)
    assert layer(torch.zeros(1, 6, 8, 8)).shape == (1, 7, 4, 4) and layer.bias is None
    with pytest.raises(
        UsageError, match=r"expected to be a linear layer or a convolution .* with 3 outputs .* found 0"
    ):
        last_layer(nn.Sequential(nn.Linear(5, 6), nn.MaxPool1d(2)), torch.zeros(2, 5), "net")


def test_a_kept_last_layer_needs_as_many_classes(network: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 4 outputs and digits 10 classes.* leave new_last out"):
        run(network, tmp_path / "t", new_last=False)
    with pytest.raises(UsageError, match=r"only the weights are known: give --arch"):
        transfer(network[0], str(network[1]), tmp_path / "t", config())
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.ones(4, 1, 3, 3)}, other)
    with pytest.raises(NetspaceError, match="holds another network"):
        transfer(network[0], str(other), tmp_path / "t", config())
    assert not (tmp_path / "t").exists()


def test_the_command(cli: Cli, network: tuple[Path, Path]) -> None:
    kwargs = '{"channels": 1, "image_size": 8, "classes": 4, "width": 0.25}'
    words = ("compress", "transfer", *network, "-o", "t", "--arch", "vanillacnn", "--kwargs", kwargs)
    changes = ("data.limit=60", "seeds=2", "epochs=1", "batch_size=60", "rates=[0.002]")
    options = [word for change in changes for word in ("--set", change)]
    result = cli(*words, *options, "--json").json
    assert Transfer.model_validate(result).seeds == 2 and len(result["rows"]) == 6
    text = cli(*words, *options).out
    for part in (
        "rebuilt weights, the last layer alone",
        "random weights, all layers",
        "a fresh last layer",
        "over 2 seeds",
    ):
        assert part in text
    assert cli(*words, *options, "--set", "data.name=chairs").code == 2
