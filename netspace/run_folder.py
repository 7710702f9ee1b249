"""A run on disk: its folder, lock, settings, provenance, records of metrics, and the weights that it is used by.

The run folder of a space holds `config.yaml` (resolved), `provenance.json` (versions, seed, zoo hash, commit),
`metrics.jsonl`, `checkpoints/`, `figures/` and `report.html`. Fits and optimisations have such folders, too.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field
from torch import Tensor

from netspace.config import changed, read_back, to_yaml
from netspace.errors import NetspaceError, UsageError
from netspace.files import alone, remove_remains, write_text
from netspace.hardware import machine
from netspace.io import (
    Record,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    write_json,
    write_tensors,
    write_yaml,
)

RUNS = Path("runs")
SPACE, FIT, OPTIMISATION = "space", "fit", "optimisation"  # the kinds of run folders
COMMANDS = {SPACE: ["train"], FIT: ["compress", "fit"], OPTIMISATION: ["optimize"]}
S = TypeVar("S", bound=BaseModel)
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

    kind: str = SPACE  # what the folder is of: a space, a fit or an optimisation
    model: str | None = None  # of a fit: a member of the zoo, or the path of a state-dict file
    arch: dict[str, Any] | None = None  # of that file, and the rest that was given with it
    key: str | None = None
    input_shape: tuple[int, ...] | None = None
    run: str | None = None  # of an optimisation: the path of the space's run
    run_hash: str | None = None  # of the space's weights
    zoo: str | None = None  # the path of the zoo that the run was trained on
    zoo_hash: str | None = None  # of its content
    teacher: str | None = None
    teacher_hash: str | None = None  # of its parameters
    changes: tuple[str, ...] = ()  # to the recipe's file, as `--set` takes them
    precision: dict[str, str] = Field(
        default_factory=dict
    )  # of models and networks, as it was chosen when the run began


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
    """Whether `path` is the run folder of a space. One with a damaged provenance is: who reads that says so."""
    if not ((path / "config.yaml").is_file() and (path / "provenance.json").is_file()):
        return False
    with suppress(NetspaceError):
        return RunFolder.of_space(path).origin.kind == SPACE
    return True


def newest_run(root: Path = RUNS) -> Path:
    """The run under `root` that was begun last. Raises `NetspaceError` if there is none."""
    found = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not found:
        raise NetspaceError(
            f"no run was named and there is none under {root}/: train one (`netspace train`) or give --run FOLDER"
        )
    return max(found, key=lambda path: ((path / "provenance.json").stat().st_mtime, path.name))


class RunFolder:
    """One run on disk: its files, its lock, and whether it may be gone on with.

    >>> run = RunFolder(folder / "run", ["netspace", "train", "--resume", "--out", "run"])
    >>> run.begun, run.last.name
    (False, 'last.pt')
    """

    def __init__(self, path: Path, resume: Sequence[str], kind: str = SPACE) -> None:
        """`resume` is the command that goes on with the run; only folders of a space have a folder for checkpoints."""
        self.path, self.command, self.kind = path, shlex.join(resume), kind
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.last = path / "checkpoints" / "last.pt" if kind == SPACE else path / "last.pt"
        self.best = path / "checkpoints" / "best.safetensors"

    @classmethod
    def of(cls, kind: str, path: Path, trusted: Sequence[str] = (), again: Sequence[str] = ()) -> RunFolder:
        """The folder of a run of a `kind`.

        `trusted` are the options of its command for code outside netspace, `again` the words that it needs only where an earlier
        version began the folder, without a provenance.
        """
        needed = again if (path / "config.yaml").exists() and not (path / "provenance.json").exists() else ()
        return cls(path, ["netspace", *COMMANDS[kind], *needed, "--resume", "--out", str(path), *trusted], kind)

    @classmethod
    def of_space(cls, path: Path) -> RunFolder:
        """The folder of a space."""
        return cls.of(SPACE, path)

    @property
    def begun(self) -> bool:
        """Whether there is a run: its settings are written when it begins."""
        return self.config.exists()

    @property
    def origin(self) -> Provenance:
        """What `provenance.json` says: zoo, teacher, and the changes to the recipe."""
        return read_json(self.path / "provenance.json", Provenance)

    def begun_with(self, resume: bool, argument: str, what: str) -> Provenance:
        """Return what the run was begun with, for a command that was not given the `argument`, which says `what`.

        Raises:
            UsageError: There is nothing to resume, or an earlier version began it, which kept no provenance.
        """
        if not resume:
            raise UsageError(f"{argument} is missing: give {what}; only --resume takes the run's own")
        if self.begun and not (self.path / "provenance.json").exists():
            raise UsageError(
                f"{self.path} was begun by an earlier version of netspace, which did not record {what}: give {argument} again"
            )
        if not self.begun or self.origin.kind != self.kind:
            raise UsageError(f"{self.path} is no {self.kind} that could be resumed: give {argument}, {what}")
        return self.origin

    @property
    def zoo(self) -> Path:
        """Where the zoo lay that a space was trained on. Raises `NetspaceError` where that is not known."""
        if (zoo := self.origin.zoo) is None:
            raise NetspaceError(f"{self.path} does not say on which zoo it was trained: name it with --zoo")
        return Path(zoo)

    def alone(self, doing: str, main: bool = True) -> AbstractContextManager[None]:
        """Hold the run's lock inside the block, in the main process. Raises `NetspaceError` where another holds it."""
        return alone(self.path / ".lock", f"{self.path} is being {doing} by another process") if main else nullcontext()

    def check(
        self, settings: BaseModel, resume: bool, what: str = "other settings", exclude: set[str] | None = None
    ) -> None:
        """Refuse a run that was begun already, or with other `settings`, before anything is written.

        Raises:
            UsageError: It says the command that goes on with the run.
        """
        if not self.begun:
            return
        before = read_back(type(settings), self.config)
        if not resume:
            raise UsageError(
                f"{self.path} exists already: give --resume to go on with it (`{self.command}`), or choose another --out"
            )
        old, new = (each.model_dump(mode="json", exclude=exclude) for each in (before, settings))
        if difference := changed(old, new):
            raise UsageError(
                f"{self.path} was begun with {what}: {difference}; resume it with its own (`{self.command}`), or choose "
                "another --out"
            )

    def begin(self, settings: BaseModel, origin: Mapping[str, Any] | None = None) -> None:
        """Clean up what a killed process left; write the settings, and before them the `origin`, of a new run."""
        for folder in {self.path, self.last.parent}:
            remove_remains(folder)
        if self.begun:
            return
        if origin is not None:
            kind = {} if self.kind == SPACE else {"kind": self.kind}
            write_json(self.path / "provenance.json", {**kind, **origin})
        write_yaml(self.config, to_yaml(settings))

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Write the weights of the best validation, atomically."""
        write_tensors(self.best, weights)

    def load_best(self) -> dict[str, Tensor]:
        """Return what `save_best` wrote. Raises `NetspaceError` if there is none, or the file is broken."""
        if not self.best.exists():
            raise NetspaceError(
                f"{self.path} has no trained space yet ({self.best.name} is missing): let `netspace train` finish"
            )
        return read_tensors(self.best)[0]
