"""A run on disk: its folder, provenance, records of metrics, and the weights that it is used by.

A run folder holds `config.yaml` (resolved), `provenance.json` (versions, seed, zoo hash, commit), `metrics.jsonl`,
`checkpoints/`, `figures/` and `report.html`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from netspace.errors import NetspaceError
from netspace.files import write_text
from netspace.hardware import machine
from netspace.io import (
    Record,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    write_tensors,
)

RUNS = Path("runs")


CHECKSUM, MARK = (
    "checksum",
    "netspace-crc32:",
)  # the last entry of a line in metrics.jsonl, and what its value begins with


def provenance(seed: int | None = None, **more: Any) -> dict[str, Any]:
    """Versions, machine, command and commit: what someone needs to make this result again."""
    return {
        "netspace": package_version("netspace"),
        "python": platform.python_version(),
        **{name: package_version(name) for name in ("torch", "numpy", "h5py", "accelerate")},
        "machine": machine(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "seed": seed,
        **more,
    }


class Provenance(Record):
    """What is read back of a run's `provenance.json`."""

    zoo: str | None = None  # the path of the zoo that the run was trained on
    zoo_hash: str | None = None  # of its content
    teacher: str | None = None
    teacher_hash: str | None = None  # of its parameters
    changes: tuple[str, ...] = ()  # to the recipe's file, as `--set` takes them
    precision: dict[str, str] = Field(
        default_factory=dict
    )  # of models and networks, as it was chosen when the run began


def zoo_path(run: Path) -> Path:
    """Where the zoo lay that a run was trained on."""
    origin = read_json(run / "provenance.json", Provenance)
    if origin.zoo is None:
        raise NetspaceError(f"{run} does not say on which zoo it was trained: name it with --zoo")
    return Path(origin.zoo)


def package_version(name: str) -> str:
    """The installed version of a package, '?' if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def commit() -> str | None:
    """The commit of the checkout this package runs from; None when it was installed from elsewhere."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`; a line is whole or absent for a reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **record: Any) -> None:
        """Appends one record, on a line of its own even where a crash cut the one before."""
        with open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut + _line(record).encode() + b"\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the records that a resumed run will write again."""
        if self.path.exists():
            kept = [_line(record) for record in read_metrics(self.path) if wanted(record)]
            write_text(self.path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`; a line that a crash cut off, or that was damaged, is left out."""
    records = []
    if path.exists():
        text = read_text(path, errors="replace")
        sealed = MARK in text  # then every line is: who goes on with a file from before writes all lines anew
        for line in text.split("\n"):
            with suppress(NetspaceError):
                record = parse_json(line, str(path))
                if isinstance(record, dict) and _is_whole(record, sealed) and _has_step(record):
                    records.append({name: value for name, value in record.items() if name != CHECKSUM})
    return records


def _has_step(record: Mapping[str, Any]) -> bool:
    return all(type(record.get(name, 0)) is int for name in ("stage", "step")) and "step" in record


def _line(record: Mapping[str, Any]) -> str:
    """A record as a line, with its checksum."""
    return json.dumps({**record, CHECKSUM: _checksum(json.loads(json.dumps(record)))})


def _is_whole(record: Mapping[str, Any], sealed: bool) -> bool:
    """Whether a record is as its checksum says; in files from before, which are not `sealed`, none has one."""
    rest = {name: value for name, value in record.items() if name != CHECKSUM}
    return record.get(CHECKSUM) == _checksum(rest) if sealed else CHECKSUM not in record


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{MARK}{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder."""
    return (path / "config.yaml").is_file() and (path / "provenance.json").is_file()


def newest_run(root: Path = RUNS) -> Path:
    """The run under `root` that was begun last. Raises `NetspaceError` if there is none."""
    found = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not found:
        raise NetspaceError(
            f"no run was named and there is none under {root}/: train one (`netspace train`) or give --run FOLDER"
        )
    return max(found, key=lambda path: ((path / "provenance.json").stat().st_mtime, path.name))


def save_best(run: Path, weights: dict[str, Tensor]) -> None:
    """The weights of the best validation, atomically."""
    write_tensors(run / "checkpoints" / "best.safetensors", weights)


def load_best(run: Path) -> dict[str, Tensor]:
    """What `save_best` wrote. Raises `NetspaceError` if there is none, or the file is broken."""
    path = run / "checkpoints" / "best.safetensors"
    if not path.exists():
        raise NetspaceError(f"{run} has no trained space yet ({path.name} is missing): let `netspace train` finish")
    return read_tensors(path)[0]
