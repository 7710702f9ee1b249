"""`netspace compress ...`: a network represented by a coordinate network, and the tables that some of these commands print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import analysis, compression, important, normalised, say
from netspace.cli.ranges import MAX_MEMBERS, MAX_REPEATS, real, whole
from netspace.cli.rebuilding import evaluated
from netspace.cli.seeds import seeded
from netspace.cli.shared import (
    Arch,
    Device,
    Images,
    Json,
    Key,
    Kwargs,
    ModelZoo,
    Normalise,
    Set,
    Shape,
    Size,
    Trust,
    named_arch,
    parse_pictures,
    parse_shape,
    pick,
    trusting,
)
from netspace.cli.shrink import Compared, Noise, OutputOfEval, pruning, quantised, unlabelled
from netspace.cli.transfer import transfer

if TYPE_CHECKING:
    from netspace.results.compressed import Correction


def correction(figures: Correction) -> str:
    """Return the text of `netspace compress correct`."""
    by = f", {normalised(figures)}" if figures.normalise else ""
    return (
        f"{figures.out}: {len(figures.corrected)} tensors of batch norms and biases corrected by "
        f"{figures.count} inputs ({figures.shown}{by}); {figures.bytes_after:,} bytes, {figures.bytes_before:,} before; compare it by "
        "`netspace compress eval` on others"
    )


app = typer.Typer(
    no_args_is_help=True, help="Represent a trained network by a coordinate network half its size (NeRN)."
)
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A zoo's member (resnet20/0000, best) or a state-dict file of any network."),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A compressed network, as `compress fit` writes.")]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|INDEX",
        help="With a size, which of a network's outputs is compared, as in 0, boxes or out.0. Default: all, by the relative error of "
        "their values; one of (B, C) is taken for logits, unless --set compare=outputs.",
    ),
]


@app.command()
def fit(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A zoo's member (resnet20/0000, best) or a state-dict file of any network. Default with --resume: the fit's own.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--recipe", "--config", help="A recipe: a YAML file, or a bundled one (compress/decoupled)."),
    ] = None,
    bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Find the best network in a file of at most SIZE bytes, as in 100KB (100,000), 2.3MB, 1MiB or 85000: the whole "
            "file counts.",
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        real(1, 1e6, "The same with SIZE = the bytes of the original's weights / R.", metavar="R"),
    ] = None,
    accuracy_drop: Annotated[
        float | None,
        real(
            0,
            100,
            "The same with the smallest SIZE at which the accuracy on validation images drops by at most D points.",
            metavar="D",
            with_low=True,
        ),
    ] = None,
    way: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With a size, the only way that is tried: rounded, coded, pruned, coordinate or mixed. Default: all.",
        ),
    ] = None,
    rivals: Annotated[
        bool,
        typer.Option(
            "--rivals",
            help="With a size, add NNCodec, plain rounding, torch's int8, torchao and a distilled student to the table.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With a size, pictures without labels to train on and to compare answers on, where no task is known.",
        ),
    ] = None,
    size: Size = 224,
    normalise: Normalise = None,
    output: Output = None,
    seeds: Annotated[
        int | None,
        whole(1, MAX_REPEATS, "Without a size, fit from so many seeds, and print means and deviations, by round."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted fit; what is not given is as it was begun."),
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
    """Hold a trained network in a small file: in a coordinate network, or, with a size, the best way in so many bytes.

    With --bytes, --ratio or --accuracy-drop every way is tried: weights rounded by rows, entropy-coded, pruned and coded, with
    a precision of each layer by how much it matters, and in a coordinate network. The best one is trained on; networks
    then run on the CPU unless --device names another. Without a size, a coordinate network is fitted as the recipe says.
    """
    from netspace.cli import budget as of_size
    from netspace.compression.fit import fit as fit_network
    from netspace.compression.seeds import fit_seeds
    from netspace.compression.sizes import parse_budget
    from netspace.config import load, resumed
    from netspace.run_folder import FIT, RunFolder
    from netspace.training.recipe import FitConfig

    trusting(trust_arch)
    limits = parse_budget(bytes, ratio, accuracy_drop)
    of_arch, shape = named_arch(arch, kwargs), parse_shape(input_shape)
    settings = out / "config.yaml"
    begun = resume and config is None and settings.is_file()
    begun_sized = begun and of_size.is_budget(out)
    of_size.check_seeds(seeds, bool(limits) or begun_sized, model)
    if model is None:
        model = str(RunFolder.of(FIT, out).begun_with(resume, "MODEL", "the network to represent").model)
    if limits or begun_sized:
        from netspace.compression.budget import fit_budget

        parse_pictures(images, size, normalise)
        given = of_size.options(way, rivals, images, size, normalise, shape, output)
        chosen = of_size.settings(config, set or [], limits, given, settings if begun_sized else None)
        found = fit_budget(model, out, chosen, zoo, resume, pick(device or "cpu"), of_arch, key)
        say(found, json, of_size.budget_fit)
        return
    named = {"--way": way, "--rivals": rivals or None, "--images": images, "--normalise": normalise, "--output": output}
    of_size.check_alone([name for name, value in named.items() if value is not None])
    recipe = resumed(FitConfig, settings, set or []) if begun else load(FitConfig, config or {}, set or [])
    options = zoo, resume, pick(device), of_arch, shape, key
    if seeds is not None:
        say(fit_seeds(model, out, recipe, seeds, *options), json, seeded)
    else:
        say(fit_network(model, out, recipe, *options), json, compression)


@app.command("eval")
def evaluate(
    file: File,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="The original network, for comparison.")] = None,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    images: Images = None,
    size: Size = 224,
    normalise: Normalise = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Measure what computing all weights from the file costs, next to one inference: time, multiply-adds, memory.",
        ),
    ] = False,
    input_shape: Noise = None,
    output: OutputOfEval = None,
    compare: Compared = "auto",
    json: Json = False,
) -> None:
    """Measure a compressed network: its size, and its accuracy, answers or outputs compared with the original's.

    On --images, or noise of an --input-shape, no labels are needed: classifiers are compared by their answers, other networks
    (detectors, segmenters, super-resolution) by the relative error of each output.
    """
    from netspace.compression.fit import evaluate as measure
    from netspace.compression.rebuild import rebuild_cost

    trusting(trust_arch)
    shape, pictures = parse_shape(input_shape), parse_pictures(images, size, normalise)
    of, made = (model, zoo, named_arch(arch, kwargs)), unlabelled(pictures, None if rebuild else shape, output, compare)
    figures = measure(file, *of, made, key, shape)
    if rebuild:
        figures = figures.extended(type(figures), rebuild=rebuild_cost(file, *of, pictures, key, shape))
    say(figures, json, evaluated)


@app.command()
def reconstruct(
    file: File,
    out: Annotated[Path, typer.Option("-o", "--out", help="The state dict to write (safetensors).")],
    json: Json = False,
) -> None:
    """Write the network as a state dict, from the compressed file alone."""
    from netspace.compression.fit import reconstruct as rebuild

    say(
        rebuild(file, out),
        json,
        lambda r: f"{r.tensors} tensors, {r.parameters_original:,} values, in {r.file}",
    )


@app.command()
def importance(
    file: File,
    model: Model,
    top: Annotated[int, whole(0, MAX_MEMBERS, "Number of filters to list; 0: all.")] = 20,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    input_shape: Shape = None,
    json: Json = False,
) -> None:
    """Rank filters by how well they are reconstructed: a small predictor preserves the important ones."""
    from netspace.compression.analyse import importance as rank

    trusting(trust_arch)
    say(rank(file, model, zoo, top, key, named_arch(arch, kwargs), parse_shape(input_shape)), json, important)


@app.command()
def analyse(
    file: File,
    model: Model,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    input_shape: Shape = None,
    json: Json = False,
) -> None:
    """Compare smoothness, generalisation gaps and layer similarity with the original; writes analysis.json."""
    from netspace.compression.analyse import analyse as compare

    trusting(trust_arch)
    of_arch, shape = named_arch(arch, kwargs), parse_shape(input_shape)
    say(compare(file, model, zoo, of_arch, key=key, input_shape=shape), json, analysis)


@app.command()
def correct(
    file: File,
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The compressed network to write.")],
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    images: Images = None,
    size: Size = 224,
    normalise: Normalise = None,
    input_shape: Shape = None,
    json: Json = False,
) -> None:
    """Correct batch norms and biases for the errors of the weights, using any images or noise; coded files may grow a little."""
    from netspace.compression.correct import correct as make_up

    trusting(trust_arch)
    shape = parse_shape(input_shape)
    say(
        make_up(
            file, out, model, zoo, named_arch(arch, kwargs), parse_pictures(images, size, normalise), shape, key=key
        ),
        json,
        correction,
    )


@app.command()
def quantise(
    file: File,
    out: Annotated[Path, typer.Option("-o", "--out", help="The compressed network to write.")],
    bits: Annotated[int, whole(4, 8, "8 or 4.")] = 8,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="The original network, for comparison.")] = None,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    images: Images = None,
    size: Size = 224,
    normalise: Normalise = None,
    json: Json = False,
) -> None:
    """Quantise the predictor to 8 or 4 bits; writes quantise-BITS.json next to FILE (quantise-BITS-alone.json without MODEL)."""
    from netspace.compression.shrink import quantise as shrink

    trusting(trust_arch)
    say(
        shrink(file, out, bits, model, zoo, named_arch(arch, kwargs), parse_pictures(images, size, normalise), key),
        json,
        quantised,
    )


@app.command()
def prune(
    file: File,
    model: Model,
    shares: Annotated[
        str | None,
        typer.Option(help="Fractions of the weights to prune, as in 0,0.25,0.5; default: twelve of them, up to 0.9."),
    ] = None,
    zoo: ModelZoo = None,
    arch: Arch = None,
    kwargs: Kwargs = None,
    key: Key = None,
    trust_arch: Trust = None,
    images: Images = None,
    size: Size = 224,
    normalise: Normalise = None,
    json: Json = False,
) -> None:
    """Prune the predictor, and for comparison the original, by magnitude; writes prune.json next to FILE."""
    from netspace.compression.shrink import SHARES
    from netspace.compression.shrink import prune as cut

    trusting(trust_arch)
    fractions, pictures = SHARES if shares is None else _numbers(shares), parse_pictures(images, size, normalise)
    say(cut(file, model, zoo, fractions, named_arch(arch, kwargs), pictures, key), json, pruning)


app.command()(transfer)


def _numbers(text: str) -> list[float]:
    from netspace.errors import UsageError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--shares {text!r} was expected to be numbers with commas between, as in 0,0.25,0.5"
        ) from None
