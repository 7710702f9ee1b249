"""`netspace compress transfer`, and the table that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import percent, points, say, table
from netspace.cli.shared import Arch, Device, Json, Key, Kwargs, ModelZoo, Set, Trust, named_arch, pick, trusting

if TYPE_CHECKING:
    from netspace.results.transfer import Transfer, TransferRow

NAMES = {"original": "original weights", "rebuilt": "rebuilt weights", "random": "random weights"}
TUNED = {"whole": "all layers", "last": "the last layer alone"}


def transfer(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compressed network of any kind.")],
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Its original: a zoo's member, or a state-dict file with --arch."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder to write; run the same command again to resume.")
    ],
    set: Set = None,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fine-tune rebuilt, original and random weights on another data set, whole and the last layer alone.

    Learning rates and epochs are chosen on validation images; accuracies are those of test images, as means over seeds. The data set is
    named by the setting data.name (digits, fashion-mnist, ...); seeds, epochs, rates and data.limit are settings too.
    """
    from netspace.compression.transfer import TransferConfig
    from netspace.compression.transfer import transfer as fine_tune
    from netspace.config import load

    trusting(trust_arch)
    config = load(TransferConfig, {}, set or [])
    say(fine_tune(file, model, out, config, zoo, named_arch(arch, kwargs), key, pick(device)), json, transferred)


def transferred(figures: Transfer) -> str:
    """Return the text of `netspace compress transfer`."""
    rows = [
        [
            f"{NAMES[row.start]}, {TUNED[row.tuned]}",
            _with_spread(percent(row.mean), row.std),
            "" if row.difference is None else _with_spread(f"{points(row.difference, '+.2f')}", row.difference_std),
            f"{row.rate:g}",
        ]
        for row in _by_tuning(figures)
    ]
    last = "a fresh last layer" if figures.new_last else "the last layer kept"
    seeds = "1 seed" if figures.seeds == 1 else f"{figures.seeds} seeds"
    return "\n".join(
        [
            f"{figures.file} on {figures.data}: {figures.classes} classes, {figures.images_train:,} training, {figures.images_val:,} "
            f"validation and {figures.images_test:,} test images; {last} ({figures.last_layer})",
            table(["start and what is trained", "accuracy", "over the original", "rate"], rows),
            f"test accuracy, mean ± standard deviation over {seeds}, differences in points by seed; {figures.epochs} epochs; rate and "
            "epoch are chosen on validation images",
        ]
    )


def _by_tuning(figures: Transfer) -> list[TransferRow]:
    return sorted(figures.rows, key=lambda row: list(TUNED).index(row.tuned))


def _with_spread(text: str, spread: float | None) -> str:
    return text if spread is None else f"{text} ± {100 * spread:.2f}"
