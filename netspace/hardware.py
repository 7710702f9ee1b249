"""This machine: processor, GPUs and memory, and the cache folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.errors import NetspaceError


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
    """Copy a tensor to a device without waiting for the device; from CPU to GPU through page-locked memory."""
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
