"""Folders of images: Tiny-ImageNet and one's own, on miniatures written here; the file of kept pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netspace.errors import NetspaceError, UsageError
from netspace.tasks import DATASETS, DataConfig, load
from netspace.tasks import data_sets as sets
from netspace.tasks import readers as folders
from netspace.tasks.readers import decode

RANDOM = np.random.RandomState(0)


def picture(path: Path, size: int | tuple[int, int] = 6, mode: str = "RGB") -> None:
    width, height = (size, size) if isinstance(size, int) else size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_tiny(root: Path) -> Path:
    folder = root / folders.TINY
    ids = ["n003", "n001", "n002"]
    for wnid in ids:
        for n in range(4):
            path = folder / "train" / wnid / "images" / f"{wnid}_{n}.JPEG"
            picture(path, 64, "L" if n == 3 else "RGB")  # the real set has grey files too
    lines = []
    for n in range(6):
        picture(folder / "val" / "images" / f"val_{n}.JPEG", 64)
        lines.append(f"val_{n}.JPEG\t{ids[n % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(ids))
    (folder / "words.txt").write_text("n001\tgoldfish, Carassius auratus\nn002\tbullfrog\nn999\tother\n")
    return folder


def test_tiny_imagenet_miniature(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    config = DataConfig(name="tiny-imagenet", root=tmp_path)
    splits = sets.read_tiny_imagenet(config, sizes=(9, 3, 6))
    assert splits.classes == ("n001 goldfish", "n002 bullfrog", "n003")
    assert splits.train.images.shape == (9, 3, 64, 64) and splits.train.labels.bincount().tolist() == [
        3,
        3,
        3,
    ]
    assert splits.test.labels.tolist() == [2, 0, 1, 2, 0, 1]
    with Image.open(folder / "val" / "images" / "val_4.JPEG") as image:
        assert np.array_equal(splits.test.images[4].permute(1, 2, 0).numpy(), np.array(image))
    again = sets.read_tiny_imagenet(config, sizes=(9, 3, 6))
    assert torch.equal(again.train.images, splits.train.images)
    with pytest.raises(NetspaceError, match="100000 training and 10000 test images, but 12 and 6"):
        load(config)
    assert (DATASETS["tiny-imagenet"].crop_padding, DATASETS["tiny-imagenet"].flip) == (8, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("val_0.JPEG\tn777\n", "broken: expected lines of a file name, a tab and a WordNet id of wnids.txt"),
        ("nothing\n", "found 'nothing'"),
        ("/etc/passwd\tn001\n", "found '/etc/passwd"),
        ("absent.JPEG\tn001\n", "looked in .*absent.JPEG"),
    ],
)
def test_broken_tiny_imagenet(tmp_path: Path, line: str, words: str) -> None:
    (write_tiny(tmp_path) / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(NetspaceError, match=words):
        load(DataConfig(name="tiny-imagenet", root=tmp_path))


def write_folder(root: Path, counts: dict[str, int], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for place, count in counts.items():
        for kind in classes:
            for n in range(count):
                picture(root / place / kind / f"{n:02}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ({".": 20}, (32, 4, 4)),
        ({"train": 20}, (32, 4, 4)),
        ({"train": 10, "val": 3}, (18, 6, 2)),
        ({"train": 10, "test": 3}, (18, 2, 6)),
        ({"train": 5, "val": 3, "test": 2}, (10, 6, 4)),
    ],
)
def test_folder(tmp_path: Path, counts: dict[str, int], sizes: tuple[int, int, int]) -> None:
    root = write_folder(tmp_path / "mine", counts)
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("not an image")
    data = load(DataConfig(name="folder", root=root))
    assert data.classes == ("cat", "dog") and data.input_shape == (3, 6, 6)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    for split in (data.train, data.val, data.test):
        assert split.labels.bincount().unique().numel() == 1
    assert load(DataConfig(name="folder", root=root)).split_hash == data.split_hash


def test_folder_pixels_and_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", {"train": 2, "val": 1, "test": 1})
    data = load(DataConfig(name="folder", root=root))
    with Image.open(root / "val" / "dog" / "00.png") as image:
        assert np.array_equal(data.val.images[1].permute(1, 2, 0).numpy(), np.array(image))
    picture(root / "train" / "cat" / "wide.png", (9, 5))
    with pytest.raises(NetspaceError, match=r"wide.png has 5 x 9 pixels but .* has 6 x 6; set image_size"):
        load(DataConfig(name="folder", root=root))
    assert load(DataConfig(name="folder", root=root, image_size=8, channels=1)).input_shape == (1, 8, 8)


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads the folder that the setting root names, which is None"):
        load("folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NetspaceError, match=r"there are no images in .*empty: expected a subfolder for each class"):
        load(DataConfig(name="folder", root=tmp_path / "empty"))
    root = write_folder(tmp_path / "few", {".": 4})
    with pytest.raises(NetspaceError, match="has 8 training images, and val and test would each be a tenth"):
        load(DataConfig(name="folder", root=root))
    root = write_folder(tmp_path / "more", {"train": 5})
    picture(root / "val" / "bird" / "0.png")
    with pytest.raises(NetspaceError, match=r"val/bird is a class that .*train does not have"):
        load(DataConfig(name="folder", root=root))


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    layer.save(tmp_path / "a.png")
    pixels = decode(tmp_path, [tmp_path / "a.png"], None)
    assert pixels[0, :, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_decoding_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        picture(tmp_path / f"{n}.png")
    files = sorted(tmp_path.glob("*.png"))
    first = decode(tmp_path, files, None)
    kept = list(tmp_path.glob(".netspace-*"))
    assert [path.suffix for path in kept] == [".safetensors"]  # and no unfinished part beside it

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("netspace.tasks.readers.decode_one", fail)
        assert torch.equal(decode(tmp_path, files, None), first)
        with pytest.raises(AssertionError, match="decoded again"):
            decode(tmp_path, files, 4)  # another size is another file
    picture(files[0], 6)
    changed = decode(tmp_path, files, None)
    assert not torch.equal(changed, first) and torch.equal(changed[1:], first[1:])


def test_a_damaged_or_unwritable_cache_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "0.png")
    files = [tmp_path / "0.png"]
    first = decode(tmp_path, files, None)
    kept = next(tmp_path.glob(".netspace-*"))
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5])
    assert torch.equal(decode(tmp_path, files, None), first) and kept.read_bytes() == whole
    kept.unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("netspace.tasks.readers.save_file", refuse)
    assert torch.equal(decode(tmp_path, files, None), first)
    assert not list(tmp_path.glob(".netspace-*"))


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_image(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(NetspaceError, match=r"a.png is broken: expected an image, found"):
        decode(tmp_path, [tmp_path / "a.png"], None)


def test_a_truncated_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 64)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(NetspaceError, match=r"a.jpg is broken: expected an image, found"):
        decode(tmp_path, [tmp_path / "a.jpg"], None)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_values_of_16_bits_keep_the_upper_8(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 32768], [300, 40000, 65279, 65535]], np.uint16)
    file = tmp_path / f"a{suffix}"
    if suffix == ".pgm":
        file.write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(file)
    pixels = decode(tmp_path, [file], None)
    assert pixels.tolist() == [[(values >> 8).tolist()] * 3]


def test_a_transparent_grey_value_of_16_bits_becomes_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[512, 513]], np.uint16)).save(tmp_path / "a.png", transparency=513)
    assert decode(tmp_path, [tmp_path / "a.png"], None)[0, 0].tolist() == [[2, 255]]


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floats"), (np.int32, "integers of 32 bits")])
def test_pixels_that_do_not_say_what_is_white(tmp_path: Path, kind: type[np.generic], words: str) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 1]], kind)).save(file)
    with pytest.raises(
        NetspaceError,
        match=rf"a.tif was expected to have pixels of 8 or 16 bits, but has {words}, .*; save it with 8 bits",
    ):
        decode(tmp_path, [file], None)
