"""What `fetch` asks torchvision to download; the network itself is not tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netspace.errors import NetspaceError, UsageError
from netspace.tasks import fetch


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []
    where = "torchvision.datasets.utils.download_and_extract_archive"
    monkeypatch.setattr(where, lambda url, **named: calls.append((url, named)))
    return calls


def test_fetch_one_archive(tmp_path: Path, downloads: list[tuple[str, dict[str, Any]]]) -> None:
    assert fetch("cifar10", tmp_path) == tmp_path
    assert downloads == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            {"download_root": tmp_path, "md5": "c32a1d4ab5d03f1284b67883e8d87530", "remove_finished": True},
        )
    ]


@pytest.mark.parametrize(("name", "reader"), [("fashion-mnist", "FashionMNIST"), ("mnist", "MNIST")])
def test_fetch_is_torchvision_s_idx_files(
    name: str,
    reader: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    downloads: list[tuple[str, dict[str, Any]]],
) -> None:
    from torchvision import datasets

    monkeypatch.setenv("NETSPACE_DATA", str(tmp_path / "data"))
    fetch(name)
    theirs = getattr(datasets, reader)
    assert [(url.rsplit("/", 1)[1], named["md5"]) for url, named in downloads] == theirs.resources
    assert all(url.startswith(tuple(theirs.mirrors)) for url, _ in downloads)
    assert {named["download_root"] for _, named in downloads} == {tmp_path / "data" / name}


def test_fetch_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown data set to fetch 'digits'"):
        fetch("digits")

    def fail(error: Exception) -> Callable[..., None]:
        def download(*_: object, **__: object) -> None:
            raise error

        return download

    for error in (RuntimeError("File not found or corrupted."), OSError("no route")):
        monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail(error))
        with pytest.raises(
            NetspaceError, match=rf"could not fetch http.*tiny-imagenet-200\.zip .*: {error}; try again"
        ):
            fetch("tiny-imagenet", tmp_path)
