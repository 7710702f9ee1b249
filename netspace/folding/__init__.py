"""Batch norm absorbed into its neighbour, so that a network is its parameters and nothing else.

Contract. At inference a batch norm is a frozen affine map of each channel (netspace.md, Suppl. VI, Eq. 1);
after a convolution or a linear layer it is part of that layer's weight and bias. `fold` gives a copy of a
network in which every batch norm has gone there, with the names and the order of the parameters that remain,
and checks in float64 that the copy computes the same function. `Folder` does the same arithmetic on the state
of M networks at once. Both follow one plan, read from the `torch.fx` graph of the network (`plan.py`), and
carry it out with one function (`absorb.py`); what is refused, and the proof, are in `checks.py`.

A batch norm that follows nothing it could go into (an activation, a sum, a layer used twice) becomes a
`FrozenAffine` in its place. Folding forward, into the layer after, is left out: zero padding makes it wrong.

Axes: B batch, M members (networks), C channels; `...` is M or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from netspace.errors import UsageError, unknown
from netspace.folding.absorb import Absorption, FrozenAffine, fold_state, rebuild
from netspace.folding.checks import (
    batch_norms,
    in_float64,
    listed,
    refuse_buffers,
    refuse_non_finite,
    refuse_unfit,
    values,
    verify,
)
from netspace.folding.plan import make_plan
from netspace.folding.unfolding import unfold

__all__ = ["Absorption", "Folder", "FrozenAffine", "fold", "unfold"]


def fold(module: nn.Module, example: Tensor, *, name: str = "", constants: bool = False) -> nn.Module:
    """A copy of `module` in eval mode, without batch norm, that computes the same function.

    `example` (B, ...) is an input; the copy is checked on it and on normal noise of its shape. `name` is how
    errors call the network. Where a batch norm was there is now an `nn.Identity` or a `FrozenAffine`; every
    other module, name and dtype stays, so the copy's state fits the class written without batch norm; a batch
    norm of a subclass with a forward of its own stays, with neutral statistics. A network without batch norm is
    only copied, neither traced nor run. With `constants`, floating-point buffers may remain: the architecture is
    known to make the same ones for every network.

    Raises `NetspaceError`, naming the parameter or submodule, for values that are not finite, parameters that
    are tied, floating-point buffers that would remain, batch norm without running statistics or called as a
    function, a forward that `torch.fx` cannot trace or that fails on `example`, and a copy that computes
    something else.

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
    """Folds the state of one member or of M stacked members of one architecture, having traced it once.

    `module` is any network of the architecture, `example` (B, ...) an input of it. The plan is checked as in
    `fold`, on a copy whose batch norms have random statistics: those of a fresh network would hide a mistake.
    `plan` is the tuple of `Absorption`s, `shapes` the parameters that remain, in order. Raises as `fold`.

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
        # counters, constants: may be given, are not needed
        self._ignored = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        statistics = {f"{norm}.running_{each}" for norm in batch_norms(module) for each in ("mean", "var")}
        needed = statistics | dict(module.named_parameters()).keys()
        self._needed = {key: tuple(value.shape) for key, value in values(module).items() if key in needed}

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The folded parameters, each (...,) + its entry of `shapes`, in that order.

        `state` is a state dict with batch norm, every value (...,) + its shape in the network; counters
        (`num_batches_tracked`) may be missing. The result keeps the dtypes and shares the memory of values
        that did not change. Raises `UsageError` for a name or shape that does not fit, `NetspaceError` for a
        value that is not finite, naming the first member that has it.
        """
        for key in state:
            if key not in self._needed and key not in self._ignored:
                raise unknown(f"parameter of {self.label}", key, self._needed)
        if missing := [key for key in self._needed if key not in state]:
            raise UsageError(
                f"the state to fold lacks {listed(missing)} of {self.label}: give all it was trained with."
            )
        given = {key: state[key] for key in self._needed}
        # (M,) if the first value has an axis more than in the network, else (); the others must agree
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
    """`module` in float64 and eval mode, and its inputs to try: `example`, and normal noise of that shape."""
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
    """Gives every batch norm values in [0.5, 1.5): as variances or factors none explodes or vanishes."""
    generator = torch.Generator().manual_seed(0)
    for norm in batch_norms(module).values():
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if value is not None:
                drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
                value.data.copy_(drawn)
