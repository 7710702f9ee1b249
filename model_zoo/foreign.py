"""Zoos of other programs as they are stored: numpy matrices, HDF5, folders of checkpoints. Nothing in them is run.

A reader finds out what the networks are, how many there are, and what is known of each; weights are read when they are
wanted, some networks at a time. docs/other-zoos.md describes the formats.

Axes: M members (networks), V values of a row of a matrix, P parameters.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from netspace.errors import NetspaceError, UsageError, first_line, unknown
from netspace.io import parse_json
from netspace.networks.state_dict import StateDict, read_state_dict
from netspace.zoo.storage import inside

CHUNK = 1024  # rows of a matrix that are read at once
KERNELS = {
    4: (3, 2, 0, 1),
    2: (1, 0),
}  # axes of convolutions (H, W, in, out) and linear layers (in, out), in torch's order
LAYOUT = ("varname", "start_idx", "end_idx", "shape")
METRICS = ("modeldir", "step", "train_accuracy", "test_accuracy")
ACTIVATION = "config.activation"
NO_SEED = -1  # of networks whose seed is not known


@dataclass(frozen=True)
class Variable:
    """A tensor in the rows of a matrix: `values[start:][:size]` in `shape`, of another program's order of axes."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def layer(self) -> str:
        """Its name without the last part."""
        return re.sub(r"[./][^./]*$", "", self.name)

    @property
    def is_bias(self) -> bool:
        """Whether it is a layer's bias, and not a kernel."""
        return re.split(r"[./]", self.name)[-1].partition(":")[0] in ("bias", "b")

    def columns(self) -> np.ndarray:
        """Return the indices (V,) of its values in a row, in torch's order."""
        index = np.arange(self.start, self.start + prod(self.shape)).reshape(self.shape)
        return index if self.is_bias else index.transpose(KERNELS.get(len(self.shape), range(len(self.shape))))


@dataclass
class ForeignZoo:
    """The networks of another program's zoo: rows of a matrix, or files of state dicts."""

    format: str
    path: Path
    facts: dict[str, list[Any]]  # of each network by column, such as run, epochs, accuracy_test
    variables: list[Variable] = field(default_factory=list)  # of a matrix, layer by layer, weight before bias
    rows: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None  # of a matrix: rows (M,) to float32 (m, V)
    state: Callable[[int], Mapping[str, Tensor]] | None = None  # of files: the state dict of a network

    def __len__(self) -> int:
        return len(self.facts["run"])

    def select(self, conditions: Mapping[str, str]) -> np.ndarray:
        """Return the rows (M,) of networks whose columns have these values. Raises `UsageError` for another column, or none left."""
        keep = np.ones(len(self), bool)
        for name, value in conditions.items():
            if name not in self.facts:
                raise unknown(f"column of {self.path}", name, self.facts)
            keep &= np.array([str(each) == value for each in self.facts[name]])
        if not keep.any():
            raise UsageError(f"no network of {self.path} has {', '.join(f'{k}={v}' for k, v in conditions.items())}")
        return np.flatnonzero(keep)


