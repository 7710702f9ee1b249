"""The tables that `netspace compress quantise` and `prune` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.cli.output import fraction, normalised, number, percent, table

if TYPE_CHECKING:
    from netspace.results.compressed import PrunedNetwork, Pruning, Quantisation


def quantised(figures: Quantisation) -> str:
    """Return the text of `netspace compress quantise`."""
    bits = figures.bits
    names = {
        "original": "the original",
        "original_quantised": f"the original in {bits} bits",
        "reconstructed": "reconstructed",
        "quantised": f"reconstructed, predictor in {bits} bits",
    }
    images = next(iter(figures.networks.values())).images
    rows = []
    for key, each in figures.networks.items():
        measured = [number(each.relative_error), percent(each.accuracy), percent(each.agreement)]
        if images:
            measured.append(percent(each.images.agreement if each.images else None))
        rows.append([names[key], f"{each.bytes:,}", percent(fraction(each.bytes, figures.bytes_original)), *measured])
    head = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
    head += ["on images"] if images else []
    return "\n".join(
        [
            table(head, rows),
            *([f"the images are {normalised(images)}"] if images else []),
            f"{figures.out}: quantising moves the weights by {percent(figures.relative_change)} of their norm",
        ]
    )


def pruning(figures: Pruning) -> str:
    """Return the text of `netspace compress prune`."""
    images = figures.predictor[0].images

    def cells(row: PrunedNetwork) -> list[str]:
        last = percent(row.images.agreement if row.images else row.accuracy)
        return [f"{row.weights:,}", number(row.relative_error), last]

    pairs = zip(figures.predictor, figures.original, strict=True)
    rows = [[percent(one.share), *cells(one), *cells(two)] for one, two in pairs]
    last = "same answer" if images else "accuracy"
    head = ["pruned", "predictor's weights", "relative error", last]
    head += ["original's weights", "relative error", last]
    where = "accuracy on the test images"
    if images:
        where = f"answers as the original's on the images, which are {normalised(images)}"
    return table(head, rows) + f"\nsmallest magnitudes first; {where}"
