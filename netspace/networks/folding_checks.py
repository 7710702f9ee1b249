"""What folding refuses, each in one sentence, and the check that a folded copy computes the same function.

Contract. Nothing here changes a module. Errors name the network, and the parameter or submodule at fault."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netspace.errors import NetspaceError
from netspace.networks.prep import parameter_problem


@dataclass(frozen=True)
class Absorption:
    """Where one batch norm goes. `target` is the layer before it, or `norm` itself for the kinds 'affine' and 'kept'.

    A batch norm of a subclass with a forward of its own, such as one with an activation inside, is 'kept': the layer stays
    with its statistics made neutral (mean 0, variance 1 - eps), its weight and bias those of 'affine'.
    """

    norm: str
    target: str
    kind: Literal["conv", "transposed", "linear", "affine", "kept"]
    eps: float
    groups: int = 1  # of a transposed convolution, whose weight has the shape (in, out / groups, kernel...)


# Largest difference allowed between a network and its folded copy, both in float64, as a share of the largest
# output: far above rounding, which gives 1e-15 to 1e-13, and far below any mistake.
TOLERANCE = 1e-10


# Layers that do nothing in eval mode.
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of `module` by name, in the order of its definition."""
    return {name: each for name, each in module.named_modules() if isinstance(each, _BatchNorm)}


def values(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of `module`."""
    return {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}


def in_float64(module: nn.Module) -> nn.Module:
    """A copy of `module` in float64 and eval mode, tensors that are plain attributes of its parts included."""
    exact = copy.deepcopy(module).double().eval()
    for part in exact.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(part, name, value.double())
    return exact


def run(module: nn.Module, x: Tensor, label: str) -> list[Tensor]:
    """The tensors of `module(x)`, at any depth; raises `NetspaceError` if it fails."""
    try:
        with torch.no_grad():
            return _tensors(module(x))
    except Exception as error:  # whatever the forward raises, told in one sentence
        raise NetspaceError(
            f"{label} does not run on an example of shape {tuple(x.shape)}: {reason(error)}."
        ) from error


def verify(
    module: nn.Module, folded: nn.Module, inputs: Iterable[Tensor], plan: tuple[Absorption, ...], label: str
) -> None:
    """Raises `NetspaceError` unless both, in float64, compute the same on `inputs`, to `TOLERANCE`.

    The first input must give finite outputs; others that do not are passed over.
    """
    for number, x in enumerate(inputs):
        expected, found = run(module, x, label), run(folded, x, f"{label} after folding")
        if not all(bool(value.isfinite().all()) for value in expected):
            if number:
                continue
            raise NetspaceError(f"cannot fold {label}: its outputs for the example are not finite; try another.")
        if not _agree(expected, found):
            where = _first_difference(module, folded, x, plan)
            raise NetspaceError(
                f"the folded copy of {label} does not compute what {label} does: {where} differs first, by "
                f"more than {TOLERANCE:g} of its largest value; fold it by hand."
            )


def refuse_unfit(module: nn.Module, label: str) -> None:
    """Raises `NetspaceError` for what no folding can mend: see `netspace.networks.folding.fold`."""
    homes: dict[int, str] = {}
    for key, value in module.named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(value):
            raise NetspaceError(f"cannot fold {label}: {key} has no values yet; run it on an input first.")
        if problem := parameter_problem(value):
            raise NetspaceError(
                f"{key} of {label} {problem}, but parameters are dense tensors of real floating-point numbers: write the "
                "network with such."
            )
        home = homes.setdefault(value.data_ptr() or id(value), key)
        if home != key:
            raise NetspaceError(
                f"cannot fold {label}: {home} and {key} are one tensor, and a network here is separate "
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
    """Raises `NetspaceError` for the first value not finite; `members`: the first axis is networks."""
    for key, value in items:
        finite = value.isfinite()
        if not bool(finite.all()):
            which = f" of member {int((~finite).nonzero()[0, 0])}" if members else ""
            raise NetspaceError(f"{key}{which} of {label} has values that are not finite: train it again.")


def refuse_buffers(module: nn.Module, label: str, kept_norms: Collection[str] = ()) -> None:
    """Raises `NetspaceError` if the state of the folded `module` has floats that are not parameters.

    The neutral statistics of batch norms that are kept may be there.
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
    """The first `most` names and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def reason(error: Exception) -> str:
    """The type and first line of an error, for the inside of a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__


def _agree(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(map(_close, expected, found))


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or not expected.is_floating_point():
        return torch.equal(expected, found)
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(expected, found, rtol=0.0, atol=TOLERANCE * scale)


def _first_difference(module: nn.Module, folded: nn.Module, x: Tensor, plan: tuple[Absorption, ...]) -> str:
    """The first submodule, in order of execution, whose output differs and should not."""
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

    for (name, expected), (_, found) in zip(outputs(module), outputs(folded), strict=False):
        if not _agree(expected, found):
            return name
    return "its output"


def _tensors(output: object) -> list[Tensor]:
    """All tensors of an output, at any depth of tuples, lists and dictionaries."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    return [value for part in output for value in _tensors(part)] if isinstance(output, (tuple, list)) else []
