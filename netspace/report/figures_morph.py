"""Figures of a morph with their captions.

Axes: W widths, the widest first; S images in a row. Accuracies come as fractions and are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREEN,
    GREY,
    PREDICTED,
    PURPLE,
    TARGET,
    WIDTH,
    Look,
    Picture,
    count,
    curve,
    finite,
    joined,
    logarithmic,
    named,
    new,
    number,
    percent,
    plain,
    series,
    styled,
)
from netspace.report.figures_training import NOT_LOSSES
from netspace.report.line_data import floats
from netspace.report.morphs import SHORT, Morphed
from netspace.report.strips import LABEL, image_strip
from netspace.results.morph_eval import MorphEvaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "individual": Look(TARGET, "o"),
    "us_net": Look(GREEN, "^"),
    "pruned_l1": Look("#E69F00", "s"),
    "pruned_taylor": Look("#56B4E9", "D"),
    "pruned_random": Look(GREY, "X"),
    "resampled": Look(PURPLE, "v"),
    "sampled": Look(PREDICTED, "P"),
    "morph": Look(PREDICTED, "*"),
}  # the last is drawn over the others
MAX_TICKS = 6  # widths that are named on an axis
MAX_NUMBERS = 6  # widths up to which divergences are written into their cells
DARK, BRIGHT = "#101418", "#f6f7f8"  # of numbers in cells, which are no colours that follow the page's
TRAINED = ("morph", "individual", "us_net")  # methods that the larger panel is scaled to
VALIDATED = ("full width", "half way", "narrowest trained")
Curve = tuple[str, np.ndarray, np.ndarray, Look]  # name, values (W,), deviations (W,), look; unknown ones are NaN


def draw_widths(
    gammas: np.ndarray, parameters: Sequence[int], curves: Sequence[Curve], narrowest: float, near: tuple[float, float]
) -> Figure:
    """Draw accuracies of methods over compression rates (W,): large at the widths trained, within the limits `near`, and small at all.

    The range of the morph's training, from 0 to `narrowest`, is shaded where other widths are drawn.
    """
    whole = np.concatenate([values[np.isfinite(values)] for _, values, _, _ in curves])
    trained, everywhere = (gammas >= 0) & (gammas <= narrowest), np.full(len(gammas), True)
    if trained.sum() > 1 and near[1] - near[0] < 0.6 * float(np.ptp(whole)):
        figure, _ = new(8.6, 0)
        large, small = figure.subplots(2, 1, height_ratios=(2, 1))
        panels = [
            (large, trained, "accuracy on test images, %, at trained widths"),
            (small, everywhere, "at all widths"),
        ]
        large.set_ylim(100 * near[0], 100 * near[1])
    else:
        figure, small = new(6.0)
        panels = [(small, everywhere, "accuracy on test images, %")]
    small.axvspan(0, 100 * narrowest, color=GREY, alpha=0.12, linewidth=0)
    for axes, drawn, title in panels:
        for name, values, deviations, look in curves:
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linewidth": 1.7, "markersize": 6}
            style |= {"markersize": 11, "linewidth": 2.2} if look.marker == "*" else {}
            style |= {"linestyle": (0, (4, 2)), "markerfacecolor": "none"} if look.marker == "P" else {}
            errors = 100 * deviations[drawn] if np.isfinite(deviations).any() else None
            axes.errorbar(100 * gammas[drawn], 100 * values[drawn], errors, capsize=3, label=plain(name, 40), **style)
        axes.set_title(title)
        _gamma_ticks(axes, gammas[drawn], [f"\n{count(each)}" for each in np.asarray(parameters)[drawn]])
    small.set_xlabel("γ: channels left out, %, and parameters")
    handles, labels = small.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
    return figure


def _gamma_ticks(axes: Axes, gammas: np.ndarray, texts: Sequence[str]) -> None:
    """Name some of the compression rates (W,) under an axis, each with a text."""
    indices = np.unique(np.linspace(0, len(gammas) - 1, min(MAX_TICKS, len(gammas))).round().astype(int))
    axes.set_xticks(100 * gammas[indices], [f"{number(100 * gammas[each], 0)}{texts[each]}" for each in indices])


def draw_alignment(gammas: np.ndarray, curves: Sequence[Curve]) -> Figure:
    """Draw linear CKA with the widest network over compression rates (W,)."""
    figure, axes = new(3.9)
    for name, values, _, look in curves:
        axes.plot(100 * gammas, values, color=look.colour, marker=look.marker, linewidth=1.7, markersize=7, label=name)
    _gamma_ticks(axes, gammas, [""] * len(gammas))
    axes.set(xlabel="γ: channels left out, %", ylabel="linear CKA with the widest network")
    axes.set_ylim(top=1.02)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_divergences(gammas: np.ndarray, matrices: Mapping[str, np.ndarray]) -> Figure:
    """Draw divergences of the outputs of all pairs of widths (W, W), a panel for each method, on one scale of colours."""
    from matplotlib.colors import PowerNorm

    columns = len(matrices)
    figure, _ = new(1.5 + WIDTH / max(columns, 2), 0)
    panels = figure.subplots(1, columns, squeeze=False)[0]
    largest = max(float(np.nanmax(each)) for each in matrices.values()) or 1.0
    norm, edges = PowerNorm(0.5, 0, largest), np.arange(len(gammas) + 1) - 0.5
    for axes, (name, values) in zip(panels, matrices.items(), strict=True):
        mesh = axes.pcolormesh(edges, edges, values, cmap="cividis", norm=norm, edgecolors="none")
        names = [number(100 * each, 0) for each in gammas]
        axes.set(title=plain(name, 30), xticks=range(len(gammas)), yticks=range(len(gammas)), aspect="equal")
        axes.set_xticklabels(names if len(names) <= MAX_NUMBERS else [""] * len(names))
        axes.set_yticklabels(names if axes is panels[0] and len(names) <= MAX_NUMBERS else [""] * len(names))
        axes.invert_yaxis()
        axes.grid(False)
        for (row, column), value in np.ndenumerate(values if len(names) <= MAX_NUMBERS else np.empty((0, 0))):
            ink = DARK if norm(value) > 0.55 else BRIGHT
            axes.text(column, row, _short(value), ha="center", va="center", color=ink, fontsize=9)
        axes.set_xlabel("γ of the other, %")
    panels[0].set_ylabel("γ of the first, %")
    figure.colorbar(mesh, ax=panels, location="bottom", shrink=0.6, aspect=35, format="%.2g")
    return figure


def _short(value: float) -> str:
    return number(value, 2 if value < 10 else 1) if value >= 0.005 else "0"


def draw_course(
    losses: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]],
    errors: tuple[np.ndarray, np.ndarray] | None,
    borders: Sequence[float],
) -> Figure:
    """Draw terms of the loss, validation scores by width, and the error of weights: steps and values each.

    Stages begin at the steps `borders`.
    """
    panels = [bool(losses), bool(scores), errors is not None]
    figure, stack = new(0.8 + 2.4 * max(sum(panels), 1), max(sum(panels), 1), sharex=True)
    rest = list(stack)
    if losses:
        axes = rest.pop(0)
        for (name, (steps, values)), colour in zip(
            losses.items(), (TARGET, PREDICTED, GREEN, PURPLE, GREY), strict=False
        ):
            curve(axes, steps, np.where(values > 0, values, np.nan), colour, plain(name))
        logarithmic(axes)
        _legend_above(axes, "training: loss by term (log scale)")
    if scores:
        axes = rest.pop(0)
        for (name, (steps, values)), colour in zip(scores.items(), (PREDICTED, TARGET, GREEN), strict=False):
            curve(axes, steps, 100 * values, colour, name)
        _legend_above(axes, "validation: accuracy, %")
    if errors is not None:
        axes = rest.pop(0)
        curve(axes, *errors, PREDICTED, "")
        logarithmic(axes)
        axes.set_title("error of the weights at full width (log scale)")
    for axes in stack:
        for border in borders:
            axes.axvline(border, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)))
    stack[-1].set_xlabel("step, over all stages" if len(borders) else "step")
    return figure


def _legend_above(axes: Axes, title: str) -> None:
    """Put a legend of at most three entries between the title and the panel."""
    axes.set_title(title, pad=28)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2)


# --- the figures with their captions ---


def morph_pictures(run: Morphed) -> list[Picture]:
    """Return all figures, in the order of the page."""
    with styled():
        parts = [_course(run)]
        if run.evaluation is not None:
            parts = [_widths(run, run.evaluation), _properties(run, run.evaluation), _shown(run), *parts]
        return [picture for part in parts for picture in part]


def _gammas(evaluation: MorphEvaluation) -> np.ndarray:
    return np.array([each.gamma for each in evaluation.widths])


def _widths(run: Morphed, evaluation: MorphEvaluation) -> Iterator[Picture]:
    curves, gammas = [], _gammas(evaluation)
    for method, look in LOOKS.items():
        if method in run.methods:
            values, deviations = map(floats, run.values(method))
            curves.append((run.name(method), values, deviations, look))
    if not curves:
        return
    own = np.stack([floats(run.values(each)[0]) for each in TRAINED if each in run.methods])
    trained = own[:, [each.trained for each in evaluation.widths]]
    known = trained[np.isfinite(trained)] if np.isfinite(trained).any() else own[np.isfinite(own)]
    margin = max(0.08 * float(np.ptp(known)), 0.005)
    texts = [
        f"γ {number(each.gamma)}: {percent(each.accuracy)}, alone {percent(each.baselines.individual)}"
        for each in evaluation.widths
    ]
    yield Picture(
        "widths",
        "widths",
        "Networks by width",
        draw_widths(
            gammas,
            [each.parameters for each in evaluation.widths],
            curves,
            evaluation.narrowest,
            (float(known.min()) - margin, float(known.max()) + margin),
        ),
        f"The accuracy on test images of {len(curves)} methods at {len(gammas)} widths; the morph and networks trained alone: "
        f"{'; '.join(texts)}.",
        "Networks of exactly the same shapes. The larger panel has the widths that the morph was trained for, and cuts off what is far below "
        f"networks trained for them. The shaded widths are those of the morph's training, γ 0 to {number(evaluation.narrowest)}. "
        f"{'Bars are standard deviations over seeds. ' if evaluation.seeds > 1 else ''}NeuMeta, Fig. 5.",
    )


def _properties(run: Morphed, evaluation: MorphEvaluation) -> Iterator[Picture]:
    gammas = _gammas(evaluation)
    if len(gammas) < 2 or not evaluation.cka:
        return
    unknown = np.full(len(gammas), np.nan)
    curves = [(SHORT[method], floats(values), unknown, LOOKS[method]) for method, values in evaluation.cka.items()]
    least = [f"{name} {number(np.nanmin(values), 3)}" for name, values, _, _ in curves if np.isfinite(values).any()]
    where = f"{count(evaluation.inputs)} test images"
    yield Picture(
        "alignment",
        "properties",
        "Features compared with the widest network's",
        draw_alignment(gammas, curves),
        f"Linear CKA with the features of the widest network, the least of each method: {'; '.join(least)}.",
        f"Linear CKA of what the last layer reads, on {where}: 1 is the same up to rotation and scale. NeuMeta, Fig. 9.",
    )
    matrices = {
        SHORT[method]: np.stack([floats(row) for row in rows]) for method, rows in evaluation.divergence.items()
    }
    most = [f"{name} {number(float(np.nanmax(each)), 3)}" for name, each in matrices.items()]
    yield Picture(
        "divergence",
        "properties",
        "Divergence between the outputs of all widths",
        draw_divergences(gammas, matrices),
        f"Divergences of outputs of all pairs of {len(gammas)} widths; the largest: {'; '.join(most)}.",
        f"How far the outputs of the network at one width (column) are from those at another (row), on {where}: the mean KL divergence "
        "where outputs are classes. Darker is nearer. NeuMeta, Fig. 9.",
    )


def _shown(run: Morphed) -> Iterator[Picture]:
    if not run.pictures:
        return
    rows = {"\n".join(plain(each, 11) for each in name.split(", ")): images for name, images in run.pictures.items()}
    columns = len(next(iter(rows.values())))
    yield Picture(
        "pictures",
        "pictures",
        "Test inputs through networks of several widths",
        image_strip(
            rows,
            [f"{number + 1}" for number in range(columns)],
            (WIDTH - LABEL) / columns,
            WIDTH,
        ),
        f"Rows of {columns} images: {joined(list(run.pictures))}.",
        "The first test inputs. Rows with a γ are of the morph's networks; the others are the same for all of them.",
    )


def _course(run: Morphed) -> Iterator[Picture]:
    if not run.records:
        return
    records, borders = over_stages(run.records)
    terms = [
        name for name in named(records) if not name.startswith("val_") and name not in (*NOT_LOSSES, "weight_error")
    ]
    scores = {
        label: series(records, f"val_score_{index}")
        for index, label in enumerate(VALIDATED)
        if series(records, f"val_score_{index}")[0].size
    }
    steps, errors = series(records, "weight_error")
    shown = (steps, errors) if errors.size and errors.max() > 0 else None
    ends = [f"{name} {percent(float(values[-1]))}" for name, (_, values) in scores.items()]
    last = max(float(record["step"]) for record in records)
    yield Picture(
        "course",
        "training",
        "Course of the training",
        draw_course({name: series(records, name) for name in terms}, scores, shown, borders),
        f"Losses and validation over {count(last)} steps{'; at the end ' + joined(ends) if ends else ''}.",
        "Loss terms are those of single batches, times their weights in the sum. Validation is of networks of up to three widths, at "
        "the morph's full width, half way to the narrowest one trained, and there; the weights with the best mean are kept."
        f"{' Dashed lines: where a stage begins.' if borders else ''}",
    )


def over_stages(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Return records with steps counted over all stages, and the steps at which stages after the first begin."""
    lengths: dict[int, float] = {}
    for record in records:
        stage = int(record.get("stage", 0))
        lengths[stage] = max(lengths.get(stage, 0.0), finite(record["step"]) or 0.0)
    ends = np.cumsum([lengths[stage] for stage in sorted(lengths)])
    offsets = dict(zip(sorted(lengths), [0.0, *ends[:-1].tolist()], strict=True))
    moved = [{**record, "step": record["step"] + offsets[int(record.get("stage", 0))]} for record in records]
    return moved, [begin for _, begin in pairwise(offsets.values())]
