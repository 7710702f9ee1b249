"""Batch norm folded into the layer before it, so that a network is its parameters and nothing else.

At inference a batch norm is a fixed affine map of each channel (NetSpace, Suppl. VI, Eq. 1); after a convolution or a
linear layer it can be part of that layer's weight and bias. `fold` returns a copy of a network with all batch norms
folded and the other names and their order unchanged, and checks in float64 that the copy computes the same function.
`Folder` does the same for the state of M networks at once. Both follow a plan read from the `torch.fx` graph of the
network (`graph.py`, which also says what is refused) and use `fold_state`, the only place with this arithmetic: in
float64, returning the dtypes of before.

A batch norm that follows no such layer (but an activation, a sum, a layer that is used twice) becomes a `FrozenAffine`.
Folding into the layer after is not done: zero padding makes it wrong.

`unfold` inverts `fold` up to the values that folding loses: a batch norm's function is in the layer before it, so the
batch norm becomes the identity (mean 0, variance 1 - eps, weight 1), or the bias of a layer that has none.

Axes: B batch, M members (networks), C channels; `...` is M or nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.graph import (
    Absorption,
    batch_norms,
    in_float64,
    listed,
    make_plan,
    refuse_buffers,
    refuse_non_finite,
    refuse_unfit,
    run,
    values,
    verify,
)

__all__ = ["Absorption", "Folder", "FrozenAffine", "fold", "unfold"]

TOLERANCE = 1e-6  # of `unfold`, as a fraction of the largest output: the values are rounded to float32


def fold(module: nn.Module, example: Tensor, *, name: str = "", constants: bool = False) -> nn.Module:
    """Return a copy of `module` in eval mode, without batch norm, that computes the same function.

    Each batch norm is replaced by an `nn.Identity` or, also in parts that `torch.fx` cannot trace, a `FrozenAffine`;
    one of a subclass with a forward of its own stays, with neutral statistics. Other modules, names and dtypes stay, so
    the copy's state fits the class written without batch norm. A network without batch norm is only copied, neither
    traced nor run.

    Args:
        example: an input (B, ...). The copy is checked on it and on normal noise of its shape.
        name: the network's name in errors.
        constants: floating-point buffers may remain; the architecture makes the same ones for every network.

    Raises:
        NetspaceError: values are not finite, parameters are tied, floating-point buffers would remain, batch norm has
            no running statistics or is called as a function, the forward fails on `example`, or the copy computes
            something else. The message names the parameter or submodule.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
    >>> [key for key, _ in fold(net, torch.zeros(1, 1, 8, 8)).named_parameters()]
    ['0.weight', '0.bias']
    """
    label = name or type(module).__name__
    refuse_unfit(module, label)
    plan: tuple[Absorption, ...] = ()
    if batch_norms(module):
        exact, inputs = _in_float64(module, example)
        plan = make_plan(exact, inputs[0], label)
        verify(exact, rebuild(exact, plan), inputs, plan, label)
    folded = rebuild(module, plan)
    if not constants:
        refuse_buffers(folded, label, _kept(plan))
    refuse_non_finite(folded.named_parameters(), f"{label} after folding")
    return folded


class Folder:
    """Folds the state of one member or of M stacked members of an architecture, which is traced once.

    `module` is any network of the architecture, `example` (B, ...) an input. The plan, a tuple of `Absorption`s, is
    checked as in `fold`, on a copy whose batch norms have random statistics: those of a fresh network would hide a
    mistake. `shapes` are the parameters that remain, in order. Raises as `fold`.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    >>> folder = Folder(net, torch.zeros(1, 3))
    >>> stacked = {key: torch.stack([value] * 5) for key, value in net.state_dict().items()}
    >>> {key: tuple(value.shape) for key, value in folder(stacked).items()}
    {'0.weight': (5, 2, 3), '0.bias': (5, 2)}
    """

    def __init__(self, module: nn.Module, example: Tensor, *, name: str = "", constants: bool = False) -> None:
        self.label = name or type(module).__name__
        refuse_unfit(module, self.label)
        self.plan: tuple[Absorption, ...] = ()
        if batch_norms(module):
            exact, inputs = _in_float64(module, example)
            self.plan = make_plan(exact, inputs[0], self.label)
            _randomise(exact)
            verify(exact, rebuild(exact, self.plan), inputs, self.plan, self.label)
        folded = rebuild(module, self.plan)
        if not constants:
            refuse_buffers(folded, self.label, _kept(self.plan))
        self.shapes = {key: tuple(value.shape) for key, value in folded.named_parameters()}
        # counters and constants, which may be in a state but are not needed
        self._ignored = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        statistics = {f"{norm}.running_{each}" for norm in batch_norms(module) for each in ("mean", "var")}
        needed = statistics | dict(module.named_parameters()).keys()
        self._needed = {key: tuple(value.shape) for key, value in values(module).items() if key in needed}

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the folded parameters, each (..., *shape) with its entry of `shapes`, in that order.

        `state` is a state dict with batch norm, each value (..., *shape) with its shape in the network; counters
        (`num_batches_tracked`) may be missing. The result has the same dtypes and shares the memory of values that did
        not change. Raises `UsageError` for a name or shape that does not fit, `NetspaceError` for a value that is not
        finite, naming the first member that has it.
        """
        for key in state:
            if key not in self._needed and key not in self._ignored:
                raise unknown(f"parameter of {self.label}", key, self._needed)
        if missing := [key for key in self._needed if key not in state]:
            raise UsageError(
                f"the state to fold lacks {listed(missing)} of {self.label}: give all it was trained with."
            )
        given = {key: state[key] for key in self._needed}
        # (M,) if the first value has one axis more than in the network, else (); the others must agree
        first = next(iter(self._needed))
        lead = tuple(given[first].shape[:1]) if given[first].ndim > len(self._needed[first]) else ()
        for key, shape in self._needed.items():
            if tuple(given[key].shape) != lead + shape:
                raise UsageError(
                    f"the state to fold has {key} of shape {tuple(given[key].shape)} where {self.label} "
                    f"needs {lead + shape}: give every value for the same members, stacked first."
                )
        refuse_non_finite(given.items(), self.label, members=bool(lead))
        folded = fold_state(self.plan, given)
        refuse_non_finite(folded.items(), f"{self.label} after folding", members=bool(lead))
        return {key: folded[key] for key in self.shapes}