def _chunks(index: np.ndarray, read: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield float32 (m, V) of rows (M,) in ascending order; `read` returns those from a first row up to an end."""
    for chunk in np.array_split(index, -(-len(index) // CHUNK)):
        spans = np.split(chunk, np.flatnonzero(np.diff(chunk) != 1) + 1)  # of rows that follow each other
        yield np.concatenate([read(int(span[0]), int(span[-1]) + 1) for span in spans]).astype(np.float32, copy=False)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which 'conv2d_10' follows 'conv2d_2'."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _by_layer(variables: Sequence[Variable]) -> list[Variable]:
    return sorted(variables, key=lambda each: (_natural(each.layer), each.is_bias))


def open_foreign(path: Path, format: str | None = None) -> ForeignZoo:
    """Read what is known of the networks at `path`; without `format`, it is found from what is there.

    Raises `UsageError` for a path or format that is not known, `NetspaceError` for files that are not as the format says.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: give a file or folder of networks")
    format = format or _found(path)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    try:
        zoo = FORMATS[format](path)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise NetspaceError(
            f"{path} was expected to be of the format {format}, but it is not: {first_line(error)}"
        ) from None
    if not len(zoo):
        raise NetspaceError(f"{path} holds no network of the format {format}")
    return zoo


def _found(path: Path) -> str:
    if path.is_file() and h5py.is_hdf5(path):
        return "fit-a-nef"
    if (path / "weights.npy").exists() or (path / "layout.csv").exists():
        return "small-cnn"
    if next(path.glob("*/params.json"), None) or next(path.glob("*/result.json"), None):
        return "hsg"
    if (path / "config.json").exists() or next(path.glob("*/config.json"), None):
        return "hub"
    raise UsageError(
        f"{path} is of no format that is known here ({', '.join(FORMATS)}): name it by --format, or give files of state dicts"
    )


def _csv(path: Path, required: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of a CSV file, which may be compressed by gzip."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    if not path.exists():
        raise NetspaceError(f"{path.with_suffix('')} was expected, but it is not there")
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="", encoding="utf-8") as file:
        try:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if missing := [name for name in required if name not in names]:
                raise NetspaceError(
                    f"{path} was expected to have the columns {', '.join(required)}, but lacks {', '.join(missing)}"
                )
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError, EOFError) as error:
            raise NetspaceError(
                f"{path} was expected to be a CSV file, but does not parse: {first_line(error)}"
            ) from None
    if uneven := next((number for number, row in enumerate(rows, 2) if len(row) != len(names)), None):
        raise NetspaceError(f"line {uneven} of {path} was expected to have {len(names)} values, one for each column")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}


def _small_cnn(folder: Path) -> ForeignZoo:
    """Read a folder of the Small CNN Zoo (Unterthiner et al. 2020): weights.npy, metrics.csv, layout.csv."""
    layout, metrics = _csv(folder / "layout.csv", LAYOUT), _csv(folder / "metrics.csv", METRICS)
    variables = []
    for name, start, end, shape in zip(*(layout.get(key, []) for key in LAYOUT), strict=True):
        sides = tuple(int(side) for side in re.findall(r"\d+", shape))
        if int(end) - int(start) != prod(sides):
            raise NetspaceError(
                f"{folder / 'layout.csv'} gives {name} the columns {start} to {end}, but the shape {shape}"
            )
        variables.append(Variable(name, sides, int(start)))
    file = folder / "weights.npy"
    with open(file, "rb") as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        offset = opened.tell()
    if len(shape) != 2 or fortran or dtype.kind != "f":
        raise NetspaceError(f"{file} was expected to be a matrix of floating-point rows, but is {shape} of {dtype}")
    if file.stat().st_size < offset + prod(shape) * dtype.itemsize:
        raise NetspaceError(f"{file} is shorter than its {shape[0]:,} rows of {shape[1]:,} values")
    count = len(metrics.get("modeldir", ()))
    if shape[0] != count:
        raise NetspaceError(f"{file} has {shape[0]:,} rows, but {folder / 'metrics.csv'} describes {count:,} networks")
    ends = sorted((each.start, each.start + prod(each.shape)) for each in variables)
    if [start for start, _ in ends] + [shape[1]] != [0] + [end for _, end in ends]:
        raise NetspaceError(f"{folder / 'layout.csv'} does not describe the {shape[1]:,} columns of {file} once each")

    def rows(index: np.ndarray) -> Iterator[np.ndarray]:
        with open(file, "rb") as matrix:

            def read(first: int, end: int) -> np.ndarray:
                matrix.seek(offset + first * shape[1] * dtype.itemsize)
                return np.fromfile(matrix, dtype, (end - first) * shape[1]).reshape(-1, shape[1])

            yield from _chunks(index, read)

    facts: dict[str, list[Any]] = {
        **metrics,
        "run": metrics["modeldir"],
        "epochs": [int(float(each)) for each in metrics["step"]],
        "accuracy_train": [float(each) for each in metrics["train_accuracy"]],
        "accuracy_test": [float(each) for each in metrics["test_accuracy"]],
    }
    if "config.learning_rate" in metrics:
        facts["learning_rate"] = [float(each) for each in metrics["config.learning_rate"]]
    return ForeignZoo("small-cnn", folder, facts, _by_layer(variables), rows)


