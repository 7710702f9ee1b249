"""The command line: parse, call, print. Imports are lazy, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from netspace.cli import compress as compress_commands
from netspace.cli import data as data_commands
from netspace.cli import members as member_commands
from netspace.cli import morph as morph_commands
from netspace.cli import recipes as recipe_commands
from netspace.cli import zoo as zoo_commands
from netspace.cli.diff import diff
from netspace.cli.health import health
from netspace.cli.open import open_command
from netspace.cli.optimize import optimize
from netspace.cli.output import samples, say, training
from netspace.cli.probe import probe
from netspace.cli.ranges import MAX_NETWORKS, MAX_POINTS, MAX_SEED, MAX_STEPS, real, whole
from netspace.cli.resume import resume
from netspace.cli.search import search
from netspace.cli.shapes import decoding, evaluation, interpolation
from netspace.cli.shared import (
    Depth,
    Device,
    Json,
    Network,
    Refine,
    RunArgument,
    RunOption,
    SameRun,
    Set,
    Trust,
    Width,
    ZooOption,
    pick,
    run,
    run_folder,
    trusting,
)
from netspace.process import import_model_zoo, keep_freed_memory, settle_threads

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Trained neural networks as data: build zoos, learn their latent space, get networks back.",
)
zoo_commands.app.command("list")(member_commands.list_)
zoo_commands.app.command("export")(member_commands.export)
app.add_typer(zoo_commands.app, name="zoo")
app.add_typer(data_commands.app, name="data")
app.add_typer(recipe_commands.app, name="recipes")
app.add_typer(compress_commands.app, name="compress")
app.add_typer(morph_commands.app, name="morph")

Output = Annotated[Path, typer.Option("-o", "--out", help="The file to write.")]


def _version(show: bool) -> None:
    if show:
        from netspace import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up the process, before any command runs."""
    import_model_zoo()
    keep_freed_memory()
    settle_threads()


