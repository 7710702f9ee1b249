"""Readers of image files: IDX, CIFAR's binary version, folders with and without labels. None of them runs code.

An IDX file is two zero bytes, the type (8: uint8), the number of axes, each axis as a big-endian uint32, the bytes
(http://yann.lecun.com/exdb/mnist/); torchvision refuses Debian's .gz. A record of CIFAR is the label (CIFAR-100: coarse
label, fine label), then 3 x 32 x 32 pixels (https://www.cs.toronto.edu/~kriz/cifar.html); the label used is the last
one, and the Python version is a pickle, which is never opened. Labelled image files are decoded once and cached.

Axes: N images, B images of a batch, H W pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from netspace.errors import NetspaceError, UsageError
from netspace.files import replacing
from netspace.io import HASH, hash_named, read_tensors
from netspace.tasks.base import broken, missing
from netspace.tasks.images import Split, resize

PIXELS = 3 * 32 * 32  # values of an image of CIFAR
DEFLATE = 1100  # bytes that one compressed byte stands for at most; zlib's own bound is 1032
CACHE_VERSION = 2  # to be raised when the same files would give other pixels
CHUNK = 256  # files that one thread decodes in one go
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TINY = "tiny-imagenet-200"
CENTRE = 224 / 256  # side of the square cut from an image without a label, as a fraction of the image's shorter side


@dataclass(frozen=True)
class Layout:
    """The files of one CIFAR."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # text file: the classes, one a line
    labels: int  # bytes of labels before the pixels


CIFAR10 = Layout(
    "cifar-10-batches-bin", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1
)
CIFAR100 = Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2)


