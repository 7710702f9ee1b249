"""Random crops and mirror images, for a whole batch at once, on the device it lies on.

Axes: M members (networks), B batch of images, C channels, H W pixels. The zeros around a crop are black
pixels: augment before normalising. There is no loop over images and no wait for the device (no `.item()`, no
boolean mask).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from netspace.runtime import send


def random_crop_flip(images: Tensor, generator: torch.Generator, padding: int, flip: bool) -> Tensor:
    """Pad by zeros, crop back at a random place, mirror one image in two (NetSpace, Suppl. IV, after [9]).

    images: (B, C, H, W), or (M, B, C, H, W) where each member draws its own crops; any dtype. Returns the
    same shape. All crops are drawn first, then all flips, so the same generator state gives the same result
    however the leading axes are arranged. A generator on the CPU serves images on any device.
    """
    if not padding and not flip:
        return images
    stack = images.reshape(-1, *images.shape[-3:])
    count, where = len(stack), generator.device
    offsets = torch.zeros(2, count, dtype=torch.int64, device=where)
    mirrored = torch.zeros(count, dtype=torch.bool, device=where)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, count), generator=generator, device=where)
    if flip:
        mirrored = torch.randint(2, (count,), generator=generator, device=where).bool()
    offsets, mirrored = (send(t, images.device) for t in (offsets, mirrored))
    return crop_flip(stack, offsets, mirrored, padding).reshape(images.shape)


def crop_flip(images: Tensor, offsets: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Crop image n of (B, C, H, W) at row offsets[0, n] and column offsets[1, n] of its padded self.

    offsets: (2, B) integers in 0 .. 2 * padding, where `padding` moves nothing; mirrored: (B,) bool, which
    crops are mirrored left to right.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + offsets[0, :, None]  # (B, H)
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + offsets[1, :, None]  # (B, W)
    padded = F.pad(images, (padding,) * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W), places in a flat padded image
    index = pixels.reshape(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).reshape(images.shape)
