"""What tests of several rooms need."""

from __future__ import annotations

import inspect
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from netspace import archs
from netspace.io import read_torch
from netspace.run_folder import read_metrics

# Architectures that classify images.
IMAGE_ARCHS = [
    name
    for name, factory in archs.ARCHS.items()
    if "classes" in inspect.signature(factory).parameters and name != "unet"
]

DRIVER = """
import os, signal, sys
from netspace.training import loop
loop.CHECKPOINT_EVERY = -1.0
write, at = loop.write_torch, int(sys.argv.pop(1))
def save(path, state):
    if state["step"] == at + 4:  # steps after the last checkpoint are lost
        os.kill(os.getpid(), signal.SIGKILL)
    if state["step"] <= at:
        write(path, state)
loop.write_torch = save
from netspace.cli.app import main
main()
"""


def committing_at_once(site: Path) -> dict[str, str]:
    """The environment of a builder that commits each network by itself, however fast the machine is; so do its workers."""
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text("from model_zoo import work; work.COMMIT_EVERY = -1.0")
    path = [str(site.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Fails on whatever makes the host wait for a GPU; on a CPU, on the operations that would."""
    if device.type != "cuda":
        with NoWaiting():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class NoWaiting(TorchDispatchMode):
    """Fails on every operation that makes the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [each for each in args[1:2] if "index" in str(func) and isinstance(each, list | tuple)]
        assert not any(each is not None and each.dtype == torch.bool for mask in masks for each in mask), (
            f"{func} waits"
        )
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2")
        assert str(func).split(".")[1] not in waiting, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Convolutions(TorchDispatchMode):
    """Notes what the convolutions of a forward pass were given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes inside the block: the nearest thing to a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def refused(done: Any, code: int, *words: str) -> str:
    """Checks that a command was refused in one sentence that has `words`, and returns it."""
    sentence = str(done.sentence)
    assert done.code == code, (done.code, sentence)
    for word in words:
        assert word in sentence, sentence
    assert len(sentence) < 700
    return sentence


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """A block that should not wait for ever fails instead."""

    def late(*_: object) -> None:
        raise AssertionError(f"nothing happened for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flat(value: Any) -> Any:
    """Nested values with tensors as bytes, so that == compares bit by bit."""
    if isinstance(value, dict):
        return {key: flat(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    """A command under a launcher, in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    how = ["--master_port", str(port), "-m", "netspace"]
    return subprocess.run(
        [sys.executable, *start, *how, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_and_die(words: list[str], last: Path, at: int) -> None:
    """A training by the command line that is killed 4 steps after its checkpoint `last`, which is of step `at`."""
    done = subprocess.run([sys.executable, "-c", DRIVER, str(at), *words], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_torch(last)["step"] == at


def same_run(run: Path, other: Path) -> None:
    """Weights, optimiser and records are those of a run that nobody disturbed."""
    for name in ("best.safetensors",):
        actual, expected = load_file(run / "checkpoints" / name), load_file(other / "checkpoints" / name)
        assert actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in actual)
    last = [read_torch(folder / "checkpoints" / "last.pt") for folder in (run, other)]
    assert flat(last[0]) == flat(last[1])
    records = [
        [{key: value for key, value in record.items() if key != "steps_a_second"} for record in read_metrics(path)]
        for path in (run / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert records[0] == records[1]
