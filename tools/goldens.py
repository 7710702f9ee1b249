"""Compare the results of two checkouts byte by byte: `python tools/goldens.py BEFORE AFTER`.

Both run the same commands, in float32 and one thread: a small quickstart, a small space of several architectures, latent
optimisation, a merge, fits and their uses. Then all files and the outputs of `--json` are compared. Processors round
differently, so no expected bytes are in the repository: the checkout before a change is the golden one
(`git worktree add /tmp/before HEAD`). Intended changes are named by `--expect PATTERN` (of a file's path, or `COMMAND:KEY`
of an output) and listed separately.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

ONE = ["--set", "precision=float32"]
SPACE = [*ONE, "--set", "networks_precision=float32"]
FIT = [
    *("--set", "predictor.hidden=24", "--set", "validate_every=20", "--set"),
    "stages=[{steps: 40, kernels: 256}, {steps: 20, reconstruction: 0.5, distillation: 1.0, images: 32, kernels: 256}]",
]
QUICK = [
    *("--set", "zoo.fused=8", "--set", "zoo.precision=float32", "--set", "zoo.members.train=24"),
    *("--set", "zoo.members.val=8", "--set", "zoo.members.test=8", "--set", "zoo.epochs.last=4"),
    *("--set", "space.precision=float32", "--set", "space.networks_precision=float32"),
    *("--set", "space.steps=60", "--set", "space.validate_every=20"),
]
MEMBERS = "{train: 6, val: 3, test: 3}"
TEACHER = "{arch: resnet8, width: 0.25, epochs: 2, batch_size: 50, optimizer: {name: sgd, learning_rate: 0.05}}"
MULTI_ZOO = [*ONE, "--set", f"members={MEMBERS}", "--set", "epochs={first: 2, last: 4}", "--set", f"teacher={TEACHER}"]
MULTI_ZOO += ["--set", "fused=3"]
MULTI_ARCHS = "archs={lenetlike: {arch: lenetlike, width: 0.25}, resnet8: {arch: resnet8, width: 0.25}}"
MULTI_SPACE = [*SPACE, "--set", "steps=20", "--set", "validate_every=10", "--set", "networks=4", "--set", "images=32"]
OTHER_ZOO = [*ONE, "--set", f"members={MEMBERS}", "--set", "seed=5", "--set", "fused=3"]

# In the order in which they run; each is named by its words up to the first option.
COMMANDS: list[list[str]] = [
    ["quickstart", "--small", "-o", "quick", *QUICK],
    ["zoo", "info", "quick/zoo.h5"],
    ["zoo", "verify", "quick/zoo.h5"],
    ["zoo", "build", "zoo/quickstart", "-o", "other.h5", *OTHER_ZOO],
    ["zoo", "merge", "merged.h5", "quick/zoo.h5", "other.h5"],
    ["optimize", "--run", "quick", "--from", "worst", "--steps", "12", "-o", "optimized"],
    ["sample", "--run", "quick", "--count", "3", "--save", "sampled"],
    ["sample", "--run", "quick", "--count", "3", "--fit", "kde"],
    ["encode", "best", "--run", "quick", "-o", "best.safetensors"],
    ["decode", "best.safetensors", "--run", "quick", "-o", "decoded.safetensors"],
    ["train", "space/quickstart-conv", "--zoo", "merged.h5", "-o", "conv", *MULTI_SPACE],
    ["eval", "conv"],
    ["zoo", "build", "zoo/multi-digits", "-o", "multi.h5", *MULTI_ZOO, "--set", MULTI_ARCHS],
    ["train", "space/multi-digits", "--zoo", "multi.h5", "-o", "multi", *MULTI_SPACE],
    ["eval", "multi"],
    ["interpolate", "--run", "multi", "--from", "best:lenetlike", "--to", "best:resnet8", "--save", "line"],
    ["optimize", "--run", "multi", "--from", "noise:resnet8", "--steps", "10", "-o", "multi-optimized"],
    ["sample", "--run", "multi", "--count", "2", "--arch", "resnet8"],
    ["report", "multi"],
    ["compress", "fit", "best", "--zoo", "quick/zoo.h5", "-o", "fit", *FIT],
    ["compress", "eval", "fit/compressed.safetensors", "best", "--zoo", "quick/zoo.h5"],
    ["compress", "quantise", "fit/compressed.safetensors", "best", "--zoo", "quick/zoo.h5", "-o", "eight.safetensors"],
    ["compress", "prune", "fit/compressed.safetensors", "best", "--zoo", "quick/zoo.h5", "--shares", "0,0.5"],
    ["compress", "analyse", "fit/compressed.safetensors", "best", "--zoo", "quick/zoo.h5"],
    [
        "compress",
        "correct",
        "fit/compressed.safetensors",
        "best",
        "--zoo",
        "quick/zoo.h5",
        "-o",
        "corrected.safetensors",
    ],
    ["compress", "importance", "fit/compressed.safetensors", "best", "--zoo", "quick/zoo.h5"],
    ["compress", "reconstruct", "fit/compressed.safetensors", "-o", "reconstructed.safetensors"],
    ["report", "fit"],
]
# Keys of outputs and records that vary with time or checkout.
VARYING = {
    "seconds",
    "commit",
    "created",
    "images_per_second",
    "operations_per_second",
    "checksum",
    "python",
    "elapsed",
}
VARYING |= {"rate", "began", "ended", "time", "per_second", "peak_memory", "memory", "steps_a_second", "netspace_hash"}
IGNORED = ("*.png", "*.lock", "*/lock", "cache/*", "*/calibration.json", "*tfevents*", "matplotlib/*")


def main() -> None:
    """Run both checkouts, compare, and exit with 1 if anything differs that was not expected to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--expect", action="append", default=[], metavar="PATTERN", help="what may differ")
    parser.add_argument("--work", type=Path, help="a folder for the results, in which those of BEFORE are used again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        before, after = (
            run(checkout.resolve(), work / side)
            for side, checkout in (("before", arguments.before), ("after", arguments.after))
        )
    names = sorted(before.keys() | after.keys())
    different = [name for name in names if repr(before.get(name)) != repr(after.get(name))]  # nan is nan
    expected = [name for name in different if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.expect)]
    for name in different:
        sides = (str(observed.get(name))[:16] for observed in (before, after))
        print("expected" if name in expected else "DIFFERENT", name, *sides)
    print(f"{len(names) - len(different)} of {len(names)} equal, {len(expected)} different as expected")
    sys.exit(len(different) > len(expected))


