"""`netspace probe`: its options, and the text that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import counted, number, say, small, table
from netspace.cli.ranges import MAX_MEMBERS, MAX_SEED, whole
from netspace.cli.shared import Device, Json, Trust, ZooOption, pick, trusting

if TYPE_CHECKING:
    from netspace.results.members import Interval, Probing


def probe(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|ZOO", help="The run of a space, or a zoo (which has no latents).")
    ],
    target: Annotated[
        str,
        typer.Option(help="The column to predict: accuracy_test, accuracy_val, accuracy_train, epochs, learning_rate."),
    ] = "accuracy_test",
    predict: Annotated[
        list[str] | None,
        typer.Option(
            "--predict", metavar="FILE", help="Predict it for the network of a state-dict file; may be repeated."
        ),
    ] = None,
    splits: Annotated[int, whole(2, 10_000, "Random splits by training runs, over which figures are means.")] = 10,
    seed: Annotated[int, whole(0, MAX_SEED, "Seed of the splits.")] = 0,
    members: Annotated[int, whole(1, MAX_MEMBERS, "Members to use at most, drawn at random.")] = 5000,
    zoo: ZooOption = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Predict a column of the zoo's table from latents, statistics of weights and answers, by ridge and boosting.

    Members of one training run, or of one signal (a mesh and its variants), are never on both sides of a split. The 95 % intervals are percentiles of 400 samples, each of
    which draws training runs or signals and splits with replacement: they say how far the figures depend on which networks there are.
    """
    from netspace.commands.probe import probe as measure

    trusting(trust_arch)
    say(measure(path, target, splits, predict or [], zoo, seed, members, pick(device)), json, text)


def text(figures: Probing) -> str:
    """Return the text of `netspace probe`."""
    rows = [
        [
            f"{each.source} + {each.model}" + (" *" if f"{each.source} + {each.model}" == figures.best else ""),
            each.features,
            _interval(each.r2),
            _interval(each.kendall),
            _interval(each.kendall_difference) if each.kendall_difference else "-",
        ]
        for each in figures.probes
    ]
    head = ["", "features", "R2", "Kendall tau", "tau minus statistics + boosting"]
    lines = [
        f"{figures.target} of {counted(figures.members, 'member')} ({counted(figures.runs, 'training run')}), {small(figures.target_mean)} "
        f"+- {small(figures.target_std)}; means over {figures.splits} splits by runs and 95 % intervals by bootstrap of runs and splits (* highest tau)",
        "",
        table(head, rows),
        *[f"left out, {source}: {reason}" for source, reason in figures.left_out.items()],
    ]
    if figures.seen:
        lines.append(f"the space was trained on {figures.seen:,} of these networks, without the target")
    if figures.predictions:
        names = [f"{each.source} + {each.model}" for each in figures.probes]
        rows = [
            [each.file, each.arch, number(each.best, 4), *(number(each.all[name], 4) for name in names)]
            for each in figures.predictions
        ]
        lines += ["", table(["network", "architecture", "best", *names], rows)]
    return "\n".join(lines)


def _interval(figure: Interval) -> str:
    if figure.mean is None:
        return "-"
    return f"{number(figure.mean)} ({number(figure.low)} to {number(figure.high)})"
