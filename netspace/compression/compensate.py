"""Rounding of a network layer by layer, in which each layer makes up for the errors before it and its columns for each other's.

Layers are rounded in the order in which they run. Each is first fitted to the original's outputs by least squares, from the inputs
that it gets in the network rounded so far; then its columns are rounded one after another, and the error of each is made up for in
the others (Frantar et al. 2022, 'GPTQ'). No labels are needed. Axes: B inputs, G groups of a layer, N patches, C columns of a group's weight, R rows of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netspace.networks.kernels import further_names
from netspace.networks.rounding import Codes, as_rows, round_compensated, round_step

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MAX_INPUTS = 1024
MAX_BYTES = 1 << 30  # of the inputs of all layers of the original, which are in memory
MAX_COLUMNS = 4608  # of a layer; the matrix of all pairs of them is inverted
MAX_PATCHES = 1 << 15  # of a layer, of which sums are taken
MIN_INPUTS = 16  # of which patches are taken at least, fewer of each where they are many
CHUNK_VALUES = 1 << 25  # of patches, that are in memory at once
MIN_VARIANCE = 1e-5  # of the mean square of a layer's inputs; smaller ones are rounding noise of float32
DAMPING = 0.03  # of the mean square of a layer's inputs, that is added to each


@dataclass
class Compensation:
    """A network and the inputs by which it is rounded; what does not depend on the steps is found once."""

    module: nn.Module  # whose state is the original's, in eval mode
    state: Mapping[str, Tensor]
    inputs: Tensor  # (B, ...)
    seen: dict[str, Tensor] = field(default_factory=dict)  # of each layer that can make up for errors, what it gets

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Compensation:
        """Return a network in eval mode with a state and as many of the inputs (B, ...) as memory is taken for.

        A layer counts if it is a linear layer or a convolution of 1 or 2 axes that runs once, and if no other has its weights.
        """
        module = copy.deepcopy(module).to(inputs.device).eval()
        module.load_state_dict(state, strict=False)
        first, _ = _recorded(module, state, inputs[:1])
        size = sum(4 * each.numel() for each in first.values())
        count = max(1, min(len(inputs), MAX_INPUTS, MAX_BYTES // max(1, size)))
        seen, calls = _recorded(module, state, inputs[:count])
        return cls(module, state, inputs[:count], {name: seen[name] for name in seen if calls[name] == 1})

    @torch.no_grad()
    def rounded(
        self, weights: Mapping[str, Tensor], steps: Mapping[str, float]
    ) -> tuple[dict[str, Codes], dict[str, Tensor]]:
        """Return codes of weights by their steps, and the biases that go with them, by name.

        Weights of layers that cannot make up for errors are rounded to the nearest multiple; so are those of layers that get other
        numbers of inputs, or none, once the network is rounded (experts).
        """
        codes = {name: round_step(value, steps[name]) for name, value in weights.items()}
        nearest = {name: each.restore(weights[name].shape) for name, each in codes.items()}
        module = copy.deepcopy(self.module)
        module.load_state_dict({**self.state, **nearest}, strict=False)
        biases: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for path, part in module.named_modules():
                if (name := f"{path}.weight") not in self.seen or name not in weights:
                    continue

                def fit(part: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                    if inputs[0].shape != self.seen[name].shape:
                        return
                    codes[name], bias = self._fitted(part, name, weights[name], steps[name], inputs[0])
                    assert isinstance(part.weight, Tensor)
                    part.weight.copy_(codes[name].restore(part.weight.shape))
                    if bias is not None:
                        assert isinstance(part.bias, Tensor)
                        part.bias.copy_(bias)
                        biases[f"{name.removesuffix('weight')}bias"] = bias.cpu().clone()

                hooks.callback(part.register_forward_pre_hook(fit).remove)
            module(self.inputs)
        return codes, biases

    def with_biases(self, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the original's state with other biases, in the types that it has; tied tensors stay so."""
        return {name: biases[name].to(value.dtype) if name in biases else value for name, value in self.state.items()}

    def _fitted(
        self, part: nn.Module, name: str, weight: Tensor, step: float, inputs: Tensor
    ) -> tuple[Codes, Tensor | None]:
        """Return the codes of a layer that gets `inputs` (B, ...) where the original gets others, and its bias if it has one."""
        groups = int(getattr(part, "groups", 1))
        sums = _Sums.of(part, inputs, self.seen[name])
        rows = as_rows(weight).double().view(groups, -1, sums.squares.shape[-1])
        bias = part.bias if isinstance(part.bias, Tensor) else None
        squares, products = sums.squares, sums.products
        if bias is not None:  # which takes the means
            squares = squares - sums.mean[:, :, None] * sums.mean[:, None]
            products = products - sums.original_mean[:, :, None] * sums.mean[:, None]
        codes = round_step(weight, step)
        scale = squares.diagonal(dim1=1, dim2=2).mean(1)
        least = MIN_VARIANCE * sums.squares.diagonal(dim1=1, dim2=2).mean(1)
        if bool((scale > least).all()) and math.isfinite(float(squares.sum() + products.sum())):
            damped = squares + torch.diag_embed(DAMPING * scale[:, None].expand(-1, squares.shape[-1]))
            shift = rows @ (products - squares)  # of least squares, from the original's weights
            target = rows + torch.linalg.solve(damped, shift.mT).mT
            codes = round_compensated(target, damped, step)
        if bias is None:
            return codes, None
        rounded = codes.restore(rows.shape).double()
        error = rows @ sums.original_mean[:, :, None] - rounded @ sums.mean[:, :, None]
        return codes, bias + error.flatten().to(bias)


