"""Figures of networks and latents as pictures (NetSpace, Suppl. VII): parameters as images, the map of the latent space.

Axes: M members, E latent size, P parameters. Accuracies come as fractions and are drawn as per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from netspace.report.drawing import (
    GREY,
    INK,
    MISSING,
    Dot,
    Picture,
    count,
    handle,
    handles_of,
    joined,
    legend_below,
    legend_rows,
    looks,
    new,
    number,
    percent,
    plain,
    shortened,
)
from netspace.report.runs import Evaluated, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WIDTH = 400  # pixels in which an image of parameters is drawn; wider ones are not averaged
MAX_TRAIN_DOTS = 2000  # members of the training split on the map


def draw_preps(pairs: Sequence[tuple[str, np.ndarray, str, np.ndarray]]) -> Figure:
    """Draw networks as pictures (NetSpace, Suppl. Fig. 5): title and parameters (P,) of target and prediction, one pair a row.

    All have one symmetric scale: up to the 99th percentile of |value|, beyond which colours no longer change.
    """
    from matplotlib import colormaps

    figure, _ = new(1.85 * len(pairs) + 0.9, 0)
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    values = np.concatenate([value for _, first, _, second in pairs for value in (first, second)])
    values = np.abs(values[np.isfinite(values)])
    limit = (float(np.percentile(values, 99)) if values.size else 0.0) or 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="#d9d9d9")
    for row, (first_title, first, second_title, second) in zip(grid, pairs, strict=True):
        for axes, title, flat in zip(row, (first_title, second_title), (first, second), strict=True):
            pixels = as_image(np.where(np.isfinite(flat), flat, np.nan))
            how = "nearest" if pixels.shape[1] > MAX_WIDTH else None  # averaged, values that differ in sign would pale
            image = axes.imshow(pixels, cmap=colours, vmin=-limit, vmax=limit, aspect="equal", interpolation=how)
            axes.set_title(plain(title), fontsize=10, pad=5)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.6, aspect=36, pad=0.02, extend="both")
    bar.set_label("value of the parameter")
    bar.outline.set_visible(False)
    return figure


def as_image(flat: np.ndarray) -> np.ndarray:
    """Return parameters (P,) row by row as an image about twice as wide as high; NaN after the last."""
    width = max(int(np.ceil(np.sqrt(2 * len(flat)))), 1)
    rows = -(-len(flat) // width)
    image = np.full(rows * width, np.nan)
    image[: len(flat)] = flat
    return image.reshape(rows, width)


def preps(run: Run) -> Iterator[Picture]:
    """Yield the figure of a few networks' parameters as images."""
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
        "Networks as pictures",
        draw_preps(pairs),
        f"Parameters of {len(pairs)} networks{f' of {kinds}' if kinds else ''} as pictures, target left and predicted right, in common colours.",
        "The parameters of a network, row by row, as a picture (target left, predicted right), with accuracies on the "
        f"test images; members from the lowest to the highest accuracy. {of}All pictures have one scale of colours, up to the "
        "99th percentile of |value|; padding is left out. The distance from target to prediction is "
        f"{distance} times the target's norm on average; where pictures differ and accuracies agree, networks are as "
        f"accurate with other weights. NetSpace, Suppl. VII, Fig. {6 if main.multi else 5}.",
        wide=False,
    )


def _sizes(run: Run, main: Evaluated, row: int) -> tuple[int | None, int | None]:
    """Return the numbers of parameters in a member's PRep and in its prediction's; None for all values."""
    if not main.multi:
        return main.figures.parameters or None, main.figures.parameters or None
    detail = main.figures.detail
    return run.parameters(detail.arch[row]), run.parameters(detail.arch_predicted[row])


