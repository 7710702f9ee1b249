"""Which figures a run's content allows, each with its words: title, alternative text, how to read it.

What is not there is left out; `netspace.report.missing` tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from netspace.report import class_pictures, figures
from netspace.report.collect import Climb, Evaluation, Line, Run, average_line
from netspace.report.course import of_several, training
from netspace.report.drawing import MANY, looks, plain, shortened, styled, to_png
from netspace.report.numbers import NOTHING, away, count, joined, number, percent, points
from netspace.report.picture import Picture
from netspace.report.reading import finite, part

BANK = 2000  # members of the training split on the map, at most
MEASURES = (("r2", 1), ("mae", -1), ("agreement", 1))  # and whether more is better
BASELINES = {
    "same_accuracy": "a random training network of the same validation accuracy",
    "nearest_answers": "the training network with the nearest answers on validation images (KL)",
    "nearest_agreement": "the training network with the most equal answers on validation images",
    "five_nearest": "the mean answer of the five nearest by their answers",
    "constant": "one training network for every member, the best on validation members",
    "ensemble": "the mean answer of all training networks",
    "nearest": "the training network with the nearest weights",
    "nearest_latent": "the training network with the nearest latent",
    "noise": "the nearest in weights plus Gaussian noise",
    "average": "the mean of all training networks' weights",
    "aligned_average": "the mean of the ten best after alignment of channels, with the statistics of its sources",
}


def pictures(run: Run) -> list[Picture]:
    """All figures, in the order of the page."""
    with styled():
        return [*_behaviour(run), *_lines(run), *_climbs(run), *_preps(run), *_maps(run), *_training(run)]


def baseline_names(others: Mapping[str, Any]) -> list[str]:
    """The baselines of an evaluation in the order in which they are shown, unknown ones last."""
    return [*(name for name in BASELINES if name in others), *(name for name in others if name not in BASELINES)]


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
    main = next(iter(run.evaluations.values()), None)
    if main is None:
        return
    others = part(main.figures, "baselines")
    odd = (len(run.evaluations) + bool(others)) % 2 == 1  # one more picture fills its row
    for split, found in run.evaluations.items():
        if found.classes is not None:
            yield class_pictures.members(found, found.classes, wide=odd and found is main)
            continue
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
    if main.classes is not None:
        yield class_pictures.scatter(main, main.classes)
        yield class_pictures.confusion(main, main.classes)
    else:
        yield _scatter(main)
    if others:
        yield _baselines(main, others)


def _scatter(main: Evaluation) -> Picture:
    told = main.figures
    measured = f"R² {number(told.get('r2'))} · mean difference {points(told.get('mae'))}"
    measured += f" · agreement {percent(told.get('agreement'))}"
    return Picture(
        f"scatter-{main.split}",
        "behaviour",
        f"Predicted over target accuracy, {main.split} split",
        to_png(figures.scatter(main.target, main.predicted, measured)),
        f"Predicted over target accuracy of {count(len(main.member))} members. {measured}.",
        "Each dot is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. "
        "R² is 1 on the diagonal and 0 for always answering the targets' mean accuracy.",
        wide=False,
    )


def _baselines(main: Evaluation, others: Mapping[str, Any]) -> Picture:
    names = [name for name in baseline_names(others) if part(others, name)]
    rows = [("space", main.figures), *((name, part(others, name)) for name in names)]
    clean = [(plain(name, 20), {key: finite(row.get(key)) for key, _ in MEASURES}) for name, row in rows]
    said = [f"{name}: R² {number(row.get('r2'))}, {points(row.get('mae'))}" for name, row in rows]
    own = " All answer with networks of the target's own architecture." if main.classes is not None else ""
    return Picture(
        f"baselines-{main.split}",
        "behaviour",
        "The space and baselines",
        to_png(figures.baselines(clean)),
        f"Bars for the space and baselines. {'; '.join(said)}.",
        "What the space gives back (orange) and what anyone could answer without a decoder (grey): "
        f"{'; '.join(f'{name} is {BASELINES[name]}' for name in names if name in BASELINES)}.{own}",
        wide=False,
    )


def _lines(run: Run) -> Iterator[Picture]:
    for found in run.evaluations.values():
        if found.classes is not None and found.classes.line is not None:
            yield class_pictures.evaluated_line(run, found, found.classes.line)
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
        through = class_pictures.chosen_line(run, line)
        if through is not None:
            yield through
            continue
        title = f"From {line.start} to {line.end}"
        yield _line(run, line, f"interpolation-{line.name[:120]}", title, "The line between two chosen networks.")


def _line(run: Run, line: Line, name: str, title: str, how: str, mean: bool = False) -> Picture:
    kind = "mean rank correlation with γ" if mean else "rank correlation with γ"
    rank = f"{kind} (Spearman): latents {number(line.spearman)}"
    rank += f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    straight, ends = _straight(line, mean), away(line.ends, mean)
    heading = f"Spearman with γ: latents {number(line.spearman)}"
    heading += f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    direct = "Blue squares are networks whose weights were interpolated directly. "
    chance = " The dotted line (chance) is guessing among balanced classes." if run.chance else ""
    return Picture(
        name,
        "lines",
        title,
        to_png(figures.interpolation(line.gamma, line.latent, line.weights, heading, run.chance)),
        f"{title}: decoded networks go from {percent(line.latent[0])} to {percent(line.latent[-1])}; {rank}.{straight}",
        f"{how} Orange diamonds are networks decoded from interpolated latents; in an organised space they rise "
        f"evenly.{straight}{ends} {direct if line.weights is not None else ''}NetSpace, Fig. 3 b and d.{chance}",
        wide=False,
    )


def _straight(line: Line, mean: bool) -> str:
    """How straight a line of accuracies is; nothing where it was not measured."""
    if line.linear_r2 is None:
        return ""
    weights = f", {number(line.weight_linear_r2)} of the weights'" if line.weights is not None else ""
    kind = "mean R² of straight lines" if mean else "R² of a straight line"
    return f" The {kind} through the accuracies is {number(line.linear_r2)} of the latents'{weights}."


def taught_by(climb: Climb) -> str:
    """The teacher's name; of a member of another file, the member's alone."""
    return shortened(climb.teacher.rpartition(".h5:")[2], 40)


def _climbs(run: Run) -> Iterator[Picture]:
    for found in run.climbs:
        several = len(set(found.arch)) > 1
        order = list(dict.fromkeys([*run.order, *found.arch]))
        styles = [looks(order)[arch] for arch in found.arch] if several else None
        same = " and still read as its architecture" if several else ""
        gains = [
            f"{name} from {percent(before)} to {percent(after)}"
            for name, before, after in zip(found.starts, found.before, found.after, strict=True)
        ]
        yield Picture(
            f"optimized-{found.name[:120]}",
            "lines",
            f"Descent on latents, taught by {taught_by(found)}",
            to_png(figures.climb(found.steps, found.accuracy, found.starts, styles)),
            f"{count(len(found.starts))} latents optimised for {count(found.steps[-1])} steps; on test images "
            f"{joined(gains)}.",
            "Encoder and decoder stay as they are; only the latents move, down the distillation loss to the teacher. Each "
            f"is kept where it is best on validation images{same}. On test images: {joined(gains)}; the best by validation is "
            f"{found.starts[found.best]}. NetSpace, Latent Space Optimization.",
            wide=False,
        )


def _preps(run: Run) -> Iterator[Picture]:
    main = next((found for found in run.evaluations.values() if found.tensors is not None), None)
    if main is None or main.tensors is None or not len(main.tensors.shown):
        return
    held, pairs, distances = main.tensors, [], []
    for row, prep, decoded in zip(held.shown, held.preps, held.decoded, strict=True):
        sizes = _sizes(run, main, row)
        first, second = (
            matrix.reshape(-1)[:size].astype(np.float64) for matrix, size in zip((prep, decoded), sizes, strict=True)
        )
        name = shortened(main.member[row], 20)
        other = _decoded_as_another(main, row)
        titles = (
            f"{name} · target · {percent(main.target[row])}",
            f"{f'decoded as {shortened(other, 14)}' if other else 'predicted'} · {percent(main.predicted[row])}",
        )
        pairs.append((titles[0], first, titles[1], second))
        norm = float(np.linalg.norm(first))
        if other is None:
            distances.append(float(np.linalg.norm(second - first)) / norm if norm else float("nan"))
    told = number(np.nanmean(distances)) if np.isfinite(distances).any() else NOTHING
    kinds, of, figure = "", "", 5
    if main.classes is not None:
        figure, kinds = 6, joined(sorted({main.classes.archs[main.classes.target[row]] for row in held.shown}))
        of = f"Those shown are of {kinds}, the largest architecture that was evaluated. "
    yield Picture(
        f"preps-{main.split}",
        "preps",
        "Networks as images",
        to_png(figures.preps(pairs)),
        f"Parameters of {len(pairs)} networks{f' of {kinds}' if kinds else ''} as images, target left and predicted right, in common colours.",
        "The parameters of a network, row by row, as an image (target left, predicted right), with accuracies on the "
        f"test images; members from the least to the most accurate. {of}Colours mean the same everywhere and stop at the "
        "99th percentile of |value|; padding is not shown. The distance from target to prediction is "
        f"{told} times the target's norm on average; where images differ and accuracies agree, networks are as "
        f"accurate with other weights. NetSpace, Suppl. VII, Fig. {figure}.",
        wide=False,
    )


def _decoded_as_another(main: Evaluation, row: int) -> str | None:
    """The architecture as which a member was decoded, if it is not its own."""
    classes = main.classes
    if classes is None or classes.target[row] == classes.predicted[row]:
        return None
    return classes.archs[classes.predicted[row]]


def _sizes(run: Run, main: Evaluation, row: int) -> tuple[int | None, int | None]:
    """How many values of a member's PRep, and of its prediction's, are parameters; None for all."""
    if main.classes is None:
        told = finite(main.figures.get("parameters"))
        return (int(told), int(told)) if told else (None, None)
    archs = (main.classes.archs[ids[row]] for ids in (main.classes.target, main.classes.predicted))
    first, second = (run.parameters(arch) for arch in archs)
    return first, second


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
    kinds = [(found.classes, places[split]) for split, found in chosen.items() if found.classes is not None]
    if len(kinds) == len(chosen):
        ids = [classes.target[rows] for classes, rows in kinds]
        named = [f"{split} split" for split in chosen]
        yield class_pictures.latent_map(list(zip(named, pieces, ids, strict=True)), kinds[0][0].archs, shares)
        return
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
    kept = (
        "the checkpoint with the smallest mean difference of accuracy (circle) is the one that is kept and evaluated."
    )
    if of_several(run.records):
        kept = (
            "the error is 1 minus the mean accuracy of the networks decoded from members and from the points between the "
            "ends, and the checkpoint with the smallest (circle) is the one that is kept and evaluated. "
            "Losses below 0.0001 are not drawn."
        )
    yield Picture(
        "training",
        "training",
        "Course of the training",
        to_png(training(run.records, run.order)),
        f"Loss terms and validation figures over {count(last)} steps.",
        "Loss terms are those of single batches, times their weights in the sum. Validation compares members of the "
        f"zoo's validation split with their predictions on validation images; {kept} R² below −1 is drawn as −1.",
    )
