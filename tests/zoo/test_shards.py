"""Folders of shards, read as one zoo."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from zoo_files import HEADER, LARGE, TINY, contents, population, zoo_at

from netspace.errors import NetspaceError
from netspace.networks.spec import NetSpec
from netspace.zoo import Population, Shard, Zoo, merge, parts_folder, write_zoo
from netspace.zoo.file import MEMBER


def snapshots(count: int = 12, spec: NetSpec = TINY, seed: int = 0) -> Population:
    """Members of which three are of one run each."""
    made = population(spec, count, seed)
    made.members["run"], made.members["epochs"] = np.arange(count) // 3, 1 + np.arange(count) % 3
    made.members["split"] = np.resize([b"train", b"train", b"val", b"test"], count // 3).repeat(3)
    return made


def rows_of(whole: Population, rows: np.ndarray) -> Population:
    return Population(whole.spec, whole.preps[rows], whole.members[rows])


def sharded(folder: Path, wholes: dict[str, Population], count: int = 3) -> Path:
    """Write a zoo as shards, of which each has every N-th run."""
    for index in range(count):
        parts = {name: rows_of(whole, whole.members["run"] % count == index) for name, whole in wholes.items()}
        shard = Shard(index + 1, count)
        write_zoo(folder / shard.file_name, HEADER, {n: p for n, p in parts.items() if len(p.members)}, shard)
    return folder


@pytest.fixture
def wholes() -> dict[str, Population]:
    return {"tiny": snapshots(), "large": snapshots(6, LARGE, 1)}  # two runs of 'large' for three shards


def test_a_folder_of_shards_is_the_zoo_that_was_divided(tmp_path: Path, wholes: dict[str, Population]) -> None:
    write_zoo(tmp_path / "whole.h5", HEADER, wholes)
    folder = sharded(tmp_path / "folder", wholes)
    with Zoo(tmp_path / "whole.h5") as whole, Zoo(folder) as zoo:
        assert list(zoo.archs) == list(whole.archs) == ["tiny", "large"] and len(zoo) == 18 and zoo.complete
        assert [group.class_id for group in zoo.archs.values()] == [0, 1]
        assert zoo.content_hash == whole.content_hash and zoo.header == whole.header
        for group, same in zip(zoo.archs.values(), whole.archs.values(), strict=True):
            np.testing.assert_array_equal(group.members, same.members)
            assert group.spec == same.spec and group.size == same.size
            rows = np.random.default_rng(0).permutation(len(group))
            np.testing.assert_array_equal(group.read(rows).numpy(), same.read(rows).numpy())
            for split in ("train", "val", "test", "all"):
                np.testing.assert_array_equal(group.rows(split), same.rows(split))
        for name in ("best", "worst", "best:large", "tiny/0007"):
            assert zoo.find(name) == whole.find(name)
        assert zoo.num_bytes == sum(file.stat().st_size for file in folder.iterdir()) and len(zoo.files) == 3
    assert contents(folder) == contents(tmp_path / "whole.h5")


def test_the_content_hash_is_that_of_a_plain_reading(tmp_path: Path, wholes: dict[str, Population]) -> None:
    digest = hashlib.sha256()
    with Zoo(sharded(tmp_path / "folder", wholes)) as zoo:
        for name in ("tiny", "large"):
            digest.update(f"{name} {wholes[name].spec.to_json()}".encode())
            for prep, member in zip(wholes[name].preps, wholes[name].members, strict=True):
                digest.update(member.tobytes() + hashlib.sha256(prep.tobytes()).digest())
        assert zoo.content_hash == digest.hexdigest()


def test_shards_merge_to_the_whole_zoo(tmp_path: Path, wholes: dict[str, Population]) -> None:
    write_zoo(tmp_path / "whole.h5", HEADER, wholes)
    folder = sharded(tmp_path / "folder", wholes)
    for name, sources in {"folder": [folder], "files": sorted(folder.glob("*.h5"), reverse=True)}.items():
        merge(tmp_path / f"{name}.h5", sources)
        with Zoo(tmp_path / "whole.h5") as whole, Zoo(tmp_path / f"{name}.h5") as merged:
            assert merged.content_hash == whole.content_hash and merged.stored_hash == whole.stored_hash
            assert merged.shard is None


def test_zoos_of_several_seeds_follow_each_other_as_merged(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for seed in (1, 0):
        header = replace(HEADER, recipe={**HEADER.recipe, "seed": seed}, data={**HEADER.data, "root": f"/{seed}"})
        write_zoo(folder / f"{seed}.h5", header, {"tiny": snapshots(6, seed=seed)})
    merge(tmp_path / "merged.h5", [folder / "0.h5", folder / "1.h5"])
    with Zoo(folder) as zoo, Zoo(tmp_path / "merged.h5") as merged:
        assert zoo.content_hash == merged.content_hash
        np.testing.assert_array_equal(zoo.only().members["run"], np.arange(4).repeat(3))
    assert contents(folder) == contents(tmp_path / "merged.h5")


def refused(path: Path) -> str:
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    with pytest.raises(NetspaceError) as caught:
        Zoo(path)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == before  # nothing stays open
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_of_different_recipes_are_refused(tmp_path: Path, wholes: dict[str, Population]) -> None:
    folder = sharded(tmp_path / "folder", wholes)
    first, second = folder / "shard-1-of-3.h5", folder / "shard-2-of-3.h5"
    other = replace(HEADER, recipe={**HEADER.recipe, "seed": 5})
    write_zoo(second, other, {"tiny": snapshots(3)}, Shard(2, 3))
    assert refused(folder) == (
        f"{second} and {first} are shards of different recipes (seed was 0 and is 5 now): move one of them elsewhere, or join "
        "them by `netspace zoo merge`"
    )
    write_zoo(second, replace(HEADER, split_hash="cd" * 32), {"tiny": snapshots(3)}, Shard(2, 3))
    assert "different recipes (split abababababab and cdcdcdcdcdcd of the data)" in refused(folder)
    write_zoo(second, HEADER, {"tiny": population(size=(8, 24))}, Shard(2, 3))
    assert refused(folder) == (
        f"'tiny' of {second} has another spec or PRep size than in {first}: they are no shards of one zoo"
    )


def test_shards_that_overlap_are_refused(tmp_path: Path, wholes: dict[str, Population]) -> None:
    folder = sharded(tmp_path / "folder", wholes)
    first, second = folder / "shard-1-of-3.h5", folder / "shard-2-of-3.h5"
    shutil.copy(second, folder / "z.h5")
    assert refused(folder) == f"{folder / 'z.h5'} and {second} overlap: both are shard 2/3; move one of them elsewhere"
    (folder / "z.h5").unlink()
    write_zoo(second, HEADER, {"tiny": rows_of(wholes["tiny"], np.array([0, 3, 4]))}, Shard(2, 3))
    assert f"{second} and {first} overlap: 1 networks of tiny are in both" in refused(folder)
    write_zoo(second, HEADER, {"tiny": snapshots(3)}, Shard(2, 4))
    assert f"{second} is shard 2/4 and {first} is shard 1/3, so members may overlap" in refused(folder)
    zoo_at(second)
    assert f"{second} is no shard of a build and {first} is shard 1/3" in refused(folder)
    others = tmp_path / "others"
    zoo_at(others / "a.h5", tiny=population(seed=3))
    zoo_at(others / "b.h5", tiny=rows_of(population(seed=3), np.array([1, 4])))
    assert f"{others / 'b.h5'} and {others / 'a.h5'} overlap: 2 networks of tiny are in both" in refused(others)


def test_shards_that_are_missing_or_unfinished_are_named_or_left_out(
    tmp_path: Path, wholes: dict[str, Population]
) -> None:
    folder = sharded(tmp_path / "folder", wholes)
    second = folder / "shard-2-of-3.h5"
    part = parts_folder(second) / "part-1.h5"
    part.parent.mkdir()
    second.rename(part)
    unfinished = f"shard shard-2-of-3.h5 of {folder} is not finished: start the same `netspace zoo build` again"
    assert refused(folder).startswith(unfinished)
    with Zoo(second) as recovered:  # by itself it is read as any interrupted build is
        assert not recovered.complete and recovered.shard == Shard(2, 3)
    assert refused(folder).startswith(unfinished)
    with Zoo(folder, partial=True) as zoo:
        assert not zoo.complete and len(zoo) == 12
        np.testing.assert_array_equal(np.unique(zoo.group("tiny").members["run"]), [0, 2, 3])
        data = zoo.filter(arch="tiny").dataset()
        with pickle.loads(pickle.dumps(zoo)) as copy:  # as processes of a loader open it
            np.testing.assert_array_equal(data.preps(np.arange(len(data))), copy.group("tiny").read(range(len(data))))
        data.close()
    second.unlink()
    shutil.rmtree(part.parent)
    assert refused(folder) == (
        f"shard 2/3 of {folder} is not there: build it (`netspace zoo build RECIPE --shard 2/3 -o {folder}`), or take the "
        "finished ones alone (`netspace zoo merge --partial`)"
    )
    merge(tmp_path / "rest.h5", [folder], partial=True)
    assert contents(tmp_path / "rest.h5")["large"] == contents_of(wholes["large"], [0, 1, 2])


def contents_of(whole: Population, rows: list[int]) -> tuple[list[bytes], list[bytes]]:
    return [whole.preps[row].tobytes() for row in rows], [whole.members[row].tobytes() for row in rows]


def test_shards_that_are_damaged_or_of_earlier_versions_are_named(
    tmp_path: Path, wholes: dict[str, Population]
) -> None:
    folder = sharded(tmp_path / "folder", wholes)
    second = folder / "shard-2-of-3.h5"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    assert str(second) in refused(folder)
    second.write_bytes(whole)
    with h5py.File(second, "a") as file:
        del file["archs/tiny/prep_hashes"]
    assert f"{second} was written by an earlier version, without hashes of its members" in refused(folder)
    second.write_bytes(whole)
    with h5py.File(second, "a") as file:
        del file["archs/tiny/prep_hashes"]
        file["archs/tiny/prep_hashes"] = np.zeros((2, 32), np.uint8)
    assert "'tiny' was expected to have a hash of 32 bytes for each of 3 members" in refused(folder)
    second.write_bytes(whole)
    with h5py.File(second, "a") as file:
        file.attrs["shard"] = np.bytes_(b"4/3")
    assert "is not whole: a shard is I/N" in refused(folder)


def test_hashes_that_are_not_of_the_members_are_noticed(tmp_path: Path, wholes: dict[str, Population]) -> None:
    folder = sharded(tmp_path / "folder", wholes)
    with h5py.File(folder / "shard-2-of-3.h5", "a") as file:
        file["archs/tiny/prep_hashes"][0] = 0
    with pytest.raises(NetspaceError, match="content hash does not match"):
        merge(tmp_path / "out.h5", [folder])


def test_the_table_has_no_row_twice_and_none_is_lost(tmp_path: Path) -> None:
    whole = snapshots(300)
    whole.members["run"] = np.random.default_rng(0).permutation(100).repeat(3)
    with Zoo(sharded(tmp_path / "folder", {"tiny": whole}, 7)) as zoo:
        order = sorted(range(300), key=lambda row: (whole.members["run"][row], whole.members["epochs"][row]))
        np.testing.assert_array_equal(zoo.only().members, whole.members[order])
        np.testing.assert_array_equal(zoo.only().read(range(300)).numpy(), whole.preps[order])
        assert zoo.only().members.dtype == MEMBER
