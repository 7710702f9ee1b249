"""A trained morph on disk: a function that gives a network's weights at any widths, and all that makes networks of it.

`morph.safetensors` in a run folder is the whole morph, and can be moved by itself. Next to it lies
`network.safetensors`, the network that the function was fitted to, its channels in order: what other methods start from.

Axes: G groups of channels, B inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.config import validate
from netspace.errors import NetspaceError, UsageError, first_line, ran_out
from netspace.hardware import AllocationLimit
from netspace.io import Record, hash_tensors, parse_json, read_tensors, validated, write_tensors
from netspace.models.weight_function import FunctionConfig, WeightFunction
from netspace.models.weight_grid import WeightGrid
from netspace.models.weight_mlps import WeightMlps
from netspace.networks.graph import batch_norms
from netspace.networks.resizing import recalibrate
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata
from netspace.networks.widths import Widths, find_widths, resized
from netspace.streams import Stream, generator
from netspace.tasks import DataConfig, Task, load
from netspace.training.morph import MorphConfig
from netspace.training.network import calibration

VERSION = "1"
NOTE = "netspace_morph"  # of the file, in which all but its tensors lies as JSON
RESIZED = "netspace_resized"  # of a network of other widths than its architecture builds
MORPH, NETWORK = "morph.safetensors", "network.safetensors"  # in a run folder
SPARE_BYTES = 1 << 28  # by which building a morph may exceed four times its weights


class MorphRecord(Record):
    """What `morph.safetensors` says apart from tensors."""

    arch: str
    settings: dict[str, Any]
    input_shape: tuple[int, ...]
    config: dict[str, Any]
    trained: dict[str, tuple[int, int]]  # of each group of channels: its narrowest trained and its full width
    network_hash: str  # of `network.safetensors`
    data: dict[str, Any] | None = None
    split_hash: str | None = None  # of the task's data


class ResizedRecord(Record):
    """What the file of a network of other widths says apart from its state."""

    version: str
    arch: str
    settings: dict[str, Any]
    input_shape: tuple[int, ...]
    keeps_batch_norm: bool
    widths: dict[str, int]  # of each group of channels, by its name


@dataclass(eq=False)
class SavedMorph:
    """A function from widths to weights, and the network and the task that it is for."""

    function: WeightFunction
    # at full width, in eval mode: the network that the function was fitted to, its channels in order; of a file that was
    # moved without `network.safetensors` it has the function's own weights
    module: nn.Module
    info: Widths
    config: MorphConfig
    spec: NetSpec  # of `module`
    data: DataConfig | None = None  # none: the task is not known
    split_hash: str | None = None  # of its data
    has_original: bool = True  # whether `module` has the weights that the function was fitted to
    path: Path | None = None  # of the file

    @property
    def device(self) -> torch.device:
        """Where networks are made."""
        return next(self.function.parameters()).device

    @property
    def narrowest(self) -> tuple[int, ...]:
        """The narrowest widths (G,) that were trained."""
        return self.info.at(self.config.widths.narrowest)

    @property
    def stored_parameters(self) -> int:
        """The number of values of the function."""
        return sum(value.numel() for value in self.function.state_dict().values())

    def is_trained(self, widths: Sequence[int]) -> bool:
        """Return whether widths (G,) are in the range that was trained, group by group."""
        limits = zip(self.narrowest, widths, self.info.full(), strict=True)
        return all(low <= width <= high for low, width, high in limits)

    def task(self, device: torch.device | str | None = None) -> Task:
        """Return the task whose inputs and targets the function was trained on.

        Raises:
            NetspaceError: It is not known, or its data are not on this machine, or others.
        """
        if self.data is None:
            raise NetspaceError(f"{self._name} does not say what its networks are for: it was fitted without a zoo")
        task = load(self.data, self.device if device is None else device)
        if self.split_hash not in (None, task.split_hash):
            raise NetspaceError(
                f"{self._name} was trained on {self.data.name} with split {str(self.split_hash)[:12]}, but the data here have "
                f"split {task.split_hash[:12]}: other inputs or targets would give figures that mean nothing"
            )
        return task

    @cached_property
    def calibration(self) -> list[Tensor]:
        """The training inputs (B, ...) that give batch norms their statistics; empty without batch norm. Raises as `task`."""
        if not batch_norms(self.module):
            return []
        return calibration(self.task(), self.config.seed, self.config.batch_size)

    @torch.no_grad()
    def network(
        self,
        widths: Sequence[int],
        *,
        draws: int | None = None,
        seed: int = 0,
        batches: Iterable[Tensor] | None = None,
    ) -> nn.Module:
        """Return a plain network of widths (G,), in eval mode, with the function's weights.

        Args:
            widths: Of each group of channels, such as `info.at(0.5)`.
            draws: Weights are the mean of so many noisy draws (NeuMeta, Eq. 9); none: their expectation, without chance.
            seed: Of the draws.
            batches: The inputs (B, ...) that give batch norms their statistics; none: `calibration`.

        Raises:
            UsageError: A width is below 1.
            NetspaceError: The architecture does not run at these widths; as `task` for batch norm without `batches`.
        """
        made = resized(self.module, self.info, widths, 0)
        parameters = dict(made.named_parameters())
        if draws is None:
            weights = self.function(widths)
        else:
            weights = self.function.mean_of_draws(widths, draws, generator(seed, Stream.MORPH_DRAWS))
        for name, value in weights.items():
            parameters[name].copy_(value)
        return recalibrate(made, self.calibration if batches is None else batches)

    def save(self, folder: Path) -> Path:
        """Write both files to a folder, each atomically, `morph.safetensors` last; return its path."""
        state = self.module.state_dict()
        folded = not batch_norms(self.module)
        write_tensors(folder / NETWORK, state, **folded_metadata(self.spec, folded=folded))
        tensors = {f"function.{name}": value for name, value in self.function.state_dict().items()}
        tensors |= {f"constant.{name}": state[name] for name in _constants(self.module)}
        limits = zip(self.info.names, self.narrowest, self.info.full(), strict=True)
        record = MorphRecord(
            arch=self.spec.arch,
            settings=self.spec.settings,
            input_shape=self.spec.input_shape,
            config=self.config.model_dump(mode="json"),
            trained={name: (low, high) for name, low, high in limits},
            network_hash=_hash(state),
            data=None if self.data is None else self.data.model_dump(mode="json"),
            split_hash=self.split_hash,
        )
        note = {"version": VERSION, **record.model_dump(mode="json")}
        write_tensors(folder / MORPH, tensors, **{NOTE: json.dumps(note)})
        self.path = folder / MORPH
        return self.path

    @property
    def _name(self) -> str:
        return str(self.path or "this morph")


def plain_network(
    arch: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], keep_batch_norm: bool
) -> nn.Module:
    """Return an untrained network of an architecture at full width, in eval mode, with batch norm or folded.

    torch's random state stays as it was. Raises as `archs.build` and `archs.skeleton`.
    """
    if not keep_batch_norm:
        return archs.skeleton(arch, settings, input_shape)
    with torch.random.fork_rng(devices=()):
        return archs.build(arch, **settings).eval()


def open_morph(path: str | Path, device: torch.device | str = "cpu") -> SavedMorph:
    """Read what `SavedMorph.save` wrote: a run folder of `netspace morph fit`, or its `morph.safetensors` alone.

    Raises:
        UsageError: There is none at `path`, or it is of an architecture outside netspace that is not trusted.
        NetspaceError: The file is damaged, no morph, or of another version.

    >>> saved = open_morph(morph_run)  # the folder of a fit
    >>> network = saved.network(saved.info.at(0.5))  # a torch module with half the channels, in eval mode
    >>> network(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    path = _file(Path(path))
    tensors, metadata = read_tensors(path)
    if NOTE not in metadata:
        raise NetspaceError(
            f"{path} was expected to be a morph, as `netspace morph fit` writes, but holds other tensors: give the run folder "
            f"or {MORPH} in it"
        )
    note = parse_json(metadata[NOTE], str(path))
    version = note.get("version") if isinstance(note, dict) else None
    if version != VERSION:
        raise NetspaceError(f"{path} is a morph of version {version}; this netspace reads version {VERSION}")
    record = validated(note, MorphRecord, path)
    archs.resolve(record.arch)  # outside the block: an architecture that nobody trusted is no damage
    with _understood(path, "a morph, as `netspace morph fit` writes"):
        return _built(path, tensors, record, device)


def write_network(path: Path, network: nn.Module, spec: NetSpec, widths: Mapping[str, int], **metadata: str) -> None:
    """Write the state dict of a network whose groups of channels have other `widths` than those of `spec`, atomically.

    `metadata` are further entries of the file's metadata.
    """
    record = ResizedRecord(
        version=VERSION,
        arch=spec.arch,
        settings=spec.settings,
        input_shape=spec.input_shape,
        keeps_batch_norm=bool(batch_norms(network)),
        widths=dict(widths),
    )
    write_tensors(path, network.state_dict(), **{RESIZED: record.model_dump_json()}, **metadata)


def load_morphed(path: str | Path) -> nn.Module:
    """Return the network of a file that `netspace morph sample` wrote, in eval mode.

    Raises:
        UsageError: It is of an architecture outside netspace that is not trusted (`netspace.archs.trust`).
        NetspaceError: The file is missing, damaged, of another version, or holds something else.

    >>> from netspace.commands.morph_sample import Size, sample
    >>> result = sample(morph_run, folder / "net.safetensors", Size(width=0.75))
    >>> network = load_morphed(folder / "net.safetensors")
    >>> sum(value.numel() for value in network.parameters()) == result.parameters
    True
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if RESIZED not in metadata:
        raise NetspaceError(f"{path} was expected to be a network that `netspace morph sample` wrote, but is not")
    record = validated(parse_json(metadata[RESIZED], str(path)), ResizedRecord, path)
    if record.version != VERSION:
        raise NetspaceError(f"{path} is a network of version {record.version}; this netspace reads version {VERSION}")
    archs.resolve(record.arch)
    with _understood(path, "a network that `netspace morph sample` wrote"):
        with AllocationLimit(4 * sum(value.nbytes for value in tensors.values()) + 4 * SPARE_BYTES):
            module = plain_network(record.arch, record.settings, record.input_shape, record.keeps_batch_norm)
            info = find_widths(module, torch.zeros(1, *record.input_shape), record.arch)
        widths = info.named(record.widths)
        if info.shapes(module.state_dict(), widths) != {name: tuple(value.shape) for name, value in tensors.items()}:
            raise ValueError(
                "its tensors do not have the widths that it names"
            )  # before anything of these widths is made
        network = resized(module, info, widths, 0)
        network.load_state_dict(tensors)
        return network.eval()


@contextmanager
def _understood(path: Path, what: str) -> Iterator[None]:
    """Turn the errors of a block that builds what a file says into one sentence: `path` was expected to be `what`."""
    try:
        yield
    except (NetspaceError, LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        why = f"it has no {error}" if isinstance(error, KeyError) else first_line(error).rstrip(":")
        raise NetspaceError(f"{path} was expected to be {what}: {why}") from None


def _file(path: Path) -> Path:
    """Return the file of a morph, given it or its folder. Raises `UsageError` if there is none."""
    if not path.exists():
        raise UsageError(f"{path} does not exist: give the folder of a `netspace morph fit`, or {MORPH} in it")
    if not path.is_dir():
        return path
    if (path / MORPH).is_file():
        return path / MORPH
    begun = (path / "config.yaml").is_file()
    hint = "let it finish (`netspace morph fit --resume`)" if begun else "give that of a `netspace morph fit`"
    raise UsageError(f"{path} is a folder without {MORPH}: {hint}")


def _built(path: Path, tensors: Mapping[str, Tensor], record: MorphRecord, device: torch.device | str) -> SavedMorph:
    """Return the morph of a file. Raises `ValueError` and such for what does not fit together."""
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")
    config = validate(MorphConfig, record.config, str(path))
    if config.function.kind != "grid" and config.function.layers > len(tensors):
        raise ValueError(f"its function claims {config.function.layers} layers, more than it has tensors")
    with AllocationLimit(4 * sum(value.nbytes for value in tensors.values()) + SPARE_BYTES):
        module = plain_network(record.arch, record.settings, record.input_shape, config.batch_norm == "keep")
        info = find_widths(module, torch.zeros(1, *record.input_shape), record.arch)
        function = make_function(module, info, config.function, config.seed)
    full = dict(zip(info.names, info.full(), strict=True))
    if {name: high for name, (_, high) in record.trained.items()} != full:
        raise ValueError(f"{record.arch} has other groups of channels here than when it was written")
    function.load_state_dict(_part(tensors, "function."))
    module.load_state_dict(_part(tensors, "constant."), strict=False)
    has_original = (path.parent / NETWORK).is_file()
    if has_original:
        state, _ = read_tensors(path.parent / NETWORK)
        if _hash(state) != record.network_hash:
            raise ValueError(f"{path.parent / NETWORK} next to it is of another morph: move one of them")
        module.load_state_dict(state)
    else:
        with torch.no_grad():
            for name, value in function(info.full()).items():
                module.get_parameter(name).copy_(value)
    return SavedMorph(
        function.to(device).eval().requires_grad_(False),
        module.to(device),
        info,
        config,
        NetSpec.from_module(module, record.arch, record.settings, record.input_shape),
        None if record.data is None else validate(DataConfig, record.data, str(path)),
        record.split_hash,
        has_original,
        path,
    )


def _constants(module: nn.Module) -> list[str]:
    """Return the names of tensors in a state dict that are neither parameters nor statistics of batch norm."""
    statistics = {f"{path}.{name}" for path, norm in batch_norms(module).items() for name, _ in norm.named_buffers()}
    return [name for name in module.state_dict() if name not in statistics | dict(module.named_parameters()).keys()]


def _hash(state: Mapping[str, Tensor]) -> str:
    return hash_tensors(*(state[name].cpu() for name in sorted(state)))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def make_function(module: nn.Module, info: Widths, config: FunctionConfig, seed: int) -> WeightFunction:
    """Return a fresh weight function for the parameters of `module`; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return (WeightGrid if config.kind == "grid" else WeightMlps)(module, info, config)
