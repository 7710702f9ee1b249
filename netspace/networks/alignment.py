"""Alignment of networks: weight matching (Git Re-Basin, Ainsworth et al. 2023, Algorithm 1); statistics of averages.

Group by group (`channels.py`), channels are permuted so that a network's parameters are nearest to a reference.

Axes: M members (networks), S averages, P parameters, C channels, K values of a channel in one parameter, B inputs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError
from netspace.networks.batch import run_one
from netspace.networks.channels import ChannelGroup, Use, channel_values, permute
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec

MAX_SWEEPS = 100  # over all groups; after a few nothing changes any more
TINY = 1e-6  # standard deviation below which a channel is constant
TOLERANCE = 1e-9  # largest difference of outputs in float64, as a fraction of the largest output


def _similarity(
    uses: Sequence[Use], size: int, reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Return inner products (M, C, C) of channels of the reference and of each network, over the `uses`."""
    total: Tensor | None = None
    for use in uses:
        rows = [channel_values(each, use, size) for each in (reference[use.name][None], tensors[use.name])]  # (., C, K)
        product = rows[0] @ rows[1].mT
        total = product if total is None else total + product
    assert total is not None
    return total


def align(
    reference: Float[Tensor, " P"], flat: Float[Tensor, "M P"], spec: NetSpec, groups: Sequence[ChannelGroup]
) -> Float[Tensor, "M P"]:
    """Return the networks with their channels permuted so that they are near the reference.

    The functions of the networks stay as they are, and no network ends farther from the reference than it was. Weight
    matching ends in a local optimum, so each network is matched from two starts and the nearer result is taken: from
    its own order, and from one in which every group is matched by the layers before it.
    """
    outcomes = [_matched(reference, flat, spec, groups, from_inputs) for from_inputs in (False, True)]
    own, forward = ((outcome - reference).square().sum(1) for outcome in outcomes)
    return torch.where((forward < own)[:, None], outcomes[1], outcomes[0])


def _matched(
    reference: Tensor, flat: Tensor, spec: NetSpec, groups: Sequence[ChannelGroup], from_inputs: bool
) -> Tensor:
    """Return the networks (M, P) after sweeps over the groups until none changes."""
    target = {name: value.double() for name, value in unflatten(reference, spec).items()}
    moving = {name: value.to(torch.float64, copy=True) for name, value in unflatten(flat, spec).items()}
    least = 1e-9 * float(reference.double().square().sum())  # smallest gain that counts
    if from_inputs:
        for group, uses in zip(groups, _uses_before(groups), strict=True):
            orders = _orders(_similarity(uses, group.size, target, moving))
            moving.update(permute(moving, group, orders))
    active = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    for _ in range(MAX_SWEEPS):
        changed = torch.zeros_like(active)
        for group in groups:
            rows = active.nonzero()[:, 0]
            own = {use.name: moving[use.name][rows] for use in group.uses}
            moved = permute(own, group, _orders(_similarity(group.uses, group.size, target, own)))
            gain = torch.stack(
                [((moved[name] - value) * target[name]).flatten(1).sum(1) for name, value in own.items()]
            )
            better = gain.sum(0) > least  # not certain for a group that uses two axes of one parameter
            for name, value in moved.items():
                moving[name][rows[better]] = value[better]
            changed[rows[better]] = True
        active = changed
        if not bool(active.any()):
            break
    return torch.cat([moving[name].reshape(len(flat), -1) for name in spec.names], 1).to(flat.dtype)


def _uses_before(groups: Sequence[ChannelGroup]) -> list[list[Use]]:
    """Return each group's uses in parameters whose other groups come before it; all its uses if there are none."""
    before: list[list[Use]] = []
    done: set[int] = set()
    members: dict[str, set[int]] = defaultdict(set)
    for number, group in enumerate(groups):
        for use in group.uses:
            members[use.name].add(number)
    for number, group in enumerate(groups):
        settled = [use for use in group.uses if members[use.name] - {number} <= done]
        before.append(settled or list(group.uses))
        done.add(number)
    return before


def _orders(similarity: Tensor) -> Tensor:
    """Return the permutations (M, C) with the largest sum of similarities (M, C, C)."""
    from scipy.optimize import linear_sum_assignment  # here, as it takes a third of a second and few commands need it

    orders = [linear_sum_assignment(each, maximize=True)[1] for each in similarity.cpu().numpy()]
    return torch.as_tensor(np.array(orders).reshape(similarity.shape[:2]), device=similarity.device)