def read_cifar_binary(root: Path, name: str, layout: Layout, how: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Return training and test images (N, 3, 32, 32) and class names. Raises `NetspaceError` if missing or broken."""
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


IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, axes: int) -> Tensor:
    """Return the uint8 array (N, ...) of an IDX file, or .gz. Raises `NetspaceError` unless it has that many axes."""
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
        actual = f"only {len(data)}" if len(data) < size else "more"
        raise broken(path, f"{size} values for its sizes {shape}", actual)
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(shape).copy())


def find(folder: Path, name: str) -> Path | None:
    """Return the path of `name`.gz or `name` in a folder, whichever is there; None if neither is."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx_files(folders: list[Path], name: str, how: str) -> tuple[Split, Split]:
    """Return training and test images (N, 1, H, W) from the first folder that has all four files, .gz or plain.

    Raises `NetspaceError` if the set is missing (`how` says where to get it) or a file is broken.
    """
    for folder in folders:
        paths = {key: [find(folder, file) for file in files] for key, files in IDX_FILES.items()}
        if all(path for pair in paths.values() for path in pair):
            train, test = (_pair(cast(list[Path], paths[key])) for key in IDX_FILES)
            return train, test
    raise missing(name, [folder / f"{IDX_FILES['train'][0]}[.gz]" for folder in folders], how)


def _pair(paths: list[Path]) -> Split:
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise broken(paths[1], f"{len(images)} labels, one for each image", f"{len(labels)}")
    return Split(images[:, None], labels.long())


def decode(folder: Path, files: list[Path], size: int | None) -> Tensor:
    """Return the images `files`, all below `folder`, as uint8 (N, 3, H, W), from the folder's cache if they are there.

    With a `size` each is resized to that square; without, all must have the shape of the first. What is
    transparent becomes white. Raises `NetspaceError` for a file that cannot be decoded or has another shape.
    """
    cache = folder / f".netspace-{_key(folder, files, size)}.safetensors"
    images = _load(cache, len(files))
    if images is None:
        images = _decode_all(files, size)
        # in a folder that is not ours to write, or on a full disk: decode again next time
        with suppress(NetspaceError, SafetensorError), replacing(cache) as temporary:
            save_file({"images": images}, temporary, metadata={HASH: hash_named({"images": images}, {})})
    return images


def _key(folder: Path, files: list[Path], size: int | None) -> str:
    digest = hashlib.sha256(f"{CACHE_VERSION} {size}\n".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(folder).as_posix()}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _load(cache: Path, count: int) -> Tensor | None:
    try:
        images = read_tensors(cache)[0].get("images")
    except NetspaceError:
        return None
    if images is None or images.dtype != torch.uint8 or images.dim() != 4 or len(images) != count:
        return None
    return images


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
    """Return one image file as uint8 (3, H, W). Raises `NetspaceError` if it is not an image, or as `eight_bits`."""
    try:
        with Image.open(file) as image:
            levels = eight_bits(image, file)
            if "A" in levels.getbands() or "transparency" in levels.info:
                layer = levels.convert("RGBA")
                colour = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            else:
                colour = levels.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises for bad files
        raise broken(file, "an image", str(error) or type(error).__name__) from error
    pixels = torch.from_numpy(np.array(colour)).permute(2, 0, 1)
    return pixels if size is None else resize(pixels[None], size)[0]


def eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Return an image whose channels have 8 bits: of grey values of 16 bits the upper ones, as PIL reads colours of 16 bits.

    PIL's own conversion makes all grey values above 255 white. Raises `NetspaceError` for grey values of 32 bits and floats.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # which have no 32 bits
        values = np.array(image)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if "transparency" in image.info:  # the value that is transparent
            grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        found = "integers of 32 bits" if image.mode == "I" else "floats"
        raise NetspaceError(
            f"{file} was expected to have pixels of 8 or 16 bits, but has {found}, which do not say what is white; save it "
            "with 8 bits."
        )
    return image


def read_tiny_imagenet(root: Path, name: str, how: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Return training images, the provided validation images (the papers' test split) and classes; (N, 3, 64, 64).

    Classes are in the order of their WordNet ids and called "id word". Raises `NetspaceError` if missing or broken.
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
    absent = [file for file, _ in test if not file.is_file()]
    if absent or not train or not test:
        raise missing(name, absent[:1] or [folder / "train"], how)
    splits = _decode(folder, [train, test], None)
    words = _words(folder / "words.txt")
    return splits[0], splits[1], tuple(f"{wnid} {words[wnid]}" if wnid in words else wnid for wnid in ids)


def read_folder(folder: Path, size: int | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the splits of a folder, images (N, 3, H, W), and the classes: its subfolders' names, sorted.

    Either folder/train/<class>/* and next to it val/<class>/* or test/<class>/* (one, both or none), or
    folder/<class>/* alone, which is all training. Raises `NetspaceError` if a split has no images or unknown classes.
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
    """Return the first word of each WordNet id, from lines "id<tab>word, other words"; {} if there is no file."""
    if not path.is_file():
        return {}
    pairs = (line.split("\t", 1) for line in path.read_text("utf-8", "replace").splitlines() if "\t" in line)
    return {wnid: words.split(",")[0] for wnid, words in pairs}


Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class Normalisation:
    """How pixels in [0, 1] of images without labels are normalised: (pixels - mean) / std of each channel."""

    name: str  # as --normalise has it
    mean: Channels
    std: Channels

    def figures(self) -> dict[str, Any]:
        """Return the settings as results have them."""
        return {"normalise": self.name, "mean": list(self.mean), "std": list(self.std)}


IMAGENET = Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of its training images
NORMALISATIONS = {
    "imagenet": IMAGENET,
    "none": Normalisation("none", (0.0,) * 3, (1.0,) * 3),  # pixels stay in [0, 1]
    "0-255": Normalisation("0-255", (0.0,) * 3, (1 / 255,) * 3),  # pixels as they are in a file
}


def normalisation(text: str) -> Normalisation:
    """Return the normalisation called `text`: a name, or MEAN/STD, each a number or three separated by commas.

    Raises `UsageError` for anything else.

    >>> normalisation("0.5/0.25").std
    (0.25, 0.25, 0.25)
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(word) for word in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean = std = ()
    wide = [part * 3 if len(part) == 1 else part for part in (mean, std)]
    if any(len(part) != 3 or not all(map(math.isfinite, part)) for part in wide) or min(wide[1]) <= 0:
        raise UsageError(
            f"--normalise {text!r} was expected to be {', '.join(NORMALISATIONS)}, or MEAN/STD of pixels in [0, 1], each a "
            "number or three with commas between, as in 0.5,0.5,0.5/0.25"
        )
    return Normalisation(text, (wide[0][0], wide[0][1], wide[0][2]), (wide[1][0], wide[1][1], wide[1][2]))


def picture_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and below it, sorted. Raises `UsageError` if there are none."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise UsageError(f"there are no pictures in {folder}: give a folder of {', '.join(sorted(SUFFIXES))} files")
    return files


def picture_batches(
    files: list[Path], size: int, batch: int = 32, by: Normalisation = IMAGENET
) -> Iterator[Float[Tensor, "B 3 S S"]]:
    """Yield batches of images, `size` pixels a side: the shorter side resized, the centre cut out, pixels normalised.

    Raises `NetspaceError` for a file that is not an image.
    """
    from torchvision.transforms.v2.functional import center_crop, normalize
    from torchvision.transforms.v2.functional import resize as resize_sides

    for start in range(0, len(files), batch):
        squares = [
            center_crop(resize_sides(decode_one(file, None), [round(size / CENTRE)], antialias=True), [size, size])
            for file in files[start : start + batch]
        ]
        yield normalize(torch.stack(squares).float() / 255, list(by.mean), list(by.std))
