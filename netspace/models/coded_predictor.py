"""A network in a coordinate network whose own matrices are entropy-coded: a `Coded` file with the notes of a `Compressed`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError, first_line
from netspace.models.coded import Coded, Way, load_compressed
from netspace.models.compressed import NOTE, Compressed
from netspace.networks.rounding import Codes

CHANNELS = "netspace_channels"  # a note: the seed of the order that the network's channels have


@dataclass
class CodedPredictor(Compressed):
    """A `Compressed` whose file is a `Coded`: matrices are integers, and what 16 bits hold well is in 16 bits."""

    codes: dict[str, Codes] = field(default_factory=dict)  # of tensors of the file, by their names there
    halves: frozenset[str] = frozenset()  # names of those in 16 bits
    channels: int | None = None  # the seed of the channels' order (`smooth_orders`); None: as in the original

    @classmethod
    def of(
        cls, compressed: Compressed, codes: Mapping[str, Codes], halves: frozenset[str], channels: int | None = None
    ) -> Self:
        """Return a compressed network with codes for tensors of its file, which it takes its values from."""
        parts = {each.name: getattr(compressed, each.name) for each in fields(Compressed)}
        parts["bits"] = max((each.bits for each in codes.values()), default=compressed.bits)
        made = cls(**parts, codes=dict(codes), halves=halves, channels=channels)
        made._use(made.coded().reconstruct())
        return made

    def coded(self) -> Coded:
        """Return the file."""
        state = self.tensors({name: value.detach().cpu() for name, value in self.predictor.state_dict().items()})
        ways: dict[str, Way] = {
            **dict.fromkeys(self.halves & state.keys(), "half"),
            **dict.fromkeys(self.codes, "coded"),
        }
        notes: dict[str, Any] = {NOTE: self.note()}
        if self.channels is not None:
            notes[CHANNELS] = self.channels
        return Coded.of(state, self.codes, ways, notes=notes)

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        self.coded().save(path)

    def _use(self, stored: Mapping[str, Tensor]) -> None:
        """Take the values of the tensors of a file."""
        part = {
            name.removeprefix("predictor."): value for name, value in stored.items() if name.startswith("predictor.")
        }
        with torch.no_grad():
            own = self.predictor.state_dict()
            self.predictor.load_state_dict({name: part.get(name, value) for name, value in own.items()})
        self.rest = {name: stored[f"rest.{name}"] for name in self.rest}
        if self.norms is not None:
            self.norms = [stored[f"norm.{layer.name}"] for layer in self.kernels.layers]
        self.__dict__.pop("scales", None)  # which follows from the norms


def load_predictor(path: Path) -> Compressed:
    """Return the network of a file that has a coordinate network. Raises as `load_any`, and `UsageError` for another one."""
    loaded = load_any(path)
    if isinstance(loaded, Coded):
        raise UsageError(
            f"{path} is a network of coded weights, and this is about coordinate networks: give a file that `netspace compress "
            "fit` wrote without a size, or with --way coordinate"
        )
    return loaded


AnyCompressed = Compressed | Coded  # a `CodedPredictor` is a `Compressed`


def load_any(path: Path) -> AnyCompressed:
    """Return the network of a file that `netspace compress` wrote, of any kind. Raises as `load_compressed`."""
    loaded = load_compressed(path)
    if not isinstance(loaded, Coded) or NOTE not in loaded.notes:
        return loaded
    try:
        state = loaded.reconstruct()
        compressed = Compressed._of(state, dict(loaded.notes[NOTE]), str(path))
        codes = {name: each.value for name, each in loaded.entries.items() if isinstance(each.value, Codes)}
        halves = frozenset(name for name, each in loaded.entries.items() if each.way == "half")
        channels = loaded.notes.get(CHANNELS)
        return CodedPredictor.of(compressed, codes, halves, None if channels is None else int(channels))
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError, NetspaceError) as error:
        raise NetspaceError(
            f"{path} was expected to be a network in a coded coordinate network: {first_line(error)}"
        ) from None
