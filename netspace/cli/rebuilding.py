"""The text of `netspace compress eval`, with the cost of rebuilding a network if it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.cli.output import compression, table

if TYPE_CHECKING:
    from netspace.results.compressed import Compression, RebuildCost, WorkCost


def evaluated(figures: Compression) -> str:
    """Return the text of `netspace compress eval`."""
    cost = figures.rebuild
    return compression(figures) if cost is None else f"{compression(figures)}\n{_costs(cost)}"


def _costs(cost: RebuildCost) -> str:
    rows = [["rebuilding all weights from the file", *_cells(cost.rebuild)]]
    rows += [[f"an inference of {each.batch:,}", *_cells(each)] for each in cost.inference]
    threads = "1 thread" if cost.threads == 1 else f"{cost.threads} threads"
    lines = [
        "",
        table(["", "time", "multiply-adds", "memory"], rows),
        f"median of {cost.runs} runs, {threads}; multiply-adds of matrix products and convolutions; memory of what is made, beside "
        "weights that are there",
    ]
    if cost.inference:
        times = [
            f"{cost.rebuild.seconds / each.seconds:,.2g} inferences of {each.batch:,}"
            for each in cost.inference
            if each.seconds > 0
        ]
        lines.append(f"rebuilding takes as long as {' or '.join(times)}; it is done once, when the network is loaded")
    else:
        lines.append("no architecture is known that runs this network: give MODEL, or its state dict and --arch")
    return "\n".join(lines)


def _cells(cost: WorkCost) -> list[str]:
    return [f"{1000 * cost.seconds:,.3g} ms", f"{cost.multiply_adds:,}", f"{cost.peak_bytes / 1e6:,.2f} MB"]
