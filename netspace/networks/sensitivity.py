"""How much the outputs of a network move with each of its weights.

The sensitivity of a weight is the mean over inputs of the sum over outputs of (d output / d weight) ** 2. Small independent errors of
the weights change the outputs, squared and summed, by the sum of sensitivity * error ** 2. Axes: B inputs, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netspace.errors import UsageError
from netspace.networks.state_dict import map_tensors, run_types
from netspace.streams import Stream, generator

DRAWS = 8  # of random signs
BATCH = 64  # inputs of one backward pass
POWER = 0.5  # of sensitivities in steps; by measurement, of 0 (relative errors) to 1
SMALLEST = 1e-9  # sensitivity of a layer, in units of the largest
Of = Literal["outputs", "probabilities"]


def sensitivities(
    module: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Tensor,
    of: Of = "outputs",
    draws: int = DRAWS,
    seed: int = 0,
    read: Callable[[object], object] = lambda outputs: outputs,
) -> dict[str, Tensor]:
    """Return the sensitivity of each weight of a module with a state dict, by name and in the shape of its tensor.

    They are estimated from `draws` backward passes over the inputs (B, ...). The square of the derivative of the sum of all
    outputs with random signs has the sensitivity as its mean, since products of different outputs or inputs cancel
    (Hutchinson, 1989). Of several output tensors (a tuple, a dictionary) all count.

    Args:
        of: 'outputs', or 'probabilities' of logits (B, C): the change is then twice the Kullback-Leibler divergence, and the
            sensitivities the diagonal of the Fisher matrix.
        read: takes from what the module gives the outputs that count.

    Raises:
        UsageError: the module's outputs do not depend on its weights in a differentiable way, or are no logits.
    """
    typed = map_tensors(run_types(state, module), Tensor.detach)
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}  # statistics are not differentiable
    weights = {id(value): value for name, value in typed.items() if value.is_floating_point() and name not in buffers}
    totals = {key: torch.zeros_like(value, dtype=torch.float32) for key, value in weights.items()}
    random = generator(seed, Stream.SENSITIVITY)
    training = module.training
    module.eval()
    try:
        for value in weights.values():
            value.requires_grad_()
        for _ in range(draws):
            for batch in inputs.split(BATCH):
                projection = _projection(read(functional_call(module, typed, (batch,))), of, random)
                gradients = torch.autograd.grad(projection, list(weights.values()), allow_unused=True)
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.float().square()
    finally:
        module.train(training)
    if not any(bool(total.any()) for total in totals.values()):
        raise UsageError(
            f"sensitivities were asked for, but no output of {type(module).__name__} moves with a weight: give other inputs"
        )
    scale = 1 / (draws * max(1, len(inputs)))
    return {name: totals[id(value)] * scale for name, value in typed.items() if id(value) in totals}


def relative_steps(
    state: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor], power: float = POWER
) -> dict[str, float]:
    """Return the step of each floating-point tensor up to a common factor: (S ** power / V ** (1 - power)) ** -0.5.

    S is the tensor's mean sensitivity and V the mean square of its weights. With `power` 1 small errors of all weights move
    the outputs alike (reverse water-filling); with 0 all tensors have the same relative error.

    Raises `UsageError` if no tensor has a positive, finite sensitivity.
    """
    named = {
        name: value.detach().double()
        for name, value in state.items()
        if value.is_floating_point() and value.numel() and name in sensitivities
    }
    means = {name: float(sensitivities[name].double().mean()) for name in named}
    largest = max(means.values(), default=0.0)
    if not (largest > 0 and math.isfinite(largest)):
        raise UsageError("steps were asked for, but no tensor has a positive, finite sensitivity: give other inputs")
    steps = {}
    for name, value in named.items():
        square = float(value.square().mean()) or 1.0
        steps[name] = (max(means[name], SMALLEST * largest) ** power / square ** (1 - power)) ** -0.5
    return steps


def _projection(outputs: object, of: Of, random: torch.Generator) -> Tensor:
    """Return the sum of all outputs with random signs, weighted for probabilities by what they move. Raises `UsageError`."""
    if of == "probabilities":
        if isinstance(outputs, list) and len(outputs) == 1:
            (outputs,) = outputs
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise UsageError("sensitivities of probabilities were asked for, but the network gives no logits (B, C)")
        chances = outputs.detach().float().softmax(dim=1)
        signs = chances.sqrt() * _signs(chances, random)
        return (outputs * (signs - chances * signs.sum(dim=1, keepdim=True)).to(outputs.dtype)).sum()
    tensors = list(_differentiable(outputs))
    if not tensors:
        raise UsageError(
            "sensitivities were asked for, but no output of the network can be differentiated by its weights"
        )
    return torch.stack([(each * _signs(each, random)).sum() for each in tensors]).sum()


def _signs(like: Tensor, random: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=random) * 2 - 1
    return drawn.to(like.device, like.dtype)


def _differentiable(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, Mapping):
        for each in outputs.values():
            yield from _differentiable(each)
    elif isinstance(outputs, list | tuple):
        for each in outputs:
            yield from _differentiable(each)
