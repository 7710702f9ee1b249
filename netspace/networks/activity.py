"""Which units of networks do anything: those whose activation is the same for all inputs are dead.

Axes: M members, B inputs, P parameters, U units (channels) of an activation.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap

from netspace.networks.folding import FrozenAffine
from netspace.networks.graph import trace
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec

ACTIVATIONS = frozenset((
    "relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "elu", "selu", "celu", "tanh", "sigmoid", "hardtanh", "mish",
    "hardswish", "softplus", "sin", "prelu", "leakyrelu",
))  # fmt: skip
MAX_ELEMENTS = 1 << 13  # members x inputs at once, so that memory stays bounded


def _spread(values: Tensor) -> Tensor:
    """Return by how much each unit's activation (B, U, ...) varies over inputs and positions, (U,)."""
    rows = values.movedim(1, 0).flatten(1)
    return rows.amax(1) - rows.amin(1)


class Activity:
    """Counts the dead units of networks of one spec, after each activation function."""

    def __init__(self, skeleton: nn.Module, spec: NetSpec) -> None:
        """Raises `NetspaceError` if the forward of the skeleton cannot be traced."""
        self.spec = spec
        layers = dict(skeleton.named_modules())
        affine = [name for name, layer in layers.items() if isinstance(layer, FrozenAffine)]
        graph = trace(skeleton, spec.arch, "count the dead units of", leaves=affine)
        outputs: dict[str, fx.Node] = {}
        for node in list(graph.nodes):
            if node.op == "output":
                node.args = (tuple(outputs.values()),)
            elif _kind(node, layers) in ACTIVATIONS:
                with graph.inserting_after(node):
                    reduced = graph.call_function(_spread, (node,))
                outputs[_unused(_layer_before(node, layers), outputs)] = reduced
        self.names = tuple(outputs)  # of the layers before the activations
        self.module = fx.GraphModule(skeleton, graph) if outputs else None
        if self.module is not None:
            self.module.graph.eliminate_dead_code()  # what comes after the last activation
            self.module.recompile()

    @torch.no_grad()
    def dead(self, flat: Float[Tensor, "M P"], inputs: Tensor) -> list[Bool[Tensor, "M U"]]:
        """Return whether units are dead for inputs (B, ...), for each of `names`."""
        module = self.module
        if module is None:
            return []

        def one(row: Tensor) -> tuple[Tensor, ...]:
            spreads: tuple[Tensor, ...] = functional_call(module, unflatten(row, self.spec), (inputs,))
            return spreads

        at_once = max(MAX_ELEMENTS // max(len(inputs), 1), 1)
        pieces = [vmap(one)(rows) for rows in flat.split(at_once)]
        return [torch.cat(parts) == 0 for parts in zip(*pieces, strict=True)]


def _kind(node: fx.Node, layers: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(layers[str(node.target)]).__name__.lower()
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))


def _layer_before(node: fx.Node, layers: dict[str, nn.Module]) -> str:
    """Return the nearest layer with parameters before a node, of a sum the first operand's; the node's own name if there is none."""
    queue, seen = list(node.all_input_nodes), set[fx.Node]()
    while queue:
        before = queue.pop(0)
        if before.op == "call_module" and any(True for _ in layers[str(before.target)].parameters(recurse=False)):
            return str(before.target)
        if before not in seen:
            seen.add(before)
            queue += before.all_input_nodes
    return node.name


def _unused(name: str, taken: dict[str, fx.Node]) -> str:
    """Return a name, with primes if it is taken: a layer whose output goes through two activations."""
    while name in taken:
        name += "'"
    return name
