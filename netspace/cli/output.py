"""What commands print: one JSON object or plain text on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from netspace.errors import OutputClosed, printable

if TYPE_CHECKING:
    from netspace.results import Result
    from netspace.results import compressed as of_files
    from netspace.results import lines as of_lines
    from netspace.results import spaces as of_spaces
    from netspace.results import zoos as of_zoos

R = TypeVar("R", bound="Result")
LARGE = 1e6  # from which numbers are printed with an exponent


def say(result: R, as_json: bool, text: Callable[[R], str]) -> None:
    """Print a command's result, as JSON or as `text`; under `accelerate launch` only the main process prints."""
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        write(json.dumps(plain(result.payload())))
    else:
        score = getattr(result, "score", None)
        write(printable(score.word(text(result)) if score else text(result)))


def write(text: str) -> None:
    """Write a line to standard output at once. Raises `OutputClosed` if nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()
        raise OutputClosed("standard output is closed") from None


def drop_output() -> None:
    """Send what is left for standard output to nowhere, so that Python does not fail when it ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def plain(value: Any) -> Any:
    """Return a value for strict JSON: NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def output_is_closed() -> bool:
    """Return whether standard output is a pipe that nobody reads any more, or was sent to nowhere since."""
    import select

    if not hasattr(select, "poll") or os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev:  # Windows; rich's doing
        return True
    output = select.poll()
    output.register(1, 0)
    return bool(output.poll(0))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned columns: the first to the left, all others to the right."""
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
    """Return a fraction as per cent."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` decimals."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if abs(value) < LARGE else f"{value:.2e}"


def small(value: float | None) -> str:
    """Return a number of any size with two digits that count."""
    return "-" if value is None or not math.isfinite(value) else f"{value:#.2g}".rstrip(".")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: '1 member', '1,200 members'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def points(value: float | None, form: str = "+.1f") -> str:
    """Return a difference of fractions in percentage points, without the unit."""
    return "-" if value is None else format(100 * value, form)


def fraction(part: float | None, whole: float | None) -> float | None:
    """Return `part` over `whole`; None if one is not known."""
    return part / whole if part is not None and whole else None


def training(figures: of_spaces.Training) -> str:
    """Return the text of `netspace train`."""
    best = figures.best
    text = f"{figures.run} is trained ({figures.steps} steps); best on validation at step {best['step']}: "
    if "val_classid" in best:
        return text + (
            f"predicted networks score {percent(best['val_accuracy_predicted'])}, their targets "
            f"{percent(best['val_accuracy_target'])}; ClassId {percent(best['val_classid'])}, agreement "
            f"{percent(best['val_agreement'])}"
        )
    if best.get("val_merit") == best["val_agreement"]:  # of networks that were each fitted to a signal of its own
        return text + f"agreement {percent(best['val_agreement'])}"
    return text + (
        f"mean |difference| {100 * best['val_mae']:.1f} points, R2 {number(best['val_r2'])}, agreement "
        f"{percent(best['val_agreement'])}"
    )


def optimization(figures: of_spaces.Optimization) -> str:
    """Return the text of `netspace optimize`."""
    columns = (figures.starts, figures.arch, figures.accuracy_network, figures.accuracy_before, figures.accuracy_after)
    rows = [
        [("* " if index == figures.best else "  ") + name, arch, *map(percent, accuracies)]
        for index, (name, arch, *accuracies) in enumerate(zip(*columns, figures.curve[-1].accuracy_val, strict=True))
    ]
    return "\n".join(
        [
            f"{figures.steps} steps, taught by {figures.teacher}; accuracy on the test images (* best by validation)",
            table(["from", "architecture", "the network", "decoded before", "after", "last on validation"], rows),
            f"the best: {figures.latent}, {figures.network}",
        ]
    )


def _sample_controls(figures: of_spaces.Sampling) -> list[str]:
    """Return the line on an architecture that was not seen in training."""
    if figures.neighbour is None:
        return []
    return [
        f"with the learnt part off {percent(figures.accuracy_scale_zero)}; the nearest trained architecture, "
        f"{figures.neighbour}: {percent(figures.neighbour_accuracy)}, the average of its ten best, aligned, "
        f"{percent(figures.neighbour_average)}"
    ]


def samples(figures: of_spaces.Sampling) -> str:
    """Return the text of `netspace sample`."""
    names = {
        "sampled": "sampled networks",
        "nearest": "their nearest training networks",
        "noise": "nearest + noise",
        "average": "average of training networks",
    }
    rows = [
        [
            name,
            percent(measured.accuracy),
            percent(measured.novelty),
            number(measured.distance, 2),
            percent(measured.pairwise_agreement),
            number(measured.diversity, 2),
        ]
        for key, name in names.items()
        if (measured := getattr(figures, key)) is not None
    ]
    head = ["", "accuracy", "answers unlike the nearest", "L2 to it", "pairs agree", "pairwise L2"]
    return "\n".join(
        [
            f"{figures.count} networks of {figures.arch} drawn ({figures.fit}, seed {figures.seed}), "
            + ("" if figures.shown else "not seen in training, ")
            + ("" if figures.shown or figures.factor is None else f"at {figures.factor:.3f} between the ends, ")
            + f"on the test images; trained ones score {percent(figures.zoo_accuracy)}",
            table(head, rows),
            *_sample_controls(figures),
        ]
    )


def compression(figures: of_files.Compression) -> str:
    """Return the text of `netspace compress eval`."""
    bits = "" if figures.bits == 32 else f" in {figures.bits} bits"
    represented = f"{figures.parameters_represented:,} of {figures.parameters_original:,}"
    what = f"integers for {represented} values"
    if figures.parameters_predictor is not None:
        predictor = percent(fraction(figures.parameters_predictor, figures.parameters_represented))
        what = f"a predictor of {figures.parameters_predictor:,} values{bits} for {represented} ({predictor} of what is represented)"
    lines = [
        f"{figures.file}: {what}",
        f"{figures.bytes_file:,} bytes; the original's weights take {figures.bytes_original:,}",
    ]
    if figures.zeros:
        share = percent(fraction(figures.zeros, figures.parameters_represented))
        lines.append(
            f"{figures.zeros:,} of the represented values ({share}) are kept zero by a mask of {figures.bytes_zeros:,} bytes"
        )
    if figures.larger:
        lines.append(
            f"the file is LARGER than the network's weights ({number(fraction(figures.bytes_file, figures.bytes_original), 1)} times as many bytes): "
            "fit a smaller predictor (--set predictor.hidden=N), or keep the network as it is"
        )
    if figures.relative_error is not None:
        lines.append(f"relative error of the weights {number(figures.relative_error)}")
    if figures.accuracy_original is not None:
        lines.append(
            f"on the test images {percent(figures.accuracy_reconstructed)}, the original {percent(figures.accuracy_original)}; "
            f"same answer {percent(figures.agreement)}"
        )
    if figures.images is not None:
        lines.append(f"on {figures.images.count} images ({normalised(figures.images)}) {alike(figures.images)}")
    if figures.noise is not None:
        sides = " x ".join(str(side) for side in figures.noise.input_shape)
        lines.append(f"on {figures.noise.count} inputs of noise of {sides} {alike(figures.noise)}")
    return "\n".join(lines)


def alike(figures: of_files.OutputComparison) -> str:
    """Return how alike two networks are on inputs without labels, in words."""
    if figures.output_error is None:
        return (
            f"same answer {percent(figures.agreement)}, of the 5 likeliest in common {percent(figures.overlap_top5)}, "
            f"cosine of the logits {number(figures.cosine)}"
        )
    of = f"relative error of {figures.output or 'the outputs'} {number(figures.output_error, 4)}"
    each = ", ".join(f"{name} {number(value, 4)}" for name, value in figures.output_errors.items())
    return of if len(figures.output_errors) < 2 else f"{of} ({each})"


def normalised(figures: of_files.ImageComparison | of_files.Correction) -> str:
    """Return the normalisation of images, in a few words."""
    mean, std = (",".join(f"{value:.4g}" for value in values) for values in (figures.mean, figures.std))
    return f"normalised by --normalise {figures.normalise}: mean {mean}, standard deviation {std}"


def important(figures: of_files.Importance) -> str:
    """Return the text of `netspace compress importance`."""
    rows = [[each.layer, each.filter, number(each.relative_error)] for each in figures.filters]
    return table(["layer", "filter", "relative error"], rows) + f"\n{len(rows)} of {figures.count} filters"


def analysis(figures: of_files.Analysis) -> str:
    """Return the text of `netspace compress analyse`; of more than 24 layers some, evenly spread."""
    ratios, cka = figures.singular_ratio, figures.cka
    indices = range(0, len(figures.layers), -(-len(figures.layers) // 24))
    head = ["layer", "S_ratio", "reconstructed", *(["CKA", "CKA random"] if cka else [])]
    similarities = (cka.reconstructed, cka.random) if cka else ()
    rows = [
        [
            figures.layers[index],
            *(number(values[index]) for values in (ratios.original, ratios.reconstructed)),
            *(number(values[index]) for values in similarities),
        ]
        for index in indices
    ]
    lines = [table(head, rows)]
    if len(indices) < len(figures.layers):
        lines.append(f"{len(indices)} of {len(figures.layers)} layers; all are in analysis.json")
    gaps = figures.generalisation
    if gaps is None:
        return "\n".join(
            [*lines, "only the weights are known; the rest needs a zoo's member, or --zoo for a file's data"]
        )
    for changed, name in (
        (figures.low_pass or [], "fraction of frequencies kept"),
        (figures.scale_small or [], "smaller half of singular values times"),
    ):
        rows = [["original's accuracy", *(percent(row.accuracy) for row in changed)]]
        rows.append(["mean S_ratio", *(number(row.singular_ratio) for row in changed)])
        lines += ["", table([name, *(f"{row.amount:g}" for row in changed)], rows)]
    rows = [
        [
            key,
            percent(gap.accuracy_train),
            percent(gap.accuracy_test),
            f"{points(gap.gap_accuracy, '.2f')} points",
            *map(number, (gap.loss_train, gap.loss_test, gap.gap_loss)),
        ]
        for key, gap in (("original", gaps.original), ("reconstructed", gaps.reconstructed))
    ]
    head = [f"on {gaps.training_images:,} training images", "accuracy", "on test", "gap", "loss", "on test", "gap"]
    return "\n".join([*lines, "", table(head, rows)])


def zoo(figures: of_zoos.ZooInfo) -> str:
    """Return the text of `netspace zoo info`."""
    up = -1 if figures.score and not figures.score.higher_is_better else 1
    rows = [
        [
            name,
            v.class_id,
            v.members,
            f"{v.parameters:,}",
            f"{v.prep[0]} x {v.prep[1]}",
            *[percent(value) for value in (v.accuracy.min, v.accuracy.median, v.accuracy.max)][::up],
        ]
        for name, v in figures.archs.items()
    ]
    splits = ", ".join(f"{count} {name}" for name, count in figures.splits.items())
    state = f", shard {figures.shard}" if figures.shard else f", {figures.shards} shards" if figures.shards else ""
    missing = "some shards are missing" if figures.shards else "start its `netspace zoo build` again to finish"
    state += "" if figures.complete else f"; not complete: {missing}"
    return "\n".join(
        [
            f"{figures.path}: zoo of version {figures.version}, {figures.dataset}, {counted(figures.members, 'member')} "
            f"({splits}), {figures.bytes / 1e6:,.1f} MB{state}",
            table(["architecture", "class", "members", "parameters", "PRep", "worst", "median", "best"], rows),
        ]
    )


def interpolation(figures: of_lines.Interpolation) -> str:
    """Return the text of `netspace interpolate`."""
    direct = figures.weight_accuracy or [None] * len(figures.gamma)
    aligned = figures.aligned_accuracy or [None] * len(figures.gamma)
    columns = (figures.gamma, figures.arch, figures.latent_accuracy, direct, aligned)
    multi = len(set(figures.arch)) > 1
    rows = [
        [f"{gamma:.2f}", *([arch] if multi else []), percent(latent), percent(weights), percent(moved)]
        for gamma, arch, latent, weights, moved in zip(*columns, strict=True)
    ]
    measured = [
        f"rank correlation with gamma: {number(figures.spearman)} latent, {number(figures.weight_spearman)} weights",
        f"R2 of a straight line: {number(figures.linear_r2)} latent, {number(figures.weight_linear_r2)} weights"
        + ends(figures.end_differences),
    ]
    if figures.score and figures.score.own_targets:  # of networks of which none is better than others
        measured = [text.removeprefix("; ")] if (text := ends(figures.end_differences)) else []
    return "\n".join(
        [
            f"from {figures.names[0]} to {figures.names[1]}: accuracy on the test images",
            table(["gamma", *(["architecture"] if multi else []), "latent", "weights", "weights, aligned"], rows),
            *measured,
        ]
    )


def ends(differences: tuple[float | None, float | None] | None) -> str:
    """Return the differences between decoded ends and their targets."""
    if not differences or any(value is None for value in differences):
        return ""
    start, end = map(points, differences)
    return f"; decoded minus target accuracy {start} points at the start, {end} at the end"
