"""PRep: the parameters of a network as an (H, W) matrix, filled row by row (NetSpace, Suppl. II).

Axes: M members (networks), P parameters, H W of a PRep. W is a multiple of 8, H of 4; values after the P parameters are
zero. Nothing is ever cropped: what does not fit is an error. All functions keep leading axes, so one network (P,) and a
batch (M, P) use the same code, differentiably and without copies if there is no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Shaped

from netspace.errors import NetspaceError
from netspace.networks.spec import NetSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor  # imported by functions that compute: sizes are checked without

HEIGHT_STEP = 4
WIDTH_STEP = 8
DEFAULT_ROWS = 8  # of a PRep with no given width: as in NetSpace's single-architecture setting on CIFAR-10


def height(parameters: int, width: int) -> int:
    """Return the smallest height of a PRep of `width` columns for `parameters`: ceil(P / W), up to a multiple of 4.

    Raises `NetspaceError` unless the width is a positive multiple of 8.

    >>> height(77_706, 10_000)  # folded ResNet8 on CIFAR-10
    8
    """
    if width <= 0 or width % WIDTH_STEP:
        raise NetspaceError(f"a PRep's width is a positive multiple of {WIDTH_STEP}, not {width}")
    rows = -(-parameters // width)
    return max(rows + -rows % HEIGHT_STEP, HEIGHT_STEP)


def fitting_width(parameters: int) -> int:
    """Return the smallest width with which `DEFAULT_ROWS` rows hold the `parameters` of a network.

    >>> fitting_width(2_000), height(2_000, fitting_width(2_000))
    (256, 8)
    """
    return max(-(-parameters // (DEFAULT_ROWS * WIDTH_STEP)) * WIDTH_STEP, WIDTH_STEP)


def check_size(parameters: int, size: tuple[int, int]) -> None:
    """Raise `NetspaceError` unless (H, W) is a valid size of a PRep that holds `parameters` values."""
    rows, width = size
    if rows <= 0 or rows % HEIGHT_STEP or width <= 0 or width % WIDTH_STEP:
        raise NetspaceError(
            f"a PRep of {rows} x {width} was asked for; its height is a positive multiple of {HEIGHT_STEP} and "
            f"its width of {WIDTH_STEP}"
        )
    if parameters > rows * width:
        raise NetspaceError(
            f"{parameters:,} parameters do not fit a PRep of {rows} x {width} ({rows * width:,} values): "
            f"use a height of at least {height(parameters, width)}"
        )


def pack(flat: Shaped[Tensor, "*M P"], size: tuple[int, int]) -> Shaped[Tensor, "*M H W"]:
    """Return flat parameters as PReps, zeros after the last parameter. Raises `NetspaceError` if they do not fit."""
    import torch

    check_size(flat.shape[-1], size)
    rows, width = size
    padded = torch.nn.functional.pad(flat, (0, rows * width - flat.shape[-1]))
    return padded.unflatten(-1, (rows, width))


def unpack(prep: Shaped[Tensor, "*M H W"], parameters: int) -> Shaped[Tensor, "*M P"]:
    """Return PReps as flat parameters, a view; the padding is dropped. Raises `NetspaceError` if they do not fit."""
    check_size(parameters, (prep.shape[-2], prep.shape[-1]))
    return prep.flatten(-2)[..., :parameters]


def parameter_problem(value: Tensor) -> str:
    """Return why a tensor (...) cannot be a parameter, as the end of a sentence ('is quantised (qint8)'); '' if it can.

    A parameter is a dense tensor of real floating-point numbers: complex, integer, boolean, quantised, sparse and meta
    tensors would lose something in float32.
    """
    import torch

    if value.is_meta:
        return "has no values (it lies on the meta device)"
    if value.is_quantized:
        return f"is quantised ({_short(value.dtype)})"
    if value.is_nested or value.layout != torch.strided:
        return f"is not dense ({'nested' if value.is_nested else _short(value.layout)})"
    return "" if value.is_floating_point() else f"holds {_short(value.dtype)} values"


def is_integer(value: Tensor) -> bool:
    """Return whether a tensor (...) is dense and holds integers or booleans, such as index tables and counters."""
    import torch

    dense = not (value.is_meta or value.is_quantized or value.is_nested) and value.layout == torch.strided
    return dense and not (value.is_complex() or value.is_floating_point())


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def flatten(state: Mapping[str, Tensor], spec: NetSpec) -> Shaped[Tensor, "*M P"]:
    """Return named parameters, each (..., *shape), as flat parameters in the spec's order.

    Raises `NetspaceError` if a name is missing or unknown, a shape differs, or a value is not finite.
    """
    import torch

    lead = state[spec.names[0]].dim() - len(spec.shapes[0]) if spec.names[0] in state else 0
    if lead >= 0:
        problem = spec.difference({name: tuple(value.shape[lead:]) for name, value in state.items()})
    else:
        problem = f"{spec.names[0]} has shape {tuple(state[spec.names[0]].shape)}"
    if problem:
        raise NetspaceError(f"this state dict is not one of {spec.arch!r}: {problem}")
    for name in spec.names:
        if not torch.isfinite(state[name]).all():
            raise NetspaceError(f"parameter {name} of {spec.arch!r} holds values that are not finite")
    return torch.cat([state[name].unsqueeze(-1).flatten(lead) for name in spec.names], dim=-1)


def unflatten(flat: Shaped[Tensor, "*M P"], spec: NetSpec) -> dict[str, Tensor]:
    """Return flat parameters as named parameters, each (..., *shape), views of the same memory.

    Raises `NetspaceError` for another number of parameters.
    """
    if flat.shape[-1] != spec.num_parameters:
        raise NetspaceError(
            f"{spec.arch!r} has {spec.num_parameters:,} parameters; {flat.shape[-1]:,} values were given"
        )
    pieces = flat.split(spec.sizes, dim=-1)
    return {
        name: piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
        for name, shape, piece in zip(spec.names, spec.shapes, pieces, strict=True)
    }
