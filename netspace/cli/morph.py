"""`netspace morph ...`: one function that gives the weights of a network at any width, and the text of these commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.morph_eval import evaluate
from netspace.cli.output import fraction, number, percent, say, table
from netspace.cli.ranges import MAX_DEPTH, MAX_POINTS, MAX_SEED, MAX_WIDER, real, whole
from netspace.cli.shared import (
    MAX_DIGITS,
    Arch,
    Device,
    Json,
    Key,
    Kwargs,
    ModelZoo,
    Set,
    Shape,
    Trust,
    named_arch,
    parse_shape,
    pick,
    trusting,
)

if TYPE_CHECKING:
    from netspace.results.morphs import MorphFit, MorphSample

app = typer.Typer(
    no_args_is_help=True,
    help="Learn the weights of a network as a function of its size: every width from one file (NeuMeta).",
)
app.command("eval")(evaluate)
Morph = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a `morph fit`, or its morph.safetensors.")]


def fitted(figures: MorphFit) -> str:
    """Return the text of `netspace morph fit`."""
    rows = [["the network itself", "", f"{figures.full_parameters:,}", percent(figures.full_accuracy)]]
    rows = rows if figures.full_accuracy is not None else []
    rows += [
        [f"width {1 - each.gamma:g}", f"{each.gamma:g}", f"{each.parameters:,}", percent(each.accuracy)]
        for each in figures.widths
    ]
    lines = [
        f"{figures.file}: {figures.stored_parameters:,} values give {figures.arch} at any width; trained for gamma 0 to "
        f"{figures.narrowest:g} ({len(figures.groups)} groups of channels); accuracy on test images",
        table(["", "gamma", "parameters", "accuracy"], rows),
    ]
    if variation := figures.total_variation:
        lines.append(
            f"total variation of the channels: {number(variation.before, 1)} before, {number(variation.after, 1)} in order "
            f"({percent(fraction(variation.after, variation.before))}; greedy: {number(variation.greedy, 1)})"
        )
    return "\n".join([*lines, f"measure it: netspace morph eval {figures.run}"])


def sampled(figures: MorphSample) -> str:
    """Return the text of `netspace morph sample`."""
    widths = ", ".join(f"{name} {width}" for name, width in figures.widths.items())
    lines = [
        f"{figures.file}: {figures.arch} of {figures.parameters:,} parameters and {figures.macs:,} multiply-accumulates, "
        f"{percent(figures.accuracy)} accuracy on test images",
        f"channels: {widths}",
    ]
    if figures.blocks is not None:
        kept = ", ".join(map(str, figures.blocks[0]))
        lines.append(f"depth {figures.depth}: blocks {kept} of each stage")
    if not figures.trained:
        lines.append("networks of this size were never trained")
    if Path(figures.file).suffix == ".safetensors":
        lines.append(f'load it: netspace.load_morphed("{figures.file}")')
    return "\n".join(lines)


@app.command()
def fit(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder to write.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A zoo's member (resnet20/0000, best) or a state-dict file. Left out with --arch and --set start=nothing, "
            "and with --resume, which takes the run's own.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe: a YAML file, or a bundled one (morph/digits, morph/resnet20-fashion).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; what is not given is as it was begun.")
    ] = False,
    set: Set = None,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    input_shape: Shape = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Learn the weights of a network as a function of its widths; writes morph.safetensors to the run folder.

    The function starts at the network's weights, its channels in an order in which neighbours are alike. --set start=nothing
    trains fresh weights instead. Without a zoo, --set data.name=NAME says what the network is for.
    """
    from netspace.archs import ArchConfig
    from netspace.commands.morph import fit as fit_morph
    from netspace.config import load, resumed
    from netspace.run_folder import MORPH, RunFolder
    from netspace.training.morph import MorphConfig

    trusting(trust_arch)
    of_arch, shape = named_arch(arch, kwargs), parse_shape(input_shape)
    if model is None and of_arch is None:
        own = RunFolder.of(MORPH, out).begun_with(resume, "MODEL", "the network whose weights become a function")
        model, key, shape = own.model, key or own.key, shape or own.input_shape
        zoo = zoo or (Path(own.zoo) if own.zoo else None)
        of_arch = of_arch or (load(ArchConfig, own.arch) if own.arch else None)
    settings = out / "config.yaml"
    begun = resume and recipe is None and settings.is_file()
    config = resumed(MorphConfig, settings, set or []) if begun else load(MorphConfig, recipe or {}, set or [])
    say(fit_morph(out, config, model, zoo, resume, pick(device), of_arch, shape, key), json, fitted)


