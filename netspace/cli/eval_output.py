"""What `netspace eval` and `netspace interpolate` print for people."""

from __future__ import annotations

from typing import Any

from netspace.cli.output import number, percent, table


def evaluation(figures: dict[str, Any]) -> str:
    """The text of `netspace eval`."""
    head = ["", "accuracy", "R2", "mean |diff|", "bias", "agreement", "KL"]
    names = {
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
        "average_aligned": "average after alignment",
    }
    baselines = figures["baselines"]
    entries = [("predicted by the space", figures), *((names.get(k, k), v) for k, v in baselines.items() if v)]
    rows = [
        [
            name,
            percent(v["accuracy_predicted"]),
            number(v["r2"]),
            f"{100 * v['mae']:.1f} points",
            f"{100 * v['bias']:+.1f}",
            percent(v["agreement"]),
            number(v["kl"]),
        ]
        for name, v in entries
    ]
    told = [
        f"{figures['members']} {figures['split']} members of {', '.join(figures['per_class'])}, on the test images; "
        f"targets score {percent(figures['accuracy_target'])}",
        "",
        table(head, rows),
        "",
        *[f"not implemented: {names.get(name, name)}" for name, v in baselines.items() if not v],
        f"latent {figures['latent']:,} for {figures['parameters']:,} parameters ({percent(figures['compression'])}); "
        f"pairwise L2 of predicted networks {number(figures['diversity'])}, of the zoo's {number(figures['zoo_diversity'])}",
        _identity(figures["identity"]),
    ]
    if "confusion" in figures:
        return "\n".join([*told, *_several(figures)])
    lines = figures["interpolation"]
    return "\n".join(
        [
            *told,
            f"rank correlation of accuracy and position on {lines['pairs']} lines to the best: "
            f"{number(lines['spearman_latent'])} latent, {number(lines['spearman_weights'])} weights; R2 of a straight line "
            f"{number(lines['linear_r2_latent'])} latent, {number(lines['linear_r2_weights'])} weights"
            + _ends(lines["end_differences"]),
        ]
    )


def _identity(found: dict[str, Any]) -> str:
    """Whether predicted networks are like their own targets, or like any network as accurate."""
    if found["own_minus_peers"] is None:
        return "no member has another of its split within a point of its accuracy: identity is not measured"
    return (
        f"agreement with the own target {100 * found['own_minus_peers']:+.1f} points over agreement with others as accurate; "
        f"overlap of mistakes (Jaccard) {number(found['jaccard_own'])} own, {number(found['jaccard_peers'])} others "
        f"({found['members']} members; {found['without_peers']} have none within a point)"
    )


def _several(figures: dict[str, Any]) -> list[str]:
    """What `netspace eval` tells of several architectures: each by itself, and what lies between the ends."""
    head = ["architecture", "class", "parameters", "members", "target", "predicted", "ClassId", "agreement"]
    rows = [
        [
            name,
            v["class_id"],
            f"{v['parameters']:,}",
            v["members"],
            percent(v["accuracy_target"]),
            percent(v["accuracy_predicted"]),
            percent(v["classid_accuracy"]),
            percent(v["agreement"]),
        ]
        for name, v in figures["per_class"].items()
    ]
    told = ["", table(head, rows)]
    if figures.get("between"):
        head = ["between the ends", "gamma", "ClassId", "decoded", "trained", "ratio", "scale 0", "distilled", ""]
        rows = [
            [
                name,
                f"{v['gamma']:.3f}",
                percent(v["classid_accuracy"]),
                percent(v["accuracy"]),
                percent(v["accuracy_zoo"]),
                percent(v["ratio"]),
                percent(v["accuracy_scale_zero"]),
                percent(v["accuracy_distilled"]),
                "" if v["shown"] else "never shown",
            ]
            for name, v in figures["between"].items()
        ]
        told += ["", table(head, rows)]
    return told


def interpolation(figures: dict[str, Any]) -> str:
    """The text of `netspace interpolate`."""
    direct = figures["weight_accuracy"] or [None] * len(figures["gamma"])
    columns = (figures["gamma"], figures["arch"], figures["latent_accuracy"], direct)
    several = len(set(figures["arch"])) > 1
    rows = [
        [f"{gamma:.2f}", *([arch] if several else []), percent(latent), percent(weights)]
        for gamma, arch, latent, weights in zip(*columns, strict=True)
    ]
    return "\n".join(
        [
            f"from {figures['from']} to {figures['to']}: accuracy on the test images",
            table(["gamma", *(["architecture"] if several else []), "latent", "weights"], rows),
            f"rank correlation with gamma: {number(figures['spearman'])} latent, {number(figures['weight_spearman'])} weights",
            f"R2 of a straight line: {number(figures['linear_r2'])} latent, {number(figures['weight_linear_r2'])} weights"
            + _ends(figures["end_differences"]),
        ]
    )


def _ends(differences: list[float | None] | None) -> str:
    """How far decoded ends are from their targets."""
    if not differences or any(value is None for value in differences):
        return ""
    start, end = (f"{100 * value:+.1f}" for value in differences if value is not None)
    return f"; decoded minus target accuracy {start} points at the start, {end} at the end"
