"""`netspace compress analyse`: how a compressed network differs from its original: smoothness, gaps, likeness of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from netspace.archs import ArchConfig
from netspace.compression.originals import check_same, find_original, keep_kernels
from netspace.metrics import accuracy
from netspace.models.compressed import Compressed
from netspace.networks.kernels import Layer, layer_of
from netspace.networks.state_dict import map_tensors, module_logits, run_types
from netspace.results.compressed import Alignment, Analysis, ByLayer, ChangedNetwork, Gap, Generalisation
from netspace.streams import Stream, generator
from netspace.tasks import Classification


def singular_ratio(weight: Tensor, share: float = 0.5) -> float:
    """S_ratio: the sum of the largest singular values of a weight's matrix over the sum of all, at most 1.

    Higher means smoother: less lies in the small singular values. The authors do not say how many values lead; here it
    is the share `share`, rounded up. NaN for a weight of zeros.
    """
    values = torch.linalg.svdvals(weight.double().flatten(1))
    total = float(values.sum())
    return float(values[: _leading(len(values), share)].sum()) / total if total else float("nan")


def low_pass(weight: Tensor, keep: float) -> Tensor:
    """The weight without the high frequencies of its matrix, by the 2-D Fourier transform.

    Kept is what lies, along both axes, within the share `keep` of the highest frequency: 1 keeps all, 0 the mean alone.
    """
    matrix = weight.double().flatten(1)
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64).abs() <= keep / 2 for size in matrix.shape)
    kept = torch.fft.fft2(matrix) * (rows[:, None] & columns)
    return torch.fft.ifft2(kept).real.reshape(weight.shape).to(weight.dtype)


def scale_small(weight: Tensor, factor: float, share: float = 0.5) -> Tensor:
    """The weight with the singular values of its matrix after the leading share `share` times `factor`."""
    left, values, right = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    leading = _leading(len(values), share)
    scaled = torch.cat([values[:leading], factor * values[leading:]])
    return ((left * scaled) @ right).reshape(weight.shape).to(weight.dtype)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two representations (B, D) and (B, D') of the same inputs, 0 to 1.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred features (Kornblith et al. 2019, Sec. 3); the same is computed
    from B x B matrices where features are more than inputs. Orthogonal maps and scales of features do not change it. NaN where
    features do not vary.
    """
    x, y = (each.double() - each.double().mean(dim=0) for each in (first, second))
    if max(x.shape[1], y.shape[1]) > len(x):
        left, right = x @ x.T, y @ y.T
        both, norms = float((left * right).sum()), float(left.norm() * right.norm())
    else:
        both, norms = float((y.T @ x).square().sum()), float((x.T @ x).norm() * (y.T @ y).norm())
    return both / norms if norms else float("nan")


def _leading(count: int, share: float) -> int:
    return ceil(share * count)


SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5)  # of frequencies that are kept


FACTORS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4, 0.0)  # of the smaller half of singular values


TRAINING = 10_000  # training images of the generalisation gap, at most


SEEN = 512  # test images of which the layers' features are compared


SIDE = 4  # maps are averaged to this side before


State = dict[str, Tensor]


def analyse(
    path: Path,
    model: str,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    seed: int = 0,
    key: str | None = None,
) -> Analysis:
    """The figures of `netspace compress analyse --json`, kept beside the file as `analysis.json`; some kernels as `kernels.json`.

    Where only weights are known (no architecture, no data), the singular values alone are told; the rest is None. Raises
    `UsageError` or `NetspaceError` for a file that is none, or a model that is not the file's.

    >>> result = analyse(compressed, "best", zoo)
    >>> (compressed.parent / "analysis.json").is_file()
    True
    """
    compressed = Compressed.load(path)
    original, _ = find_original(model, zoo_path, arch=arch, key=key)
    state, layers = compressed.reconstruct(), compressed.kernels.layers
    check_same(path, state, model, original)
    figures: dict[str, Any] = dict.fromkeys(("low_pass", "scale_small", "generalisation", "cka"))
    if original.module is not None and original.task is not None:
        module, task = original.module, original.task
        few = replace(task, train=task.train.take(_chosen(len(task.train), TRAINING, seed)))
        figures["low_pass"] = _changed(module, original.state, task, compressed, low_pass, SHARES)
        figures["scale_small"] = _changed(module, original.state, task, compressed, scale_small, FACTORS)
        gaps = {key: generalisation(module, each, few) for key, each in _both(original.state, state)}
        figures["generalisation"] = Generalisation(training_images=len(few.train), **gaps)
        images = task.test.images[_chosen(len(task.test), SEEN, seed)]
        figures["cka"] = alignment(module, original.state, state, task.normalise(images), layers, seed)
    keep_kernels(path.parent, compressed.kernels, original.state, state)
    ratios = ByLayer(**{key: _ratios(each, layers) for key, each in _both(original.state, state)})
    names = [layer.name for layer in layers]
    result = Analysis(file=str(path), layers=names, singular_ratio=ratios, **figures)
    result.write(path.parent / "analysis.json")
    return result


