"""`netspace zoo ...`: build, import, info, verify, merge, align."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspace.cli.output import counted, number, say
from netspace.cli.output import zoo as zoo_text
from netspace.cli.ranges import MAX_MEMBERS, MAX_SHARDS, MAX_WIDTH, real, whole
from netspace.cli.shared import Device, Json, Kwargs, Set, Trust, keyword_arguments, trusting

if TYPE_CHECKING:
    from model_zoo.recipe import ZooRecipe
    from netspace.results.zoos import Verification, ZooAlignment, ZooImport, ZooInfo
    from netspace.zoo import Shard

app = typer.Typer(no_args_is_help=True, help="Build, inspect, check and merge zoos of trained networks.")

ZooPath = Annotated[Path, typer.Argument(metavar="ZOO", help="A zoo file (HDF5), or a folder of shards.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Of a folder of shards, take those that are there and finished.")
]


@app.command()
def build(
    config: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file, or a bundled one such as zoo/quickstart.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The zoo file to write; default: zoos/NAME.h5.")
    ] = None,
    set: Set = None,
    workers: Annotated[int | None, whole(1, 1024, "Number of processes on a CPU; default: one for each core.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Train one of N parts of the networks, from 1/N to N/N, and write it into the folder --out (default: zoos/NAME). "
            "Parts are built by themselves, anywhere, and the folder is read as one zoo.",
        ),
    ] = None,
    shards: Annotated[int | None, whole(1, MAX_SHARDS, "Number of shards that --ray or --slurm deals out.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Build shards in the folder --out on a cluster of Ray: its address, auto, or local to start one here. All "
            'machines see the folder. Needs pip install "netspace[ray]".',
        ),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help='Build shards as a job array by submitit: slurm, local or debug. Needs pip install "netspace[slurm]".',
        ),
    ] = None,
    slurm_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A parameter of submitit, such as slurm_partition=gpu or timeout_min=600."
        ),
    ] = None,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Train the networks of a recipe and write them to a zoo file. Run it again to resume an interrupted build."""
    from model_zoo.builder import build as build_zoo
    from model_zoo.recipe import ZooRecipe
    from netspace.config import load
    from netspace.errors import UsageError

    trusting(trust_arch)
    changes = [*(set or []), *([f"device={device}"] if device else [])]
    recipe = load(ZooRecipe, config, changes)
    part = _shard(shard)
    if ray or slurm:
        say(describe(_on_cluster(recipe, out, shard, shards, ray, slurm, slurm_set)), json, zoo_text)
        return
    if shards is not None or slurm_set:
        raise UsageError(
            f"{'--slurm-set' if shards is None else '--shards'} is for the shards that --ray or --slurm deals out, and neither was "
            "given: add one, or build a shard by itself (--shard I/N)"
        )
    path = build_zoo(recipe, out or Path("zoos") / (recipe.name if part else f"{recipe.name}.h5"), workers, part)
    say(describe(path), json, zoo_text)


def _shard(text: str | None) -> Shard | None:
    from netspace.errors import UsageError
    from netspace.zoo import Shard

    try:
        return None if text is None else Shard.parse(text)
    except ValueError as error:
        raise UsageError(f"--shard: {error}") from None


def resume_build(zoo: Path, trust_arch: list[str] | None, device: str | None, json: bool) -> None:
    """Build a zoo to its end, by the recipe that its finished members name."""
    from model_zoo.builder import begun
    from model_zoo.builder import build as build_zoo

    trusting(trust_arch)
    recipe, shard = begun(zoo)
    if device:
        recipe = recipe.model_copy(update={"device": device})
    say(describe(build_zoo(recipe, zoo if shard is None else zoo.parent, shard=shard)), json, zoo_text)


def _on_cluster(
    recipe: ZooRecipe,
    out: Path | None,
    shard: str | None,
    shards: int | None,
    ray: str | None,
    slurm: str | None,
    slurm_set: list[str] | None,
) -> Path:
    from model_zoo.cluster import build_by_ray, build_by_slurm
    from netspace.errors import UsageError

    folder = out or Path("zoos") / recipe.name
    if shard or (ray and slurm):
        raise UsageError("--shard, --ray and --slurm are three ways to build shards: give one of them")
    if folder.is_file():
        raise UsageError(f"{folder} is a file, but shards are written into a folder: choose another --out")
    if ray:
        return build_by_ray(recipe, folder, ray, shards)
    if shards is None:
        raise UsageError("--slurm builds a number of shards: give it as --shards")
    parameters = {key: int(value) if value.isdecimal() else value for key, value in _conditions(slurm_set).items()}
    return build_by_slurm(recipe, folder, str(slurm), shards, parameters)


