"""The network that a compression is compared with: how it is read, and what runs it.

A state-dict file of any kind is taken as it is: prefixes of wrappers and types stay, and names of one tensor get the very
same tensor. Axes: B images, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.archs import ArchConfig
from netspace.archs.identity import drawn_constants
from netspace.errors import NetspaceError, UsageError, first_line, ran_out
from netspace.models.coded import CODED
from netspace.models.coded_predictor import AnyCompressed, CodedPredictor
from netspace.models.compressed import NOTE
from netspace.networks.graph import listed
from netspace.networks.kernels import Kernels
from netspace.networks.ordering import ordered, smooth_orders
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import (
    FILES,
    StateDict,
    check_tensors,
    metadata_spec,
    read_state_dict,
    without_prefix,
)
from netspace.networks.widths import find_widths
from netspace.results.compressed import KernelSamples
from netspace.tasks.readers import IMAGENET, Normalisation, picture_files
from netspace.training.fit import Original
from netspace.training.setup import images_of
from netspace.zoo import Zoo

MAX_KERNELS = 64  # in kernels.json: few enough to be seen apart on a telephone
Shapes = dict[str, tuple[int, ...]]


def find_original(
    model: str,
    zoo_path: Path | None,
    device: torch.device | str = "cpu",
    arch: ArchConfig | None = None,
    key: str | None = None,
) -> tuple[Original, NetSpec | None]:
    """Return the network that `model` names, with its module and data where they are known, and its spec.

    With an `arch` a state-dict file is of that architecture, batch norm and all; `key` names the state dict of a checkpoint
    that holds several.

    Raises:
        UsageError: for a member without a zoo, or with an `arch` or a `key`.
        NetspaceError: as `read_network` and `Zoo.find`.
    """
    path = Path(model)
    if path.suffix in FILES:
        state, module, spec = read_network(path, arch, key)
        task = None
        if zoo_path is not None:
            with Zoo(zoo_path) as zoo:
                task = images_of(zoo, device)
        shape = None if spec is None else spec.input_shape
        return Original(state, module, None if module is None else task, shape), spec
    for option, given, what in (("--arch", arch, "of"), ("--key", key, "read from")):
        if given is not None:
            raise UsageError(
                f"{option} says what a state-dict file is {what}, but {model!r} names a zoo's member, whose architecture is "
                f"known: leave {option} out"
            )
    if zoo_path is None:
        raise UsageError(
            f"{model!r} names a zoo's member, but no zoo is at hand: give --zoo, or a state-dict file ({', '.join(FILES)})"
        )
    with Zoo(zoo_path) as zoo:
        member = zoo[model]
        flat, spec, task = member.flat(), member.spec, images_of(zoo, device)
    named = {name: value.clone() for name, value in unflatten(flat, spec).items()}
    return Original(named, archs.skeleton(spec.arch, spec.settings, spec.input_shape), task, spec.input_shape), spec


def read_network(
    path: Path, arch: ArchConfig | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], nn.Module | None, NetSpec | None]:
    """Return the state dict of a file, the module that runs it (in eval mode) and its spec, where they are known.

    The module is that of `arch`, or of the architecture that the file names.

    Raises:
        UsageError: `arch` cannot be built, or the file holds a compressed network; as `read_state_dict` and `archs.build`.
        NetspaceError: the file does not fit `arch`, or holds values that are not finite; as `check_tensors`.
    """
    state = read_state_dict(path, key)
    if NOTE in state.metadata or CODED in state.metadata:
        raise UsageError(
            f"{path} is a compressed network: give a network, or what `netspace compress reconstruct` makes of it"
        )
    spec, module = _described(state) if arch is None else (None, _built(arch, state, path))
    check_tensors(state, str(path), None if module is None else dict(module.named_parameters(remove_duplicate=False)))
    for name, value in state.items():
        if value.is_floating_point() and not (value.float() < float("inf")).all():  # -inf is a mask's
            raise NetspaceError(f"{name} of {path} holds values that are not finite")
    return _tied(state, module, path), module, spec


def _described(state: StateDict) -> tuple[NetSpec, nn.Module] | tuple[None, None]:
    """Return spec and folded module of a network that netspace wrote; None for other files, whatever their metadata say."""
    try:
        spec = metadata_spec(state.metadata)
    except NetspaceError:
        if "folded" in state.metadata:  # netspace wrote it, of an architecture that is to be trusted first
            raise
        return None, None
    if spec is None:
        return None, None
    module = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    buffers = {name for name, _ in module.named_buffers()}  # which a file may lack
    fits = _difference(_shapes(module.state_dict()), _shapes(state), buffers) is None
    return (spec, module) if fits else (None, None)


def _built(arch: ArchConfig, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Return the module of an architecture, in eval mode, with the names that the file has."""
    settings = {**arch.kwargs, **({} if arch.width is None else {"width": arch.width})}
    with torch.random.fork_rng(devices=()):
        try:
            module, other = (archs.build(arch.arch, **settings).eval() for _ in range(2))
        except NetspaceError:
            raise
        except Exception as error:  # whatever a factory of others raises
            if ran_out(error):
                raise
            kind = f"{type(error).__name__} " if isinstance(error, LookupError) else ""  # whose message is a key alone
            raise UsageError(
                f"{arch.arch} cannot be built with {settings}: {kind}{first_line(error)}; change --kwargs"
            ) from None
    expected = _shapes(module.state_dict())
    counters = {name for name in expected if name.rpartition(".")[2] == "num_batches_tracked"}
    optional = counters | {name for names in _names_of_one(module) for name in names[1:]}  # which a file may lack
    inner = without_prefix(state, lambda shapes: _difference(expected, shapes, optional) is None)
    if drawn := drawn_constants(module, other, set(expected)):
        raise NetspaceError(
            f"{arch.arch} draws constants ({listed(drawn)}) that its state dict does not hold, so {path} does not say which "
            "network it is: make them persistent buffers, or fix them"
        )
    stored = _shapes(inner)
    name = _difference(expected, stored, optional)
    if name is not None:
        in_arch, in_file = (f"of shape {each[name]}" if name in each else "absent" for each in (expected, stored))
        raise NetspaceError(
            f"{path} does not fit {arch.arch} with {settings}: {name} is {in_arch} in the architecture and {in_file} in the "
            "file; name the architecture it was saved from, and its settings by --kwargs"
        )
    return module if inner.keys() == state.keys() else _wrapped(module, state, next(iter(inner)))