def run(checkout: Path, folder: Path) -> dict[str, Any]:
    """Run all commands with the code of `checkout`; return their files and outputs, by name."""
    outputs = folder.with_suffix(".json")
    if not (folder.name == "before" and outputs.exists()):
        outputs.write_text(json.dumps(outputs_of(checkout, folder)))
    observed = dict(json.loads(outputs.read_text()))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED):
            observed.update(content(path, name))
    return {
        name: value.replace(str(folder), ".") if isinstance(value, str) else value for name, value in observed.items()
    }


def outputs_of(checkout: Path, folder: Path) -> dict[str, Any]:
    """Run all commands with the code of `checkout` in `folder`; return the leaves of their JSON outputs."""
    folder.mkdir(parents=True)
    calibration = folder.parent / "before/cache/calibration.json"
    if folder.name == "after" and calibration.exists():  # the fastest way is timed, so only once
        (folder / "cache").mkdir()
        shutil.copy(calibration, folder / "cache")
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "PYTHONPATH": str(checkout),
        "NETSPACE_CACHE": str(folder / "cache"),
        "COLUMNS": "100",
    }
    outputs = {}
    for number, words in enumerate(COMMANDS):
        print(checkout.name, *words[:3], file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "netspace", *words, "--json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{checkout}: {' '.join(words)} failed:\n{done.stderr[-2000:]}")
        name = " ".join(words[: next((i for i, word in enumerate(words) if word.startswith("-")), len(words))])
        outputs.update(flat(json.loads(done.stdout), f"{number:02d} {name}:"))
    return outputs


def flat(value: Any, name: str) -> dict[str, Any]:
    """Return all leaves of a JSON value by their keys, without those that vary."""
    if isinstance(value, Mapping):
        pairs = ((f"{name}.{key}", each) for key, each in value.items() if key not in VARYING)
    elif isinstance(value, list):
        pairs = ((f"{name}[{index}]", each) for index, each in enumerate(value))
    else:
        return {name: value}
    return {leaf: each for key, inner in pairs for leaf, each in flat(inner, key).items()}


def content(path: Path, name: str) -> dict[str, Any]:
    """Return the content of a file without what varies: the leaves of JSON, a hash of others."""
    if path.suffix == ".json":
        return flat(json.loads(path.read_text()), f"{name}:")
    if path.suffix == ".jsonl":
        return flat([json.loads(line) for line in path.read_text().splitlines()], f"{name}:")
    if path.suffix == ".h5":
        return {name: _hash(*_hdf5(path))}
    if path.suffix == ".pt":
        return {name: _hash(*_tensors(torch.load(path, weights_only=True)))}
    return {name: _hash(path.read_bytes())}


def _hdf5(path: Path) -> Iterator[str | bytes]:
    with h5py.File(path) as file:
        items: list[tuple[str, Any]] = []
        file.visititems(lambda name, item: items.append((name, item)))
        for name, item in [("/", file), *sorted(items, key=lambda pair: pair[0])]:
            yield name
            for key, value in sorted(item.attrs.items()):
                if not isinstance(value, str) or not value.startswith(("{", "[")):
                    yield f"{key} {value}" if key not in VARYING else key
                else:
                    yield f"{key} {json.dumps(flat(json.loads(value), ''))}"
            if isinstance(item, h5py.Dataset):
                yield f"{item.dtype} {item.shape}"
                yield np.asarray(item[()]).tobytes() if item.dtype != object else str(item[()].tolist())


def _tensors(value: Any) -> Iterator[str | bytes]:
    if isinstance(value, torch.Tensor):
        yield value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key not in VARYING:
                yield str(key)
                yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    else:
        yield repr(value)


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
