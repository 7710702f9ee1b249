"""How commands speak: one JSON object or plain text on standard output, everything else on standard error.

What `netspace eval` and `netspace interpolate` print for people."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from netspace.errors import printable


def say(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Prints a command's result; under `accelerate launch` the main process alone does."""
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        json.dump(plain(result), sys.stdout)
        print()
    else:
        print(printable(text(result)))


def plain(value: Any) -> Any:
    """A value as strict JSON holds it: NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, numbers to the right."""
    cells = [[str(cell) for cell in head], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0].rstrip()), *lines[1:]])


def percent(value: float | None) -> str:
    """A fraction as per cent."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A number with three decimals."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def training(figures: dict[str, Any]) -> str:
    """The text of `netspace train`."""
    best = figures["best"]
    told = f"{figures['run']} is trained ({figures['steps']} steps); best on validation at step {best['step']}: "
    if "val_classid" in best:
        return told + (
            f"predicted networks score {percent(best['val_accuracy_predicted'])}, their targets "
            f"{percent(best['val_accuracy_target'])}; ClassId {percent(best['val_classid'])}, agreement "
            f"{percent(best['val_agreement'])}"
        )
    return told + (
        f"mean |difference| {100 * best['val_mae']:.1f} points, R2 {number(best['val_r2'])}, agreement "
        f"{percent(best['val_agreement'])}"
    )


def optimization(figures: dict[str, Any]) -> str:
    """The text of `netspace optimize`."""
    last = figures["curve"][-1]["accuracy_val"]
    rows = [
        [
            ("* " if place == figures["best"] else "  ") + name,
            arch,
            percent(own),
            percent(before),
            percent(after),
            percent(val),
        ]
        for place, (name, arch, own, before, after, val) in enumerate(
            zip(
                figures["from"],
                figures["arch"],
                figures["accuracy_network"],
                figures["accuracy_before"],
                figures["accuracy_after"],
                last,
                strict=True,
            )
        )
    ]
    return "\n".join(
        [
            f"{figures['steps']} steps, taught by {figures['teacher']}; accuracy on the test images (* best by validation)",
            table(["from", "architecture", "the network", "decoded before", "after", "last on validation"], rows),
            f"the best: {figures['latent']}, {figures['network']}",
        ]
    )


def samples(figures: dict[str, Any]) -> str:
    """The text of `netspace sample`."""
    names = {
        "sampled": "sampled networks",
        "nearest": "their nearest training networks",
        "noise": "nearest + noise",
        "average": "average of training networks",
    }
    rows = [
        [
            name,
            percent(figures[key]["accuracy"]),
            percent(figures[key]["novelty"]),
            "-" if figures[key]["distance"] is None else f"{figures[key]['distance']:.2f}",
            percent(figures[key]["pairwise_agreement"]),
            f"{figures[key]['diversity']:.2f}",
        ]
        for key, name in names.items()
        if key in figures
    ]
    head = ["", "accuracy", "answers unlike the nearest", "L2 to it", "pairs agree", "pairwise L2"]
    return "\n".join(
        [
            f"{figures['count']} networks of {figures['arch']} drawn ({figures['fit']}, seed {figures['seed']}), "
            + ("" if figures["shown"] else f"never shown in training, at {figures['factor']:.3f} between the ends, ")
            + f"on the test images; trained ones score {percent(figures['zoo_accuracy'])}",
            table(head, rows),
        ]
    )


def compression(figures: dict[str, Any]) -> str:
    """The text of `netspace compress eval`."""
    bits = "" if figures["bits"] == 32 else f" in {figures['bits']} bits"
    told = [
        f"{figures['file']}: a predictor of {figures['parameters_predictor']:,} values{bits} for "
        f"{figures['parameters_represented']:,} of {figures['parameters_original']:,} "
        f"({percent(figures['parameters_predictor'] / figures['parameters_represented'])} of what is represented)",
        f"{figures['bytes_file']:,} bytes beside {figures['bytes_original']:,}",
    ]
    if figures["larger"]:
        told.append(
            f"the file is LARGER than the network's weights ({figures['bytes_file'] / figures['bytes_original']:.1f} times as many bytes): "
            "fit a smaller predictor (--set predictor.hidden=N), or keep the network as it is"
        )
    if figures["relative_error"] is not None:
        told.append(f"relative error of the weights {number(figures['relative_error'])}")
    if figures["accuracy_original"] is not None:
        told.append(
            f"on the test images {percent(figures['accuracy_reconstructed'])}, the original {percent(figures['accuracy_original'])}; "
            f"same answer {percent(figures['agreement'])}"
        )
    if figures["images"] is not None:
        told.append(
            f"on {figures['images']['count']} images ({normalised(figures['images'])}) same answer {percent(figures['images']['agreement'])}, "
            f"of the 5 likeliest in common {percent(figures['images']['overlap_top5'])}, "
            f"cosine of the logits {number(figures['images']['cosine'])}"
        )
    return "\n".join(told)


def normalised(figures: dict[str, Any]) -> str:
    """How pictures were normalised, in a few words."""
    mean, std = (",".join(f"{value:.4g}" for value in figures[key]) for key in ("mean", "std"))
    return f"normalised by --normalise {figures['normalise']}: mean {mean}, standard deviation {std}"


def important(figures: dict[str, Any]) -> str:
    """The text of `netspace compress importance`."""
    rows = [[each["layer"], each["filter"], number(each["relative_error"])] for each in figures["filters"]]
    return table(["layer", "filter", "relative error"], rows) + f"\n{len(rows)} of {figures['count']} filters"


def analysis(figures: dict[str, Any]) -> str:
    """The text of `netspace compress analyse`; of many layers some, evenly."""
    ratios, cka = figures["singular_ratio"], figures["cka"]
    places = range(0, len(figures["layers"]), -(-len(figures["layers"]) // 24))
    head = ["layer", "S_ratio", "reconstructed", *(["CKA", "CKA random"] if cka else [])]
    keys = ("reconstructed", "random") if cka else ()
    rows = [
        [
            figures["layers"][place],
            *(number(ratios[key][place]) for key in ("original", "reconstructed")),
            *(number(cka[key][place]) for key in keys),
        ]
        for place in places
    ]
    told = [table(head, rows)]
    if len(places) < len(figures["layers"]):
        told.append(f"{len(places)} of {len(figures['layers'])} layers; all are in analysis.json")
    if not cka:
        return "\n".join(
            [*told, "only the weights are known; the rest needs a zoo's member, or --zoo for a file's data"]
        )
    for key, name in (
        ("low_pass", "share of frequencies kept"),
        ("scale_small", "smaller half of singular values times"),
    ):
        found = figures[key]
        rows = [["original's accuracy", *(percent(row["accuracy"]) for row in found)]]
        rows.append(["mean S_ratio", *(number(row["singular_ratio"]) for row in found)])
        told += ["", table([name, *(f"{row['amount']:g}" for row in found)], rows)]
    gaps = figures["generalisation"]
    rows = [
        [
            key,
            *(percent(gaps[key][f"accuracy_{split}"]) for split in ("train", "test")),
            f"{100 * gaps[key]['gap_accuracy']:.2f} points",
            *(number(gaps[key][name]) for name in ("loss_train", "loss_test", "gap_loss")),
        ]
        for key in ("original", "reconstructed")
    ]
    head = [f"on {gaps['training_images']:,} training images", "accuracy", "on test", "gap", "loss", "on test", "gap"]
    return "\n".join([*told, "", table(head, rows)])


def zoo(figures: dict[str, Any]) -> str:
    """The text of `netspace zoo info`."""
    rows = [
        [
            name,
            v["class_id"],
            v["members"],
            f"{v['parameters']:,}",
            f"{v['prep'][0]} x {v['prep'][1]}",
            *(percent(v["accuracy"][key]) for key in ("min", "median", "max")),
        ]
        for name, v in figures["archs"].items()
    ]
    splits = ", ".join(f"{count} {name}" for name, count in figures["splits"].items())
    state = "" if figures["complete"] else "; not complete: start its `netspace zoo build` again to finish"
    return "\n".join(
        [
            f"{figures['path']}: zoo of version {figures['version']}, {figures['dataset']}, {figures['members']} members "
            f"({splits}), {figures['bytes'] / 1e6:,.1f} MB{state}",
            table(["architecture", "class", "members", "parameters", "PRep", "worst", "median", "best"], rows),
        ]
    )


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