def _fit_a_nef(path: Path) -> ForeignZoo:
    """Read an HDF5 file of fit-a-nef (Papa et al. 2024): `params` (M, V), and `param_config`, JSON of names and shapes."""
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        params, raw = inside(file, "params", h5py.Dataset, size), file["param_config"]
        if params.ndim != 2 or params.dtype.kind != "f":
            raise NetspaceError(
                f"params of {path} was expected to be a matrix of floating-point rows, but is {params.shape}"
            )
        count, width = params.shape
        text = raw[()] if raw.shape == () else raw[0]
        config = parse_json(text.decode() if isinstance(text, bytes) else str(text), f"param_config of {path}")
    variables, start = [], 0
    for name, shape in config:
        variables.append(Variable(str(name), tuple(int(side) for side in shape), start))
        start += prod(variables[-1].shape)
    if start != width:
        raise NetspaceError(f"param_config of {path} describes {start:,} values, but rows of params have {width:,}")

    def rows(index: np.ndarray) -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            yield from _chunks(index, lambda first, end: file["params"][first:end])

    numbers = list(range(count))
    return ForeignZoo("fit-a-nef", path, {"run": numbers, "seed": numbers}, _by_layer(variables), rows)


def _hsg(folder: Path) -> ForeignZoo:
    """Read a model zoo of HSG (Schürholt et al. 2022): a folder for each training with params.json, result.json, checkpoints."""
    facts: dict[str, list[Any]] = {
        name: []
        for name in ("run", "epochs", "seed", "learning_rate", "accuracy_train", "accuracy_val", "accuracy_test")
    }
    files: list[Path] = []
    for model in sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: _natural(each.name)):
        if not (model / "result.json").exists():
            continue
        config_file = model / "params.json"
        config = parse_json(config_file.read_text(), str(config_file)) if config_file.exists() else {}
        lines = [
            parse_json(line, str(model / "result.json"))
            for line in (model / "result.json").read_text().splitlines()
            if line.strip()
        ]
        figures = {int(line["training_iteration"]): line for line in lines}
        for checkpoint in sorted(model.glob("checkpoint_*"), key=lambda each: _natural(each.name)):
            file, epoch = checkpoint / "checkpoints", int(checkpoint.name.rpartition("_")[2])
            if not file.is_file():
                raise NetspaceError(f"{checkpoint} was expected to hold the file 'checkpoints', but does not")
            known = figures.get(epoch, {})
            files.append(file)
            facts["run"].append(model.name)
            facts["epochs"].append(epoch)
            facts["seed"].append(int(config.get("seed", NO_SEED)))
            facts["learning_rate"].append(float(config.get("optim::lr", np.nan)))
            for ours, theirs in (("train", "train_acc"), ("val", "validation_acc"), ("test", "test_acc")):
                facts[f"accuracy_{ours}"].append(float(known.get(theirs, np.nan)))
    return ForeignZoo("hsg", folder, facts, state=lambda index: read_state_dict(files[index]))


def _hub(folder: Path) -> ForeignZoo:
    """Read folders of a hub of models: config.json and safetensors, in one file or in several with an index."""
    folders = (
        [folder] if (folder / "config.json").exists() else sorted(each.parent for each in folder.glob("*/config.json"))
    )
    names = []
    for each in folders:
        config = parse_json((each / "config.json").read_text(), str(each / "config.json"))
        listed = config.get("architectures") or [config.get("architecture", "")]  # transformers' name, or timm's
        names.append(str(listed[0]))

    def state(index: int) -> StateDict:
        each = folders[index]
        table = each / "model.safetensors.index.json"
        if not table.exists():
            return read_state_dict(each / "model.safetensors")
        files = sorted(set(parse_json(table.read_text(), str(table))["weight_map"].values()))
        if wrong := next((name for name in files if Path(name).name != name), None):
            raise NetspaceError(f"{table} names {wrong!r}, which is no file next to it")
        return StateDict({key: value for name in files for key, value in read_state_dict(each / name).items()})

    return ForeignZoo("hub", folder, {"run": [each.name for each in folders], "architecture": names}, state=state)


FORMATS: dict[str, Callable[[Path], ForeignZoo]] = {
    "small-cnn": _small_cnn,
    "fit-a-nef": _fit_a_nef,
    "hsg": _hsg,
    "hub": _hub,
}
