"""Zoos joined, and zoos put together from the parts of a builder that was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from zoo_files import LARGE, SMALL, TINY, contents, in_parts, population, zoo_at

from netspace.errors import NetspaceError, UsageError
from netspace.results.zoos import Merge
from netspace.zoo import MEMBER, Header, Population, Zoo, merge, parts_folder, recover


def test_merge_keeps_every_member_once_and_runs_apart(tmp_path: Path) -> None:
    one, two = population(seed=0), population(seed=1)
    zoo_at(tmp_path / "a.h5", tiny=one)
    zoo_at(tmp_path / "b.h5", tiny=two, large=population(LARGE, count=2))
    told = merge(tmp_path / "out.h5", [tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "a.h5"])
    assert told == Merge(members=14, duplicates=6)
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
    assert told == Merge(members=18, duplicates=0)


def test_equal_weights_of_other_architectures_are_not_duplicates(tmp_path: Path) -> None:
    relu = population()
    tanh = Population(replace(TINY, kwargs=(("activation", "tanh"), *TINY.kwargs)), relu.preps, relu.members)
    one, two = zoo_at(tmp_path / "a.h5", relu=relu), zoo_at(tmp_path / "b.h5", tanh=tanh)
    assert merge(tmp_path / "out.h5", [one, two]) == Merge(members=12, duplicates=0)


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


def test_merging_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        merge(tmp_path / "out.h5", [])
    assert str(caught.value) == (
        f"{tmp_path / 'out.h5'} was to be merged from zoos, but none was given: name at least one zoo file"
    )
    assert not (tmp_path / "out.h5").exists()


def test_no_zoo_stays_open_when_another_cannot_be_read(tmp_path: Path) -> None:
    one, other, cut = (zoo_at(tmp_path / f"{name}.h5") for name in ("one", "other", "cut"))
    cut.write_bytes(cut.read_bytes()[:-100])
    with h5py.File(other, "a") as file:
        del file["archs/tiny"].attrs["spec"]
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    for bad, why in [(cut, r"cut\.h5"), (tmp_path / "absent.h5", "does not exist"), (other, "'tiny' cannot be read")]:
        with pytest.raises(NetspaceError, match=why) as caught:
            merge(tmp_path / "out.h5", [one, bad])
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == before, caught.value


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
    """Their PReps are all zero, yet they are different members: of one training even."""
    held = population(count=4)
    held.preps[:], held.members["status"], held.members["split"] = 0, b"diverged", b""
    held.members["seed"] = held.members["run"] = 5
    told = merge(tmp_path / "out.h5", [zoo_at(tmp_path / "a.h5", tiny=held)])
    assert told == Merge(members=4, duplicates=0)


def test_a_diverged_member_that_is_there_already_is_left_out(tmp_path: Path) -> None:
    held = population(count=4)
    held.preps[2:], held.members["status"][2:], held.members["split"][2:] = 0, b"diverged", b""
    one = zoo_at(tmp_path / "a.h5", tiny=held)
    told = merge(tmp_path / "out.h5", [one, zoo_at(tmp_path / "b.h5", tiny=held)])
    assert told == Merge(members=4, duplicates=4)
    for name, value in {"seed": 9, "epochs": 90, "learning_rate": 9.0, "source": b"other"}.items():
        other = Population(held.spec, held.preps, held.members.copy())
        other.members[name][3] = value
        told = merge(tmp_path / "out.h5", [one, zoo_at(tmp_path / "b.h5", tiny=other)], ordered=True)
        assert told == Merge(members=5, duplicates=3), name
    told = merge(tmp_path / "out.h5", [one, zoo_at(tmp_path / "b.h5", other=held)])
    assert told == Merge(members=6, duplicates=2)  # of another architecture


def test_a_diverged_member_of_a_merged_zoo_is_left_out_too(tmp_path: Path) -> None:
    """There its run has another number, as those of several zoos are counted on."""
    first, held = zoo_at(tmp_path / "a.h5", tiny=population(seed=1)), population(count=4)
    held.preps[2:], held.members["status"][2:], held.members["split"][2:] = 0, b"diverged", b""
    second = zoo_at(tmp_path / "b.h5", tiny=held)
    assert merge(tmp_path / "both.h5", [first, second]) == Merge(members=10, duplicates=0)
    told = merge(tmp_path / "again.h5", [tmp_path / "both.h5", second, first])
    assert told == Merge(members=10, duplicates=10)
