"""`netspace morph fit`: what it begins with computes what the network computes, what it writes is whole, and it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import netspace
from netspace import archs
from netspace.archs import ArchConfig
from netspace.commands import morph as command
from netspace.commands.morph import fit
from netspace.commands.morph_start import Start, find_start
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_json
from netspace.networks.graph import batch_norms
from netspace.networks.ordering import total_variation
from netspace.networks.widths import find_widths
from netspace.results.morphs import MorphFit
from netspace.saved_morph import MORPH, NETWORK, open_morph
from netspace.training import loop
from netspace.training.morph import MorphConfig
from netspace.training.network import network_score
from netspace.training.setup import task_of, teacher
from netspace.zoo import Zoo

CPU = torch.device("cpu")
STAGES = [{"steps": 4, "optimizer": {"name": "adam", "learning_rate": 0.002}}]


def config(**changes: Any) -> MorphConfig:
    return MorphConfig.model_validate({"stages": STAGES, "batch_size": 16, "precision": "float32", **changes})


def answers(start: Start, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = start.module.double()(inputs.double())
        start.module.float()
    return output


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_a_member_begins_with_its_own_function(multi_zoo: Path, batch_norm: str) -> None:
    """Against the zoo's own network, folded, that teachers are made of."""
    start = find_start(config(batch_norm=batch_norm), "resnet/0001", multi_zoo, CPU)
    with Zoo(multi_zoo) as zoo:
        task = task_of(zoo, CPU)
        master = teacher("resnet/0001", zoo, task)
    inputs = task.inputs("test", slice(20))
    torch.testing.assert_close(answers(start, inputs).float(), master(inputs), rtol=1e-4, atol=1e-4)
    norms = batch_norms(start.module)
    assert bool(norms) == (batch_norm == "keep")
    for norm in norms.values():
        assert norm.running_var is not None
        assert norm.running_var.std() > 1e-3  # of inputs, not those of an unfolded network
    assert start.data is not None and start.data.name == "digits" and start.task is not None


def _checkpoint(path: Path) -> nn.Module:
    torch.manual_seed(4)
    module = archs.build("resnet8", channels=1, image_size=8, width=0.2)
    module.train()(torch.randn(32, 1, 8, 8))
    torch.save({"ema": {f"module.{name}": value for name, value in module.state_dict().items()}, "epoch": 3}, path)
    return module.eval()


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_a_file_begins_with_its_own_function_and_statistics(tmp_path: Path, tiny_zoo: Path, batch_norm: str) -> None:
    module = _checkpoint(tmp_path / "net.pt")
    arch = ArchConfig(arch="resnet8", width=0.2)
    start = find_start(config(batch_norm=batch_norm), str(tmp_path / "net.pt"), tiny_zoo, CPU, arch)
    inputs = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(answers(start, inputs).float(), module(inputs), rtol=1e-4, atol=1e-4)
    if batch_norm == "keep":
        assert torch.equal(start.module.get_buffer("bn1.running_var"), module.get_buffer("bn1.running_var"))
    assert start.spec.settings == {"channels": 1, "image_size": 8, "classes": 10, "width": 0.2}


