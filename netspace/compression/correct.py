"""`netspace compress correct`: batch norms and biases that make up for errors of the weights, by images or noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netspace.archs import ArchConfig
from netspace.compression.originals import Pictures, check_new, check_same, comparable, find_original, run_module
from netspace.errors import UsageError
from netspace.models.coded_predictor import AnyCompressed, load_any
from netspace.models.compressed import Compressed
from netspace.networks.kernels import layer_of
from netspace.networks.rounding import Codes
from netspace.results.compressed import Correction
from netspace.streams import Stream, generator
from netspace.tasks.readers import picture_batches
from netspace.training.fit import Original

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_RATIO = 4.0  # by which a variance is changed
MAX_INPUTS = 128  # at once: what a layer gives for them is in memory
Statistics = tuple[Tensor, Tensor]  # mean and variance (C,)


@torch.no_grad()
def corrected(
    module: nn.Module,
    original: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    layers: Sequence[str],
    inputs: Tensor,
) -> dict[str, Tensor]:
    """Return `state` with batch norms and the biases of `layers` (names of weights) corrected by inputs (B, ...).

    Layer by layer, inputs of batch norms and outputs of `layers` get the means, and batch norms the variances, that they have in
    the `original`. `module` runs both states in eval mode and is not changed. A layer that is called several times is not corrected,
    nor one of an unknown class whose bias could belong to several axes of its output.
    """
    first, second = (copy.deepcopy(module).to(inputs.device).eval() for _ in range(2))
    first.load_state_dict(original, strict=False)  # a zoo's member lacks the buffers that its architecture makes
    second.load_state_dict(state, strict=False)
    owners = {layer_of(name) for name in layers}
    targets: dict[str, list[Statistics]] = {}
    with ExitStack() as hooks:
        for name, part in first.named_modules():
            if isinstance(part, NORMS) and f"{name}.running_mean" in state:

                def note_input(_part: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    targets.setdefault(name, []).append(_statistics(inputs[0], 1))

                hooks.callback(part.register_forward_pre_hook(note_input).remove)
            elif name in owners and isinstance(getattr(part, "bias", None), Tensor):

                def note_output(part: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, Tensor) and (axis := _channel_axis(part, output)) is not None:
                        targets.setdefault(name, []).append(_statistics(output, axis))

                hooks.callback(part.register_forward_hook(note_output).remove)
        first(inputs)
    with ExitStack() as hooks:
        for name, part in second.named_modules():
            if len(targets.get(name, ())) != 1:
                continue
            (target,) = targets[name]
            if isinstance(part, NORMS):

                def correct_norm(part: nn.Module, inputs: tuple[Tensor, ...], target: Statistics = target) -> None:
                    assert isinstance(part.running_mean, Tensor) and isinstance(part.running_var, Tensor)
                    mean, variance = _statistics(inputs[0], 1)
                    little = 1e-6 * target[1].mean() + 1e-30  # a channel that does not vary says nothing of its spread
                    ratio = ((variance + little) / (target[1] + little)).clamp(1 / MAX_RATIO, MAX_RATIO)
                    part.running_mean.sub_(target[0]).mul_(ratio.sqrt()).add_(mean)
                    part.running_var *= ratio

                hooks.callback(part.register_forward_pre_hook(correct_norm).remove)
            else:

                def correct_bias(part: nn.Module, _inputs: Any, output: Tensor, target: Statistics = target) -> Tensor:
                    assert isinstance(part.bias, Tensor)
                    if (axis := _channel_axis(part, output)) is None:
                        return output
                    difference = target[0] - _statistics(output, axis)[0]
                    part.bias += difference
                    return output + difference.view(-1, *[1] * (output.dim() - 1 - axis))

                hooks.callback(part.register_forward_hook(correct_bias).remove)
        second(inputs)
    return {name: value.cpu().clone() for name, value in second.state_dict().items() if name in state}


def _channel_axis(part: nn.Module, output: Tensor) -> int | None:
    """Return the axis of a layer's output that its bias is added along; None if there is none, or it is not known which."""
    bias = part.bias
    if not isinstance(bias, Tensor) or bias.dim() != 1:
        return None
    if isinstance(part, nn.Linear):
        return output.dim() - 1
    if isinstance(part, _ConvNd):
        return output.dim() - 1 - len(part.kernel_size)
    axes = [axis for axis in range(1, output.dim()) if output.shape[axis] == len(bias)]
    return axes[0] if len(axes) == 1 else None


