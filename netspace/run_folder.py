"""A run on disk: its folder, lock, settings, provenance, records of metrics, and weights.

The run folder of a space holds `config.yaml` (resolved), `provenance.json` (versions, seed, zoo hash, commit),
`metrics.jsonl`, `checkpoints/`, `figures/` and `report.html`. Fits, optimisations and morphs have such folders, too.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field

from netspace.config import changed, read_back, to_yaml
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.files import locked, remove_leftovers, write_text
from netspace.io import Record, parse_json, read_json, read_tensors, read_text, write_json, write_tensors, write_yaml

if TYPE_CHECKING:
    from torch import Tensor

RUNS = Path("runs")
SPACE, FIT, OPTIMISATION, MORPH = "space", "fit", "optimisation", "morph"  # the kinds of run folders
COMMANDS = {SPACE: ["train"], FIT: ["compress", "fit"], OPTIMISATION: ["optimize"], MORPH: ["morph", "fit"]}
S = TypeVar("S", bound=BaseModel)
MERIT = "val_merit"  # in records of validations of a space: what its checkpoint is chosen by, more is better
CHECKSUM, PREFIX = (
    "checksum",
    "netspace-crc32:",
)  # the last entry of a line in metrics.jsonl, and the prefix of its value


def provenance(seed: int | None = None, **more: Any) -> dict[str, Any]:
    """Return versions, machine, command and commit: what is needed to make a result again."""
    from netspace.hardware import machine  # imports torch, which the version of a package does not need

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
    """The entries of a run's `provenance.json` that are read back."""

    kind: str = SPACE  # space, fit, optimisation or morph
    model: str | None = None  # of a fit or a morph: a member of the zoo, or the path of a state-dict file
    arch: dict[str, Any] | None = None  # of that file, and the other options for it
    key: str | None = None
    input_shape: tuple[int, ...] | None = None
    run: str | None = None  # of an optimisation: the path of the space's run
    run_hash: str | None = None  # of the space's weights
    zoo: str | None = None  # the path of the zoo that the run was trained on
    zoo_hash: str | None = None  # of its content
    teacher: str | None = None
    teacher_hash: str | None = None  # of its parameters
    changes: tuple[str, ...] = ()  # to the recipe's file, as `--set` takes them
    precision: dict[str, str] = Field(default_factory=dict)  # of models and networks, chosen when the run began


