"""`netspace decode`, and the network that a text names: a member, 'best', a file.

Axes: E latent size, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspace.commands.shapes import require_shapes, surfaces_of
from netspace.errors import NetspaceError, UsageError, absent
from netspace.io import write_tensors
from netspace.networks.family import ArchClass, Networks
from netspace.networks.prep import pack, unflatten
from netspace.networks.state_dict import FILES, flat_parameters, folded_metadata, read_safetensors, read_state_dict
from netspace.results.spaces import Decoding
from netspace.run_folder import RunFolder
from netspace.space import Space
from netspace.surfaces import bodies, check_mesh_path, write_mesh
from netspace.tasks import Task
from netspace.training.setup import task_of
from netspace.training.validation import accuracies
from netspace.zoo import Zoo

LATENT = "latent"  # the tensor's name in a latent file
MESHES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")  # of files that a user expects to hold a mesh


@dataclass(frozen=True)
class Named:
    """A network that a user named, and its latent."""

    name: str  # as it was given; 'resnet8/0007' for a word such as 'best'
    class_id: int  # its architecture; of a latent file the one that the latent stands for
    latent: Tensor  # (E,)
    flat: Tensor | None  # (P,); None for a latent file
    seed: int = -1  # of a zoo member's training, by which its task knows it


def zoo_of(run: Path, given: Path | None = None) -> Zoo:
    """Open the zoo that a run was trained on: `given`, or the path in the run's provenance.

    Raises `NetspaceError` for another, and if there is none.
    """
    origin, path = RunFolder.of_space(run).origin, RunFolder.of_space(run).zoo
    try:
        zoo = Zoo(given or path)
    except NetspaceError:
        if given is None and not path.exists():
            raise NetspaceError(
                f"{path}, the zoo that {run} was trained on, does not exist: if it has moved, name it with --zoo"
            ) from None
        raise
    if zoo.content_hash != origin.zoo_hash:
        zoo.close()
        raise NetspaceError(
            f"{zoo.path} is not the zoo that {run} was trained on (its networks differ): name the right one with --zoo"
        )
    return zoo


def resolve(text: str, space: Space, zoo: Zoo | None) -> Named:
    """Return the network that `text` names.

    Raises:
        UsageError: it names no network, or a member without a zoo or of another architecture than the space's.
        NetspaceError: its file is broken, or of a network that is not the space's; or the member diverged in training.
    """
    path = Path(text)
    if path.suffix in FILES and (path.is_file() or "/" not in text):
        state = read_state_dict(path)
        if set(state) == {LATENT}:
            latent = check_latent(state[LATENT], space, text)
            return Named(text, int(space.class_ids(latent[None])[0]), latent, None)
        arch = space.recognise(state)
        flat = flat_parameters(state, arch.spec).to(space.device)
        return Named(text, space.class_id(arch.id), space.encode(pack(flat, arch.size), arch.id), flat)
    if zoo is None:
        raise UsageError(f"{text!r} names a zoo member, but no zoo is at hand: give --zoo")
    member = zoo[text]
    if member.arch not in [each.id for each in space.family]:
        raise UsageError(f"{member} is of another architecture than this space's ({space.family.names})")
    flat = member.flat().to(space.device)
    latent = space.encode(pack(flat, member.group.size), member.arch)
    return Named(str(member), space.class_id(member.arch), latent, flat, int(member.seed))


def check_latent(latent: Tensor, space: Space, origin: str) -> Tensor:
    """Return a latent as (E,) float32. Raises `NetspaceError` for another size or values that are not finite."""
    if latent.numel() != space.latent:
        raise NetspaceError(f"{origin} holds a latent of {latent.numel()} values; this space's have {space.latent}")
    if not torch.isfinite(latent).all():
        raise NetspaceError(f"{origin} holds values that are not finite")
    return latent.reshape(-1).float().to(space.device)


def write_latent(path: Path, latent: Tensor, **notes: str) -> None:
    """Write a latent file: safetensors with the one tensor 'latent' (E,).

    Raises `NetspaceError` for values that are not finite, which nothing can read.
    """
    if not torch.isfinite(latent).all():
        raise NetspaceError(f"the latent for {path} has values that are not finite: it is not written")
    write_tensors(path, {LATENT: latent}, **notes)


def read_latent(path: Path, space: Space) -> Tensor:
    """Return the latent (E,) of a file. Raises `UsageError` if it does not exist, `NetspaceError` if it is no latent file."""
    if not path.is_file():
        raise UsageError(f"{absent(path)}: give a latent file, such as `netspace encode -o` writes")
    state = read_safetensors(path)
    if set(state) != {LATENT}:
        raise NetspaceError(
            f"{path} was expected to hold one tensor named {LATENT!r}, but holds: {', '.join(state) or 'nothing'}"
        )
    return check_latent(state[LATENT], space, str(path))


def write_network(path: Path, flat: Tensor, arch: ArchClass, **notes: str) -> None:
    """Write a network (P,) as a state-dict file (safetensors), with the architecture's own buffers.

    It loads into the architecture with batch norm folded: `netspace.archs.skeleton` of what the file's metadata say.
    """
    state = {**arch.nets.skeleton.state_dict(), **unflatten(flat, arch.spec)}
    state = {name: value.detach().cpu().clone() for name, value in state.items()}
    write_tensors(path, state, **folded_metadata(arch.spec), **notes)


def target_accuracy(space: Space, network: Named, task: Task) -> float | None:
    """Return the test accuracy of a network before it was encoded; None for a latent file."""
    if network.flat is None:
        return None
    networks = Networks.of_class(space.family, network.class_id, network.flat[None])
    return float(accuracies(networks, task, "test", torch.tensor([network.seed]))[0])


def decode(
    run: Path,
    latent: Path,
    output: Path,
    arch: str | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
    batch_norm: bool = False,
    width: float | None = None,
    depth: int | None = None,
) -> Decoding:
    """Write the network that a latent file decodes to, with its accuracy on the test images if the zoo is at hand.

    Its architecture is the one that the latent stands for, or `arch`; with a coordinate decoder that may be any architecture,
    at another `width` or `depth` (`Space.resized`). With `batch_norm` the state dict is of the class that was trained, as
    `Space.decode` says. A file named as a mesh (.glb or .ply) gets the surface of a network that is a shape.

    Raises:
        UsageError: a mesh is asked for where networks are no shapes; and as `read_latent` and `Space.select`.
        NetspaceError: a mesh is asked for and the zoo is not at hand, or the shape is empty.

    >>> from netspace.commands.encode import encode
    >>> result = encode(run, "best", folder / "latent.safetensors")
    >>> result = decode(run, folder / "latent.safetensors", folder / "network.safetensors")
    >>> sorted(read_state_dict(folder / "network.safetensors"))[:2]
    ['conv1.bias', 'conv1.weight']
    """
    space = Space.load(run, device)
    mesh = output.suffix.lower() in MESHES
    if mesh:
        _check_mesh(run, output, zoo_path, batch_norm, space.device)
    code = read_latent(latent, space)
    decoding = space.select(arch, width, depth)
    networks = decoding.decode_all(code[None], arch if decoding is space else None)
    kind = decoding.family[int(networks.class_ids[0])]
    accuracy: float | None = None
    score: dict[str, Any] = {}
    zoo = zoo_or_none(run, zoo_path)
    if zoo is not None:
        with zoo:
            task = task_of(zoo, space.device)
        accuracy, score = float(accuracies(networks, task, "test")[0]), task.score_field()
    if mesh:
        (shape,) = surfaces_of(networks, task)
        write_mesh(output, shape, task.upright)
        score["bodies"] = bodies(shape).large
    elif batch_norm:
        state = decoding.decode(code, kind.id, batch_norm=True).state_dict()
        write_tensors(output, state, **folded_metadata(kind.spec, folded=False), run=str(run), latent=str(latent))
    else:
        write_network(output, networks.flat(0), kind, run=str(run), latent=str(latent))
    return Decoding(
        run=str(run),
        arch=kind.id,
        settings=kind.spec.settings,
        parameters=kind.parameters,
        accuracy_test=accuracy,
        file=str(output),
        **score,
    )


def _check_mesh(run: Path, output: Path, zoo_path: Path | None, batch_norm: bool, device: torch.device) -> None:
    """Raise `UsageError` or `NetspaceError` unless networks of a run can be written as a mesh to `output`."""
    check_mesh_path(output)
    if batch_norm:
        raise UsageError(
            f"--batch-norm is for state dicts, but {output} is a mesh: name a .safetensors file, or leave it out"
        )
    with zoo_of(run, zoo_path) as zoo:
        require_shapes(task_of(zoo, device), f"{output} was to hold a mesh")


def zoo_or_none(run: Path, zoo_path: Path | None) -> Zoo | None:
    """Open the run's zoo; None if it has moved and none was named (files can still be encoded)."""
    if zoo_path is not None:
        return zoo_of(run, zoo_path)
    try:
        return zoo_of(run)
    except NetspaceError:
        return None
