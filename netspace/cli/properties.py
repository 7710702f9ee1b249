"""What `eval` prints of signals: further measures of the task, properties told from networks, and retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from netspace.cli.output import number, percent, table

if TYPE_CHECKING:
    from netspace.results import properties as of_signals

SOURCES = ("latent", "weights", "outputs", "signal")


def measures(figures: Mapping[str, of_signals.Measured]) -> list[str]:
    """Return a line for each further measure of the task."""
    return [
        f"{name}: targets {number(each.target, 2)}, predicted networks {number(each.predicted, 2)}"
        for name, each in figures.items()
    ]


def properties(figures: of_signals.Properties | None) -> list[str]:
    """Return the tables of what is told of signals, and of retrieval."""
    if figures is None:
        return []
    rows = []
    for name, each in figures.labels.items():
        form, measure = (percent, "fraction right") if each.measure == "accuracy" else (number, "R2")
        rows.append([name, measure, *(form(getattr(each, source)) for source in (*SOURCES, "constant"))])
    found = figures.retrieval
    near = [["overlap of the nearest with those by outputs", *_percents(found.overlap)]]
    near += [[f"same {name} as the nearest", *_percents(each)] for name, each in found.same.items()]
    told = [
        "",
        f"predicted for {figures.members} members by linear models fitted to {figures.training_members} training members, from the latent, "
        "the weights, the outputs, or the signal itself",
        table(["property", "measure", *SOURCES, "constant"], rows),
    ]
    return [
        *(told if rows else []),
        "",
        table([f"{found.neighbours} nearest training members (chance {percent(found.chance)})", *SOURCES], near),
    ]


def _percents(figures: of_signals.Sources) -> list[str]:
    return [percent(getattr(figures, source)) for source in SOURCES]
