"""A run in one paragraph and a few figures, as plain text; a sentence appears only where its figures are there."""

from __future__ import annotations

from netspace.report.collect import Evaluation, Run, average_line, finite, part
from netspace.report.numbers import NOTHING, count, joined, number, percent, points
from netspace.report.pictures import better_baselines

WORDS = {"r2": "R²", "mae": "the mean difference", "agreement": "agreement"}


def summary(run: Run) -> str:
    """The run in plain words."""
    main = next(iter(run.evaluations.values()), None)
    steps = max((int(record["step"]) for record in run.records), default=0)
    planned = finite(run.recipe.get("steps"))
    told = []
    if main is not None:
        told += [*_space(run, main), *_behaviour(main), *_lines(main), *_beside(main)]
    elif run.archs:
        told.append(
            f"This run learns a latent space of {joined(list(run.archs))} networks; it has not been evaluated yet."
        )
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
    line = average_line(main)
    found = [
        ("R² of predicted accuracy", number(told.get("r2"))),
        ("mean difference of accuracy", points(told.get("mae"))),
        ("same answer as the target", percent(told.get("agreement"))),
        ("latent size, of parameters", percent(told.get("compression"))),
        ("Spearman, latent lines", number(line.spearman if line else None)),
        ("Spearman, weight lines", number(line.weight_spearman if line else None)),
    ]
    return [(name, value) for name, value in found if value != NOTHING]


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
    told = [f"{name} (in {joined([WORDS[measure] for measure in measures])})" for name, measures in better.items()]
    who = "One baseline does" if len(told) == 1 else "Some baselines do"
    return [f"{who} better than the space: {joined(told)}."]
