"""What the ways of `compress fit` are compared with at the same bytes: other people's codecs, plain rounding, a smaller network.

Each rival takes the work and a limit in bytes, and returns what it made, or raises `CannotFit` with a sentence that says why not.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netspace import archs
from netspace.compression.ways import SLACK
from netspace.compression.work import CannotFit, Made, NotInstalled, Work, short_types
from netspace.errors import NetspaceError
from netspace.io import write_tensors
from netspace.models.coded import Coded, Way
from netspace.models.coded_bytes import pack as packed_bits
from netspace.models.compressed import bytes_of, pack, unpack
from netspace.networks.folding import fold
from netspace.networks.kernels import further_names
from netspace.networks.rounding import round_rows
from netspace.networks.widths import find_widths, resized
from netspace.streams import Stream, generator
from netspace.training.network import NetworkConfig
from netspace.training.optimizers import OptimizerConfig
from netspace.training.student import train_student, widest

QP = range(-75, 21)  # of NNCodec: finer to coarser
STUDENT = "student"  # the folder of its training
GROUP = 32  # weights that share a scale of torchao's int4
State = dict[str, Tensor]


def nncodec(work: Work, limit: int, path: Path) -> Made:
    """Code the network with NNCodec (ISO/IEC 15938-17), at the finest quantisation that fits."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from nncodec import nn as codec
    except ImportError:
        raise NotInstalled('NNCodec is not installed: pip install "netspace[nncodec]"') from None
    tied = further_names(work.original.state)
    whole = {name: value for name, value in work.original.state.items() if value.numel() and name not in tied}
    arrays = {
        name: (value.float() if value.is_floating_point() else value.int()).reshape(value.shape or (1,)).numpy()
        for name, value in whole.items()
    }

    def coded(qp: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            settings = {"qp": qp, "verbose": False, "results": folder}
            return bytes(codec.encode(arrays, settings))

    low, high = QP.start - 1, QP.stop - 1  # the last is the coarsest; the first is not tried
    data = coded(high)
    if len(data) > limit:
        raise CannotFit(f"NNCodec takes at least {len(data):,} bytes", len(data))
    while high - low > 1:
        middle = (low + high) // 2
        tried = coded(middle)
        low, high, data = (low, middle, tried) if len(tried) <= limit else (middle, high, data)
    with _quiet():
        decoded = codec.decode(bytearray(data))  # of bytes it takes for a path
    state = {
        name: torch.from_numpy(np.asarray(decoded[name])).view(value.shape).to(value.dtype)
        for name, value in whole.items()
    }
    return Made(f"qp {high}", _with_tied(work, state), size=len(data))


def _with_tied(work: Work, changed: Mapping[str, Tensor]) -> State:
    """Return the original's state dict with other values by their first names: several names of one tensor stay so."""
    original = work.original.state
    whole, tied = {**original, **changed}, further_names(original)
    return {name: whole[tied.get(name, name)] for name in original}


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def rounding(work: Work, limit: int, path: Path) -> Made:
    """Round each row of a matrix or kernel to 8 or 4 bits by hand, without entropy coding or correction."""
    original, tied = work.original.state, further_names(work.original.state)
    matrices = {name: value.float().flatten(1) for name, value in work.matrices().items() if name not in tied}
    rest = {name: value for name, value in original.items() if name not in matrices and name not in tied}
    for bits in (8, 4):
        packed = pack(matrices, bits)
        write_tensors(path, {**rest, **packed})
        if (size := path.stat().st_size) <= limit:
            coarse = unpack(packed, {name: value.shape for name, value in matrices.items()})
            state = {name: value.view(original[name].shape).to(original[name].dtype) for name, value in coarse.items()}
            return Made(f"{bits} bits", _with_tied(work, state), size=size)
    raise CannotFit(f"rounding to 4 bits takes {size:,} bytes", size)


def torch_int8(work: Work, limit: int, path: Path) -> Made:
    """Quantise to int8 with torch's dynamic quantisation, which holds linear layers alone."""
    if work.original.module is None:
        raise CannotFit("torch's int8 needs the module of the network, and only its weights are known")
    module = copy.deepcopy(work.original.module).cpu()
    module.load_state_dict(work.original.state, strict=False)
    with warnings.catch_warnings(action="ignore"):  # that it will move to another package
        small = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    tied = further_names(work.original.state)
    weights: State = {}
    for name, part in small.named_modules():
        if isinstance(part, torch.ao.nn.quantized.dynamic.Linear) and f"{name}.weight" not in tied:
            weights[f"{name}.weight"] = part.weight().dequantize()
    rest = {name: value for name, value in work.original.state.items() if name not in weights and name not in tied}
    size = bytes_of(rest) + sum(value.numel() for value in weights.values())
    if size > limit:
        raise CannotFit(f"torch's int8 holds linear layers alone, convolutions stay in 32 bits: {size:,} bytes", size)
    return Made("linear layers", _with_tied(work, weights), size=size)


def torchao(work: Work, limit: int, path: Path) -> Made:
    """Quantise linear and convolution layers with torchao, weights alone: to int8, or to int4 if that is too large.

    There is a scale for each row, of kernels for each row and position; of int4 in linear layers for each group of 32 weights,
    where rows are made of such. The file has torchao's own integers and scales, int4 packed (torchao keeps a byte for each on a
    CPU), and all else as it is.
    """
    if work.original.module is None:
        raise CannotFit("torchao needs the module of the network, and only its weights are known")
    try:
        with warnings.catch_warnings(action="ignore"):
            from torchao.quantization import IntxWeightOnlyConfig, quantize_
            from torchao.quantization.granularity import PerAxis, PerGroup
    except ImportError:
        raise NotInstalled('torchao is not installed: pip install "netspace[torchao]"') from None
    tied = further_names(work.original.state)
    own = work.original.state.keys() - tied.keys()
    layers = {
        f"{name}.weight": part
        for name, part in work.original.module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and f"{name}.weight" in own
    }
    grouped = {name for name, part in layers.items() if isinstance(part, nn.Linear) and part.in_features % GROUP == 0}
    plans: dict[int, list[tuple[Any, set[str]]]]
    plans = {8: [(PerAxis(0), {*layers})], 4: [(PerAxis(0), {*layers} - grouped), (PerGroup(GROUP), grouped)]}
    for bits in (8, 4):
        module = copy.deepcopy(work.original.module).cpu().float()
        module.load_state_dict(work.original.state, strict=False)
        with warnings.catch_warnings(action="ignore"):
            for granularity, names in plans[bits]:
                config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity)
                quantize_(module, config, lambda part, name, names=names: f"{name}.weight" in names)
        weights: dict[str, Any] = {name: module.get_parameter(name) for name in layers}
        write_tensors(path, _torchao_parts(weights, work.original.state, bits))
        if (size := path.stat().st_size) <= limit:
            state = {
                name: value.dequantize().detach().to(work.original.state[name].dtype) for name, value in weights.items()
            }
            return Made(f"int{bits}", _with_tied(work, state), size=size)
    raise CannotFit(f"torchao's int4 takes {size:,} bytes", size)