def test_nothing_begins_with_fresh_weights_by_the_seed(tiny_zoo: Path) -> None:
    nothing = {"start": "nothing", "data": {"name": "digits", "limit": 300}}
    one, two = (find_start(config(**nothing), None, None, CPU, ArchConfig(arch="resnet8", width=0.2)) for _ in range(2))
    other = find_start(config(**nothing, seed=1), None, None, CPU, ArchConfig(arch="resnet8", width=0.2))
    weights = [each.module.get_parameter("conv1.weight") for each in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    member = find_start(config(start="nothing"), "best", tiny_zoo, CPU)
    trained = find_start(config(), "best", tiny_zoo, CPU)
    assert member.spec == trained.spec
    assert not torch.equal(member.module.get_parameter("conv1.weight"), trained.module.get_parameter("conv1.weight"))


@pytest.fixture(scope="module")
def fitted(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MorphFit]:
    out = tmp_path_factory.mktemp("morph") / "run"
    return out, fit(out, config(), "best:resnet", multi_zoo)


def test_a_run_has_all_that_makes_networks(fitted: tuple[Path, MorphFit], multi_zoo: Path) -> None:
    out, result = fitted
    morph, task = open_morph(out), open_morph(out).task()
    assert [each.gamma for each in result.widths] == [0.0, 0.25, 0.5]
    for each in result.widths:
        network = morph.network(morph.info.at(each.gamma))
        assert sum(value.numel() for value in network.parameters()) == each.parameters
        assert network_score(network, task, "test") == each.accuracy
    assert result.full_accuracy == network_score(morph.module, task, "test")
    stored = load_file(out / MORPH)
    assert result.stored_parameters == sum(value.numel() for value in stored.values())
    assert result.full_parameters == sum(value.numel() for value in morph.module.parameters())
    assert result.groups == dict(zip(morph.info.names, morph.info.full(), strict=True))
    assert MorphFit.read(out / "fit.json") == result
    assert result.precision == read_json(out / "precision.json", dict[str, str]) == {"precision": "float32"}


def test_channels_are_in_a_better_order_and_the_function_is_the_same(
    fitted: tuple[Path, MorphFit], multi_zoo: Path
) -> None:
    out, result = fitted
    start = find_start(config(), "best:resnet", multi_zoo, CPU)
    module, groups = open_morph(out).module, start.info.groups
    variation = result.total_variation
    assert variation is not None and variation.after <= variation.greedy < variation.before
    assert variation.before == total_variation(dict(start.module.named_parameters()), groups)
    assert variation.after == total_variation(dict(module.named_parameters()), groups)
    inputs = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(module(inputs), start.module(inputs), rtol=1e-4, atol=1e-5)
    assert not torch.equal(module.get_parameter("conv1.weight"), start.module.get_parameter("conv1.weight"))


def test_channels_keep_their_order_if_asked(tmp_path: Path, tiny_zoo: Path) -> None:
    result = fit(tmp_path / "run", config(order=False), "best", tiny_zoo)
    assert result.total_variation is None
    start = find_start(config(), "best", tiny_zoo, CPU)
    written = load_file(tmp_path / "run" / NETWORK)
    assert all(torch.equal(value, start.module.state_dict()[name]) for name, value in written.items())


def test_the_same_command_gives_the_same_bytes(fitted: tuple[Path, MorphFit], tmp_path: Path, multi_zoo: Path) -> None:
    out, _ = fitted
    fit(tmp_path / "again", config(), "best:resnet", multi_zoo)
    for name in (MORPH, NETWORK):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    fitted: tuple[Path, MorphFit], tmp_path: Path, multi_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = fitted
    save, taken = loop.Loop._save, []

    def stop(self: loop.Loop, done: int) -> None:
        save(self, done)
        taken.append(done)
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", -1.0)
    monkeypatch.setattr(loop.Loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", config(), "best:resnet", multi_zoo)
    assert not (tmp_path / "run" / MORPH).exists()
    resumed = fit(tmp_path / "run", config(), "best:resnet", multi_zoo, resume=True)
    assert taken == [1, 2, 3, 4]
    assert (tmp_path / "run" / MORPH).read_bytes() == (out / MORPH).read_bytes()
    assert resumed.seconds is None and resumed.widths == result.widths


def test_resuming_a_finished_run_changes_nothing(
    fitted: tuple[Path, MorphFit], tmp_path: Path, multi_zoo: Path
) -> None:
    out, _ = fitted
    shutil.copytree(out, tmp_path / "run")
    first = MorphFit.read(tmp_path / "run" / "fit.json")
    resumed = fit(tmp_path / "run", config(), "best:resnet", multi_zoo, resume=True)
    assert first.seconds is not None and resumed.seconds == first.seconds and resumed.widths == first.widths


def test_weights_alone_are_learnt_without_a_task(tmp_path: Path) -> None:
    save_file(archs.build("vanillacnn", channels=1, image_size=8, width=0.2).state_dict(), tmp_path / "net.safetensors")
    learns = {"learns": "weights", "steps": 3}
    settings = config(stages=[learns], function={"kind": "mlp", "hidden": 8, "layers": 3})
    arch = ArchConfig(arch="vanillacnn", width=0.2, kwargs={"channels": 1, "image_size": 8})
    path = str(tmp_path / "net.safetensors")
    result = fit(tmp_path / "run", settings, path, arch=arch, input_shape=(1, 8, 8))
    assert "full_accuracy" not in result.payload() and result.widths[0].accuracy is None
    assert open_morph(tmp_path / "run").network([3, 2, 2, 2, 2])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_from_nothing_there_is_no_network_to_compare_with(tmp_path: Path) -> None:
    settings = config(start="nothing", data={"name": "digits", "limit": 300})
    result = fit(tmp_path / "run", settings, arch=ArchConfig(arch="lenetlike", width=0.25))
    assert "full_accuracy" not in result.payload() and len(result.widths) == 3
    assert open_morph(tmp_path / "run").task().name == "digits"


def widths_only(**changes: Any) -> MorphConfig:
    return config(batch_norm="fold", **changes)


@pytest.mark.parametrize(
    ("settings", "model", "zoo", "options", "why"),
    [
        (config(), None, True, {}, "MODEL is missing: name the network"),
        (config(), None, True, {"arch": ArchConfig(arch="resnet8")}, "MODEL is missing: name the network"),
        (config(start="nothing"), None, False, {"arch": ArchConfig(arch="resnet8")}, "no task is known: give --zoo"),
        (config(), "best", False, {}, "names a zoo's member, but no zoo is at hand"),
        (config(), "best", True, {"arch": ArchConfig(arch="resnet8")}, "leave --arch out"),
        (config(), "best", True, {"key": "ema"}, "leave --key out"),
        (config(data={"name": "digits"}), "best", True, {}, "the task was given twice"),
        (config(), "net.pt", True, {}, r"only the weights of .* give --arch"),
        (config(), "lenet/0099", True, {}, "lenet has"),
        (config(), "net.pt", False, {"arch": ArchConfig(arch="resnet8", kwargs={"channels": 1, "image_size": 8}, width=0.2)},
         r"the shape of an input of .* --input-shape"),
        (widths_only(), "net.pt", False,
         {"arch": ArchConfig(arch="resnet8", kwargs={"channels": 1, "image_size": 8}, width=0.2), "input_shape": (1, 8, 8)},
         "trained at several widths, but no task is known"),
        (config(), "net.pt", True, {"arch": ArchConfig(arch="resnet8", kwargs={"image_size": 16}, width=0.2)}, "set image_size"),
        (config(start="nothing"), None, True, {"arch": ArchConfig(arch="nowhere")}, "unknown architecture"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence_and_writes_nothing(
    multi_zoo: Path,
    tmp_path: Path,
    settings: MorphConfig,
    model: str | None,
    zoo: bool,
    options: dict[str, Any],
    why: str,
) -> None:
    _checkpoint(tmp_path / "net.pt")
    with pytest.raises(NetspaceError, match=why) as caught:
        fit(tmp_path / "run", settings, model, multi_zoo if zoo else None, **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


class Hopeless(nn.Module):
    """All channels are inputs or outputs, or are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class Dynamic(Hopeless):
    """What it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 0:
            x = self.conv(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("factory", "why"), [(Hopeless, "has no group of channels whose width can change"), (Dynamic, "Dynamic|dynamic")]
)
def test_networks_without_widths_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: type[nn.Module], why: str
) -> None:
    monkeypatch.setitem(archs.ARCHS, "dynamic", factory)
    settings = config(start="nothing", data={"name": "digits", "limit": 300})
    with pytest.raises(NetspaceError, match=why) as caught:
        fit(tmp_path / "run", settings, arch=ArchConfig(arch="dynamic"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_task_that_networks_do_not_share_is_refused(tmp_path: Path, chairs_zoo: Path) -> None:
    with pytest.raises(UsageError, match="each network of chairs has data of its own"):
        fit(tmp_path / "run", config(), "siren/0000", chairs_zoo)


def test_a_folder_is_not_overwritten(fitted: tuple[Path, MorphFit], tmp_path: Path, multi_zoo: Path) -> None:
    run = shutil.copytree(fitted[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(
        UsageError, match=r"exists already: give --resume to go on with it \(`netspace morph fit --resume"
    ):
        fit(run, config(), "best:resnet", multi_zoo)
    with pytest.raises(UsageError, match="was begun with other settings: seed was 0 and is 1 now"):
        fit(run, config(seed=1), "best:resnet", multi_zoo, resume=True)
    with pytest.raises(UsageError, match="was begun with another network: resume it with its own"):
        fit(run, config(), "worst:resnet", multi_zoo, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (tmp_path / "other").mkdir()
    shutil.copy(run / MORPH, tmp_path / "other")
    with pytest.raises(UsageError, match=rf"other holds {MORPH} already"):
        fit(tmp_path / "other", config(), "best:resnet", multi_zoo)


def test_an_order_that_changes_the_function_is_noticed(
    tmp_path: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(module: nn.Module, groups: Any, orders: Any) -> nn.Module:
        with torch.no_grad():
            made = command_ordered(module, groups, orders)
            made.get_parameter("conv1.bias").copy_(made.get_parameter("conv1.bias").flip(0))
        return made

    command_ordered = command.ordered_module
    monkeypatch.setattr(command, "ordered_module", wrong)
    with pytest.raises(NetspaceError, match="lenetlike with reordered channels"):
        fit(tmp_path / "run", config(), "best", tiny_zoo)
    assert not (tmp_path / "run").exists()


def test_the_front_door_opens(fitted: tuple[Path, MorphFit]) -> None:
    morph = netspace.open_morph(fitted[0])
    info = find_widths(morph.module, torch.zeros(1, 1, 8, 8), "resnet8")
    assert morph.info.names == info.names
