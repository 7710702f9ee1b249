"""`netspace compress fit` and its nearest: a trained network held in a coordinate network half its size (NeRN)."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.archs import ArchConfig, trust_options
from netspace.compression.originals import (
    Beside,
    Pictures,
    check_named,
    check_new,
    check_same,
    find_original,
    keep_kernels,
    run_module,
)
from netspace.errors import NetspaceError, UsageError
from netspace.hardware import free_memory
from netspace.io import hash_tensors, read_json, read_tensors, write_json, write_tensors
from netspace.models.compressed import FLOAT, Compressed, bytes_of
from netspace.models.coordinate_network import Predictor, PredictorConfig, parameter_count
from netspace.native.orders import arrange, paper_bits
from netspace.networks.kernels import Kernels, Layer, further_names
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import FILES, folded_metadata
from netspace.precision import Concrete
from netspace.results.compressed import (
    Compression,
    FilterError,
    FitResult,
    Importance,
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

NARROWEST = 4  # width of a predictor that is advised
MAX_PADDING = 10  # predicted values for each of the network's from which it is told; 3x3 kernels stay below
STEP_COPIES = 14  # of all predicted values in float32 that a step holds, as measured on networks that are run


def larger(compressed: Compressed, state: dict[str, Tensor]) -> str | None:
    """A sentence where the file will be larger than the network's weights, with a predictor that is small enough; else None."""
    original, kernels = bytes_of(state), compressed.kernels
    represented = bytes_of({layer.name: state[layer.name] for layer in kernels.layers})
    values = parameter_count(compressed.predictor.config, kernels.side**2)
    orders = sum(paper_bits(layer.grid(kernels.side), compressed.kind) for layer in kernels.layers) / 8
    expected = values * FLOAT // 8 + round(orders) + bytes_of(compressed.rest)
    expected += sum(norm.numel() * norm.element_size() for norm in compressed.norms or ())
    if expected <= original:
        return None
    hidden = _hidden(compressed.predictor.config, kernels.side**2, represented * 8 // (2 * FLOAT))
    advice = (
        f"even a predictor of width {NARROWEST} is larger than half of what it represents: keep this network as it is"
        if hidden is None
        else f"--set predictor.hidden={hidden} gives a predictor of half the bytes that it represents"
    )
    return (
        f"the compressed file will take {expected:,} bytes and the network's weights take {original:,} "
        f"({expected / original:.1f} times as many), because the predictor has {values:,} values for "
        f"{kernels.parameters:,} represented: {advice}"
    )


def padded(kernels: Kernels, config: FitConfig, original: Original, device: torch.device) -> str | None:
    """Return a sentence where 1x1 convolutions make far more values than they have, as centres of large kernels; else None.

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


def _hidden(config: PredictorConfig, outputs: int, most: int) -> int | None:
    """The largest width, `NARROWEST` or more, with at most `most` values, if there is one below the width of `config`."""
    able = [
        hidden
        for hidden in range(NARROWEST, config.hidden)
        if parameter_count(config.model_copy(update={"hidden": hidden}), outputs) <= most
    ]
    return max(able, default=None)


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
    """Represents a network; writes `compressed.safetensors`, its settings and its course to the folder `out`.

    `model` is a member of the zoo, or a state-dict file of any module, of which `arch` may say what runs it, and
    `key` which of a checkpoint's state dicts it is. Distillation
    runs the network and needs a zoo's member, or the zoo of a file's task, or for noise the shape of an input (C, H, W).
    Raises `UsageError` or `NetspaceError` before anything is written.

    >>> config = FitConfig.model_validate({"predictor": {"hidden": 8}, "stages": [{"steps": 2}]})
    >>> result = fit("best", folder, config, zoo)  # the path of a zoo file
    >>> (folder / "compressed.safetensors").is_file()
    True
    """
    accelerator, own = make_accelerator(torch.device(device))
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
    zoo_words = [] if zoo_path is None else ["--zoo", str(zoo_path)]
    folder = RunFolder.of(FIT, out, trust_options(), again=[model, *zoo_words])
    with folder.alone("written", first):
        begun = None if folder.last.exists() else time.monotonic()  # of what is gone on with it is not known
        if first:
            folder.check(config, resume)
            mark, network = out / "network.json", NetworkMark(hash=_hash(original))
            if not folder.begun:
                network.write(mark)
            elif NetworkMark.read(mark).hash != network.hash:
                raise UsageError(
                    f"{out} was begun with another network or teacher: resume it with its own (`{folder.command}`), or choose another --out"
                )
            folder.begin(config, provenance(config.seed, **_origin(model, zoo_path, arch, input_shape, key)))
        torch.manual_seed(config.seed)
        with accelerator.main_process_first():  # which keeps the orders for the others
            compressed = begin(original.state, config, spec, out / "orders.safetensors", kernels)
        for warning in (padding, larger(compressed, original.state)):
            if warning and first:
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        record = out / "precision.json"  # what is gone on with goes on in the same
        if record.exists():
            config = config.model_copy(update=dict(read_json(record, dict[str, Concrete])))
        fitting = Fit(config, compressed, original, accelerator, own)
        if first:
            write_json(record, fitting.precision)
        curve = fitting.run(out)
        if first:
            path = out / "compressed.safetensors"
            compressed.save(path)
            keep_kernels(out, compressed.kernels, original.state, compressed.reconstruct())
            seconds = None if begun is None else round(time.monotonic() - begun, 1)
            figures = evaluate(path, model, zoo_path, arch, key=key)
            result = figures.extended(FitResult, seconds=seconds, precision=fitting.precision, curve=curve)
            result.write(out / "fit.json")
        accelerator.wait_for_everyone()
    return FitResult.read(out / "fit.json")


def _origin(
    model: str, zoo_path: Path | None, arch: ArchConfig | None, input_shape: tuple[int, ...] | None, key: str | None
) -> dict[str, Any]:
    """Return what names the network of a fit, for its provenance."""
    path = Path(model)
    origin: dict[str, Any] = {"model": str(path.resolve()) if path.suffix in FILES else model}
    if arch is not None:
        origin["arch"] = arch.model_dump(mode="json")
    if zoo_path is not None:
        with Zoo(zoo_path) as zoo:
            origin |= {"zoo": str(zoo_path.resolve()), "zoo_hash": zoo.content_hash}
    return origin | {name: value for name, value in (("input_shape", input_shape), ("key", key)) if value is not None}


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
    """The networks that stages name as teachers, by these names."""
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
    kept: Path | None = None,
    kernels: Kernels | None = None,
) -> Compressed:
    """A fresh predictor for a network, its kernels in order: that of the file `kept`, or what is then kept there."""
    kernels = kernels or Kernels.of(state, config.layers, config.side, config.pointwise)
    values = kernels.gather(state)
    norms = None
    if config.norms:
        norms = [_norms(state[layer.name], layer, kernels.side) for layer in kernels.layers]
        values = (
            values
            / torch.cat(
                [norm.repeat_interleave(count // len(norm)) for norm, count in zip(norms, kernels.counts, strict=True)]
            )[:, None, None]
        )
    orders = _orders(values, kernels, config.order, kept)
    names = {layer.name for layer in kernels.layers}
    tied = further_names(state)
    rest = {name: value for name, value in state.items() if name not in names and name not in tied}
    types = {name: state[name].dtype for name in names if state[name].dtype != torch.float32}
    predictor = Predictor(config.predictor, kernels.side**2)
    return Compressed(kernels, predictor, orders, config.order, norms, rest, tuple(state), spec, types=types, tied=tied)


def _orders(values: Tensor, kernels: Kernels, kind: str, kept: Path | None) -> list[Tensor]:
    """The order of each layer's kernels (N, K, K); read where they are kept already, for the same kernels and kind."""
    names = [layer.name for layer in kernels.layers]
    of = f"{kind} {hash_tensors(values, torch.tensor(kernels.counts))}"
    if kept is not None and kept.exists():
        with suppress(NetspaceError, KeyError):  # a damaged one is found anew
            tensors, notes = read_tensors(kept)
            if notes.get("of") == of:
                return [tensors[name] for name in names]
    grids = [layer.grid(kernels.side) for layer in kernels.layers]
    found = [torch.from_numpy(order) for order in arrange(values.flatten(1).numpy(), grids, kind)]
    if kept is not None and kind != "none":
        write_tensors(kept, dict(zip(names, found, strict=True)), of=of)
    return found


def _norms(weight: Tensor, layer: Layer, side: int) -> Tensor:
    """The root mean square of each filter (F,), or of each row of tiles; 1 for a filter of zeros."""
    rows = weight.float().flatten(1)
    if layer.is_matrix:
        filters = layer.grid(side)[0]
        rows = torch.nn.functional.pad(rows, (0, 0, 0, filters * side - len(rows))).reshape(filters, -1)
    found = rows.square().mean(dim=1).sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))