def generalisation(module: nn.Module, state: State, task: Classification) -> Gap:
    """Accuracy and cross-entropy (nats) on training and test images, and the gaps between them."""
    found: dict[str, float] = {}
    for split in ("train", "test"):
        logits, labels = module_logits(module, state, task, split), task.split(split).labels
        found[f"accuracy_{split}"] = float(accuracy(logits, labels))
        found[f"loss_{split}"] = float(F.cross_entropy(logits.double(), labels))
    found["gap_accuracy"] = found["accuracy_train"] - found["accuracy_test"]
    found["gap_loss"] = abs(found["loss_test"] - found["loss_train"])  # as the authors define it
    return Gap(**found)


def alignment(
    module: nn.Module, original: State, reconstructed: State, inputs: Tensor, layers: Sequence[Layer], seed: int = 0
) -> Alignment:
    """Linear CKA by layer of the original's features with the reconstructed network's, and with those of random weights.

    None for a layer whose module was not called, or whose features do not vary.
    """
    wanted = features(module, original, inputs, layers)
    told: dict[str, list[float | None]] = {}
    for key, state in (("reconstructed", reconstructed), ("random", fresh(module, seed))):
        found = features(module, state, inputs, layers)
        told[key] = [
            linear_cka(wanted[layer.name], found[layer.name]) if layer.name in wanted else None for layer in layers
        ]
    return Alignment(images=len(inputs), **told)


@torch.no_grad()
def features(module: nn.Module, state: State, inputs: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The outputs (B, D) of layers by name; maps are averaged to at most `SIDE` x `SIDE` places and flattened."""
    state = run_types(state, module)
    pieces: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for layer in layers:

            def keep(_module: nn.Module, _inputs: Any, output: Any, layer: Layer = layer) -> None:
                held = output[0] if isinstance(output, tuple) else output  # attention gives its weights too
                pieces.setdefault(layer.name, []).append(_pooled(held, layer))

            held = module.get_submodule(layer_of(layer.name))
            hooks.callback(held.register_forward_hook(keep).remove)
        for some in inputs.split(128):
            functional_call(module, state, (some,))
    return {name: torch.cat(found) for name, found in pieces.items()}


def _pooled(output: Tensor, layer: Layer) -> Tensor:
    """An output (B, C, H, W) or (B, C, T), or of a matrix (B, ..., C), as (B, D)."""
    if output.dim() == 2:
        return output
    if layer.is_matrix:
        output = output.movedim(-1, 1).flatten(2)
    if output.dim() == 3:
        return F.adaptive_avg_pool1d(output, min(SIDE**2, output.shape[-1])).flatten(1)
    height, width = output.shape[-2:]
    return F.adaptive_avg_pool2d(output, (min(SIDE, height), min(SIDE, width))).flatten(1)


def fresh(module: nn.Module, seed: int = 0) -> State:
    """The state of the same network with random weights, as its modules draw them; torch's random state stays."""
    other = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(
            generator(seed, Stream.ANALYSED_NETWORK).initial_seed()
        )  # not one that the network itself was drawn by
        for part in other.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
    return map_tensors(other.state_dict(keep_vars=True), Tensor.detach)


def _changed(
    module: nn.Module,
    state: State,
    task: Classification,
    compressed: Compressed,
    change: Callable[[Tensor, float], Tensor],
    amounts: Sequence[float],
) -> list[ChangedNetwork]:
    """Accuracy on test images, and the mean S_ratio, of a network whose represented layers are changed by amounts."""
    rows, layers = [], compressed.kernels.layers
    for amount in amounts:
        weights = {layer.name: change(state[layer.name].float(), amount) for layer in layers}
        changed = compressed.replaced(state, weights)
        right = float(accuracy(module_logits(module, changed, task, "test"), task.test.labels))
        ratio = sum(_ratios(changed, layers)) / len(layers)
        rows.append(ChangedNetwork(amount=amount, accuracy=right, singular_ratio=ratio))
    return rows


def _ratios(state: State, layers: Sequence[Layer]) -> list[float]:
    return [singular_ratio(state[layer.name].float()) for layer in layers]


def _chosen(count: int, most: int, seed: int) -> Tensor:
    """At most so many places of `count`, drawn by the seed, in order."""
    return torch.randperm(count, generator=generator(seed, Stream.ANALYSED_IMAGES))[:most].sort().values


def _both(original: State, reconstructed: State) -> tuple[tuple[str, State], tuple[str, State]]:
    return ("original", original), ("reconstructed", reconstructed)
