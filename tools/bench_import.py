"""Time and memory of `netspace zoo import` of a zoo in the layout of the Small CNN Zoo, as a process of its own.

    python tools/bench_import.py --rows 270000 --folder /tmp/import

writes a matrix of `--rows` random networks of 4,970 parameters (20 kB each) with its tables into the folder, imports it, and prints
the seconds and the largest memory of the import. The networks have 8 x 8 images of digits, so that no data set is loaded from elsewhere;
accuracies are those of the tables, so none is evaluated. What is written is removed at the end, unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LAYERS = ("sequential/conv2d", "sequential/conv2d_1", "sequential/conv2d_2", "sequential/dense")
SHAPES = (((3, 3, 1, 16), (16,)), ((3, 3, 16, 16), (16,)), ((3, 3, 16, 16), (16,)), ((16, 10), (10,)))  # kernel, bias
PARAMETERS = sum(int(np.prod(shape)) for pair in SHAPES for shape in pair)
EPOCHS = (0, 1, 2, 3, 4, 20, 40, 60, 86)  # at which the Small CNN Zoo keeps a network of each training
ROWS_AT_ONCE = 2048
SPARE = 1.2  # of the disk's free bytes over those of the matrix and the zoo


def write_folder(folder: Path, rows: int) -> int:
    """Write a zoo of `rows` networks in the layout of the Small CNN Zoo; return the bytes of its matrix.

    Raises `SystemExit` if the disk has no room for the matrix and for the zoo that is made from it.
    """
    size = 4 * rows * PARAMETERS
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < 2 * SPARE * size:
        raise SystemExit(f"{folder} has no room for twice {size / 1e9:.1f} GB: take fewer --rows")
    layout: list[list[object]] = [["varname", "start_idx", "end_idx", "size", "shape"]]
    start = 0
    for layer, pair in zip(LAYERS, SHAPES, strict=True):
        for kind, shape in zip(("kernel:0", "bias:0"), pair, strict=True):
            values = int(np.prod(shape))
            layout.append([f"{layer}/{kind}", start, start + values, values, str(shape)])
            start += values
    _table(folder / "layout.csv", layout)
    random = np.random.default_rng(0)
    metrics: list[list[object]] = [
        ["config.activation", "config.learning_rate", "modeldir", "step", "test_accuracy", "train_accuracy"]
    ]
    for row in range(rows):
        test, train = random.random(2).round(6)
        metrics.append(["relu", 0.001, f"/zoo/training/{row // len(EPOCHS)}", EPOCHS[row % len(EPOCHS)], test, train])
    _table(folder / "metrics.csv", metrics)
    matrix = np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, (rows, PARAMETERS))
    for first in range(0, rows, ROWS_AT_ONCE):
        part = matrix[first : first + ROWS_AT_ONCE]
        part[:] = 0.1 * random.standard_normal(part.shape, np.float32)
    matrix.flush()
    del matrix  # and its memory
    return size


def _table(path: Path, rows: list[list[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def timed_import(folder: Path, out: Path) -> dict[str, float | int]:
    """Run the import; return its seconds by the clock and of the processor, and its peak memory in bytes."""
    command = [sys.executable, "-m", "netspace", "zoo", "import", str(out), str(folder), "--arch", "small_cnn"]
    command += ["--data", "digits", "--json"]
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, _peak_memory(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        told = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the import failed with exit code {process.returncode}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "rows": json.loads(told)["imported"],
        "parameters": PARAMETERS,
        "seconds": round(seconds, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_bytes": peak,
        "zoo_bytes": out.stat().st_size,
        "load": round(os.getloadavg()[0], 1),
    }


def _peak_memory(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes; 0 if it has ended.

    `getrusage` has the largest of this process and the child, which begins as its copy.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    sizes = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(sizes[0]) if sizes else 0


def main(arguments: list[str] | None = None) -> None:
    """Write the folder, import it, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=270_000)
    parser.add_argument("--folder", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    given = parser.parse_args(arguments)
    if given.folder.exists():
        raise SystemExit(f"{given.folder} exists already: name a new folder")
    try:
        size = write_folder(given.folder / "source", given.rows)
        print(json.dumps({"matrix_bytes": size, **timed_import(given.folder / "source", given.folder / "zoo.h5")}))
    finally:
        if not given.keep:
            shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
