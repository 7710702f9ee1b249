"""The way of `compress fit` by a coordinate network (NeRN), sized to the budget, its own matrices entropy-coded.

Axes: N kernels, R rows of a matrix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from netspace.compression.fit import MAX_PADDING, begin
from netspace.compression.originals import channel_order
from netspace.compression.ways import finest
from netspace.compression.work import CannotFit, Work, short_types
from netspace.errors import NetspaceError
from netspace.models.coded import Coded
from netspace.models.coded_predictor import CodedPredictor
from netspace.models.compressed import Compressed
from netspace.models.coordinate_network import EmbeddingConfig, PredictorConfig, parameter_count
from netspace.networks.kernels import Kernels, layer_kinds
from netspace.networks.rounding import Codes, round_step
from netspace.training.fit import Fit
from netspace.training.loop import make_accelerator
from netspace.training.optimizers import OptimizerConfig
from netspace.training.recipe import FitConfig, StageConfig

Order = Literal["none", "in-filter", "cross-filter", "channel"]
ORDERS: tuple[Order, ...] = ("none", "in-filter", "cross-filter", "channel")
BITS = 6.0  # of a predictor's weight, for which it is sized; its entropy-coded matrices then lose little
MIN_HIDDEN = 4
KERNELS = 4096  # coordinates of a step
DISTILLED = 30  # of so many steps of reconstruction, one of distillation
MAX_ZEROS = 0.5  # of the bytes, that the mask of a pruned network's zeros may take; else its zeros are not kept


def predict(work: Work, order: Order, limit: int, path: Path, whole: bool = False) -> str:
    """Fit a predictor of the network's kernels in an order, as large as the budget allows, and write its file.

    Raises `CannotFit` if even the smallest predictor takes more.
    """
    original, config = work.original, work.config
    reference = original.state
    if order == "channel":
        try:
            reference = channel_order(original, config.seed, work.model)
        except NetspaceError as error:
            raise CannotFit(str(error)) from None
    try:
        kinds = layer_kinds(original.state, original.module).values()
        patterns = () if "convolution" in kinds else ("*weight",)
        kernels = Kernels.of(original.state, patterns, module=original.module)
        if (
            sum(kernels.counts) * kernels.side**2 > MAX_PADDING * kernels.parameters
        ):  # mostly zeros around 1x1 convolutions
            kernels = Kernels.of(original.state, patterns, pointwise="tiles", module=original.module)
    except NetspaceError as error:
        raise CannotFit(str(error)) from None
    permuted = replace(original, state=reference, module=None, task=None)
    if _is_distilled(work):
        permuted = replace(permuted, module=copy.deepcopy(original.module), task=original.task)
    fit_config = _config(work, order, 1, whole)
    torch.manual_seed(config.seed)
    smallest = begin(reference, fit_config, work.spec, path.parent / f"orders-{order}.safetensors", kernels)
    zeros = 0 < len(smallest.packed_zeros) <= MAX_ZEROS * limit
    smallest = smallest if zeros else replace(smallest, zeros={})
    fixed = _coded(smallest, 2.0**4, order, config.seed).file_bytes()
    hidden = _widest(fit_config.predictor, kernels.side**2, limit - fixed)
    if hidden < MIN_HIDDEN:
        values = parameter_count(_predictor(MIN_HIDDEN), kernels.side**2)
        least = fixed + math.ceil(values * BITS / 8)
        raise CannotFit(f"a predictor of width {MIN_HIDDEN} with all that it needs takes {least:,} bytes", least)
    fit_config = _config(work, order, hidden, whole).model_copy(update={"zeros": zeros})
    torch.manual_seed(config.seed)
    compressed = begin(reference, fit_config, work.spec, path.parent / f"orders-{order}.safetensors", kernels)
    accelerator, device = make_accelerator(torch.device(work.judge.device))
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    Fit(fit_config, compressed, permuted, accelerator, device).run(folder)
    compressed.predictor.cpu()

    def make(log_step: float) -> Coded:
        return _coded(compressed, 2**log_step, order, config.seed)

    _, log_step = finest(make, limit)
    _predictor_file(compressed, 2**log_step, order, config.seed).save(path)
    return f"{order}, width {hidden}{', zeros kept' if zeros else ''}"


def way_of(order: Order, whole: bool = False) -> Callable[[Work, int, Path], str]:
    """Return the way in one order."""
    return lambda work, limit, path: predict(work, order, limit, path, whole)


def _predictor(hidden: int) -> PredictorConfig:
    embedding = EmbeddingConfig(coordinates="normalised", base=1.6, count=16)
    return PredictorConfig(hidden=hidden, layers=5, kind="plain", embedding=embedding)


def _config(work: Work, order: Order, hidden: int, whole: bool) -> FitConfig:
    """Return the recipe of a fit: reconstruction, and distillation if it is whole and there is something to run on."""
    config = work.config
    steps = config.predictor_whole if whole else config.predictor_steps
    muon = OptimizerConfig(name="muon", learning_rate=2e-3, muon_rate=0.03, schedule="cosine")
    stages = [StageConfig(steps=steps, kernels=KERNELS, optimizer=muon)]
    kind = work.judge.inputs.kind
    if whole and kind in ("task", "noise") and _is_distilled(work):
        stages.append(
            StageConfig(
                steps=max(1, steps // DISTILLED),
                reconstruction=0.0,
                distillation=1.0,
                inputs="task" if kind == "task" else "noise",
                images=config.images,
                kernels=2 * KERNELS,
                optimizer=OptimizerConfig(name="adam", learning_rate=3e-5, schedule="cosine"),
            )
        )
    return FitConfig(
        seed=config.seed,
        order="none" if order == "channel" else order,
        predictor=_predictor(hidden),
        stages=tuple(stages),
        validate_every=max(1, steps // 4),
        precision="float32",  # so that the same seed gives the same bytes
    )


def _is_distilled(work: Work) -> bool:
    """Return whether a predictor can be distilled from the network: by logits alone, with gradients."""
    return work.judge.outputs.logits and work.judge.outputs.bare and work.judge.trainable


def _widest(config: PredictorConfig, values: int, size: int) -> int:
    """Return the largest width of a predictor whose weights take at most `size` bytes; 0 if there is none."""
    low, high = 0, 4096
    while high - low > 1:
        middle = (low + high) // 2
        count = parameter_count(config.model_copy(update={"hidden": middle}), values)
        low, high = (middle, high) if count * BITS / 8 <= size else (low, middle)
    return low


def _predictor_file(compressed: Compressed, factor: float, order: Order, seed: int) -> CodedPredictor:
    """Return the file with all matrices rounded to steps, a factor in units of each one's root mean square."""
    tensors = compressed.tensors({name: value.detach() for name, value in compressed.predictor.state_dict().items()})
    codes: dict[str, Codes] = {}
    for name, value in tensors.items():
        if value.is_floating_point() and value.dim() > 1:
            unit = float(value.float().square().mean().sqrt())
            codes[name] = round_step(value, factor * (unit if unit > 0 and math.isfinite(unit) else 1.0))
    halves = frozenset(short_types({name: value for name, value in tensors.items() if name not in codes}))
    return CodedPredictor.of(_copy(compressed), codes, halves, seed if order == "channel" else None)


def _coded(compressed: Compressed, factor: float, order: Order, seed: int) -> Coded:
    return _predictor_file(compressed, factor, order, seed).coded()


def _copy(compressed: Compressed) -> Compressed:
    """Return a compressed network whose predictor can be changed."""
    return replace(compressed, predictor=copy.deepcopy(compressed.predictor))