def _statistics(values: Tensor, axis: int) -> Statistics:
    """Return mean and variance (C,) over all but the `axis` of channels."""
    rows = values.movedim(axis, 0).flatten(1)
    return rows.mean(dim=1), rows.var(dim=1, correction=0)


def correct(
    path: Path,
    out: Path,
    model: str,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    key: str | None = None,
) -> Correction:
    """Write a compressed file with batch norms and biases corrected as `corrected` does.

    Both networks get the pictures, or noise U[-1, 1] of `input_shape`, or training images of the zoo's task. Coded files may grow:
    corrected values code less well than zeros and values that 16 bits hold.

    Raises:
        UsageError: only weights are known of `model`, there are no inputs for it, nothing can be corrected, or `out` exists.
        NetspaceError: `model` cannot be run on the inputs, or `path` is the file of another network.

    >>> result = correct(compressed, folder / "corrected.safetensors", "best", zoo)
    >>> (folder / "corrected.safetensors").is_file()
    True
    """
    check_new(out)
    if pictures is not None and input_shape is not None:
        raise UsageError("--images and --input-shape both say what is shown: give one of them")
    files = [] if pictures is None else pictures.files()
    compressed = load_any(path)
    state = compressed.reconstruct()
    original, _ = find_original(model, zoo_path, arch=arch, key=key)
    check_same(path, state, model, original)
    if original.module is None:
        raise UsageError(f"correcting runs the network, and of {model} only the weights are known: give --arch")
    if pictures is not None:
        order = torch.randperm(len(files), generator=generator(seed, Stream.CORRECTION_IMAGES))
        chosen = [files[index] for index in sorted(order[:MAX_INPUTS].tolist())]
        inputs, kind = torch.cat(list(picture_batches(chosen, pictures.size, by=pictures.by))), "images"
    else:
        inputs, kind = _inputs(original, input_shape, model, seed)
    run_module(original.module, inputs[:1], model)  # a sentence for what does not fit
    names = _represented(compressed)
    original.input_shape = original.input_shape or tuple(inputs.shape[1:])
    better = corrected(original.module, comparable(original, compressed, model), state, names, inputs)
    better = {name: value.to(state[name].dtype) for name, value in better.items()}
    rest = [name for name in state if name not in names]
    changed = [name for name in rest if not torch.equal(better[name], state[name])]
    if not changed:
        raise UsageError(
            f"{model} has neither batch norm nor biases behind what is represented: there is nothing to correct"
        )
    _with_rest(compressed, {name: better[name] for name in rest}).save(out)
    by = {} if pictures is None else pictures.by.figures()
    return Correction(
        file=str(path),
        out=str(out),
        shown=kind,
        count=len(inputs),
        **by,
        corrected=changed,
        bytes_before=path.stat().st_size,
        bytes_after=out.stat().st_size,
    )


def _represented(compressed: AnyCompressed) -> list[str]:
    """Return the names of the weights that a file represents by others, or as integers."""
    if isinstance(compressed, Compressed):
        return [*compressed.with_tied({layer.name: torch.empty(0) for layer in compressed.kernels.layers})]
    return [
        name
        for name in compressed.names
        if isinstance(compressed.entries[compressed.tied.get(name, name)].value, Codes)
    ]


def _with_rest(compressed: AnyCompressed, rest: Mapping[str, Tensor]) -> AnyCompressed:
    """Return the network of a file with other values of tensors that it holds as they are."""
    if isinstance(compressed, Compressed):
        return replace(compressed, rest={name: rest[name] for name in compressed.rest})
    entries = {
        name: replace(entry, value=rest[name]) if name in rest else entry for name, entry in compressed.entries.items()
    }
    return replace(compressed, entries=entries)


def _inputs(original: Original, input_shape: tuple[int, ...] | None, model: str, seed: int) -> tuple[Tensor, str]:
    """Return noise of a shape, or images (B, C, H, W) that the network was trained on, and the name of their kind."""
    if input_shape is not None:
        noise = torch.rand((MAX_INPUTS, *input_shape), generator=generator(seed, Stream.CORRECTION_NOISE))
        return 2 * noise - 1, "noise"
    task = original.task
    if task is None:
        raise UsageError(
            f"nothing is at hand to show to {model}: give --images, or --input-shape for noise, or the --zoo of its task"
        )
    chosen = torch.randperm(len(task.train), generator=generator(seed, Stream.CORRECTION_IMAGES))[:MAX_INPUTS]
    return task.normalise(task.train.take(chosen).images), "task"
