"""Two figures of NeRN's paper for a fit: what the best and worst filters do (Fig. 5 right), and how near embeddings are (Fig. 8).

Axes: K filters, h w the sides of maps, C coordinates, M frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from netspace.errors import NetspaceError
from netspace.io import parse_yaml
from netspace.report.drawing import GREEN, PREDICTED, TARGET, Picture, count, new, number
from netspace.results.compressed import ActivationMaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from netspace.models.coordinate_network import EmbeddingConfig

COORDINATES, REFERENCE = (
    64,
    31,
)  # coordinates (0, 0, c) of a layer of so many channels, and the one they are compared with


def draw_activations(best: np.ndarray, worst: np.ndarray) -> Figure:
    """Draw the means over filters of activations (K, h, w), of the best and the worst represented, on one scale."""
    maps = [group.mean(0) for group in (best, worst)]
    figure, _ = new(3.6, 0)
    panels = figure.subplots(1, 2)
    limit = max(float(each.max()) for each in maps) or 1.0
    for axes, title, values in zip(panels, ("smallest error", "largest error"), maps, strict=True):
        image = axes.imshow(values, cmap="viridis", vmin=0, vmax=limit, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(False)
    figure.colorbar(image, ax=panels, location="bottom", shrink=0.6, aspect=35, format="%.2g")
    return figure


def activation_pictures(maps: ActivationMaps | None) -> Iterator[Picture]:
    """Yield the mean activations of the filters that are reconstructed best and worst."""
    if maps is None:
        return
    best, worst = np.array(maps.best.maps), np.array(maps.worst.maps)
    means = f"{number(best.mean(), 3)} where the error is smallest and {number(worst.mean(), 3)} where it is largest"
    errors = [number(float(np.mean(group.relative_errors)), 3) for group in (maps.best, maps.worst)]
    yield Picture(
        "activations",
        "layers",
        f"Activations of the filters of {maps.layer} by their errors",
        draw_activations(best, worst),
        f"Mean activations of {count(len(best))} filters of {maps.layer} each: {means}.",
        f"The original's absolute outputs, averaged over {count(maps.images)} test images and over the {count(len(best))} of "
        f"{count(maps.count)} filters with the smallest (on average {errors[0]}) and the largest ({errors[1]}) relative error: {means}. NeRN, "
        "Fig. 5 right: filters that matter are represented well.",
        wide=False,
    )


def similarities(config: EmbeddingConfig) -> np.ndarray:
    """Return the cosine similarities (C,) of the embeddings of 64 neighbouring channels with that of channel 31.

    The parts of the other two coordinates are equal for all, and left out.
    """
    import torch

    from netspace.models.coordinate_network import Embedding

    scale = COORDINATES if config.coordinates == "normalised" else 1
    embedded = Embedding(config)(torch.arange(COORDINATES)[:, None] / scale).double()
    return (embedded @ embedded[REFERENCE] / config.count).numpy()


def draw_embeddings(rows: Mapping[str, np.ndarray]) -> Figure:
    """Draw similarities (C,) over the channel, by name; the fit's own comes first."""
    figure, axes = new(3.6)
    for (name, values), colour, style in zip(rows.items(), (PREDICTED, TARGET, GREEN), ("-", "--", ":"), strict=False):
        axes.plot(np.arange(COORDINATES), values, color=colour, linestyle=style, linewidth=1.7, label=name)
    axes.set(xlabel="channel c", ylabel="cosine similarity", ylim=(-1.05, 1.05))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def embedding_pictures(config: str) -> Iterator[Picture]:
    """Yield how near the embeddings of neighbouring channels are, by the settings of a fit; nothing if they do not say."""
    own = _embedding(config)
    if own is None:
        return
    papers = {
        base: own.model_validate({"coordinates": "raw", "base": base, "count": 40}) for base in ("smooth", "rough")
    }
    names = {"smooth": "NeRN, 0.76", "rough": "NeRN, 1.25"}
    rows = {f"this fit ({own.coordinates}, {own.base})": similarities(own)}
    rows |= {names[base]: similarities(each) for base, each in papers.items()}
    mine = next(iter(rows.values()))
    near = f"{number(mine[REFERENCE + 1], 3)} for the next channel and {number(mine[-1], 3)} for the last"
    yield Picture(
        "embeddings",
        "layers",
        "Similarity of embeddings of channels",
        draw_embeddings(rows),
        f"Cosine similarity with the embedding of channel {REFERENCE}: {near}.",
        f"How near the embedding of channel c of {COORDINATES} is to that of channel {REFERENCE}, in the same filter of the same layer: {near}. "
        "Slow changes suit ordered kernels, fast ones tell kernels apart. NeRN, Fig. 8, by the part of the channel alone.",
        wide=False,
    )


def _embedding(config: str) -> EmbeddingConfig | None:
    from netspace.models.coordinate_network import EmbeddingConfig

    try:
        raw: Any = parse_yaml(config, "config.yaml")
        settings = raw["predictor"]["embedding"]
        return EmbeddingConfig.model_validate(settings) if "coordinates" in settings else None
    except (NetspaceError, ValidationError, LookupError, TypeError):
        return None