def _in_float64(module: nn.Module, example: Tensor) -> tuple[nn.Module, list[Tensor]]:
    """Return `module` in float64 and eval mode, and inputs to check it on: `example` and normal noise."""
    device = next((value.device for value in values(module).values()), example.device)
    inputs = [example.detach().to(device)]
    if example.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(example.shape, generator=generator, dtype=torch.float64)
        inputs = [inputs[0].double(), noise.to(device)]
    return in_float64(module), inputs


def _kept(plan: tuple[Absorption, ...]) -> list[str]:
    return [step.norm for step in plan if step.kind == "kept"]


def _randomise(module: nn.Module) -> None:
    """Give every batch norm values in [0.5, 1.5): as variances or factors none explodes or vanishes."""
    generator = torch.Generator().manual_seed(0)
    for norm in batch_norms(module).values():
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if value is not None:
                drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
                value.data.copy_(drawn)


class FrozenAffine(nn.Module):
    """`weight * x + bias` of each channel of x (B, C, ...): a batch norm without a layer to be folded into."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (C,)
        self.bias = nn.Parameter(bias)  # (C,)

    def forward(self, input: Tensor) -> Tensor:  # the name of batch norm's argument
        """Return the affine map of (B, C, ...)."""
        shape = (1, -1) + (1,) * (input.ndim - 2)
        return input * self.weight.view(shape) + self.bias.view(shape)


def fold_state(plan: Iterable[Absorption], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state after `plan` (NetSpace, Suppl. VI, Eq. 1).

    y = gamma * (W x + b - mean) / sqrt(var + eps) + beta, so y = W' x + b' with
    W' = scale * W, b' = scale * b + shift, scale = gamma / sqrt(var + eps), shift = beta - scale * mean.
    """
    out = dict(state)
    for step in plan:
        mean = out.pop(f"{step.norm}.running_mean")  # (..., C)
        scale = torch.rsqrt(out.pop(f"{step.norm}.running_var").double() + step.eps)
        if (gamma := out.pop(f"{step.norm}.weight", None)) is not None:
            scale = scale * gamma.double()
        shift = -scale * mean.double()
        if (beta := out.pop(f"{step.norm}.bias", None)) is not None:
            shift = shift + beta.double()
        if step.kind in ("affine", "kept"):
            out[f"{step.norm}.weight"], out[f"{step.norm}.bias"] = scale.to(mean.dtype), shift.to(mean.dtype)
            continue
        weight, bias = out[f"{step.target}.weight"], out.get(f"{step.target}.bias")
        if bias is not None:
            shift = shift + scale * bias.double()
        out[f"{step.target}.weight"] = _scaled(weight.double(), scale, step).to(weight.dtype)
        out[f"{step.target}.bias"] = shift.to(weight.dtype)
    return out


