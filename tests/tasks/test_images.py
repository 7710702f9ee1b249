"""`Classification` by hand, the stratified cut, and the change of size and channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from netspace.errors import NetspaceError, UsageError
from netspace.tasks import Classification, Split
from netspace.tasks.images import channel_moments, resize, with_channels
from netspace.tasks.splitting import cut, stratified_order


def split(count: int = 6, shape: tuple[int, int, int] = (2, 4, 5), classes: int = 3, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(classes, (count,), generator=generator))


def task(**changes: object) -> Classification:
    parts = {"train": split(seed=1), "val": split(seed=2), "test": split(seed=3), "classes": ("a", "b", "c")}
    return Classification.of("made", **(parts | changes))  # type: ignore[arg-type]


def test_shape_classes_and_moments() -> None:
    data = task()
    assert data.input_shape == (2, 4, 5) and data.num_outputs == 3 and data.device.type == "cpu"
    pixels = data.train.images.double() / 255
    torch.testing.assert_close(data.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.std, pixels.std((0, 2, 3), correction=0).float())
    constant = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    mean, std = channel_moments(constant)
    assert mean.item() == pytest.approx(0.2) and std.item() == pytest.approx(1 / 255)


def test_normalise_any_leading_axes() -> None:
    data = task()
    out = data.normalise(data.train.images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    members = data.train.images.reshape(2, 3, 2, 4, 5)
    assert torch.equal(data.normalise(members).flatten(0, 1), out)
    assert data.train.images.dtype == torch.uint8


def test_hash_sees_every_pixel_label_and_order() -> None:
    data = task()
    assert len(data.split_hash) == 64 and task().split_hash == data.split_hash
    pixel = split(seed=3)
    pixel.images[5, 1, 3, 4] ^= 1
    label = split(seed=3)
    label.labels[0] = (label.labels[0] + 1) % 3
    turned = split(seed=3).take(torch.arange(5, -1, -1))
    hashes = {task(test=other).split_hash for other in (pixel, label, turned)}
    hashes |= {data.split_hash, task(train=data.val, val=data.train).split_hash}
    assert len(hashes) == 5


def test_to_moves_all_and_keeps_the_rest() -> None:
    data = task(crop_padding=2, flip=True)
    moved = data.to("meta")
    assert all(getattr(moved, key).images.is_meta for key in ("train", "val", "test")) and moved.mean.is_meta
    assert (moved.split_hash, moved.crop_padding, moved.flip) == (data.split_hash, 2, True)
    assert data.to("cpu").train.images is data.train.images


def test_batches() -> None:
    data = task()
    pieces = list(data.batches("train", 4))
    assert [len(labels) for _, labels in pieces] == [4, 2]
    assert torch.equal(torch.cat([images for images, _ in pieces]), data.train.images)
    assert [len(labels) for _, labels in data.batches(data.val, 4, drop_last=True)] == [4]

    def shuffled(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([images for images, _ in data.batches("train", 4, generator)])

    assert torch.equal(shuffled(0), shuffled(0)) and not torch.equal(shuffled(0), shuffled(1))
    key = data.train.images.flatten(1).long().sum(1)
    assert torch.equal(shuffled(0).flatten(1).long().sum(1).sort().values, key.sort().values)
    with pytest.raises(UsageError, match="unknown split 'valid': did you mean 'val'"):
        next(data.batches("valid", 4))
    with pytest.raises(NetspaceError, match="at least one image, not 0"):
        next(data.batches("val", 0))


def test_augment_uses_the_task_s_own_settings() -> None:
    images = task().train.images
    generator = torch.Generator().manual_seed(0)
    assert task().augment(images, generator) is images
    data = task(crop_padding=2, flip=True)
    members = data.augment(images.expand(3, -1, -1, -1, -1), generator)
    assert members.shape == (3, *images.shape) and members.dtype == torch.uint8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val": split(0)}, "no image in its val split"),
        (
            {"test": split(shape=(1, 4, 5))},
            r"shape \(2, 4, 5\) to train on and of \(1, 4, 5\) in its test split",
        ),
        (
            {"classes": ("a", "b")},
            "2 classes, so labels 0 to 1, but the labels of its train split go from 0 to 2",
        ),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, object], words: str) -> None:
    with pytest.raises(NetspaceError, match=words):
        task(**changes)


def test_a_split_is_checked() -> None:
    with pytest.raises(NetspaceError, match="uint8 images of shape"):
        Split(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(NetspaceError, match="2 images holds as many int64 labels"):
        Split(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_every_stretch_of_the_order_is_stratified(labels: list[int], seed: int, data: st.DataObject) -> None:
    values = torch.tensor(labels)
    order = stratified_order(values, seed)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    assert torch.equal(order, stratified_order(values, seed))
    start = data.draw(st.integers(0, len(labels) - 1))
    stop = data.draw(st.integers(start + 1, len(labels)))
    stretch = values[order[start:stop]].bincount(minlength=6)
    due = values.bincount(minlength=6) * (stop - start) / len(labels)
    kinds = len(set(labels))
    assert (stretch - due).abs().max() <= kinds


def test_equal_classes_are_cut_exactly() -> None:
    pool = Split(torch.zeros(600, 1, 1, 1, dtype=torch.uint8), torch.arange(600) % 10)
    for part in cut(pool, (400, 100, 50), seed=5):
        assert part.labels.bincount().unique().numel() == 1


def test_the_order_never_changes() -> None:
    """Zoos on disk name their split by its hash: another order would part them from their data."""
    assert stratified_order(torch.arange(12) % 3, seed=0).tolist() == ORDER


ORDER = [6, 11, 4, 10, 2, 9, 8, 1, 3, 7, 0, 5]  # recorded once; each three hold one of every class


def test_channels() -> None:
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    colour = with_channels(grey, 3)
    assert colour.shape == (1, 3, 16, 16) and torch.equal(with_channels(colour, 1), grey)
    assert with_channels(grey, 1) is grey and with_channels(colour, 3) is colour
    random = split(4, (3, 7, 7)).images
    for image, ours in zip(random, with_channels(random, 1), strict=True):
        theirs = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert abs(theirs - ours[0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(6, 6, 12), (9, 9, 4), (5, 8, 6)])
def test_resize_is_pil_s_bilinear(size: tuple[int, int, int]) -> None:
    height, width, new = size
    images = split(3, (3, height, width)).images
    ours = resize(images, new)
    assert ours.shape == (3, 3, new, new) and ours.dtype == torch.uint8
    for image, result in zip(images, ours, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        theirs = np.array(picture.resize((new, new), Image.Resampling.BILINEAR)).astype(int)
        assert abs(theirs - result.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_resize_keeps_constants_and_its_own_size() -> None:
    white = torch.full((2, 1, 5, 5), 255, dtype=torch.uint8)
    assert (resize(white, 8) == 255).all() and (resize(white, 3) == 255).all()
    assert resize(white, 5) is white
