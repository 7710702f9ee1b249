"""The layer that each batch norm of a network can be folded into, read from its `torch.fx` graph; checks of folding.

A batch norm can be folded into the convolution or linear layer before it if that layer is called once, its output
reaches only the batch norm, unchanged, and its output channels are the channels of the batch norm. All others become
'affine', which is always right. The graph is only used for this: the folded network has the forward that it was written
with. Nothing here changes a module. Errors name the network, and the parameter or submodule at fault.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError
from netspace.networks.prep import parameter_problem


@dataclass(frozen=True)
class Absorption:
    """How a batch norm is folded. `target` is the layer before it, or `norm` itself for the kinds 'affine' and 'kept'.

    A batch norm of a subclass with a forward of its own, such as one with an activation inside, is 'kept': the layer
    stays with neutral statistics (mean 0, variance 1 - eps) and the weight and bias of 'affine'.
    """

    norm: str
    target: str
    kind: Literal["conv", "transposed", "linear", "affine", "kept"]
    eps: float
    groups: int = 1  # of a transposed convolution, whose weight has the shape (in, out / groups, kernel...)


# Largest difference allowed between a network and its folded copy, both in float64, as a fraction of the largest
# output: far above rounding, which gives 1e-15 to 1e-13, and far below any mistake.
TOLERANCE = 1e-10
PASSING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)  # the identity in eval mode
FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # that do nothing but batch norm
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUNCTIONAL = (nn.functional.batch_norm, torch.batch_norm, torch.native_batch_norm)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of `module` by name, in the order of its definition."""
    return {name: each for name, each in module.named_modules() if isinstance(each, _BatchNorm)}


