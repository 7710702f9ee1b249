"""Readers of image files: IDX, CIFAR's binary version, folders of images, and their download. None of them runs code.

An IDX file is two zero bytes, the type (8: uint8), the number of axes, each axis as a big-endian uint32, the bytes
(http://yann.lecun.com/exdb/mnist/); torchvision refuses Debian's .gz. A record of CIFAR is the label (CIFAR-100: coarse
label, fine label), then 3 x 32 x 32 pixels (https://www.cs.toronto.edu/~kriz/cifar.html); the label used is the last one,
and the Python version is a pickle, which is never opened. A great number of small image files is decoded once and cached.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from netspace.errors import NetspaceError, unknown
from netspace.files import replacing
from netspace.io import HASH, hash_named, read_tensors
from netspace.tasks.base import broken, data_root, missing
from netspace.tasks.images import Split, resize

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Where one CIFAR keeps what."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # text file: the classes, one a line
    labels: int  # bytes of labels before the pixels


CIFAR10 = Layout(
    "cifar-10-batches-bin",
    tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    1,
)


CIFAR100 = Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2)


def read_cifar_binary(root: Path, name: str, layout: Layout, how: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Training and test images (N, 3, 32, 32), class names; raises `NetspaceError` if missing or broken."""
    folder = root / layout.folder
    files = (*layout.train, layout.test, layout.names)
    absent = [folder / file for file in files if not (folder / file).is_file()]
    if absent:
        raise missing(name, absent, f"{how} (the binary version: the Python version is a pickle and is not opened)")
    classes = tuple((folder / layout.names).read_text("utf-8", "replace").split())
    parts = [_records(folder / file, layout.labels, len(classes)) for file in layout.train]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return train, _records(folder / layout.test, layout.labels, len(classes)), classes


def _records(path: Path, labels: int, classes: int) -> Split:
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % (labels + PIXELS):
        raise broken(path, f"whole records of {labels + PIXELS} bytes", f"{len(data)} bytes")
    records = data.reshape(-1, labels + PIXELS)
    label = torch.from_numpy(records[:, labels - 1].astype(np.int64))
    if int(label.max()) >= classes:
        raise broken(path, f"labels below {classes}, the number of class names", f"label {int(label.max())}")
    return Split(torch.from_numpy(records[:, labels:].reshape(-1, 3, 32, 32).copy()), label)


FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


DEFLATE = 1100  # bytes that one compressed byte stands for at most; zlib's own bound is 1032


def read_idx(path: Path, axes: int) -> Tensor:
    """The uint8 array of an IDX file, .gz or plain, with that many axes; else raises `NetspaceError`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast(IO[bytes], opened)
            magic = file.read(4)
            if magic != bytes((0, 0, 8, axes)):
                raise broken(
                    path,
                    f"an IDX file of {axes} axes (first bytes 0, 0, 8, {axes})",
                    f"first bytes {list(magic)}",
                )
            header = file.read(4 * axes)
            if len(header) < 4 * axes:
                raise broken(path, f"{axes} sizes", "the end of the file")
            shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
            size = math.prod(shape)
            largest = path.stat().st_size * (DEFLATE if path.suffix == ".gz" else 1)
            if size > largest:
                raise broken(path, f"at most the {largest} values that its bytes can hold", f"sizes {shape}")
            data = file.read(size + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise broken(path, "a readable IDX file", str(error) or type(error).__name__) from error
    if len(data) != size:
        found = f"only {len(data)}" if len(data) < size else "more"
        raise broken(path, f"{size} values for its sizes {shape}", found)
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(shape).copy())


def find(folder: Path, name: str) -> Path | None:
    """`name` or `name`.gz in the folder, whichever is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx_files(folders: list[Path], name: str, how: str) -> tuple[Split, Split]:
    """Training and test images (N, 1, H, W) from the first folder that has all four files.

    Raises `NetspaceError`: the set is missing (`how` says where to get it), or a file is broken.
    """
    for folder in folders:
        found = {key: [find(folder, file) for file in files] for key, files in FILES.items()}
        if all(path for paths in found.values() for path in paths):
            train, test = (_pair(cast(list[Path], found[key])) for key in FILES)
            return train, test
    raise missing(name, [folder / f"{FILES['train'][0]}[.gz]" for folder in folders], how)


def _pair(paths: list[Path]) -> Split:
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise broken(paths[1], f"{len(images)} labels, one for each image", f"{len(labels)}")
    return Split(images[:, None], labels.long())


VERSION = 1  # to be raised when the same files would give other pixels


CHUNK = 256  # files that one thread decodes in one go


SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def decode(folder: Path, files: list[Path], size: int | None) -> Tensor:
    """The images `files`, all below `folder`, as uint8 (N, 3, H, W), in their order.

    With a `size` each is resized to that square; without, all must have the shape of the first. What is
    transparent becomes white. Raises `NetspaceError` for a file that cannot be decoded or has another shape.
    """
    kept = folder / f".netspace-{_key(folder, files, size)}.safetensors"
    images = _load(kept, len(files))
    if images is None:
        images = _decode_all(files, size)
        _save(kept, images)
    return images


