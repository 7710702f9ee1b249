"""A network held in a coordinate network: what is on disk, in 32, 8 or 4 bits, and the network that it gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspace.config import validate
from netspace.errors import NetspaceError, UsageError, first_line
from netspace.io import read_tensors, write_tensors
from netspace.models.coordinate_network import Distinct, Predictor, PredictorConfig
from netspace.models.kept_zeros import pack_zeros, unpack_zeros
from netspace.native.orders import KINDS, pack_order, unpack_order
from netspace.networks.kernels import Kernels, Layer
from netspace.networks.rounding import clipped
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import map_tensors


def check_bits(bits: int) -> None:
    """Raises `UsageError` for bits other than 4 and 8."""
    if bits not in (4, 8):
        raise UsageError(f"weights of {bits} bits were asked for, but they are packed in 8 or 4: give --bits 8 or 4")


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 (R, C) and scales float32 (R,) of a matrix (R, C), the clipping of each row by least squares.

    Raises `UsageError` for bits other than 4 and 8.
    """
    check_bits(bits)
    codes, scales = clipped(weight.detach().float(), bits)
    return codes.to(torch.int8), scales


def restore(codes: Tensor, scales: Tensor) -> Tensor:
    """The matrix (R, C), float32, of codes and scales."""
    return codes.float() * scales[:, None]


def pack4(codes: Tensor) -> Tensor:
    """Codes (...) of -8 to 7, any shape of n, as uint8 (ceil(n / 2),): the first of two in the lower half."""
    flat = codes.flatten().to(torch.int16).bitwise_and(15)
    pairs = torch.nn.functional.pad(flat, (0, len(flat) % 2)).view(-1, 2)
    return (pairs[:, 0] + 16 * pairs[:, 1]).to(torch.uint8)


