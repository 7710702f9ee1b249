"""`netspace morph sample`: a plain network of any widths, and of fewer blocks, from a trained morph. Axes: G groups of channels."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace.archs.convnets import shallower
from netspace.compression.originals import check_new
from netspace.errors import NetspaceError, NetspaceWarning, UsageError, first_line, ran_out
from netspace.files import replacing
from netspace.networks.graph import batch_norms
from netspace.networks.resizing import recalibrate
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata
from netspace.networks.widths import Widths, find_widths, macs, widths_for
from netspace.results.morphs import MorphSample
from netspace.saved_morph import SavedMorph, open_morph, plain_network, write_network
from netspace.tasks import Task
from netspace.training.network import network_score

SUFFIXES = (".safetensors", ".onnx")  # of the files that are written
ONNX = ("onnx", "onnxscript")  # packages that torch writes ONNX with
MAX_NAMED = 3  # groups that a warning names


@dataclass(frozen=True)
class Size:
    """How large a network is to be: exactly one of these."""

    width: float | None = None  # fraction of the channels that is kept, of all groups
    gamma: float | None = None  # 1 - width
    widths: Mapping[str, int] | None = None  # of some groups, the rest in full
    params: int | None = None  # parameters, at most
    flops: int | None = None  # of one input, at most; a multiply-accumulate is two

    def gamma_of(self, morph: SavedMorph) -> float | None:
        """Return the compression rate of all groups; None if widths are given. Raises `UsageError` unless one size is given."""
        given = [f"--{name}" for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UsageError(
                f"the size of a network is one of --width, --gamma, --widths, --params and --flops: found {found}"
            )
        if self.width is not None and not 0 < self.width < float("inf"):
            raise UsageError(
                f"--width is the fraction of channels that is kept, a number above 0; found {self.width:g}"
            )
        if self.params is not None or self.flops is not None:
            return widths_for(morph.module, morph.info, parameters=self.params, flops=self.flops)
        return self.gamma if self.width is None else 1 - self.width


def sample(
    run: Path,
    out: Path,
    size: Size,
    depth: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> MorphSample:
    """Write a network of a morph, ready to use, to the file `out`: a state dict (safetensors), or ONNX.

    `netspace.load_morphed` makes the network of a state dict again.

    Args:
        run: The folder of a `netspace morph fit`, or its `morph.safetensors`.
        out: The file, which must not exist.
        size: How wide the network is.
        depth: Layers of a network of our `resnet` family, at most those that it has; none: all.
        draws: Weights are the mean of so many noisy draws; none: their expectation.
        seed: Of the draws.
        device: Where the network is made and scored.

    Raises:
        UsageError: A size or a depth that cannot be had, or a file that exists.
        NetspaceError: As `open_morph`; batch norm needs the task's data, or ONNX packages, that are not on this machine.

    >>> result = sample(morph_run, folder / "half.safetensors", Size(width=0.5))  # the folder of a fit
    >>> result.trained, (folder / "half.safetensors").is_file()
    (True, True)
    """
    check_network_file(out)
    if draws is not None and draws < 1:
        raise UsageError(f"--draws is the number of noisy draws whose mean is taken, at least 1; found {draws}")
    morph = open_morph(run, device)
    gamma, module, info, spec = size.gamma_of(morph), morph.module, morph.info, morph.spec
    widths = info.named(size.widths or {}) if gamma is None else info.at(gamma)
    task = _task(morph)
    batches: list[Tensor] = [] if task is None else morph.calibration
    network = morph.network(widths, draws=draws, seed=seed, batches=batches)
    trained = morph.is_trained(widths)
    more: dict[str, Any] = {"draws": draws} if draws else {}
    if not trained:
        warnings.warn(_outside(morph, widths), NetspaceWarning, stacklevel=2)
    if depth is not None:
        network, blocks = shallower(network, depth)
        recalibrate(network, batches)
        spec = _of_depth(morph, depth)
        module = plain_network(spec.arch, spec.settings, spec.input_shape, bool(batch_norms(network)))
        info = find_widths(module, torch.zeros(1, *spec.input_shape), spec.arch)
        widths = _widths_of(network, info)
        more |= {"depth": depth, "blocks": blocks}
        trained &= len(dict(network.named_parameters())) == len(dict(morph.module.named_parameters()))
    named = dict(zip(info.names, widths, strict=True))
    if out.suffix == ".onnx":
        write_onnx(out, network, spec.input_shape)
    else:
        write_network(out, network, spec, named, **_metadata(network, spec, gamma))
    return MorphSample(
        run=str(run),
        file=str(out),
        arch=spec.arch,
        widths=named,
        trained=trained,
        parameters=sum(value.numel() for value in network.parameters()),
        macs=macs(module, info, widths),
        **more,
        **({} if task is None else {"accuracy": network_score(network, task, "test"), **task.score_field()}),
    )


def check_network_file(out: Path) -> None:
    """Refuse a file to which no network can be written, before anything is read.

    Raises:
        UsageError: its suffix is none of `SUFFIXES`, or it exists.
        NetspaceError: the packages that write ONNX are missing.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(
            f"{out} was expected to end with {' or '.join(SUFFIXES)}: name the format of the network by it"
        )
    check_new(out)
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None] if out.suffix == ".onnx" else []
    if missing:
        raise NetspaceError(
            f"{out} needs {' and '.join(missing)}, which torch writes ONNX with and which this machine lacks: "
            "`pip install 'netspace[onnx]'`, or write a .safetensors file"
        )


