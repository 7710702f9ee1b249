"""`netspace diff`: figures against slow and obvious ones, alignment, kinds of networks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from morphs import write_morph
from torch import Tensor, nn

import netspace
from netspace import archs
from netspace.archs import ArchConfig
from netspace.commands.diff import common_layers, diff, differences
from netspace.commands.morph_sample import Size, sample
from netspace.compression.fit import fit
from netspace.io import write_tensors
from netspace.networks.prep import unflatten, unpack
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata
from netspace.training.recipe import FitConfig
from netspace.training.setup import task_of
from netspace.zoo import Zoo


def member(path: Path, name: str) -> tuple[dict[str, Tensor], NetSpec]:
    with Zoo(path) as zoo:
        found = zoo.find(name)
        group = zoo.group(found.arch)
        flat = unpack(group.read([found.index]), group.spec.num_parameters)[0]
        return {key: value.clone() for key, value in unflatten(flat, group.spec).items()}, group.spec


def test_figures_are_those_of_a_slow_comparison(tiny_zoo: Path) -> None:
    result = diff("best", "worst", tiny_zoo)
    one, spec = member(tiny_zoo, "best")
    other, _ = member(tiny_zoo, "worst")
    for layer in result.layers:
        names = [name for name in one if name.startswith(layer.layer + ".")]
        a, b = (np.concatenate([each[name].double().numpy().ravel() for name in names]) for each in (one, other))
        assert layer.values == len(a)
        assert layer.distance == pytest.approx(np.sqrt(((a - b) ** 2).sum()), rel=1e-12)
        assert layer.relative == pytest.approx(layer.distance / np.sqrt((a**2).sum()), rel=1e-12)
        assert layer.cosine == pytest.approx(np.corrcoef(np.r_[a, -a], np.r_[b, -b])[0, 1], abs=1e-9)
    assert result.distance == pytest.approx(np.sqrt(sum(layer.distance**2 for layer in result.layers)))
    assert result.aligned is not None and result.aligned < result.distance
    with Zoo(tiny_zoo) as zoo:
        task: Any = task_of(zoo, "cpu")
    skeleton = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    answers = []
    for state in (one, other):
        skeleton.load_state_dict(state)
        with torch.no_grad():
            answers.append(
                [int(skeleton(task.inputs("test", slice(i, i + 1)))[0].argmax()) for i in range(len(task.test))]
            )
    labels = task.test.labels.tolist()
    pairs = list(zip(*answers, labels, strict=True))
    actual = result.answers
    assert actual is not None and actual.classes is not None and actual.examples is not None
    assert actual.changed == sum(a != b for a, b, _ in pairs) > 0
    assert actual.lost == sum(a == t != b for a, b, t in pairs)
    assert actual.gained == sum(b == t != a for a, b, t in pairs)
    assert actual.both_wrong == actual.changed - actual.lost - actual.gained
    assert actual.agreement == pytest.approx(1 - actual.changed / len(pairs))
    with Zoo(tiny_zoo) as zoo:
        ranked = [zoo.find(name) for name in ("best", "worst")]
        stored = [zoo.group(each.arch).members["accuracy_test"][each.index] for each in ranked]
    assert [actual.score_first, actual.score_second] == pytest.approx(stored)
    for each in actual.classes:
        own = [(a, b) for a, b, t in pairs if task.classes[t] == each.name]
        assert each.inputs == len(own)
        assert each.changed == pytest.approx(sum(a != b for a, b in own) / len(own))
        assert each.accuracy_second == pytest.approx(sum(task.classes[b] == each.name for _, b in own) / len(own))
        changes = [f"{task.classes[a]} -> {task.classes[b]}" for a, b in own if a != b]
        assert (
            each.most_changed is None
            if not changes
            else changes.count(str(each.most_changed)) == max(map(changes.count, changes))
        )
    first = actual.examples[0]
    a, b, t = pairs[int(first.input)]
    assert (first.first, first.second, first.target) == (task.classes[a], task.classes[b], task.classes[t])


def permuted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function, its hidden units in another order."""
    order = torch.randperm(len(state["fc1.bias"]), generator=torch.Generator().manual_seed(0))
    moved = {name: state[f"fc1.{name}"][order] for name in ("weight", "bias")}
    return {
        **state,
        "fc1.weight": moved["weight"],
        "fc1.bias": moved["bias"],
        "fc2.weight": state["fc2.weight"][:, order],
    }


