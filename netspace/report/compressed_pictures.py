"""The figures of a compressed network with their words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from netspace.report import compressed_figures as figures
from netspace.report.compressed import Analysis, Columns, Fitted, Kept
from netspace.report.compressed_figures import ORIGINAL, RECONSTRUCTED
from netspace.report.course import NOT_LOSSES
from netspace.report.drawing import GREY, styled, to_png
from netspace.report.numbers import count, number, percent
from netspace.report.picture import Picture
from netspace.report.reading import finite


def pictures(fitted: Fitted) -> list[Picture]:
    """All figures, in the order of the page."""
    with styled():
        return [
            *_course(fitted),
            *_kernels(fitted.kernels),
            *_layers(fitted.analysis),
            *_changed(fitted.analysis),
            *_pruning(fitted),
        ]


def _course(fitted: Fitted) -> Iterator[Picture]:
    found = fitted.course
    if not len(found["step"]):
        return
    stages = np.unique(found["stage"])
    lengths = [found["step"][found["stage"] == stage].max() for stage in stages]
    begins = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    steps, logged = (each["step"] + begins[np.searchsorted(stages, each["stage"])] for each in (found, fitted.losses))
    losses = {name: values for name, values in fitted.losses.items() if name not in NOT_LOSSES}
    several = " Dashed lines: where a stage begins, from the best weights of the one before." if len(stages) > 1 else ""
    yield Picture(
        "course",
        "course",
        "Error and accuracy over the steps",
        to_png(
            figures.course(steps, found["relative_error"], found["accuracy_val"], begins[1:].tolist(), logged, losses)
        ),
        f"{count(steps.max())} steps in {len(stages)} stages; the relative error ends at {number(found['relative_error'][-1], 3)}, "
        f"accuracy on validation images at {percent(found['accuracy_val'][-1])}.",
        f"The relative error is the norm of the difference of the weights over the norm of the weights.{several} Each stage "
        "keeps the weights that are best on validation images, or of the least error where there is no data.",
    )


def _kernels(found: Kept | None) -> Iterator[Picture]:
    if found is None:
        return
    shown, away = len(found.original), np.abs(found.reconstructed - found.original)
    which = f"The first {count(shown)} of {count(found.count)}" if shown < found.count else f"All {count(shown)}"
    yield Picture(
        "kernels",
        "layers",
        f"Kernels of {found.layer}",
        to_png(figures.kernels(found.original, found.reconstructed)),
        f"{count(shown)} kernels of {found.layer} in the original and reconstructed, and their differences, which are "
        f"{number(away.mean(), 4)} on average where the original's weights are {number(np.abs(found.original).mean(), 4)}.",
        f"{which} kernels of the layer, filter by filter, {figures.ROW} a row, on one scale (purple is negative, green "
        f"positive). By relative error ({number(found.relative_error, 3)}) it is the median of {count(found.layers)} layers.",
    )


def _layers(found: Analysis | None) -> Iterator[Picture]:
    if found is None:
        return
    first, second = found.ratios["original"], found.ratios["reconstructed"]
    higher = int((second > first).sum())
    yield Picture(
        "singular",
        "layers",
        "S_ratio by layer",
        to_png(
            figures.by_layer(
                found.layers,
                [("original", first, *ORIGINAL), ("reconstructed", second, *RECONSTRUCTED)],
                "share of the larger half of singular values",
            )
        ),
        f"S_ratio of {len(first)} layers, on average {number(np.nanmean(first), 3)} in the original and "
        f"{number(np.nanmean(second), 3)} reconstructed.",
        "The sum of the larger half of a layer's singular values over the sum of all: higher is smoother. Reconstruction "
        f"raises it in {higher} of {len(first)} layers, on average from {number(np.nanmean(first), 3)} to "
        f"{number(np.nanmean(second), 3)}.",
        wide=False,
    )
    if found.alike:
        near, chance = found.alike["reconstructed"], found.alike["random"]
        yield Picture(
            "cka",
            "layers",
            "Likeness to the original by layer (linear CKA)",
            to_png(
                figures.by_layer(
                    found.layers,
                    [("reconstructed", near, *RECONSTRUCTED), ("random weights", chance, GREY, "s")],
                    "CKA with the original, 1 is the same",
                )
            ),
            f"Linear CKA with the original from {number(_least(near), 3)} up; of random weights from "
            f"{number(_least(chance), 3)} up.",
            "How alike the outputs of a layer are in both networks for the same test images, whatever the rotation and scale; "
            "beside it the same for a network of random weights. Kornblith et al., 2019.",
            wide=False,
        )


def _least(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else None


def _changed(found: Analysis | None) -> Iterator[Picture]:
    if found is None:
        return
    low = "Frequencies of every represented layer's matrix above a share of the highest are taken out of the original."
    small = "The smaller half of every represented layer's singular values is made smaller in the original."
    for name, told, title, how, label in (
        ("low-pass", found.low_pass, "The original under a low pass", low, "share of frequencies kept"),
        (
            "scale-small",
            found.scale_small,
            "The original with smaller singular values",
            small,
            "factor of the smaller half",
        ),
    ):
        if not len(told["amount"]):
            continue
        yield Picture(
            name,
            "smooth",
            title,
            to_png(figures.changed(told["amount"], told["accuracy"], told["singular_ratio"], label)),
            f"{title}: accuracy on test images {_ends(told)}.",
            f"{how} Its accuracy on test images is {_ends(told)}.",
            wide=False,
        )


def _ends(told: Columns) -> str:
    """The accuracies of the first amounts and the last."""
    places = sorted({0, min(1, len(told["amount"]) - 1), len(told["amount"]) - 1})
    return ", ".join(f"{percent(told['accuracy'][place])} at {told['amount'][place]:g}" for place in places)


def _pruning(fitted: Fitted) -> Iterator[Picture]:
    if not fitted.pruning:
        return
    measured = any(np.isfinite(told["accuracy"]).any() for told in fitted.pruning.values())
    key, scale, label = (
        ("accuracy", 100, "accuracy on test images, %") if measured else ("relative_error", 1, "relative error")
    )
    names = {"predictor": ("predictor", *RECONSTRUCTED), "original": ("original, directly", *ORIGINAL)}
    drawn = [
        (told["share"], (names[who][0], scale * told[key], *names[who][1:])) for who, told in fitted.pruning.items()
    ]
    level = finite(fitted.figures.get("accuracy_original")) if measured else None
    said = "; ".join(
        f"{names[who][0]}: {_at(told['share'], told[key], measured)}" for who, told in fitted.pruning.items()
    )
    yield Picture(
        "pruning",
        "smaller",
        "Pruned",
        to_png(figures.pruning(drawn, label, None if level is None else 100 * level)),
        f"{label.capitalize()} over the share of weights set to zero. {said}.",
        "The smallest weights are set to zero: of the predictor (orange), and for comparison of the original itself (blue). "
        f"{said[0].upper()}{said[1:]}. NeRN, Fig. 5 left.",
    )


def _at(share: np.ndarray, values: np.ndarray, measured: bool) -> str:
    places = sorted({0, len(share) // 2, len(share) - 1})
    show = percent if measured else (lambda value: number(value, 3))
    return ", ".join(f"{show(values[place])} at {100 * share[place]:.0f} %" for place in places)
