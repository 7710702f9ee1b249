"""A run in one paragraph and a few figures, as plain text; a sentence appears only where its figures are there."""

from __future__ import annotations

from netspace.report.classes import Classes
from netspace.report.collect import Evaluation, Run, average_line
from netspace.report.numbers import NOTHING, count, joined, number, percent, points, signed_points
from netspace.report.pictures import MEASURES, better_baselines
from netspace.report.reading import finite, part

FEW = 3  # shares that are told one by one
WORDS = {"r2": "R²", "mae": "the mean difference", "agreement": "agreement"}


def summary(run: Run) -> str:
    """The run in plain words."""
    main = next(iter(run.evaluations.values()), None)
    steps = max((int(record["step"]) for record in run.records), default=0)
    planned = finite(run.recipe.get("steps"))
    told = []
    if main is not None and main.classes is not None:
        told += [*_space_of_several(run, main), *_behaviour_of_several(main, main.classes), *_between(main.classes)]
        told += _beside(main)
    elif main is not None:
        told += [*_space(run, main), *_behaviour(main), *_lines(main), *_beside(main)]
    elif run.archs:
        told.append(f"This run learns a latent space of {joined(run.order)} networks; it has not been evaluated yet.")
    if steps and planned is not None and steps < planned:
        told.append(f"Its training is at step {count(steps)} of {count(planned)}.")
    elif steps:
        told.append(f"It was trained for {count(steps)} steps.")
    return " ".join(told)


def tiles(run: Run) -> list[tuple[str, str]]:
    """The main figures as (name, value); none before an evaluation."""
    main = next(iter(run.evaluations.values()), None)
    if main is None:
        return []
    told = main.figures
    if main.classes is not None:
        return [(name, value) for name, value in _tiles_of_several(main, main.classes) if value != NOTHING]
    line = average_line(main)
    found = [
        ("R² of predicted accuracy", number(told.get("r2"))),
        ("mean difference of accuracy", points(told.get("mae"))),
        ("same answer as the target", percent(told.get("agreement"))),
        ("own target over others as accurate", signed_points(part(told, "identity").get("own_minus_peers"))),
        ("predicted minus target accuracy", signed_points(told.get("bias"))),
        ("latent size, of parameters", percent(told.get("compression"))),
        ("Spearman, latent lines", number(line.spearman if line else None)),
        ("Spearman, weight lines", number(line.weight_spearman if line else None)),
    ]
    return [(name, value) for name, value in found if value != NOTHING]


def _tiles_of_several(main: Evaluation, classes: Classes) -> list[tuple[str, str]]:
    told = main.figures
    between = [each.accuracy for each in classes.between if each.accuracy is not None]
    return [
        ("architecture recognised (ClassId)", percent(told.get("classid_accuracy"))),
        ("accuracy, targets", percent(told.get("accuracy_target"))),
        ("accuracy, predicted", percent(told.get("accuracy_predicted"))),
        ("same answer as the target", percent(told.get("agreement"))),
        ("own target over others as accurate", signed_points(part(told, "identity").get("own_minus_peers"))),
        ("accuracy, decoded between the ends", percent(sum(between) / len(between) if between else None)),
        ("latent size, of parameters (mean)", percent(told.get("compression"))),
    ]


def _space_of_several(run: Run, main: Evaluation) -> list[str]:
    latent, sizes = finite(main.figures.get("latent")), _sizes(run, main)
    if latent is None or not sizes:
        return []
    kinds = [name for name in run.order if name not in run.unseen]
    least, most = min(sizes), max(sizes)
    told = (
        f"This space describes trained {joined(kinds) if kinds else 'several architectures'} networks of {count(least)} to "
        f"{count(most)} parameters by latents of {count(latent)} numbers, {percent(latent / most)} to "
        f"{percent(latent / least)} of the size."
    )
    if run.unseen:
        told += f" Of {joined(run.unseen)} it was never shown a network."
    return [told]


def _sizes(run: Run, main: Evaluation) -> list[float]:
    """Numbers of parameters of the architectures that were evaluated."""
    classes = part(main.figures, "per_class")
    found = [finite(part(classes, name).get("parameters")) for name in classes]
    return [size for size in found if size]