def evaluate(
    path: Path,
    model: str | None = None,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    pictures: Pictures | None = None,
    key: str | None = None,
) -> Compression:
    """The figures of `netspace compress eval --json`; accuracies where the network and its data are known.

    With `pictures`, what the original and the reconstructed network answer on them: no labels are needed.

    >>> result = evaluate(compressed, "best", zoo)  # the path of a compressed network
    """
    check_named(model, arch, pictures, key)
    compressed = Compressed.load(path)
    state = compressed.reconstruct()
    grids = [layer.grid(compressed.kernels.side) for layer in compressed.kernels.layers]
    reference, measured = None, NetworkFigures()
    if model is not None:
        beside = Beside(compressed, state, path, model, zoo_path, arch, pictures, key)
        reference, measured = beside.accuracy, beside.measure(state)
    return Compression(
        file=str(path),
        accuracy_original=reference,
        accuracy_reconstructed=measured.accuracy,
        agreement=measured.agreement,
        images=measured.images,
        relative_error=measured.relative_error,
        **compressed.sizes(),
        bytes_original=bytes_of(state),
        bytes_file=path.stat().st_size,
        larger=path.stat().st_size > bytes_of(state),
        bits=compressed.bits,
        order=compressed.kind,
        order_bytes_paper=sum(paper_bits(grid, compressed.kind) for grid in grids) / 8,
    )


