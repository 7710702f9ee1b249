"""Data sets that are folders of image files: Tiny-ImageNet as distributed, and one's own folder by class."""

from __future__ import annotations

from pathlib import Path

import torch

from netspace.data.base import Split, broken, missing
from netspace.data.decode import SUFFIXES, decode
from netspace.errors import NetspaceError

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
