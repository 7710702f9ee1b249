"""`netspace compress fit`, `eval` and `reconstruct`: a network in a coordinate network half its size (NeRN).

Axes: N kernels, K side of a kernel, F filters of a layer.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.archs import ArchConfig, trust_options
from netspace.compression.origin import begun_with, origin_of
from netspace.compression.originals import (
    check_new,
    find_original,
    run_module,
    save_kernels,
)
from netspace.compression.reference import Reference, Unlabelled, check_named
from netspace.errors import NetspaceError, UsageError
from netspace.hardware import free_memory
from netspace.io import hash_tensors, read_json, read_tensors, write_json, write_tensors
from netspace.models.coded_predictor import load_any
from netspace.models.compressed import FLOAT, Compressed, bytes_of
from netspace.models.coordinate_network import Predictor, parameter_count
from netspace.models.kept_zeros import find_zeros
from netspace.native.orders import arrange, paper_bits
from netspace.networks.kernels import Kernels, Layer, further_names
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata
from netspace.precision import Concrete
from netspace.results.compressed import (
    Compression,
    FitResult,
    NetworkFigures,
    NetworkMark,
    Reconstruction,
)
from netspace.run_folder import FIT, RunFolder, provenance
from netspace.training.fit import Fit, Original, check_pools, with_precision
from netspace.training.loop import make_accelerator
from netspace.training.recipe import FitConfig
from netspace.training.setup import Teacher, teacher
from netspace.zoo import Zoo

MIN_HIDDEN = 4  # of a predictor that is advised
MAX_PADDING = 10  # predicted values for each weight of the network before a warning; 3x3 kernels stay below
STEP_COPIES = (
    14  # of all predicted values in float32 that are in memory in a step, as measured on networks that are run
)


def larger(compressed: Compressed, state: dict[str, Tensor]) -> str | None:
    """Return a warning if the file will be larger than the network's weights; it advises a predictor that is small enough."""
    original, kernels = bytes_of(state), compressed.kernels
    represented = bytes_of({layer.name: state[layer.name] for layer in kernels.layers})
    values = parameter_count(compressed.predictor.config, kernels.side**2)
    orders = sum(paper_bits(layer.grid(kernels.side), compressed.kind) for layer in kernels.layers) / 8
    expected = values * FLOAT // 8 + round(orders) + bytes_of(compressed.rest)
    expected += len(compressed.packed_zeros)
    expected += sum(norm.numel() * norm.element_size() for norm in compressed.norms or ())
    if expected <= original:
        return None
    config, limit = compressed.predictor.config, represented * 8 // (2 * FLOAT)
    widths = range(MIN_HIDDEN, config.hidden)
    counts = {
        hidden: parameter_count(config.model_copy(update={"hidden": hidden}), kernels.side**2) for hidden in widths
    }
    hidden = max((hidden for hidden, count in counts.items() if count <= limit), default=None)
    advice = (
        f"even a predictor of width {MIN_HIDDEN} is larger than half of what it represents: keep this network as it is"
        if hidden is None
        else f"--set predictor.hidden={hidden} gives a predictor of half the bytes that it represents"
    )
    return (
        f"the compressed file will take {expected:,} bytes and the network's weights take {original:,} "
        f"({expected / original:.1f} times as many), because the predictor has {values:,} values for "
        f"{kernels.parameters:,} represented: {advice}"
    )


def padded(kernels: Kernels, config: FitConfig, original: Original, device: torch.device) -> str | None:
    """Return a warning if 1x1 convolutions, as centres of large kernels, make far more values than they have.

    Raises:
        UsageError: They are more than the free memory of the device is likely to hold.
    """
    values = sum(kernels.counts) * kernels.side**2
    if values <= MAX_PADDING * kernels.parameters:
        return None
    tiles = Kernels.of(original.state, config.layers, config.side, "tiles", original.module)
    problem = (
        f"1x1 convolutions are taken as centres of {kernels.side} x {kernels.side} kernels, so that {values:,} values are "
        f"predicted for {kernels.parameters:,}: --set pointwise=tiles takes {sum(tiles.counts) * tiles.side**2:,}"
    )
    needed, free = STEP_COPIES * 4 * values, free_memory(device)
    if needed > free:
        raise UsageError(f"a step takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free: {problem}")
    return problem


