"""Damaged files are noticed, and told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from zoo_files import chunk_place, flip, population, zoo_at

from netspace.errors import NetspaceError
from netspace.zoo import Zoo, merge


def test_a_flipped_byte_in_a_member_is_noticed_and_only_there(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    first, many = chunk_place(path, 3)
    flip(path, first + many // 2)
    with Zoo(path) as zoo:
        group = zoo.only()
        np.testing.assert_array_equal(group.read([0, 2, 4]).numpy(), population().preps[[0, 2, 4]])
        with pytest.raises(NetspaceError, match=r"z\.h5: member tiny/0003 is corrupted \(.*`netspace zoo verify`"):
            group.read([0, 3])
    with pytest.raises(NetspaceError, match=r"member tiny/0003 is corrupted"):
        merge(tmp_path / "out.h5", [path])
    assert not (tmp_path / "out.h5").exists()


def test_a_flipped_byte_in_the_table_of_members_is_noticed(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    with h5py.File(path) as file:
        place = int(file["archs/tiny/members"].id.get_chunk_info(0).byte_offset)
    flip(path, place + 8)
    with pytest.raises(NetspaceError, match=r"architecture 'tiny' cannot be read"):
        Zoo(path)


@pytest.mark.parametrize("text", [b'"split_hash"', b'"input_shape"', b"generated", b'tiny"'])
def test_a_flipped_byte_in_the_header_or_a_spec_is_noticed(tmp_path: Path, text: bytes) -> None:
    path = zoo_at(tmp_path / "z.h5")
    raw = path.read_bytes()
    assert raw.count(text) == 1
    flip(path, raw.index(text) + 3)
    with pytest.raises(NetspaceError, match=r"z\.h5"):
        Zoo(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_noticed_when_opened(tmp_path: Path, share: float) -> None:
    path = zoo_at(tmp_path / "z.h5")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(NetspaceError, match=r"expected to be a zoo \(HDF5\), but .* may be truncated or corrupted"):
        Zoo(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    with pytest.raises(NetspaceError, match=r"text\.h5 was expected to be a zoo \(HDF5\), but it cannot be opened"):
        Zoo(text)
    with pytest.raises(NetspaceError, match=r"absent\.h5 does not exist: build a zoo \(`netspace zoo build`\) or give"):
        Zoo(tmp_path / "absent.h5")
    with pytest.raises(
        NetspaceError, match=r"folder without finished shards .*: give the path of a zoo file, such as .*zoo\.h5"
    ):
        (tmp_path / "empty").mkdir()
        Zoo(tmp_path / "empty")
    for version, found in [(2, "version 2"), (None, "no zoo at all")]:
        with h5py.File(tmp_path / "other.h5", "w") as file:
            if version is not None:
                file.attrs["netspace_zoo"] = version
        with pytest.raises(NetspaceError, match=f"expected to be a zoo of version 1, but is {found}"):
            Zoo(tmp_path / "other.h5")


def edited(path: Path, change: Any) -> Path:
    zoo_at(path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def test_zoos_that_are_not_whole_are_one_sentence(tmp_path: Path) -> None:
    def attribute(name: str, value: object) -> Any:
        return lambda file: file.attrs.__setitem__(name, value)

    def replaced(name: str, **data: Any) -> Any:
        def change(file: h5py.File) -> None:
            del file[f"archs/tiny/{name}"]
            file.create_dataset(f"archs/tiny/{name}", **data)

        return change

    changes: dict[str, Any] = {
        "no header": lambda file: file.attrs.__delitem__("header"),
        "a header that is no JSON": attribute("header", "{"),
        "another header": attribute("header", json.dumps({"x": 1})),
        "a header of other things": attribute("header", json.dumps({"data": 1, "split_hash": "ab", "recipe": {}})),
        "a header without a hash": attribute("header", json.dumps({"data": {}, "split_hash": 1, "recipe": {}})),
        "no hash": lambda file: file.attrs.__delitem__("content_hash"),
        "no archs": lambda file: file.__delitem__("archs"),
        "no spec": lambda file: file["archs/tiny"].attrs.__delitem__("spec"),
        "another spec": lambda file: file["archs/tiny"].attrs.__setitem__("spec", "[]"),
        "no preps": lambda file: file["archs/tiny"].__delitem__("preps"),
        "flat preps": replaced("preps", data=np.zeros((6, 96), "f4")),
        "fewer preps": replaced("preps", data=np.zeros((5, 4, 24), "f4")),
        "small preps": replaced("preps", data=np.zeros((6, 4, 0), "f4")),
        "other members": replaced("members", data=np.zeros(6)),
        "members without columns": replaced("members", data=np.zeros(6, [("seed", "i8")])),
        "a version that is no number": attribute("netspace_zoo", "one"),
    }
    for name, change in changes.items():
        path = edited(tmp_path / f"{name}.h5", change)
        with pytest.raises(NetspaceError) as caught:
            Zoo(path)
        assert "\n" not in str(caught.value), name
