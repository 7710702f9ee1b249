"""The zoo file: round trips, damage that is noticed, merges, parts, writes that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from netspace import store
from netspace.errors import NetspaceError, UsageError
from netspace.spec import NetSpec
from netspace.store import MEMBER, Header, MemberRef, Population, Zoo, merge, parts_folder, recover, write_zoo

TINY = NetSpec("tiny", (("width", 1.0),), (1, 2, 2), ("w", "b"), ((3, 4), (3,)))
SMALL = NetSpec("a_small", (), (1, 2, 2), ("w",), ((5, 5),))
LARGE = NetSpec("large", (), (1, 2, 2), ("w",), ((40, 2),))
HEADER = Header({"name": "generated", "classes": 3}, "ab" * 32, {"name": "test", "seed": 0})


def population(spec: NetSpec = TINY, count: int = 6, seed: int = 0, size: tuple[int, int] = (4, 24)) -> Population:
    random = np.random.default_rng(seed)
    members = np.zeros(count, MEMBER)
    members["seed"] = seed * 1000 + np.arange(count)
    members["run"] = np.arange(count)
    members["epochs"] = 3 + np.arange(count)
    members["split"] = np.resize([b"train", b"train", b"val", b"test"], count)
    members["status"], members["source"] = b"ok", b"test"
    for key in ("accuracy_train", "accuracy_val", "accuracy_test", "learning_rate"):
        members[key] = random.random(count)
    preps = np.zeros((count, *size), np.float32)
    preps.reshape(count, size[0] * size[1])[:, : spec.num_parameters] = random.standard_normal(
        (count, spec.num_parameters)
    )
    return Population(spec, preps, members)


def zoo_at(path: Path, header: Header = HEADER, **populations: Population) -> Path:
    write_zoo(path, header, populations or {"tiny": population()})
    return path


def contents(path: Path) -> dict[str, tuple[list[bytes], list[bytes]]]:
    with Zoo(path) as zoo:
        return {
            name: (
                [row.numpy().tobytes() for row in group.read(range(len(group)))],
                [m.tobytes() for m in group.members],
            )
            for name, group in zoo.archs.items()
        }


def chunk_place(path: Path, row: int) -> tuple[int, int]:
    """Where the chunk of a member lies in the file: (first byte, bytes)."""
    with h5py.File(path) as file:
        info = file["archs/tiny/preps"].id.get_chunk_info(row)
        assert info.chunk_offset == (row, 0, 0)
        return int(info.byte_offset), int(info.size)


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(raw)


# what is written is read


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


def test_layout_is_one_member_a_chunk_shuffled_compressed_checksummed(tmp_path: Path) -> None:
    with h5py.File(zoo_at(tmp_path / "z.h5")) as file:
        assert file.attrs["netspace_zoo"] == 1 and set(file["archs"]) == {"tiny"}
        preps, members = file["archs/tiny/preps"], file["archs/tiny/members"]
        assert preps.dtype == np.float32 and preps.shape == (6, 4, 24) and preps.chunks == (1, 4, 24)
        assert preps.shuffle and preps.fletcher32 and preps.compression == "gzip"
        assert members.fletcher32 and members.dtype == MEMBER
        assert NetSpec.from_json(file["archs/tiny"].attrs["spec"]) == TINY


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


def test_the_content_hash_is_of_the_content(tmp_path: Path) -> None:
    def hashed(name: str, held: Population, header: Header = HEADER) -> str:
        with Zoo(zoo_at(tmp_path / f"{name}.h5", header, tiny=held)) as zoo:
            return zoo.content_hash

    same = hashed("a", population())
    assert hashed("b", population()) == same
    other = population()
    other.preps[2, 0, 0] += 1e-3
    assert hashed("c", other) != same
    other = population()
    other.members["split"][0] = b"val"
    assert hashed("d", other) != same


# names of members


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


# damage


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


@pytest.mark.parametrize("text", [b'"split_hash"', b'"input_shape"'])
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
    with pytest.raises(NetspaceError, match="does not exist"):
        Zoo(tmp_path)
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


# writing


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    held = population()
    held.preps[1, 0, 0] = np.nan
    with pytest.raises(
        NetspaceError, match=r"the PReps of 'tiny' hold values that are not finite: they are not written"
    ):
        zoo_at(tmp_path / "z.h5", tiny=held)
    assert not os.listdir(tmp_path)


def test_preps_that_do_not_hold_their_spec_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match=r"80 parameters do not fit a PRep of 4 x 16"):
        write_zoo(
            tmp_path / "z.h5",
            HEADER,
            {"large": Population(LARGE, np.zeros((1, 4, 16), "f4"), np.zeros(1, MEMBER))},
        )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "error", [RuntimeError("killed"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_writer_that_fails_midway_leaves_the_old_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = zoo_at(tmp_path / "z.h5")
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise error

        patch.setattr(store.np, "ascontiguousarray", fail)  # called after the first values were written
        expected = NetspaceError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected) as caught:
            zoo_at(path, tiny=population(seed=1))
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{path} could not be written: No space left on device. Free space")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["z.h5"]


FILLS_UP = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from netspace.errors import NetspaceError
from netspace.spec import NetSpec
from netspace.store import MEMBER, Header, Population, write_zoo
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5000, resource.RLIM_INFINITY))
spec = NetSpec("tiny", (), (1,), ("w",), ((96,),))
preps = np.random.default_rng(0).standard_normal((200, 4, 24)).astype("f4")
try:
    write_zoo(path, Header({}, "ab", {}), {"tiny": Population(spec, preps, np.zeros(200, MEMBER))})
except NetspaceError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path) -> None:
    """For real: no file may grow beyond a size, in a process of its own."""
    path = zoo_at(tmp_path / "z.h5")
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FILLS_UP, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # HDF5 neither crashed nor complained
    assert done.stdout == (
        f"{path} could not be written: File too large. Free space or choose another place; "
        "what was there before is untouched\n"
    )
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["z.h5"]


# merging


def test_merge_keeps_every_member_once_and_runs_apart(tmp_path: Path) -> None:
    one, two = population(seed=0), population(seed=1)
    zoo_at(tmp_path / "a.h5", tiny=one)
    zoo_at(tmp_path / "b.h5", tiny=two, large=population(LARGE, count=2))
    told = merge(tmp_path / "out.h5", [tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "a.h5"])
    assert told == {"members": 14, "duplicates": 6}
    with Zoo(tmp_path / "out.h5") as zoo:
        group = zoo.group("tiny")
        np.testing.assert_array_equal(group.read(range(12)).numpy(), np.concatenate([one.preps, two.preps]))
        assert len(set(group.members["run"])) == 12  # members of one run lie in one split, so runs must not be mixed up
        others = [name for name in MEMBER.names or () if name != "run"]
        for name in others:
            np.testing.assert_array_equal(group.members[name], np.concatenate([one.members[name], two.members[name]]))
        assert zoo.group("large").read([0, 1]).shape == (2, 4, 24) and zoo.complete


def test_a_merge_with_itself_changes_nothing(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "a.h5")
    merge(tmp_path / "out.h5", [path, path])
    assert contents(tmp_path / "out.h5") == contents(path)
    merge(path, [path])  # onto its own source
    assert contents(tmp_path / "out.h5") == contents(path)


def test_members_that_differ_in_seed_or_last_bit_are_not_duplicates(tmp_path: Path) -> None:
    other_seed, other_bit = population(), population()
    other_seed.members["seed"] += 1000
    other_bit.preps[:, 0, 0] = np.nextafter(other_bit.preps[:, 0, 0], np.float32(9))
    for name, held in (("a", population()), ("b", other_seed), ("c", other_bit)):
        zoo_at(tmp_path / f"{name}.h5", tiny=held)
    told = merge(tmp_path / "out.h5", [tmp_path / f"{name}.h5" for name in "abc"])
    assert told == {"members": 18, "duplicates": 0}


def test_what_is_not_of_one_kind_is_not_merged(tmp_path: Path) -> None:
    one = zoo_at(tmp_path / "a.h5")
    other = zoo_at(tmp_path / "b.h5", Header({"name": "digits"}, "cd" * 32, {}))
    with pytest.raises(NetspaceError) as caught:
        merge(tmp_path / "out.h5", [one, other])
    assert str(caught.value) == (
        f"{other} was trained on other data (digits, split cdcdcdcdcdcd) than {one} (generated, split abababababab): "
        "they cannot be merged"
    )
    for held in (population(SMALL), population(size=(8, 24))):
        zoo_at(tmp_path / "b.h5", tiny=held)
        with pytest.raises(
            NetspaceError, match=r"'tiny' of .*b\.h5 has another spec or PRep size than in the zoos before it"
        ):
            merge(tmp_path / "out.h5", [one, other])
    assert not (tmp_path / "out.h5").exists()


def in_parts(path: Path, held: Population) -> list[Path]:
    """A zoo's members as the parts that workers would leave, two a part."""
    parts = []
    for number, start in enumerate(range(0, len(held.members), 2)):
        rows = slice(start, start + 2)
        part = parts_folder(path) / f"part-{number}.h5"
        parts.append(zoo_at(part, tiny=Population(held.spec, held.preps[rows], held.members[rows])))
    return parts


