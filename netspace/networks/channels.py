"""Groups of channels that may be permuted without changing a network's function, read from its graph.

The channels of a hidden layer can be permuted if every parameter that reads or writes them is permuted alike. These
parameters are read from the network's `torch.fx` graph: layers that are added up (residual streams) share a group, and
a flattened map gives each channel several neighbouring inputs, or outputs where a linear layer makes a map. Channels that reach an operation that may mix them are
not permuted. Networks are aligned by these groups (`alignment.py`).

Axes: M members (networks), C channels, K values of a channel in one parameter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from netspace.networks.folding import FrozenAffine
from netspace.networks.graph import FORWARDS, trace

_ELEMENTWISE = frozenset((
    "relu", "relu_", "leaky_relu", "gelu", "silu", "elu", "selu", "celu", "tanh", "sigmoid", "hardtanh", "relu6",
    "mish", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "tanhshrink", "rrelu", "dropout",
    "dropout2d", "identity", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone", "detach", "abs",
    "neg", "exp", "sin", "cos", "square", "sqrt", "clamp", "clamp_min", "clamp_max", "pow", "float", "double",
))  # fmt: skip
_POOLING = frozenset((
    "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "interpolate", "upsample", "boolean_dispatch",  # what torch calls its max_pool
))  # fmt: skip
_JOINING = frozenset(
    ["add", "sub", "mul", "maximum", "minimum", "iadd", "isub", "imul", "add_", "sub_", "mul_", "truediv", "div"]
)
_SIZES = frozenset(["size", "dim", "ndim", "numel", "getattr", "getitem"])  # of a value's shape, not of its channels
_RESHAPING = frozenset(["flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"])


@dataclass(frozen=True)
class Use:
    """A part of a parameter that belongs to a group of channels."""

    name: str
    axis: int
    start: int  # first entry of the group on the axis
    repeats: int  # entries of each channel, one channel after the other


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are permuted together, wherever they are used."""

    size: int  # C
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class _Segment:
    """Consecutive channels of a value: all channels of one axis, each `repeats` times in a row."""

    axis: int
    size: int
    repeats: int = 1

    @property
    def length(self) -> int:
        return self.size * self.repeats


_Channels = tuple[_Segment, ...]  # the second axis of a value


