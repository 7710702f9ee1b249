"""One network at other widths: its groups of channels, the shapes of its parameters, and the module itself.

A width is the number of channels of a group (`channels.py`): of every layer that writes them, with whatever reads them.
Inputs and outputs of a network keep their sizes.

Axes: G groups, C channels of a group at full width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.channels import ChannelGroup, Use, channel_groups
from netspace.networks.fresh import draw_fresh
from netspace.networks.graph import batch_norms, listed, run

WIDEST = 16  # times the full width that a group of channels is made at most


@dataclass(frozen=True)
class Widths:
    """The widths that a network has, group by group; made by `find_widths`."""

    names: tuple[str, ...]  # of each group: the first layer that writes it, such as 'layer1.0.conv1'
    groups: tuple[ChannelGroup, ...]
    statistics: tuple[tuple[Use, ...], ...]  # of each group: the parts of batch norms' buffers that belong to it
    example: Tensor = field(repr=False, compare=False)  # (2, ...): inputs to run networks on
    label: str = field(compare=False)  # of the network, in messages

    def full(self) -> tuple[int, ...]:
        """Return the network's own widths (G,)."""
        return tuple(group.size for group in self.groups)

    def at(self, gamma: float) -> tuple[int, ...]:
        """Return the widths (G,) at a compression rate of all groups: (1 - gamma) C, rounded, at least 1 (NeuMeta, Sec. 4.1).

        Raises `UsageError` unless gamma is below 1. Below 0 networks are wider, up to `WIDEST` times.
        """
        if not 1 - WIDEST <= gamma < 1:
            raise UsageError(
                f"a compression rate gamma is a number below 1, and 0 is the full width; found {gamma:g}: give one from "
                f"{1 - WIDEST} to below 1"
            )
        return tuple(max(1, math.floor((1 - gamma) * group.size + 0.5)) for group in self.groups)

    def named(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Return widths (G,) given by name, the rest in full. Raises `UsageError` for an unknown group, and a width
        below 1 or above `WIDEST` times the full one.
        """
        full = dict(zip(self.names, self.full(), strict=True))
        for name, width in widths.items():
            if name not in full:
                raise unknown(f"group of channels of {self.label}", name, self.names)
            self._check(name, width)
            if width > WIDEST * full[name]:
                raise UsageError(
                    f"the width of {name} of {self.label} is at most {WIDEST} times its {full[name]} channels, not {width:,}: "
                    f"give one up to {WIDEST * full[name]}"
                )
        return tuple(widths.get(name, group.size) for name, group in zip(self.names, self.groups, strict=True))

    def shapes(self, parameters: Mapping[str, Tensor], widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the network's parameters, or of its whole state, at widths (G,).

        Raises `UsageError` for a width below 1.
        """
        self.check(widths)
        shapes = {name: list(value.shape) for name, value in parameters.items()}
        for (name, axis), uses in self.uses().items():
            if name in shapes:
                shapes[name][axis] += sum((widths[g] - self.groups[g].size) * use.repeats for g, use in uses)
        return {name: tuple(shape) for name, shape in shapes.items()}

    def uses(self) -> dict[tuple[str, int], list[tuple[int, Use]]]:
        """Return, by name and axis of a parameter or buffer, the numbers of the groups on it, and where they are, in order."""
        found: dict[tuple[str, int], list[tuple[int, Use]]] = {}
        for number, (group, statistics) in enumerate(zip(self.groups, self.statistics, strict=True)):
            for use in (*group.uses, *statistics):
                found.setdefault((use.name, use.axis), []).append((number, use))
        return {key: sorted(uses, key=lambda use: use[1].start) for key, uses in found.items()}

    def check(self, widths: Sequence[int]) -> None:
        """Raise `UsageError` unless there is a width of at least 1 for each group."""
        if len(widths) != len(self.groups):
            raise UsageError(
                f"{self.label} has {len(self.groups)} groups of channels, but {len(widths)} widths are given"
            )
        for name, width in zip(self.names, widths, strict=True):
            self._check(name, width)

    def _check(self, name: str, width: int) -> None:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise UsageError(f"the width of {name} of {self.label} is a whole number of at least 1, not {width!r}")


def find_widths(module: nn.Module, example: Tensor, label: str) -> Widths:
    """Return the groups of channels of `module` whose width can change, in the order of its graph.

    The graph is that of training, where more may depend on channels than in evaluation. Statistics of batch norm do not
    matter. `module` is not changed; `example` (B, ...) is an input, `label` the network's name in messages.

    Raises `NetspaceError` if the graph cannot be traced, parameters are tied, or no group can change.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> widths = find_widths(net, torch.zeros(1, 1, 8, 8), "net")
    >>> widths.names, widths.at(0.25)
    (('0',), (6,))
    >>> widths.shapes(dict(net.named_parameters()), (6,))
    {'0.weight': (6, 1, 3, 3), '0.bias': (6,), '3.weight': (10, 216), '3.bias': (10,)}
    """
    inputs = torch.cat([example[:1]] * 2).detach().to(_device(module))  # batch norm trains on at least two
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if tied := set(names) - {name for name, _ in module.named_parameters()}:
        raise NetspaceError(
            f"the widths of {label} cannot change: {listed(sorted(tied))} are also parameters by other names; give each its own"
        )
    run(copy.deepcopy(module).eval(), inputs, label)
    fresh = copy.deepcopy(module).train()
    for norm in batch_norms(fresh).values():
        norm.reset_running_stats()
        norm.momentum = 0.0  # else the pass that finds shapes would change them
        if norm.weight is None:  # so that its channels are known
            norm.weight = nn.Parameter(next(module.parameters()).new_ones(norm.num_features))
    with torch.random.fork_rng(devices=()):
        found = channel_groups(fresh, inputs, label)
    if not found:
        raise NetspaceError(
            f"{label} has no group of channels whose width can change: all of them are inputs or outputs, or reach an operation "
            "that may mix them"
        )
    groups = tuple(ChannelGroup(each.size, tuple(use for use in each.uses if use.name in names)) for each in found)
    statistics = tuple(tuple(_statistics(group, module)) for group in found)
    return Widths(tuple(group.uses[0].name.rpartition(".")[0] for group in groups), groups, statistics, inputs, label)


def _statistics(group: ChannelGroup, module: nn.Module) -> Iterator[Use]:
    """Yield the uses of a group in buffers of batch norms, which are those of the weights."""
    norms = batch_norms(module)
    for use in group.uses:
        layer, _, own = use.name.rpartition(".")
        if layer in norms and own == "weight":
            for name, value in norms[layer]._buffers.items():
                if value is not None and value.dim():
                    yield replace(use, name=f"{layer}.{name}")


def resized(module: nn.Module, info: Widths, widths: Sequence[int], seed: int) -> nn.Module:
    """Return a copy of `module` at widths (G,), with fresh weights from `seed`; torch's random state stays as it was.

    Weights are drawn by `draw_fresh`. The copy is in training mode. Raises `UsageError` for a width below 1, and `NetspaceError` if the module does not run at
    these widths, or its outputs have other shapes then.
    """
    shapes = info.shapes(module.state_dict(), widths)
    made = copy.deepcopy(module)
    for path, layer in made.named_modules():
        own = {**layer._parameters, **layer._buffers}
        values = {name: f"{path}.{name}" if path else name for name, value in own.items() if value is not None}
        _resize(
            layer,
            {
                name: shapes[full]
                for name, full in values.items()
                if full in shapes and shapes[full] != tuple(own[name].shape)
            },
        )
    _check_forward(module, made, info, widths)
    made.cpu()  # where the same seed gives the same weights on every machine
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        draw_fresh(made, module)
    return made.to(_device(module)).train()


def _resize(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a layer parameters and buffers of other shapes, filled with zeros, and what it says of its channels."""
    if not shapes:
        return
    times = layer.out_channels // layer.in_channels if isinstance(layer, _ConvNd) else 1
    for name, shape in shapes.items():
        before = getattr(layer, name)
        value = before.detach().new_zeros(shape)
        setattr(layer, name, nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value)
    if isinstance(layer, _ConvTransposeNd):
        layer.in_channels, layer.out_channels = layer.weight.shape[:2]
    elif isinstance(layer, _ConvNd) and layer.groups > 1:  # depthwise
        layer.out_channels = len(layer.weight)
        layer.in_channels = layer.groups = layer.out_channels // times
    elif isinstance(layer, _ConvNd):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif isinstance(layer, _BatchNorm):
        ((layer.num_features,),) = set(shapes.values())


def _check_forward(module: nn.Module, made: nn.Module, info: Widths, widths: Sequence[int]) -> None:
    """Run a resized network, whose layers without parameters are adapted; raise `NetspaceError` if it does not fit."""
    named = zip(info.names, widths, info.full(), strict=True)
    label = f"{info.label} with {listed([f'{name}={width}' for name, width, full in named if width != full]) or 'all widths'}"
    handles = [each.register_forward_pre_hook(_adapt) for each in made.modules() if isinstance(each, nn.Unflatten)]
    try:
        with torch.random.fork_rng(devices=()):
            _compare_outputs(copy.deepcopy(module), made, info, label)
    except NetspaceError as error:
        raise NetspaceError(
            f"{str(error).rstrip('.')}; if its forward has a number of channels written in it, write -1 for it, else leave "
            "these widths as they are"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _compare_outputs(module: nn.Module, made: nn.Module, info: Widths, label: str) -> None:
    inputs = info.example.to(_device(module))
    for training in (False, True):
        before = run(module.train(training), inputs, info.label)
        after = run(made.train(training), inputs, label)
        if [each.shape for each in before] != [each.shape for each in after]:
            raise NetspaceError(f"{label} has outputs of other shapes than at its full width")


def _adapt(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Fit an `nn.Unflatten(1, (C, ...))`, or the groups of a depthwise convolution, to the channels of its input."""
    channels = inputs[0].shape[1]
    if isinstance(layer, _ConvNd):
        layer.groups = channels
    if isinstance(layer, nn.Unflatten) and layer.dim == 1:
        size = tuple(layer.unflattened_size)
        if all(isinstance(each, int) and each > 0 for each in size):
            layer.unflattened_size = (channels // math.prod(size[1:]), *size[1:])


def flexible(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose forward takes parameters of any widths, by `torch.func.functional_call`.

    Its batch norms have no statistics of their own and always use those of the batch.
    """
    made = copy.deepcopy(module)
    for norm in batch_norms(made).values():
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False
    for layer in made.modules():
        if isinstance(layer, nn.Unflatten) or (isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels):
            layer.register_forward_pre_hook(_adapt)
    return made


def _device(module: nn.Module) -> torch.device:
    return next((value.device for value in module.parameters()), torch.device("cpu"))


def count_parameters(module: nn.Module, info: Widths, widths: Sequence[int]) -> int:
    """Return the number of parameters of `module` at widths (G,), without making it. Raises as `Widths.shapes`."""
    return sum(math.prod(shape) for shape in info.shapes(dict(module.named_parameters()), widths).values())


def macs(module: nn.Module, info: Widths, widths: Sequence[int]) -> int:
    """Return the multiply-accumulates of convolutions and linear layers of `module` at widths (G,), for one input.

    Raises as `resized`.
    """
    made = resized(module, info, widths, 0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(info.example[:1])
    return counter.get_total_flops() // 2


def widths_for(module: nn.Module, info: Widths, *, parameters: int | None = None, flops: int | None = None) -> float:
    """Return the compression rate gamma of the widest network with at most so many parameters, or FLOPs of one input.

    All groups have the same gamma (`Widths.at`). A multiply-accumulate is two FLOPs, as torch counts them. Raises
    `UsageError` unless one of the two is given and a network between all widths 1 and full width has it.
    """
    if (parameters is None) == (flops is None):
        raise UsageError("the widths of a network follow from a number of parameters or of FLOPs: give one of the two")
    unit = "FLOPs" if parameters is None else "parameters"
    budget = flops if parameters is None else parameters
    assert budget is not None

    def cost(gamma: float) -> int:
        widths = info.at(gamma)
        return 2 * macs(module, info, widths) if parameters is None else count_parameters(module, info, widths)

    rates = _rates(info)
    least, most = cost(rates[-1]), cost(rates[0])
    if not least <= budget <= most:
        raise UsageError(
            f"{info.label} has {least:,} {unit} at its smallest and {most:,} at its full width: {budget:,} cannot be had; ask "
            "for a number between"
        )
    low, high = -1, len(rates) - 1  # the cost falls: at `high` it is within the budget
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(rates[middle]) <= budget else (middle, high)
    return rates[high]


def _rates(info: Widths) -> list[float]:
    """Return compression rates, rising, one for each different choice of widths from full width to 1 everywhere."""
    steps = sorted({(width - 0.5) / size for size in info.full() for width in range(2, size + 1)}, reverse=True)
    return [0.0, *(1 - (one + other) / 2 for one, other in zip(steps, [*steps[1:], 0.0], strict=True))]