def _key(folder: Path, files: list[Path], size: int | None) -> str:
    digest = hashlib.sha256(f"{VERSION} {size}\n".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(folder).as_posix()}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _load(kept: Path, count: int) -> Tensor | None:
    try:
        images = read_tensors(kept)[0].get("images")
    except NetspaceError:
        return None
    if images is None or images.dtype != torch.uint8 or images.dim() != 4 or len(images) != count:
        return None
    return images


def _save(kept: Path, images: Tensor) -> None:
    held = {"images": images}
    # a folder that is not ours to write, or a full disk: decode again next time
    with suppress(NetspaceError, SafetensorError), replacing(kept) as temporary:
        save_file(held, temporary, metadata={HASH: hash_named(held, {})})


def _decode_all(files: list[Path], size: int | None) -> Tensor:
    first = decode_one(files[0], size)
    out = torch.empty(len(files), *first.shape, dtype=torch.uint8)

    def work(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(files))):
            image = decode_one(files[index], size)
            if image.shape != first.shape:
                raise NetspaceError(
                    f"{files[index]} has {image.shape[1]} x {image.shape[2]} pixels but {files[0]} has "
                    f"{first.shape[1]} x {first.shape[2]}; set image_size to bring all images to one shape."
                )
            out[index] = image

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, range(0, len(files), CHUNK)):  # raises what a thread raised, and cancels the others
            pass
    return out


def decode_one(file: Path, size: int | None) -> Tensor:
    """One image file as uint8 (3, H, W); raises `NetspaceError` if it is not an image."""
    try:
        with Image.open(file) as image:
            if "A" in image.getbands() or "transparency" in image.info:
                layer = image.convert("RGBA")
                colour = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            else:
                colour = image.convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # what PIL raises for bad files
        raise broken(file, "an image", str(error) or type(error).__name__) from error
    pixels = torch.from_numpy(np.array(colour)).permute(2, 0, 1)
    return pixels if size is None else resize(pixels[None], size)[0]


TINY = "tiny-imagenet-200"


def read_tiny_imagenet(root: Path, name: str, how: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Training images, the provided validation images (the papers' test split), classes; (N, 3, 64, 64).

    Classes are in the order of their WordNet ids and called "id word". Raises `NetspaceError` if missing or
    broken.
    """
    folder = root / TINY
    annotations = folder / "val" / "val_annotations.txt"
    absent = [path for path in (folder / "wnids.txt", annotations, folder / "train") if not path.exists()]
    if absent:
        raise missing(name, absent, how)
    ids = sorted((folder / "wnids.txt").read_text("utf-8", "replace").split())
    label_of = {wnid: label for label, wnid in enumerate(ids)}
    train = [(file, label_of[wnid]) for wnid in ids for file in _images(folder / "train" / wnid / "images")]
    test = []
    for line in annotations.read_text("utf-8", "replace").splitlines():
        file, wnid = (*line.split("\t"), "")[:2]
        if wnid not in label_of or Path(file).name != file:
            raise broken(annotations, "lines of a file name, a tab and a WordNet id of wnids.txt", repr(line))
        test.append((folder / "val" / "images" / file, label_of[wnid]))
    gone = next((file for file, _ in test if not file.is_file()), None)
    if gone or not train or not test:
        raise missing(name, [gone or folder / "train"], how)
    splits = _decode(folder, [train, test], None)
    words = _words(folder / "words.txt")
    return splits[0], splits[1], tuple(f"{wnid} {words[wnid]}" if wnid in words else wnid for wnid in ids)


def read_folder(folder: Path, size: int | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits found in a folder, and the classes: its subfolders' names, sorted; images (N, 3, H, W).

    Either folder/train/<class>/* with, beside it, val/<class>/* or test/<class>/* (one, both or none), or
    folder/<class>/* alone, which is all training. Raises `NetspaceError` where no images or unknown classes
    are.
    """
    base = folder / "train" if (folder / "train").is_dir() else folder
    classes = [path.name for path in _folders(base)]
    parts = {"train": base}
    if base != folder:
        parts |= {key: folder / key for key in ("val", "test") if (folder / key).is_dir()}
    listed: dict[str, list[tuple[Path, int]]] = {}
    for key, part in parts.items():
        extra = sorted({path.name for path in _folders(part)} - set(classes))
        if extra:
            raise NetspaceError(
                f"{part / extra[0]} is a class that {base} does not have; every class needs training images."
            )
        listed[key] = [(file, label) for label, name in enumerate(classes) for file in _images(part / name)]
        if not listed[key]:
            raise NetspaceError(
                f"there are no images in {part}: expected a subfolder for each class with files "
                f"{', '.join(sorted(SUFFIXES))}; point the setting root at such a folder."
            )
    return dict(zip(listed, _decode(folder, list(listed.values()), size), strict=True)), tuple(classes)


def _decode(folder: Path, parts: list[list[tuple[Path, int]]], size: int | None) -> list[Split]:
    images = decode(folder, [file for part in parts for file, _ in part], size)
    pieces = torch.split(images, [len(part) for part in parts])
    return [
        Split(piece, torch.tensor([label for _, label in part], dtype=torch.int64))
        for piece, part in zip(pieces, parts, strict=True)
    ]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _words(path: Path) -> dict[str, str]:
    """WordNet id -> its first word, from lines "id<tab>word, other words"; empty if there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.split("\t", 1) for line in path.read_text("utf-8", "replace").splitlines() if "\t" in line)
    return {wnid: words.split(",")[0] for wnid, words in pairs}


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
