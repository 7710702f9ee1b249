"""Which layer each batch norm of a network can go into, read from its `torch.fx` graph.

Contract. A batch norm goes into the convolution or linear layer before it when that layer is called once, its
output reaches the batch norm alone and unchanged, and its output channels are the channels of the batch norm.
Whatever is not certain becomes 'affine', which is always right. The graph is used for this and thrown away:
the folded network keeps the forward it was written with."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError
from netspace.networks.folding_checks import PASSING, Absorption, batch_norms, reason, run

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # that do nothing but batch norm


_FUNCTIONAL = (nn.functional.batch_norm, torch.batch_norm, torch.native_batch_norm)


def make_plan(module: nn.Module, example: Tensor, label: str) -> tuple[Absorption, ...]:
    """What becomes of each batch norm of `module`: those absorbed in the order of the graph, then the rest.

    `module` is in eval mode and `example` (B, ...) fits it. Raises `NetspaceError` if it cannot be traced,
    does not run on `example`, or calls batch norm as a function.
    """
    norms = batch_norms(module)
    axes = _input_axes(module, norms, example, label)
    graph = trace(module, label, "fold the batch norm of")
    if any(node.op == "call_function" and node.target in _FUNCTIONAL for node in graph.nodes):
        raise NetspaceError(
            f"cannot fold {label}: its forward calls batch_norm as a function; use the nn.BatchNorm modules."
        )
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    shared = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    layers = dict(module.named_modules())
    absorbed: set[fx.Node] = set()
    own = {name for name, each in norms.items() if type(each).forward not in _FORWARDS}

    def source(node: fx.Node) -> str | None:
        """The layer whose output reaches `node` unchanged and goes nowhere else."""
        before = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            return None
        passing = before in absorbed or isinstance(layers[str(before.target)], PASSING)
        return source(before) if passing else str(before.target)

    plan = []
    for node in graph.nodes:
        norm = str(node.target)
        if node.op != "call_module" or norm not in norms or calls[norm] > 1 or norm in own:
            continue
        target = source(node)
        if target is None or calls[target] > 1 or target in shared:
            continue
        if step := _absorption(norm, norms[norm], target, layers[target], axes.get(norm, 0)):
            plan.append(step)
            absorbed.add(node)
    done = {step.norm for step in plan}
    rest = [
        Absorption(norm, norm, "kept" if norm in own else "affine", each.eps)
        for norm, each in norms.items()
        if norm not in done
    ]
    return (*plan, *rest)


def _absorption(norm: str, bn: _BatchNorm, target: str, layer: nn.Module, axes: int) -> Absorption | None:
    """`bn`, whose input has so many axes, into `layer`; None where that would not be exact.

    A linear layer on (B, L, C), say, has its outputs last, where batch norm takes L for the channels.
    """
    if "weight" not in layer._parameters or layer._forward_hooks or layer._forward_pre_hooks:
        return None  # the weight is computed (weight norm, parametrisations), or hooks may change the output
    if isinstance(layer, nn.Linear):
        fits = axes == 2 and layer.out_features == bn.num_features and _unchanged(layer, nn.Linear, "forward")
        return Absorption(norm, target, "linear", bn.eps) if fits else None
    if not isinstance(layer, _ConvNd) or axes != len(layer.kernel_size) + 2:
        return None
    if layer.out_channels != bn.num_features:
        return None
    if any(_unchanged(layer, base, "forward", "_conv_forward") for base in _CONVS):
        return Absorption(norm, target, "conv", bn.eps)
    if any(_unchanged(layer, base, "forward") for base in _TRANSPOSED):
        return Absorption(norm, target, "transposed", bn.eps, layer.groups)
    return None


def _unchanged(layer: nn.Module, base: type[nn.Module], *methods: str) -> bool:
    """Whether `layer` is a `base` that computes what torch's own does."""
    same = (getattr(type(layer), each) is getattr(base, each) for each in methods)
    return isinstance(layer, base) and all(same)


def _input_axes(module: nn.Module, norms: Mapping[str, _BatchNorm], example: Tensor, label: str) -> dict[str, int]:
    """The number of axes of what each batch norm receives when `module` sees `example`."""
    axes: dict[str, int] = {}

    def note(norm: str) -> Callable[..., None]:
        return lambda _, args, kwargs: axes.update({norm: (args[0] if args else kwargs["input"]).ndim})

    handles = [each.register_forward_pre_hook(note(norm), with_kwargs=True) for norm, each in norms.items()]
    try:
        run(module, example, label)
    finally:
        for handle in handles:
            handle.remove()
    return axes


class _Tracer(fx.Tracer):
    """Takes layers derived from torch's own as one node too, and remembers where tracing failed."""

    failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (_BatchNorm, _ConvNd, nn.Linear))
        return own or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def trace(module: nn.Module, label: str, purpose: str) -> fx.Graph:
    """The graph of `module(x)`: arguments after the first keep their defaults. Raises `NetspaceError` where it has none.

    `purpose` is what errors say cannot be done: 'fold the batch norm of'.
    """
    later = list(inspect.signature(module.forward).parameters.values())[1:]
    settled = {each.name: each.default for each in later if each.default is not each.empty}
    tracer = _Tracer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fx remarks on what it cannot check; `verify` checks it all
            graph = tracer.trace(module, settled or None)
    except Exception as error:  # whatever the forward does to a proxy
        where = f"{label} (in {tracer.failed})" if tracer.failed else label
        raise NetspaceError(
            f"cannot {purpose} {where}: torch.fx cannot trace its forward ({reason(error)}); "
            "write it without control flow that depends on the data, or give it already folded."
        ) from error
    return graph
