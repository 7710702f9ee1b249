"""What is written is read: whole zoos, splits, the names of members."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_files import HEADER, LARGE, SMALL, TINY, population, zoo_at

from netspace.errors import NetspaceError, UsageError
from netspace.networks.spec import NetSpec
from netspace.zoo import MemberRef, Zoo


def test_round_trip(tmp_path: Path) -> None:
    held = population()
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=held)) as zoo:
        group = zoo.only()
        assert (zoo.header.data, zoo.header.split_hash, zoo.header.recipe) == (
            HEADER.data,
            HEADER.split_hash,
            HEADER.recipe,
        )
        assert zoo.header.dataset == "generated" and {"netspace", "torch", "h5py", "numpy"} <= set(zoo.header.versions)
        assert zoo.complete and len(zoo) == len(group) == 6
        assert group.spec == TINY and group.size == (4, 24)
        np.testing.assert_array_equal(group.members, held.members)
        rows = [5, 0, 0, 3]  # any order, repeats too
        read = group.read(rows)
        assert read.dtype == torch.float32
        np.testing.assert_array_equal(read.numpy(), held.preps[rows])
        assert group.read([]).shape == (0, 4, 24)


def test_an_architecture_without_members(tmp_path: Path) -> None:
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=population(count=0))) as zoo:
        assert len(zoo.only()) == 0 and zoo.only().read([]).shape == (0, 4, 24)


def test_class_ids_order_architectures_by_parameters(tmp_path: Path) -> None:
    path = zoo_at(
        tmp_path / "z.h5",
        zz=population(TINY),
        large=population(LARGE),
        aa=population(SMALL),
        ab=population(SMALL, seed=1),
    )
    with Zoo(path) as zoo:
        assert {name: group.class_id for name, group in zoo.archs.items()} == {
            "zz": 0,
            "aa": 1,
            "ab": 2,
            "large": 3,
        }
        assert list(zoo.archs) == ["zz", "aa", "ab", "large"]
        assert zoo.group("aa").spec == SMALL
        with pytest.raises(UsageError, match=r"unknown architecture 'larg': did you mean 'large'\? There are: zz, aa"):
            zoo.group("larg")
        with pytest.raises(UsageError, match=r"holds 4 architectures \(zz, aa, ab, large\), but one is needed here"):
            zoo.only()


def test_rows_of_splits(tmp_path: Path) -> None:
    held = population()
    held.members["split"][5] = b""
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=held)) as zoo:
        rows = {split: zoo.only().rows(split).tolist() for split in ("train", "val", "test", "all")}
        assert rows == {"train": [0, 1, 4], "val": [2], "test": [3], "all": [0, 1, 2, 3, 4]}
        with pytest.raises(UsageError, match=r"unknown split 'vall': did you mean 'val'\?"):
            zoo.only().rows("vall")


def test_find(tmp_path: Path) -> None:
    tiny, large = population(), population(LARGE, seed=1)
    tiny.members["accuracy_val"] = [0.5, 0.9, 0.1, 0.2, np.nan, 0.99]
    tiny.members["split"][5] = b""  # of no split: neither best nor worst
    large.members["accuracy_val"] = [0.3, 0.95, 0.05, 0.2, 0.2, 0.2]
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=tiny, large=large)) as zoo:
        named = {
            text: str(zoo.find(text)) for text in ("best", "worst", "best:tiny", "worst:tiny", "tiny/0003", "tiny/5")
        }
        assert named == {
            "best": "large/0001",
            "worst": "large/0002",
            "best:tiny": "tiny/0001",
            "worst:tiny": "tiny/0002",
            "tiny/0003": "tiny/0003",
            "tiny/5": "tiny/0005",
        }
        with pytest.raises(UsageError, match=r"member 'tiny/0006' does not exist: tiny has members 0000 to 0005"):
            zoo.find("tiny/0006")
        for text in ("nothing", "tiny/x", "tiny/-1", "tiny/²", "tiny/", "7"):
            with pytest.raises(UsageError, match=r"names no network: expected a member such as tiny/0000, 'best'"):
                zoo.find(text)
        for text in ("best:tinny", "tinny/0000"):
            with pytest.raises(UsageError, match=r"unknown architecture 'tinny': did you mean 'tiny'\?"):
                zoo.find(text)
    assert str(MemberRef("a", 12345)) == "a/12345"


def test_no_best_without_accuracies(tmp_path: Path) -> None:
    held = population()
    held.members["accuracy_val"] = np.nan
    with (
        Zoo(zoo_at(tmp_path / "z.h5", tiny=held)) as zoo,
        pytest.raises(NetspaceError, match="no member with a known validation accuracy to be the best"),
    ):
        zoo.find("best")


def test_opening_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    hostile = NetSpec("os:system", (("command", "touch hacked"),), (1,), TINY.names, TINY.shapes)
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=population(hostile))) as zoo:
        assert zoo.only().spec == hostile
    assert not Path("hacked").exists()


@pytest.mark.parametrize("score", [{}, {"higher_is_better": False}])
def test_a_score_that_is_not_known_is_less_than_any(tmp_path: Path, score: dict[str, bool]) -> None:
    tiny = population()
    tiny.members["accuracy_val"][2] = np.nan
    with Zoo(zoo_at(tmp_path / "z.h5", replace(HEADER, score=score), tiny=tiny)) as zoo:
        merit = zoo.only().merit(np.arange(6))
        assert merit.argmin() == np.argsort(merit)[0] == 2 and merit[2] == -np.inf
        assert str(zoo.find("best")).endswith(str(merit.argmax())) and np.isfinite(np.delete(merit, 2)).all()
