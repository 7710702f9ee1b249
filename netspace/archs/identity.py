"""Checks of an architecture: a network is its parameters and nothing else, and its outputs fit a task.

A zoo stores parameters, with batch norm folded. Two fresh networks with the same parameters and the same statistics of
batch norm must therefore compute the same function. They do not if a constant is drawn at construction, if training
changes a buffer that is not batch norm's, or if the forward pass draws noise. The checks run when an architecture is
first used, not when checked networks are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

import torch
from torch import Tensor, nn

from netspace.errors import NetspaceError
from netspace.networks.graph import batch_norms, in_float64, listed, reason, run

TOLERANCE = 1e-9  # largest difference of outputs in float64, as a fraction of the largest output
TOLERANCE_FLOAT32 = 1e-4  # for a network that does not run in float64
INPUTS = 4  # number of inputs, which are normal noise


def check_identity(name: str, make: Callable[[], nn.Module], input_shape: tuple[int, ...]) -> None:
    """Refuse an architecture that is more than its parameters and the statistics of its batch norm.

    `make` returns a fresh network, `input_shape` is that of one input. torch's random state stays as it was. Raises
    `NetspaceError`, which names what differs between two fresh networks if that can be found out.
    """
    with torch.random.fork_rng(devices=()):
        first, second = (_seeded(make, seed) for seed in (1, 2))
        shapes = [[(key, value.shape) for key, value in each.named_parameters()] for each in (first, second)]
        if shapes[0] != shapes[1]:
            raise NetspaceError(f"{name} has other parameters each time it is built: fix what decides their shapes")
        inputs = torch.randn(INPUTS, *input_shape)
        with torch.no_grad():
            for value in first.parameters():
                if value.is_floating_point():
                    value.add_(0.05 * torch.randn_like(value))  # what starts at zero would hide what it multiplies
            with suppress(Exception):  # a network that cannot be trained here may be imported
                first.train()(inputs)
        statistics = [f"{norm}.running_{each}" for norm in batch_norms(first) for each in ("mean", "var")]
        given = {**dict(first.named_parameters()), **{key: first.state_dict()[key] for key in statistics}}
        second.load_state_dict({**second.state_dict(), **given})
        outputs = [_outputs(each, inputs, name) for each in (first, second)]
    if not _agree(*outputs):
        differing = drawn_constants(first, second, statistics)
        cause = f" ({listed(differing)})" if differing else ""
        raise NetspaceError(
            f"two networks of {name} with the same parameters give different outputs, so its parameters are not all that "
            f"decides{cause}: make a parameter of what else is drawn or learnt, or fix it; a network draws nothing in evaluation"
        )


def check_outputs(
    name: str,
    make: Callable[[], nn.Module],
    inputs: Tensor,
    outputs: tuple[int, ...],
    *,
    trained: bool,
    nouns: tuple[str, str] = ("images", "classes"),
) -> None:
    """Refuse an architecture that does not map inputs (B, ...) to (B, *`outputs`); `nouns` name both in messages.

    With `trained` the forward pass of training is checked as well.

    Raises:
        NetspaceError: the forward pass fails, or does not give one tensor of that shape.
    """
    kind = "logits" if nouns[1] == "classes" else nouns[1]
    sizes = ", ".join(map(str, outputs))
    shape = sizes if len(outputs) == 1 else f"({sizes})"
    with torch.random.fork_rng(devices=()):
        module = make()
        for mode in (False, True) if trained else (False,):
            words = "in training" if mode else "in evaluation"
            try:
                with torch.no_grad():
                    output = module.train(mode)(inputs)
            except Exception as error:  # whatever the forward pass raises
                raise NetspaceError(
                    f"{name} does not run {words} on {nouns[0]} of {tuple(inputs.shape[1:])}: {reason(error)}."
                ) from error
            if not isinstance(output, Tensor):
                count = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
                raise NetspaceError(
                    f"{name} gives a {type(output).__name__}{count} {words}, where one tensor of {kind} (B, {sizes}) is "
                    f"needed: wrap it so that it gives its {kind} alone"
                )
            if tuple(output.shape) != (len(inputs), *outputs):
                raise NetspaceError(
                    f"{name} gives outputs of {tuple(output.shape[1:])} {words}, but the task has {shape} {nouns[1]}: set its "
                    f"number of {nouns[1]} to fit, or choose the data it was trained on"
                )


def drawn_constants(first: nn.Module, second: nn.Module, excluded: Collection[str] = ()) -> list[str]:
    """Return the names of buffers, and of tensors as plain attributes, in which two networks of one kind differ."""
    left, right = (_constants(each) for each in (first, second))
    return [
        name
        for name, value in left.items()
        if name not in excluded and not (name in right and torch.equal(value, right[name]))
    ]


def _constants(module: nn.Module) -> dict[str, Tensor]:
    constants = {name: value for name, value in module.named_buffers() if not name.endswith("num_batches_tracked")}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is None:  # else it is computed from parameters
                constants[f"{path}.{name}" if path else name] = value
    return constants


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def _outputs(module: nn.Module, inputs: Tensor, name: str) -> list[Tensor]:
    """Run a network in float64 if it can, else in float32."""
    try:
        return run(in_float64(module), inputs.double(), name)
    except NetspaceError:
        return run(module.eval(), inputs, name)


def _agree(first: list[Tensor], second: list[Tensor]) -> bool:
    def close(one: Tensor, other: Tensor) -> bool:
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        bound = TOLERANCE if one.dtype == torch.float64 else TOLERANCE_FLOAT32
        scale = float(one.abs().max()) if one.numel() else 0.0
        return torch.allclose(one, other, rtol=0.0, atol=bound * scale, equal_nan=True)

    return len(first) == len(second) and all(map(close, first, second))
