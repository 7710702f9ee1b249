"""Measure the speed of netspace on this machine, as a ratio to the plain implementation in `tools/reference.py`.

    python tools/bench.py [zoo] [step] [multi] [decoders] [nern] [orders] [store] [scale] [accuracy] [memory] [shapes] [morph] [--device cpu|cuda] [--json] [--quick]

`zoo` trains members of one architecture, one epoch in each repeat; `step` is NetSpace's training step (forward, backward,
optimizer) and `multi` the same with several architectures; `decoders` compares the latter with the paper's decoder and with a
coordinate decoder; `nern` is a step of fitting a coordinate network to a network by NeRN's whole loss; `orders` orders kernels
(those of `--net`, or random ones) in short paths; `store` reads and writes members; `scale` measures how a zoo's cost grows with
members, parameters and processes; `accuracy` whether networks trained the fast way are as good; `memory` trains a space on a zoo
far larger than memory; `shapes` fits networks to shapes; `morph` puts a network's channels in smooth orders, samples
weights at another width, and trains them at several. Each side of a comparison runs in processes of its own, with a peak memory of its own, and is warmed
up; then the sides take turns (reference, netspace, reference, ...) and the medians count. Operations are counted on the
reference and credited to both sides: an operation that netspace avoids counts as speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from bench_cases import (
    Facts,
    OurStep,
    OurZoo,
    ReferenceStep,
    ReferenceZoo,
    StepCase,
    ZooCase,
    step_cases,
    wait,
    zoo_cases,
)
from bench_decoders import ConvStep, CoordinateStep, decoder_case
from bench_morph import Permutation, permutation_table
from bench_multi import MultiCase, ReferenceMultiStep, multi_cases
from bench_nern import NernCase, OurFit, ReferenceFit, nern_cases
from bench_orders import Orders, orders_table
from bench_scale import Accuracy, Point, PointZoo, accuracy_table, points, scale_table
from bench_shapes import ReferenceShapes, ShapesCase, shapes_cases
from bench_store import BATCH, OurRead, OurWrite, ReferenceRead, ReferenceWrite, StoreCase, train_on_a_huge_zoo
from bench_weights import OurWeights, PlainWeights, WeightsCase, weights_cases

from model_zoo.forward import Way
from netspace.config import Settings
from netspace.hardware import pick_device
from netspace.precision import bf16_is_fast
from netspace.run_folder import provenance

S = TypeVar("S", bound=Settings)
SIDES = {"cuda": 4096, "cpu": 1024}  # of the square matrices that a machine's rate is measured with
WHAT = ("zoo", "step", "multi", "decoders", "nern", "orders", "store", "scale", "accuracy", "memory", "shapes", "morph")


def serve(pipe: Any, kind: type, threads: int, settings: dict[str, Any]) -> None:
    """Make a contestant in this process, warm up, send its facts, run on request, and send its peak memory."""
    device = settings["device"]
    if device.type == "cpu":
        torch.set_num_threads(threads)
    contestant = kind(**settings)
    if hasattr(contestant, "run"):
        contestant.run()
    wait(device)
    pipe.send({name: getattr(contestant, name, None) for name in ("flops", "rates", "ways")})
    while pipe.recv() == "run":
        contestant.run()
        wait(device)
        pipe.send("done")
    pipe.send(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak())


def _peak() -> int:
    """Return the peak memory of this process, in bytes."""
    with suppress(OSError, StopIteration):  # ru_maxrss inherits the parent's on Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Side:
    """Processes that run one contestant together."""

    def __init__(self, kind: type, processes: int, threads: int, **settings: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "netspace.training.latent_space", "model_zoo.builder"])
        self.pipes, self.processes = [], []
        for _ in range(processes):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, kind, threads, settings), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        try:
            facts = [pipe.recv() for pipe in self.pipes]
        except EOFError:
            raise SystemExit(f"{kind.__name__} failed; its process printed the error above") from None
        self.facts = facts[0]

    def seconds(self) -> float:
        """Return the time of one run, all processes at once."""
        start = time.perf_counter()
        for pipe in self.pipes:
            pipe.send("run")
        for pipe in self.pipes:
            pipe.recv()
        return time.perf_counter() - start

    def end(self) -> int:
        """Stop the processes; return the sum of their peak memories, in bytes."""
        for pipe in self.pipes:
            pipe.send("end")
        memory = sum(pipe.recv() for pipe in self.pipes)
        for process in self.processes:
            process.join()
        return memory


def compare(
    name: str, unit: str, work: float, precision: str, how: str, sides: dict[str, Side], repeats: int
) -> dict[str, Any]:
    """Return one row: the sides run in turns, `work` units each."""
    times: dict[str, list[float]] = {key: [] for key in sides}
    for _ in range(repeats):
        for key, side in sides.items():
            times[key].append(side.seconds())
    flops = sides["reference"].facts["flops"]
    row: dict[str, Any] = {"name": name, "unit": unit, "how": how, "flops": flops}
    for key, side in sides.items():
        seconds = statistics.median(times[key])
        row[key] = {
            "seconds": seconds,
            "all_seconds": times[key],
            "per_second": work / seconds,
            "flops_per_second": flops / seconds,
            "precision": "float32" if key == "reference" else precision,
            "peak_bytes": side.end(),
        }
    row["ratio"] = row["reference"]["seconds"] / row["netspace"]["seconds"]
    print(f"{name}: {row['ratio']:.2f} ({how})", file=sys.stderr)
    return row


def measure_zoo(case: ZooCase, way: Way, device: torch.device, repeats: int) -> dict[str, Any]:
    workers = (os.cpu_count() or 1) if device.type == "cpu" else 1
    each = way.fused * -(-case.members // (way.fused * workers))  # members of one worker, its groups all full
    shared = {"case": case, "device": device}
    plain: type = ReferenceShapes if isinstance(case, ShapesCase) else ReferenceZoo
    sides = {
        "reference": Side(plain, 1, torch.get_num_threads(), members=each * workers, **shared),
        "netspace": Side(OurZoo, workers, 1, members=each, way=way, **shared),
    }
    how = f"{each * workers} members, {way}, {workers} process{'es' if workers > 1 else ''}"
    return compare(str(case), "member images/s", each * workers * case.images, way.precision, how, sides, repeats)


def with_precisions(settings: S, device: torch.device) -> S:
    """Return settings with precisions 'auto' replaced by the one in which matrices are multiplied the fastest."""
    faster = "bf16" if bf16_is_fast(device) else "float32"
    names = [name for name, value in settings if name.endswith("precision") and value == "auto"]
    return settings.model_copy(update=dict.fromkeys(names, faster))


def measure_step(case: StepCase | MultiCase, device: torch.device, repeats: int) -> dict[str, Any]:
    plain = ReferenceMultiStep if isinstance(case, MultiCase) else ReferenceStep
    kinds: dict[str, type] = {"reference": plain, "netspace": OurStep}
    threads = torch.get_num_threads()
    sides = {key: Side(kind, 1, threads, case=case, device=device) for key, kind in kinds.items()}
    recipe = case.recipe
    how = f"encoder, decoder {recipe.precision}; networks {recipe.networks_precision}; {recipe.optimizer.name}"
    return compare(str(case), "steps/s", case.steps, recipe.precision, how, sides, repeats)


def measure_decoders(case: MultiCase, device: torch.device, repeats: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    kinds = {"reference": ConvStep, "netspace": CoordinateStep}
    sides = {key: Side(kind, 1, threads, case=case, device=device) for key, kind in kinds.items()}
    conv, coordinate = (side.facts["rates"] for side in sides.values())
    how = f"decoder of {conv:,} parameters, then {coordinate:,} ({conv / coordinate:.1f}x fewer)"
    name = f"decoders: conv, then coordinate; {case.name}"
    return compare(name, "steps/s", case.steps, case.recipe.precision, how, sides, repeats)


def measure_nern(case: NernCase, device: torch.device, repeats: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    kinds = {"reference": ReferenceFit, "netspace": OurFit}
    sides = {key: Side(kind, 1, threads, case=case, device=device) for key, kind in kinds.items()}
    (stage,), precision = case.config.stages, case.config.precision
    how = f"{stage.kernels} kernels, {stage.images} images a step; {precision}; {stage.optimizer.name}"
    return compare(str(case), "steps/s", case.steps, precision, how, sides, repeats)


def measure_store(device: torch.device, repeats: int, quick: bool) -> list[dict[str, Any]]:
    case = StoreCase("lenetlike", 16, 640) if quick else StoreCase()
    rows = []
    for name, kinds in {"write": (ReferenceWrite, OurWrite), "read": (ReferenceRead, OurRead)}.items():
        sides = {
            key: Side(kind, 1, 1, case=case, device=device)
            for key, kind in zip(("reference", "netspace"), kinds, strict=True)
        }
        how = f"{case.members} members of {case.arch}" + (f", {BATCH} at once" if name == "read" else "")
        rows.append(compare(f"store: {name}", "members/s", case.members, "float32", how, sides, repeats))
    return rows


def measure_point(point: Point, device: torch.device, repeats: int) -> dict[str, Any]:
    side = Side(PointZoo, point.processes, 1, point=point, device=device)
    seconds = statistics.median(side.seconds() for _ in range(repeats))
    side.end()
    images = max(point.case.members, point.processes) * point.case.images
    how = f"{point.case.members} x {point.case.arch} {point.case.side}x{point.case.side}, {point.fused} at once, {point.processes} process{'es' if point.processes > 1 else ''}"
    print(f"{point.axis} {point.value}: {seconds:.3g} s", file=sys.stderr)
    return {"axis": point.axis, "value": point.value, "how": how, "seconds": seconds, "per_second": images / seconds}


def measure_accuracy(ways: dict[str, Way], device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Compare networks trained as calibration chose with plain ones: on digits, enlarged to the benchmark's images."""
    rows = []
    for arch, way in ways.items():
        settings = {"members": 4, "epochs": 1, "side": 8} if quick else {"members": 32, "epochs": 4, "side": 28}
        side = Side(Accuracy, 1, torch.get_num_threads(), arch=arch, way=way, device=device, **settings)
        side.end()
        comparison = side.facts["rates"]
        rows.append({**vars(comparison), "alike": comparison.alike})
        print(f"accuracy of {arch}: alike {comparison.alike}", file=sys.stderr)
    return rows


