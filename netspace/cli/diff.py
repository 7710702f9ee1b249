"""`netspace diff`: its options, and the text that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import number, percent, points, say, small, table
from netspace.cli.shared import (
    Arch,
    Device,
    Images,
    Json,
    Key,
    Kwargs,
    ModelZoo,
    Normalise,
    Shape,
    Size,
    Trust,
    named_arch,
    parse_pictures,
    parse_shape,
    pick,
    trusting,
)

if TYPE_CHECKING:
    from netspace.results.diffs import Answers, Difference

NETWORK = (
    "A zoo's member (resnet20/0000, best), a state-dict file, a compressed network, or the folder of a `compress fit` or "
    "`morph fit`."
)
MAX_ROWS = 60  # layers or classes that are printed; all are in --json
MAX_EXAMPLES = 8  # changed answers that are printed


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=NETWORK)],
    second: Annotated[str, typer.Argument(metavar="B", help="The network that it is compared with, named as A.")],
    zoo: ModelZoo = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="PNG", help="Write one picture of the comparison to this file."),
    ] = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    images: Images = None,
    size: Size = 224,
    normalise: Normalise = None,
    input_shape: Shape = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare two networks layer by layer, before and after alignment of their channels, and by their answers.

    Weights are compared with batch norm folded where the architecture is known. Answers need the test inputs of a zoo's task
    (--zoo), or pictures without labels (--images).
    """
    from netspace.commands.diff import diff as compare

    trusting(trust_arch)
    pictures, shape = parse_pictures(images, size, normalise), parse_shape(input_shape)
    result = compare(first, second, zoo, named_arch(arch, kwargs), key, pictures, shape, out, pick(device))
    say(result, json, difference)


def difference(result: Difference) -> str:
    """Return the text of `netspace diff`."""
    lines = [
        f"{result.first} ({result.parameters_first:,} values) and {result.second} ({result.parameters_second:,} values)"
        + (", batch norm folded" if result.folded else "")
    ]
    if result.layers:
        lines += ["", _layers(result)]
    if result.not_aligned:
        lines.append(f"channels are not aligned: {result.not_aligned}")
    if result.unmatched:
        lines += ["", f"{len(result.unmatched)} layers of one network alone, or of other shapes:", _unmatched(result)]
    lines += (
        ["", *_answers(result.answers)] if result.answers else ["", f"answers are not compared: {result.no_answers}"]
    )
    if result.picture:
        lines.append(f"the picture is {result.picture}")
    return "\n".join(lines)


def _layers(result: Difference) -> str:
    aligned = result.aligned is not None
    rows = [
        [
            each.layer,
            f"{each.values:,}",
            small(each.norm),
            small(each.distance),
            percent(each.relative),
            number(each.cosine),
            *([percent(each.aligned_relative), number(each.aligned_cosine)] if aligned else []),
        ]
        for each in result.layers[:MAX_ROWS]
    ]
    if len(result.layers) > MAX_ROWS:
        rows.append([f"... {len(result.layers) - MAX_ROWS} more", *[""] * (5 + 2 * aligned)])
    total = ["all of them", f"{sum(each.values for each in result.layers):,}", "", small(result.distance)]
    rows.append([*total, percent(result.relative), "", *([percent(result.aligned_relative), ""] if aligned else [])])
    head = ["layer", "values", "norm of A", "distance", "of the norm", "cosine"]
    return table(head + (["aligned", "cosine"] if aligned else []), rows)


def _unmatched(result: Difference) -> str:
    def sides(shape: tuple[int, ...] | None) -> str:
        return "-" if shape is None else "x".join(map(str, shape)) or "1"

    rows = [[each.layer, sides(each.first), sides(each.second)] for each in result.unmatched[:MAX_ROWS]]
    return table(["layer", "A", "B"], rows)


def _answers(answers: Answers) -> list[str]:
    lines = [f"the same answer for {percent(answers.agreement)} of {answers.inputs:,} inputs ({answers.source})"]
    if answers.changed is None:
        lines[0] = f"agreement {percent(answers.agreement)} on {answers.inputs:,} inputs ({answers.source})"
    if answers.score_first is not None and answers.score_second is not None:
        change = points(answers.score_second - answers.score_first)
        lines.append(f"accuracy {percent(answers.score_first)} and {percent(answers.score_second)} ({change} points)")
    if answers.lost is not None:
        lines.append(
            f"{answers.changed:,} answers change: {answers.lost:,} from right to wrong, {answers.gained:,} from wrong to "
            f"right, {answers.both_wrong:,} from wrong to another wrong one"
        )
    elif answers.changed is not None:
        lines.append(f"{answers.changed:,} answers change")
    if answers.classes:
        classes = sorted(answers.classes, key=lambda each: -each.changed)[:MAX_ROWS]
        rows = [
            [
                each.name,
                each.inputs,
                percent(each.accuracy_first),
                percent(each.accuracy_second),
                points(each.accuracy_second - each.accuracy_first),
                percent(each.changed),
                each.most_changed or "-",
            ]
            for each in classes
        ]
        head = ["class", "inputs", "accuracy of A", "of B", "points", "changed", "most often"]
        lines += ["", table(head, rows)]
    if answers.examples:
        named = ", ".join(
            f"{each.input} ({each.first} -> {each.second}{'' if each.target is None else f'; is {each.target}'})"
            for each in answers.examples[:MAX_EXAMPLES]
        )
        lines.append(f"changed, for example: {named}")
    return lines
