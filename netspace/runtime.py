"""What every long job shares: run folders, atomic writes, provenance, records of metrics, one seed.

A run folder holds `config.yaml` (resolved), `provenance.json` (versions, seed, zoo hash, commit),
`metrics.jsonl`, `checkpoints/`, `figures/` and `report.html`. Every file appears whole or not at all: it is
written beside its place and renamed.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from netspace.errors import NetspaceError

RUNS = Path("runs")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written inside the block; renamed onto `path` when it ends well.

    Raises `NetspaceError` when the folder cannot be written or the disk is full; `path` is then as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # HDF5's own text goes over many lines
        raise NetspaceError(
            f"{path} could not be written: {why}. Free space or choose another place; "
            "what was there before is untouched"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(file: Path, busy: str) -> Iterator[None]:
    """Holds a lock on `file` for the length of the block; a killed process holds none.

    The file is made, and removed with those of its folders that were made for it and are empty: a block that fails before
    it writes leaves nothing. Raises `NetspaceError` with `busy` and what to do if another process holds the lock, or if
    the folder cannot be written.
    """
    made = [folder for folder in file.parents if not folder.exists()]  # the innermost first
    try:
        held = _lock_file(file)
    except OSError as error:
        raise NetspaceError(f"{file.parent} cannot be written: {error.strerror}; choose another --out") from None
    if held is None:
        raise NetspaceError(f"{busy}: wait for it, or choose another --out")
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                if _is_at(held, file):  # and was not moved away, with its folder, by the block
                    file.unlink()
                for folder in made:
                    folder.rmdir()  # fails on what is not empty


def _lock_file(file: Path) -> IO[str] | None:
    """`file`, made, open and locked; None where another process holds it."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = open(file, "w")  # noqa: SIM115 - open as long as the lock
        except FileNotFoundError:  # its folder was removed by who held it
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            return None
        except OSError:
            held.close()
            raise
        if _is_at(held, file):
            return held
        held.close()  # who held it has removed it in between


def _is_at(held: IO[str], file: Path) -> bool:
    """Whether an open file is what lies at a path now."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(held.fileno()), file.stat())
    return False


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def write_torch(path: Path, value: Any) -> None:
    """Tensors and plain values by `torch.save`, atomically; `read_torch` reads them without running code."""
    held = io.BytesIO()
    torch.save(value, held)
    _write_bytes(path, held.getbuffer())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **notes: str) -> None:
    """Named tensors with notes as safetensors, atomically."""
    from safetensors.torch import save

    here = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _write_bytes(path, save(here, metadata=notes or None))


def _write_bytes(path: Path, content: bytes | memoryview) -> None:
    """By Python's own file, which tells of a full disk as every other does: torch and safetensors do not."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def remove_remains(folder: Path) -> None:
    """Deletes the temporary files in a folder that killed processes left; only for who is alone there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def read_torch(path: Path) -> Any:
    """What `write_torch` wrote. Raises `NetspaceError` for anything that is not plain tensors and values."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if type(error).__name__ == "UnpicklingError":  # whose own text says how to load it unsafely
            why = "it holds other objects, of which nothing was run, or is damaged; save `model.state_dict()` alone"
        raise NetspaceError(
            f"{path} was expected to be a torch file of tensors, but it cannot be read safely: {why}"
        ) from None


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


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


def package_version(name: str) -> str:
    """The installed version of a package, '?' if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def machine() -> dict[str, Any]:
    """The processor, its cores and the GPUs."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"system": platform.system(), "processor": name, "cores": os.cpu_count(), "gpus": gpus}


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
            file.write(b"\n" * cut + json.dumps(record).encode() + b"\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the records that a resumed run will write again."""
        if self.path.exists():
            kept = [json.dumps(record) for record in read_metrics(self.path) if wanted(record)]
            write_text(self.path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


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


def generator(seed: int, *stream: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator of its own for each (seed, stream...): independent, the same on every machine.

    The numbers are mixed by SplitMix64, so neighbouring seeds give unrelated streams.
    """
    state = 0
    for number in (seed, *stream):
        state = _splitmix(state ^ (number & _MASK))
    return torch.Generator(device=device).manual_seed(state >> 1)


_MASK = (1 << 64) - 1


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def hash_tensors(*tensors: Tensor) -> str:
    """SHA-256 of tensors' shapes, types and bytes, in order."""
    import hashlib

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def pick_device(name: str = "auto") -> torch.device:
    """'auto' is the first GPU if there is one, else the CPU. Raises `NetspaceError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NetspaceError(
            f"device {name!r} was asked for, but it is not usable here: {str(error).splitlines()[0]}"
        ) from None
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what the device still has to do; from the CPU by page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def cache_folder() -> Path:
    """Where what was measured or compiled is remembered: NETSPACE_CACHE, else ~/.cache/netspace."""
    named = os.environ.get("NETSPACE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "netspace"
