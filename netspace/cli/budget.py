"""`netspace compress fit` with a size: its options as settings, and the table that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.cli.output import number, percent, table

if TYPE_CHECKING:
    from netspace.compression.work import BudgetConfig
    from netspace.results.budget import BudgetFit, WayRow

ANSWERS = {
    "task": "on the test images",
    "pictures": "on pictures that chose nothing",
    "noise": "on noise that chose nothing",
}


def settings(
    config: str | None,
    changes: Sequence[str],
    budget: dict[str, Any],
    options: dict[str, Any],
    begun: Path | None = None,
) -> BudgetConfig:
    """Return the settings of a fit with a size: a recipe, what `--set` changes, and the options that were given.

    Those of a resumed fit come from `begun`, the file that it wrote when it began, instead of a recipe.
    """
    from netspace.compression.work import BudgetConfig
    from netspace.config import find, load, read_back
    from netspace.errors import UsageError
    from netspace.io import read_yaml

    raw: Any = {} if config is None else read_yaml(find(config, "compress"))
    if not isinstance(raw, dict):
        raise UsageError(f"{config} was expected to be a recipe of `name: value` lines, but holds {type(raw).__name__}")
    raw = raw if begun is None else read_back(BudgetConfig, begun).model_dump(mode="json")
    given = {"budget": budget, **options} if budget or begun is None else options
    given = {name: value for name, value in given.items() if value is not None}
    return load(BudgetConfig, {**raw, **given}, changes)


def options(
    way: str | None,
    rivals: bool,
    images: Path | None,
    size: int,
    normalise: str | None,
    shape: tuple[int, ...] | None,
    output: str | None = None,
) -> dict[str, Any]:
    """Return the options of the command as settings; None: not given."""
    return {
        "way": way,
        "rivals": rivals or None,
        "pictures": None if images is None else str(images.resolve()),
        "picture_size": size if images is not None else None,
        "normalise": normalise,
        "input_shape": shape,
        "output": output,
    }


def check_seeds(seeds: int | None, sized: bool, model: str | None) -> None:
    """Raise `UsageError` for several seeds of a fit with a size, or of a network that is not named."""
    from netspace.errors import UsageError

    if seeds is not None and sized:
        raise UsageError(
            "--seeds is about fits without a size: leave --bytes, --ratio and --accuracy-drop out, or --seeds"
        )
    if seeds is not None and model is None:
        raise UsageError("fits from several seeds are of one network: name it as MODEL, with --resume too")


def check_alone(given: Sequence[str]) -> None:
    """Raise `UsageError` for options that only a fit with a size has."""
    from netspace.errors import UsageError

    if given:
        verb = "is an option" if len(given) == 1 else "are options"
        raise UsageError(
            f"{' and '.join(given)} {verb} of a fit with a size: give --bytes, --ratio or --accuracy-drop too"
        )


def is_budget(folder: Path) -> bool:
    """Return whether a folder was begun by a fit with a size."""
    from netspace.errors import NetspaceError
    from netspace.io import read_yaml

    try:
        raw = read_yaml(folder / "config.yaml")
    except NetspaceError:
        return False
    return isinstance(raw, dict) and "budget" in raw


def budget_fit(figures: BudgetFit) -> str:
    """Return the text of `netspace compress fit` with a size."""
    task = figures.inputs == "task"
    runs = figures.inputs != "weights"
    values = figures.output_error is not None  # of outputs are compared, not answers
    head = [
        "",
        "bytes",
        "how",
        "steps",
        *(["accuracy"] if task else []),
        *([f"error of {figures.output or 'outputs'}" if values else "same answer"] if runs else []),
        "relative error",
    ]
    rows = []
    for row in figures.table:
        alike = number(row.output_error) if values else percent(row.agreement)
        measured = [*([percent(row.accuracy)] if task else []), *([alike] if runs else [])]
        size = "-" if row.bytes is None else f"{row.bytes:,}"
        rows.append([_name(row), size, row.setting or "-", row.steps or "-", *measured, number(row.relative_error)])
    basis = f"; measured {ANSWERS[figures.inputs]}" if runs else ""
    original = f"the original has {percent(figures.accuracy_original)}; " if task else ""
    notes = [f"{row.way}: {row.note}" for row in figures.table if row.note]
    return "\n".join(
        [
            table(head, rows),
            f"{original}* taken, by validation; ~ rival; steps are those of training{basis}",
            *notes,
            f"{figures.file}: {figures.bytes_file:,} bytes of {figures.bytes_budget:,}, the original's weights take "
            f"{figures.bytes_original:,}; {figures.why}",
        ]
    )


def _name(row: WayRow) -> str:
    return f"{'*' if row.chosen else '~' if row.rival else ' '} {row.way}"