def _task(morph: SavedMorph) -> Task | None:
    """Return the task of a morph; None if it cannot be had and batch norm does not need it."""
    try:
        return morph.task()
    except NetspaceError as error:
        if batch_norms(morph.module):
            raise NetspaceError(
                f"{error}; without it the batch norms of a network of other widths get no statistics"
            ) from None
        if morph.data is not None:
            warnings.warn(f"the network is not scored: {error}", NetspaceWarning, stacklevel=3)
        return None


def _outside(morph: SavedMorph, widths: tuple[int, ...]) -> str:
    """Return a warning that says which widths are outside of the range that was trained."""
    rows = zip(morph.info.names, widths, morph.narrowest, morph.info.full(), strict=True)
    outside = [
        f"{name} has {width}, where {low} to {high} were trained"
        for name, width, low, high in rows
        if not low <= width <= high
    ]
    more = f", and so on for {len(outside) - MAX_NAMED} more groups" if len(outside) > MAX_NAMED else ""
    return (
        f"the network is outside of the range of training, gamma 0 to {morph.config.widths.narrowest:g}: of the channels, "
        f"{'; '.join(outside[:MAX_NAMED])}{more}"
    )


def _of_depth(morph: SavedMorph, depth: int) -> NetSpec:
    """Return the spec of a morph's ResNet with another depth, at full width."""
    settings, shape = {**morph.spec.settings, "depth": depth}, morph.spec.input_shape
    module = plain_network("resnet", settings, shape, bool(batch_norms(morph.module)))
    return NetSpec.from_module(module, "resnet", settings, shape)


def _widths_of(network: nn.Module, info: Widths) -> tuple[int, ...]:
    """Return the widths (G,) that a network without joined channels has; `info` is that of its full width."""
    first = [group.uses[0] for group in info.groups]
    return tuple(network.get_parameter(use.name).shape[use.axis] // use.repeats for use in first)


def _metadata(network: nn.Module, spec: NetSpec, gamma: float | None) -> dict[str, str]:
    """Return what describes a network to all other commands, if a width factor of its architecture gives it; else nothing."""
    factor = spec.settings.get("width", 1.0)
    if gamma is None or not isinstance(factor, int | float):
        return {}
    keep = bool(batch_norms(network))
    settings = spec.settings if gamma == 0 else {**spec.settings, "width": factor * (1 - gamma)}
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    try:
        built = plain_network(spec.arch, settings, spec.input_shape, keep)
    except (NetspaceError, TypeError, ValueError, RuntimeError):  # an architecture without a width factor
        return {}
    if shapes != {name: value.shape for name, value in built.state_dict().items()}:
        return {}
    return folded_metadata(NetSpec.from_module(built, spec.arch, settings, spec.input_shape), folded=not keep)


def write_onnx(path: Path, network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Write a network as ONNX, for batches of any size, atomically. Raises `NetspaceError` if torch cannot."""
    example = (torch.zeros(2, *input_shape),)
    options: dict[str, Any] = {
        "dynamo": True,
        "external_data": False,
        "input_names": ["inputs"],
        "output_names": ["outputs"],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        "verbose": False,
    }
    with replacing(path) as temporary, warnings.catch_warnings(action="ignore"):
        try:
            torch.onnx.export(network.cpu().eval(), example, str(temporary), **options)
        except Exception as error:  # whatever exporting a network of others raises
            if ran_out(error):
                raise
            raise NetspaceError(
                f"the network cannot be written as ONNX: {first_line(error)}; write a .safetensors file"
            ) from None
