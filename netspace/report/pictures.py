"""The figures that a run's content allows, each with its title, alternative text, and caption.

A figure whose data are missing is left out; `netspace.report.sections.missing` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from netspace.report import figures_classes as classes
from netspace.report import figures_space as figures
from netspace.report.drawing import (
    MAX_SINGLE,
    MISSING,
    Dot,
    Picture,
    count,
    end_words,
    finite,
    joined,
    looks,
    number,
    percent,
    plain,
    points,
    shortened,
    styled,
)
from netspace.report.runs import Evaluated, Line, Run, class_line, mean_line
from netspace.report.shapes import line_picture, member_picture
from netspace.results.spaces import Baseline, Measures, Optimization

MAX_TRAIN_DOTS = 2000  # members of the training split on the map
MEASURES = (("r2", 1), ("mae", -1), ("agreement", 1))  # 1: higher is better, -1: lower is
BASELINES = {
    "same_accuracy": "a random training network of the same validation accuracy",
    "nearest_answers": "the training network with the nearest outputs for validation images (KL)",
    "nearest_agreement": "the training network with the most equal classes for validation images",
    "five_nearest": "the mean output of the five nearest by their outputs",
    "constant": "one training network for every member, the best on validation members",
    "ensemble": "the mean output of all training networks",
    "nearest": "the training network with the nearest weights",
    "nearest_latent": "the training network with the nearest latent",
    "noise": "the nearest in weights plus Gaussian noise",
    "average": "the mean of all training networks' weights",
    "aligned_average": "the mean of the ten best after alignment of channels, with the statistics of its sources",
}


def pictures(run: Run) -> list[Picture]:
    """Return all figures, in the order of the page."""
    with styled():
        return [
            *_shapes(run),
            *_behaviour(run),
            *_lines(run),
            *_optimizations(run),
            *_preps(run),
            *_maps(run),
            *_training(run),
        ]


def baseline_names(others: Mapping[str, Baseline | None]) -> list[str]:
    """Return the baselines of an evaluation in the order of the page, unknown ones last."""
    return [*(name for name in BASELINES if name in others), *(name for name in others if name not in BASELINES)]


def better_baselines(evaluation: Evaluated) -> dict[str, list[str]]:
    """Return the measures (of `MEASURES`) in which each baseline does better than the space; only those that do in some."""
    better: dict[str, list[str]] = {}
    for name, baseline in evaluation.figures.baselines.items():
        for measure, sign in MEASURES:
            own, value = finite(getattr(evaluation.figures, measure)), finite(getattr(baseline, measure, None))
            if own is not None and value is not None and sign * value > sign * own:
                better.setdefault(name, []).append(measure)
    return better


def _shapes(run: Run) -> Iterator[Picture]:
    for split, shown in run.shapes.items():
        if split in run.evaluations:
            yield from member_picture(split, shown, run.evaluations[split].figures)
    for name, shown in run.shape_lines.items():
        yield from line_picture(f"line-{name}", shown)
    for split, shown in run.shapes.items():
        if not run.shape_lines:
            yield from line_picture(f"line-{split}", shown)


def _behaviour(run: Run) -> Iterator[Picture]:
    main = run.main
    if main is None:
        return
    others = main.figures.baselines
    odd = (len(run.evaluations) + bool(others)) % 2 == 1  # one more picture fills its row
    for split, evaluated in run.evaluations.items():
        if evaluated.multi:
            yield classes.members(evaluated, wide=odd and evaluated is main)
            continue
        seen = " These members were used in training." if split == "train" else ""
        joins = " A grey line joins the two." if len(evaluated.member) <= MAX_SINGLE else ""
        yield Picture(
            f"members-{split}",
            "behaviour",
            f"Targets and predictions, {split} split",
            figures.members(evaluated.target, evaluated.predicted),
            f"{count(len(evaluated.member))} members sorted by their target's accuracy, from {percent(evaluated.target.min())} "
            f"to {percent(evaluated.target.max())}; predicted accuracies from {percent(evaluated.predicted.min())} to "
            f"{percent(evaluated.predicted.max())}, {points(evaluated.figures.mae)} away on average.",
            "Each position on the horizontal axis is one network of the zoo. The blue line is its accuracy on the test "
            f"images, the orange diamond that of the network decoded from its latent.{joins} The closer, the better."
            f"{seen} NetSpace, Fig. 3 a and c.",
            wide=len(run.evaluations) == 1,
        )
    if main.multi:
        yield classes.scatter(main)
        yield classes.confusion(main)
    else:
        yield _scatter(main)
    if others:
        yield _baselines(main, others)


def _scatter(main: Evaluated) -> Picture:
    measures = main.figures
    measured = f"R² {number(measures.r2)} · mean difference {points(measures.mae)}"
    measured += f" · agreement {percent(measures.agreement)}"
    return Picture(
        f"scatter-{main.split}",
        "behaviour",
        f"Predicted over target accuracy, {main.split} split",
        figures.scatter(main.target, main.predicted, measured),
        f"Predicted over target accuracy of {count(len(main.member))} members. {measured}.",
        "Each dot is one network; on the dashed diagonal the decoded network is exactly as accurate as its target. "
        "R² is 1 on the diagonal and 0 for predicting the targets' mean accuracy always.",
        wide=False,
    )


def _baselines(main: Evaluated, others: Mapping[str, Baseline | None]) -> Picture:
    rows: list[tuple[str, Measures]] = [("space", main.figures)]
    rows += [(name, each) for name in baseline_names(others) if (each := others[name]) is not None and each.payload()]
    clean = [(plain(name, 20), {key: finite(getattr(row, key)) for key, _ in MEASURES}) for name, row in rows]
    values = [f"{name}: R² {number(row.r2)}, {points(row.mae)}" for name, row in rows]
    own = " All are networks of the target's own architecture." if main.multi else ""
    return Picture(
        f"baselines-{main.split}",
        "behaviour",
        "The space and baselines",
        figures.baselines(clean),
        f"Bars for the space and baselines. {'; '.join(values)}.",
        "Networks that the space reconstructs (orange) and baselines, which need no decoder (grey): "
        f"{'; '.join(f'{name} is {BASELINES[name]}' for name, _ in rows if name in BASELINES)}.{own}",
        wide=False,
    )


def _lines(run: Run) -> Iterator[Picture]:
    for evaluated in run.evaluations.values():
        if evaluated.multi and evaluated.figures.line is not None:
            yield classes.evaluated_line(run, evaluated, class_line(evaluated.figures.line, evaluated.figures.archs))
        line = mean_line(evaluated.figures.interpolation)
        if line is not None:
            title = f"Mean over {count(evaluated.figures.interpolation.pairs)} lines of the {evaluated.split} split"
            how = (
                "Mean accuracy along lines that end in the best member and start in members of the lower half, chosen "
                "on validation images."
            )
            yield _line(run, line, f"interpolation-mean-{evaluated.split}", title, how, mean=True)
    for line in run.lines:
        name, title = f"interpolation-{line.name[:120]}", f"From {line.start} to {line.end}"
        draw = classes.line_picture if len(set(line.arch)) > 1 else _line
        yield draw(run, line, name, title, "The line between two chosen networks.")


def _line(run: Run, line: Line, name: str, title: str, how: str, mean: bool = False) -> Picture:
    kind = "mean rank correlation with γ" if mean else "rank correlation with γ"
    weights = f", weights {number(line.weight_spearman)}" if line.weights is not None else ""
    ranks = f"latents {number(line.spearman)}{weights}"
    straight, ends = _straight(line, mean), end_words(line.end_differences, mean)
    direct = "Blue squares are networks whose weights were interpolated directly. " if line.weights is not None else ""
    spread = ""
    if line.aligned is not None:
        direct += (
            "Green triangles are the same with aligned weights: the start's channels in the order of the end's, and hidden "
            "channels with the mean and spread that those of both ends have. "
        )
        low, high = (float(each(line.aligned)) for each in (np.nanmin, np.nanmax))
        spread = f" The accuracies of aligned weights are {percent(low)} to {percent(high)}."
    way = "rise" if run.score is None or run.score.higher_is_better else "fall"
    chance = " The dotted line (chance) is guessing among balanced classes." if run.chance else ""
    return Picture(
        name,
        "lines",
        title,
        figures.interpolation(
            line.gamma, line.accuracy, line.weights, f"Spearman with γ: {ranks}", run.chance, line.aligned
        ),
        f"{title}: decoded networks go from {percent(line.accuracy[0])} to {percent(line.accuracy[-1])}; {kind} "
        f"(Spearman): {ranks}.{straight}{spread}",
        f"{how} Orange diamonds are networks decoded from interpolated latents; in an organised space they {way} "
        f"evenly.{straight}{ends} {direct}NetSpace, Fig. 3 b and d.{chance}",
        wide=False,
        marks=line.marks,
        ends=(line.start, line.end),
    )


def _straight(line: Line, mean: bool) -> str:
    """Return a sentence on how straight a line of accuracies is; empty if it was not measured."""
    if line.linear_r2 is None:
        return ""
    weights = f", {number(line.weight_linear_r2)} of the weights'" if line.weights is not None else ""
    kind = "mean R² of straight lines" if mean else "R² of a straight line"
    return f" The {kind} through the accuracies is {number(line.linear_r2)} of the latents'{weights}."


def taught_by(optimization: Optimization) -> str:
    """Return the teacher's name; of a member of another file, the member's alone."""
    return shortened(optimization.teacher.rpartition(".h5:")[2], 40)


def best_start(optimization: Optimization) -> int:
    """Return the index of the start that is best on validation images."""
    if optimization.best is not None:
        return optimization.best
    return int(np.nan_to_num(validation_curves(optimization), nan=-1.0).max(0).argmax())


def validation_curves(optimization: Optimization) -> np.ndarray:
    """Return accuracies (K, S) on validation images, by record and start."""
    return np.array([record.accuracy_val for record in optimization.curve], dtype=np.float64)


def _optimizations(run: Run) -> Iterator[Picture]:
    for name, optimization in run.optimizations.items():
        multi = len(set(optimization.arch)) > 1
        order = list(dict.fromkeys([*run.order, *optimization.arch]))
        styles = [looks(order)[arch] for arch in optimization.arch] if multi else None
        same = " and still read as its architecture" if multi else ""
        steps = np.array([record.step for record in optimization.curve])
        gains = [
            f"{start} from {percent(before)} to {percent(after)}"
            for start, before, after in zip(
                optimization.starts, optimization.accuracy_before, optimization.accuracy_after, strict=True
            )
        ]
        yield Picture(
            f"optimized-{name[:120]}",
            "lines",
            f"Descent on latents, taught by {taught_by(optimization)}",
            figures.optimization(steps, validation_curves(optimization), optimization.starts, styles),
            f"{count(len(optimization.starts))} latents optimised for {count(steps[-1])} steps; on test images "
            f"{joined(gains)}.",
            "Encoder and decoder stay as they are; only the latents are trained, on the distillation loss from the teacher. The "
            f"best of each start is chosen on validation images{same}. On test images: {joined(gains)}; the best by validation is "
            f"{optimization.starts[best_start(optimization)]}. NetSpace, Latent Space Optimization.",
            wide=False,
        )


def _preps(run: Run) -> Iterator[Picture]:
    main = next((evaluated for evaluated in run.evaluations.values() if evaluated.tensors is not None), None)
    if main is None or main.tensors is None or not len(main.tensors.rows):
        return
    tensors, pairs, distances = main.tensors, [], []
    for row, prep, decoded in zip(tensors.rows, tensors.preps, tensors.decoded, strict=True):
        first, second = (
            matrix.reshape(-1)[:size].astype(np.float64)
            for matrix, size in zip((prep, decoded), _sizes(run, main, row), strict=True)
        )
        other = main.figures.detail.arch_predicted[row] if main.multi else ""
        other = "" if main.multi and other == main.figures.detail.arch[row] else other
        titles = (
            f"{shortened(main.member[row], 20)} · target · {percent(main.target[row])}",
            f"{f'decoded as {shortened(other, 14)}' if other else 'predicted'} · {percent(main.predicted[row])}",
        )
        pairs.append((titles[0], first, titles[1], second))
        norm = float(np.linalg.norm(first))
        if not other:
            distances.append(float(np.linalg.norm(second - first)) / norm if norm else float("nan"))
    distance = number(float(np.nanmean(distances))) if np.isfinite(distances).any() else MISSING
    kinds = joined(sorted({main.figures.detail.arch[row] for row in tensors.rows})) if main.multi else ""
    of = f"They are of {kinds}, the largest architecture that was evaluated. " if kinds else ""
    yield Picture(
        f"preps-{main.split}",
        "preps",
        "Networks as images",
        figures.preps(pairs),
        f"Parameters of {len(pairs)} networks{f' of {kinds}' if kinds else ''} as images, target left and predicted right, in common colours.",
        "The parameters of a network, row by row, as an image (target left, predicted right), with accuracies on the "
        f"test images; members from the lowest to the highest accuracy. {of}All images have one scale of colours, up to the "
        "99th percentile of |value|; padding is left out. The distance from target to prediction is "
        f"{distance} times the target's norm on average; where images differ and accuracies agree, networks are as "
        f"accurate with other weights. NetSpace, Suppl. VII, Fig. {6 if main.multi else 5}.",
        wide=False,
    )


def _sizes(run: Run, main: Evaluated, row: int) -> tuple[int | None, int | None]:
    """Return the numbers of parameters in a member's PRep and in its prediction's; None for all values."""
    if not main.multi:
        return main.figures.parameters or None, main.figures.parameters or None
    detail = main.figures.detail
    return run.parameters(detail.arch[row]), run.parameters(detail.arch_predicted[row])


def _maps(run: Run) -> Iterator[Picture]:
    chosen = {split: evaluated for split, evaluated in run.evaluations.items() if evaluated.tensors is not None}
    front = next(iter(chosen), None)
    if front is None:
        return
    chosen = {split: chosen[split] for split in ("train", front) if split in chosen}
    rows = {split: np.arange(len(evaluated.member)) for split, evaluated in chosen.items()}
    if len(chosen) > 1 and len(rows["train"]) > MAX_TRAIN_DOTS:
        rows["train"] = np.linspace(0, len(rows["train"]) - 1, MAX_TRAIN_DOTS).round().astype(int)
    latents = [
        evaluated.tensors.latents[rows[split]] for split, evaluated in chosen.items() if evaluated.tensors is not None
    ]
    if (
        sum(map(len, latents)) < 3
        or len({piece.shape[1] for piece in latents}) > 1
        or not all(np.isfinite(z).all() for z in latents)
    ):
        return
    axes, variances = figures.principal(np.concatenate(latents))
    pieces = np.split(axes, np.cumsum([len(piece) for piece in latents])[:-1])
    names = [f"{split} split" for split in chosen]
    dots = [
        Dot(float(x), float(y), evaluated.member[row], _figures_of(evaluated, row))
        for (split, evaluated), piece in zip(chosen.items(), pieces, strict=True)
        for (x, y), row in zip(piece, rows[split].tolist(), strict=True)
    ]
    if all(evaluated.multi for evaluated in chosen.values()):
        ids = [evaluated.class_ids[rows[split]] for split, evaluated in chosen.items()]
        archs = chosen[front].figures.archs
        yield classes.latent_map(list(zip(names, pieces, ids, strict=True)), archs, variances, dots)
        return
    accuracies = [evaluated.target[rows[split]] for split, evaluated in chosen.items()]
    sets = list(zip(names, pieces, accuracies, strict=True))
    yield Picture(
        "latents",
        "preps",
        "Map of the latent space",
        figures.latent_map(sets, variances),
        f"{joined([f'{count(len(piece))} latents of the {name}' for name, piece, _ in sets])} "
        "on their first two principal axes, coloured by accuracy.",
        "Each dot is the latent of one network, projected on the two directions along which latents vary most (they "
        f"hold {percent(sum(variances))} of the variance), coloured by the network's accuracy on the test images. Where "
        "colours change gradually, accuracy is a direction of the space. Other directions are not drawn.",
        wide=False,
        dots=dots,
    )


def _figures_of(evaluated: Evaluated, row: int) -> str:
    """Return the text of a member on the map."""
    detail = evaluated.figures.detail
    text = f"{evaluated.split} split; accuracy {percent(evaluated.target[row])}, predicted {percent(evaluated.predicted[row])}"
    if detail.agreement:
        text += f", same answer {percent(detail.agreement[row])}"
    return text + (f"; decoded as {detail.arch_predicted[row]}" if evaluated.multi else "")


def _training(run: Run) -> Iterator[Picture]:
    if not run.records:
        return
    last = max(float(record["step"]) for record in run.records)
    choice = "the checkpoint with the smallest mean difference of accuracy (circle) is evaluated."
    if figures.is_multi(run.records):
        choice = (
            "the error is 1 minus the mean accuracy of the networks decoded from members and from the points between the "
            "ends, and the checkpoint with the smallest (circle) is evaluated. Losses below 0.0001 are not drawn."
        )
    yield Picture(
        "training",
        "training",
        "Course of the training",
        figures.training(run.records, run.order),
        f"Loss terms and validation figures over {count(last)} steps.",
        "Loss terms are those of single batches, times their weights in the sum. Validation compares members of the "
        f"zoo's validation split with their predictions on validation images; {choice} R² below −1 is drawn as −1.",
    )
