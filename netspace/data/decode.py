"""Decoding a great number of small image files once: the pixels are kept beside them in one safetensors file.

The kept file is named by a hash of the files' names, sizes and times of change, is written beside and then
renamed, so it is whole or absent, and is passed over where the folder cannot be written.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from netspace.data.base import broken
from netspace.data.pixels import resize
from netspace.errors import NetspaceError
from netspace.files import replacing
from netspace.records import HASH, hash_named, read_tensors

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
