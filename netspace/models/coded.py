"""A network in a small file: each tensor as it is, in 16 bits, as integers of a few bits, or as entropy-coded integers.

The file is safetensors with one tensor of bytes, so that its header stays short: a compressed index, and the values. All
integers of all entropy-coded tensors are one stream. Axes: R rows (filters), C columns of a tensor as a matrix."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError, first_line
from netspace.io import HASH, hash_named, read_tensors, write_tensors
from netspace.models.coded_bytes import bytes_of, deflated, expanded, inflated, pack, run_lengths, tensor_of, unpack
from netspace.models.compressed import NOTE, Compressed
from netspace.native.coding import decode_all, encode_all
from netspace.networks.rounding import Codes, kernel_positions
from netspace.networks.spec import NetSpec

CODED = "netspace_coded"  # the key of the version in the file's metadata
VERSION = "1"
DATA = "data"  # the name of the only tensor
MAX_VALUES_OF_BYTE = 32_768  # that a file can stand for: zeros cost a 22,000th of a byte
MAX_INDEX = 1 << 26  # bytes of an index, uncompressed
Way = Literal["raw", "half", "rounded", "coded"]
WAYS: tuple[Way, ...] = ("raw", "half", "rounded", "coded")
TYPES = {
    str(each).removeprefix("torch."): each
    for each in vars(torch).values()
    if isinstance(each, torch.dtype)
    and not str(each).startswith(("torch.q", "torch.bits", "torch.int1", "torch.uint1"))
} | {"int16": torch.int16, "uint16": torch.uint16}


@dataclass(frozen=True)
class Entry:
    """One tensor of a network, and its way into the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    way: Way
    value: Tensor | Codes  # the tensor itself, or its codes if the way is 'rounded' or 'coded'

    def restore(self) -> Tensor:
        """Return the tensor in its shape and type."""
        if isinstance(self.value, Codes):
            return self.value.restore(self.shape, self.dtype)
        value = self.value.half() if self.way == "half" else self.value
        return value.to(self.dtype).clone(memory_format=torch.contiguous_format)

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Coded:
    """A network as its file has it."""

    names: tuple[str, ...]  # of all tensors, in the network's order
    entries: dict[str, Entry]  # of every tensor once
    tied: dict[str, str]  # further names of tensors, and the first name of each
    spec: NetSpec | None = None  # of the folded network, where its architecture is known
    notes: dict[str, Any] = field(default_factory=dict)  # JSON that the file has too

    @classmethod
    def of(
        cls,
        state: Mapping[str, Tensor],
        codes: Mapping[str, Codes],
        way: Way | Mapping[str, Way] = "coded",
        spec: NetSpec | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Coded:
        """Return the network of a state dict in which tensors with codes are these codes.

        `way` is that of all tensors with codes, 'coded' or 'rounded' (each value in the bits of the tensor's largest), or of
        tensors by name; others with codes are 'coded', others without are 'raw'. A tensor of several names (the same
        memory) is stored once, by the codes and the way of the first.

        Raises `UsageError` for codes and ways that do not fit the state dict.
        """
        ways: dict[str, Way] = dict.fromkeys(codes, way) if isinstance(way, str) else dict(way)
        for name in [*codes, *ways]:
            if name not in state:
                raise UsageError(f"codes or a way of {name!r} were given, but the network has no such tensor")
        entries: dict[str, Entry] = {}
        tied: dict[str, str] = {}
        first_names: dict[tuple[Any, ...], str] = {}
        for name, value in state.items():
            memory = (
                value.untyped_storage().data_ptr(),
                value.storage_offset(),
                value.shape,
                value.stride(),
                value.dtype,
            )
            first = first_names.setdefault(memory if value.numel() else (name,), name)
            if first != name:
                tied[name] = first
                continue
            entries[name] = _entry(name, value.detach().cpu(), codes.get(name), ways.get(name))
        return cls(tuple(state), entries, tied, spec, dict(notes or {}))

    def reconstruct(self) -> dict[str, Tensor]:
        """Return the whole state dict, every tensor in the type that it was given in; tied names have one tensor."""
        restored = {name: entry.restore() for name, entry in self.entries.items()}
        return {name: restored[self.tied.get(name, name)] for name in self.names}

    def represented(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the weights of a state dict that are integers in the file, float32 (N,), in the network's order."""
        coded = [
            state[name].detach().float().flatten()
            for name, each in self.entries.items()
            if isinstance(each.value, Codes)
        ]
        return torch.cat(coded) if coded else torch.empty(0)

    def sizes(self) -> dict[str, int]:
        """Return how many values the network has, and how many of them are integers in the file."""
        return {
            "parameters_original": sum(entry.numel for entry in self.entries.values()),
            "parameters_represented": sum(e.numel for e in self.entries.values() if isinstance(e.value, Codes)),
        }

    def payload(self) -> bytes:
        """Return the bytes of the file's only tensor: the length of the index, the index and the values."""
        sections = self._sections()
        index = zlib.compress(json.dumps(self._index(sections), separators=(",", ":")).encode(), 9)
        return len(index).to_bytes(4, "little") + index + b"".join(sections)

    def file_bytes(self, payload: bytes | None = None) -> int:
        """Return the number of bytes of the file that `save` writes; `payload` spares making it again."""
        size = len(self.payload() if payload is None else payload)
        metadata = {CODED: VERSION, HASH: hash_named({}, {})}
        header = {"__metadata__": metadata, DATA: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        text = len(json.dumps(header, separators=(",", ":")))
        return 8 + text + -text % 8 + size

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        data = torch.frombuffer(bytearray(self.payload()), dtype=torch.uint8)
        write_tensors(path, {DATA: data}, **{CODED: VERSION})

    @classmethod
    def load(cls, path: Path) -> Coded:
        """Return what `save` wrote.

        Raises `NetspaceError` for a damaged or another file or version, `UsageError` if there is none.
        """
        loaded = load_compressed(path)
        if not isinstance(loaded, cls):
            raise NetspaceError(
                f"{path} was expected to be a network of coded weights, but it is one in a coordinate network"
            )
        return loaded

    def _sections(self) -> list[bytes]:
        """Return the values as bytes: tensors as they are, rounded ones, steps, and the stream of coded ones."""
        raw, packed, steps = bytearray(), bytearray(), bytearray()
        coded: list[Codes] = []
        for entry in self.entries.values():
            if isinstance(entry.value, Codes):
                kept = _short(entry.value.steps)
                steps += bytes_of(entry.value.steps if kept is None else kept)
                if entry.way == "rounded":
                    packed += pack(entry.value.values, entry.value.bits)
                else:
                    coded.append(entry.value)
            else:
                raw += bytes_of(entry.value.half() if entry.way == "half" else entry.value)
        matrices = [codes.values.numpy() for codes in coded]
        periods = [kernel_positions(entry.shape) for entry in self.entries.values() if entry.way == "coded"]
        return [deflated(bytes(raw)), bytes(packed), deflated(bytes(steps)), encode_all(matrices, periods)]

    def _index(self, sections: list[bytes]) -> dict[str, Any]:
        entries = self.entries.values()
        codes = [entry.value for entry in entries if isinstance(entry.value, Codes)]
        index: dict[str, Any] = {
            "names": list(self.entries),
            "shapes": [entry.shape for entry in entries],
            "types": run_lengths([str(entry.dtype).removeprefix("torch.") for entry in entries]),
            "ways": run_lengths([WAYS.index(entry.way) for entry in entries]),
            "steps": run_lengths([int(len(each.steps) != 1) + 2 * int(_short(each.steps) is None) for each in codes]),
            "bits": [e.value.bits for e in entries if e.way == "rounded" and isinstance(e.value, Codes)],
            "sections": [len(section) for section in sections],
        }
        if self.tied:
            index |= {"tied": self.tied, "order": list(self.names)}
        if self.spec is not None:
            spec = asdict(self.spec)
            if [spec["names"], spec["shapes"]] == [tuple(self.entries), tuple(entry.shape for entry in entries)]:
                del spec["names"], spec["shapes"]  # which the index has
            index["spec"] = spec
        if self.notes:
            index["notes"] = self.notes
        return index

    @classmethod
    def _of(cls, payload: bytes) -> Coded:
        """Return the network of a payload. Raises `ValueError`, `KeyError` and such for what does not fit together."""
        length = int.from_bytes(payload[:4], "little")
        index = json.loads(inflated(payload[4 : 4 + length], MAX_INDEX))
        names = [str(name) for name in index["names"]]
        shapes = [tuple(int(side) for side in shape) for shape in index["shapes"]]
        types = [TYPES[each] for each in expanded(index["types"], len(names))]
        ways = [WAYS[each] for each in expanded(index["ways"], len(names))]
        if len(shapes) != len(names) or len(set(names)) != len(names) or any(side < 0 for s in shapes for side in s):
            raise ValueError("its tensors are not those that it names")
        claimed = sum(math.prod(shape) for shape in shapes)
        if claimed > MAX_VALUES_OF_BYTE * len(payload):
            raise ValueError(f"it claims {claimed:,} values, more than its {len(payload):,} bytes can stand for")
        sections, start = [], 4 + length
        for size in index["sections"]:
            sections.append(payload[start : start + int(size)])
            start += int(size)
        if start != len(payload) or min(index["sections"]) < 0:
            raise ValueError("the lengths of its parts do not fit its own")
        reader = _Reader(names, shapes, types, ways, index, sections)
        entries = reader.entries()
        tied = {str(name): str(first) for name, first in dict(index.get("tied", {})).items()}
        order = tuple(str(name) for name in index["order"]) if tied else tuple(names)
        if sorted(order) != sorted([*names, *tied]) or not {*tied.values()} <= {*names}:
            raise ValueError("its tensors are not those that it names")
        spec = index.get("spec")
        if spec is not None:
            spec = NetSpec.from_json(json.dumps({"names": names, "shapes": shapes, **spec}))
        return cls(order, entries, tied, spec, dict(index.get("notes", {})))


class _Reader:
    """The tensors of a file's sections."""

    def __init__(
        self,
        names: list[str],
        shapes: list[tuple[int, ...]],
        types: list[torch.dtype],
        ways: list[Way],
        index: Mapping[str, Any],
        sections: list[bytes],
    ) -> None:
        self.tensors = list(zip(names, shapes, types, ways, strict=True))
        matrices = [_matrix(shape) for _, shape, _, way in self.tensors if way == "coded"]
        periods = [kernel_positions(shape) for _, shape, _, way in self.tensors if way == "coded"]
        raw, packed, steps, stream = sections
        self.packed = memoryview(packed)
        with_codes = [each for each in self.tensors if each[3] in ("rounded", "coded")]
        self.kinds = iter([int(kind) for kind in expanded(index["steps"], len(with_codes))])
        self.bits = iter([int(bits) for bits in index["bits"]])
        lengths = [
            math.prod(shape) * (2 if way == "half" else dtype.itemsize)
            for _, shape, dtype, way in self.tensors
            if way in ("raw", "half")
        ]
        self.raw = memoryview(inflated(raw, sum(lengths)))
        self.steps = memoryview(inflated(steps, 4 * sum(_matrix(shape)[0] + 1 for _, shape, _, _ in with_codes)))
        if len(self.raw) != sum(lengths):
            raise ValueError("its tensors are not as long as it says")
        self.matrices = iter(decode_all(stream, matrices, periods))

    def entries(self) -> dict[str, Entry]:
        """Return all tensors, in the order of the file."""
        entries = {
            name: Entry(shape, dtype, way, self._value(shape, dtype, way)) for name, shape, dtype, way in self.tensors
        }
        if self.steps or self.packed or self.raw or next(self.bits, None) is not None:
            raise ValueError("it has more bytes than its tensors")
        return entries

    def _value(self, shape: tuple[int, ...], dtype: torch.dtype, way: Way) -> Tensor | Codes:
        if way in ("raw", "half"):
            kept = torch.float16 if way == "half" else dtype
            size = math.prod(shape) * kept.itemsize
            self.raw, taken = self.raw[size:], self.raw[:size]
            return tensor_of(taken, kept).view(shape).to(dtype)
        rows, columns = _matrix(shape)
        kind = next(self.kinds)
        kept, count = (torch.bfloat16 if kind < 2 else torch.float32), rows if kind % 2 else 1
        size = count * kept.itemsize
        self.steps, taken = self.steps[size:], self.steps[:size]
        steps = tensor_of(taken, kept).float()
        if len(steps) != count or not torch.isfinite(steps).all():
            raise ValueError("its steps are not finite numbers, one for each row or tensor")
        if way == "coded":
            return Codes(torch.from_numpy(next(self.matrices)), steps)
        bits = next(self.bits, 0)
        size = -(-rows * columns * bits // 8)
        self.packed, taken = self.packed[size:], self.packed[:size]
        return Codes(unpack(taken, bits, (rows, columns)), steps)


def load_compressed(path: Path) -> Compressed | Coded:
    """Return the network of a compressed file of either kind: in a coordinate network, or of coded weights.

    Raises `NetspaceError` for a damaged or another file or version, `UsageError` if there is none.
    """
    if not path.is_file():
        return Compressed.load(path)  # says what is wrong
    tensors, metadata = read_tensors(path)
    if NOTE in metadata or CODED not in metadata:
        return Compressed.load(path)
    if metadata[CODED] != VERSION:
        raise NetspaceError(
            f"{path} is a network of coded weights of version {metadata[CODED]}; this netspace reads version {VERSION}"
        )
    try:
        return Coded._of(tensors[DATA].numpy().tobytes())
    except (
        LookupError,
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        StopIteration,
        NetspaceError,
        zlib.error,
        RecursionError,
    ) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise NetspaceError(f"{path} was expected to be a network of coded weights: {why}") from None


def _entry(name: str, value: Tensor, codes: Codes | None, way: Way | None) -> Entry:
    way = way or ("raw" if codes is None else "coded")
    if way not in WAYS:
        raise UsageError(f"{name} was to be stored as {way!r}, but tensors are stored as {', '.join(WAYS)}")
    shape = tuple(value.shape)
    if way in ("raw", "half"):
        if str(value.dtype).removeprefix("torch.") not in TYPES or value.layout != torch.strided:
            raise UsageError(f"{name} is of {value.dtype}, {value.layout}, which is no dense tensor of plain numbers")
        if way == "half" and not (value.is_floating_point() and value.half().isfinite().equal(value.isfinite())):
            way = "raw"  # integers, and values beyond 16 bits
        return Entry(shape, value.dtype, way, value)
    if codes is None:
        raise UsageError(f"{name} was to be stored as {way!r}, but it has no codes")
    if tuple(codes.values.shape) != _matrix(shape) or not value.is_floating_point():
        raise UsageError(
            f"codes of shape {tuple(codes.values.shape)} were given for {name}, a tensor of {value.dtype} and shape {shape}"
        )
    return Entry(shape, value.dtype, way, Codes(codes.values.cpu().contiguous(), codes.steps.cpu().contiguous()))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape (R, C) of a tensor's codes."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _short(steps: Tensor) -> Tensor | None:
    """Return steps in bfloat16 if nothing is lost by it."""
    short = steps.bfloat16()
    return short if torch.equal(short.float(), steps) else None