@dataclass(frozen=True)
class _Sums:
    """Means over patches of what a layer gets in the rounded network (x) and in the original (y), float64 on the CPU."""

    squares: Tensor  # of x x^T, (G, C, C)
    products: Tensor  # of y x^T, (G, C, C)
    mean: Tensor  # of x, (G, C)
    original_mean: Tensor  # of y, (G, C)

    @classmethod
    def of(cls, part: nn.Module, inputs: Tensor, originals: Tensor) -> _Sums:
        """Return the sums of a layer for inputs of both networks, (B, ...)."""
        count, sums = 0, list[Tensor]()
        groups, positions, columns = _patches(part, inputs[:1]).shape
        wanted = min(len(inputs) // MIN_INPUTS, len(inputs) * positions // MAX_PATCHES)
        few = slice(None, None, max(1, wanted))
        inputs, originals = inputs[few], originals[few]
        every = slice(None, None, max(1, len(inputs) * positions // MAX_PATCHES))
        chunk = max(1, CHUNK_VALUES // (groups * positions * columns))
        for one, two in zip(inputs.split(chunk), originals.split(chunk), strict=True):
            x, y = _patches(part, one)[:, every], _patches(part, two)[:, every]
            count += x.shape[1]
            found = [each.double().cpu() for each in (x.mT @ x, y.mT @ x, x.sum(1), y.sum(1))]
            sums = [before + each for before, each in zip(sums, found, strict=True)] if sums else found
        return cls(*(each / count for each in sums))


def _patches(part: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer multiplies with its weights, float32 (G, N, C), of inputs (B, ...)."""
    if isinstance(part, nn.Linear):
        return inputs.float().reshape(1, -1, inputs.shape[-1])
    assert isinstance(part, nn.Conv1d | nn.Conv2d)
    sides = [(1, *each)[-2:] for each in (part.kernel_size, part.dilation, part.stride)]
    assert not isinstance(part.padding, str)
    padding = (0, *part.padding)[-2:]
    maps = inputs if isinstance(part, nn.Conv2d) else inputs.unsqueeze(2)
    patches = F.unfold(maps.float(), sides[0], sides[1], padding, sides[2])  # (B, C of all groups, positions)
    return patches.view(len(maps), part.groups, -1, patches.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)


def _recorded(
    module: nn.Module, state: Mapping[str, Tensor], inputs: Tensor
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return what layers that can make up for errors get, by the names of their weights, and how often they run."""
    tied = further_names(state)
    shared = {*tied, *tied.values()}
    seen, calls = dict[str, Tensor](), dict[str, int]()
    with ExitStack() as hooks:
        for path, part in module.named_modules():
            name = f"{path}.weight"
            if name not in state or name in shared or not _is_plain(part):
                continue

            def record(part: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                if len(inputs) != 1 or not _in_batch(part, inputs[0]):
                    calls[name] = 2  # what it gets cannot be told
                    return
                calls[name] = calls.get(name, 0) + 1
                seen[name] = inputs[0].clone()

            hooks.callback(part.register_forward_pre_hook(record).remove)
        module(inputs)
    return seen, calls


def _in_batch(part: nn.Module, inputs: Tensor) -> bool:
    """Return whether what a layer gets has an axis of inputs before those that it needs."""
    axes = inputs.dim() - (1 if isinstance(part, nn.Linear) else 2 if isinstance(part, nn.Conv1d) else 3)
    return axes > 0 and len(inputs) > 0 and inputs.is_floating_point()


def _is_plain(part: nn.Module) -> bool:
    """Return whether a layer multiplies patches of its inputs with its weights, few enough to be inverted, and does nothing else."""
    kind = next((kind for kind in LAYERS if isinstance(part, kind)), None)
    if kind is None or type(part).forward is not kind.forward or not isinstance(part.weight, Tensor):
        return False
    padded = getattr(part, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(part, "padding", 0), str)
    return padded and part.weight[0].numel() <= MAX_COLUMNS
