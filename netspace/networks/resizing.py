"""A network's own weights at other widths: chosen channels, the first ones, or channels interpolated; batch norm after that.

Axes: G groups, C channels of a group at full width, n at another width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from netspace.errors import UsageError
from netspace.networks.channels import Use
from netspace.networks.graph import batch_norms
from netspace.networks.widths import Widths, resized

Part = Callable[[Tensor, int, Use], Tensor]  # a tensor, the number of a group, where it is: what becomes of that part


def chosen_channels(
    tensors: Mapping[str, Tensor], info: Widths, indices: Sequence[Int64[Tensor, " n"]]
) -> dict[str, Tensor]:
    """Return a network's parameters, or its state, with the channels `indices` of each group alone; differentiable."""

    def part(value: Tensor, group: int, use: Use) -> Tensor:
        repeats = torch.arange(use.repeats, device=value.device)
        entries = indices[group].to(value.device)[:, None] * use.repeats + repeats
        return value.index_select(use.axis, use.start + entries.flatten())

    return _by_parts(tensors, info, part)


def first_channels(tensors: Mapping[str, Tensor], info: Widths, widths: Sequence[int]) -> dict[str, Tensor]:
    """Return a network's parameters, or its state, with the first channels of each group alone; differentiable.

    These are the weights that slimmable networks share (Yu & Huang 2019). Raises `UsageError` for a width above the full
    one.
    """
    check_narrower(info, widths)
    return _by_parts(
        tensors, info, lambda value, group, use: value.narrow(use.axis, use.start, widths[group] * use.repeats)
    )


def interpolated_channels(
    tensors: Mapping[str, Tensor], info: Widths, widths: Sequence[int], summed: Iterable[tuple[str, int]]
) -> dict[str, Tensor]:
    """Return a network's parameters, or its state, interpolated along the channels of each group; differentiable.

    Channels are samples of a function at the middles of equal parts of an interval, and neighbours in it are neighbours
    in the order that they have. Axes in `summed`, of parameters over which a layer sums, are multiplied by C / n, as an
    integral's nodes get larger weights where they are fewer (Integral Neural Networks, Solodskikh et al. 2023).
    """
    info.check(widths)
    sizes, axes = info.full(), set(summed)
    mixing = [interpolation(size, width) for size, width in zip(sizes, widths, strict=True)]

    def part(value: Tensor, group: int, use: Use) -> Tensor:
        matrix, size = mixing[group].to(value), sizes[group]
        own = value.narrow(use.axis, use.start, size * use.repeats).movedim(use.axis, 0)
        mixed = matrix @ own.reshape(size, -1)
        if (use.name, use.axis) in axes:
            mixed = mixed * (size / widths[group])
        return mixed.reshape(-1, *own.shape[1:]).movedim(0, use.axis)

    return _by_parts(tensors, info, part)


def interpolation(size: int, width: int) -> Float[Tensor, "n C"]:
    """Return the matrix that interpolates C values linearly at n points, both at the middles of equal parts of [0, 1].

    >>> interpolation(4, 2).float()
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    points = ((torch.arange(width, dtype=torch.float64) + 0.5) * (size / width) - 0.5).clamp(0, size - 1)
    return (1 - (points[:, None] - torch.arange(size)).abs()).clamp_min(0)


def summed_axes(module: nn.Module) -> set[tuple[str, int]]:
    """Return the axes of weights over which the layers of `module` sum: (name of the parameter, axis)."""
    axes = set()
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and layer.groups == 1):
            axes.add((f"{path}.weight" if path else "weight", 0 if isinstance(layer, _ConvTransposeNd) else 1))
    return axes


def _by_parts(tensors: Mapping[str, Tensor], info: Widths, part: Part) -> dict[str, Tensor]:
    """Return tensors whose parts that belong to groups are replaced by `part` of them, and the rest kept."""
    changed = dict(tensors)
    for (name, axis), uses in info.uses().items():
        if name not in changed:
            continue
        value, pieces, end = changed[name], [], 0
        for group, use in uses:
            if use.start > end:
                pieces.append(value.narrow(axis, end, use.start - end))
            pieces.append(part(value, group, use))
            end = use.start + info.groups[group].size * use.repeats
        if end < value.shape[axis]:
            pieces.append(value.narrow(axis, end, value.shape[axis] - end))
        changed[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
    return changed


def check_narrower(info: Widths, widths: Sequence[int]) -> None:
    """Raise `UsageError` for widths (G,) below 1 or above the full ones."""
    info.check(widths)
    for name, width, full in zip(info.names, widths, info.full(), strict=True):
        if width > full:
            raise UsageError(f"{name} of {info.label} has {full} channels at most here, not {width}: ask for fewer")


def with_channels(module: nn.Module, info: Widths, indices: Sequence[Int64[Tensor, " n"]]) -> nn.Module:
    """Return a copy of `module` with the channels `indices` of each group alone, in evaluation mode. Raises as `resized`."""
    state = chosen_channels(module.state_dict(), info, indices)
    return _filled(module, info, [len(each) for each in indices], state)


def with_first_channels(module: nn.Module, info: Widths, widths: Sequence[int]) -> nn.Module:
    """Return a copy of `module` with the first channels of each group, in evaluation mode. Raises as `first_channels`, `resized`."""
    return _filled(module, info, widths, first_channels(module.state_dict(), info, widths))


def resampled(module: nn.Module, info: Widths, widths: Sequence[int]) -> nn.Module:
    """Return a copy of `module` at widths (G,) with weights interpolated along its channels, in evaluation mode.

    It is good as far as neighbouring channels are alike: order them first. Statistics of batch norm are interpolated too;
    `recalibrate` gives better ones. Raises as `resized`.
    """
    state = interpolated_channels(module.state_dict(), info, widths, summed_axes(module))
    return _filled(module, info, widths, state)


def _filled(module: nn.Module, info: Widths, widths: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
    made = resized(module, info, widths, 0)
    made.load_state_dict(state)
    return made.eval()


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Give the batch norms of `module` the statistics of its inputs, and return it, in evaluation mode.

    `batches` are inputs (B, ...). Statistics are means over batches of each batch's mean and unbiased variance, while
    batch norms normalise by the batch (Yu & Huang 2019, Sec. 3.3). Without batch norm nothing happens.
    """
    module.eval()
    norms = [norm for norm in batch_norms(module).values() if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts alike
        norm.train()
    for inputs in batches if norms else ():
        module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
