"""`verify` notices whatever could be wrong with a member, and names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from model_zoo.verify import verify
from netspace.errors import NetspaceError
from netspace.zoo import Population, Zoo, write_zoo


def rewrite(zoo_path: Path, change: Callable[[np.ndarray, np.ndarray], None]) -> Path:
    """The zoo with PReps and table changed, checksums made anew."""
    with Zoo(zoo_path) as zoo:
        group, header = zoo.only(), zoo.header
        preps, members = group.read(range(len(group))).numpy(), group.members.copy()
        spec = group.spec
    change(preps, members)
    write_zoo(zoo_path, header, {"lenetlike": Population(spec, preps, members)})
    return zoo_path


def problems(path: Path, sample: int = 99) -> list[str]:
    told = verify(path, sample=sample, device="cpu")
    assert told.checked == 36 and told.ok is not bool(told.problems)
    return list(told.problems)


def test_a_sound_zoo(tiny_zoo: Path) -> None:
    before = tiny_zoo.read_bytes()
    assert problems(tiny_zoo) == []
    assert verify(tiny_zoo, sample=5).re_evaluated == 5
    assert verify(tiny_zoo, sample=0).re_evaluated == 0
    assert tiny_zoo.read_bytes() == before


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_accuracy_that_is_not_its_networks(zoo_copy: Path, split: str) -> None:
    def change(preps: np.ndarray, members: np.ndarray) -> None:
        members[f"accuracy_{split}"][4] += -0.05 if members[f"accuracy_{split}"][4] > 0.5 else 0.05

    (told,) = problems(rewrite(zoo_copy, change))
    assert told.startswith(f"lenetlike/0004: accuracy on {split}")


def test_networks_that_were_exchanged(zoo_copy: Path) -> None:
    def change(preps: np.ndarray, members: np.ndarray) -> None:
        order = np.argsort(members["accuracy_test"])
        preps[order[[0, -1]]] = preps[order[[-1, 0]]]

    found = problems(rewrite(zoo_copy, change))
    assert len({told.split(":")[0] for told in found}) == 2


def test_padding_that_is_not_zero(zoo_copy: Path) -> None:
    def change(preps: np.ndarray, members: np.ndarray) -> None:
        preps[30].reshape(-1)[1477] = 1e-30  # the first place after the last parameter

    (told,) = problems(rewrite(zoo_copy, change))
    assert told.startswith("lenetlike/0030") and "padding" in told


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(zoo_copy: Path, value: float) -> None:
    with h5py.File(zoo_copy, "r+") as file:  # `write_zoo` refuses to write such a member
        prep = file["archs/lenetlike/preps"][7]
        prep[0, 3] = value
        file["archs/lenetlike/preps"][7] = prep
    found = problems(zoo_copy, sample=0)
    assert len(found) == 1 and "lenetlike/0007" in found[0] and "finite" in found[0]


def test_a_run_in_two_splits(zoo_copy: Path) -> None:
    def change(preps: np.ndarray, members: np.ndarray) -> None:
        members["run"][35] = members["run"][0]

    (told,) = problems(rewrite(zoo_copy, change))
    assert "run" in told and "split" in told


def test_a_table_of_nonsense(zoo_copy: Path) -> None:
    def change(preps: np.ndarray, members: np.ndarray) -> None:
        members["split"][2] = b"tset"
        members["accuracy_val"][3] = 1.5

    found = problems(rewrite(zoo_copy, change), sample=0)
    assert any("lenetlike/0002" in told and "tset" in told for told in found)
    assert any("lenetlike/0003" in told and "1.5" in told for told in found)


def test_a_corrupted_chunk(zoo_copy: Path) -> None:
    with h5py.File(zoo_copy) as file:
        places = [file["archs/lenetlike/preps"].id.get_chunk_info(row) for row in (5, 20)]
    whole = bytearray(zoo_copy.read_bytes())
    for place in places:
        whole[place.byte_offset + place.size // 2] ^= 1
    zoo_copy.write_bytes(whole)
    found = problems(zoo_copy, sample=0)
    assert [("lenetlike/0005" in told, "lenetlike/0020" in told) for told in found] == [(True, False), (False, True)]


def test_other_data_and_no_data(zoo_copy: Path) -> None:
    with Zoo(zoo_copy) as zoo:
        group, header = zoo.only(), zoo.header
        population = Population(group.spec, group.read(range(36)).numpy(), group.members.copy())
    object.__setattr__(header, "split_hash", "0" * 64)
    write_zoo(zoo_copy, header, {"lenetlike": population})
    (told,) = problems(zoo_copy)
    assert "split hash" in told
    object.__setattr__(header, "data", {"name": "cifar10", "root": "nowhere"})
    write_zoo(zoo_copy, header, {"lenetlike": population})
    (told,) = problems(zoo_copy)
    assert "re-evaluated" in told and "nowhere" in told


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match=r"gone\.h5"):
        verify(tmp_path / "gone.h5")