@app.command()
def quickstart(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The run folder; default: runs/quickstart.")] = None,
    small: Annotated[
        bool, typer.Option(help="Use a smaller zoo and train for fewer steps: for a first look and for tests.")
    ] = False,
    shapes: Annotated[
        bool,
        typer.Option(
            help="Networks that are chairs, instead of networks that read digits; default --out: runs/chairs."
        ),
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the zoo's recipe, zoo/quickstart or zoo/chairs (zoo.members.train=200), or of the "
            "space's (space.steps=400); may be repeated.",
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline on bundled data: build a zoo, learn its latent space, evaluate, interpolate, report."""
    from netspace.commands.quickstart import quickstart as run_quickstart

    out = out or Path("runs/chairs" if shapes else "runs/quickstart")
    result = run_quickstart(out, small, set or [], device, shapes)
    say(
        result,
        json,
        lambda r: "\n\n".join(
            [
                evaluation(r.eval),
                interpolation(r.interpolate),
                f"the report is {r.report} ({r.seconds['total']:.0f} s in all)",
            ]
        ),
    )


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe: a YAML file, or a bundled one such as space/quickstart. Default with --resume: the run's settings.",
        ),
    ] = None,
    zoo: Annotated[
        Path | None,
        typer.Option(help="The zoo to learn from. Default with --resume: the zoo of the run, if it has not moved."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The run folder; default: runs/NAME, and the newest run with --resume alone."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run with its own settings.")
    ] = False,
    set: Set = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Learn the latent space of a zoo.

    The same command on the same machine gives the same bytes; another number of processes or threads gives others, as
    close as rounding.
    """
    from netspace.errors import NetspaceError, UsageError
    from netspace.report.drawing import finite
    from netspace.results.spaces import Training
    from netspace.run_folder import RunFolder, is_run, merit, read_metrics
    from netspace.training.latent_space import recipe_of
    from netspace.training.latent_space import train as train_space

    trusting(trust_arch)
    recipe, folder, changes = recipe_of(config, set or [], out, resume)
    if device:
        recipe = recipe.model_copy(update={"device": device})
    if zoo is None:
        if not (resume and is_run(folder)):
            raise UsageError("--zoo is missing: name the zoo to learn from (`netspace zoo build` makes one)")
        zoo = RunFolder.of_space(folder).zoo
    run = train_space(recipe, zoo, folder, resume, changes)
    validated = [record for record in read_metrics(run / "metrics.jsonl") if finite(record.get("val_mae")) is not None]
    if not validated:
        raise NetspaceError(f"{run} has no record of a validation: its metrics.jsonl is damaged, its weights are not")
    best = max(validated, key=merit)
    say(
        Training(run=str(run), steps=recipe.steps, best=best),
        json,
        training,
    )


@app.command("eval")
def evaluate(
    run: RunArgument = None,
    same_run: SameRun = None,
    split: Annotated[str, typer.Option(help="train, val or test members.")] = "test",
    distil: Annotated[
        bool | None,
        typer.Option(
            "--distil/--no-distil",
            help="A control for architectures not seen in training: distil a network of each from the teacher, for as many steps "
            "as the space was trained. Default: if these are at most 5,000.",
        ),
    ] = None,
    deepsdf: Annotated[
        bool,
        typer.Option(
            "--deepsdf",
            help="Of a space of shapes: a baseline that is one network for all shapes, trained for as long as the space was.",
        ),
    ] = False,
    deepsdf_steps: Annotated[
        int | None, whole(1, MAX_STEPS, "Train it for so many steps instead; implies --deepsdf.")
    ] = None,
    completion: Annotated[
        int | None,
        whole(
            1,
            MAX_POINTS,
            "Of a space of shapes: complete shapes from N points on their surfaces, as optimize --points does.",
            metavar="N",
        ),
    ] = None,
    images: Annotated[
        int | None,
        whole(1, MAX_POINTS, "Compare networks on the first N validation and test images. Default: all.", metavar="N"),
    ] = None,
    refine: Refine = None,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Measure how well a space reconstructs networks, compared with baselines."""
    from netspace.commands.evaluate import evaluate as evaluate_run
    from netspace.config import validate
    from netspace.training.deepsdf import DeepSdfConfig

    trusting(trust_arch)
    auto_decoder = None
    if deepsdf or deepsdf_steps is not None:
        auto_decoder = validate(DeepSdfConfig, {"steps": deepsdf_steps}, "--deepsdf-steps")
    folder = run_folder(run, same_run)
    result = evaluate_run(folder, split, zoo, pick(device), distil, True, auto_decoder, completion, refine, images)
    say(result, json, evaluation)


@app.command()
def interpolate(
    start: Annotated[str, typer.Option("--from", metavar="A", help=Network)],
    end: Annotated[str, typer.Option("--to", metavar="B", help=Network)],
    run: RunOption = None,
    steps: Annotated[int, whole(2, MAX_NETWORKS, "Number of networks on the line, ends included.")] = 11,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the decoded networks (safetensors), and the meshes of shapes, to this folder."),
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(metavar="glb|ply", help="In a space of shapes: the format of the meshes; default glb."),
    ] = None,
    refine: Refine = None,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Measure accuracy along the latent line from A to B, and along the line between their weights.

    In a space of shapes, write a mesh of every step and a picture of the lines, too.
    """
    from netspace.commands.interpolate import interpolate as interpolate_run

    trusting(trust_arch)
    result = interpolate_run(run_folder(run), start, end, steps, save, zoo, pick(device), mesh, refine)
    say(result, json, interpolation)


app.command()(optimize)
app.command()(resume)
app.command()(diff)
app.command()(health)
app.command()(probe)
app.command()(search)
app.command("open")(open_command)


@app.command()
def sample(
    run: RunOption = None,
    count: Annotated[int, whole(2, MAX_NETWORKS, "Number of networks.")] = 16,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the networks, seen in training or not; default: the only one of the space. With a coordinate "
            "decoder any architecture."
        ),
    ] = None,
    width: Width = None,
    depth: Depth = None,
    fit: Annotated[
        str, typer.Option(help="Distribution of the latents: gaussian, or kde (around the training members).")
    ] = "gaussian",
    bandwidth: Annotated[float, real(0, 1000, "Bandwidth of kde, in standard deviations of the Gaussian.")] = 0.3,
    seed: Annotated[int, whole(0, MAX_SEED, "Seed of the draw.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the networks (safetensors) to this folder.")] = None,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Draw new networks from the distribution of the training members' latents."""
    from netspace.commands.sample import sample as draw

    trusting(trust_arch)
    device_name = pick(device)
    say(draw(run_folder(run), count, arch, fit, bandwidth, seed, save, zoo, device_name, width, depth), json, samples)


@app.command()
def encode(
    network: Annotated[str, typer.Argument(metavar="A", help=Network)],
    out: Output,
    run: RunOption = None,
    refine: Refine = None,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Write the latent of a network as a safetensors file."""
    from netspace.commands.encode import encode as encode_network

    trusting(trust_arch)
    result = encode_network(run_folder(run), network, out, zoo, pick(device), refine)
    say(result, json, lambda r: f"{r.network} ({r.arch}) is {r.latent} numbers in {r.file}")


@app.command()
def decode(
    latent: Annotated[Path, typer.Argument(metavar="LATENT", help="A latent file, such as `encode` writes.")],
    out: Output,
    run: RunOption = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture to decode to; default: the one that the latent stands for.")
    ] = None,
    width: Width = None,
    depth: Depth = None,
    batch_norm: Annotated[
        bool,
        typer.Option(
            "--batch-norm", help="Write a state dict for the trained class, whose batch norms then only add a bias."
        ),
    ] = False,
    zoo: ZooOption = None,
    device: Device = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Decode a latent to a network: a state dict (safetensors) with batch norm folded into the layers.

    In a space of shapes, a file named .glb or .ply gets the network's surface as a mesh instead. A state dict loads into
    the module that `netspace.archs.skeleton` makes; with --batch-norm, into the class that was trained.
    """
    from netspace.commands.convert import decode as decode_latent

    trusting(trust_arch)
    result = decode_latent(run_folder(run), latent, out, arch, zoo, pick(device), batch_norm, width, depth)
    say(
        result,
        json,
        decoding,
    )


@app.command()
def report(
    run: RunArgument = None,
    same_run: SameRun = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page and PNG figures for a run, or for a folder of `compress fit` or `morph fit`."""
    from netspace.report import report as write_report

    say(write_report(run_folder(run, same_run)), json, lambda r: f"{r.report} and {len(r.figures)} figures")


def main() -> NoReturn:
    """Run the console script. Exit code 0: done, 1: failed, 2: bad usage, 130: Ctrl-C. A mistake prints one sentence."""
    run(typer.main.get_command(app))