def reconstruct(path: Path, out: Path) -> Reconstruction:
    """Writes the network that a compressed file holds, as a state dict, from the file alone.

    Raises `UsageError` where something lies at `out`, or its name is one that torch would read.

    >>> result = reconstruct(compressed, folder / "network.safetensors")
    >>> (folder / "network.safetensors").is_file()
    True
    """
    check_new(out)
    if out.suffix in (".pt", ".pth"):
        raise UsageError(
            f"the state dict is written as safetensors, not as {out.suffix}: name it {out.stem}.safetensors"
        )
    compressed = Compressed.load(path)
    state, notes = compressed.reconstruct(), {}
    if compressed.spec is not None:
        notes = folded_metadata(compressed.spec)
    write_tensors(out, state, compressed=str(path), **notes)
    return Reconstruction(file=str(out), tensors=len(state), **compressed.sizes())


def importance(
    path: Path, model: str, zoo_path: Path | None = None, top: int = 20, key: str | None = None
) -> Importance:
    """Filters by the relative error of their reconstruction, the best kept first (NeRN, Sec. 5, Fig. 5 right).

    A predictor too small for all of a network keeps what matters most to its loss.

    >>> result = importance(compressed, "best", zoo, top=3)
    """
    compressed = Compressed.load(path)
    original, _ = find_original(model, zoo_path, key=key)
    state, rows = compressed.reconstruct(), []
    check_same(path, state, model, original)
    for layer in compressed.kernels.layers:
        wanted, found = (each[layer.name].float().flatten(1) for each in (original.state, state))
        errors = (found - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-12)
        rows += [(layer.name, place, float(error)) for place, error in enumerate(errors)]
    rows.sort(key=lambda row: row[2])
    filters = [FilterError(layer=name, filter=place, relative_error=error) for name, place, error in rows]
    return Importance(file=str(path), count=len(filters), filters=filters[:top] if top else filters)


def _hash(original: Original) -> str:
    """Of a network's weights, and of its teachers' where there are any."""
    teachers = [taught.hash for _, taught in sorted(original.teachers.items()) if isinstance(taught, Teacher)]
    return " ".join([hash_tensors(*(original.state[name] for name in sorted(original.state))), *teachers])
