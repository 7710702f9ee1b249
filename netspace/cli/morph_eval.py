"""`netspace morph eval`: its options, and the text that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import fraction, number, percent, points, say, table
from netspace.cli.ranges import MAX_POINTS, MAX_REPEATS, whole
from netspace.cli.shared import Device, Json, Trust, pick, trusting

if TYPE_CHECKING:
    from netspace.results.morph_eval import MorphEvaluation

NAMES = {
    "individual": "alone",
    "us_net": "US-Net",
    "pruned_l1": "pruned l1",
    "pruned_taylor": "Taylor",
    "pruned_random": "random",
    "resampled": "resampled",
}
NONE = "none"  # no baselines


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a `morph fit`.")],
    gammas: Annotated[
        str | None,
        typer.Option(metavar="G,...", help="Fractions of the channels to leave out; default: 0,0.25,0.5,0.75."),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What to compare with: individual, us_net, pruned_l1, pruned_taylor, pruned_random, resampled (default: all), or none.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        whole(1, MAX_REPEATS, "Seeds to average over: each further one trains networks, and a morph, of its own."),
    ] = 1,
    epochs: Annotated[
        int | None,
        whole(
            1, MAX_POINTS, "Epochs of training a baseline; default: the network's own in its zoo, or else the recipe's."
        ),
    ] = None,
    us_net_start: Annotated[
        str | None,
        typer.Option(
            metavar="START",
            help="Where US-Net's training begins: network (the one that the morph was fitted to; default if there is one) or fresh (weights).",
        ),
    ] = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare a morph's networks with those of other methods at the same widths, on test inputs.

    Individual networks and US-Net are trained in the run folder, once: another evaluation finds them there, and a stopped one
    goes on.
    """
    from netspace.commands.morph_eval import GAMMAS
    from netspace.commands.morph_eval import evaluate as evaluate_morph
    from netspace.commands.morph_methods import BASELINES

    trusting(trust_arch)
    rates = GAMMAS if gammas is None else parse_rates(gammas)
    chosen = BASELINES if baselines is None else parse_names(baselines)
    figures = evaluate_morph(
        run, rates, chosen, seeds=seeds, epochs=epochs, us_net_start=us_net_start, device=pick(device)
    )
    say(figures, json, evaluation)


def parse_rates(text: str) -> tuple[float, ...]:
    """Parse the value of --gammas. Raises `UsageError` unless it is numbers with commas between them.

    >>> parse_rates("0,0.5")
    (0.0, 0.5)
    """
    from netspace.errors import UsageError

    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(
            f"--gammas {text!r} was expected to be numbers with commas between, as in 0,0.25,0.5"
        ) from None


def parse_names(text: str) -> tuple[str, ...]:
    """Parse the value of --baselines.

    >>> parse_names("individual, us_net"), parse_names("none")
    (('individual', 'us_net'), ())
    """
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    return () if names == (NONE,) else names


def evaluation(figures: MorphEvaluation) -> str:
    """Return the text of `netspace morph eval`."""
    shown = [name for name in NAMES if any(name in each.baselines.payload() for each in figures.widths)]
    rows = []
    for each in figures.widths:
        values = [(each.accuracy, each.accuracy_std), (each.sampled_accuracy, each.sampled_accuracy_std)]
        values += [(getattr(each.baselines, name), getattr(each.baselines_std, name)) for name in shown]
        mark = " *" if each.trained else ""
        rows.append([f"{each.gamma:g}{mark}", f"{each.parameters:,}", *(_spread(*pair) for pair in values)])
    head = ["gamma", "parameters", "morph", f"{figures.draws} draws", *(NAMES[name] for name in shown)]
    seeds = f", means of {figures.seeds} seeds ± standard deviation" if figures.seeds > 1 else ""
    own = (
        ""
        if figures.full_accuracy is None
        else f"; the network it was fitted to scores {percent(figures.full_accuracy)}"
    )
    lines = [
        f"{figures.run}: accuracy on the test images{seeds} (* within the morph's training{own})",
        table(head, rows),
        f"{figures.stored_parameters:,} stored values for a network of {figures.full_parameters:,} parameters "
        f"({percent(fraction(figures.stored_parameters, figures.full_parameters))}); agreement with it "
        f"{', '.join(percent(each.agreement) for each in figures.widths)}",
    ]
    for name in figures.widths[0].measures:
        lines.append(f"{name}: {_measure(figures, name, shown)}")
    if len(figures.widths) > 1:
        narrow = {name: values[-1] for name, values in figures.cka.items()}
        lines.append(
            f"linear CKA of the narrowest with the widest: {_listed(narrow)}; divergence of its outputs: "
            f"{_listed({name: rows[0][-1] for name, rows in figures.divergence.items()})}"
        )
    return "\n".join([*lines, *_seconds(figures), f"pictures: netspace report {figures.run}"])


def _spread(value: float | None, spread: float | None) -> str:
    return percent(value) if spread is None else f"{percent(value)} ± {points(spread, '.1f')}"


def _measure(figures: MorphEvaluation, name: str, shown: list[str]) -> str:
    texts = []
    for each in figures.widths:
        found = each.measures[name]
        values = {"morph": found.morph, **{other: getattr(found, other) for other in shown}}
        texts.append(f"gamma {each.gamma:g}: {_listed(values)}")
    return "; ".join(texts)


def _listed(values: dict[str, float | None]) -> str:
    return ", ".join(f"{number(value)} {NAMES.get(name, name)}" for name, value in values.items())


def _seconds(figures: MorphEvaluation) -> list[str]:
    """Return the line on how long trainings took."""
    seconds, known = figures.seconds, [each for each in figures.seconds.individual if each is not None]
    parts = {"the morph": seconds.morph, "US-Net": seconds.us_net, f"{len(known)} networks alone": sum(known) or None}
    texts = [f"{value:,.1f} s {name}" for name, value in parts.items() if value is not None]
    starts = {
        "network": "; US-Net began at the network, and so did the morph",
        "fresh": "; US-Net began at fresh weights",
    }
    begun = "" if figures.us_net_start is None else starts[figures.us_net_start]
    return [f"training took {', '.join(texts)}{begun}"] if texts else []
