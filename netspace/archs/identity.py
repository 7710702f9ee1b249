"""Is a network of an architecture its parameters and nothing else? Are its outputs the logits of a task?

Contract. A zoo keeps parameters, with batch norm folded. Two fresh networks that are given the same parameters and the
same statistics of batch norm must therefore compute the same function. They do not where a constant is drawn at
construction, where training changes a buffer that is no batch norm's, or where the forward pass draws noise. The check
belongs where an architecture is made concrete for the first time, not where what was checked then is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from netspace.errors import NetspaceError
from netspace.networks.graph import batch_norms, in_float64, listed, reason, run

TOLERANCE = 1e-9  # largest difference of outputs in float64, as a fraction of the largest output
TOLERANCE_FLOAT32 = 1e-4  # where a network does not run in float64
INPUTS = 4  # of normal noise


def check_identity(name: str, make: Callable[[], nn.Module], input_shape: tuple[int, ...]) -> None:
    """Refuses an architecture that is more than its parameters and the statistics of its batch norm.

    `make` gives a fresh network, `input_shape` is that of one input. torch's random state stays as it was. Raises
    `NetspaceError` naming what differs between two fresh networks, where that can be seen.
    """
    with torch.random.fork_rng(devices=()):
        first, second = _two(make)
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
        expected, found = (_outputs(each, inputs, name) for each in (first, second))
    if not _agree(expected, found):
        differing = drawn_constants(first, second, set(statistics))
        cause = f" ({listed(differing)})" if differing else ""
        raise NetspaceError(
            f"two networks of {name} with the same parameters give different outputs, so its parameters are not all that "
            f"decides{cause}: make a parameter of what is drawn or learnt beside them, or fix it; a network draws nothing in "
            "evaluation"
        )


def check_outputs(
    name: str,
    make: Callable[[], nn.Module],
    inputs: Tensor,
    outputs: int,
    *,
    trained: bool,
    nouns: tuple[str, str] = ("images", "classes"),
) -> None:
    """Refuse an architecture that does not map inputs (B, ...) to (B, `outputs`); `nouns` name both in messages.

    `trained` says that networks will be trained, so that the forward pass of training has to as well.

    Raises:
        NetspaceError: the forward pass fails, or does not give one tensor of that shape.
    """
    kind = "logits" if nouns[1] == "classes" else nouns[1]
    with torch.random.fork_rng(devices=()):
        module = make()
        for mode, words in (
            ((False, "in evaluation"), (True, "in training")) if trained else ((False, "in evaluation"),)
        ):
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
                    f"{name} gives a {type(output).__name__}{count} {words}, where one tensor of {kind} (B, {outputs}) is "
                    f"needed: wrap it so that it gives its {kind} alone"
                )
            if tuple(output.shape) != (len(inputs), outputs):
                raise NetspaceError(
                    f"{name} gives outputs of {tuple(output.shape[1:])} {words}, but the task has {outputs} {nouns[1]}: set its "
                    f"number of {nouns[1]} to fit, or choose the data it was trained on"
                )


def drawn_constants(first: nn.Module, second: nn.Module, besides: set[str] | None = None) -> list[str]:
    """The buffers, and the tensors that are plain attributes, in which two networks of an architecture differ.

    `besides` names buffers that are left out.
    """
    left, right = (_constants(each) for each in (first, second))
    return [
        name
        for name, value in left.items()
        if name not in (besides or ()) and not (name in right and torch.equal(value, right[name]))
    ]


def _constants(module: nn.Module) -> dict[str, Tensor]:
    found = {name: value for name, value in module.named_buffers() if not name.endswith("num_batches_tracked")}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is None:  # else it is computed from parameters
                found[f"{path}.{name}" if path else name] = value
    return found


def _two(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(make())
    return made[0], made[1]


def _outputs(module: nn.Module, inputs: Tensor, name: str) -> list[Tensor]:
    """In float64 where the network runs so, else in float32."""
    try:
        return run(in_float64(module), inputs.double(), name)
    except NetspaceError:
        return run(module.eval(), inputs, name)


def _agree(expected: list[Tensor], found: list[Tensor]) -> bool:
    def close(one: Tensor, other: Tensor) -> bool:
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        bound = TOLERANCE if one.dtype == torch.float64 else TOLERANCE_FLOAT32
        scale = float(one.abs().max()) if one.numel() else 0.0
        return torch.allclose(one, other, rtol=0.0, atol=bound * scale, equal_nan=True)

    return len(expected) == len(found) and all(map(close, expected, found))
