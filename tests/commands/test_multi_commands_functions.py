"""Spaces of several architectures in use: evaluated, interpolated across, encoded and decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from netspace import archs
from netspace.commands.convert import decode, resolve
from netspace.commands.encode import encode
from netspace.commands.evaluate import evaluate
from netspace.commands.interpolate import interpolate
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_json
from netspace.metrics import diversity
from netspace.networks.family import Networks
from netspace.networks.prep import unflatten, unpack
from netspace.space import Space
from netspace.training.setup import task_of
from netspace.training.validation import accuracies
from netspace.zoo import Zoo

IMAGE = 1.5 / 500  # a tie may be rounded the other way


@pytest.fixture
def zoo(multi_zoo: Path) -> Iterator[Zoo]:
    with Zoo(multi_zoo) as opened:
        yield opened


def accuracy(space: Space, zoo: Zoo, latent: torch.Tensor, arch: str | None = None) -> tuple[str, float]:
    """Architecture and test accuracy of the network that a latent decodes to, alone and as a plain module."""
    network, task = space.decode(latent, arch), task_of(zoo, "cpu")
    class_id = int(space.class_ids(latent[None])[0]) if arch is None else space.class_id(arch)
    with torch.no_grad():
        right = network(task.normalise(task.test.images)).argmax(-1) == task.test.labels
    return space.family[class_id].id, float(right.double().mean())


# ---- eval


def test_the_figures_are_those_of_networks_run_alone(run: Path, zoo: Zoo) -> None:
    result = evaluate(run, "test")
    space = Space.load(run)
    detail = read_json((run / "eval-test.json"), dict[str, Any])["detail"]
    index, confusion = 0, np.zeros((3, 3), int)
    for class_id, group in enumerate(zoo.archs.values()):
        actual, kept = [], []
        for row in group.rows("test"):
            latent = space.encode(group.read([row])[0], group.id)
            predicted, score = accuracy(space, zoo, latent)
            assert detail["member"][index] == f"{group.id}/{row:04d}" and detail["arch"][index] == group.id
            assert detail["arch_predicted"][index] == predicted
            assert detail["accuracy_predicted"][index] == pytest.approx(score, abs=IMAGE)
            assert detail["accuracy_target"][index] == pytest.approx(group.members["accuracy_test"][row], abs=1e-9)
            confusion[class_id, space.family.class_id(predicted)] += 1
            actual.append(score)
            if predicted == group.id:
                kept.append(space.decode_flat(latent[None], group.id)[0])
            index += 1
        own = result.per_class[group.id]
        assert (own.class_id, own.members, own.parameters) == (class_id, 3, group.spec.num_parameters)
        assert own.accuracy_predicted == pytest.approx(np.mean(actual), abs=IMAGE)
        assert own.classid_accuracy == pytest.approx(confusion[class_id, class_id] / 3)
        assert own.compression == pytest.approx(64 / group.spec.num_parameters)
        if len(kept) > 1:
            assert own.diversity == pytest.approx(diversity(torch.stack(kept)), rel=1e-3)
    assert result.confusion == confusion.tolist() and result.members == index == confusion.sum() == 9
    assert result.classid_accuracy == pytest.approx(confusion.trace() / 9)
    assert result.accuracy_predicted == pytest.approx(np.mean(detail["accuracy_predicted"]))
    assert result.archs == ["lenet", "vanilla", "resnet"] == list(result.per_class)


def test_what_lies_between_the_ends(run: Path, zoo: Zoo) -> None:
    result = evaluate(run, "test").between
    assert list(result) == ["vanilla"]
    space, actual = Space.load(run), []
    ends = [
        [space.encode(prep, group.id) for prep in group.read(group.rows("test"))]
        for group in (zoo.group("lenet"), zoo.group("resnet"))
    ]
    actual = [accuracy(space, zoo, (a + b) / 2) for a, b in zip(*ends, strict=True)]
    own = result["vanilla"]
    assert (own.gamma, own.shown, own.pairs) == (0.5, True, 3)
    assert own.classid_accuracy == pytest.approx(np.mean([name == "vanilla" for name, _ in actual]))
    assert own.accuracy == pytest.approx(np.mean([score for _, score in actual]), abs=IMAGE)
    assert own.accuracy_least == pytest.approx(min(score for _, score in actual), abs=IMAGE)
    group = zoo.group("vanilla")
    assert own.accuracy_zoo == pytest.approx(group.members["accuracy_test"][group.rows("test")].mean())
    assert own.ratio == pytest.approx(own.accuracy / own.accuracy_zoo)


def test_the_line_goes_from_the_best_of_the_smallest_to_the_best_of_the_largest(run: Path, zoo: Zoo) -> None:
    line, space = evaluate(run, "test").line, Space.load(run)
    ends = []
    for end, name in ((line.start, "lenet"), (line.end, "resnet")):
        group = zoo.group(name)
        rows = group.rows("test")
        best = rows[group.members["accuracy_val"][rows].argmax()]
        assert end == f"{name}/{best:04d}"
        ends.append(space.encode(group.read([best])[0], name))
    assert len(line.gamma) == len(line.arch) == len(line.accuracy) == 21
    assert line.factors == [0.5] and (line.gamma[0], line.gamma[10], line.gamma[-1]) == (0, 0.5, 1)
    for index in (0, 7, 20):
        name, score = accuracy(space, zoo, torch.lerp(*ends, line.gamma[index]))
        assert line.arch[index] == name and line.accuracy[index] == pytest.approx(score, abs=IMAGE)


def test_baselines_answer_with_networks_of_the_members_architecture(run: Path, zoo: Zoo) -> None:
    result = evaluate(run, "test").baselines
    scores = []
    for group in zoo.archs.values():
        bank, target = (unpack(group.read(group.rows(split)), group.spec.num_parameters) for split in ("train", "test"))
        near = [int((bank - row).norm(dim=1).argmin()) for row in target]
        scores += group.members["accuracy_test"][group.rows("train")][near].tolist()
    assert result["nearest"].accuracy_predicted == pytest.approx(np.mean(scores), abs=1e-9)
    means = [
        unpack(group.read(group.rows("train")), group.spec.num_parameters).mean(0, keepdim=True)
        for group in zoo.archs.values()
    ]
    space, task = Space.load(run), task_of(zoo, "cpu")
    average = [
        accuracies(Networks.of_class(space.family, class_id, flat), task, "test")[0]
        for class_id, flat in enumerate(means)
    ]
    assert result["average"].accuracy_predicted == pytest.approx(np.mean(average), abs=IMAGE)
    assert (
        result["five_nearest"].payload().keys()
        == result["constant"].payload().keys()
        == result["nearest"].payload().keys()
    )
    assert len(result["noise"].scale) == 3 and set(result["noise"].scale) <= {0.01, 0.03, 0.1, 0.3}


def test_what_is_kept_for_the_report(run: Path) -> None:
    evaluate(run, "test")
    kept = load_file(run / "eval-test.safetensors")
    rows = Space.load(run).family.size[0]
    assert kept["latents"].shape == (9, 64) and kept["preps"].shape == kept["decoded"].shape == (3, rows, 128)
    assert (kept["shown"] >= 6).all()  # of the largest


def test_architectures_never_shown_are_told_by_what_lies_between(unseen: Path) -> None:
    result = evaluate(unseen, "test")
    assert result.archs == ["lenet", "vanilla", "declared", "resnet"] and list(result.per_class) == [
        "lenet",
        "resnet",
    ]
    assert np.array(result.confusion).shape == (4, 4) and np.sum(result.confusion) == result.members == 6
    assert np.sum(result.confusion, axis=1).tolist() == [3, 0, 0, 3]
    first, second = result.between["vanilla"], result.between["declared"]
    assert (first.shown, second.shown) == (False, False)
    assert (first.gamma, second.gamma) == pytest.approx((1 / 3, 2 / 3))
    assert first.accuracy_zoo is not None and second.accuracy_zoo is second.ratio is None


# ---- interpolate


def test_a_line_across_architectures(run: Path, zoo: Zoo, tmp_path: Path) -> None:
    result = interpolate(run, "best:lenet", "best:resnet", steps=5, save=tmp_path / "line")
    space = Space.load(run)
    assert result.weight_accuracy is None and result.weight_spearman is None
    assert result.arch[0] == "lenet" and result.arch[-1] == "resnet"  # the head has learnt the ends
    ends = [resolve(name, space, zoo).latent for name in (result.start, result.end)]
    for gamma, name, score, file in zip(
        result.gamma, result.arch, result.latent_accuracy, result.networks, strict=True
    ):
        assert accuracy(space, zoo, torch.lerp(*ends, gamma)) == (name, pytest.approx(score, abs=IMAGE))
        assert not space.arch_class(name).spec.difference({k: tuple(v.shape) for k, v in load_file(file).items()})
    for end, index in enumerate((0, -1)):  # of networks of different architectures
        member = resolve(result.start if end == 0 else result.end, space, zoo)
        network = Networks.of_class(space.family, member.class_id, member.flat[None])
        own = accuracies(network, task_of(zoo, "cpu"), "test")[0]
        assert result.end_differences[end] == pytest.approx(result.latent_accuracy[index] - own, abs=1e-9)
    within = interpolate(run, "worst:resnet", "best:resnet", steps=3)
    assert len(within.weight_accuracy) == 3  # of one architecture weights can be mixed


# ---- encode, decode


def test_a_state_dict_is_recognised(run: Path, zoo: Zoo, tmp_path: Path) -> None:
    """By its names and shapes: folded, or with batch norm."""
    space = Space.load(run)
    for name, group in zoo.archs.items():
        state = unflatten(unpack(group.read([0])[0], group.spec.num_parameters), group.spec)
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.clone() for key, value in state.items()}, path)
        result = encode(run, str(path), tmp_path / "z.safetensors")
        assert result.arch == name
        assert torch.equal(load_file(tmp_path / "z.safetensors")["latent"], space.encode(group.read([0])[0], name))
        assert torch.equal(space.encode(state), space.encode(state, name))
    torch.manual_seed(0)
    whole = archs.build("resnet8", **space.arch_class("resnet").spec.settings)
    assert space.recognise(whole.state_dict()).id == "resnet" and space.encode(whole).shape == (64,)


def test_a_state_dict_of_no_architecture_here_is_told(run: Path, tmp_path: Path) -> None:
    other = archs.build("lenetlike", channels=1, image_size=8, classes=10, width=0.5)
    with pytest.raises(NetspaceError) as result:
        Space.load(run).encode(other)
    assert str(result.value) == (
        "this state dict is of none of this space's architectures (lenet, vanilla, resnet): its 10 tensors have other names "
        "or shapes"
    )


def test_a_latent_is_decoded_as_what_it_stands_for_or_as_asked(run: Path, zoo: Zoo, tmp_path: Path) -> None:
    encode(run, "resnet/0000", tmp_path / "z.safetensors")
    space, latent = Space.load(run), load_file(tmp_path / "z.safetensors")["latent"]
    result = decode(run, tmp_path / "z.safetensors", tmp_path / "net.safetensors")
    assert (result.arch, result.accuracy_test) == (
        accuracy(space, zoo, latent)[0],
        pytest.approx(accuracy(space, zoo, latent)[1], abs=IMAGE),
    )
    for name in ("lenet", "vanilla", "resnet"):
        result = decode(run, tmp_path / "z.safetensors", tmp_path / "net.safetensors", arch=name)
        assert (result.arch, result.parameters) == (name, space.arch_class(name).parameters)
        assert result.accuracy_test == pytest.approx(accuracy(space, zoo, latent, name)[1], abs=IMAGE)
        again = encode(run, str(tmp_path / "net.safetensors"), tmp_path / "y.safetensors")
        assert again.arch == name
    with pytest.raises(UsageError, match=r"unknown architecture 'resnet9': did you mean 'resnet'\?"):
        decode(run, tmp_path / "z.safetensors", tmp_path / "other.safetensors", arch="resnet9")
    assert not (tmp_path / "other.safetensors").exists()


def test_a_latent_of_the_wrong_size(run: Path, tmp_path: Path) -> None:
    save_file({"latent": torch.zeros(63)}, tmp_path / "z.safetensors")
    path = tmp_path / "z.safetensors"
    with pytest.raises(NetspaceError) as result:
        decode(run, path, tmp_path / "net.safetensors")
    assert str(result.value) == f"{path} holds a latent of 63 values; this space's have 64"
    with pytest.raises(NetspaceError, match="63 values"):
        interpolate(run, str(path), "best")
    space = Space.load(run)
    for ask in (space.decode_all, space.class_ids):
        with pytest.raises(UsageError, match=r"\(2, 63\) were given: \(networks, 64\) was"):
            ask(torch.zeros(2, 63))


def test_which_architecture_has_to_be_said(run: Path, zoo: Zoo) -> None:
    space, prep = Space.load(run), zoo.group("resnet").read([0])[0]
    with pytest.raises(UsageError) as result:
        space.encode(prep)
    assert str(result.value) == "this space holds networks of lenet, vanilla, resnet: name one of them (--arch)"
    with pytest.raises(UsageError, match="name one of them"):
        _ = space.spec
    with pytest.raises(UsageError, match=r"PReps of \(28, 128\) were given; lenet has \(8, 128\)"):
        space.encode(prep, "lenet")


def test_a_space_of_one_is_asked_for_another(tiny_run: Path, tmp_path: Path) -> None:
    """It has no ClassId head that could tell."""
    encode(tiny_run, "best", tmp_path / "z.safetensors")
    with pytest.raises(UsageError) as result:
        decode(tiny_run, tmp_path / "z.safetensors", tmp_path / "net.safetensors", arch="resnet8")
    assert str(result.value) == (
        "networks of resnet8 were asked for, but this space holds lenetlike alone: it has no ClassId head that tells "
        "architectures apart"
    )
    named = decode(tiny_run, tmp_path / "z.safetensors", tmp_path / "net.safetensors", arch="lenetlike")
    assert named.arch == "lenetlike"


def test_networks_of_an_architecture_never_shown_are_given_but_not_taken(unseen: Path, zoo: Zoo) -> None:
    space = Space.load(unseen)
    network = space.decode(torch.zeros(64), "declared")
    assert sum(value.numel() for value in network.parameters()) == space.arch_class("declared").parameters
    with pytest.raises(UsageError) as result:
        space.encode(network)
    assert str(result.value) == (
        "a network of declared was to be encoded, but this space was never shown one: it gives such networks (`sample "
        "--arch`, `interpolate`), and takes those of lenet, resnet"
    )
    with pytest.raises(UsageError, match=r"a network of vanilla was to be encoded"):
        resolve("vanilla/0000", space, zoo)


def test_networks_side_by_side_are_those_one_by_one(run: Path, zoo: Zoo) -> None:
    space, task = Space.load(run), task_of(zoo, "cpu")
    latents = torch.cat([space.encode_preps(group.read([0, 1]), group.id) for group in zoo.archs.values()])
    for asked in (None, torch.tensor([2, 0, 1, 1, 0, 2])):
        networks = space.decode_all(latents, asked)
        assert torch.equal(networks.class_ids, space.class_ids(latents) if asked is None else asked)
        together = accuracies(networks, task, "test")
        for index in range(6):
            name = space.family[int(networks.class_ids[index])].id
            assert together[index] == pytest.approx(accuracy(space, zoo, latents[index], name)[1], abs=IMAGE)
    given = space.networks(zoo.group("vanilla").read([1]), "vanilla")
    assert isinstance(given, Networks) and given.preps.shape[1:] == space.family.size
    actual = accuracies(given, task, "test")[0]
    assert actual == pytest.approx(zoo.group("vanilla").members["accuracy_test"][1], abs=1e-9)
