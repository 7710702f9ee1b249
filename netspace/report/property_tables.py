"""The tables of what is told of signals from their networks: properties by linear models, and retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netspace.report.drawing import count, number, percent
from netspace.report.runs import Run
from netspace.report.tables import Table
from netspace.results.properties import Measured, Properties, Sources

SOURCES = {"latent": "latent", "weights": "weights", "outputs": "outputs", "signal": "the signal itself"}


def property_tables(run: Run) -> list[Table]:
    """Return the tables of each split: further measures of the task, and what is told of signals."""
    tables = []
    for split, evaluated in run.evaluations.items():
        if evaluated.figures.measures:
            tables.append(_measures(split, evaluated.figures.measures))
        figures = evaluated.figures.properties
        if figures is not None:
            tables += [_told(split, figures)] if figures.labels else []
            tables.append(_near(split, figures))
    return tables


def _measures(split: str, figures: Mapping[str, Measured]) -> Table:
    """Return the means of further measures."""
    rows = [[name, number(each.target, 3), number(each.predicted, 3)] for name, each in figures.items()]
    return Table(["", "targets", "predicted"], rows, f"Further measures, {split} split; psnr is in decibels.")


def _told(split: str, figures: Properties) -> Table:
    """Return how well each property is told from each source."""
    known = _known(list(figures.labels.values()))
    rows = []
    for name, each in figures.labels.items():
        right = each.measure == "accuracy"
        values = [getattr(each, source) for source in (*known, "constant")]
        cells = [percent(value) if right else number(value, 3) for value in values]
        rows.append([name, "fraction right" if right else "R²", *cells])
    caption = (
        f"What is known of the signals of {count(figures.members)} members of the {split} split, told by linear models that were "
        f"fitted to {count(figures.training_members)} training members: from the latent, from the weights, from the outputs on "
        "shared inputs, and from the signal itself where networks share their inputs. Constant: the commonest class, or the mean."
    )
    return Table(["", "measure", *known.values(), "constant"], rows, caption)


def _known(rows: Sequence[Sources]) -> dict[str, str]:
    """Return the sources that any row has a value of: signals have none where each network has inputs of its own."""
    return {source: name for source, name in SOURCES.items() if any(getattr(each, source) is not None for each in rows)}


def _near(split: str, figures: Properties) -> Table:
    """Return how good the nearest training members are by each source."""
    found = figures.retrieval
    known = _known([found.overlap, *found.same.values()])
    entries = {f"among the {found.neighbours} nearest by outputs": found.overlap}
    entries |= {f"the nearest has the same {name}": each for name, each in found.same.items()}
    rows = [[name, *(percent(getattr(each, source)) for source in known)] for name, each in entries.items()]
    caption = (
        f"Retrieval, {split} split: the {found.neighbours} training members whose latents (weights, outputs, signals) are nearest, and "
        f"the fraction of them that are among as many nearest by outputs; by chance it is {percent(found.chance)}."
    )
    return Table(["", *known.values()], rows, caption)