@cache
def package_version(name: str) -> str:
    """Return the installed version of a package, '?' if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def commit() -> str | None:
    """Return the commit of the checkout that this package runs from; None if it was installed."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class Metrics:
    """Appends to `metrics.jsonl`, one JSON object a line; a reader sees whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **record: Any) -> None:
        """Append a record, on a line of its own even if a crash cut the line before."""
        with open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut + _line(record).encode() + b"\n")

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records that do not meet a condition: a resumed run will write them again."""
        if self.path.exists():
            lines = [_line(record) for record in read_metrics(self.path) if condition(record)]
            write_text(self.path, "".join(line + "\n" for line in lines))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `metrics.jsonl`; a line that a crash cut off, or that was damaged, is left out."""
    records = []
    if path.exists():
        text = read_text(path, errors="replace")
        sealed = (
            PREFIX in text
        )  # then every line has a checksum: a resumed run writes the lines of older versions again
        for line in text.split("\n"):
            with suppress(NetspaceError):
                record = parse_json(line, str(path))
                if isinstance(record, dict) and _is_whole(record, sealed) and _has_step(record):
                    records.append({name: value for name, value in record.items() if name != CHECKSUM})
    return records


def merit(record: Mapping[str, Any]) -> float:
    """Return what the checkpoint of a space is chosen by, more is better, from the record of a validation."""
    value = record.get(MERIT)
    error = record.get("val_error", record.get("val_mae"))  # of records of older versions
    if not isinstance(value, int | float):
        value = -error if isinstance(error, int | float) else -math.inf
    return float(value) if math.isfinite(value) else -math.inf


def _has_step(record: Mapping[str, Any]) -> bool:
    return all(type(record.get(name, 0)) is int for name in ("stage", "step")) and "step" in record


def _line(record: Mapping[str, Any]) -> str:
    """Return a record as a line, with its checksum."""
    return json.dumps({**record, CHECKSUM: _checksum(json.loads(json.dumps(record)))})


def _is_whole(record: Mapping[str, Any], sealed: bool) -> bool:
    """Return whether a record fits its checksum; in files of older versions, which are not `sealed`, none has one."""
    rest = {name: value for name, value in record.items() if name != CHECKSUM}
    return record.get(CHECKSUM) == _checksum(rest) if sealed else CHECKSUM not in record


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{PREFIX}{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def is_run(path: Path) -> bool:
    """Return whether `path` is the run folder of a space, perhaps with a damaged provenance, which its reader reports."""
    if not ((path / "config.yaml").is_file() and (path / "provenance.json").is_file()):
        return False
    with suppress(NetspaceError):
        return RunFolder.of_space(path).origin.kind == SPACE
    return True


def kind_to_resume(path: Path) -> str:
    """Return the kind of a run folder, which says the command that began it.

    Raises:
        UsageError: `path` is no run folder, or one that an earlier version began, which did not record its kind.
    """
    if not (path / "config.yaml").is_file():
        raise UsageError(
            f"{path} has nothing to resume: a run folder was expected, with the config.yaml that train, compress fit, morph fit and "
            "optimize write when they begin"
        )
    if not (path / "provenance.json").is_file():
        raise UsageError(
            f"{path} was begun by an earlier version of netspace, which did not record its command: give that again with --resume"
        )
    kind = RunFolder.of_space(path).origin.kind
    if kind not in COMMANDS:
        raise unknown("kind of run", kind, COMMANDS, f"(in {path / 'provenance.json'})")
    return kind


def newest_run(root: Path = RUNS) -> Path:
    """Return the run under `root` that was begun last. Raises `NetspaceError` if there is none."""
    runs = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    if not runs:
        raise NetspaceError(
            f"no run was named and there is none under {root}/: train one (`netspace train`) or give --run FOLDER"
        )
    return max(runs, key=lambda path: ((path / "provenance.json").stat().st_mtime, path.name))


class RunFolder:
    """One run on disk: its files, its lock, and the checks before it is resumed.

    >>> run = RunFolder(folder / "run", ["netspace", "train", "--resume", "--out", "run"])
    >>> run.begun, run.last.name
    (False, 'last.pt')
    """

    def __init__(self, path: Path, resume: Sequence[str], kind: str = SPACE) -> None:
        """`resume` is the command that resumes the run; only folders of a space have a folder for checkpoints."""
        self.path, self.command, self.kind = path, shlex.join(resume), kind
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.last = path / "checkpoints" / "last.pt" if kind == SPACE else path / "last.pt"
        self.best = path / "checkpoints" / "best.safetensors"

    @classmethod
    def of(cls, kind: str, path: Path, trusted: Sequence[str] = (), again: Sequence[str] = ()) -> RunFolder:
        """Return the folder of a run of a `kind`.

        `trusted` are the options of its command for code outside netspace, `again` the arguments that it needs only if an earlier
        version began the folder, without a provenance.
        """
        needed = again if (path / "config.yaml").exists() and not (path / "provenance.json").exists() else ()
        return cls(path, ["netspace", *COMMANDS[kind], *needed, "--resume", "--out", str(path), *trusted], kind)

    @classmethod
    def of_space(cls, path: Path) -> RunFolder:
        """Return the run folder of a space."""
        return cls.of(SPACE, path)

    @property
    def begun(self) -> bool:
        """Whether there is a run: settings are written when it begins."""
        return self.config.exists()

    @property
    def origin(self) -> Provenance:
        """The content of `provenance.json`: zoo, teacher, and the changes to the recipe."""
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
                f"{self.path} was begun by an earlier version of netspace, which did not record its options: give them again, "
                f"{argument} ({what}) among them"
            )
        if not self.begun or self.origin.kind != self.kind:
            raise UsageError(f"{self.path} is no {self.kind} that could be resumed: give {argument}, {what}")
        return self.origin

    @property
    def zoo(self) -> Path:
        """The path of the zoo that a space was trained on. Raises `NetspaceError` if it is not known."""
        if (zoo := self.origin.zoo) is None:
            raise NetspaceError(f"{self.path} does not say on which zoo it was trained: name it with --zoo")
        return Path(zoo)

    def locked(self, doing: str, main: bool = True) -> AbstractContextManager[None]:
        """Hold the run's lock inside the block, in the main process. Raises `NetspaceError` if another process has it."""
        return (
            locked(self.path / ".lock", f"{self.path} is being {doing} by another process") if main else nullcontext()
        )

    def check(
        self, settings: BaseModel, resume: bool, what: str = "other settings", exclude: set[str] | None = None
    ) -> None:
        """Refuse a run that was begun already, or with other `settings`, before anything is written.

        Raises:
            UsageError: the message has the command that resumes the run.
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
        """Remove leftovers of killed processes; of a new run write the settings, and before them its `origin`."""
        for folder in {self.path, self.last.parent}:
            remove_leftovers(folder)
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