@app.command("import")
def import_(
    zoo: ZooPath,
    arch: Annotated[str, typer.Option(help="An architecture in the zoo, or the name of a new one.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="State dicts: .safetensors, .pt or .pth.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="A table in place of FILEs, with the column file, any of run, seed, epochs and split, and columns of your own, which are kept. Checkpoints of one "
            "training run have the same run, so that they stay in one split; each FILE counts as a run of its own.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="FILE is a zoo of another program: small-cnn, fit-a-nef, hsg or hub; default: found from what is there."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Of a zoo of another program, networks with this value alone."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The data set of a new zoo.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of a new zoo's data, as in recipes: data.root, data.image_size, data.channels, data.mean, "
            "data.std, ... Without mean and std, images are standardised with those of the training images.",
        ),
    ] = None,
    width: Annotated[float | None, real(0, MAX_WIDTH, "The width factor of a new architecture.")] = None,
    kwargs: Kwargs = None,
    key: Annotated[
        str | None, typer.Option(help="The state dict to read from a checkpoint that has several, such as ema.")
    ] = None,
    folded: Annotated[
        bool, typer.Option("--folded", help="Batch norm is folded already, if names and shapes do not show it.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; default: drawn at random, 75/12.5/12.5 %.")
    ] = None,
    prep_width: Annotated[
        int | None,
        whole(
            8,
            65536,
            "The width of the PReps of a new architecture, a multiple of 8; default: the zoo's, or 8 rows in a new zoo.",
        ),
    ] = None,
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Add networks trained elsewhere. Nothing in the files is executed."""
    from model_zoo.importer import ImportSettings, import_members, read_table
    from netspace.config import load
    from netspace.errors import UsageError
    from netspace.networks.state_dict import read_state_dict

    if bool(files) == (table is not None):
        raise UsageError("networks are given as FILEs or by a --table: give one of the two")
    trusting([*(trust_arch or []), arch])
    given = (
        None if data is None and not set else load(ImportSettings, {"data": {"name": data} if data else {}}, set or [])
    )
    if files and (format or any(each.is_dir() or each.suffix in (".h5", ".hdf5", ".h5py") for each in files)):
        from model_zoo.foreign_import import ForeignImport, import_foreign

        if len(files) > 1:
            raise UsageError(f"{len(files)} zoos of other programs were given: import each into a zoo of its own")
        chosen = ForeignImport(
            source=files[0],
            arch=arch,
            format=format,
            data=ImportSettings().data if given is None else given.data,
            width=width,
            kwargs=keyword_arguments(kwargs),
            only=_conditions(only),
            split=split,
            prep_width=prep_width,
            folded=folded,
        )
        say(import_foreign(zoo, chosen), json, _imported)
        return
    entries = None if table is None else read_table(table)
    paths = list(files or []) if entries is None else [entry.file for entry in entries]
    states = {str(path): read_state_dict(path, key) for path in paths}
    result = import_members(
        zoo,
        states,
        arch,
        data=None if given is None else given.data,
        width=width,
        kwargs=keyword_arguments(kwargs),
        split=split,
        prep_width=prep_width,
        folded=folded,
        table=entries,
    )
    say(result, json, _imported)


def _conditions(texts: list[str] | None) -> dict[str, str]:
    from netspace.errors import UsageError

    if wrong := next((text for text in texts or [] if "=" not in text), None):
        raise UsageError(f"NAME=VALUE was expected, such as config.activation=relu; found {wrong!r}")
    return dict(text.split("=", 1) for text in texts or [])


def _imported(result: ZooImport) -> str:
    splits = ", ".join(f"{count} {name}" for name, count in result.splits.items() if count)
    means, stds = (", ".join(f"{value:.4f}" for value in values) for values in (result.mean, result.std))
    by = f"; images were standardised by mean {means} and standard deviation {stds}" if result.mean else ""
    return (
        f"{result.imported} imported into {result.path} as {result.arch} ({splits}; trainings: {result.runs}), "
        f"{result.duplicates} {'was' if result.duplicates == 1 else 'were'} there already{by}"
    )


@app.command()
def info(zoo: ZooPath, partial: Partial = False, json: Json = False) -> None:
    """Show what a zoo contains."""
    say(describe(zoo, partial), json, zoo_text)


@app.command()
def verify(
    zoo: ZooPath,
    sample: Annotated[int, whole(0, MAX_MEMBERS, "Number of members of each architecture to evaluate again.")] = 16,
    trust_arch: Trust = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Check every member (checksums, values, padding) and re-evaluate a sample. Exit code 1 if anything is wrong."""
    from model_zoo.verify import verify as verify_zoo

    trusting(trust_arch)
    result = verify_zoo(zoo, sample=sample, device=device or "auto")
    say(result, json, _verified)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def merge(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[OUT] ZOO...", help="The zoo to write, then the zoos to merge, which must have the same data."
        ),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The zoo to write, in place of OUT.")] = None,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Merge zoos, or folders of shards, into a new one; bitwise equal networks are kept once."""
    from netspace.errors import UsageError
    from netspace.results.zoos import MergedZoo
    from netspace.zoo import merge as merge_zoos
    from netspace.zoo import zoo_lock

    zoos = files
    if out is None:
        out, *zoos = files
    with zoo_lock(out):
        if zoos and out.exists():
            raise UsageError(f"{out} exists already: choose another name, so that nothing is lost")
        merged = merge_zoos(out, zoos, partial=partial)
    say(
        describe(out).extended(MergedZoo, duplicates=merged.duplicates),
        json,
        lambda r: f"{zoo_text(r)}\n{counted(r.duplicates, 'duplicate')} left out",
    )


@app.command()
def align(
    zoo: ZooPath,
    out: Annotated[Path, typer.Option("-o", "--out", help="The zoo to write.")],
    trust_arch: Trust = None,
    json: Json = False,
) -> None:
    """Permute the channels of every network to those of one reference of its architecture. Functions stay as they are."""
    from model_zoo.align import align_zoo

    trusting(trust_arch)
    say(align_zoo(zoo, out), json, _aligned)


def _aligned(result: ZooAlignment) -> str:
    lines = [f"wrote {result.path}"]
    for name, figures in result.archs.items():
        if figures.skipped is not None:
            lines.append(f"{name}: left as it was: {figures.skipped}")
        elif figures.distance_before is None:
            lines.append(f"{name}: {figures.reference} is alone")
        else:
            lines.append(
                f"{name}: to {figures.reference} over {counted(figures.groups or 0, 'group')} of channels; mean distance "
                f"{number(figures.distance_before)} before, {number(figures.distance_after)} after"
            )
    return "\n".join(lines)


def describe(path: Path, partial: bool = False) -> ZooInfo:
    """Return the figures of `netspace zoo info`."""
    import numpy as np

    from netspace.results.zoos import AccuracyRange, ArchInfo, ZooInfo
    from netspace.zoo import SPLITS, VERSION, Zoo

    with Zoo(path, partial) as zoo:
        archs: dict[str, ArchInfo] = {}
        for name, group in zoo.archs.items():
            accuracies = group.members["accuracy_test"]
            accuracies = accuracies[np.isfinite(accuracies)]
            low, middle, high = np.percentile(accuracies, [0, 50, 100]).tolist() if len(accuracies) else [None] * 3
            archs[name] = ArchInfo(
                class_id=group.class_id,
                arch=group.spec.arch,
                settings=group.spec.settings,
                members=len(group),
                diverged=int((group.members["status"] == b"diverged").sum()),
                parameters=group.spec.num_parameters,
                prep=group.size,
                accuracy=AccuracyRange(min=low, median=middle, max=high),
            )
        splits = {split: sum(len(group.rows(split)) for group in zoo.archs.values()) for split in SPLITS}
        return ZooInfo(
            path=str(path),
            version=VERSION,
            dataset=zoo.header.dataset,
            members=len(zoo),
            splits=splits,
            bytes=zoo.num_bytes,
            archs=archs,
            complete=zoo.complete,
            content_hash=zoo.content_hash,
            versions=dict(zoo.header.versions),
            **({"score": zoo.header.score} if zoo.header.score else {}),
            **({"shard": str(zoo.shard)} if zoo.shard else {}),
            **({"shards": len(zoo.files)} if path.is_dir() else {}),
        )


def _verified(result: Verification) -> str:
    counts = f"{counted(result.checked, 'member')} checked, {result.re_evaluated} evaluated again"
    if result.ok:
        return f"{result.path} is sound: {counts}"
    listed = "\n".join(f"- {problem}" for problem in result.problems)
    return f"{result.path} has {counted(len(result.problems), 'problem')} ({counts}):\n{listed}"
