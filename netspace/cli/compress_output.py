"""The texts of commands on compressed networks that make tables."""

from __future__ import annotations

from typing import Any

from netspace.cli.output import number, percent, table


def quantised(figures: dict[str, Any]) -> str:
    """The text of `netspace compress quantise`."""
    bits = figures["bits"]
    names = {
        "original": "the original",
        "original_quantised": f"the original in {bits} bits",
        "reconstructed": "reconstructed",
        "quantised": f"reconstructed, predictor in {bits} bits",
    }
    rows = []
    for key, found in figures["networks"].items():
        measured = [
            show(found.get(name))
            for name, show in (("relative_error", number), ("accuracy", percent), ("agreement", percent))
        ]
        rows.append([names[key], f"{found['bytes']:,}", percent(found["bytes"] / figures["bytes_original"]), *measured])
    head = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
    return "\n".join(
        [
            table(head, rows),
            f"{figures['out']}: quantising moves the weights by {percent(figures['relative_change'])} of their norm",
        ]
    )


def pruning(figures: dict[str, Any]) -> str:
    """The text of `netspace compress prune`."""
    rows = [
        [
            percent(one["share"]),
            *(
                cell
                for row in (one, two)
                for cell in (f"{row['weights']:,}", number(row["relative_error"]), percent(row["accuracy"]))
            ),
        ]
        for one, two in zip(figures["predictor"], figures["original"], strict=True)
    ]
    head = ["pruned", "predictor's weights", "relative error", "accuracy"]
    head += ["original's weights", "relative error", "accuracy"]
    return table(head, rows) + "\nsmallest magnitudes first; accuracy on the test images"
