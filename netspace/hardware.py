"""This machine: processor, GPUs and memory, and the cache folder."""

from __future__ import annotations

import os
import platform
import tracemalloc
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netspace.errors import NetspaceError, UsageError


def machine() -> dict[str, Any]:
    """Return the system, the processor, its number of cores and the names of the GPUs."""
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


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by name; 'auto' is the first GPU if there is one, else the CPU.

    Raises:
        NetspaceError: the device cannot be used on this machine.
    """
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
    """Copy a tensor (...) to a device without waiting for the device; from CPU to GPU through page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def cache_folder() -> Path:
    """Return the folder for calibrations and compiled code: NETSPACE_CACHE, else ~/.cache/netspace."""
    named = os.environ.get("NETSPACE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "netspace"


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device. For the CPU these are the machine's; the limit of a container is not considered."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


NETWORK_COPIES = 4  # of a network's parameters that are alive at once where it is decoded and run


def require_memory(count: int, values: int, option: str, device: torch.device, noun: str = "networks") -> None:
    """Refuse networks, or other things, that the free memory of a device cannot hold, before anything is allocated.

    `values` are the numbers in float32 that each of `count` takes, `option` is what asked for so many.

    Raises:
        UsageError: They take more than what is free.
    """
    needed, free = 4 * count * values, free_memory(device)
    if needed > free:
        raise UsageError(
            f"{option} asks for {count:,} {noun}, which take about {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are "
            f"free: ask for at most {free // (4 * values):,}"
        )


class AllocationLimit(TorchDispatchMode):
    """Refuse to create tensors of more than `limit` bytes in all inside the block, with `error` or one about a file.

    Sizes that a file claims are so checked before memory is taken for them, whatever code makes tensors of them. Only
    tensors made from sizes count (`torch.empty`, `zeros`, `randn`, ...), not those computed from other tensors.

    Raises:
        NetspaceError: The limit is passed; `error` if it is given.
    """

    def __init__(self, limit: int, error: NetspaceError | None = None) -> None:
        super().__init__()
        self.left = limit
        self.error = error or NetspaceError(
            f"they claim tensors of more than {limit:,} bytes, which the weights do not have"
        )

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the bytes of a tensor that is made from sizes, then make it."""
        options = dict(kwargs or {})
        if "device" in options and not any(isinstance(value, Tensor) for value in args):
            on_meta = {**options, "device": "meta", "pin_memory": None}
            on_meta.pop("generator", None)
            try:
                self.left -= func.overloadpacket(*args, **on_meta).nbytes
            except RuntimeError as error:
                if "overflow" in str(error).lower():
                    raise self.error from None
                raise
            if self.left < 0:
                raise self.error
        return func(*args, **options)


class PeakMemory(TorchDispatchMode):
    """Count the bytes of tensors and arrays that are made inside the block and alive at once; `peak` is the most.

    These are torch's tensors on any device and the memory of numpy and Python, which `tracemalloc` traces. What existed before does not
    count, nor a file that is mapped, nor the scratch memory inside of one operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.alive = 0  # bytes; `alive` are those of tensors
        self._start = 0  # bytes that Python has at the start
        self._own = False  # whether tracing is begun here

    def __enter__(self) -> PeakMemory:
        self._own = not tracemalloc.is_tracing()
        if self._own:
            tracemalloc.start()
        self._start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._record()
        super().__exit__(*error)
        if self._own:
            tracemalloc.stop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the memory of its outputs that is not that of its inputs."""
        self._record()  # numpy's peak since the last operation goes with the tensors of then
        given = {id(each) for each in _storages((args, kwargs))}
        outputs = func(*args, **(kwargs or {}))
        for storage in {id(each): each for each in _storages(outputs)}.values():
            if id(storage) not in given:
                size = storage.nbytes()
                self.alive += size
                weakref.finalize(storage, self._free, size)
        self._record()
        return outputs

    def _free(self, size: int) -> None:
        self.alive -= size

    def _record(self) -> None:
        self.peak = max(self.peak, self.alive + tracemalloc.get_traced_memory()[1] - self._start)
        tracemalloc.reset_peak()


def _storages(value: Any) -> list[torch.UntypedStorage]:
    """Return the memory of all tensors inside of nested lists and dictionaries."""
    return [each.untyped_storage() for each in tree_leaves(value) if isinstance(each, Tensor)]