@app.command()
def sample(
    run: Morph,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write: .safetensors, or .onnx.")],
    width: Annotated[float | None, real(0, MAX_WIDER, "Fraction of the channels to keep, such as 0.6.")] = None,
    gamma: Annotated[
        float | None,
        real(
            1 - MAX_WIDER,
            1,
            "Fraction of the channels to leave out, such as 0.4; below 0 for a wider network.",
            with_low=True,
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP=N,...", help="Channels of some groups, by the names that `morph fit --json` lists."
        ),
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="N", help="The widest network with at most so many parameters, such as 50k.")
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="The widest with at most so many FLOPs for one input, such as 10M; an addition is one."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        whole(
            1,
            MAX_DEPTH,
            "Layers of a network of the resnet family, such as 14 of 20: blocks evenly over each stage.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        whole(
            1,
            MAX_POINTS,
            "Take the mean of so many noisy draws of the weights (NeuMeta: 50), not their expectation.",
        ),
    ] = None,
    seed: Annotated[int, whole(0, MAX_SEED, "Seed of the draws.")] = 0,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Write a network of any size, without training: a state dict, or ONNX.

    netspace.load_morphed("net.safetensors") gives the torch module of a state dict. If the channels are
    those of a width factor of the architecture, other commands read the file as that architecture.
    """
    from netspace.commands.morph_sample import Size
    from netspace.commands.morph_sample import sample as sample_network

    trusting(trust_arch)
    size = Size(width, gamma, parse_widths(widths), parse_count(params, "--params"), parse_count(flops, "--flops"))
    say(sample_network(run, out, size, depth, draws, seed, pick(device)), json, sampled)


def parse_widths(text: str | None) -> dict[str, int] | None:
    """Parse the value of --widths. Raises `UsageError` unless it is names with whole numbers, each name once.

    >>> parse_widths("layer1.0.conv1=8,conv1=4")
    {'layer1.0.conv1': 8, 'conv1': 4}
    """
    from netspace.errors import UsageError

    if text is None:
        return None
    pairs = [word.rpartition("=") for word in text.split(",")]
    if not all(name.strip() and number.strip().isdecimal() and len(number) < MAX_DIGITS for name, _, number in pairs):
        raise UsageError(
            f"--widths {text!r} was expected to be GROUP=N with commas between, as in conv1=8,layer1.0.conv1=4"
        )
    found = {name.strip(): int(number) for name, _, number in pairs}
    if len(found) < len(pairs):
        raise UsageError(f"--widths {text!r} names a group twice: give each one width")
    return found


def parse_count(text: str | None, option: str) -> int | None:
    """Parse a number such as 50000, 50k, 1.5M or 2G, given for an option. Raises `UsageError` for another text.

    >>> parse_count("1.5M", "--params")
    1500000
    """
    from netspace.errors import UsageError

    if text is None:
        return None
    factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get(text.strip()[-1:].lower(), 1)
    try:
        value = float(text.strip().rstrip("kKmMgG")) * factor
        count = int(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text!r} was expected to be a number such as 50000, 50k or 1.5M") from None
    if count < 1:
        raise UsageError(f"{option} {text!r} was expected to be a number of at least 1")
    return count
