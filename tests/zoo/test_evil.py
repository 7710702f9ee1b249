"""Zoo files made to read other files, to claim what they do not hold, or to pass for sound ones: refused when opened."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from zoo_files import TINY, contents, in_parts, population, zoo_at

from netspace.errors import NetspaceError
from netspace.io import write_tensors
from netspace.zoo import MEMBER, Zoo, merge, parts_folder

SECRET = b"the secret that lies in another file. " * 200  # enough for all members of a zoo
IN_OPEN = 0x20  # of inotify.h


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """The files of a folder that anything in this process opened inside the block, after it has ended."""
    library = ctypes.CDLL(None)
    watch, opened = library.inotify_init1(os.O_NONBLOCK), list[str]()
    assert library.inotify_add_watch(watch, bytes(folder), IN_OPEN) >= 0
    try:
        yield opened
    finally:
        try:
            events = os.read(watch, 1 << 16)
        except BlockingIOError:
            events = b""
        os.close(watch)
        while events:
            length = struct.unpack_from("iIII", events)[3]
            opened.append(events[16 : 16 + length].rstrip(b"\0").decode())
            events = events[16 + length :]


def evil(secret: Path) -> dict[str, Callable[[h5py.File], object]]:
    """Ways to have a zoo read `secret`, or another zoo beside it, each as a change of a sound zoo."""
    other = secret.with_name("other.h5")

    def external(file: h5py.File) -> None:
        del file["archs/tiny/preps"]
        file.create_dataset("archs/tiny/preps", (6, 4, 24), "f4", external=[(str(secret), 0, 6 * 4 * 24 * 4)])

    def external_table(file: h5py.File) -> None:
        del file["archs/tiny/members"]
        file.create_dataset("archs/tiny/members", (6,), MEMBER, external=[(str(secret), 0, 6 * MEMBER.itemsize)])

    def virtual(file: h5py.File) -> None:
        del file["archs/tiny/preps"]
        layout = h5py.VirtualLayout((6, 4, 24), "f4")
        layout[:] = h5py.VirtualSource(str(other), "archs/tiny/preps", (6, 4, 24))
        file.create_virtual_dataset("archs/tiny/preps", layout)

    def unlimited(file: h5py.File) -> None:
        """Its shape is that of files which are looked for when the shape is asked for."""
        del file["archs/tiny/preps"]
        layout = h5py.VirtualLayout((6, 4, 24), "f4", maxshape=(None, 4, 24))
        source = h5py.VirtualSource(str(other), "archs/tiny/preps", (6, 4, 24), maxshape=(None, 4, 24))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("archs/tiny/preps", layout)

    def link(name: str, value: Any) -> Callable[[h5py.File], object]:
        def change(file: h5py.File) -> None:
            file.move(name, "/aside")
            file[name] = value

        return change

    return {
        "external preps": external,
        "external members": external_table,
        "virtual preps": virtual,
        "virtual preps of unlimited length": unlimited,
        "an external link to preps": link("archs/tiny/preps", h5py.ExternalLink(str(other), "archs/tiny/preps")),
        "an external link to members": link("archs/tiny/members", h5py.ExternalLink(str(other), "archs/tiny/members")),
        "an external link to an architecture": link("archs/tiny", h5py.ExternalLink(str(other), "archs/tiny")),
        "an external link to all": link("archs", h5py.ExternalLink(str(other), "archs")),
        "a soft link": link("archs/tiny/preps", h5py.SoftLink("/aside")),
        "a soft link to all": link("archs", h5py.SoftLink("/aside")),
    }


KINDS = sorted(evil(Path("secret")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_elsewhere_is_refused_before_it_is_opened(tmp_path: Path, cli: Any, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    zoo_at(outside / "other.h5", tiny=population(seed=7))
    path, sound = zoo_at(tmp_path / "z.h5"), zoo_at(tmp_path / "sound.h5")
    with h5py.File(path, "a") as file:
        evil(outside / "secret")[kind](file)
    parts_folder(tmp_path / "built.h5").mkdir()
    shutil.copy(path, parts_folder(tmp_path / "built.h5") / "part-0.h5")
    write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(3, 4), "b": torch.ones(3)})
    before = set(os.listdir(tmp_path))
    with watched(outside) as opened:
        for opening in (
            lambda: Zoo(path),
            lambda: merge(tmp_path / "out.h5", [sound, path]),
            lambda: Zoo(tmp_path / "built.h5"),  # put together from its parts
        ):
            with pytest.raises(NetspaceError, match=r"stores everything in the file itself$") as caught:
                opening()
            assert "\n" not in str(caught.value)
        network = tmp_path / "x.safetensors"
        commands = (
            ["info", path],
            ["verify", path],
            ["merge", "out.h5", path],
            ["import", path, network, "--arch", "tiny"],
        )
        for words in commands:
            done = cli("zoo", *words)
            assert done.code == 1 and done.sentence.endswith("stores everything in the file itself")
    assert opened == []
    assert set(os.listdir(tmp_path)) == before  # nothing was written
    with watched(outside) as opened:  # and who watches would have seen it
        (outside / "secret").read_bytes()
    assert opened == ["secret"]


def storage(file: h5py.File, name: str, shape: tuple[int, ...], kind: Any, **how: Any) -> None:
    del file[f"archs/tiny/{name}"]
    file.create_dataset(f"archs/tiny/{name}", shape, kind, **how)


CLAIMS: dict[str, Callable[[h5py.File], object]] = {
    "preps of which no chunk is stored": lambda file: storage(
        file, "preps", (6, 1 << 14, 1 << 14), "f4", chunks=(1, 1 << 14, 1 << 14)
    ),
    "preps that are not stored": lambda file: storage(file, "preps", (6, 1 << 14, 1 << 14), "f4"),
    "members of which no chunk is stored": lambda file: storage(file, "members", (25_000_000,), MEMBER, chunks=(1000,)),
    "members that are not stored": lambda file: storage(file, "members", (25_000_000,), MEMBER),
    "members in one huge chunk": lambda file: storage(
        file, "members", (6,), MEMBER, chunks=(3_000_000,), maxshape=(None,)
    ),
}


@pytest.mark.parametrize("kind", sorted(CLAIMS))
def test_sizes_that_the_file_does_not_hold_are_refused(tmp_path: Path, kind: str) -> None:
    """Each claims gigabytes in some kilobytes."""
    path = zoo_at(tmp_path / "z.h5")
    with h5py.File(path, "a") as file:
        CLAIMS[kind](file)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        NetspaceError, match=r"architecture 'tiny' cannot be read: '(preps|members)' claims [\d,]+ bytes, "
    ):
        Zoo(path)


def test_zeros_are_no_false_claim(tmp_path: Path) -> None:
    """Diverged members are all zero, which nothing packs smaller."""
    held = population(count=300, size=(64, 256))
    held.preps[:], held.members["status"], held.members["split"] = 0, b"diverged", b""
    path = zoo_at(tmp_path / "z.h5", tiny=held)
    assert path.stat().st_size < held.preps.nbytes / 100
    with Zoo(path) as zoo:
        assert not zoo.only().read(range(300)).any()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"dtype": "f8"}, r"has PReps of shape \(6, 4, 24\) and type float64 for 6 members"),
        ({"dtype": h5py.ref_dtype}, "'preps' holds references or texts of any length"),
        ({"dtype": "f4", "compression": "lzf"}, "'preps' is stored by filters that zoos do not have"),
    ],
)
def test_values_of_other_kinds(tmp_path: Path, kind: dict[str, Any], why: str) -> None:
    path = zoo_at(tmp_path / "z.h5")
    with h5py.File(path, "a") as file:
        del file["archs/tiny/preps"]
        file.create_dataset("archs/tiny/preps", (6, 4, 24), **kind)
        if kind["dtype"] != h5py.ref_dtype:
            file["archs/tiny/preps"][:] = 1
    with pytest.raises(NetspaceError, match=why):
        Zoo(path)


def test_a_group_for_a_data_set(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    with h5py.File(path, "a") as file:
        del file["archs/tiny/preps"]
        file.create_group("archs/tiny/preps")
    with pytest.raises(NetspaceError, match=r"'tiny' cannot be read: 'preps' is a group, not a dataset$"):
        Zoo(path)


def cheat(path: Path) -> int:
    """Two bytes 0x0000 of the table become 0xFFFF, which Fletcher-32 cannot tell apart; where they lie in the table."""
    with h5py.File(path) as file:
        table = file["archs/tiny/members"]
        place, stored = int(table.id.get_chunk_info(0).byte_offset), table[:].tobytes()
    index = next(index for index in range(0, len(stored), 2) if stored[index : index + 2] == b"\0\0")
    raw = bytearray(path.read_bytes())
    assert raw[place : place + len(stored)] == stored
    raw[place + index : place + index + 2] = b"\xff\xff"
    path.write_bytes(raw)
    return index


def test_a_table_that_its_checksum_cannot_tell_from_what_was_written(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    before = contents(path)
    assert cheat(path) < MEMBER.itemsize
    with pytest.raises(NetspaceError) as caught:
        Zoo(path)
    assert str(caught.value) == (f"{path}: the table of members of 'tiny' is not as it was written: it is corrupted")
    zoo_at(path)
    with h5py.File(path, "a") as file:  # a zoo from before tables had a hash: read as then, merged never
        del file["archs/tiny"].attrs["members_hash"]
    assert contents(path) == before
    cheat(path)
    with Zoo(path) as zoo:
        assert len(zoo) == 6
    with pytest.raises(
        NetspaceError, match=r"z\.h5 is not merged: .*content hash does not match; `netspace zoo verify` "
    ):
        merge(tmp_path / "out.h5", [path])
    assert os.listdir(tmp_path) == ["z.h5"]


def unfit(change: Callable[[Any], None]) -> Any:
    held = population()
    change(held)
    return held


def nan(held: Any) -> None:
    held.preps[1, 0, 0] = np.nan


def padding(held: Any) -> None:
    held.preps[2].reshape(-1)[TINY.num_parameters] = 1


def accuracy(held: Any) -> None:
    held.members["accuracy_val"][3] = 1.5


def crossing(held: Any) -> None:
    held.members["run"] = 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nan, "tiny/0001: some of its values are not finite"),
        (padding, "tiny/0002: the padding after its last parameter is not zero"),
        (accuracy, "tiny/0003: accuracy_val is 1.5, not within 0..1"),
        (crossing, "tiny: 1 runs have members in several splits (first: run 0)"),
    ],
)
def test_members_that_verify_refuses_are_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], why: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "isfinite", lambda values: np.ones(values.shape, bool))  # the writer of another program
        path = zoo_at(tmp_path / "z.h5", tiny=unfit(change))
    for out, sources in ((tmp_path / "out.h5", [path]), (tmp_path / "out.h5", [zoo_at(tmp_path / "a.h5"), path])):
        with pytest.raises(NetspaceError) as caught:
            merge(out, sources)
        assert (
            str(caught.value) == f"{path} is not merged: {why}; `netspace zoo verify` lists all that is wrong with it"
        )
        assert not out.exists()


def test_parts_are_checked_as_sources_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "isfinite", lambda values: np.ones(values.shape, bool))
        in_parts(tmp_path / "z.h5", unfit(nan))
    with pytest.raises(NetspaceError, match=r"part-0\.h5 is not merged: tiny/0001: some of its values are not finite"):
        Zoo(tmp_path / "z.h5")
