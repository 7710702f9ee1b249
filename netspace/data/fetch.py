"""Downloading a data set, only when asked to: from its makers, with a checksum, to where `load` looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netspace.data.config import data_root
from netspace.errors import NetspaceError, unknown


@dataclass(frozen=True)
class Resource:
    """One file of a data set on the network."""

    url: str
    md5: str
    folder: str = ""  # where it is unpacked, below the root


def _gz(base: str, folder: str, **md5: str) -> tuple[Resource, ...]:
    return tuple(Resource(f"{base}{name.replace('_', '-')}-ubyte.gz", md5[name], folder) for name in md5)


RESOURCES: dict[str, tuple[Resource, ...]] = {
    "fashion-mnist": _gz(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "fashion-mnist",
        train_images_idx3="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        train_labels_idx1="25c81989df183df01b3e8a0aad5dffbe",
        t10k_images_idx3="bef4ecab320f06d8554ea6380940ec79",
        t10k_labels_idx1="bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "mnist": _gz(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "mnist",
        train_images_idx3="f68b3c2dcbeaaa9fbdd348bbdeb94873",
        train_labels_idx1="d53e105ee54ea40749a09fcbcd1e9432",
        t10k_images_idx3="9fb629c4189551a2d022fa330f9573f3",
        t10k_labels_idx1="ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "cifar10": (
        Resource("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    "cifar100": (
        Resource("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ),
    "tiny-imagenet": (
        Resource("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
    ),
}


def fetch(name: str, root: Path | None = None) -> Path:
    """Download and unpack data set `name` below `root` (default as in `DataConfig.root`); returns that root.

    Raises `UsageError` for a set that has no download (the others come with a package or are the user's own),
    and `NetspaceError` where the network or the checksum says no.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    if name not in RESOURCES:
        raise unknown("data set to fetch", name, RESOURCES)
    home = data_root(root)
    for resource in RESOURCES[name]:
        try:
            download_and_extract_archive(
                resource.url, download_root=home / resource.folder, md5=resource.md5, remove_finished=True
            )
        except (OSError, RuntimeError, EOFError) as error:
            raise NetspaceError(
                f"could not fetch {resource.url} (md5 {resource.md5}) into "
                f"{home / resource.folder}: {error}; try again, or put the unpacked file there by hand."
            ) from error
    return home