def fit(
    model: str,
    out: Path,
    config: FitConfig,
    zoo_path: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    arch: ArchConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    key: str | None = None,
) -> FitResult:
    """Represent a network; write `compressed.safetensors`, its settings and its course to the folder `out`.

    `model` is a member of the zoo, or a state-dict file of any module, of which `arch` may say what runs it, and
    `key` which of a checkpoint's state dicts it is; what is not given of a resumed fit is as it was begun. Distillation runs the network and needs a zoo's member, or the zoo of a
    file's task, or for noise the shape of an input (C, H, W).

    Raises:
        UsageError: before anything is written, for a network or settings that do not go together, and for a folder that
            was begun with others.
        NetspaceError: before anything is written, for a file that cannot be read or a network that cannot be run.

    >>> config = FitConfig.model_validate({"predictor": {"hidden": 8}, "stages": [{"steps": 2}]})
    >>> result = fit("best", folder, config, zoo)  # the path of a zoo file
    >>> (folder / "compressed.safetensors").is_file()
    True
    """
    accelerator, own = make_accelerator(torch.device(device))
    zoo_words = [] if zoo_path is None else ["--zoo", str(zoo_path)]
    folder = RunFolder.of(FIT, out, trust_options(), again=[model, *zoo_words])
    zoo_path, arch, input_shape, key = begun_with(folder, resume, zoo_path, arch, input_shape, key)
    original, spec = find_original(model, zoo_path, own, arch, key)
    if input_shape is not None:
        original.input_shape = input_shape
    _check_stages(config, original, model, accelerator.num_processes)
    original.teachers = _teachers(config, original, zoo_path)
    kernels = Kernels.of(original.state, config.layers, config.side, config.pointwise, original.module)
    padding = padded(kernels, config, original, own)
    first = accelerator.is_main_process
    decided = config
    if any(stage.pool is not None and stage.features for stage in config.stages):  # the size of a cache depends on it
        unordered = begin(original.state, config.model_copy(update={"order": "none"}), None, kernels=kernels)
        decided = with_precision(config, unordered, original, own, accelerator)
    check_pools(decided, original, kernels, own, accelerator.num_processes)  # both raise while there is no folder yet
    with folder.locked("written", first):
        begun = None if folder.last.exists() else time.monotonic()  # the time of a resumed fit is not known
        if first:
            folder.check(config, resume)
            mark, network = out / "network.json", NetworkMark(hash=network_hash(original))
            if not folder.begun:
                network.write(mark)
            elif NetworkMark.read(mark).hash != network.hash:
                raise UsageError(
                    f"{out} was begun with another network or teacher: resume it with its own (`{folder.command}`), or choose another --out"
                )
            folder.begin(config, provenance(config.seed, **origin_of(model, zoo_path, arch, input_shape, key)))
        torch.manual_seed(config.seed)
        with accelerator.main_process_first():  # which writes the orders for the others
            compressed = begin(original.state, config, spec, out / "orders.safetensors", kernels)
        for warning in (padding, larger(compressed, original.state)):
            if warning and first:
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        record = out / "precision.json"  # a resumed fit has the precision that it was begun with
        if record.exists():
            config = config.model_copy(update=dict(read_json(record, dict[str, Concrete])))
        fitting = Fit(config, compressed, original, accelerator, own)
        if first:
            write_json(record, fitting.precision)
        curve = fitting.run(out)
        if first:
            path = out / "compressed.safetensors"
            compressed.save(path)
            save_kernels(out, compressed.kernels, original.state, compressed.reconstruct())
            seconds = None if begun is None else round(time.monotonic() - begun, 1)
            figures = evaluate(path, model, zoo_path, arch, key=key)
            result = figures.extended(FitResult, seconds=seconds, precision=fitting.precision, curve=curve)
            result.write(out / "fit.json")
        accelerator.wait_for_everyone()
    return FitResult.read(out / "fit.json")


