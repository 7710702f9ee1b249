"""`netspace compress analyse` and `importance`: how a compressed network differs from its original, by layers and by filters.

Axes: B images, D features of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from netspace.archs import ArchConfig
from netspace.compression.activations import activation_maps
from netspace.compression.originals import check_same, comparable, find_original, save_kernels
from netspace.metrics import accuracy, linear_cka
from netspace.models.coded_predictor import load_predictor
from netspace.models.compressed import Compressed
from netspace.networks.fresh import draw_fresh
from netspace.networks.kernels import Layer, filter_errors, layer_of
from netspace.networks.state_dict import map_tensors, module_logits, run_types
from netspace.results.compressed import (
    Alignment,
    Analysis,
    ByLayer,
    ChangedNetwork,
    FilterError,
    Gap,
    Generalisation,
    Importance,
)
from netspace.streams import Stream, generator
from netspace.tasks import Classification

SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5)  # of the frequencies that `low_pass` keeps
FACTORS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4, 0.0)  # of the smaller half of the singular values
MAX_TRAIN_IMAGES = 10_000  # of the generalisation gap
MAX_TEST_IMAGES = 512  # of which the layers' features are compared
MAP_SIDE = 4  # to which feature maps are averaged before
State = dict[str, Tensor]


def singular_ratio(weight: Tensor, leading: float = 0.5) -> float:
    """Return S_ratio, the sum of the largest singular values of a weight's matrix over the sum of all, at most 1.

    The weight (F, ...) is a matrix of F rows. Higher means smoother: less lies in the small singular values. NeRN's authors do
    not say how many values are `leading`; here it is a fraction of them, rounded up. NaN for a weight of zeros.
    """
    values = torch.linalg.svdvals(weight.double().flatten(1))
    total = float(values.sum())
    return float(values[: ceil(leading * len(values))].sum()) / total if total else float("nan")


def low_pass(weight: Tensor, keep: float) -> Tensor:
    """Return a weight (F, ...) without the high frequencies of its matrix, by the 2-D Fourier transform.

    Along both axes, frequencies up to `keep` times the highest are kept: 1 keeps all, 0 the mean alone.
    """
    matrix = weight.double().flatten(1)
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64).abs() <= keep / 2 for size in matrix.shape)
    kept = torch.fft.fft2(matrix) * (rows[:, None] & columns)
    return torch.fft.ifft2(kept).real.reshape(weight.shape).to(weight.dtype)


def scale_small(weight: Tensor, factor: float) -> Tensor:
    """Return a weight (F, ...) with the smaller half of the singular values of its matrix multiplied by `factor`."""
    return small_scaler(weight)(factor)


def small_scaler(weight: Tensor) -> Callable[[float], Tensor]:
    """Return `scale_small` of a weight (F, ...) as a function of the factor, with one decomposition for all factors."""
    left, values, right = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    leading = ceil(len(values) / 2)

    def scaled(factor: float) -> Tensor:
        changed = torch.cat([values[:leading], factor * values[leading:]])
        return ((left * changed) @ right).reshape(weight.shape).to(weight.dtype)

    return scaled


def analyse(
    path: Path,
    model: str,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    seed: int = 0,
    key: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Analysis:
    """Return the figures of `netspace compress analyse --json`; write analysis.json, kernels.json and activations.json next to it.

    If only the weights are known (no architecture or no data), there are singular values alone, and the rest is None. A file whose
    channels have an order of their own is compared with the original in that order, which needs the shape of an input.

    Raises:
        UsageError: `path` or `model` does not exist, or is not fully named; as `find_original`.
        NetspaceError: `path` is no compressed file, or that of another network than `model`.

    >>> result = analyse(compressed, "best", zoo)
    >>> (compressed.parent / "analysis.json").is_file()
    True
    """
    compressed = load_predictor(path)
    original, _ = find_original(model, zoo_path, arch=arch, key=key)
    state, layers = compressed.reconstruct(), compressed.kernels.layers
    check_same(path, state, model, original)
    original.input_shape = original.input_shape or input_shape
    expected = comparable(original, compressed, model)
    figures: dict[str, Any] = dict.fromkeys(("low_pass", "scale_small", "generalisation", "cka"))
    if original.module is not None and original.task is not None:
        module, task = original.module, original.task
        few = replace(task, train=task.train.take(_drawn(len(task.train), MAX_TRAIN_IMAGES, seed)))
        figures["low_pass"] = _changed(
            module, expected, task, compressed, lambda weight: partial(low_pass, weight), SHARES
        )
        figures["scale_small"] = _changed(module, expected, task, compressed, small_scaler, FACTORS)
        gaps = {key: generalisation(module, each, few) for key, each in _both(expected, state)}
        figures["generalisation"] = Generalisation(training_images=len(few.train), **gaps)
        images = task.test.images[_drawn(len(task.test), MAX_TEST_IMAGES, seed)]
        inputs = task.normalise(images)
        figures["cka"] = alignment(module, expected, state, inputs, layers, seed)
        maps = activation_maps(module, expected, state, inputs, layers)
        if maps is not None:
            maps.write(path.parent / "activations.json")
    save_kernels(path.parent, compressed.kernels, expected, state)
    ratios = ByLayer(**{key: _ratios(each, layers) for key, each in _both(expected, state)})
    names = [layer.name for layer in layers]
    result = Analysis(file=str(path), layers=names, singular_ratio=ratios, **figures)
    result.write(path.parent / "analysis.json")
    return result


def importance(
    path: Path,
    model: str,
    zoo_path: Path | None = None,
    top: int = 20,
    key: str | None = None,
    arch: ArchConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Importance:
    """Return filters by the relative error of their reconstruction, the smallest first (NeRN, Sec. 5, Fig. 5 right).

    A predictor too small for all of a network represents best what matters most to its loss. `top` filters are returned; 0: all.
    `arch` and `input_shape` are needed for a file whose channels have an order of their own, where nothing else says them.

    Raises:
        UsageError: as `find_original`.
        NetspaceError: `path` is no compressed file, or that of another network than `model`.

    >>> result = importance(compressed, "best", zoo, top=3)
    """
    compressed = load_predictor(path)
    original, _ = find_original(model, zoo_path, arch=arch, key=key)
    state, rows = compressed.reconstruct(), []
    check_same(path, state, model, original)
    original.input_shape = original.input_shape or input_shape
    expected = comparable(original, compressed, model)
    for layer in compressed.kernels.layers:
        errors = filter_errors(expected[layer.name], state[layer.name]).tolist()
        rows += [FilterError(layer=layer.name, filter=row, relative_error=error) for row, error in enumerate(errors)]
    filters = sorted(rows, key=lambda row: row.relative_error)
    return Importance(file=str(path), count=len(filters), filters=filters[:top] if top else filters)


def generalisation(module: nn.Module, state: State, task: Classification) -> Gap:
    """Return accuracy and cross-entropy (nats) on training and test images, and the gaps between them."""
    figures: dict[str, float] = {}
    for split in ("train", "test"):
        logits, labels = module_logits(module, state, task, split), task.split(split).labels
        figures[f"accuracy_{split}"] = float(accuracy(logits, labels))
        figures[f"loss_{split}"] = float(F.cross_entropy(logits.double(), labels))
    figures["gap_accuracy"] = figures["accuracy_train"] - figures["accuracy_test"]
    figures["gap_loss"] = abs(figures["loss_test"] - figures["loss_train"])  # as NeRN's authors define it
    return Gap(**figures)


def alignment(
    module: nn.Module, original: State, reconstructed: State, inputs: Tensor, layers: Sequence[Layer], seed: int = 0
) -> Alignment:
    """Return linear CKA by layer of the original's features with the reconstructed network's, and with those of random weights.

    `inputs` are (B, ...). None for a layer whose module was not called, NaN for one whose features do not vary.
    """
    reference = features(module, original, inputs, layers)
    cka: dict[str, list[float | None]] = {}
    for key, state in (("reconstructed", reconstructed), ("random", fresh(module, seed))):
        others = features(module, state, inputs, layers)
        cka[key] = [
            linear_cka(reference[layer.name], others[layer.name]) if layer.name in reference else None
            for layer in layers
        ]
    return Alignment(images=len(inputs), **cka)


@torch.no_grad()
def features(module: nn.Module, state: State, inputs: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the outputs (B, D) of layers by name; maps are averaged to at most `MAP_SIDE` x `MAP_SIDE` and flattened."""
    state = run_types(state, module)
    pieces: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for layer in layers:

            def keep(_module: nn.Module, _inputs: Any, output: Any, layer: Layer = layer) -> None:
                maps = output[0] if isinstance(output, tuple) else output  # attention gives its weights too
                pieces.setdefault(layer.name, []).append(_pooled(maps, layer))

            hooks.callback(module.get_submodule(layer_of(layer.name)).register_forward_hook(keep).remove)
        for batch in inputs.split(128):
            functional_call(module, state, (batch,))
    return {name: torch.cat(batches) for name, batches in pieces.items()}


