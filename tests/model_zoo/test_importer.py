"""`import_members`: networks trained elsewhere, with batch norm or folded, into a zoo that is there or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo.importer import import_members
from model_zoo.verify import verify
from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.folding import fold
from netspace.networks.prep import unflatten, unpack
from netspace.tasks import DataConfig, load
from netspace.zoo import Zoo

DIGITS = DataConfig(name="digits", limit=300)


def lenets(count: int, seed: int = 0, width: float = 0.25) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(seed)
    make = [archs.build("lenetlike", channels=1, classes=10, image_size=8, width=width) for _ in range(count)]
    return {f"net{place}.pt": dict(module.state_dict()) for place, module in enumerate(make)}


def resnet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    module = archs.build("resnet8", channels=1, classes=10, image_size=8, width=0.25)
    for _ in range(3):
        module(torch.randn(16, 1, 8, 8))  # running statistics of their own
    return module.eval()


def test_into_a_zoo_that_is_there(zoo_copy: Path) -> None:
    with Zoo(zoo_copy) as zoo:
        before = zoo.only().members.copy()
        preps = zoo.only().read(range(36))
    states = lenets(8)
    told = import_members(zoo_copy, states, "lenetlike")
    assert (told.imported, told.duplicates, told.arch) == (8, 0, "lenetlike")
    with Zoo(zoo_copy) as zoo:
        group = zoo.only()
        assert np.array_equal(group.members[:36], before) and torch.equal(group.read(range(36)), preps)
        new = group.members[36:]
        assert len(set(new["run"]) | set(before["run"])) == 36 + 8  # runs of their own
        assert [bytes(name).decode() for name in new["source"]] == list(states)
        assert (new["status"] == b"ok").all() and np.isnan(new["learning_rate"]).all()
        for place, state in enumerate(states.values()):
            found = unflatten(unpack(group.read([36 + place])[0], 1477), group.spec)
            assert all(torch.equal(found[name], state[name]) for name in state)
    assert verify(zoo_copy, sample=99).ok
    assert not list(zoo_copy.parent.glob(".*"))


def test_splits_are_drawn_in_shares_or_given(zoo_copy: Path) -> None:
    import_members(zoo_copy, lenets(16), "lenetlike")
    with Zoo(zoo_copy) as zoo:
        drawn = zoo.only().members["split"][36:]
    assert sorted(drawn.tolist()) == [b"test"] * 2 + [b"train"] * 12 + [b"val"] * 2
    import_members(zoo_copy, lenets(3, seed=1), "lenetlike", split="val")
    with Zoo(zoo_copy) as zoo:
        assert zoo.only().members["split"][52:].tolist() == [b"val"] * 3


def test_the_same_network_twice_is_one_member(zoo_copy: Path) -> None:
    states = lenets(2)
    import_members(zoo_copy, states, "lenetlike")
    told = import_members(zoo_copy, {**states, "new": lenets(1, seed=5)["net0.pt"]}, "lenetlike")
    assert (told.imported, told.duplicates) == (1, 2)
    with Zoo(zoo_copy) as zoo:
        assert len(zoo) == 39


def test_a_new_zoo_of_networks_with_batch_norm_and_without(tmp_path: Path) -> None:
    modules = [resnet(seed) for seed in range(3)]
    task = load(DIGITS)
    folded = fold(modules[2], torch.zeros(2, 1, 8, 8))
    states = {
        "bn0": modules[0].state_dict(),
        "bn1": modules[1].state_dict(),
        "folded": {name: value.detach() for name, value in folded.named_parameters()},
    }
    path = tmp_path / "new.h5"
    told = import_members(path, states, "resnet8", data=DIGITS, width=0.25, prep_width=64)
    assert told.imported == 3
    images = task.normalise(task.test.images)
    with Zoo(path) as zoo, torch.no_grad():
        group = zoo.only()
        assert (zoo.header.dataset, zoo.header.split_hash) == ("digits", task.split_hash)
        assert group.size[1] == 64 and group.spec.settings["width"] == 0.25
        for place, module in enumerate(modules):
            right = (module(images).argmax(-1) == task.test.labels).double().mean().item()
            assert group.members["accuracy_test"][place] == pytest.approx(right, abs=1e-9)
            assert told.accuracy_test[list(states)[place]] == pytest.approx(right, abs=1e-9)
    assert verify(path, sample=9).ok


def test_a_second_architecture_in_a_zoo(zoo_copy: Path) -> None:
    state = resnet(0).state_dict()
    import_members(zoo_copy, {"r": state}, "resnet8", width=0.25, prep_width=128)
    with Zoo(zoo_copy) as zoo:
        assert [len(group) for group in zoo.archs.values()] == [36, 1]
        sizes = [group.spec.num_parameters for group in zoo.archs.values()]
        assert sizes == sorted(sizes) and [group.class_id for group in zoo.archs.values()] == [0, 1]
    assert verify(zoo_copy, sample=3).ok


@pytest.mark.parametrize("case", ["one bad of two", "other width", "no states", "split", "data", "arch"])
def test_nothing_is_written_when_anything_is_wrong(zoo_copy: Path, case: str) -> None:
    states, more = lenets(2), dict[str, Any]()
    arch, error, words = "lenetlike", UsageError, ""
    if case == "one bad of two":
        states["net1.pt"]["fc1.weight"][0, 0] = torch.nan
        error, words = NetspaceError, "net1.pt"  # type: ignore[assignment]
    elif case == "other width":
        states.update({"wide": lenets(1, width=0.5)["net0.pt"]})
        error, words = NetspaceError, "wide"  # type: ignore[assignment]
    elif case == "no states":
        states, words = {}, "no state dict"
    elif case == "split":
        more, words = {"split": "tset"}, "train, val, test"
    elif case == "data":
        more, words = {"data": DataConfig(name="digits")}, "digits"
    else:
        arch, words = "resnet9", "resnet8"
    before = zoo_copy.read_bytes()
    with pytest.raises(error, match=words):
        import_members(zoo_copy, states, arch, **more)
    assert zoo_copy.read_bytes() == before
    assert [path.name for path in zoo_copy.parent.iterdir()] == ["zoo.h5"]


def test_preps_are_as_wide_as_the_network_needs(zoo_copy: Path, tmp_path: Path) -> None:
    """A new zoo's PReps have 8 rows; a new architecture takes the width of the zoo, whatever it is."""
    path = tmp_path / "new.h5"
    import_members(path, lenets(1), "lenetlike", data=DIGITS, width=0.25)
    with Zoo(path) as zoo:
        assert zoo.only().spec.num_parameters == 1_477 and zoo.only().size == (8, 192)
    for file, sizes in ((path, [(8, 192), (28, 192)]), (zoo_copy, [(12, 128), (40, 128)])):
        import_members(file, {"r": resnet(0).state_dict()}, "resnet8", width=0.25)
        with Zoo(file) as zoo:
            assert [group.size for group in zoo.archs.values()] == sizes


def test_a_prep_width_that_cannot_be(tmp_path: Path) -> None:
    for width in (0, -8, 12):
        with pytest.raises(NetspaceError, match=r"width|multiple"):
            import_members(tmp_path / "new.h5", lenets(1), "lenetlike", data=DIGITS, width=0.25, prep_width=width)
    assert not (tmp_path / "new.h5").exists()


def test_weights_in_double_precision_are_kept_in_single(zoo_copy: Path) -> None:
    states = {name: {k: v.double() for k, v in state.items()} for name, state in lenets(2).items()}
    import_members(zoo_copy, lenets(2), "lenetlike")
    assert import_members(zoo_copy, states, "lenetlike").duplicates == 2