def unpack4(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """What `pack4` packed as uint8 (ceil(n / 2),): the n codes, int8 of the shape."""
    wide = packed.to(torch.int16)
    codes = torch.stack([wide % 16, wide // 16], dim=1).flatten()[: shape[0] * shape[1]]
    return torch.where(codes > 7, codes - 16, codes).to(torch.int8).view(shape)


def pack(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Named tensors with each matrix as NAME.codes, of 4 bits packed, and NAME.scales; all others as they are."""
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dim() != 2:
            packed[name] = value
            continue
        codes, packed[f"{name}.scales"] = quantise(value, bits)
        packed[f"{name}.codes"] = pack4(codes) if bits == 4 else codes
    return packed


def unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """What `pack` packed, float32, for tensors of these shapes. Raises `KeyError` for one that is not there."""
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if f"{name}.codes" not in packed:
            found[name] = packed[name]
            continue
        codes = packed[f"{name}.codes"]
        codes = unpack4(codes, (shape[0], shape[1])) if codes.dtype == torch.uint8 else codes
        found[name] = restore(codes, packed[f"{name}.scales"])
    return found


VERSION = "4"


WITHOUT_ZEROS = "3"  # the version of files in which no layer's zeros are kept: they have been like this before 4


NOTE = "netspace_compressed"  # of the file, in which the rest lies as JSON


FLOAT = 32  # bits of a weight that is not quantised


MAX_RATIO = 10_000  # values that one byte of a file stands for at most: whole zoos of networks do not come near


# 1: before 1x1 convolutions could be tiled; 2: coordinates were always normalised; 3: zeros were not kept
READABLE = ("1", "2", WITHOUT_ZEROS, VERSION)


TYPES = {
    str(each).removeprefix("torch."): each for each in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
} | {
    name: getattr(torch, name) for name in dir(torch) if name.startswith("float8_")
}  # of weights, by the names they have in a file


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """The bytes of a state dict's values; a tensor of several names counts once."""
    return sum(value.numel() * value.element_size() for value in {id(each): each for each in state.values()}.values())


@dataclass
class Compressed:
    """A predictor and all that reconstruction needs beside it."""

    kernels: Kernels
    predictor: Predictor
    orders: list[Tensor]  # of each layer, (F * C,): which kernel lies at each coordinate
    kind: str  # of the orders
    norms: list[Tensor] | None  # of each layer, (F,): what its filters were divided by
    rest: dict[str, Tensor]  # not represented
    names: tuple[str, ...]  # of all tensors, in the network's order
    spec: NetSpec | None = None  # of the folded network, where its architecture is known
    bits: int = FLOAT  # of the predictor's weights in the file; 8 or 4: quantised
    types: dict[str, torch.dtype] = field(default_factory=dict)  # of represented tensors that are not float32
    tied: dict[str, str] = field(default_factory=dict)  # further names of tensors, and the first name of each
    zeros: dict[str, Tensor] = field(
        default_factory=dict
    )  # of pruned layers: which values are zero, bool in their shape

    @cached_property
    def packed_zeros(self) -> Tensor:
        """The zeros of all layers as the file has them, uint8 (bytes,)."""
        return pack_zeros(self.zeros)

    @cached_property
    def places(self) -> Tensor:
        """Where each coordinate's kernel lies among the kernels of the network, int64 (N,)."""
        starts = np.cumsum([0, *self.kernels.counts])[:-1].tolist()
        return torch.cat([order + start for order, start in zip(self.orders, starts, strict=True)])

    @cached_property
    def scales(self) -> Tensor:
        """What each kernel, in the network's order, was divided by, (N, 1, 1)."""
        counts = self.kernels.counts
        if self.norms is None:
            return torch.ones(sum(counts), 1, 1)
        pieces = [norm.repeat_interleave(count // len(norm)) for norm, count in zip(self.norms, counts, strict=True)]
        return torch.cat(pieces)[:, None, None]

    def weights(self, values: Tensor) -> dict[str, Tensor]:
        """The represented weights, float32, from predicted values (N, K * K) by coordinate; gradients flow through.

        Zeros that are kept are zero whatever is predicted, and pass no gradient.
        """
        places = self.places.to(values.device)
        kernels = torch.empty_like(values).index_copy(0, places, values).view(-1, self.kernels.side, self.kernels.side)
        weights = self.kernels.scatter(kernels * self.scales.to(values.device))
        for name, zeros in self.zeros.items():
            weights[name] = weights[name].masked_fill(zeros.to(values.device), 0.0)
        return self.with_tied(weights)

    def mask(self) -> Tensor:
        """Which predicted values are weights that are not kept as zeros, bool (N, K * K) by coordinate."""
        kept = {layer.name: torch.ones(layer.shape) for layer in self.kernels.layers}
        kept |= {name: (~zeros).float() for name, zeros in self.zeros.items()}
        return self.kernels.gather(kept).bool()[self.places].flatten(1)

    def with_tied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors, and each of them under its further names too."""
        return {**tensors, **{name: tensors[first] for name, first in self.tied.items() if first in tensors}}

    def replaced(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with other weights, in the types that it has."""
        typed = {name: value.to(state[name].dtype) for name, value in weights.items()}
        return {**state, **self.with_tied(typed)}

    def represented(self, state: Mapping[str, Tensor]) -> Tensor:
        """The weights of a state dict that the predictor represents, in the network's order (N, K, K)."""
        return self.kernels.gather(state)

    def targets(self, state: Mapping[str, Tensor]) -> Tensor:
        """What the predictor should say for a state dict's weights, (N, K * K) by coordinate."""
        return (self.kernels.gather(state) / self.scales)[self.places].flatten(1)

    def coordinates(self, device: torch.device | str = "cpu") -> Distinct:
        """What the predictor is asked for, (N, 3): raw or normalised, as its settings say."""
        normalised = self.predictor.config.embedding.coordinates == "normalised"
        return Distinct.of(self.kernels.coordinates(normalised).to(device))

    @torch.no_grad()
    def reconstruct(self) -> dict[str, Tensor]:
        """The whole state dict, from this alone, every tensor in the type it was given in."""
        coordinates = self.coordinates()
        values = torch.cat([self.predictor(piece) for piece in coordinates.split(1 << 16)])
        weights = {name: value.to(self.types.get(name, value.dtype)) for name, value in self.weights(values).items()}
        state = self.with_tied({**self.rest, **weights})
        return map_tensors({name: state[name] for name in self.names}, lambda value: value.detach().clone())

    def save(self, path: Path) -> None:
        """Writes the file, atomically; what was read quantised is so again."""
        held = {name: value.detach().cpu() for name, value in self.predictor.state_dict().items()}
        held = held if self.bits == FLOAT else pack(held, self.bits)
        write_tensors(path, self.tensors(held), **{NOTE: json.dumps(self.note())})

    def tensors(self, predictor: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file, given those of the predictor as it has them."""
        tensors = {f"predictor.{name}": value for name, value in predictor.items()}
        for place, layer in enumerate(self.kernels.layers):
            packed = pack_order(self.orders[place].numpy(), layer.grid(self.kernels.side), self.kind)
            if len(packed):
                tensors[f"order.{layer.name}"] = torch.from_numpy(packed)
            if self.norms is not None:
                tensors[f"norm.{layer.name}"] = self.norms[place]
        if self.zeros:
            tensors["zeros"] = self.packed_zeros
        return tensors | {f"rest.{name}": value.detach().cpu().contiguous() for name, value in self.rest.items()}

    def note(self) -> dict[str, Any]:
        """Return the note of a file, which says what its tensors are."""
        zeros = {"zeros": list(self.zeros)} if self.zeros else {}
        return {
            "version": VERSION if self.zeros else WITHOUT_ZEROS,
            "kind": self.kind,
            "side": self.kernels.side,
            "layers": [[layer.name, list(layer.shape), layer.tiled] for layer in self.kernels.layers],
            "names": list(self.names),
            "predictor": self.predictor.config.model_dump(mode="json"),
            "bits": self.bits,
            "spec": None if self.spec is None else self.spec.to_json(),
            "types": {name: str(each).removeprefix("torch.") for name, each in self.types.items()},
            "tied": self.tied,
            **zeros,
        }

    @classmethod
    def load(cls, path: Path) -> Compressed:
        """What `save` wrote. Raises `NetspaceError` for another file or version, `UsageError` if there is none."""
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder: give the compressed network in it, {path / 'compressed.safetensors'}"
            )
        if not path.is_file():
            raise UsageError(f"{path} does not exist: give a file that `netspace compress fit` wrote")
        tensors, notes = read_tensors(path)
        try:
            told: dict[str, Any] = json.loads(notes[NOTE])
            version = told["version"]
            if version in READABLE:
                return cls._of(tensors, told, str(path))
        except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else first_line(error).rstrip(":")
            raise NetspaceError(
                f"{path} was expected to be a compressed network, as `netspace compress fit` writes: {why}"
            ) from None
        except NetspaceError as error:
            raise NetspaceError(f"{path} was not written by this version of netspace: {error}") from None
        raise NetspaceError(
            f"{path} is a compressed network of version {version}; this reads {', '.join(READABLE[:-1])} and {VERSION}"
        )

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], told: dict[str, Any], origin: str) -> Compressed:
        """What a file's tensors and note say. Raises `KeyError`, `ValueError` and such for what does not fit together."""
        kernels = Kernels(
            tuple(Layer(name, tuple(shape), *tiled) for name, shape, *tiled in told["layers"]), int(told["side"])
        )
        if not kernels.layers:
            raise ValueError("it has no layers")
        if told["kind"] not in KINDS:
            raise ValueError(f"{told['kind']!r} is no order of kernels")
        settings = told["predictor"]
        if told["version"] in READABLE[:2]:
            settings = {**settings, "embedding": {"coordinates": "normalised", **settings.get("embedding", {})}}
        config = validate(PredictorConfig, settings, origin)
        _check_claims(config, kernels, tensors)
        predictor = Predictor(config, kernels.side**2)
        shapes = {name: value.shape for name, value in predictor.state_dict().items()}
        predictor.load_state_dict(unpack(_part(tensors, "predictor."), shapes))
        for name, value in predictor.state_dict().items():
            if not torch.isfinite(value).all():
                raise ValueError(f"the predictor's {name} holds values that are not finite")
        packed, norms = _part(tensors, "order."), _part(tensors, "norm.")
        orders = []
        for layer in kernels.layers:
            grid, held = layer.grid(kernels.side), packed.get(layer.name)
            order = unpack_order(np.empty(0, np.uint8) if held is None else held.numpy(), grid, told["kind"])
            if not np.array_equal(np.sort(order), np.arange(prod(grid))):
                raise ValueError(f"the order of {layer.name} leaves kernels out")
            orders.append(torch.from_numpy(order))
            if norms and norms[layer.name].shape != grid[:1]:
                raise ValueError(f"{layer.name} has {grid[0]} filters and norms of another number")
        rest = _part(tensors, "rest.")
        represented = {layer.name for layer in kernels.layers}
        types = {str(name): TYPES[each] for name, each in dict(told.get("types", {})).items()}
        tied = {str(name): str(first) for name, first in dict(told.get("tied", {})).items()}
        if not types.keys() <= represented or not {*tied.values()} <= {*rest, *represented}:
            raise ValueError("it gives a type or a further name to a tensor that it does not hold")
        if sorted(told["names"]) != sorted([*rest, *represented, *tied]):
            raise ValueError("its tensors are not those that it names")
        return cls(
            kernels,
            predictor,
            orders,
            told["kind"],
            [norms[layer.name] for layer in kernels.layers] if norms else None,
            rest,
            tuple(told["names"]),
            NetSpec.from_json(told["spec"]) if told["spec"] else None,
            int(told.get("bits", FLOAT)),
            types,
            tied,
            _zeros(tensors, told, kernels),
        )

    def sizes(self) -> dict[str, int]:
        """How many values the network has, how many of them are represented, how many the predictor has, and kept zeros."""
        represented = self.kernels.parameters
        return {
            "parameters_original": represented + sum(prod(value.shape) for value in self.rest.values()),
            "parameters_represented": represented,
            "parameters_predictor": sum(value.numel() for value in self.predictor.parameters()),
            "zeros": sum(int(value.sum()) for value in self.zeros.values()),
            "bytes_zeros": len(self.packed_zeros),
        }


def _zeros(tensors: Mapping[str, Tensor], told: Mapping[str, Any], kernels: Kernels) -> dict[str, Tensor]:
    """Return which values are zero in layers whose zeros are kept. Raises `KeyError` and `ValueError`."""
    names = [str(name) for name in told.get("zeros", ())]
    layers = {layer.name: layer for layer in kernels.layers}
    if len(set(names)) != len(names) or not layers.keys() >= set(names):
        raise ValueError("it keeps the zeros of a layer twice, or of one that it does not represent")
    return unpack_zeros(tensors["zeros"], [layers[name] for name in names]) if names else {}


def _check_claims(config: PredictorConfig, kernels: Kernels, tensors: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for sizes that a file's own tensors cannot stand for, before anything of such sizes is made."""
    stored = sum(value.numel() * value.element_size() for value in tensors.values())
    if config.layers > len(_part(tensors, "predictor.")):
        raise ValueError(f"its predictor claims {config.layers} layers, more than it has tensors")
    with torch.device("meta"):
        claimed = sum(value.numel() for value in Predictor(config, kernels.side**2).state_dict().values())
    if claimed > 2 * stored:  # of 4 bits each
        raise ValueError(f"its predictor claims {claimed:,} values, more than its {stored:,} bytes hold")
    if kernels.parameters > MAX_RATIO * stored:
        raise ValueError(
            f"its layers claim {kernels.parameters:,} values, {MAX_RATIO} times more than its {stored:,} bytes"
        )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
