"""Changing the shape of uint8 images (N, C, H, W): size and number of channels, the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024  # images resized at once: bounds the memory of the float64 copy


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) to (N, C, size, size), bilinear, antialiased; one of that size stays as it is."""
    if images.shape[2:] == (size, size):
        return images
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].double()
        part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        # Half a level rounds up; 1e-6 keeps exact halves from falling by the last bit of some sum.
        out[start : start + CHUNK] = (part + (0.5 + 1e-6)).floor().clamp(0, 255).to(torch.uint8)
    return out


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, 1 or 3, H, W) with 1 or 3 channels: luma of ITU-R BT.601 (as in PIL), or grey three times."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = (images[:, c : c + 1].to(torch.int32) for c in range(3))
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)