def values(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of `module` by name."""
    return {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}


def in_float64(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in float64 and eval mode, including tensors that are plain attributes of its parts."""
    exact = copy.deepcopy(module).double().eval()
    for part in exact.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(part, name, value.double())
    return exact


def run(module: nn.Module, x: Tensor, label: str) -> list[Tensor]:
    """Return the tensors in the output of `module(x)`, x (B, ...), at any depth. Raises `NetspaceError` if the module fails."""
    try:
        with torch.no_grad():
            return _tensors(module(x))
    except Exception as error:  # whatever the forward raises
        raise NetspaceError(
            f"{label} does not run on an example of shape {tuple(x.shape)}: {reason(error)}."
        ) from error


def verify(
    module: nn.Module, folded: nn.Module, inputs: Iterable[Tensor], plan: tuple[Absorption, ...], label: str
) -> None:
    """Raise `NetspaceError` unless both, in float64, have the same outputs for inputs (B, ...), to `TOLERANCE`.

    The first input must have finite outputs; others that do not are skipped.
    """
    for number, x in enumerate(inputs):
        expected, actual = run(module, x, label), run(folded, x, f"{label} after folding")
        if not all(bool(value.isfinite().all()) for value in expected):
            if number:
                continue
            raise NetspaceError(f"cannot fold {label}: its outputs for the example are not finite; try another.")
        if not _agree(expected, actual):
            where = _first_difference(module, folded, x, plan)
            raise NetspaceError(
                f"the folded copy of {label} does not compute what {label} does: {where} differs first, by "
                f"more than {TOLERANCE:g} of its largest value; fold it by hand."
            )


def refuse_unfit(module: nn.Module, label: str) -> None:
    """Raise `NetspaceError` for a module that cannot be folded: see `netspace.networks.folding.fold`."""
    names: dict[int, str] = {}
    for key, value in module.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(value):
            raise NetspaceError(f"cannot fold {label}: {key} has no values yet; run it on an input first.")
        if problem := parameter_problem(value):
            raise NetspaceError(
                f"{key} of {label} {problem}, but parameters are dense tensors of real floating-point numbers: write the "
                "network with such."
            )
        first = names.setdefault(value.data_ptr() or id(value), key)
        if first != key:
            raise NetspaceError(
                f"cannot fold {label}: {first} and {key} are one tensor, and a network here is separate "
                "parameters; give each its own copy."
            )
    for name, norm in batch_norms(module).items():
        if not name:
            raise NetspaceError(f"cannot fold {label}: it is a batch norm itself; give the network around it.")
        if norm.running_mean is None or norm.running_var is None:
            raise NetspaceError(
                f"cannot fold {label}: the batch norm {name} keeps no running statistics "
                "(track_running_stats=False), so what it does depends on the batch; train with them."
            )
    refuse_non_finite(values(module).items(), label)


def refuse_non_finite(items: Iterable[tuple[str, Tensor]], label: str, *, members: bool = False) -> None:
    """Raise `NetspaceError` for the first value that is not finite; with `members` the tensors are (M, ...)."""
    for key, value in items:
        finite = value.isfinite()
        if not bool(finite.all()):
            which = f" of member {int((~finite).nonzero()[0, 0])}" if members else ""
            raise NetspaceError(f"{key}{which} of {label} has values that are not finite: train it again.")


def refuse_buffers(module: nn.Module, label: str, kept_norms: Collection[str] = ()) -> None:
    """Raise `NetspaceError` if the state of the folded `module` has floats other than parameters.

    The neutral statistics of batch norms that are kept are allowed.
    """
    neutral = {f"{norm}.running_{each}" for norm in kept_norms for each in ("mean", "var")}
    kept = module.state_dict().keys() - neutral
    left = [key for key, value in module.named_buffers() if key in kept and value.is_floating_point()]
    if left:
        raise NetspaceError(
            f"cannot fold {label}: it keeps the floating-point buffers {listed(left)}, and a network here is "
            "parameters only; make them parameters, or non-persistent if they are constants (for batch norm "
            "called as a function, use the nn.BatchNorm modules)."
        )


def listed(names: list[str], most: int = 4) -> str:
    """Return the first `most` names and the number of others, for a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def reason(error: Exception) -> str:
    """Return the type and first line of an error, for a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__


def _agree(expected: list[Tensor], actual: list[Tensor]) -> bool:
    return len(expected) == len(actual) and all(map(_close, expected, actual))


def _close(expected: Tensor, actual: Tensor) -> bool:
    if expected.shape != actual.shape or not expected.is_floating_point():
        return torch.equal(expected, actual)
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(expected, actual, rtol=0.0, atol=TOLERANCE * scale)


def _first_difference(module: nn.Module, folded: nn.Module, x: Tensor, plan: tuple[Absorption, ...]) -> str:
    """Return the first submodule, in order of execution, whose output differs and should not."""
    last = {step.target: step.norm for step in plan}  # a layer and what it absorbed differ up to the last one
    passed = {step.norm for step in plan if last[step.target] != step.norm}
    names = [
        name
        for name, each in module.named_modules()
        if not (any(each.children()) or isinstance(each, PASSING) or name in passed)
        and (name not in last or last[name] == name)
    ]

    def outputs(net: nn.Module) -> list[tuple[str, list[Tensor]]]:
        record: list[tuple[str, list[Tensor]]] = []

        def note(name: str) -> Callable[..., None]:
            return lambda _, __, out: record.append((name, [value.clone() for value in _tensors(out)]))

        handles = [net.get_submodule(name).register_forward_hook(note(name)) for name in names]
        run(net, x, "it")
        for handle in handles:
            handle.remove()
        return record

    for (name, expected), (_, actual) in zip(outputs(module), outputs(folded), strict=False):
        if not _agree(expected, actual):
            return name
    return "its output"


def _tensors(output: object) -> list[Tensor]:
    """Return all tensors of an output, at any depth of tuples, lists and dictionaries."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    return [value for part in output for value in _tensors(part)] if isinstance(output, (tuple, list)) else []


def make_plan(module: nn.Module, example: Tensor, label: str) -> tuple[Absorption, ...]:
    """Return how each batch norm of `module` is folded: those into layers in the order of the graph, then the rest.

    `module` is in eval mode and `example` (B, ...) fits it. Batch norms in parts that cannot be traced are 'affine'.
    Raises `NetspaceError` if the module does not run on `example`, or calls batch norm as a function.
    """
    norms = batch_norms(module)
    axes = _input_axes(module, norms, example, label)
    graph = trace(module, label, "fold the batch norm of", whole=False)
    if any(node.op == "call_function" and node.target in _FUNCTIONAL for node in graph.nodes):
        raise NetspaceError(
            f"cannot fold {label}: its forward calls batch_norm as a function; use the nn.BatchNorm modules."
        )
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    shared = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    layers = dict(module.named_modules())
    absorbed: set[fx.Node] = set()
    own = {name for name, each in norms.items() if type(each).forward not in FORWARDS}

    def source(node: fx.Node) -> str | None:
        """Return the layer whose output reaches `node` unchanged and nothing else."""
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
    """Return how `bn`, whose input has `axes` axes, is folded into `layer`; None if that would not be exact.

    For example, a linear layer on (B, L, C) has its outputs last, whereas batch norm takes L for the channels.
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
    """Return whether `layer` is a `base` whose methods are torch's own."""
    same = (getattr(type(layer), each) is getattr(base, each) for each in methods)
    return isinstance(layer, base) and all(same)


def _input_axes(module: nn.Module, norms: Mapping[str, _BatchNorm], example: Tensor, label: str) -> dict[str, int]:
    """Return the number of axes of each batch norm's input when `module` runs on `example`."""
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
    """Traces layers derived from torch's own, and modules in `opaque`, as single nodes; notes where tracing failed."""

    def __init__(self, opaque: Collection[str] = ()) -> None:
        super().__init__()
        self.opaque, self.failed = opaque, ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (_BatchNorm, _ConvNd, nn.Linear)) or module_qualified_name in self.opaque
        return own or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def trace(module: nn.Module, label: str, purpose: str, *, whole: bool = True, leaves: Collection[str] = ()) -> fx.Graph:
    """Return the graph of `module(x)`; arguments after the first keep their defaults, `leaves` are single nodes.

    Unless the `whole` is needed, submodules that cannot be traced are single nodes, and the graph of a module whose own
    forward cannot be is empty. Raises `NetspaceError` where the whole has no graph; `purpose` is what the message says
    cannot be done: 'fold the batch norm of'.
    """
    later = list(inspect.signature(module.forward).parameters.values())[1:]
    settled = {each.name: each.default for each in later if each.default is not each.empty}
    opaque = set(leaves)
    while True:
        tracer = _Tracer(opaque)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fx remarks on what it cannot check; `verify` checks it all
                return tracer.trace(module, settled or None)
        except Exception as error:  # whatever the forward does to a proxy
            if not whole and tracer.failed in {"", *opaque}:
                return fx.Graph()
            if whole:
                where = f"{label} (in {tracer.failed})" if tracer.failed else label
                raise NetspaceError(
                    f"cannot {purpose} {where}: torch.fx cannot trace its forward ({reason(error)}); "
                    "write it without control flow that depends on the data, or give it already folded."
                ) from error
            opaque.add(tracer.failed)