def test_an_ordered_merge_does_not_depend_on_who_finished_first(tmp_path: Path) -> None:
    parts = in_parts(tmp_path / "z.h5", population())
    found = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0, 1])):
        out = tmp_path / f"out{number}.h5"
        merge(out, [parts[place] for place in order], ordered=True)
        with Zoo(out) as zoo:
            found.append((zoo.content_hash, contents(out)))
            np.testing.assert_array_equal(zoo.only().members, population().members)  # runs keep their numbers
    assert found[0] == found[1] == found[2]


def test_a_zoo_whose_builder_was_killed_is_put_together_when_opened(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    recover(path)
    assert not path.exists()
    in_parts(path, population())
    (parts_folder(path) / ".part-7.h5.123.tmp").write_bytes(b"half written")
    with Zoo(path) as zoo:
        assert not zoo.complete and len(zoo) == 6
        np.testing.assert_array_equal(zoo.only().read(range(6)).numpy(), population().preps)
    assert path.exists()


def test_a_zoo_that_is_there_is_not_put_together_again(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    in_parts(path, population(seed=3))
    with Zoo(path) as zoo:
        assert zoo.complete
    assert contents(path) == contents(zoo_at(tmp_path / "same.h5"))


def test_members_of_no_split_are_kept_when_diverged(tmp_path: Path) -> None:
    """Their PReps are all zero, yet they are different members."""
    held = population(count=4)
    held.preps[:], held.members["status"], held.members["split"] = 0, b"diverged", b""
    held.members["seed"] = 5
    told = merge(tmp_path / "out.h5", [zoo_at(tmp_path / "a.h5", tiny=held)])
    assert told == {"members": 4, "duplicates": 0}


def test_opening_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    hostile = NetSpec("os:system", (("command", "touch hacked"),), (1,), TINY.names, TINY.shapes)
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=population(hostile))) as zoo:
        assert zoo.only().spec == hostile
    assert not Path("hacked").exists()