def _check_stages(config: FitConfig, original: Original, model: str, processes: int) -> None:
    for stage in config.stages:
        if stage.runs_networks and original.module is None:
            raise UsageError(
                f"distillation runs the network, and of {model} only the weights are known: name a zoo's member, or a file that "
                "netspace wrote (with --zoo for its data), or leave distillation and features at 0"
            )
        if stage.runs_networks and stage.inputs == "noise" and original.input_shape is None:
            raise UsageError(
                f"noise has the shape of a network's inputs, which is not known of {model}: give --input-shape C,H,W, or leave "
                "distillation and features at 0"
            )
        if stage.runs_networks and stage.inputs == "task" and original.task is None:
            raise UsageError(
                "distillation on the task's images needs the zoo they belong to: give --zoo, or inputs=noise"
            )
        if stage.runs_networks and stage.images % processes:
            raise UsageError(
                f"images ({stage.images}) cannot be shared evenly by {processes} processes: choose a multiple"
            )
        if stage.runs_networks and original.module is not None:  # on one input, before there is a folder
            if stage.inputs == "task" and original.task is not None:
                inputs = original.task.normalise(original.task.train.images[:1]).cpu()
            else:
                inputs = torch.zeros(1, *(original.input_shape or ()))
            run_module(original.module, inputs, model)


def _teachers(config: FitConfig, original: Original, zoo_path: Path | None) -> dict[str, Teacher]:
    """Return the networks that stages name as teachers, by these names."""
    names = [stage.teacher for stage in config.stages if stage.teacher is not None]
    if not names:
        return {}
    if zoo_path is None or original.task is None:
        raise UsageError(f"the teacher {names[0]} answers the task's images, which are not known: give --zoo")
    with Zoo(zoo_path) as zoo:
        return {name: teacher(name, zoo, original.task) for name in names}


