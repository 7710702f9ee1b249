"""Who replaces a zoo holds its lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from zoo_files import in_parts, population, zoo_at

from netspace.errors import NetspaceError
from netspace.zoo import Zoo, parts_folder, zoo_lock


def test_the_lock_of_a_zoo_is_that_of_its_link_and_leaves_nothing(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    (tmp_path / "link.h5").symlink_to(path)
    with zoo_lock(path):
        with pytest.raises(NetspaceError) as caught, zoo_lock(tmp_path / "link.h5", timeout=0.1):
            pytest.fail("two at once")
        assert str(caught.value) == (
            f"{tmp_path / 'link.h5'} is still being written by another process after 0 s: wait for it, or choose another --out"
        )
        with Zoo(path) as zoo:  # reading needs none
            assert len(zoo) == 6
    assert sorted(os.listdir(tmp_path)) == ["link.h5", "z.h5"]


def test_a_zoo_that_is_being_built_is_its_builders(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    in_parts(path, population())
    with pytest.raises(NetspaceError) as caught, zoo_lock(path):
        pytest.fail("its parts would be put over what is written now")
    assert str(caught.value) == (
        f"{path} is being built, or its builder was interrupted: let `netspace zoo build` finish it first"
    )
    with zoo_lock(path, builder=True):
        assert parts_folder(path).is_dir()
    with Zoo(path) as zoo:  # put together, for which it takes the lock
        assert not zoo.complete and len(zoo) == 6
    assert sorted(os.listdir(tmp_path)) == ["z.h5", "z.h5.parts"]
