"""Pictures of any size as networks trained on ImageNet are shown them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netspace.errors import NetspaceError, UsageError
from netspace.tasks.readers import IMAGENET, normalisation, picture_batches, picture_files


def test_the_centre_is_cut_out_and_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "z.png")
    (wide,) = picture_batches(picture_files(tmp_path), 28)  # the shorter side is 32 already
    cut = (pixels[2:30, 11:39] / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    assert wide.shape == (2, 3, 28, 28)
    torch.testing.assert_close(wide[0], torch.from_numpy(cut).permute(2, 0, 1).float())
    torch.testing.assert_close(wide[1], wide[0].transpose(1, 2))


def test_the_shorter_side_is_resized(tmp_path: Path) -> None:
    """A picture that is black on the left and white on the right keeps its edge in the middle."""
    pixels = np.zeros((90, 200), dtype=np.uint8)
    pixels[:, 100:] = 255
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    (found,) = picture_batches(picture_files(tmp_path), 14)
    levels = found * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]
    assert found.shape == (1, 3, 14, 14)
    assert bool((levels[..., :5] < 0.01).all()) and bool((levels[..., 9:] > 0.99).all())


def test_pictures_are_found_below_the_folder_in_order_and_in_batches(tmp_path: Path) -> None:
    for place, name in enumerate(["b/2.png", "a/1.PNG", "a/0.jpg", ".hidden.png", "a/notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (place * 20,) * 3).save(tmp_path / name, format="PNG")
    files = picture_files(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == ["a/0.jpg", "a/1.PNG", "b/2.png"]
    whole = torch.cat(list(picture_batches(files, 7)))
    parts = list(picture_batches(files, 7, batch=2))
    assert [len(part) for part in parts] == [2, 1] and torch.equal(torch.cat(parts), whole)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there are no pictures in .*: give a folder of \.bmp, "):
        picture_files(tmp_path)
    (tmp_path / "not.png").write_text("no picture")
    with pytest.raises(NetspaceError, match=r"not\.png is broken: expected an image"):
        list(picture_batches(picture_files(tmp_path), 8))


def test_pixels_are_normalised_as_they_are_asked_to_be(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), (0, 51, 255), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for text, wanted in (
        ("none", (0, 0.2, 1)),
        ("0-255", (0, 51, 255)),
        ("0.5/0.25", (-2, -1.2, 2)),
        ("0.5,0.2,0/1,2,4", (-0.5, 0, 0.25)),
        ("imagenet", (-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225)),
    ):
        (found,) = picture_batches(picture_files(tmp_path), 7, by=normalisation(text))
        torch.testing.assert_close(found[0, :, 3, 3], torch.tensor(wanted, dtype=torch.float32))
    for text in ("ImageNet", "0.5", "1,2/3", "0.5/0", "nan/1", "1/2/3", "a/b", ""):
        with pytest.raises(UsageError, match="was expected to be imagenet, none, 0-255, or MEAN/STD"):
            normalisation(text)