def begin(
    state: dict[str, Tensor],
    config: FitConfig,
    spec: NetSpec | None,
    cache: Path | None = None,
    kernels: Kernels | None = None,
) -> Compressed:
    """Return a fresh predictor for a network, and its kernels in the order of the file `cache`, which is written if absent."""
    kernels = kernels or Kernels.of(state, config.layers, config.side, config.pointwise)
    values = kernels.gather(state)
    norms = None
    if config.norms:
        norms = [_norms(state[layer.name], layer, kernels.side) for layer in kernels.layers]
        repeated = [
            norm.repeat_interleave(count // len(norm)) for norm, count in zip(norms, kernels.counts, strict=True)
        ]
        values = values / torch.cat(repeated)[:, None, None]
    orders = _orders(values, kernels, config.order, cache)
    names = {layer.name for layer in kernels.layers}
    tied = further_names(state)
    rest = {name: value for name, value in state.items() if name not in names and name not in tied}
    types = {name: state[name].dtype for name in names if state[name].dtype != torch.float32}
    predictor = Predictor(config.predictor, kernels.side**2)
    zeros = find_zeros(state, kernels.layers) if config.zeros else {}
    return Compressed(
        kernels, predictor, orders, config.order, norms, rest, tuple(state), spec, types=types, tied=tied, zeros=zeros
    )


def _orders(values: Tensor, kernels: Kernels, kind: str, cache: Path | None) -> list[Tensor]:
    """Return the order of each layer's kernels (N, K, K), from the file `cache` if that is of the same kernels and kind."""
    names = [layer.name for layer in kernels.layers]
    of = f"{kind} {hash_tensors(values, torch.tensor(kernels.counts))}"
    if cache is not None and cache.exists():
        with suppress(NetspaceError, KeyError):  # a damaged file is written again
            tensors, metadata = read_tensors(cache)
            if metadata.get("of") == of:
                return [tensors[name] for name in names]
    grids = [layer.grid(kernels.side) for layer in kernels.layers]
    orders = [torch.from_numpy(order) for order in arrange(values.flatten(1).numpy(), grids, kind)]
    if cache is not None and kind != "none":
        write_tensors(cache, dict(zip(names, orders, strict=True)), of=of)
    return orders


def _norms(weight: Tensor, layer: Layer, side: int) -> Tensor:
    """Return the root mean square of each filter (F,), or of each row of tiles; 1 for a filter of zeros."""
    rows = weight.float().flatten(1)
    if layer.is_matrix:
        filters = layer.grid(side)[0]
        rows = torch.nn.functional.pad(rows, (0, 0, 0, filters * side - len(rows))).reshape(filters, -1)
    norms = rows.square().mean(dim=1).sqrt()
    return torch.where(norms > 0, norms, torch.ones_like(norms))


def evaluate(
    path: Path,
    model: str | None = None,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    unlabelled: Unlabelled = Unlabelled(),
    key: str | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Compression:
    """Return the figures of `netspace compress eval --json`; accuracies if the network and its data are known.

    On `unlabelled` inputs, pictures or noise, the outputs of the original and the reconstructed network are compared: no labels are
    needed, and outputs that are no logits are compared by the relative error of their values. A file whose channels have an order of
    their own needs the shape of an input, which `input_shape` gives where nothing else does.

    Raises:
        UsageError: the original is described but not named as `model`, or cannot be found; as `Reference`.
        NetspaceError: `path` is no compressed file, or that of another network than `model`.

    >>> result = evaluate(compressed, "best", zoo)  # the path of a compressed network
    """
    check_named(model, arch, unlabelled, key)
    compressed = load_any(path)
    state = compressed.reconstruct()
    reference = None
    if model is not None:
        reference = Reference(compressed, state, path, model, zoo_path, arch, unlabelled, key, input_shape)
    measured = NetworkFigures() if reference is None else reference.measure(state)
    return Compression(
        file=str(path),
        accuracy_original=None if reference is None else reference.accuracy,
        accuracy_reconstructed=measured.accuracy,
        agreement=measured.agreement,
        images=measured.images,
        noise=measured.noise,
        relative_error=measured.relative_error,
        **{"parameters_predictor": None, **compressed.sizes()},
        bytes_original=bytes_of(state),
        bytes_file=path.stat().st_size,
        larger=path.stat().st_size > bytes_of(state),
        **_of_predictor(compressed),
    )


def _of_predictor(compressed: Any) -> dict[str, Any]:
    """Return the figures of a network that a coordinate network represents; of others, None for each."""
    if not isinstance(compressed, Compressed):
        return dict.fromkeys(("bits", "order", "order_bytes_paper"))
    grids = [layer.grid(compressed.kernels.side) for layer in compressed.kernels.layers]
    bytes_paper = sum(paper_bits(grid, compressed.kind) for grid in grids) / 8
    return {"bits": compressed.bits, "order": compressed.kind, "order_bytes_paper": bytes_paper}


def reconstruct(path: Path, out: Path) -> Reconstruction:
    """Write the network of a compressed file as a state dict, from the file alone.

    Raises:
        UsageError: `out` exists, or its name is that of a torch file.
        NetspaceError: `path` is no compressed file.

    >>> result = reconstruct(compressed, folder / "network.safetensors")
    >>> (folder / "network.safetensors").is_file()
    True
    """
    check_new(out)
    if out.suffix in (".pt", ".pth"):
        raise UsageError(
            f"the state dict is written as safetensors, not as {out.suffix}: name it {out.stem}.safetensors"
        )
    compressed = load_any(path)
    state = compressed.reconstruct()
    metadata = {} if compressed.spec is None else folded_metadata(compressed.spec)
    write_tensors(out, state, compressed=str(path), **metadata)
    return Reconstruction(file=str(out), tensors=len(state), **compressed.sizes())


def network_hash(original: Original) -> str:
    """Return the hash of a network's weights, and of its teachers'."""
    teachers = [each.hash for _, each in sorted(original.teachers.items()) if isinstance(each, Teacher)]
    return " ".join([hash_tensors(*(original.state[name] for name in sorted(original.state))), *teachers])