def _torchao_parts(weights: Mapping[str, Any], state: State, bits: int) -> State:
    """Return what a file of a network with torchao's weights holds: packed integers and scales, and all else as it is."""
    tied = further_names(state)
    parts = {name: value for name, value in state.items() if name not in weights and name not in tied}
    for name, value in weights.items():
        packed = packed_bits(value.qdata.detach(), bits)
        parts[f"{name}.values"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        parts[f"{name}.scales"] = value.scale.detach().contiguous()
    return parts


def student(work: Work, limit: int, path: Path) -> Made:
    """Distil a narrower network of the same architecture for as many steps as the fit, and store it in 8 bits a weight."""
    original, task, spec = work.original, work.original.task, work.spec
    if original.module is None or task is None:
        raise CannotFit("a smaller student learns from labelled images, which are not known: give --zoo")
    if not work.judge.trainable:
        raise CannotFit("a smaller student is trained, and no gradients pass through this network")
    if not work.judge.outputs.bare:
        raise CannotFit("a smaller student learns from logits alone, and this network gives several outputs")
    task = task.to("cpu")
    label = work.model
    example = task.normalise(task.train.images[:2])
    module = (
        copy.deepcopy(original.module)
        if spec is None
        else archs.build(
            spec.arch, **spec.settings
        )  # with batch norm, which makes the training of narrow networks easier
    )
    try:
        info = find_widths(module, example, label)
    except NetspaceError as error:
        raise CannotFit(f"the width of {label} cannot change: {error}") from None

    def stored(network: nn.Module, fresh: bool = False) -> Coded:
        state = {name: value.detach() for name, value in fold(network, example, name=label).state_dict().items()}
        if fresh:  # values that code no better than trained ones
            random = torch.Generator().manual_seed(0)
            state = {name: torch.randn(value.shape, generator=random) for name, value in state.items()}
        codes = {name: round_rows(value, 8) for name, value in state.items() if value.dim() > 1}
        ways: dict[str, Way] = {**short_types(state), **dict.fromkeys(codes, "rounded")}
        return Coded.of(state, codes, ways)

    def fits(widths: tuple[int, ...]) -> bool:
        return stored(resized(module, info, widths, work.config.seed).eval(), True).file_bytes() <= limit - SLACK

    widths = widest(info, fits)
    if widths is None:
        raise CannotFit(f"a student of one channel in every layer takes more than {limit:,} bytes")
    drawn = int(torch.randint(2**31, (), generator=generator(work.config.seed, Stream.STUDENT)))
    fresh = resized(module, info, widths, drawn)
    config = NetworkConfig(
        batch_size=work.config.images,
        optimizer=OptimizerConfig(learning_rate=0.004, weight_decay=0.05, schedule="cosine"),
        seed=work.config.seed,
    )
    teacher = copy.deepcopy(original.module).eval()
    teacher.load_state_dict(original.state, strict=False)
    trained = train_student(fresh, teacher, task, config, work.student_steps, work.folder / STUDENT)
    small = stored(trained)
    small.save(path)
    factor = sum(widths) / sum(info.full())
    return Made(
        f"{factor:.2f} of the width, 8 bits",
        small.reconstruct(),
        size=path.stat().st_size,
        module=fold(trained, example, name=label),
        steps=work.student_steps,
    )


Rival = Callable[[Work, int, Path], Made]
RIVALS: Mapping[str, Rival] = {
    "nncodec": nncodec,
    "rounding": rounding,
    "torch-int8": torch_int8,
    "torchao": torchao,
    "student": student,
}
