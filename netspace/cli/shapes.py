"""What `eval`, `interpolate` and `decode` print: the text of `netspace.cli.output`, with that on networks that are shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.cli import evaluation as of_space
from netspace.cli import output
from netspace.cli.evaluation import NAMES, refined_name
from netspace.cli.properties import measures, properties

if TYPE_CHECKING:
    from netspace.results import lines as of_lines
    from netspace.results import shapes as of_shapes
    from netspace.results import spaces as of_spaces


def evaluation(figures: of_spaces.Evaluation) -> str:
    """Return the text of `netspace eval`, with tables of shapes and of what is told of signals."""
    more = [
        *measures(figures.measures),
        *_evaluated(figures),
        *properties(figures.properties),
        *_completed(figures.completion),
    ]
    return "\n".join([of_space.evaluation(figures), *more])


def _evaluated(figures: of_spaces.Evaluation) -> list[str]:
    if figures.shapes is None:
        return []
    refined = {refined_name(figures.refined): figures.refined} if figures.refined else {}
    names = {"predicted by the space": figures, **refined, **figures.listed_baselines}
    rows = [
        [NAMES.get(name, name), output.percent(each.iou), output.number(each.chamfer), *_whole(each)]
        for name, each in names.items()
        if each is not None and each.iou is not None
    ]
    rows.append(["targets", "", "", *_whole(figures.shapes.target)])
    head = ["shapes", "IoU", "Chamfer", "one body", "without specks", "empty"]
    lines = ["", output.table(head, rows), ""]
    between = figures.shapes.lines
    if between is not None:
        kinds = {"latents": between.latent, "weights": between.weights, "weights, aligned": between.aligned}
        rows = [
            [name, *_whole(each), f"{each.valid_lines} of {between.lines}"]
            for name, each in kinds.items()
            if each is not None
        ]
        head = [f"{between.steps} shapes on each of {between.lines} lines", *head[3:], "whole lines"]
        lines += [output.table(head, rows)]
    return lines


def _whole(figures: of_shapes.Solidity | of_spaces.Measures) -> list[str]:
    return [output.percent(each) for each in (figures.valid, figures.single_body, figures.empty)]


def _completed(figures: of_shapes.Completions | None) -> list[str]:
    if figures is None:
        return []
    names = {
        "completed in the space": figures.iou,
        "a network fitted to the points from scratch": figures.iou_scratch,
        "the training network nearest to the points": figures.iou_nearest,
        "the member, encoded and decoded": figures.iou_predicted,
        "the member itself": figures.iou_target,
    }
    head = [f"{figures.members} shapes from {figures.points} points each", "IoU with the true shape"]
    return ["", output.table(head, [[name, output.percent(value)] for name, value in names.items()])]


def completion(figures: of_shapes.Completion) -> str:
    """Return the text of `netspace optimize --points`."""
    lines = [
        f"a {figures.arch} for {figures.points:,} points, which are {output.number(figures.distance, 4)} from its surface; "
        f"{output.number(figures.distance_nearest, 4)} from that of the nearest training network",
        f"the latent: {figures.latent}, the network: {figures.network}",
    ]
    if figures.mesh is not None:
        lines.append(f"a mesh of {figures.bodies} {'body' if figures.bodies == 1 else 'bodies'}: {figures.mesh}")
    return "\n".join(lines)


def interpolation(figures: of_lines.Interpolation) -> str:
    """Return the text of `netspace interpolate`, with the bodies of shapes."""
    if figures.bodies is None:
        return output.interpolation(figures)
    rows = [
        [name, *counts]
        for name, counts in (
            ("latents", figures.bodies.latent),
            ("weights", figures.bodies.weights),
            ("weights, aligned", figures.bodies.aligned),
        )
        if counts is not None
    ]
    head = ["bodies at gamma", *(f"{gamma:.2f}" for gamma in figures.gamma)]
    files = f"the picture is {figures.picture}, with {len(figures.meshes)} meshes beside it"
    return "\n".join([output.interpolation(figures), "", output.table(head, rows), files])


def decoding(figures: of_spaces.Decoding) -> str:
    """Return the text of `netspace decode`."""
    accuracy = output.percent(figures.accuracy_test)
    text = f"{figures.arch} with {figures.parameters:,} parameters in {figures.file}, {accuracy} on the test images"
    if figures.bodies is None:
        return text
    return f"{text}; a mesh of {figures.bodies} {'body' if figures.bodies == 1 else 'bodies'}"