def draw_latent_map(
    sets: Sequence[tuple[str, np.ndarray, np.ndarray]], archs: Sequence[str], variances: tuple[float, float]
) -> Figure:
    """Draw positions (M, 2) of sets of members, the last one in front and the others faint behind.

    Their values (M,) are ClassIds, or the accuracies of a single architecture's.
    """
    from matplotlib.colors import Normalize

    values, multi = np.concatenate([each for _, _, each in sets]), len(archs) > 1
    present = {name: look for index, (name, look) in enumerate(looks(archs).items()) if multi and index in values}
    figure, axes = new(5.4 + 0.26 * legend_rows(len(present) + len(sets)) if multi else 5.6)
    scale = None if multi else Normalize(100 * float(np.nanmin(values)), 100 * float(np.nanmax(values)))
    for index, (name, positions, own) in enumerate(sets):
        front = index == len(sets) - 1
        style: dict[str, Any] = {"s": 44, "edgecolors": INK, "linewidths": 0.7 if multi else 0.8}
        style = {**(style if front else {"s": 16, "alpha": 0.35, "linewidths": 0}), "zorder": 2 + front}
        for arch, look in present.items():
            mine = own == archs.index(arch)
            axes.scatter(*positions[mine].T, color=look.colour, marker=look.marker, **style)
        if not multi:
            drawn = axes.scatter(*positions.T, c=100 * own, cmap="viridis", norm=scale, label=name, **style)
    texts = [f"{100 * variance:.1f} % of the variance" for variance in variances]
    axes.set(xlabel=f"first principal axis ({texts[0]})", ylabel=f"second principal axis ({texts[1]})")
    if not multi:
        figure.colorbar(drawn, ax=axes, label="target's accuracy, %", pad=0.02).outline.set_visible(False)
        if len(sets) > 1:
            axes.legend(loc="best")
        return figure
    handles = handles_of(present, dots=True)
    if len(sets) > 1:
        dot = {"marker": "o", "linestyle": "", "color": GREY}
        handles += [handle(name, markersize=4, alpha=0.5, **dot) for name, _, _ in sets[:-1]]
        handles.append(handle(sets[-1][0], markersize=7, markeredgecolor=INK, **dot))
    legend_below(figure, handles)
    return figure


def principal(latents: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the first two principal components (M, 2) of latents (M, E), and their fractions of the variance.

    They are eigenvectors of the smaller of the two Gram matrices. An axis's largest entry is positive, so that equal
    latents give equal maps.
    """
    centred = latents.astype(np.float64) - latents.mean(0, dtype=np.float64)
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    components = vectors * np.sqrt(values) if wide else centred @ vectors
    components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    components *= np.where(components[np.abs(components).argmax(0), [0, 1]] < 0, -1, 1)
    total = float((centred**2).sum()) or 1.0
    variances = [float(value) / total for value in values]
    return components, (variances[0], variances[1] if len(variances) > 1 else 0.0)


def latents(run: Run) -> Iterator[Picture]:
    """Yield the map of the latents of the first evaluation that wrote them, and of the training members."""
    chosen = {split: evaluated for split, evaluated in run.evaluations.items() if evaluated.tensors is not None}
    front = next(iter(chosen), None)
    if front is None:
        return
    chosen = {split: chosen[split] for split in ("train", front) if split in chosen}
    rows = {split: np.arange(len(evaluated.member)) for split, evaluated in chosen.items()}
    if len(chosen) > 1 and len(rows["train"]) > MAX_TRAIN_DOTS:
        rows["train"] = np.linspace(0, len(rows["train"]) - 1, MAX_TRAIN_DOTS).round().astype(int)
    codes = [
        evaluated.tensors.latents[rows[split]] for split, evaluated in chosen.items() if evaluated.tensors is not None
    ]
    if (
        sum(map(len, codes)) < 3
        or len({piece.shape[1] for piece in codes}) > 1
        or not all(np.isfinite(z).all() for z in codes)
    ):
        return
    axes, variances = principal(np.concatenate(codes))
    pieces = np.split(axes, np.cumsum([len(piece) for piece in codes])[:-1])
    names = [f"{split} split" for split in chosen]
    dots = [
        Dot(float(x), float(y), evaluated.member[row], _figures_of(evaluated, row))
        for (split, evaluated), piece in zip(chosen.items(), pieces, strict=True)
        for (x, y), row in zip(piece, rows[split].tolist(), strict=True)
    ]
    multi = all(evaluated.multi for evaluated in chosen.values())
    values = [(each.class_ids if multi else each.target)[rows[split]] for split, each in chosen.items()]
    archs = chosen[front].archs if multi else [""]
    sets = list(zip(names, pieces, values, strict=True))
    drawn = [f"{count(len(piece))} latents of the {name}" for name, piece in zip(names, pieces, strict=True)]
    held = f"projected on the two directions along which latents vary most (they hold {percent(sum(variances))} of the variance)"
    if multi:
        present = [archs[class_id] for class_id in np.unique(np.concatenate(values))]
        by = f", by architecture: {joined(present)}."
        caption = f"Each marker is the latent of one network, {held}; colour and marker are its architecture. Other directions are not drawn."
    else:
        by = ", coloured by accuracy."
        caption = (
            f"Each dot is the latent of one network, {held}, coloured by the network's accuracy on the test images. Where "
            "colours change gradually, accuracy is a direction of the space. Other directions are not drawn."
        )
    yield Picture(
        "latents",
        "preps",
        "Map of the latent space",
        draw_latent_map(sets, archs, variances),
        f"{joined(drawn)} on their first two principal axes{by}",
        caption,
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
