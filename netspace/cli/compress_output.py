"""The texts of commands on compressed networks that make tables."""

from __future__ import annotations

from typing import Any

from netspace.cli.output import normalised, number, percent, table


def correction(figures: dict[str, Any]) -> str:
    """The text of `netspace compress correct`."""
    by = f", {normalised(figures)}" if "normalise" in figures else ""
    return (
        f"{figures['out']}: {len(figures['corrected'])} tensors of batch norms and biases corrected by "
        f"{figures['count']} inputs ({figures['shown']}{by}); compare it by `netspace compress eval` on others"
    )


def quantised(figures: dict[str, Any]) -> str:
    """The text of `netspace compress quantise`."""
    bits = figures["bits"]
    names = {
        "original": "the original",
        "original_quantised": f"the original in {bits} bits",
        "reconstructed": "reconstructed",
        "quantised": f"reconstructed, predictor in {bits} bits",
    }
    images = next(iter(figures["networks"].values())).get("images")
    seen = images is not None
    rows = []
    for key, found in figures["networks"].items():
        measured = [
            show(found.get(name))
            for name, show in (("relative_error", number), ("accuracy", percent), ("agreement", percent))
        ]
        if seen:
            measured.append(percent(found["images"]["agreement"]))
        rows.append([names[key], f"{found['bytes']:,}", percent(found["bytes"] / figures["bytes_original"]), *measured])
    head = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
    head += ["on images"] if seen else []
    return "\n".join(
        [
            table(head, rows),
            *([f"the images are {normalised(images)}"] if images else []),
            f"{figures['out']}: quantising moves the weights by {percent(figures['relative_change'])} of their norm",
        ]
    )


def pruning(figures: dict[str, Any]) -> str:
    """The text of `netspace compress prune`."""
    seen = "images" in figures["predictor"][0]

    def cells(row: dict[str, Any]) -> list[str]:
        told = percent(row["images"]["agreement"] if seen else row["accuracy"])
        return [f"{row['weights']:,}", number(row["relative_error"]), told]

    pairs = zip(figures["predictor"], figures["original"], strict=True)
    rows = [[percent(one["share"]), *cells(one), *cells(two)] for one, two in pairs]
    last = "same answer" if seen else "accuracy"
    head = ["pruned", "predictor's weights", "relative error", last]
    head += ["original's weights", "relative error", last]
    where = "accuracy on the test images"
    if seen:
        where = f"answers as the original's on the images, which are {normalised(figures['predictor'][0]['images'])}"
    return table(head, rows) + f"\nsmallest magnitudes first; {where}"
