"""Which figures a run's content allows, each with its words: title, alternative text, how to read it.

What is missing is told as one sentence with the command that makes it; nothing is drawn in its place.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netspace.report import figures
from netspace.report.collect import Evaluation, Line, Run, average_line, finite, part
from netspace.report.drawing import MANY, plain, shortened, styled, to_png
from netspace.report.numbers import NOTHING, count, joined, number, percent, points

BANK = 2000  # members of the training split on the map, at most
MEASURES = (("r2", 1), ("mae", -1), ("agreement", 1))  # and whether more is better
BASELINES = {
    "nearest": "the training network with the nearest weights",
    "nearest_latent": "the training network with the nearest latent",
    "noise": "the nearest in weights plus Gaussian noise",
    "average": "the mean of all training networks' weights",
}


@dataclass(frozen=True)
class Picture:
    """One figure of the report. Texts are plain; the page escapes them."""

    name: str  # of its file, without suffix
    part: str  # the chapter of the page that it belongs to
    title: str
    png: bytes
    alt: str
    caption: str
    wide: bool = True  # over the whole width of the page, not half of it


def pictures(run: Run) -> list[Picture]:
    """All figures, in the order of the page."""
    with styled():
        return [*_behaviour(run), *_lines(run), *_climbs(run), *_preps(run), *_maps(run), *_training(run)]


def missing(run: Run) -> list[tuple[str, str]]:
    """(chapter, one sentence) for what could not be shown, with what makes it."""
    place, told = shlex.quote(str(run.path)), []
    main = run.evaluations.get("test")
    if main is None:
        told.append(
            (
                "behaviour",
                f"The test split has not been evaluated yet: `netspace eval {place}` measures it, beside baselines.",
            )
        )
    if not run.lines:
        command = f"netspace interpolate --from worst --to best --run {place}"
        told.append(
            (
                "lines",
                f"No interpolation between two chosen networks has been made yet: `{command}` makes one.",
            )
        )
    for split, found in run.evaluations.items():
        if found.tensors is None:
            again = f"`netspace eval {place} --split {split}`"
            sentence = f"Latents and PReps of the {split} split are missing or of another evaluation"
            sentence = f"{sentence}: {again} writes them."
            told.append(("preps", sentence))
    if not run.records:
        told.append(("training", "The folder holds no metrics.jsonl, so the course of the training cannot be shown."))
    return told


def better_baselines(evaluation: Evaluation) -> dict[str, list[str]]:
    """The measures (of `MEASURES`) in which each baseline does better than the space; only those that do in some."""
    told = part(evaluation.figures, "baselines")
    found: dict[str, list[str]] = {}
    for name in told:
        for measure, sign in MEASURES:
            own, value = finite(evaluation.figures.get(measure)), finite(part(told, name).get(measure))
            if own is not None and value is not None and sign * value > sign * own:
                found.setdefault(name, []).append(measure)
    return found


def _behaviour(run: Run) -> Iterator[Picture]:
    for split, found in run.evaluations.items():
        seen = " These members were used in training." if split == "train" else ""
        several = len(found.member) <= MANY
        joins = " A grey line joins the two." if several else ""
        yield Picture(
            f"members-{split}",
            "behaviour",
            f"Targets and predictions, {split} split",
            to_png(figures.members(found.target, found.predicted)),
            f"{count(len(found.member))} members sorted by their target's accuracy, from {percent(found.target.min())} "
            f"to {percent(found.target.max())}; predicted accuracies from {percent(found.predicted.min())} to "
            f"{percent(found.predicted.max())}, {points(found.figures.get('mae'))} away on average.",
            "Each place on the horizontal axis is one network of the zoo. The blue line is its accuracy on the test "
            f"images, the orange diamond that of the network decoded from its latent.{joins} The closer, the better."
            f"{seen} NetSpace, Fig. 3 a and c.",
            wide=len(run.evaluations) == 1,
        )
    main = next(iter(run.evaluations.values()), None)
    if main is None:
        return
    told = main.figures
    measured = f"R² {number(told.get('r2'))} · mean difference {points(told.get('mae'))}"
    measured += f" · agreement {percent(told.get('agreement'))}"
    yield Picture(
        f"scatter-{main.split}",
        "behaviour",
        f"Predicted over target accuracy, {main.split} split",
        to_png(figures.scatter(main.target, main.predicted, measured)),
        f"Predicted over target accuracy of {count(len(main.member))} members. {measured}.",
        "Each dot is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. "
        "R² is 1 on the diagonal and 0 for always answering the targets' mean accuracy.",
        wide=False,
    )
    others = part(told, "baselines")
    if others:
        names = [name for name in BASELINES if name in others] + [name for name in others if name not in BASELINES]
        rows = [("space", told), *((name, part(others, name)) for name in names)]
        clean = [(plain(name, 20), {key: finite(row.get(key)) for key, _ in MEASURES}) for name, row in rows]
        said = [f"{name}: R² {number(row.get('r2'))}, {points(row.get('mae'))}" for name, row in rows]
        yield Picture(
            f"baselines-{main.split}",
            "behaviour",
            "Beside baselines",
            to_png(figures.baselines(clean)),
            f"Bars for the space and baselines. {'; '.join(said)}.",
            "What the space gives back (orange) beside what anyone could answer without a decoder (grey): "
            f"{'; '.join(f'{name} is {BASELINES[name]}' for name in names if name in BASELINES)}.",
            wide=False,
        )


def _lines(run: Run) -> Iterator[Picture]:
    for found in run.evaluations.values():
        line = average_line(found)
        if line is not None:
            pairs = count(part(found.figures, "interpolation").get("pairs"))
            title = f"Mean over {pairs} lines of the {found.split} split"
            how = (
                "Mean accuracy along lines that end in the best member and start in members of the lower half, chosen "
                "on validation images."
            )
            yield _line(run, line, f"interpolation-mean-{found.split}", title, how, mean=True)
    for line in run.lines:
        title = f"From {line.start} to {line.end}"
        yield _line(run, line, f"interpolation-{line.name[:120]}", title, "The line between two chosen networks.")


def _line(run: Run, line: Line, name: str, title: str, how: str, mean: bool = False) -> Picture:
    kind = "mean rank correlation with γ" if mean else "rank correlation with γ"
    rank = f"{kind} (Spearman): latents {number(line.spearman)}"
    rank += f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    heading = f"Spearman with γ: latents {number(line.spearman)}"
    heading += f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    direct = "Blue squares are networks whose weights were interpolated directly. "
    chance = " The dotted line (chance) is guessing among balanced classes." if run.chance else ""
    return Picture(
        name,
        "lines",
        title,
        to_png(figures.interpolation(line.gamma, line.latent, line.weights, heading, run.chance)),
        f"{title}: decoded networks go from {percent(line.latent[0])} to {percent(line.latent[-1])}; {rank}.",
        f"{how} Orange diamonds are networks decoded from interpolated latents; in an organised space they rise "
        f"evenly. {direct if line.weights is not None else ''}NetSpace, Fig. 3 b and d.{chance}",
        wide=False,
    )


def _climbs(run: Run) -> Iterator[Picture]:
    for found in run.climbs:
        best = int(np.nanargmax(found.accuracy.max(0)))
        gains = [
            f"{name} from {percent(before)} to {percent(after)}"
            for name, before, after in zip(found.starts, found.before, found.after, strict=True)
        ]
        yield Picture(
            f"optimized-{found.name[:120]}",
            "lines",
            f"Descent on latents, taught by {shortened(found.teacher, 40)}",
            to_png(figures.climb(found.steps, found.accuracy, found.starts)),
            f"{count(len(found.starts))} latents optimised for {count(found.steps[-1])} steps; on test images "
            f"{joined(gains)}.",
            "Encoder and decoder stay as they are; only the latents move, down the distillation loss to the teacher. Each "
            f"is kept where it is best on validation images. On test images: {joined(gains)}; the best by validation is "
            f"{found.starts[best]}. NetSpace, Latent Space Optimization.",
            wide=False,
        )


def _preps(run: Run) -> Iterator[Picture]:
    main = next((found for found in run.evaluations.values() if found.tensors is not None), None)
    if main is None or main.tensors is None or not len(main.tensors.shown):
        return
    held, pairs, distances = main.tensors, [], []
    size = int(finite(main.figures.get("parameters")) or held.preps[0].size)
    for row, prep, decoded in zip(held.shown, held.preps, held.decoded, strict=True):
        first, second = (matrix.reshape(-1)[:size].astype(np.float64) for matrix in (prep, decoded))
        name = shortened(main.member[row], 20)
        titles = (
            f"{name} · target · {percent(main.target[row])}",
            f"predicted · {percent(main.predicted[row])}",
        )
        pairs.append((titles[0], first, titles[1], second))
        norm = float(np.linalg.norm(first))
        distances.append(float(np.linalg.norm(second - first)) / norm if norm else float("nan"))
    told = number(np.nanmean(distances)) if np.isfinite(distances).any() else NOTHING
    yield Picture(
        f"preps-{main.split}",
        "preps",
        "Networks as images",
        to_png(figures.preps(pairs)),
        f"Parameters of {len(pairs)} networks as images, target left and predicted right, in common colours.",
        "The parameters of a network, row by row, as an image (target left, predicted right), with accuracies on the "
        "test images; members from the least to the most accurate. Colours mean the same everywhere and stop at the "
        "99th percentile of |value|; padding is not shown. The distance from target to prediction is "
        f"{told} times the target's norm on average; where images differ and accuracies agree, networks are as "
        "accurate with other weights. NetSpace, Suppl. VII, Fig. 5.",
        wide=False,
    )


def _maps(run: Run) -> Iterator[Picture]:
    held = {split: found for split, found in run.evaluations.items() if found.tensors is not None}
    front = next(iter(held), None)
    if front is None:
        return
    chosen = {split: held[split] for split in ("train", front) if split in held}
    places = {split: np.arange(len(found.member)) for split, found in chosen.items()}
    if len(chosen) > 1 and len(places["train"]) > BANK:
        places["train"] = np.linspace(0, len(places["train"]) - 1, BANK).round().astype(int)
    latents = [found.tensors.latents[places[split]] for split, found in chosen.items() if found.tensors is not None]
    if (
        sum(map(len, latents)) < 3
        or len({piece.shape[1] for piece in latents}) > 1
        or not all(np.isfinite(z).all() for z in latents)
    ):
        return
    axes, shares = figures.principal(np.concatenate(latents))
    pieces = np.split(axes, np.cumsum([len(piece) for piece in latents])[:-1])
    sets = [
        (f"{split} split", piece, found.target[places[split]])
        for (split, found), piece in zip(chosen.items(), pieces, strict=True)
    ]
    yield Picture(
        "latents",
        "preps",
        "Map of the latent space",
        to_png(figures.latent_map(sets, shares)),
        f"{joined([f'{count(len(piece))} latents of the {name}' for name, piece, _ in sets])} "
        "on their first two principal axes, coloured by accuracy.",
        "Each dot is the latent of one network, projected on the two directions along which latents vary most (they "
        f"hold {percent(sum(shares))} of the variance), coloured by the network's accuracy on the test images. Where "
        "colours change gradually, accuracy is a direction of the space; what other directions hold is not seen here.",
        wide=False,
    )


def _training(run: Run) -> Iterator[Picture]:
    if not run.records:
        return
    last = max(float(record["step"]) for record in run.records)
    yield Picture(
        "training",
        "training",
        "Course of the training",
        to_png(figures.training(run.records)),
        f"Loss terms and validation figures over {count(last)} steps.",
        "Loss terms are those of single batches, times their weights in the sum. Validation compares members of the "
        "zoo's validation split with their predictions on validation images; the checkpoint with the smallest mean "
        "difference of accuracy (circle) is the one that is kept and evaluated. R² below −1 is drawn as −1.",
    )