def test_a_permuted_copy_is_far_and_after_alignment_equal(tiny_zoo: Path) -> None:
    state, spec = member(tiny_zoo, "best")
    write_tensors(Path("moved.safetensors"), permuted(state), **folded_metadata(spec))
    result = diff("best", "moved.safetensors", tiny_zoo)
    assert result.relative is not None and result.relative > 0.5
    assert result.aligned == 0
    assert result.answers is not None and result.answers.changed == 0
    assert [each.layer for each in result.layers if each.distance] == ["fc1", "fc2"]


def test_a_network_and_its_compressed_self(tiny_zoo: Path) -> None:
    fit(
        "best",
        Path("small"),
        FitConfig.model_validate({"predictor": {"hidden": 16}, "stages": [{"steps": 2}]}),
        tiny_zoo,
    )
    by_folder, by_file = (diff("best", name, tiny_zoo) for name in ("small", "small/compressed.safetensors"))
    assert by_folder.layers == by_file.layers and by_folder.answers == by_file.answers
    moved = {each.layer for each in by_folder.layers if each.distance}
    assert moved and moved <= {"conv1", "conv2"}  # the other layers are stored as they are


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_batch_norm_is_folded_where_the_architecture_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archs, "_TRUSTED", {f"{__name__}:Normed"})
    torch.manual_seed(0)
    one = Normed().eval()
    one[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    torch.save(one.state_dict(), "one.pt")
    with torch.no_grad():  # the same function: the scale is in batch norm instead
        one[0].weight.mul_(2), one[0].bias.mul_(2)  # type: ignore[operator, union-attr]
        one[1].running_mean.mul_(2), one[1].running_var.mul_(4).add_(3e-5)  # type: ignore[operator, union-attr]
    torch.save({"net": one.state_dict(), "ema": one.state_dict()}, "two.pt")
    weights = diff("one.pt", "two.pt", key="ema")
    assert not weights.folded and weights.relative is not None and weights.relative > 0.1
    assert weights.not_aligned is not None and "--arch" in weights.not_aligned and weights.no_answers is not None
    result = diff("one.pt", "two.pt", arch=ArchConfig(arch=f"{__name__}:Normed"), key="ema", input_shape=(1, 8, 8))
    assert result.folded and result.relative is not None and result.relative < 1e-5
    assert result.groups == 1 and result.no_answers is not None and "--images" in result.no_answers


def test_other_architectures_are_compared_by_their_answers(multi_zoo: Path) -> None:
    result = diff("best:lenet", "best:resnet", multi_zoo, output=Path("a.png"))
    assert result.unmatched and result.aligned is None and result.not_aligned is not None
    assert result.answers is not None and 0 < result.answers.agreement <= 1
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_networks_with_signals_of_their_own(chairs_zoo: Path) -> None:
    result = diff("siren/0000", "siren/0001", chairs_zoo)
    assert result.answers is not None and result.answers.classes is None
    assert result.answers.score_first is not None and result.answers.score_second is not None
    with Zoo(chairs_zoo) as zoo:
        assert result.answers.score_first == pytest.approx(zoo.group("siren").members["accuracy_test"][0], abs=1e-6)
    assert result.score is not None and result.score.name != "accuracy"


def test_a_network_and_its_morphed_self(tmp_path: Path) -> None:
    morph = write_morph(tmp_path / "morph", "vanillacnn", epochs=1)
    full, narrow = Path("full.safetensors"), Path("narrow.safetensors")
    sample(tmp_path / "morph", full, Size(width=1.0))
    sample(tmp_path / "morph", narrow, Size(width=0.6))
    folder = str(tmp_path / "morph")
    same = diff(folder, str(full))
    assert same.distance == same.aligned == 0 and same.answers is not None and same.answers.changed == 0
    module = morph.network(morph.info.full())
    trained = {name: value.detach().clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    torch.save(module.state_dict(), "moved.pt")
    moved = diff(folder, "moved.pt")
    names = [name for name, value in trained.items() if value.is_floating_point()]
    first, second = (
        torch.cat([state[name].double().flatten() for name in names]) for state in (trained, module.state_dict())
    )
    assert moved.distance == pytest.approx(float((second - first).norm()), rel=1e-6)
    task = morph.task("cpu")
    inputs, labels = task.inputs("test", slice(None)), task.test.labels  # type: ignore[attr-defined]
    answers = [
        netspace.load_morphed(full).eval()(inputs).argmax(-1),
        netspace.load_morphed(narrow).eval()(inputs).argmax(-1),
    ]
    result = diff(folder, str(narrow))
    assert result.answers is not None and result.aligned is None and result.unmatched
    assert result.answers.changed == int((answers[0] != answers[1]).sum())
    assert result.answers.score_second == pytest.approx(float((answers[1] == labels).double().mean()))


def test_a_bias_of_one_network_alone_is_compared_with_zeros() -> None:
    weight, bias = torch.randn(3, 2), torch.tensor([3.0, 0.0, -4.0])
    for first, second in permutations(({"a.weight": weight, "a.bias": bias}, {"a.weight": weight + 1}), 2):
        layers = common_layers(first, second)
        assert not layers.unmatched and layers.first["a"].numel() == layers.second["a"].numel() == 9
        (row,) = differences(layers, None)
        assert row.distance == pytest.approx((6 + 25) ** 0.5)
    assert common_layers({"a.weight": weight}, {"a.weight": weight.T}).unmatched[0].layer == "a"


def test_batch_norm_is_said_to_be_folded_only_where_there_was_one(tmp_path: Path) -> None:
    write_morph(tmp_path / "morph", "vanillacnn")
    sample(tmp_path / "morph", Path("net.safetensors"), Size(width=1.0))
    assert not diff(str(tmp_path / "morph"), "net.safetensors").folded


def test_the_command_prints_tables_and_one_object(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    done = cli("diff", "best", "worst", "--zoo", tiny_zoo, "-o", "diff.png")
    assert done.code == 0 and "fc1" in done.out and "from right to wrong" in done.out and "diff.png" in done.out
    found = cli("diff", "best", "worst", "--zoo", tiny_zoo, "--json").json
    assert found["first"].startswith("lenetlike/") and found["answers"]["classes"] and "picture" not in found


def test_what_cannot_be_compared_is_one_sentence(tiny_zoo: Path, cli: Callable[..., Any]) -> None:
    write_tensors(Path("other.safetensors"), {"a.weight": torch.ones(3)})
    Path("empty").mkdir()
    refused(cli("diff", "best", "worst"), 2, "--zoo", "best")
    refused(cli("diff", "best", "nothing/0001", "--zoo", tiny_zoo), 2, "nothing")
    refused(cli("diff", "best", "gone.pt", "--zoo", tiny_zoo), 2, "gone.pt does not exist")
    refused(cli("diff", "best", "empty", "--zoo", tiny_zoo), 2, "empty is a folder without a network")
    refused(cli("diff", "best", "worst", "--zoo", tiny_zoo, "-o", "a.jpg"), 2, "PNG", ".jpg")
    refused(cli("diff", "best", "other.safetensors", "--zoo", tiny_zoo), 2, "no layer in common", "--arch")