def _scaled(weight: Tensor, scale: Tensor, step: Absorption) -> Tensor:
    """Return `weight` with the part of each output channel c multiplied by scale[..., c]; scale (..., C)."""
    lead = scale.shape[:-1]
    if step.kind != "transposed":  # (..., out, in / groups, kernel...)
        return weight * scale.reshape(scale.shape + (1,) * (weight.ndim - scale.ndim))
    # (..., in, out / groups, kernel...): the groups are along `in`, so they get an axis of their own first
    per_group, kernel = weight.shape[len(lead) + 1], weight.shape[len(lead) + 2 :]
    grouped = weight.reshape(*lead, step.groups, -1, per_group, *kernel)
    factors = scale.reshape(*lead, step.groups, 1, per_group, *(1 for _ in kernel))
    return (grouped * factors).reshape(weight.shape)


def rebuild(module: nn.Module, plan: Iterable[Absorption]) -> nn.Module:
    """Return a copy of `module` in eval mode, folded by `plan`, in its own dtypes."""
    built = copy.deepcopy(module)
    state = {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}
    state = fold_state(plan, state)
    for step in plan:
        norm = built.get_submodule(step.norm)
        new: nn.Module = nn.Identity()
        if step.kind == "kept":
            _neutralise(norm, state[f"{step.norm}.weight"], state[f"{step.norm}.bias"], step.eps)
            continue
        if step.kind == "affine":
            new = FrozenAffine(state[f"{step.norm}.weight"], state[f"{step.norm}.bias"])
        else:
            target = built.get_submodule(step.target)
            trains = built.get_parameter(f"{step.target}.weight").requires_grad
            for key in ("weight", "bias"):
                setattr(target, key, nn.Parameter(state[f"{step.target}.{key}"], trains))
        for path in [path for path, each in built.named_modules(remove_duplicate=False) if each is norm]:
            parent, _, leaf = path.rpartition(".")
            setattr(built.get_submodule(parent), leaf, new)
    return built.eval()


def _neutralise(norm: nn.Module, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Make a batch norm compute weight * x + bias (C,) before what else its forward does."""
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    norm.get_buffer("running_mean").zero_()
    norm.get_buffer("running_var").fill_(1 - eps)


def unfold(module: nn.Module, folded: Mapping[str, Tensor], example: Tensor, *, name: str = "") -> nn.Module:
    """Fill `module`, a fresh network with batch norm, with folded parameters; return it in eval mode.

    `folded` has the names and shapes that remain after `fold(module, example)`; `example` is an input (B, ...).
    Raises as `fold`, and `NetspaceError` if a batch norm without weights would have to multiply by a number that is not
    positive.
    """
    label = name or type(module).__name__
    refuse_unfit(module, label)
    norms = batch_norms(module)
    plan = make_plan(in_float64(module), example.double(), label) if norms else ()
    reference = rebuild(module, plan)
    with torch.no_grad():
        for key, value in reference.named_parameters():
            value.copy_(folded[key])
        state: dict[str, Tensor] = dict(reference.named_parameters())
        for step in plan:
            _fill_norm(norms[step.norm], step, state, module, label)
        for key, value in module.named_parameters():
            owner = key.rpartition(".")[0]
            if owner not in norms:
                value.copy_(state[key])
    module.eval()
    expected, actual = (run(in_float64(each), example.double(), label) for each in (reference, module))
    for one, other in zip(expected, actual, strict=True):
        if not torch.allclose(one, other, rtol=0.0, atol=TOLERANCE * float(one.abs().max())):
            raise NetspaceError(
                f"{label} with batch norm does not compute what the folded network does: use the folded one"
            )
    return module


def _fill_norm(norm: _BatchNorm, step: Absorption, state: dict[str, Tensor], module: nn.Module, label: str) -> None:
    """Give a batch norm its function: the identity, adding a bias (C,), or multiplying and adding."""
    scale, shift = torch.ones(norm.num_features), torch.zeros(norm.num_features)
    if step.kind in ("affine", "kept"):
        scale, shift = state[f"{step.norm}.weight"], state[f"{step.norm}.bias"]
    elif module.get_submodule(step.target).bias is None and f"{step.target}.bias" in state:
        shift = state.pop(f"{step.target}.bias")  # once, where one layer absorbed several
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    if norm.weight is not None and norm.bias is not None:
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
        return
    variance = scale.double().pow(-2) - norm.eps
    if not (scale > 0).all() or not (variance > 0).all():
        raise NetspaceError(
            f"the batch norm {step.norm} of {label} has no weights (affine=False) and cannot multiply by what this network "
            "needs: use the folded network"
        )
    norm.running_var.copy_(variance)
    norm.running_mean.copy_(-shift / scale)