def _behaviour_of_several(main: Evaluation, classes: Classes) -> list[str]:
    told, members = main.figures, len(main.member)
    seen = "on which it was trained" if main.split == "train" else "which it was not trained on"
    right = int((classes.target == classes.predicted).sum())
    inside = part(told, "per_class")
    ranks = sorted(rank for name in inside if (rank := finite(part(inside, name).get("r2"))) is not None)
    within = f", within single architectures from {number(ranks[0])} to {number(ranks[-1])}" if len(ranks) > 1 else ""
    return [
        f"From latents alone it gave back {count(members)} network{'s' if members != 1 else ''} of the {main.split} "
        f"split, {seen}: {count(right)} of them ({percent(right / members)}) as the architecture that they are. "
        f"Predictions are {percent(told.get('accuracy_predicted'))} accurate on average, their targets "
        f"{percent(told.get('accuracy_target'))}; accuracies differ by {points(told.get('mae'))} on average, and "
        f"prediction and target give the same answer for {percent(told.get('agreement'))} of the test images. R² of "
        f"predicted accuracies is {number(told.get('r2'))} over all members{within}."
    ]


def _between(classes: Classes) -> list[str]:
    """What is decoded where Eq. 12 puts an architecture; a sentence for those shown and one for those never shown."""
    told = []
    for shown, words in ((True, ","), (False, ", never shown,")):
        found = [each for each in classes.between if each.shown is shown and each.accuracy is not None]
        if not found:
            continue
        trained = [each.trained for each in found]
        beside = f", normally trained ones {_in_words(trained)}" if all(each is not None for each in trained) else ""
        told.append(
            f"Between the ends, where Eq. 12 puts {joined([each.arch for each in found])}{words} "
            f"{_in_words([each.recognised for each in found])} of latents are read as such; networks decoded there are "
            f"{_in_words([each.accuracy for each in found])} accurate{beside}."
        )
    return told


def _in_words(shares: list[float | None]) -> str:
    """Shares one after the other, or their range where there are many."""
    told = [percent(share) for share in shares]
    if len(set(told)) == 1:
        return told[0]
    known = [share for share in shares if share is not None]
    return joined(told) if len(shares) <= FEW else f"{percent(min(known))} to {percent(max(known))}"


def _space(run: Run, main: Evaluation) -> list[str]:
    told = main.figures
    latent, parameters = finite(told.get("latent")), finite(told.get("parameters"))
    if latent is None or parameters is None:
        return []
    kinds = f"{joined(list(run.archs))} networks" if run.archs else "networks"
    return [
        f"This space describes trained {kinds} of {count(parameters)} parameters by latents of {count(latent)} "
        f"numbers, {percent(latent / parameters)} of the size."
    ]


def _behaviour(main: Evaluation) -> list[str]:
    told, members = main.figures, len(main.member)
    seen = ", on which it was trained" if main.split == "train" else ", which it was not trained on"
    return [
        f"From latents alone it gave back {count(members)} network{'s' if members != 1 else ''} of the {main.split} "
        f"split{seen}: predicted accuracies follow the targets' with R² = {number(told.get('r2'))} and differ by "
        f"{points(told.get('mae'))} on average, and prediction and target give the same answer for "
        f"{percent(told.get('agreement'))} of the test images."
    ]


def _lines(main: Evaluation) -> list[str]:
    line = average_line(main)
    if line is None or (line.spearman is None and line.weight_spearman is None):
        return []
    pairs = count(part(main.figures, "interpolation").get("pairs"))
    return [
        f"Along {pairs} lines between latents, towards the best network, accuracy has a mean rank correlation of "
        f"{number(line.spearman)} with the way gone (1: it only rises); along the same lines between weights it is "
        f"{number(line.weight_spearman)}."
    ]


def _beside(main: Evaluation) -> list[str]:
    """Whether baselines do better is said here, not left to the table."""
    if not part(main.figures, "baselines"):
        return []
    better = better_baselines(main)
    if not better:
        return ["No baseline does better in R², mean difference or agreement."]
    if len(better) > FEW:
        return [f"Baselines do better than the space: {joined(_by_measure(main, better))}."]
    told = [f"{name} (in {joined([WORDS[measure] for measure in measures])})" for name, measures in better.items()]
    who = "One baseline does" if len(told) == 1 else "Some baselines do"
    return [f"{who} better than the space: {joined(told)}."]


def _by_measure(main: Evaluation, better: dict[str, list[str]]) -> list[str]:
    """How many baselines do better in each measure, and the best of them."""
    others, told = part(main.figures, "baselines"), []
    for measure, sign in MEASURES:
        names = [name for name in better if measure in better[name]]
        if names:
            best = max(names, key=lambda name: sign * float(part(others, name)[measure]))
            told.append(f"{len(names)} in {WORDS[measure]} (the best: {best})")
    return told