def check_same_function(
    skeleton: nn.Module, spec: NetSpec, before: Float[Tensor, "M P"], after: Float[Tensor, "M P"], inputs: Tensor
) -> None:
    """Raise `NetspaceError` unless networks have the same outputs for inputs (B, ...) before and after, in float64."""
    exact = copy.deepcopy(skeleton).double()
    for one, other in zip(before, after, strict=True):
        outputs, others = (run_one(exact, spec, each.double(), inputs.double()) for each in (one, other))
        check_same_outputs([outputs], [others], f"aligned networks of {spec.arch!r} answer")


def check_same_outputs(before: Sequence[Tensor], after: Sequence[Tensor], subject: str) -> None:
    """Raise `NetspaceError`, whose first words are the `subject`, unless outputs in float64 are the same before and after."""
    for outputs, others in zip(before, after, strict=True):
        largest = float(outputs.abs().max().clamp_min(1e-12))
        difference = float((outputs - others).abs().max())
        if not difference <= TOLERANCE * largest:
            raise NetspaceError(
                f"{subject} otherwise than before (largest difference {difference:.1e} of {largest:.1e}): their graph does "
                "something with channels that netspace does not see; they are left as they were"
            )


def reset_statistics(
    skeleton: nn.Module,
    spec: NetSpec,
    groups: Sequence[ChannelGroup],
    averages: Float[Tensor, "S P"],
    sources: Float[Tensor, "M P"],
    weights: Float[Tensor, "S M"],
    inputs: Tensor,
) -> Float[Tensor, "S P"]:
    """Return averages of networks with the mean and spread of hidden channels that an average should have on `inputs`.

    Averaged weights give outputs of less spread than those of either network (REPAIR, Jordan et al. 2022). Every hidden
    layer's channels are scaled and shifted, from the first layer on, to the means and standard deviations of the
    `sources`, averaged with `weights`. Networks are folded, so this is what resetting batch norm's statistics does to
    others.
    """
    hidden = {use.name.removesuffix(".weight") for group in groups for use in group.uses if use.axis == 0}
    module = copy.deepcopy(skeleton).eval()
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if name in hidden and isinstance(layer, (_ConvNd, nn.Linear))
    }
    of_sources: dict[str, tuple[Tensor, Tensor]] = {}  # means and standard deviations (M, C) of a layer's channels
    offsets = {
        name: slice(start, start + size) for name, start, size in zip(spec.names, spec.offsets, spec.sizes, strict=True)
    }

    def moments(output: Tensor) -> tuple[Tensor, Tensor]:
        values = output.movedim(1, 0).flatten(1)
        return values.mean(1), values.std(1)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.setdefault(name, moments(output))

        return hook

    def reset(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            mean, spread = moments(output)
            target_mean, target_spread = (weight @ each for each in of_sources[name])
            scale = torch.where(spread > TINY, target_spread / spread.clamp_min(TINY), torch.ones_like(spread))
            shape = (1, -1, *(1 for _ in output.shape[2:]))
            part = result[offsets[f"{name}.weight"]].view(len(scale), -1)
            part *= scale[:, None]
            bias = result[offsets[f"{name}.bias"]]
            bias.copy_((bias - mean) * scale + target_mean)
            return (output - mean.view(shape)) * scale.view(shape) + target_mean.view(shape)

        return hook

    usable = [name for name in layers if f"{name}.weight" in offsets and f"{name}.bias" in offsets]
    with torch.no_grad():
        records = []
        handles = [layers[name].register_forward_hook(watch(name)) for name in usable]
        for flat in sources:
            seen: dict[str, tuple[Tensor, Tensor]] = {}
            run_one(module, spec, flat, inputs)
            records.append(seen)
        for handle in handles:
            handle.remove()
        of_sources = {
            name: (torch.stack([each[name][0] for each in records]), torch.stack([each[name][1] for each in records]))
            for name in usable
        }
        for name in usable:
            layers[name].register_forward_hook(reset(name))
        results = []
        for flat, weight in zip(averages, weights, strict=True):  # noqa: B007 - the hooks read `weight`
            result = flat.clone()
            run_one(module, spec, flat, inputs)
            results.append(result)
    return torch.stack(results)
