"""Zoos of networks that are the meshes of a folder: members are named after their shapes, and splits are by shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from netspace import archs
from netspace.config import load
from netspace.errors import UsageError
from netspace.tasks.mesh_folder import open_meshes
from netspace.zoo import Zoo, parts_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four boxes in two categories."""
    folder = tmp_path / "meshes"
    for number in range(4):
        path = folder / ("tall" if number % 2 else "flat") / f"box{number}.ply"
        path.parent.mkdir(parents=True, exist_ok=True)
        trimesh.creation.box(extents=[1, 1, 0.6 + 0.4 * number]).export(path)
    return folder


def recipe(folder: Path, **changes: Any) -> ZooRecipe:
    return ZooRecipe.model_validate(
        {
            "name": "boxes",
            "data": {"name": "meshes", "root": folder, "points": 256},
            "archs": {"siren": {"arch": "siren", "width": 0.0625, "kwargs": {"depth": 1}}},
            "members": {"train": 2, "val": 1, "test": 1},
            "epochs": {"first": 20, "last": 20},
            "optimizer": {"name": "adam", "learning_rate": 0.003},
            "batch_size": 64,
            "fused": 2,
            **changes,
        }
    )


def test_members_are_named_after_their_shapes(folder: Path, tmp_path: Path) -> None:
    """Each is a shape of its own, in one split."""
    names = open_meshes(folder).names
    with Zoo(build(recipe(folder), tmp_path / "zoo.h5", workers=1)) as zoo:
        members = zoo.archs["siren"].members
        by_seed = {int(member["seed"]): member for member in members}
        assert sorted(by_seed) == [0, 1, 2, 3]
        assert [by_seed[number]["source"].decode() for number in range(4)] == list(names)
        assert [by_seed[number]["split"].decode() for number in range(4)] == ["train", "train", "val", "test"]
        for number, name in enumerate(names):
            assert int(members[zoo.find(name).index]["seed"]) == number
        assert (members["accuracy_test"] > 0).all()


def test_more_members_than_shapes(folder: Path, tmp_path: Path) -> None:
    """Nothing is written."""
    path = tmp_path / "zoo.h5"
    with pytest.raises(
        UsageError, match=r"^shape 4 was asked for, but .*meshes has 4 usable meshes: let a zoo have at most 4 "
    ):
        build(recipe(folder, members={"train": 3, "val": 1, "test": 1}), path, workers=1)
    assert not path.exists() and not parts_folder(path).exists()


def test_variants_of_a_mesh_are_in_one_split(folder: Path, tmp_path: Path) -> None:
    """Members are named after them; a split that would cut through them is refused, and nothing is written."""
    data = {"name": "meshes", "root": folder, "points": 256, "variants": 2}
    varied = recipe(folder, data=data, members={"train": 4, "val": 2, "test": 2}, epochs={"first": 1, "last": 1})
    with Zoo(build(varied, tmp_path / "zoo.h5", workers=1)) as zoo:
        members = zoo.archs["siren"].members
        splits = {member["source"].decode(): member["split"].decode() for member in members}
        assert sorted(splits) == sorted(open_meshes(folder, variants=2).names)
        assert all(splits[name] == splits[name.split("~")[0]] for name in splits)
        assert len({tuple(row) for row in zoo.archs["siren"].read(range(8)).flatten(1).tolist()}) == 8
    with pytest.raises(ValueError, match="3 train members of siren cut through the 2 variants of a mesh"):
        recipe(folder, data=data, members={"train": 3, "val": 2, "test": 2})
    recipe(folder, data=data, members={"train": 3, "val": 4, "test": 4}, epochs={"first": 1, "last": 4, "snapshots": 2})


def test_the_recipe_of_furniture() -> None:
    """Its network, and where its meshes are expected."""
    found = load(ZooRecipe, "zoo/furniture")
    assert found.data.name == "meshes" and found.data.root == Path("furniture")
    config = found.archs["siren"]
    network = archs.build(config.arch, width=config.width, **config.kwargs)
    assert sum(value.numel() for value in network.parameters()) == 17153
    assert network(torch.zeros(2, 3)).shape == (2, 1)
