"""The text that `netspace eval` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.cli.output import ends, number, percent, points, small, table

if TYPE_CHECKING:
    from netspace.results import lines as of_lines
    from netspace.results import spaces as of_spaces

NAMES = {  # of baselines
    "nearest": "nearest training network (weights)",
    "nearest_latent": "nearest in the latent space",
    "same_accuracy": "a random one as accurate",
    "nearest_answers": "nearest by its answers (KL)",
    "nearest_agreement": "nearest by its answers (agreement)",
    "five_nearest": "mean answer of the 5 nearest",
    "constant": "one network for all",
    "ensemble": "mean answer of all",
    "noise": "nearest (weights) + noise",
    "average": "average of training networks",
    "aligned_average": "average of the 10 best, aligned",
    "nearest_function": "nearest by its outputs (MSE)",
    "mean": "average of training networks",
    "distilled": "nearest (KL), weights refined likewise",
    "deepsdf": "DeepSDF: one decoder for all",
}


def evaluation(figures: of_spaces.Evaluation) -> str:
    """Return the text of `netspace eval`."""
    signals = figures.of_signals
    head = ["", "accuracy", *([] if signals else ["R2"]), "mean |diff|", "bias", "agreement", "KL"]
    baselines = figures.listed_baselines
    entries: list[tuple[str, of_spaces.Measures]] = [("predicted by the space", figures)]
    if figures.refined:
        entries.append((refined_name(figures.refined), figures.refined))
    entries += [(NAMES.get(k, k), v) for k, v in baselines.items() if v]
    rows = [
        [
            name,
            percent(v.accuracy_predicted),
            *([] if signals else [number(v.r2)]),
            f"{points(v.mae, '.1f')} points",
            points(v.bias),
            percent(v.agreement),
            small(v.kl) if signals else number(v.kl),
        ]
        for name, v in entries
    ]
    lines = [
        f"{figures.members} {figures.split} members of {', '.join(figures.per_class)}, on the {f'first {figures.images:,} ' if figures.images else ''}test images; "
        f"targets score {percent(figures.accuracy_target)}",
        *([f"accuracy is {figures.score.meaning}"] if figures.score and figures.score.meaning else []),
        "",
        table(head, rows),
        "",
        *[f"left out, as not every architecture has it: {NAMES.get(k, k)}" for k, v in baselines.items() if not v],
        f"latent {figures.latent:,} for {figures.parameters:,} parameters ({percent(figures.compression)}); "
        f"pairwise L2 of predicted networks {number(figures.diversity)}, of the zoo's {number(figures.zoo_diversity)}",
        _identity(figures.identity),
    ]
    if figures.confusion:
        return "\n".join([*lines, *_architectures(figures)])
    if signals:  # of which none is better than others
        return "\n".join(lines)
    return "\n".join([*lines, _lines(figures.interpolation), *_refined(figures.refined)])


def _lines(mean: of_lines.MeanLine) -> str:
    """Return how accuracy goes along lines to the best member."""
    return (
        f"rank correlation of accuracy and position on {mean.pairs} lines to the best: "
        f"{number(mean.spearman_latent)} latent, {number(mean.spearman_weights)} weights; R2 of a straight line "
        f"{number(mean.linear_r2_latent)} latent, {number(mean.linear_r2_weights)} weights" + ends(mean.end_differences)
    )


def _refined(refined: of_spaces.Refined | None) -> list[str]:
    """Return what else is measured of refined latents of networks of one architecture."""
    if refined is None or refined.interpolation is None:
        return []
    name = refined_name(refined)
    return ["", f"{name}: {_identity(refined.identity)}", f"{name}: {_lines(refined.interpolation)}"]


def refined_name(refined: of_spaces.Refined) -> str:
    """Return what latents after some steps of descent are called."""
    return f"after {refined.steps} steps on the latents"


def _identity(identity: of_spaces.IdentitySummary) -> str:
    """Return whether predicted networks agree with their own targets more than with others as accurate."""
    if identity.own_minus_peers is None:
        return "no member has another of its split within a point of its accuracy: identity is not measured"
    return (
        f"agreement with the own target {points(identity.own_minus_peers)} points over agreement with others as accurate; "
        f"overlap of mistakes (Jaccard) {number(identity.jaccard_own)} own, {number(identity.jaccard_peers)} others "
        f"({identity.members} members; {identity.without_peers} have none within a point)"
    )


def _architectures(figures: of_spaces.Evaluation) -> list[str]:
    """Return tables of each architecture, and of the points between the smallest and the largest."""
    head = ["architecture", "class", "parameters", "members", "target", "predicted", "ClassId", "agreement"]
    rows = [
        [
            name,
            v.class_id,
            f"{v.parameters:,}",
            v.members,
            percent(v.accuracy_target),
            percent(v.accuracy_predicted),
            percent(v.classid_accuracy),
            percent(v.agreement),
        ]
        for name, v in figures.per_class.items()
    ]
    lines = ["", table(head, rows)]
    if figures.between:
        head = ["between the ends", "gamma", "ClassId", "decoded", "trained", "ratio", "scale 0", "distilled", ""]
        rows = [
            [
                name,
                f"{v.gamma:.3f}",
                percent(v.classid_accuracy),
                percent(v.accuracy),
                percent(v.accuracy_zoo),
                percent(v.ratio),
                percent(v.accuracy_scale_zero),
                percent(v.accuracy_distilled),
                "" if v.shown else "unseen",
            ]
            for name, v in figures.between.items()
        ]
        lines += ["", table(head, rows)]
    return lines