class Memory:
    """Not a contestant: trains on a zoo far larger than memory, in a process of its own."""

    def __init__(self, members: int, steps: int, quick: bool, device: torch.device) -> None:
        case = StoreCase(members=members, prep_width=10_000)
        self.rates = train_on_a_huge_zoo(members, steps, case, 64 if quick else None)


def measure_memory(quick: bool) -> dict[str, Any]:
    settings = {"members": 4_000, "steps": 1} if quick else {"members": 100_000, "steps": 5}
    side = Side(Memory, 1, torch.get_num_threads(), quick=quick, device=torch.device("cpu"), **settings)
    side.end()
    return dict(side.facts["rates"])


def measure_orders(given: argparse.Namespace, repeats: int) -> list[dict[str, Any]]:
    settings = {"network": given.net, "zoo": given.zoo, "repeats": repeats, "quick": given.quick}
    side = Side(Orders, 1, 1, device=torch.device("cpu"), **settings)
    side.end()
    return list(side.facts["rates"])


def measure_weights(case: WeightsCase, device: torch.device, repeats: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    kinds = {"reference": PlainWeights, "netspace": OurWeights}
    sides = {key: Side(kind, 1, threads, case=case, device=device) for key, kind in kinds.items()}
    how = "all weights at gamma 0.5: 50 noisy draws, their expectation"
    if case.loop is not None:
        how = f"four networks of a sandwich, batch {case.config.batch_size}, Adam"
    return compare(
        str(case), "networks/s" if case.loop is None else "steps/s", case.steps, "float32", how, sides, repeats
    )


def measure_permutation(quick: bool, repeats: int) -> list[dict[str, Any]]:
    side = Side(Permutation, 1, 1, device=torch.device("cpu"), quick=quick, repeats=repeats)
    side.end()
    return list(side.facts["rates"])


def feeding(rows: list[dict[str, Any]]) -> float | None:
    """Return the fraction of the paper's step that reading its members takes; None if one was not measured."""
    steps = [row for row in rows if row["name"].startswith("step: paper")]
    reads = [row for row in rows if row["name"] == "store: read"]
    if not steps or not reads:
        return None
    return BATCH / reads[0]["netspace"]["per_second"] * steps[0]["netspace"]["per_second"]


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a table, with a line on machine and versions."""
    here, machine, rates = result["provenance"], result["provenance"]["machine"], result["matmul_flops_per_second"]
    what = [*machine["gpus"], f"{machine['processor']} ({machine['cores']} cores)"]
    rates_text = ", ".join(f"{rate / 1e9:,.0f} in {name}" for name, rate in rates.items())
    lines = [
        f"{result['device']}: {', '.join(what)}; netspace {here['netspace']} ({(here['commit'] or 'no commit')[:9]}), "
        f"torch {here['torch']}, Python {here['python']}; load before {result['load']:.1f}.",
        f"Matmul {rates_text} GFLOP/s. Medians of {result['repeats']} turns; reference, then netspace; operations are the "
        "reference's, and the share is of the matmul rate in the side's precision.",
        "",
        "| what | how | ratio | throughput | seconds a turn | peak MiB | GFLOP/s (share) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        both = [row["reference"], row["netspace"]]
        reached = ", ".join(f"{side['flops_per_second'] / 1e9:.3g} ({side['share']:.0%})" for side in both)
        throughput = ", ".join(f"{side['per_second']:,.{0 if side['per_second'] > 100 else 2}f}" for side in both)
        lines.append(
            f"| {row['name']} | {row['how']} | **{row['ratio']:.2f}** | {throughput} {row['unit']} | "
            f"{', '.join(format(side['seconds'], '.3g') for side in both)} | "
            f"{', '.join(format(side['peak_bytes'] / 2**20, ',.0f') for side in both)} | "
            f"{reached if row['flops'] else '-'} |"
        )
    if result["feeding"] is not None:
        lines += [
            "",
            f"Reading the members of a step takes {result['feeding']:.1%} of the paper's step (before prefetching).",
        ]
    if result["orders"]:
        lines += ["", *orders_table(result["orders"])]
    if result["permutation"]:
        lines += ["", *permutation_table(result["permutation"])]
    if result["scale"]:
        lines += ["", *scale_table(result["scale"])]
    if result["accuracy"]:
        lines += ["", *accuracy_table(result["accuracy"])]
    if result["memory"]:
        here = result["memory"]
        lines += [
            "",
            f"A space at the paper's configuration (with `recompute` and `accumulate: 2`) trained on a zoo of {here['members']:,} members ({here['zoo_bytes'] / 1e9:.0f} GB): "
            f"{here['peak_bytes'] / 1e9:.2f} GB of memory at most, {here['seconds_a_step']:.2f} s a step.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed of netspace as a ratio to tools/reference.py.")
    parser.add_argument("what", nargs="*", help=f"{', '.join(WHAT)} (default: all)")
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; the times mean nothing")
    parser.add_argument("--repeats", type=int, default=None, help="turns of each side (default 5; 1 with --quick)")
    parser.add_argument("--net", help="the network whose kernels `orders` takes: a member of --zoo, `best`, a file")
    parser.add_argument("--zoo", type=Path)
    given = parser.parse_args()
    wrong = [word for word in given.what if word not in WHAT]
    if wrong:
        parser.error(f"{wrong[0]!r} is not a benchmark: choose among {', '.join(WHAT)}")
    what, device = given.what or list(WHAT), pick_device(given.device)
    repeats = given.repeats or (1 if given.quick else 3 if what == ["morph"] else 5)
    result: dict[str, Any] = {
        "device": device.type,
        "quick": given.quick,
        "repeats": repeats,
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NETSPACE_CACHE"] = folder  # every run calibrates afresh
        result["orders"] = measure_orders(given, repeats) if "orders" in what else []  # first: its data may be missing
        zoos = zoo_cases(given.quick) if {"zoo", "accuracy"} & {*what} else []
        shapes = shapes_cases(given.quick) if "shapes" in what else []
        threads = torch.get_num_threads()
        square = SIDES[device.type] // (2 if given.quick else 1)
        facts = Side(Facts, 1, threads, cases=[*zoos, *shapes], device=device, side=square)
        facts.end()
        rows = []
        ways_of = facts.facts["ways"]
        for case, way in zip(zoos, ways_of, strict=False) if "zoo" in what else []:
            rows.append(measure_zoo(case, way, device, repeats))
        for shape, way in zip(shapes, ways_of[len(zoos) :], strict=True):
            rows.append(measure_zoo(shape, way, device, repeats))
        steps: list[StepCase | MultiCase] = [
            *(step_cases(given.quick) if "step" in what else []),
            *(multi_cases(given.quick) if "multi" in what else []),
        ]
        for step in steps:
            rows.append(measure_step(replace(step, recipe=with_precisions(step.recipe, device)), device, repeats))
        if "decoders" in what:
            case = decoder_case(given.quick)
            case = replace(case, recipe=with_precisions(case.recipe, device))
            rows.append(measure_decoders(case, device, repeats))
        cases = nern_cases(given.quick) if "nern" in what else []
        for each in cases:
            rows.append(measure_nern(replace(each, config=with_precisions(each.config, device)), device, repeats))
        weights = weights_cases(given.quick) if "morph" in what else []
        rows += [measure_weights(each, device, repeats) for each in weights]
        rows += measure_store(device, repeats, given.quick) if "store" in what else []
        here = points(given.quick, os.cpu_count() or 1 if device.type == "cpu" else 1) if "scale" in what else []
        result["scale"] = [measure_point(point, device, repeats) for point in here]
        ways = {case.arch: way for case, way in zip(zoos, ways_of, strict=False) if given.quick or case.side == 28}
        result["accuracy"] = measure_accuracy(ways, device, given.quick) if "accuracy" in what else []
        result["permutation"] = measure_permutation(given.quick, repeats) if "morph" in what else []
        result["memory"] = measure_memory(given.quick) if "memory" in what else None
    rates = facts.facts["rates"]
    for row in rows:
        for side in (row["reference"], row["netspace"]):
            side["share"] = side["flops_per_second"] / rates[side["precision"]]
    result["feeding"] = feeding(rows)
    result.update(matmul_flops_per_second=rates, rows=rows, provenance=provenance())
    print(json.dumps(result) if given.json else markdown(result))


if __name__ == "__main__":
    main()
