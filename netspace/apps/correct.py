"""`netspace compress correct`: what lies beside the predictor, made up for the errors of what it gives back.

Axes: B images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.apps.likeness import logits_of
from netspace.apps.originals import Pictures, check_new, check_same, find_original
from netspace.archs import ArchConfig
from netspace.compressed import Compressed
from netspace.data.pictures import shown
from netspace.errors import UsageError
from netspace.runtime import generator
from netspace.training.correcting import corrected
from netspace.training.nern import Original

SHOWN = 128  # inputs at most, at once: what a layer gives for them is in memory


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
) -> dict[str, Any]:
    """Writes the file with batch norms and biases corrected (`training.correcting`); its size stays.

    Both networks are shown the pictures, or noise U[-1, 1] of `input_shape`, or training images of the zoo's task. Raises
    `UsageError` where the network cannot be run or shown anything, and where nothing can be corrected.
    """
    check_new(out)
    if pictures is not None and input_shape is not None:
        raise UsageError("--images and --input-shape both say what is shown: give one of them")
    files = [] if pictures is None else pictures.files()
    compressed = Compressed.load(path)
    state = compressed.reconstruct()
    original, _ = find_original(model, zoo_path, arch=arch, key=key)
    check_same(path, state, model, original)
    if original.module is None:
        raise UsageError(f"correcting runs the network, and of {model} only the weights are known: give --arch")
    if pictures is not None:
        chosen = torch.randperm(len(files), generator=generator(seed, 71))[:SHOWN].sort().values.tolist()
        inputs, kind = (
            torch.cat(list(shown([files[place] for place in chosen], pictures.size, by=pictures.by))),
            "images",
        )
    else:
        inputs, kind = _inputs(original, input_shape, model, seed)
    with torch.no_grad():
        logits_of(original.module, inputs[:1], model)  # a sentence for what does not fit
    names = [layer.name for layer in compressed.kernels.layers]
    better = corrected(original.module, original.state, state, names, inputs)
    better = {name: value.to(state[name].dtype) for name, value in better.items()}
    changed = [name for name in compressed.rest if not torch.equal(better[name], state[name])]
    if not changed:
        raise UsageError(
            f"{model} has neither batch norm nor biases behind what is represented: there is nothing to correct"
        )
    compressed.rest = {name: better[name] for name in compressed.rest}
    compressed.save(out)
    by = {} if pictures is None else pictures.by.figures()
    return {"file": str(path), "out": str(out), "shown": kind, "count": len(inputs), **by, "corrected": changed}


def _inputs(original: Original, input_shape: tuple[int, ...] | None, model: str, seed: int) -> tuple[Tensor, str]:
    """Noise of a shape, or images (B, C, H, W) that the network was trained on, and what they are called."""
    if input_shape is not None:
        return 2 * torch.rand((SHOWN, *input_shape), generator=generator(seed, 73)) - 1, "noise"
    task = original.task
    if task is None:
        raise UsageError(
            f"nothing is at hand to show to {model}: give --images, or --input-shape for noise, or the --zoo of its task"
        )
    chosen = torch.randperm(len(task.train), generator=generator(seed, 71))[:SHOWN]
    return task.normalise(task.train.take(chosen).images), "task"
