"""What `netspace compress eval`, `quantise` and `prune` print, and what `eval` shows to networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import fraction, normalised, number, percent, table

if TYPE_CHECKING:
    from netspace.compression.originals import Pictures
    from netspace.compression.reference import Unlabelled
    from netspace.networks.outputs import Compare
    from netspace.results.compressed import OutputComparison, PrunedNetwork, Pruning, Quantisation

Noise = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="C,H,W",
        help="Shape of one input of noise U[-1, 1], on which both networks are compared; with --rebuild, of the inference that is measured.",
    ),
]
OutputOfEval = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="NAME|INDEX",
        help="Which of a network's outputs is compared on --images or noise, as in 0, boxes or out.0. Default: all.",
    ),
]
Compared = Annotated[
    str,
    typer.Option(
        "--compare",
        metavar="HOW",
        help="answers: outputs are logits (B, C); outputs: the relative error of their values; auto: answers where one output "
        "(B, C) is compared.",
    ),
]


def unlabelled(
    pictures: Pictures | None, shape: tuple[int, ...] | None, output: str | None, compare: str
) -> Unlabelled:
    """Return what networks are compared on, by the options. Raises `UsageError` for options that do not go together."""
    from netspace.compression.reference import Unlabelled
    from netspace.errors import unknown

    known: dict[str, Compare] = {"auto": "auto", "answers": "answers", "outputs": "outputs"}
    if compare not in known:
        raise unknown("comparison", compare, known)
    made = Unlabelled(pictures, shape, output, known[compare])
    made.check()
    return made


def last(figures: OutputComparison | None) -> str:
    """Return the figure of a table's last column: same answers, or the error of outputs."""
    if figures is None:
        return percent(None)
    return percent(figures.agreement) if figures.output_error is None else number(figures.output_error)


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
            measured.append(last(each.images))
        rows.append([names[key], f"{each.bytes:,}", percent(fraction(each.bytes, figures.bytes_original)), *measured])
    head = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
    head += ["on images" if images.output_error is None else "error of outputs on images"] if images else []
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
        return [
            f"{row.weights:,}",
            number(row.relative_error),
            last(row.images) if row.images else percent(row.accuracy),
        ]

    pairs = zip(figures.predictor, figures.original, strict=True)
    rows = [[percent(one.share), *cells(one), *cells(two)] for one, two in pairs]
    errors = images is not None and images.output_error is not None
    kind = "error of outputs" if errors else "same answer" if images else "accuracy"
    head = ["pruned", "predictor's weights", "relative error", kind]
    head += ["original's weights", "relative error", kind]
    where = "accuracy on the test images"
    if images:
        what = "relative error of outputs" if errors else "answers as the original's"
        where = f"{what} on the images, which are {normalised(images)}"
    return table(head, rows) + f"\nsmallest magnitudes first; {where}"