@dataclass
class _Axes:
    """Axes of channels, joined if they must be permuted alike (union-find)."""

    parent: list[int] = field(default_factory=list)
    maps: dict[int, tuple[int, int]] = field(default_factory=dict)  # axes that become maps: axis of channels, pixels
    fixed: set[int] = field(default_factory=set)  # axes that must not be permuted
    uses: dict[tuple[str, int], _Channels] = field(default_factory=dict)  # by parameter and its axis

    def new(self, size: int, fixed: bool = False) -> _Channels:
        self.parent.append(len(self.parent))
        if fixed:
            self.fixed.add(len(self.parent) - 1)
        return (_Segment(len(self.parent) - 1, size),)

    def root(self, axis: int) -> int:
        while self.parent[axis] != axis:
            axis = self.parent[axis]
        return axis

    def fix(self, channels: _Channels) -> None:
        self.fixed.update(segment.axis for segment in channels)

    def join(self, one: _Channels, other: _Channels) -> None:
        """Make both the same channels; if they are divided differently, fix all of them."""
        if [(each.size, each.repeats) for each in one] == [(each.size, each.repeats) for each in other]:
            for first, second in zip(one, other, strict=True):
                self.parent[self.root(first.axis)] = self.root(second.axis)
        else:
            self.fix(one + other)

    def use(self, name: str, axis: int, channels: _Channels) -> None:
        """Note that a parameter's axis has these channels, which are joined with those of an earlier use."""
        if (name, axis) in self.uses:
            self.join(self.uses[name, axis], channels)
        else:
            self.uses[name, axis] = channels

    def unflatten(self, segment: _Segment, pixels: int) -> _Segment | None:
        """Return the channels of a map whose flattened entries, `pixels` of each channel, are a segment; None if they are not."""
        if segment.repeats % pixels == 0:
            return _Segment(segment.axis, segment.size, segment.repeats // pixels)
        if segment.repeats > 1 or segment.size % pixels:
            return None
        (channels,) = self.new(segment.size // pixels)
        known = self.maps.setdefault(segment.axis, (channels.axis, pixels))
        if known[1] != pixels:
            return None
        self.join((channels,), (_Segment(known[0], channels.size),))
        return channels

    def settle(self) -> dict[int, tuple[int, int]]:
        """Return the maps by root, with the axes of their channels joined; fix what is divided in several ways."""
        maps: dict[int, tuple[int, int]] = {}
        for axis, (channels, pixels) in self.maps.items():
            known = maps.setdefault(self.root(axis), (channels, pixels))
            if known[1] == pixels:
                self.parent[self.root(channels)] = self.root(known[0])
            else:
                self.fixed.update((axis, channels, known[0]))
        return maps

    def groups(self) -> tuple[ChannelGroup, ...]:
        maps = self.settle()
        fixed = {self.root(axis) for axis in self.fixed}
        for root, (of_map, _) in maps.items():  # maps of maps come later
            if root in fixed:
                fixed.add(self.root(of_map))
        uses: dict[int, list[Use]] = defaultdict(list)
        sizes: dict[int, int] = {}
        for (name, axis), channels in self.uses.items():
            start = 0
            for segment in channels:
                root, size, repeats = self.root(segment.axis), segment.size, segment.repeats
                while root in maps:
                    of_map, pixels = maps[root]
                    root, size, repeats = self.root(of_map), size // pixels, repeats * pixels
                sizes[root] = size
                uses[root].append(Use(name, axis, start, repeats))
                start += segment.length
        return tuple(
            ChannelGroup(sizes[root], tuple(of_root))
            for root, of_root in uses.items()
            if root not in fixed and sizes[root] > 1
        )


def channel_groups(module: nn.Module, example: Tensor, label: str) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels of `module` that may be permuted; those of inputs and outputs may not.

    `module` is in eval mode, `example` (B, ...) is an input. Raises `NetspaceError` if its forward cannot be traced.
    """
    layers = dict(module.named_modules())
    affine = [name for name, layer in layers.items() if isinstance(layer, FrozenAffine)]
    graph = trace(module, label, "align the channels of", leaves=affine)
    shapes = _shapes(module, graph, example)
    axes = _Axes()
    known: dict[fx.Node, _Channels] = {}
    for node in graph.nodes:
        tensors = [each for each in node.all_input_nodes if each in known]
        before, entering = [known[each] for each in tensors], [shapes[each] for each in tensors]
        shape, after = shapes.get(node, ()), None
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node not in shapes and name in _SIZES:
            continue
        if len(shape) > 1 and before and all(len(each) > 1 for each in entering):
            if node.op == "call_module" and len(before) == 1:
                after = _layer(axes, name, layers[name], before[0], entering[0], shape)
            elif node.op in ("call_function", "call_method"):
                after = _function(axes, node, name, before, entering, shape)
        if after is None or sum(segment.length for segment in after) != shape[1]:
            for channels in before:
                axes.fix(channels)
            after = axes.new(shape[1] if len(shape) > 1 else 1, fixed=True)
        if node in shapes:
            known[node] = after
    return axes.groups()


def _shapes(module: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every value of the graph that is a tensor."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = tuple(value.shape)
            return value

    with torch.no_grad():
        Shapes(module, graph=graph).run(example)
    return shapes


def _layer(
    axes: _Axes, name: str, layer: nn.Module, before: _Channels, entering: tuple[int, ...], shape: tuple[int, ...]
) -> _Channels | None:
    """Note the parameters of a layer and return the channels of its output; None if they may be mixed."""
    own = layer._parameters
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if isinstance(layer, (_ConvNd, nn.Linear)):
        if type(layer).__module__.partition(".")[0] != "torch" or own.get("weight") is None:
            return None  # a forward of its own, or a weight that is computed
        if isinstance(layer, nn.Linear) and len(entering) != 2:
            return None
        if getattr(layer, "groups", 1) != 1:
            if layer.groups != layer.in_channels or isinstance(layer, _ConvTransposeNd):
                return None
            times = shape[1] // entering[1]
            after = tuple(_Segment(each.axis, each.size, each.repeats * times) for each in before)
            axes.use(f"{name}.weight", 0, after)
        else:
            reads, writes = (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
            after = axes.new(shape[1])
            axes.use(f"{name}.weight", reads, before)
            axes.use(f"{name}.weight", writes, after)
        if own.get("bias") is not None:
            axes.use(f"{name}.bias", 0, after)
        return after
    if isinstance(layer, _BatchNorm) and type(layer).forward not in FORWARDS:
        return None  # it may do more than batch norm
    if isinstance(layer, (_BatchNorm, FrozenAffine)) or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1):
        if any(value is not None and len(value.unique()) > 1 for value in layer._buffers.values()):
            return None  # statistics belong to the architecture, the same for all networks: they cannot be permuted
        for part, value in own.items():
            if value is not None:
                axes.use(f"{name}.{part}", 0, before)
        return before
    if isinstance(layer, nn.PReLU):
        return before
    if own or layer._buffers or any(True for _ in layer.children()):
        return None
    kind = type(layer).__name__.lower()
    elementwise = {name.replace("_", "") for name in _ELEMENTWISE}
    if isinstance(layer, (nn.Flatten, nn.Unflatten)):
        return _reshaped(axes, before, entering, shape)
    if type(layer).__module__.startswith("torch.nn.modules") and (
        kind in elementwise or "pool" in kind or "dropout" in kind or "pad2d" in kind or kind.startswith("upsample")
    ):
        return before
    return None


def _function(
    axes: _Axes,
    node: fx.Node,
    name: str,
    before: Sequence[_Channels],
    entering: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
) -> _Channels | None:
    """Return the channels of the output of a function or method; None if they may be mixed."""
    if node.op == "call_function" and getattr(node.target, "__module__", "") not in (
        *("torch", "torch.nn.functional", "_operator", "torch._C._nn", "math", None, "torch._jit_internal"),
    ):
        return None
    if len(before) == 1 and (name in _ELEMENTWISE or name in _POOLING or name in _JOINING):
        return before[0] if entering[0][1] == shape[1] and len(entering[0]) == len(shape) else None
    if len(before) == 1 and name in _RESHAPING:
        return _reshaped(axes, before[0], entering[0], shape)
    if len(before) == 1 and name == "mean" and len(shape) >= 2 and shape[:2] == entering[0][:2]:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        taken = [axis] if isinstance(axis, int) else list(axis) if isinstance(axis, (tuple, list)) else [0]
        return before[0] if all(int(each) % len(entering[0]) >= 2 for each in taken) else None
    if len(before) == 2 and name in _JOINING and entering[0][1] == entering[1][1] and len({*map(len, entering)}) == 1:
        axes.join(before[0], before[1])
        return before[0]
    if name in ("cat", "concat"):
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = node.args[0]
        if axis == 1 and isinstance(parts, (tuple, list)) and len(parts) == len(before):
            return tuple(segment for channels in before for segment in channels)
    return None


def _reshaped(axes: _Axes, before: _Channels, entering: tuple[int, ...], shape: tuple[int, ...]) -> _Channels | None:
    """Return the channels of a reshaped value whose channel axis is kept, flattened with later ones or the other way; else None."""
    if entering[:2] == shape[:2]:
        return before
    if entering[0] == shape[0] and len(shape) == 2 and shape[1] == math.prod(entering[1:]):
        times = math.prod(entering[2:])
        return tuple(_Segment(each.axis, each.size, each.repeats * times) for each in before)
    if entering[0] == shape[0] and len(entering) == 2 and entering[1] == math.prod(shape[1:]):
        after = [axes.unflatten(each, math.prod(shape[2:])) for each in before]
        return None if None in after else tuple(each for each in after if each is not None)
    return None


def _index(use: Use, permutations: Tensor, length: int) -> Tensor:
    """Return the indices (M, length) that permute a group's entries on a parameter's axis."""
    members, size = permutations.shape
    index = torch.arange(length, device=permutations.device).repeat(members, 1)
    offsets = torch.arange(use.repeats, device=permutations.device)
    moved = use.start + (permutations[:, :, None] * use.repeats + offsets).flatten(1)
    index[:, use.start : use.start + size * use.repeats] = moved
    return index


def channel_values(tensor: Tensor, use: Use, size: int) -> Float[Tensor, "M C K"]:
    """Return the values of each of a group's C = `size` channels in a parameter (M, ...): a view or a copy."""
    part = tensor.movedim(use.axis + 1, 1)[:, use.start : use.start + size * use.repeats]
    return part.reshape(len(tensor), size, -1)


def permute(
    tensors: Mapping[str, Tensor], group: ChannelGroup, permutations: Int64[Tensor, "M C"]
) -> dict[str, Tensor]:
    """Return a group's parameters (M, ...) with its channels permuted: channel i was `permutations[m, i]`."""
    moved = {use.name: tensors[use.name] for use in group.uses}
    for use in group.uses:
        tensor = moved[use.name]
        axis = use.axis + 1
        index = _index(use, permutations, tensor.shape[axis])
        index = index.reshape(len(index), *(-1 if each == axis else 1 for each in range(1, tensor.dim())))
        moved[use.name] = tensor.gather(axis, index.expand_as(tensor))
    return moved
