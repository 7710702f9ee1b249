"""The text of the page: a summary, the main figures, and what is missing with the command that makes it.

A sentence appears only if its figures are known. First the text of a run, then that of a compressed network.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from netspace.report.drawing import MISSING, count, finite, joined, number, percent, points, signed_points, small
from netspace.report.figures_behaviour import BASELINES, TRAINED, better_baselines, measures_of
from netspace.report.line_data import mean_line
from netspace.report.runs import Evaluated, Fitted, Run

MAX_LISTED = 3  # values or baselines that a sentence lists one by one
WORDS = {"r2": "R²", "mae": "the mean difference", "agreement": "agreement", "iou": "IoU", "kl": "KL"}


def summary(run: Run) -> str:
    """Return the summary of a run."""
    main = run.main
    steps = max((int(record["step"]) for record in run.records), default=0)
    planned = finite(run.recipe.get("steps"))
    sentences = []
    if main is not None:
        sentences += [
            *_space(run, main),
            *_behaviour(main),
            *_corrected(run),
            *_refined(main),
            *_between(main),
            *_lines(main),
            *_baselines(main),
        ]
        if main.figures.images:
            sentences.append(
                f"Networks are compared on the first {count(main.figures.images)} validation and test images alone."
            )
    elif run.archs:
        sentences.append(
            f"This run learns a latent space of {joined(run.order)} networks; it has not been evaluated yet."
        )
    if steps and planned is not None and steps < planned:
        sentences.append(f"Its training is at step {count(steps)} of {count(planned)}.")
    elif steps:
        sentences.append(f"It was trained for {count(steps)} steps.")
    return " ".join(sentences)


def tiles(run: Run) -> list[tuple[str, str]]:
    """Return the main figures as (name, value); none before an evaluation."""
    main = run.main
    if main is None:
        return []
    figures, line = main.figures, mean_line(main.figures.interpolation)
    between = [each.accuracy for each in figures.between.values() if each.accuracy is not None]
    same = [
        ("same answer as the target", percent(figures.agreement)),
        ("own target over others as accurate", signed_points(figures.identity.own_minus_peers)),
    ]
    single = [
        ("R² of predicted accuracy", number(figures.r2)),
        ("mean difference of accuracy", points(figures.mae)),
        *same,
        ("predicted minus target accuracy", signed_points(figures.bias)),
        ("latent size, of parameters", percent(figures.compression)),
        ("Spearman, latent lines", number(line.spearman if line else None)),
        ("Spearman, weight lines", number(line.weight_spearman if line else None)),
    ]
    multi = [
        ("architecture recognised (ClassId)", percent(figures.classid_accuracy)),
        ("accuracy, targets", percent(figures.accuracy_target)),
        ("accuracy, predicted", percent(figures.accuracy_predicted)),
        *same,
        ("accuracy, decoded between the ends", percent(sum(between) / len(between) if between else None)),
        ("latent size, of parameters (mean)", percent(figures.compression)),
    ]
    signals = [
        ("accuracy, targets", percent(figures.accuracy_target)),
        ("accuracy, predicted", percent(figures.accuracy_predicted)),
        *same,
        ("KL", small(figures.kl)),
        ("latent size, of parameters", percent(figures.compression)),
    ]
    whole = figures.shapes.lines if figures.shapes else None
    shapes = [
        ("overlap with the target (IoU)", number(figures.iou)),
        ("predictions of one body", percent(figures.valid)),
        ("shapes of one body, latent lines", percent(whole.latent.valid if whole else None)),
        ("shapes of one body, weight lines", percent(whole.weights.valid if whole else None)),
    ]
    rest = multi if main.multi else signals if figures.of_signals else single
    return [(name, value) for name, value in [*shapes, *rest] if value != MISSING]


def _space(run: Run, main: Evaluated) -> list[str]:
    """Return a sentence on the sizes of networks and latents, and one on architectures not seen in training."""
    latent = finite(main.figures.latent)
    sizes = [each.parameters for each in main.figures.per_class.values() if each.parameters]
    least, most = min(sizes, default=main.figures.parameters), max(sizes, default=main.figures.parameters)
    if latent is None or not least or not most:
        return []
    kinds = [name for name in run.order if name not in run.unseen]
    sentence = (
        f"This space describes trained {joined(kinds) if kinds else 'neural'} networks of {_range(count(least), count(most))} "
        f"parameters by latents of {count(latent)} numbers, {_range(percent(latent / most), percent(latent / least))} of the size."
    )
    return [sentence, *([f"No network of {joined(run.unseen)} was seen in training."] if run.unseen else [])]


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _behaviour(main: Evaluated) -> list[str]:
    """Return a sentence on how networks are reconstructed; of several architectures also on how each is recognised."""
    figures, members = main.figures, len(main.member)
    seen = "on which it was trained" if main.split == "train" else "which it was not trained on"
    networks = f"{count(members)} network{'s' if members != 1 else ''}"
    opening = f"From latents alone it reconstructed {networks} of the {main.split} split, {seen}: "
    same = f"prediction and target give the same answer for {percent(figures.agreement)} of the test images"
    if figures.of_signals and not main.multi:
        meaning = f" (accuracy: {figures.score.meaning})" if figures.score and figures.score.meaning else ""
        return [
            f"{opening}predictions score {percent(figures.accuracy_predicted)} on average, their targets "
            f"{percent(figures.accuracy_target)}{meaning}; {same}."
        ]
    if not main.multi:
        return [
            f"{opening}predicted accuracies follow the targets' with R² = {number(figures.r2)} and differ by "
            f"{points(figures.mae)} on average, and {same}."
        ]
    correct = int((main.class_ids == main.decoded_ids).sum())
    ranks = sorted(rank for each in figures.per_class.values() if (rank := finite(each.r2)) is not None)
    within = f", within single architectures from {number(ranks[0])} to {number(ranks[-1])}" if len(ranks) > 1 else ""
    return [
        f"{opening}{count(correct)} of them ({percent(correct / members)}) as their own architecture. "
        f"Predictions score {percent(figures.accuracy_predicted)} on average, their targets "
        f"{percent(figures.accuracy_target)}; accuracies differ by {points(figures.mae)} on average, and {same}. "
        f"R² of predicted accuracies is {number(figures.r2)} over all members{within}."
    ]


def _corrected(run: Run) -> list[str]:
    """Return a sentence on the correction of latents as they are read, if the recipe has one."""
    encoder = run.recipe.get("encoder")
    steps = finite(encoder.get("refine")) if isinstance(encoder, Mapping) else None
    if not steps:
        return []
    return [
        f"Latents were read with {count(steps)} steps of descent on what the decoded network answers to the encoder's own probes, without "
        "any data."
    ]


def _refined(main: Evaluated) -> list[str]:
    """Return a sentence on what refined latents decode to, if there are any."""
    refined = main.figures.refined
    if refined is None:
        return []
    figures = [
        ("R²", number(refined.r2)),
        ("a mean difference of", points(refined.mae)),
        ("IoU", number(refined.iou)),
        ("agreement", percent(refined.agreement)),
        ("own target over others", signed_points(refined.identity.own_minus_peers)),
    ]
    known = [f"{name} {value}" for name, value in figures if value != MISSING]
    return [
        f"After {count(refined.steps)} steps of descent on the latents, by what the networks answer to training inputs: {joined(known)}."
    ]


def _between(main: Evaluated) -> list[str]:
    """Return a sentence on networks decoded where Eq. 12 puts an architecture: one for those seen in training, one for others."""
    sentences = []
    for seen, words in ((True, ","), (False, ", not seen in training,")):
        networks = {
            arch: each
            for arch, each in main.figures.between.items()
            if each.shown is seen and each.accuracy is not None
        }
        if not networks:
            continue
        trained = [each.accuracy_zoo for each in networks.values()]
        reference = f", normally trained ones {_listed(trained)}" if None not in trained else ""
        sentences.append(
            f"Between the ends, where Eq. 12 puts {joined(list(networks))}{words} "
            f"{_listed([each.classid_accuracy for each in networks.values()])} of latents are read as such; networks decoded "
            f"there score {_listed([each.accuracy for each in networks.values()])}{reference}."
        )
    return sentences


def _listed(values: list[float | None]) -> str:
    """Return fractions one after the other, or the range of more than `MAX_LISTED`."""
    texts = [percent(value) for value in values]
    if len(set(texts)) == 1:
        return texts[0]
    known = [value for value in values if value is not None]
    return joined(texts) if len(values) <= MAX_LISTED else f"{percent(min(known))} to {percent(max(known))}"


def _lines(main: Evaluated) -> list[str]:
    line = None if main.figures.of_signals else mean_line(main.figures.interpolation)
    if line is None or (finite(line.spearman) is None and finite(line.weight_spearman) is None):
        return []
    pairs = count(main.figures.interpolation.pairs)
    return [
        f"Along {pairs} lines between latents, towards the best network, accuracy has a mean rank correlation of "
        f"{number(line.spearman)} with the position on the line (1: it only rises); along the same lines between weights it is "
        f"{number(line.weight_spearman)}."
    ]


def _baselines(main: Evaluated) -> list[str]:
    """Return a sentence on the baselines that do better, which is not left to the table."""
    if not main.figures.baselines:
        return []
    better = better_baselines(main)
    if not better:
        names = [WORDS[measure].removeprefix("the ") for measure, _ in measures_of(main.figures)]
        return [f"No baseline does better in {', '.join(names[:-1])} or {names[-1]}."]
    if len(better) > MAX_LISTED:
        return [f"Baselines do better than the space: {joined(_by_measure(main, better))}."]
    refined = [name for name in TRAINED if main.figures.refined]
    sentences = [
        f"{BASELINES.get(name, name)} ({name}; {'than refined latents ' if name in refined else ''}in "
        f"{joined([WORDS[measure] for measure in measures])})"
        for name, measures in better.items()
    ]
    who = "One baseline does" if len(sentences) == 1 else "Some baselines do"
    return [f"{who} better than the space: {joined(sentences)}."]


def _by_measure(main: Evaluated, better: dict[str, list[str]]) -> list[str]:
    """Return the number of baselines that do better in each measure, and the best of them."""
    others, texts = main.figures.baselines, []
    for measure, sign in measures_of(main.figures):
        names = [name for name in better if measure in better[name]]
        if names:
            best = max(names, key=lambda name: sign * float(getattr(others[name], measure)))
            texts.append(f"{len(names)} in {WORDS[measure]} (the best: {BASELINES.get(best, best)})")
    return texts


def missing(run: Run) -> list[tuple[str, str]]:
    """Return (section, sentence) for what is missing, with the command that makes it."""
    folder, sentences = shlex.quote(str(run.path)), []
    if "test" not in run.evaluations:
        how = f"`netspace eval {folder}` measures it, with baselines"
        sentences.append(("behaviour", f"The test split has not been evaluated yet: {how}."))
    if not run.interpolations:
        ends = run.order
        between = "--from worst --to best"
        if len(ends) > 1:  # ten steps from one architecture to the next
            between = f"--from worst:{ends[0]} --to best:{ends[-1]} --steps {10 * (len(ends) - 1) + 1}"
        how = f"`netspace interpolate {between} --run {folder}` makes one"
        sentences.append(("lines", f"No interpolation between two chosen networks has been made yet: {how}."))
    for split, evaluated in run.evaluations.items():
        if evaluated.multi and evaluated.figures.line is None:
            both = f"{evaluated.figures.archs[0]} and {evaluated.figures.archs[-1]}"
            sentences.append(
                ("lines", f"The {split} split has no members of both {both}, so nothing between them was measured.")
            )
        if evaluated.tensors is None:
            what = f"Latents and PReps of the {split} split are missing or of another evaluation"
            sentences.append(("preps", f"{what}: `netspace eval {folder} --split {split}` writes them."))
    if not run.records:
        sentences.append(("training", "There is no metrics.jsonl, so the course of the training cannot be drawn."))
    return sentences


def fit_summary(fitted: Fitted) -> str:
    """Return the summary of a compressed network."""
    figures = fitted.figures
    predictor, represented = figures.parameters_predictor, figures.parameters_represented
    sentences = [
        f"A predictor of {count(predictor)} values represents {count(represented)} of the network's "
        f"{count(figures.parameters_original)} parameters; the file of {count(figures.bytes_file)} bytes, all else "
        f"included, is {_fraction(figures.bytes_file, figures.bytes_original)} of the original's size."
    ]
    if finite(figures.accuracy_reconstructed) is not None:
        sentences.append(
            f"On the test images the reconstructed network scores {percent(figures.accuracy_reconstructed, 2)} and the "
            f"original {percent(figures.accuracy_original, 2)}; they give the same answer on "
            f"{percent(figures.agreement)} of them."
        )
    if finite(figures.relative_error) is not None:
        sentences.append(f"The relative error of the weights is {number(figures.relative_error, 3)}.")
    return " ".join(sentences)


def fit_tiles(fitted: Fitted) -> list[tuple[str, str]]:
    """Return the main figures as (name, value)."""
    figures = fitted.figures
    entries = [
        ("predictor, of represented weights", _fraction(figures.parameters_predictor, figures.parameters_represented)),
        ("file, of the original's bytes", _fraction(figures.bytes_file, figures.bytes_original)),
        ("accuracy, original", percent(figures.accuracy_original, 2)),
        ("accuracy, reconstructed", percent(figures.accuracy_reconstructed, 2)),
        ("same answer as the original", percent(figures.agreement)),
        ("relative error of the weights", number(figures.relative_error, 3)),
    ]
    return [(name, value) for name, value in entries if value != MISSING]


def fit_missing(fitted: Fitted) -> list[tuple[str, str]]:
    """Return (section, sentence) for what is missing, with the command that makes it."""
    if fitted.budget is not None:  # the rest is about predictors
        return []
    file, sentences = shlex.quote(str(fitted.path / "compressed.safetensors")), []
    analyse = f"`netspace compress analyse {file} MODEL --zoo ZOO`"
    if fitted.analysis is None:
        sentences.append(("layers", f"Singular values and CKA by layer were not measured yet: {analyse} does."))
    elif fitted.kernels is None:
        sentences.append(("layers", f"There are no kernels to draw: {analyse} writes some."))
    if fitted.analysis is not None and fitted.analysis.cka is None:
        sentences.append(
            ("layers", f"Of the original only weights were known: {analyse} with its data measures the rest.")
        )
    if fitted.pruning is None:
        sentences.append(("smaller", f"The predictor was not pruned yet: `netspace compress prune {file} MODEL` does."))
    for bits in (8, 4):
        if bits not in fitted.quantised:
            out = shlex.quote(str(fitted.path / f"compressed-{bits}.safetensors"))
            command = f"`netspace compress quantise {file} MODEL --bits {bits} -o {out}`"
            sentences.append(("smaller", f"The predictor was not tried in {bits} bits yet: {command} does."))
    return sentences


def _fraction(part: float | None, whole: float | None) -> str:
    return percent(part / whole) if part is not None and whole else MISSING
