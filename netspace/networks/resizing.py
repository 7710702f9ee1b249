"""A network's own weights at other widths: chosen channels, the first ones, or channels interpolated; batch norm after that.

Axes: G groups, C channels of a group at full width, n at another width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from netspace.errors import NetspaceError, UsageError
from netspace.networks.channels import Use
from netspace.networks.folding import TOLERANCE
from netspace.networks.graph import batch_norms, in_float64, run
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


@torch.no_grad()
def with_statistics(module: nn.Module, batches: Sequence[Tensor], label: str) -> nn.Module:
    """Return a copy of `module` that computes the same function, with batch norms that have the statistics of their inputs.

    After `folding.unfold` batch norms only add a bias: nothing is normalised by what they say of their inputs. Here those with
    weights get the mean m and the variance v of their inputs in evaluation mode, over all `batches` (B, ...) together, and

        weight' = weight sqrt(v + eps) / sqrt(var + eps),  bias' = bias + weight (m - mean) / sqrt(var + eps)

    take back the change, so that training on from here begins at this network. The copy is in evaluation mode.

    Raises:
        NetspaceError: The copy computes something else, up to rounding: the module uses a batch norm in its own way.
    """
    made = copy.deepcopy(module).eval()
    norms = {
        path: norm
        for path, norm in batch_norms(made).items()
        if norm.running_mean is not None and norm.weight is not None and norm.bias is not None
    }
    moments = {path: _Moments(norm.num_features) for path, norm in norms.items()}
    handles = [norm.register_forward_pre_hook(moments[path]) for path, norm in norms.items()]
    try:
        for inputs in batches:
            run(made, inputs, label)
    finally:
        for handle in handles:
            handle.remove()
    for path, norm in norms.items():
        if moments[path].count:
            _give_statistics(norm, *moments[path].mean_and_variance())
    outputs = (run(in_float64(each), batches[0].double(), label) for each in (module, made))
    for before, after in zip(*outputs, strict=True):
        if not torch.allclose(before, after, rtol=0.0, atol=TOLERANCE * float(before.abs().max())):
            raise NetspaceError(
                f"{label} computes something else once its batch norms have the statistics of their inputs: fold them"
            )
    return made


class _Moments:
    """A hook that sums the inputs (B, C, ...) of a batch norm and their squares, by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count, self.sums = 0, torch.zeros(2, channels, dtype=torch.float64)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1).double()
        self.count += rows.shape[1]
        self.sums += torch.stack([rows.sum(1), rows.square().sum(1)]).cpu()

    def mean_and_variance(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Return the mean and the unbiased variance of all inputs."""
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp_min(0) * (self.count / max(self.count - 1, 1))


def _give_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Change a batch norm's statistics (C,), and its weights so that its function stays."""
    assert norm.running_mean is not None and norm.running_var is not None
    before, after = (each.double().cpu() for each in (norm.running_var, variance))
    scale = norm.weight.double().cpu() / (before + norm.eps).sqrt()
    norm.bias.copy_(norm.bias.double().cpu() + scale * (mean - norm.running_mean.double().cpu()))
    norm.weight.copy_(scale * (after + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