def _difference(expected: Shapes, stored: Shapes, optional: set[str]) -> str | None:
    """Return the first name whose shapes differ; `optional` names may be missing in `stored`."""
    names = (name for name in [*expected, *stored] if expected.get(name) != stored.get(name))
    return next((name for name in names if name in stored or name not in optional), None)


def _wrapped(module: nn.Module, state: Mapping[str, Tensor], first: str) -> nn.Module:
    """Return a module under the prefix that all names of a file have; `first` is the first name without the prefix."""
    counter = state.get("n_averaged")
    full = next(name for name in state if name != "n_averaged")
    for part in reversed(full.removesuffix(first).rstrip(".").split(".")):
        module = _Wrapper(part, module)
    if counter is not None:
        module.register_buffer("n_averaged", counter.clone())
    return module.eval()


class _Wrapper(nn.Module):
    """A module that computes what its only part computes."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.inner_name = name
        self.add_module(name, inner)

    def forward(self, *inputs: Any) -> Any:
        return self.get_submodule(self.inner_name)(*inputs)


def _names_of_one(module: nn.Module) -> list[list[str]]:
    """Return the names of each tensor of a module that has several."""
    names: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def _tied(state: Mapping[str, Tensor], module: nn.Module | None, path: Path) -> dict[str, Tensor]:
    """Return `state` with one tensor under all names of it: by the module, or without one by the memory that names share."""
    if module is not None:
        groups = [[name for name in names if name in state] for names in _names_of_one(module)]
    else:
        shared: dict[tuple[Any, ...], list[str]] = {}
        for name, value in state.items():
            memory = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride()
            shared.setdefault((*memory, value.dtype) if value.numel() else (name,), []).append(name)
        groups = list(shared.values())
    tied = dict(state)
    for names in groups:
        for name in names[1:]:
            if not torch.equal(state[name].float(), state[names[0]].float()):
                raise NetspaceError(
                    f"{name} and {names[0]} are one tensor in the architecture, but differ in {path}: name the architecture "
                    "it was saved from"
                )
            tied[name] = state[names[0]]
    return tied


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


@torch.no_grad()
def run_module(module: nn.Module, inputs: Tensor, model: str) -> Any:
    """Return what the module of `model` gives for inputs (B, ...). Raises `NetspaceError` if it cannot be run on them."""
    try:
        return module(inputs)
    except Exception as error:  # whatever a module of others raises
        if ran_out(error):
            raise
        sides = " x ".join(str(side) for side in inputs.shape[1:])
        raise NetspaceError(
            f"{model} cannot be run on images of {sides}: {first_line(error)}; change --size or --input-shape"
        ) from None


def logits_of(module: nn.Module, images: Tensor, model: str) -> Tensor:
    """Return the logits (B, C) of the module of `model` for images (B, ...). Raises `NetspaceError` if it gives none."""
    logits = run_module(module, images, model)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        kind = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetspaceError(f"{model} was expected to answer images with logits (B, C), but gave {kind}")
    return logits


def check_same(path: Path, state: Mapping[str, Tensor], model: str, original: Original) -> None:
    """Raise `NetspaceError` if the file `path` has other names or shapes than the original, `model`."""
    shapes = _shapes(original.state), _shapes(state)
    if (name := _difference(*shapes, set())) is not None:
        raise NetspaceError(
            f"{path} holds another network than {model}: {name} differs; name the network that the file was fitted to"
        )


def check_new(out: Path) -> None:
    """Raise `UsageError` if a file that is to be written exists."""
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out, so that nothing is lost")


@dataclass(frozen=True)
class Pictures:
    """A folder of images without labels, the side to which they are resized, and how they are normalised."""

    folder: Path
    size: int = 224
    by: Normalisation = IMAGENET

    def files(self) -> list[Path]:
        """Return the files, as `netspace.tasks.readers.picture_files`."""
        return picture_files(self.folder)


def save_kernels(
    folder: Path, kernels: Kernels, original: Mapping[str, Tensor], reconstructed: Mapping[str, Tensor]
) -> None:
    """Write `kernels.json`: the first kernels (N, h, w) of one layer in both state dicts, filter by filter.

    The layer is the median by the relative error of its weights, the better one of two: neither the best nor the worst.
    """
    errors = []
    for layer in kernels.layers:
        before, after = original[layer.name].float(), reconstructed[layer.name].float()
        errors.append(float((after - before).norm() / before.norm().clamp_min(1e-12)))
    median = sorted(range(len(errors)), key=errors.__getitem__)[(len(errors) - 1) // 2]
    layer = kernels.layers[median]
    rows, columns = layer.window(kernels.side)
    alone, chosen = Kernels((layer,), kernels.side), slice(MAX_KERNELS)
    samples = KernelSamples(
        layer=layer.name,
        layers=len(errors),
        relative_error=errors[median],
        count=kernels.counts[median],
        original=alone.gather(original)[chosen, rows, columns].tolist(),
        reconstructed=alone.gather(reconstructed)[chosen, rows, columns].tolist(),
    )
    samples.write(folder / "kernels.json")


def channel_order(original: Original, seed: int, label: str) -> dict[str, Tensor]:
    """Return the network's state dict with the channels of each group in a smooth order, which changes no answer.

    A permutation of channels in all layers that write and read them costs no bytes in a file. Raises `NetspaceError` if the network's groups of channels cannot be found.
    """
    module, shape = original.module, original.input_shape
    if shape is None and original.task is not None:
        shape = original.task.input_shape
    if module is None or shape is None:
        raise NetspaceError(
            f"the order of channels needs the module of {label} and the shape of its input: give --arch, and --images, --input-shape "
            "or the --zoo of its task"
        )
    info = find_widths(module, torch.zeros(1, *shape), label)
    weights = {name: value for name, value in original.state.items() if value.is_floating_point()}
    groups = [
        replace(group, uses=(*group.uses, *statistics))
        for group, statistics in zip(info.groups, info.statistics, strict=True)
    ]
    return {**original.state, **ordered(weights, groups, smooth_orders(weights, info.groups, seed))}


def comparable(original: Original, compressed: AnyCompressed, label: str) -> dict[str, Tensor]:
    """Return the original's state dict as the weights of a file are compared with it: its channels in the order of the file's.

    Raises as `channel_order`, for files whose channels have another order.
    """
    if isinstance(compressed, CodedPredictor) and compressed.channels is not None:
        return channel_order(original, compressed.channels, label)
    return original.state
