"""`zoo align`: the same networks in another zoo, nearer to each other; what cannot be aligned stays and is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import netspace
from model_zoo.align import align_zoo
from model_zoo.builder import build
from model_zoo.recipe import ZooRecipe
from model_zoo.verify import verify
from netspace.errors import NetspaceWarning, UsageError
from netspace.zoo import Population, Zoo, write_zoo


def test_aligned_members_are_the_same_networks_nearer_to_their_reference(multi_zoo: Path, tmp_path: Path) -> None:
    result = align_zoo(multi_zoo, tmp_path / "aligned.h5")
    assert verify(tmp_path / "aligned.h5").ok  # its accuracies, evaluated again, are those of before
    with Zoo(multi_zoo) as before, Zoo(tmp_path / "aligned.h5") as after:
        assert before.archs.keys() == after.archs.keys() == result.archs.keys()
        for name, group in before.archs.items():
            other, figures = after.archs[name], result.archs[name]
            assert np.array_equal(group.members, other.members) and group.spec == other.spec
            rows = np.arange(len(group))
            values, moved = group.read(rows).flatten(1), other.read(rows).flatten(1)
            assert torch.equal(values.sort(1).values, moved.sort(1).values)  # only their order is another
            train = group.rows("train")
            reference = int(train[group.members["accuracy_val"][train].argmax()])
            assert (figures.reference or "").endswith(f"{reference:04d}") and torch.equal(
                values[reference], moved[reference]
            )
            distances = (moved - values[reference]).norm(dim=1)
            assert (distances <= (values - values[reference]).norm(dim=1) + 1e-5).all()
            others = rows != reference
            assert figures.distance_after == pytest.approx(float(distances[others].mean()), rel=1e-5)
            assert figures.distance_after < figures.distance_before


def test_align_is_a_front_door_of_the_package(tiny_zoo: Path, tmp_path: Path) -> None:
    result = netspace.align(str(tiny_zoo), str(tmp_path / "aligned.h5"))
    assert result.path == str(tmp_path / "aligned.h5") and list(result.archs) == ["lenetlike"]
    assert len(netspace.Zoo(result.path)) == len(netspace.Zoo(tiny_zoo))


def test_a_member_of_unknown_score_is_no_reference(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        group = zoo.only()
        members = group.members.copy()
        first, second = group.rows("train")[np.argsort(-members["accuracy_val"][group.rows("train")], kind="stable")][
            :2
        ]
        members["accuracy_val"][first] = np.nan
        preps = group.read(range(len(group))).numpy()
        write_zoo(tmp_path / "zoo.h5", zoo.header, {group.id: Population(group.spec, preps, members)})
    result = align_zoo(tmp_path / "zoo.h5", tmp_path / "aligned.h5")
    assert result.archs["lenetlike"].reference == f"lenetlike/{second:04d}"


def test_an_existing_file_stays(multi_zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(UsageError, match=r"there\.h5 exists already: choose another name"):
        align_zoo(multi_zoo, tmp_path / "there.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"


def test_a_graph_that_cannot_be_traced_is_named(
    multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netspace import archs
    from netspace.archs.convnets import lenetlike

    def deciding(**settings: object) -> torch.nn.Module:
        class Decides(torch.nn.Sequential):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.nn.Sequential.forward(self, x if x.sum() > 0 else -x)

        return Decides(*lenetlike(**settings).children())

    with Zoo(multi_zoo) as zoo:
        names = {name: group.spec.arch for name, group in zoo.archs.items()}
    lenet = next(name for name, arch in names.items() if arch == "lenetlike")
    monkeypatch.setitem(archs.ARCHS, "lenetlike", deciding)
    monkeypatch.setattr(
        archs,
        "skeleton",
        lambda arch, kwargs, shape, skeleton=archs.skeleton: (
            deciding(**kwargs).eval() if arch == "lenetlike" else skeleton(arch, kwargs, shape)
        ),
    )
    result = align_zoo(multi_zoo, tmp_path / "aligned.h5")
    assert "cannot align the channels of" in (result.archs[lenet].skipped or "")
    with Zoo(multi_zoo) as before, Zoo(tmp_path / "aligned.h5") as after:
        rows = np.arange(len(before.group(lenet)))
        assert torch.equal(before.group(lenet).read(rows), after.group(lenet).read(rows))


def test_the_command_tells_what_it_did(cli, multi_zoo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = cli("zoo", "align", str(multi_zoo), "-o", str(tmp_path / "a.h5"), "--json")
    assert done.code == 0 and set(json.loads(done.out)) == {"path", "archs"}
    done = cli("zoo", "align", str(multi_zoo), "-o", str(tmp_path / "b.h5"))
    assert done.code == 0 and "groups of channels; mean distance" in done.out
    done = cli("zoo", "align", str(multi_zoo), "-o", str(tmp_path / "b.h5"))
    assert done.code == 2 and "b.h5 exists already" in done.err


def test_a_recipe_builds_its_zoo_aligned(zoo_settings: dict[str, Any], tmp_path: Path) -> None:
    small = {**zoo_settings, "members": {"train": 4, "val": 1, "test": 1}}
    plain = build(ZooRecipe.model_validate(small), tmp_path / "plain.h5", workers=1)
    aligned = build(ZooRecipe.model_validate({**small, "align": True}), tmp_path / "aligned.h5", workers=1)
    align_zoo(plain, tmp_path / "later.h5")
    with Zoo(aligned) as zoo, Zoo(tmp_path / "later.h5") as later, Zoo(plain) as before:
        (name,) = zoo.archs
        rows = np.arange(6)
        assert torch.equal(zoo.group(name).read(rows), later.group(name).read(rows))
        assert not torch.equal(zoo.group(name).read(rows), before.group(name).read(rows))
        assert zoo.header.recipe["align"] is True and "align" not in before.header.recipe
    assert {path.name for path in tmp_path.glob("aligned*")} == {"aligned.h5"}


def test_a_zoo_that_cannot_be_aligned_is_built_all_the_same(
    zoo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, out: Path) -> None:
        raise UsageError("no network could be aligned: its graph cannot be traced")

    monkeypatch.setattr("model_zoo.builder.write_aligned", refused)
    small = {**zoo_settings, "members": {"train": 2, "val": 1, "test": 1}, "align": True}
    with pytest.warns(NetspaceWarning, match=r"zoo.h5 is not aligned: no network could be aligned"):
        build(ZooRecipe.model_validate(small), tmp_path / "zoo.h5", workers=1)
    assert verify(tmp_path / "zoo.h5").ok
