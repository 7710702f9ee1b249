"""The text of `netspace compress fit --seeds N`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.cli.output import fraction, percent, table

if TYPE_CHECKING:
    from netspace.results.seeds import SeededFits, Spread


def seeded(figures: SeededFits) -> str:
    """Return the text of fits from several seeds."""
    ratio = percent(fraction(figures.parameters_predictor, figures.parameters_represented))
    lines = [
        f"{len(figures.seeds)} fits, seeds {figures.seeds[0]} to {figures.seeds[-1]}: predictors of {figures.parameters_predictor:,} values "
        f"for {figures.parameters_represented:,} ({ratio}); mean ± standard deviation"
    ]
    rows = [
        [f"stage {each.stage + 1}, round {each.round + 1}", _points(each.accuracy_val), _plain(each.relative_error)]
        for each in figures.rounds
    ]
    lines.append(table(["weights kept by", "accuracy on validation images", "relative error"], rows))
    if figures.accuracy_reconstructed is not None and figures.difference is not None:
        lines.append(
            f"on the test images {_points(figures.accuracy_reconstructed)}, the original {percent(figures.accuracy_original)}: "
            f"{100 * figures.difference.mean:+.2f}{_deviation(figures.difference, 100, 2)} points; same answer {_points(figures.agreement)}"
        )
    return "\n".join(lines)


def _points(spread: Spread | None) -> str:
    return "-" if spread is None else f"{100 * spread.mean:.2f}{_deviation(spread, 100, 2)} %"


def _plain(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.mean:.3f}{_deviation(spread, 1, 3)}"


def _deviation(spread: Spread, factor: float, digits: int) -> str:
    return "" if spread.std is None else f" ± {factor * spread.std:.{digits}f}"
