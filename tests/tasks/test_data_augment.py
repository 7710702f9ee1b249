"""Augmentation against a slow oracle, one image at a time, and the properties of crops and flips."""

from __future__ import annotations

import pytest
import torch
from helpers import NoWaiting
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netspace.tasks.images import crop_flip, random_crop_flip


def one_image(image: Tensor, row: int, column: int, mirrored: bool, padding: int) -> Tensor:
    """The oracle: pad, cut, mirror a single (C, H, W) image."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    cropped = padded[:, row : row + height, column : column + width]
    return cropped.flip(2) if mirrored else cropped


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_crop_flip_is_the_oracle(count: int, channels: int, height: int, width: int, padding: int, seed: int) -> None:
    images, generator = pictures(count, channels, height, width, seed=seed), seeded(seed)
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator).bool()
    expected = [
        one_image(images[n], int(offsets[0, n]), int(offsets[1, n]), bool(mirrored[n]), padding) for n in range(count)
    ]
    assert torch.equal(crop_flip(images, offsets, mirrored, padding), torch.stack(expected))


@settings(max_examples=40, deadline=None)
@given(padding=st.integers(0, 4), flip=st.booleans(), seed=st.integers(0, 1000))
def test_every_result_is_one_of_the_possible_crops(padding: int, flip: bool, seed: int) -> None:
    images = pictures(4, 3, 6, 5, seed=seed)
    out = random_crop_flip(images, seeded(seed), padding, flip)
    assert out.shape == images.shape and out.dtype == torch.uint8
    places = range(2 * padding + 1)
    for image, result in zip(images, out, strict=True):
        possible = (
            one_image(image, row, column, mirrored, padding)
            for row in places
            for column in places
            for mirrored in ((False, True) if flip else (False,))
        )
        assert any(torch.equal(result, crop) for crop in possible)


def test_the_same_generator_gives_the_same_result_and_another_does_not() -> None:
    images = pictures(64, 3, 8, 8)
    first = random_crop_flip(images, seeded(3), 2, True)
    assert torch.equal(first, random_crop_flip(images, seeded(3), 2, True))
    assert not torch.equal(first, random_crop_flip(images, seeded(4), 2, True))


def test_nothing_asked_nothing_drawn() -> None:
    images, generator = pictures(4, 1, 8, 8), seeded(0)
    before = generator.get_state()
    assert random_crop_flip(images, generator, 0, False) is images
    assert torch.equal(generator.get_state(), before)


def test_members_draw_for_themselves_and_like_one_long_batch() -> None:
    images = pictures(3, 5, 2, 8, 8)
    out = random_crop_flip(images, seeded(1), 2, True)
    assert torch.equal(out.flatten(0, 1), random_crop_flip(images.flatten(0, 1), seeded(1), 2, True))
    same = images[:1].expand(3, -1, -1, -1, -1)
    out = random_crop_flip(same, seeded(1), 2, True)
    assert not torch.equal(out[0], out[1])


def test_half_are_mirrored_and_all_crops_occur_equally() -> None:
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 1  # a point in the middle shows where the crop went
    out = random_crop_flip(images, seeded(0), 1, False)
    assert (out.sum((0, 1)) / 1000 - 1).abs().max() < 0.15
    images = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(1000, -1, -1, -1)
    out = random_crop_flip(images, seeded(0), 0, True)
    assert abs((out[:, 0, 0, 0] == 2).float().mean() - 0.5) < 0.05
    assert (out.sum(3) == 3).all()


def test_nothing_waits_for_the_device() -> None:
    images = pictures(2, 4, 3, 8, 8)
    with NoWaiting():
        random_crop_flip(images, seeded(0), 2, True)
        with pytest.raises(AssertionError):  # the breaking is noticed
            images.sum().item()


@pytest.mark.gpu
def test_a_device_gives_what_the_host_gives() -> None:
    images = pictures(16, 3, 8, 8)
    expected = random_crop_flip(images, seeded(0), 2, True)
    assert torch.equal(random_crop_flip(images.cuda(), seeded(0), 2, True).cpu(), expected)
    generator = torch.Generator("cuda").manual_seed(0)
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        random_crop_flip(on_device, generator, 2, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
