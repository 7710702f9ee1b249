"""The zeros of a pruned network that a coordinate network represents: found, entropy-coded, and read back.

Axes: F filters of a layer, the first axis of its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from netspace.errors import NetspaceError
from netspace.models.coded_bytes import tensor_of
from netspace.native.coding import decode_all, encode_all
from netspace.networks.kernels import Layer
from netspace.networks.rounding import kernel_positions

LEAST = 0.1  # fraction of a layer's values that are zero, from which on a mask is worth its bytes
OVERHEAD = 16  # bytes of a layer in the file's note, besides its name


def find_zeros(state: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return which values of layers are exactly zero, by name: bool, in the layer's shape.

    A layer counts if a tenth of its values are zero, and if a mask of a bit for each value takes fewer bytes than these zeros.
    """
    found = {}
    for layer in layers:
        value = state[layer.name].detach().cpu()
        zeros = value == 0
        count, mask_bytes = int(zeros.sum()), value.numel() / 8 + len(layer.name) + OVERHEAD
        if count >= LEAST * value.numel() and mask_bytes < count * value.element_size():
            found[layer.name] = zeros
    return found


def pack_zeros(zeros: Mapping[str, Tensor]) -> Tensor:
    """Return masks (F, ...) of zeros as entropy-coded bytes, uint8: filters and channels without weights cost next to nothing."""
    kept = [(~value).flatten(1).int().numpy() for value in zeros.values()]
    return tensor_of(encode_all(kept, [kernel_positions(value.shape) for value in zeros.values()]), torch.uint8)


def unpack_zeros(data: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return what `pack_zeros` packed, for the layers in its order. Raises `ValueError` for other bytes.

    Memory for the layers is taken first: whoever reads them from a file checks their sizes before.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"its zeros are {data.dtype} of shape {tuple(data.shape)}, where bytes were expected")
    sizes = [(layer.shape[0], prod(layer.shape[1:])) for layer in layers]
    try:
        kept = decode_all(data.numpy().tobytes(), sizes, [kernel_positions(layer.shape) for layer in layers])
    except NetspaceError as error:
        raise ValueError(f"its zeros cannot be read: {error}") from None
    if any(((values < 0) | (values > 1)).any() for values in kept):
        raise ValueError("its zeros are no mask")
    return {
        layer.name: torch.from_numpy(values == 0).view(layer.shape) for layer, values in zip(layers, kept, strict=True)
    }
