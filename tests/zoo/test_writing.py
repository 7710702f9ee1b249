"""The layout on disk, and writes that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from zoo_files import HEADER, LARGE, TINY, population, zoo_at

from netspace.errors import NetspaceError
from netspace.networks.spec import NetSpec
from netspace.zoo import MEMBER, Header, Population, Zoo, write_zoo
from netspace.zoo.writer import write


def test_layout_is_one_member_a_chunk_shuffled_compressed_checksummed(tmp_path: Path) -> None:
    with h5py.File(zoo_at(tmp_path / "z.h5")) as file:
        assert file.attrs["netspace_zoo"] == 1 and set(file["archs"]) == {"tiny"}
        preps, members = file["archs/tiny/preps"], file["archs/tiny/members"]
        assert preps.dtype == np.float32 and preps.shape == (6, 4, 24) and preps.chunks == (1, 4, 24)
        assert preps.shuffle and preps.fletcher32 and preps.compression == "gzip"
        assert members.fletcher32 and members.dtype == MEMBER
        assert NetSpec.from_json(file["archs/tiny"].attrs["spec"]) == TINY


def test_a_zoo_without_compression_is_the_same_zoo(tmp_path: Path) -> None:
    held = population()
    zoo_at(tmp_path / "small.h5")

    def chunks(_: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield held.preps, held.members

    write(tmp_path / "fast.h5", HEADER, {"tiny": TINY}, {"tiny": (4, 24)}, {"tiny": 6}, chunks, compress=False)
    with h5py.File(tmp_path / "fast.h5") as file:
        preps = file["archs/tiny/preps"]
        assert preps.fletcher32 and preps.chunks == (1, 4, 24) and preps.compression is None and not preps.shuffle
    with Zoo(tmp_path / "small.h5") as small, Zoo(tmp_path / "fast.h5") as fast:
        assert small.content_hash == fast.content_hash
        assert small.only().read(range(6)).equal(fast.only().read(range(6)))
    whole = (tmp_path / "fast.h5").read_bytes()
    at = whole.index(held.preps[2].tobytes()) + 7
    (tmp_path / "fast.h5").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with Zoo(tmp_path / "fast.h5") as fast, pytest.raises(NetspaceError):
        fast.only().read([2])


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

        patch.setattr(np, "ascontiguousarray", fail)  # called after the first values were written
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
from netspace.networks.spec import NetSpec
from netspace.zoo import MEMBER, Header, Population, write_zoo
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