def _pooled(output: Tensor, layer: Layer) -> Tensor:
    """Return an output (B, C, H, W) or (B, C, T), or of a matrix (B, ..., C), as (B, D)."""
    if output.dim() == 2:
        return output
    if layer.is_matrix:
        output = output.movedim(-1, 1).flatten(2)
    if output.dim() == 3:
        return F.adaptive_avg_pool1d(output, min(MAP_SIDE**2, output.shape[-1])).flatten(1)
    height, width = output.shape[-2:]
    return F.adaptive_avg_pool2d(output, (min(MAP_SIDE, height), min(MAP_SIDE, width))).flatten(1)


def fresh(module: nn.Module, seed: int = 0) -> State:
    """Return the state of the same network with random weights, by `draw_fresh`; torch's random state stays."""
    other = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(generator(seed, Stream.ANALYSED_NETWORK).initial_seed())  # not that of the network itself
        draw_fresh(other, other)
    return map_tensors(other.state_dict(keep_vars=True), Tensor.detach)


def _changed(
    module: nn.Module,
    state: State,
    task: Classification,
    compressed: Compressed,
    change: Callable[[Tensor], Callable[[float], Tensor]],
    amounts: Sequence[float],
) -> list[ChangedNetwork]:
    """Measure the test accuracy and the mean S_ratio of a network whose represented layers are changed by each amount."""
    rows, layers = [], compressed.kernels.layers
    changes = {layer.name: change(state[layer.name].float()) for layer in layers}
    for amount in amounts:
        weights = {name: each(amount) for name, each in changes.items()}
        changed = compressed.replaced(state, weights)
        score = float(accuracy(module_logits(module, changed, task, "test"), task.test.labels))
        ratio = sum(_ratios(changed, layers)) / len(layers)
        rows.append(ChangedNetwork(amount=amount, accuracy=score, singular_ratio=ratio))
    return rows


def _ratios(state: State, layers: Sequence[Layer]) -> list[float]:
    return [singular_ratio(state[layer.name].float()) for layer in layers]


def _drawn(count: int, limit: int, seed: int) -> Tensor:
    """Draw at most `limit` indices below `count`, in ascending order."""
    return torch.randperm(count, generator=generator(seed, Stream.ANALYSED_IMAGES))[:limit].sort().values


def _both(original: State, reconstructed: State) -> tuple[tuple[str, State], tuple[str, State]]:
    return ("original", original), ("reconstructed", reconstructed)
